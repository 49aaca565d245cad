"""Fortanix SDKMS, now Data Security Manager.

A key is a security object of that name and of the type `OPAQUE`, whose value is the base64 of the key's. Names are
unique in an account, so a create is atomic; which objects an application sees is a matter of its groups.
"""

import time
from base64 import b64encode
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from keswick.encoding import b64decode_go
from keswick.keystore.contract import KeyExists, KeyNotFound, KeyStore, KeyStoreError, NotAKey
from keswick.keystore.section import CA, CA_ONLY, TEXT, URL, Setting, Shape
from keswick.names import is_stored_name

if TYPE_CHECKING:
    from keswick.keystore.http import Answer

SHAPE = Shape(
    required=("endpoint", "credentials"),
    optional=("group_id",),
    sections={"credentials": Shape(required=("key",)), "tls": CA_ONLY},
)

SETTINGS = (
    Setting("endpoint", "of the service", URL, "https://sdkms.fortanix.com", needed=""),
    Setting("group_id", "the group of new keys", TEXT, "ce08d547-2a82-411e-ae2d-83655a4b7617"),
    Setting("credentials.key", "API key of the application", TEXT, "${FORTANIX_API_KEY}", needed=""),
    CA,
)


PAGE = 100
"""Objects in one answer of a list."""

_SERVICE = "the key store 'fortanix.sdkms'"
_KEYS = "/crypto/v1/keys"
_EXISTS, _ABSENT = "sobject already exists", "sobject does not exist"
"""What the service says, word for word."""
_KEPT_AS = (None, "OPAQUE", "SECRET")
"""Types of objects that hold any bytes, where a type is told. Others are foreign keys and certificates."""


def open(settings: Mapping[str, str]) -> KeyStore:
    return FortanixStore(settings)


class FortanixStore(KeyStore):
    """Begins as the service recommends: it asks whether the service is well, and whether the API key is.

    Raises KeyStoreError when one of them is not.
    """

    atomic_create = True

    def __init__(self, settings: Mapping[str, str]) -> None:
        from keswick.keystore.http import HttpService

        self._api_key = settings["credentials.key"].strip()
        if not self._api_key.isascii() or not self._api_key.isprintable():
            raise KeyStoreError(f"{_SERVICE}: 'credentials.key' is no API key: copy it as the service shows it")
        self._group = settings.get("group_id", "")
        self._http = HttpService(_SERVICE, settings["endpoint"], ca=settings.get("tls.ca"))
        self.description = f"Fortanix SDKMS: {self._http.endpoint}"
        try:
            self._begin(self._http.deadline())
        except KeyStoreError:
            self._http.close()
            raise

    def status(self) -> float:
        begin = time.perf_counter()
        self._page("", 1)
        return time.perf_counter() - begin

    def create(self, name: str, value: bytes) -> None:
        until = self._http.deadline()
        text = b64encode(value).decode()
        group = {"group_id": self._group} if self._group else {}
        sobject = {
            "obj_type": "OPAQUE",
            "name": name,
            **group,
            "key_ops": ["EXPORT", "APPMANAGEABLE"],
            "value": text,
            "enabled": True,
        }
        answer = self._call("PUT", _KEYS, until, body=sobject)
        if answer.status == 409 and _words(answer) == _EXISTS:
            with suppress(KeyNotFound):
                if answer.retried and self._value(name, until) == value:
                    return
            raise KeyExists(name)
        if answer.status != 201:
            raise self._unexpected(answer, "create", hidden=text)

    def get(self, name: str) -> bytes:
        return self._value(name, self._http.deadline())

    def delete(self, name: str) -> None:
        until = self._http.deadline()
        kid = self._export(name, until).get("kid")
        if not isinstance(kid, str) or not kid:
            raise KeyStoreError(f"{_SERVICE} answered with the object '{name}', but without its ID")
        answer = self._call("DELETE", f"{_KEYS}/{quote(kid, safe='')}", until)
        if answer.status == 404 and _words(answer) == _ABSENT:
            if answer.retried:
                return
            raise KeyNotFound(name)
        if answer.status != 204:
            raise self._unexpected(answer, "delete")

    def list(self, prefix: str) -> Sequence[str]:
        """Whether a page begins with the name that it is to start at, or after it, does not matter here; nor how names
        are sorted, if only a name comes before all that begin with it."""
        found: dict[str, bool] = {}
        start = prefix[:-1]  # the prefix itself may be the name of a key, which must not be passed over
        while True:
            page = {sobject["name"]: sobject.get("obj_type") in _KEPT_AS for sobject in self._page(start, PAGE)}
            if page.keys() <= found.keys():
                break
            found |= page
            start = [*page][-1]
        if not page.keys() <= {start}:
            raise KeyStoreError(f"{_SERVICE} lists the same objects again and again, so that others may be missing")
        return [name for name, kept in found.items() if kept and name.startswith(prefix) and is_stored_name(name)]

    def warnings(self) -> Sequence[str]:
        return []

    def close(self) -> None:
        self._http.close()

    def _begin(self, until: float) -> None:
        health = self._http.call("GET", "/sys/v1/health", seconds=until - time.monotonic())
        if health.status != 204:
            raise self._http.unexpected(health, _words(health))
        login = self._call("POST", "/sys/v1/session/auth", until)
        if login.status != 200:
            raise self._unexpected(login, "log in")
        token = self._http.object(login).get("access_token")
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise KeyStoreError(f"{_SERVICE} answered the login without a token")
        logout = self._call("POST", "/sys/v1/session/terminate", until, authorization=f"Bearer {token}")
        if logout.status != 204:
            raise self._unexpected(logout, "log out")

    def _value(self, name: str, until: float) -> bytes:
        sobject = self._export(name, until)
        if sobject.get("enabled") is False:
            raise KeyStoreError(f"{_SERVICE}: the key '{name}' is disabled there: enable it, or delete it")
        kind = sobject.get("obj_type")
        if kind not in _KEPT_AS:
            raise NotAKey(
                f"{_SERVICE}: the object '{name}' is no key of this server, but of the type {kind}: rename it"
            )
        if "value" not in sobject:
            raise KeyStoreError(f"{_SERVICE} answered with the object '{name}', but without its value")
        text = sobject["value"]
        with suppress(ValueError):
            if isinstance(text, str):
                value = b64decode_go(text)
                value.decode()
                return value
        raise NotAKey(f"{_SERVICE}: the object '{name}' is no key, for its value is no text: rename it")

    def _export(self, name: str, until: float) -> dict[str, Any]:
        answer = self._call("POST", f"{_KEYS}/export", until, body={"name": name})
        if answer.status == 404 and _words(answer) == _ABSENT:
            raise KeyNotFound(name)
        if answer.status != 200:
            raise self._unexpected(answer, "export")
        return self._http.object(answer)

    def _page(self, start: str, limit: int) -> Sequence[dict[str, Any]]:
        """Objects that have a name."""
        query = {"sort": "name:asc", "limit": str(limit), **({"start": start} if start else {})}
        answer = self._call("GET", f"{_KEYS}?{urlencode(query, safe=':', quote_via=quote)}", self._http.deadline())
        if answer.status != 200:
            raise self._unexpected(answer, "list")
        page = answer.json()
        if isinstance(page, list) and all(isinstance(sobject, dict) for sobject in page):
            return [sobject for sobject in page if isinstance(sobject.get("name"), str)]
        raise KeyStoreError(f"{_SERVICE} answered with no list of objects: is '{self._http.endpoint}' the right one?")

    def _call(self, method: str, path: str, until: float, *, body: Any = None, authorization: str = "") -> "Answer":
        headers = {"Authorization": authorization or f"Basic {self._api_key}"}
        return self._http.call(method, path, body=body, headers=headers, seconds=until - time.monotonic())

    def _unexpected(self, answer: "Answer", action: str, hidden: str = "") -> KeyStoreError:
        """`hidden`: what the service might repeat, and nobody may see."""
        words = _words(answer)
        if answer.status == 401:
            return KeyStoreError(
                f"{_SERVICE} at {self._http.endpoint} does not take 'credentials.key': copy the application's "
                "API key anew"
            )
        if answer.status == 403:
            return KeyStoreError(
                f"{_SERVICE} denies it: the application lacks the right to {action} objects in its group"
            )
        return self._http.unexpected(answer, "" if hidden and hidden in words else words)


def _words(answer: "Answer") -> str:
    """What the service says of a failure: as JSON, or as text."""
    found = answer.json()
    said = found.get("message") if isinstance(found, dict) else answer.body.decode(errors="replace")
    return said.strip() if isinstance(said, str) else ""
