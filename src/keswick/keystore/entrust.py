"""Entrust KeyControl: its vault for secrets, later called PASM.

A key is a secret of that name in one box, whose data is the base64 of the value. Names are unique in a box, so a create
is atomic. To a create or a delete the service answers 200 and nothing of note, as a login page in between would: what
came of it is looked up.
"""

import time
from base64 import b64encode
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from keswick.encoding import b64decode_go, parse_rfc3339
from keswick.keystore.contract import KeyExists, KeyNotFound, KeyStore, KeyStoreError, NotAKey
from keswick.keystore.section import CA, CA_ONLY, TEXT, URL, Setting, Shape
from keswick.names import is_stored_name

if TYPE_CHECKING:
    from keswick.keystore.http import Answer
    from keswick.keystore.renewal import Token

SHAPE = Shape(
    required=("endpoint", "vault_id", "box_id", "credentials"),
    sections={"credentials": Shape(required=("username", "password")), "tls": CA_ONLY},
)

SETTINGS = (
    Setting("endpoint", "of the server", URL, "https://keycontrol.example.com", needed=""),
    Setting("vault_id", "the vault", TEXT, "e30497ce-bff3-4a4f-8a1b-5bd8cf3d5b4e", needed=""),
    Setting("box_id", "the box in it", TEXT, "kes-box", needed=""),
    Setting("credentials.username", "of the account", TEXT, "${KEYCONTROL_USER}", needed=""),
    Setting("credentials.password", "of the account", TEXT, "${KEYCONTROL_PASSWORD}", needed=""),
    CA,
)


PAGE = 256
"""Secrets in one answer of a list."""
UNTOLD_LIFE = 300.0
"""Seconds that a token is taken to be valid when the service does not tell."""

_SERVICE = "the key store 'entrust.keycontrol'"
_EXISTS, _ABSENT = "Secret already exists", "Secret not found"
"""What the service says, word for word."""


def open(settings: Mapping[str, str]) -> KeyStore:
    return EntrustStore(settings)


class EntrustStore(KeyStore):
    """Logs in and stays so. Raises KeyStoreError when it cannot log in."""

    atomic_create = True

    def __init__(self, settings: Mapping[str, str]) -> None:
        from keswick.keystore.http import HttpService
        from keswick.keystore.renewal import Session

        self._http = HttpService(_SERVICE, settings["endpoint"], ca=settings.get("tls.ca"))
        self._vault = settings["vault_id"]
        self._box = settings["box_id"]
        self._username = settings["credentials.username"]
        self._password = settings["credentials.password"]
        self.description = f"Entrust KeyControl: {self._http.endpoint}"
        try:
            self._session = Session(self._http, self._obtain)
        except KeyStoreError:
            self._http.close()
            raise

    def status(self) -> float:
        begin = time.perf_counter()
        answer = self._call("GetBox", self._http.deadline())
        if answer.status != 200:
            raise self._unexpected(answer, "see the box")
        self._http.object(answer)
        return time.perf_counter() - begin

    def create(self, name: str, value: bytes) -> None:
        until = self._http.deadline()
        data = b64encode(value).decode()
        answer = self._call("CreateSecret", until, name=name, secret_data=data)
        exists = answer.status == 409 and _words(answer) == _EXISTS
        if answer.status != 200 and not exists:
            raise self._unexpected(answer, "create secrets", hidden=data)
        if exists and not answer.retried:
            raise KeyExists(name)
        with suppress(KeyNotFound):
            if self._check_out(name, until) == value:
                return
        if exists:
            raise KeyExists(name)
        raise KeyStoreError(
            f"{_SERVICE} said that it created the secret '{name}', but has it not or with another value"
        )

    def get(self, name: str) -> bytes:
        return self._check_out(name, self._http.deadline())

    def delete(self, name: str) -> None:
        until = self._http.deadline()
        answer = self._call("DeleteSecret", until, secret_id=name)
        if answer.status == 404 and _words(answer) == _ABSENT:
            if answer.retried:
                return
            raise KeyNotFound(name)
        if answer.status != 200:
            raise self._unexpected(answer, "delete secrets")
        with suppress(KeyNotFound):
            self._check_out(name, until)
            raise KeyStoreError(f"{_SERVICE} said that it deleted the secret '{name}', but still has it")

    def list(self, prefix: str) -> Sequence[str]:
        names: set[str] = set()
        tokens: set[str] = set()
        token = ""
        while token not in tokens:
            tokens.add(token)
            page, token = self._page(token)
            names.update(page)
            if not token:
                return [name for name in names if name.startswith(prefix) and is_stored_name(name)]
        raise KeyStoreError(f"{_SERVICE} lists the same secrets again and again, so that others may be missing")

    def warnings(self) -> Sequence[str]:
        return []

    def close(self) -> None:
        self._session.close()
        self._http.close()

    def _check_out(self, name: str, until: float) -> bytes:
        answer = self._call("CheckoutSecret", until, secret_id=name)
        if answer.status == 404 and _words(answer) == _ABSENT:
            raise KeyNotFound(name)
        if answer.status != 200:
            raise self._unexpected(answer, "check out secrets")
        found = self._http.object(answer)
        if "secret_data" not in found:
            raise KeyStoreError(f"{_SERVICE} answered for the secret '{name}' without its data")
        data = found["secret_data"]
        with suppress(ValueError):
            if isinstance(data, str):
                value = b64decode_go(data)
                value.decode()
                return value
        raise NotAKey(
            f"{_SERVICE}: the secret '{name}' is no key, for its data is no text in base64: move it to another box"
        )

    def _page(self, token: str) -> tuple[Sequence[str], str]:
        """Names, and the token that leads to the next page, which is empty at the end."""
        more = {"next_token": token} if token else {}
        answer = self._call("ListSecretIds", self._http.deadline(), max_items=PAGE, **more)
        if answer.status != 200:
            raise self._unexpected(answer, "list secrets")
        found = self._http.object(answer)
        secrets, following = found.get("Secrets", ...), found.get("next_token") or ""
        if not isinstance(secrets, list | None) or not isinstance(following, str):
            raise KeyStoreError(
                f"{_SERVICE} answered with no list of secrets: is '{self._http.endpoint}' the right one?"
            )
        names = (secret.get("name") for secret in secrets or () if isinstance(secret, dict))
        return [name for name in names if isinstance(name, str)], following

    def _call(self, action: str, until: float, **arguments: Any) -> "Answer":
        def send(token: str) -> "Answer":
            return self._post(f"{action}/", until, token, {"box_id": self._box, **arguments})

        return self._session.call(send, until)

    def _post(self, path: str, until: float, token: str | None, body: Mapping[str, Any] | None) -> "Answer":
        headers = {"X-Vault-Auth": token} if token else {}
        return self._http.call(
            "POST", f"/vault/1.0/{path}", body=body, headers=headers, seconds=until - time.monotonic()
        )

    def _obtain(self, old: str | None, until: float) -> "Token":
        if old is not None:
            with suppress(KeyStoreError):
                return self._token(self._post("Renew/", until, old, None))
        login = {"username": self._username, "password": self._password}
        answer = self._post(f"Login/{quote(self._vault, safe='')}/", until, None, login)
        match answer.status:
            case 401 | 403:
                raise KeyStoreError(
                    f"{_SERVICE} at {self._http.endpoint} does not take 'credentials.username' and "
                    f"'credentials.password' for the vault '{self._vault}'"
                )
            case 404:
                raise KeyStoreError(
                    f"{_SERVICE} at {self._http.endpoint} knows no vault '{self._vault}': look at 'vault_id'"
                )
        return self._token(answer)

    def _token(self, answer: "Answer") -> "Token":
        from keswick.keystore.renewal import Token, is_token

        if answer.status != 200:
            raise self._unexpected(answer, "log in", hidden=self._password)
        match self._http.object(answer):
            case {"access_token": token, **rest} if is_token(token):
                return Token(token, _life(rest.get("expires_at"), answer.headers.get("Date")))
        raise KeyStoreError(
            f"{_SERVICE} answered the login without a usable token: is '{self._http.endpoint}' the right one?"
        )

    def _unexpected(self, answer: "Answer", action: str, hidden: str = "") -> KeyStoreError:
        """`hidden`: what the service might repeat, and nobody may see."""
        words = _words(answer)
        if hidden and hidden in words:
            words = ""
        match answer.status:
            case 401:
                return KeyStoreError(f"{_SERVICE} refuses a token that it has just given: is the account still active?")
            case 403:
                return KeyStoreError(
                    f"{_SERVICE} denies it: no policy lets the account of 'credentials.username' {action} in the box "
                    f"'{self._box}'"
                )
            case 404:
                words += f" (is 'box_id', which is '{self._box}', right?)"
        return self._http.unexpected(answer, words)


def _life(end: object, now: str | None) -> float:
    """Seconds from `now`, a date as HTTP writes it, until `end`, an RFC 3339 time. Both are of the service's clock."""
    from email.utils import parsedate_to_datetime

    try:
        begin = parsedate_to_datetime(now).timestamp() if now else time.time()
        seconds = parse_rfc3339(str(end)) / 1e9 - begin
    except ValueError:
        return UNTOLD_LIFE
    return seconds if seconds > 0 else UNTOLD_LIFE


def _words(answer: "Answer") -> str:
    """What the service says of a failure."""
    found = answer.json()
    said = found.get("error") if isinstance(found, dict) else None
    return said if isinstance(said, str) else ""
