"""A plugin as the key store: any service that speaks the small REST protocol of 2021 to 2023.

A plugin answers `POST`, `GET` and `DELETE` of `/v1/key/NAME`, and `GET /v1/key` with one JSON object for each name, a
line each, of which the last one says so. The protocol asks of it that a name is created once.
"""

import json
import time
from base64 import b64encode
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from keswick.encoding import b64decode_go
from keswick.keystore.contract import KeyExists, KeyNotFound, KeyStore, KeyStoreError
from keswick.keystore.section import CA, PEM_FILE, URL, Setting, Shape
from keswick.names import is_stored_name

if TYPE_CHECKING:
    from keswick.keystore.http import Answer

SHAPE = Shape(
    required=("endpoint",),
    sections={"tls": Shape(optional=("key", "cert", "ca"), together=("key", "cert"))},
)

SETTINGS = (
    Setting("endpoint", "of the plugin", URL, "https://127.0.0.1:7003", needed=""),
    Setting("tls.key", "private key of the client", PEM_FILE, "/etc/kes/plugin-client.key", needed="tls.cert"),
    Setting("tls.cert", "certificate of the client", PEM_FILE, "/etc/kes/plugin-client.crt", needed="tls.key"),
    CA,
)

_SERVICE = "the key store plugin"
_KEYS = "/v1/key"
_EXISTS, _ABSENT = "key already exists", "key does not exist"
"""What a plugin says, word for word."""
_LINES = "application/x-ndjson"


def open(settings: Mapping[str, str]) -> KeyStore:
    return PluginStore(settings)


class PluginStore(KeyStore):
    """Nothing is asked of the plugin before the first call. Raises KeyStoreError for settings that cannot be used."""

    atomic_create = True

    def __init__(self, settings: Mapping[str, str]) -> None:
        import ssl

        from keswick.keystore.http import HttpService

        certificate = (settings["tls.cert"], settings["tls.key"]) if settings.get("tls.cert") else None
        self._http = HttpService(
            _SERVICE,
            settings["endpoint"],
            ca=settings.get("tls.ca"),
            certificate=certificate,
            minimum_version=ssl.TLSVersion.TLSv1_3,
            should_retry=lambda status: status >= 500,
        )
        self._shows_certificate = certificate is not None
        self.description = f"Plugin: {self._http.endpoint}"

    def status(self) -> float:
        """Any answer to a request for nothing shows that the plugin runs, and that both sides trust each other."""
        begin = time.perf_counter()
        answer = self._http.call("GET", "/")
        if answer.status in (502, 503, 504):  # said by what stands before it
            raise self._unexpected(answer)
        return time.perf_counter() - begin

    def create(self, name: str, value: bytes) -> None:
        until = self._http.deadline()
        text = b64encode(value).decode()
        answer = self._call("POST", _key(name), until, body={"bytes": text})
        if answer.status == 400 and _message(answer) == _EXISTS:
            with suppress(KeyNotFound):
                if answer.retried and self._value(name, until) == value:
                    return
            raise KeyExists(name)
        if answer.status != 201:
            raise self._unexpected(answer, hidden=text)

    def get(self, name: str) -> bytes:
        return self._value(name, self._http.deadline())

    def delete(self, name: str) -> None:
        """A plugin may say of any name that it was deleted, so it is looked for first."""
        until = self._http.deadline()
        self._encoded(name, until)
        answer = self._call("DELETE", _key(name), until)
        if answer.status == 404 and _message(answer) == _ABSENT:
            if answer.retried:
                return
            raise KeyNotFound(name)
        if answer.status not in (200, 204):
            raise self._unexpected(answer)

    def list(self, prefix: str) -> Sequence[str]:
        answer = self._call("GET", _KEYS, self._http.deadline())
        if answer.status != 200:
            raise self._unexpected(answer)
        names = _names(answer)
        if names is None:
            raise KeyStoreError(
                f"{_SERVICE} at {self._http.endpoint} answered with what is no list of names: each is to be a line "
                '{"name":"NAME","last":false}, and only the last one is to say "last":true'
            )
        return [name for name in dict.fromkeys(names) if name.startswith(prefix) and is_stored_name(name)]

    def warnings(self) -> Sequence[str]:
        if self._http.endpoint.startswith("https:"):
            return []
        return [f"keys travel to {_SERVICE} without encryption: let it serve HTTPS, and write its endpoint so"]

    def close(self) -> None:
        self._http.close()

    def _value(self, name: str, until: float) -> bytes:
        try:
            return b64decode_go(self._encoded(name, until))
        except ValueError:
            raise KeyStoreError(f"{_SERVICE} answered for '{name}' with a value that is not in base64") from None

    def _encoded(self, name: str, until: float) -> str:
        answer = self._call("GET", _key(name), until)
        if answer.status == 404 and _message(answer) == _ABSENT:
            raise KeyNotFound(name)
        if answer.status != 200:
            raise self._unexpected(answer)
        encoded = self._http.object(answer).get("bytes")
        if not isinstance(encoded, str):
            raise KeyStoreError(f"{_SERVICE} at {self._http.endpoint} answered for '{name}' without its \"bytes\"")
        return encoded

    def _call(self, method: str, path: str, until: float, body: Any = None) -> "Answer":
        return self._http.call(method, path, body=body, seconds=until - time.monotonic())

    def _unexpected(self, answer: "Answer", hidden: str = "") -> KeyStoreError:
        """`hidden`: what the plugin may have been shown, but nobody else."""
        words = _message(answer)
        if hidden:
            words = words.replace(hidden, "...")
        if answer.status in (401, 403):
            use = "the certificate in 'tls.cert'" if self._shows_certificate else "no certificate: set 'tls.cert'"
            words = f"{words + '; ' if words else ''}it was shown {use}"
        return self._http.unexpected(answer, words)


def _key(name: str) -> str:
    return f"{_KEYS}/{quote(name, safe='')}"


def _message(answer: "Answer") -> str:
    found = answer.json()
    message = found.get("message") if isinstance(found, dict) else None
    return message if isinstance(message, str) else ""


def _names(answer: "Answer") -> list[str] | None:
    """None for what is no list, or not a whole one."""
    names: list[str] = []
    for line in answer.body.splitlines():
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError:
            return None
        name = entry.get("name", "") if isinstance(entry, dict) else None
        if not isinstance(name, str):
            return None
        if name:  # an empty list may be one line without a name
            names.append(name)
        if entry.get("last") is True:
            return names
    media_type = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return [] if not answer.body.strip() and media_type == _LINES else None
