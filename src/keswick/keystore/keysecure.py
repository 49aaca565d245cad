"""Thales CipherTrust Manager, once Gemalto KeySecure.

A key is a secret of that name and of the type `seed`, whose material is the value as it is. The service makes names
unique, so a create is atomic. It says 404 of what a user may not use, as of what is not there.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from keswick.keystore.contract import KeyExists, KeyNotFound, KeyNotShown, KeyStore, KeyStoreError, NotAKey
from keswick.keystore.section import CA, CA_ONLY, TEXT, URL, Setting, Shape
from keswick.names import is_stored_name

if TYPE_CHECKING:
    from keswick.keystore.http import Answer
    from keswick.keystore.renewal import Token

SHAPE = Shape(
    required=("endpoint", "credentials"),
    sections={
        "credentials": Shape(required=("token",), optional=("domain",), meaningless=("retry",)),
        "tls": CA_ONLY,
    },
)

SETTINGS = (
    Setting("endpoint", "of the server", URL, "https://keysecure.example.com", needed=""),
    Setting("credentials.token", "refresh token", TEXT, "${KEYSECURE_TOKEN}", needed=""),
    Setting("credentials.domain", "to log in to", TEXT, "my-domain"),
    CA,
)

PAGE = 200
"""Secrets in one answer of a list."""
MAX_SECRET = 2 << 20
"""Bytes of an answer with a secret in it."""

_SERVICE = "the key store 'gemalto.keysecure'"
_SECRETS = "/api/v1/vault/secrets"
_ROUNDS = 3
"""In which a list is read that changes while it is read."""


def open(settings: Mapping[str, str]) -> KeyStore:
    return KeySecureStore(settings)


class KeySecureStore(KeyStore):
    """Logs in and stays so. Raises KeyStoreError when it cannot log in."""

    atomic_create = True

    def __init__(self, settings: Mapping[str, str]) -> None:
        from keswick.keystore.http import HttpService
        from keswick.keystore.renewal import Session

        self._http = HttpService(_SERVICE, settings["endpoint"], ca=settings.get("tls.ca"), only_ca=True)
        self._refresh_token = settings["credentials.token"]
        self._domain = settings.get("credentials.domain", "")
        self.description = f"Gemalto KeySecure: {self._http.endpoint}"
        try:
            self._session = Session(self._http, self._log_in)
        except KeyStoreError:
            self._http.close()
            raise

    def status(self) -> float:
        begin = time.perf_counter()
        self._page(0, 1)
        return time.perf_counter() - begin

    def create(self, name: str, value: bytes) -> None:
        until = self._http.deadline()
        material = _material(name, value)
        answer = self._call("POST", _SECRETS, until, body={"dataType": "seed", "material": material, "name": name})
        if answer.status == 409:
            with suppress(KeyNotFound):
                if answer.retried and self._get(name, until) == value:
                    return
            raise KeyExists(name)
        if answer.status != 201:
            raise self._unexpected(answer, "create", hidden=material)

    def get(self, name: str) -> bytes:
        return self._get(name, self._http.deadline())

    def delete(self, name: str) -> None:
        until = self._http.deadline()
        self._get(name, until)
        answer = self._call("DELETE", f"{_path(name)}?type=name", until)
        if answer.status == 404:
            try:
                self._get(name, until)
            except KeyNotFound:
                if answer.retried:
                    return
                raise  # somebody else has deleted it
            raise KeyStoreError(
                f"{_SERVICE} answered 404 to the deletion of the secret '{name}', which is there: the user of "
                "'credentials.token' lacks the right to delete it"
            )
        if answer.status != 204:
            raise self._unexpected(answer, "delete")

    def list(self, prefix: str) -> Sequence[str]:
        names: set[str] = set()
        for _ in range(_ROUNDS):
            secrets, told = self._all()
            names.update(name for secret in secrets if isinstance(name := secret.get("name"), str))
            if len(secrets) >= told:
                break
        return [name for name in names if name.startswith(prefix) and is_stored_name(name)]

    def warnings(self) -> Sequence[str]:
        return []

    def close(self) -> None:
        self._session.close()
        self._http.close()

    def _get(self, name: str, until: float) -> bytes:
        answer = self._call("POST", f"{_path(name)}/export?type=name", until, max_reply=MAX_SECRET)
        if answer.status == 404:
            raise KeyNotShown(name)
        if answer.status != 200:
            raise self._unexpected(answer, "export")
        found = self._http.object(answer)
        if "material" not in found:
            raise KeyStoreError(f"{_SERVICE} answered for the secret '{name}' without its material")
        material = found["material"]
        with suppress(UnicodeEncodeError):
            if isinstance(material, str):
                return material.encode()
        raise NotAKey(f"{_SERVICE}: the secret '{name}' is no key, for its material is no text: move it away")

    def _all(self) -> tuple[Collection[Mapping[str, Any]], int]:
        """All secrets, and how many there are, or were while they were listed: when one is deleted meanwhile, others
        move to a page that was read already, so that fewer are found than that."""
        found: dict[object, Mapping[str, Any]] = {}
        skip = most = 0
        while True:
            page, total = self._page(skip, PAGE)
            known = len(found)
            found |= {secret.get("id") or secret.get("name"): secret for secret in page}
            skip, most = skip + len(page), max(most, total)
            if len(found) == known or skip >= total:
                return found.values(), most

    def _page(self, skip: int, limit: int) -> tuple[Sequence[Mapping[str, Any]], int]:
        """Secrets from that position on, and how many there are in all."""
        answer = self._call("GET", f"{_SECRETS}?limit={limit}&skip={skip}", self._http.deadline())
        if answer.status != 200:
            raise self._unexpected(answer, "list")
        match answer.json():
            case {"skip": int(at), "total": int(total), "resources": [*page]} if at == skip:
                if all(isinstance(secret, dict) for secret in page):
                    return page, total
            case {"skip": int(at), "total": int(total), "resources": None} if at == skip:
                return [], total
        raise KeyStoreError(f"{_SERVICE} answered with no list of secrets: is '{self._http.endpoint}' the right one?")

    def _call(self, method: str, path: str, until: float, **options: Any) -> "Answer":
        def send(token: str) -> "Answer":
            headers = {"Authorization": f"Bearer {token}"}
            return self._http.call(method, path, headers=headers, seconds=until - time.monotonic(), **options)

        return self._session.call(send, until)

    def _log_in(self, old: str | None, until: float) -> "Token":
        from keswick.keystore.renewal import Token, is_token

        login = {"grant_type": "refresh_token", "refresh_token": self._refresh_token, "domain": self._domain}
        answer = self._http.call("POST", "/api/v1/auth/tokens", body=login, seconds=until - time.monotonic())
        if answer.status in (401, 403):
            raise KeyStoreError(
                f"{_SERVICE} at {self._http.endpoint} does not take 'credentials.token': it is wrong, revoked or "
                "expired, or belongs to another domain than 'credentials.domain'; make a new refresh token"
            )
        if answer.status != 200:
            raise self._unexpected(answer, "log in", hidden=self._refresh_token)
        match answer.json():
            case {"token_type": "Bearer", "jwt": jwt, "duration": int(seconds) | float(seconds)}:
                if is_token(jwt) and seconds > 0:
                    return Token(jwt, seconds)
        raise KeyStoreError(
            f"{_SERVICE} answered the login without a usable token: is '{self._http.endpoint}' the right one?"
        )

    def _unexpected(self, answer: "Answer", action: str, hidden: str = "") -> KeyStoreError:
        """`hidden`: what the service might repeat, and nobody may see."""
        if answer.status == 401:
            return KeyStoreError(
                f"{_SERVICE} refuses a token that it has just given: is the user of 'credentials.token' still active?"
            )
        if answer.status == 403:
            return KeyStoreError(
                f"{_SERVICE} denies it: the user of 'credentials.token' lacks the right to {action} secrets"
            )
        found = answer.json()
        words = found.get("codeDesc") if isinstance(found, dict) else answer.body.decode(errors="replace")
        return self._http.unexpected(
            answer, words if isinstance(words, str) and not (hidden and hidden in words) else ""
        )


def _path(name: str) -> str:
    return f"{_SECRETS}/{quote(name, safe='')}"


def _material(name: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise KeyStoreError(f"{_SERVICE}: the value for '{name}' is no text, which a secret has to be") from None
