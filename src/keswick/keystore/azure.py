"""Azure Key Vault: each key is a secret of its name.

To set a secret that is there adds a version to it, silently, so that the *oldest* version is the key. Of servers that
create a name at once, the one whose version turns out to be the oldest has created it. A vault tells the age of a
version in whole seconds, so each waits until no other version can become as old as its own, and among those of one
second the identifier decides. Since nobody promises that a vault's clocks and answers are that exact, `atomic_create`
is False all the same.

Names are told apart by case here, but not in a vault. Each secret has a tag with the name that it was made for, and a
name in another case is not found.
"""

import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from keswick.encoding import day
from keswick.keystore.contract import KeyExists, KeyNotFound, KeyStore, KeyStoreError, KeyStoreUnreachable, NotAKey
from keswick.keystore.section import CA, CA_ONLY, TEXT, URL, Setting, Shape
from keswick.names import is_stored_name

if TYPE_CHECKING:
    from keswick.keystore.http import Answer

SHAPE = Shape(
    required=("endpoint",),
    optional=("authority",),
    sections={
        "credentials": Shape(required=("tenant_id", "client_id", "client_secret")),
        "managed_identity": Shape(required=("client_id",)),
        "tls": CA_ONLY,
    },
    methods=("credentials", "managed_identity"),
)

SETTINGS = (
    Setting("endpoint", "of the vault", URL, "https://my-vault.vault.azure.net", needed=""),
    Setting("credentials.tenant_id", "the tenant", TEXT, "${AZURE_TENANT_ID}", needed="credentials"),
    Setting("credentials.client_id", "the application", TEXT, "${AZURE_CLIENT_ID}", needed="credentials"),
    Setting("credentials.client_secret", "its secret", TEXT, "${AZURE_CLIENT_SECRET}", needed="credentials"),
    Setting(
        "managed_identity.client_id",
        "the managed identity; not together with `credentials`",
        TEXT,
        "${AZURE_CLIENT_ID}",
        needed="managed_identity",
    ),
    Setting(
        "authority",
        "where to sign in, for a sovereign or private cloud; it is trusted as it stands here",
        URL,
        "https://login.microsoftonline.us",
        otherwise="`AZURE_AUTHORITY_HOST` of the environment, else that of the public cloud",
        own=True,
    ),
    CA._replace(
        meaning="whom to trust, besides the system's authorities, when the vault is called and signed in", own=True
    ),
)

SETTLE_SECONDS = 1.5
"""After a set, until no version of another server can be as old: the second in which it was set, and half a one for
clocks that differ."""
ROOM_SECONDS = 1.0
"""For a last call, before the time is over."""
PAGE = 25
"""Secrets or versions in one answer, the most that a vault gives."""
START_SECONDS = 5.0
"""For the first call, which the start of a server waits for, to warn if it fails."""

_SERVICE = "the key store 'azure.keyvault'"
_API = "api-version=7.5"
_NAME = re.compile(r"[0-9A-Za-z-]{1,127}").fullmatch
_NAME_TAG = "kes-name"
_ROLE = "the role 'Key Vault Secrets Officer', or the permission '{}' for secrets in an access policy"
_DELETED, _BEING_DELETED = "ObjectIsDeletedButRecoverable", "ObjectIsBeingDeleted"


def open(settings: Mapping[str, str]) -> KeyStore:
    return AzureStore(settings)


class AzureStore(KeyStore):
    """The vault is not asked anything before the first call. Raises KeyStoreError for settings that cannot be used."""

    atomic_create = False

    def __init__(self, settings: Mapping[str, str]) -> None:
        from keswick.keystore.azure_login import Login
        from keswick.keystore.http import HttpService

        self._http = HttpService(
            _SERVICE,
            settings["endpoint"],
            ca=settings.get("tls.ca"),
            should_retry=lambda status: status in (429, 500, 502, 503, 504),
        )
        url = urlsplit(self._http.endpoint)
        if url.scheme != "https" or url.path:
            raise KeyStoreError(f"{_SERVICE}: the endpoint '{self._http.endpoint}' is to be https://HOST, and no more")
        self._login = Login(self._http, settings)
        self._creating = tuple(threading.Lock() for _ in range(32))
        self.description = f"Azure KeyVault: {self._http.endpoint}"

    def status(self) -> float:
        begin = time.perf_counter()
        self._probe(self._http.deadline())
        return time.perf_counter() - begin

    def create(self, name: str, value: bytes) -> None:
        if not _NAME(name):
            raise KeyStoreError(
                f"{_SERVICE} cannot keep '{name}': a name in a key vault has up to 127 of the characters A-Z a-z 0-9 -"
            )
        try:
            text = value.decode()
        except UnicodeDecodeError:
            raise KeyStoreError(f"{_SERVICE} keeps text, and the value of '{name}' is none") from None
        until = self._http.deadline()
        with self._alone(name, until):
            for version in self._versions(name, until)[:1]:
                self._refuse_taken(name, version)
            own, retried = self._set(name, text, until - 2 * SETTLE_SECONDS)
            time.sleep(SETTLE_SECONDS)
            try:
                key = self._versions(name, until)[0]
                if key.id != own and not (retried and self._value(name, key, until) == value):
                    raise KeyExists(name)
            except (IndexError, KeyNotFound):
                raise KeyStoreError(f"{_SERVICE}: '{name}' was deleted while it was created") from None

    def get(self, name: str) -> bytes:
        until = self._http.deadline()
        version = self._key(name, until)
        version.refuse_unusable()
        return self._value(name, version, until)

    def delete(self, name: str) -> None:
        """What was deleted lies in a bin, where its name is taken, until it is purged. A vault that takes longer than
        this call purges it when the name is next created."""
        until = self._http.deadline()
        self._key(name, until)
        answer = self._call("DELETE", f"/secrets/{name}?{_API}", until)
        if answer.status == 404 and not answer.retried:
            raise KeyNotFound(name)
        if answer.status not in (200, 404) and _code(answer) != _BEING_DELETED:
            raise self._unexpected(answer, "delete")
        if answer.status == 200 and not self._http.object(answer).get("recoveryId"):
            return  # a vault without a bin
        while not self._purge(name, until) and self._http.wait(until - ROOM_SECONDS):
            pass

    def list(self, prefix: str) -> Sequence[str]:
        secrets = self._items(f"/secrets?maxresults={PAGE}&{_API}")
        names = dict.fromkeys(secret.name for secret in secrets if not secret.managed)
        return [name for name in names if name.startswith(prefix) and is_stored_name(name)]

    def warnings(self) -> Sequence[str]:
        found = [
            "Azure Key Vault has no call that creates only what is absent: of servers that create a key at once, the "
            "oldest version of the secret tells which did, as far as the clocks of the vault do; where that is not "
            "enough, let one server create the keys"
        ]
        try:
            self._probe(time.monotonic() + START_SECONDS)
        except KeyStoreError as error:
            found.append(f"keys cannot be read now: {error}")
        return found

    def close(self) -> None:
        self._login.close()
        self._http.close()

    # --- versions ---

    def _key(self, name: str, until: float) -> "_Version":
        """The version that is the key. Raises KeyNotFound and NotAKey."""
        if not _NAME(name):
            raise KeyNotFound(name)
        versions = self._versions(name, until)
        if not versions or versions[0].name != name:
            raise KeyNotFound(name)
        versions[0].refuse_foreign()
        return versions[0]

    def _refuse_taken(self, name: str, version: "_Version") -> None:
        if version.name != name:
            raise KeyStoreError(
                f"{_SERVICE} cannot keep '{name}' beside '{version.name}': names in a key vault do not differ by case"
            )
        version.refuse_foreign()
        version.refuse_unusable()
        raise KeyExists(name)

    def _versions(self, name: str, until: float) -> "Sequence[_Version]":
        """The oldest first; none if there is no such secret."""
        versions = self._items(f"/secrets/{name}/versions?maxresults={PAGE}&{_API}", until)
        return sorted(versions, key=lambda version: (version.created, version.id))

    def _value(self, name: str, version: "_Version", until: float) -> bytes:
        answer = self._call("GET", f"/secrets/{name}/{version.id}?{_API}", until)
        if answer.status == 404:
            raise KeyNotFound(name)
        value = self._expect(200, answer, "get").get("value")
        if not isinstance(value, str):
            raise self._malformed()
        return value.encode()

    # --- changes ---

    @contextmanager
    def _alone(self, name: str, until: float) -> Iterator[None]:
        """Among the threads of this server: those that come later find the key, and add no version."""
        lock = self._creating[hash(name) % len(self._creating)]
        if not lock.acquire(timeout=max(0.0, until - time.monotonic())):
            raise KeyStoreUnreachable(f"{_SERVICE}: creating '{name}' takes too long; others are creating keys, too")
        try:
            yield
        finally:
            lock.release()

    def _set(self, name: str, text: str, until: float) -> tuple[str, bool]:
        """The identifier of the new version, and whether an earlier try may have made one, too. What lies in the bin
        under that name is purged."""
        retried = False
        while True:
            body = {"value": text, "tags": {_NAME_TAG: name}}
            answer = self._call("PUT", f"/secrets/{name}?{_API}", until, body)
            retried = retried or answer.retried
            if answer.status != 409 or _code(answer) not in (_DELETED, _BEING_DELETED):
                return self._described(self._expect(200, answer, "set", hidden=text)).id, retried
            if _code(answer) == _DELETED:
                self._purge(name, until)
            if not self._http.wait(until - ROOM_SECONDS):
                raise KeyStoreError(
                    f"{_SERVICE}: '{name}' cannot be created yet, since the vault is still deleting what had that "
                    "name: try again in a minute"
                )

    def _purge(self, name: str, until: float) -> bool:
        """Whether the bin no longer has it; otherwise the vault is about to put it there, or to take it out."""
        answer = self._call("DELETE", f"/deletedsecrets/{name}?{_API}", until)
        if answer.status in (204, 404):
            return True
        if answer.status == 409 and _code(answer) == _BEING_DELETED:
            return False
        raise self._unexpected(
            answer, "purge", f"'{name}' is deleted, but its name is not free, because it cannot be purged"
        )

    # --- calls ---

    def _probe(self, until: float) -> None:
        self._expect(200, self._call("GET", f"/secrets?maxresults=1&{_API}", until), "list")

    def _items(self, path: str, until: float | None = None) -> "Iterator[_Version]":
        """Those of all pages, each of which has time of its own unless there is an end; none if there is no such
        secret."""
        following: str | None = path
        pages: set[str] = set()
        while following:
            if following in pages:
                raise self._malformed()
            pages.add(following)
            answer = self._call("GET", following, until or self._http.deadline())
            if answer.status == 404 and following == path and _code(answer) == "SecretNotFound":
                return
            page = self._expect(200, answer, "list")
            items, link = page.get("value"), page.get("nextLink")
            if not isinstance(items, list):
                raise self._malformed()
            yield from map(self._described, items)
            following = self._path(link) if link else None

    def _described(self, item: Any) -> "_Version":
        version = _version(item)
        if version is None:
            raise self._malformed()
        return version

    def _path(self, link: Any) -> str:
        """Of a page that follows, which has to be one of this vault: no token goes elsewhere."""
        here = urlsplit(self._http.endpoint)
        there = urlsplit(link if isinstance(link, str) else "")
        if (there.scheme, there.hostname, there.port or 443) != (here.scheme, here.hostname, here.port or 443):
            raise self._malformed()
        return f"{there.path}?{there.query}"

    def _call(self, method: str, path: str, until: float, body: Any = None) -> "Answer":
        def send(authorization: str) -> "Answer":
            headers = {"Authorization": authorization}
            return self._http.call(method, path, body=body, headers=headers, seconds=until - time.monotonic())

        return self._login.call(send, until)

    def _expect(self, status: int, answer: "Answer", right: str, *, hidden: str = "") -> dict[str, Any]:
        if answer.status != status:
            raise self._unexpected(answer, right, hidden=hidden)
        return self._http.object(answer)

    def _malformed(self) -> KeyStoreError:
        return KeyStoreError(
            f"{_SERVICE} at {self._http.endpoint} answered with what no vault says: is the endpoint that of a vault?"
        )

    def _unexpected(self, answer: "Answer", right: str, happened: str = "", *, hidden: str = "") -> KeyStoreError:
        """`right`: the permission that the call needs; `hidden`: what the vault was shown, but nobody else."""
        words = _message(answer)
        if hidden:
            words = words.replace(hidden, "...")
        match answer.status, _code(answer):
            case 401, _:
                advice = f"the vault is of the tenant '{self._login.tenant}': is the one that was signed in to, too?"
            case 403, "ForbiddenByFirewall" | "ForbiddenByConnection":
                advice = "let the network of this machine in, at the vault's firewall or by a private endpoint"
            case 403, "SecretDisabled":
                advice = "enable the secret"
            case 403, _:
                advice = f"give who signs in {_ROLE.format(right)}"
                if right == "purge":
                    advice += "; a vault with purge protection purges nothing, so keep keys in one without it"
            case _:
                advice = ""
        return self._http.unexpected(answer, "; ".join(filter(None, (happened, advice, words))))


@dataclass(frozen=True, slots=True)
class _Version:
    """Of a secret, without its value."""

    name: str
    id: str
    created: int
    """In seconds since 1970, as the next two."""
    begins: int | None
    ends: int | None
    enabled: bool
    managed: bool

    def refuse_foreign(self) -> None:
        if self.managed:
            raise NotAKey(
                f"{_SERVICE}: the secret '{self.name}' is no key but belongs to a certificate of the vault: keep one "
                "of them elsewhere"
            )

    def refuse_unusable(self) -> None:
        now = time.time()
        if not self.enabled:
            why = "is disabled: enable it"
        elif self.begins is not None and now < self.begins:
            why = f"is not valid before {day(self.begins)}: change its activation date"
        elif self.ends is not None and now >= self.ends:
            why = f"has expired on {day(self.ends)}: change its expiration date"
        else:
            return
        raise KeyStoreError(
            f"{_SERVICE}: the oldest version of the secret '{self.name}', {self.id}, which is the key, {why}"
        )


def _version(item: Mapping[str, Any]) -> _Version | None:
    """As a vault describes it, alone or in a list; in a list of secrets, without its identifier. None for nonsense."""
    match item:
        case {"id": str(link), "attributes": {"created": int(created), **more}}:
            _, kind, name, *version = urlsplit(link).path.split("/") + 3 * [""]
            if kind != "secrets" or not _NAME(name):
                return None
            tags = item.get("tags")
            tagged = tags.get(_NAME_TAG) if isinstance(tags, dict) else None
            if isinstance(tagged, str) and tagged.lower() == name.lower():
                name = tagged
            return _Version(
                name,
                version[0],
                created,
                _moment(more.get("nbf")),
                _moment(more.get("exp")),
                more.get("enabled") is not False,
                bool(item.get("managed")),
            )
    return None


def _moment(seconds: object) -> int | None:
    return seconds if isinstance(seconds, int) else None


def _error(answer: "Answer") -> Mapping[str, Any]:
    found = answer.json()
    error = found.get("error") if isinstance(found, dict) else None
    return error if isinstance(error, dict) else {}


def _code(answer: "Answer") -> str:
    """The inner one, which says what is the matter."""
    inner = _error(answer).get("innererror")
    code = (inner if isinstance(inner, dict) else _error(answer)).get("code")
    return code if isinstance(code, str) else ""


def _message(answer: "Answer") -> str:
    message = _error(answer).get("message")
    return message if isinstance(message, str) else ""
