"""OpenBao and HashiCorp Vault.

A key is a secret of the key-value engine with one field, whose name is that of the key, too. In an engine of version 2
a key is the first version of its secret: no later one is ever read, and a create succeeds only where there is none.
Version 1 has no such call. There a create looks before and after, and a policy that grants `create` but not `update`
narrows what remains. With `transit`, the value is what a key of the server made of it.
"""

import base64
import binascii
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urlsplit

from keswick.keystore.contract import KeyExists, KeyNotFound, KeyStore, KeyStoreError, KeyStoreUnreachable, NotAKey
from keswick.keystore.section import CA, DURATION, PEM_FILE, TEXT, URL, Setting, Shape
from keswick.names import is_stored_name

if TYPE_CHECKING:
    from keswick.keystore.http import Answer

SHAPE = Shape(
    required=("endpoint",),
    optional=("namespace", "prefix"),
    defaults={"engine": "kv", "version": "v1"},
    choices={"version": ("v1", "v2")},
    sections={
        "approle": Shape(
            required=("id", "secret"),
            optional=("namespace",),
            defaults={"engine": "approle"},
            meaningless=("retry",),
        ),
        "kubernetes": Shape(
            required=("role", "jwt"),
            optional=("namespace",),
            defaults={"engine": "kubernetes"},
            meaningless=("retry",),
        ),
        "transit": Shape(required=("key",), defaults={"engine": "transit"}),
        "tls": Shape(optional=("key", "cert", "ca"), together=("key", "cert")),
        "status": Shape(defaults={"ping": "10.0"}, durations=("ping",)),
    },
    methods=("approle", "kubernetes"),
    must_log_in=True,
)

LOGIN_SETTINGS = (
    Setting("approle.id", "role ID", TEXT, "${VAULT_APPROLE_ID}", needed="approle"),
    Setting("approle.secret", "secret ID", TEXT, "${VAULT_APPROLE_SECRET}", needed="approle"),
    Setting("approle.engine", "path of the login method", "path", "kes-approle", default="approle"),
    Setting("approle.namespace", "in which to log in; `/` for none", "path", "/", otherwise="that of the rest"),
    Setting("kubernetes.role", "name of the role", TEXT, "kes", needed="kubernetes"),
    Setting(
        "kubernetes.jwt",
        "the token of the service account",
        "token or, with a `/` in it, the path of a file",
        "/var/run/secrets/kubernetes.io/serviceaccount/token",
        needed="kubernetes",
    ),
    Setting("kubernetes.engine", "path of the login method", "path", "kes-kubernetes", default="kubernetes"),
    Setting("kubernetes.namespace", "in which to log in; `/` for none", "path", "/", otherwise="that of the rest"),
)
"""Those of whatever logs in to Vault."""

SETTINGS = (
    Setting("endpoint", "where Vault is", URL, "https://127.0.0.1:8200", needed=""),
    Setting("engine", "path of the key-value engine", "path", "secret", default="kv"),
    Setting("version", "of the engine", "`v1` or `v2`", "v2", default="v1"),
    Setting("namespace", "in which everything is", "path", "team-a"),
    Setting("prefix", "folder in the engine", "path", "kes"),
    *LOGIN_SETTINGS,
    Setting(
        "transit.key",
        "name of a key in Vault that encrypts what is stored",
        "name",
        "kes-transit",
        needed="transit",
    ),
    Setting("transit.engine", "path of the transit engine", "path", "kes-transit", default="transit"),
    Setting("tls.key", "private key of the client", PEM_FILE, "/etc/kes/vault.key", needed="tls.cert"),
    Setting("tls.cert", "certificate of the client", PEM_FILE, "/etc/kes/vault.crt", needed="tls.key"),
    CA,
    Setting(
        "status.ping", "how often to ask whether Vault is sealed", f"{DURATION} from `100ms`", "30s", default="10s"
    ),
)

_SERVICE = "the key store 'vault'"
_LEAST_PING = 0.1
_CIPHERTEXT = re.compile(r"vault:v\d+:")
"""What the transit engine made, with any version of its key."""
_LOCKS = 64


def open(settings: Mapping[str, str]) -> KeyStore:
    return VaultStore(settings)


class VaultStore(KeyStore):
    """Logs in and stays so. Raises KeyStoreUnreachable when the server is away or sealed, and KeyStoreError when it
    refuses the login or has another engine than that of the settings."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        from keswick.keystore.vault_session import Session, new_service, parts

        self._engine = parts(settings["engine"])
        self._prefix = parts(settings.get("prefix", ""))
        self._versioned = settings["version"] == "v2"
        self._transit = parts(settings["transit.engine"]) if "transit.key" in settings else ""
        self._transit_key = quote(settings.get("transit.key", ""), safe="")
        ping = float(settings["status.ping"])
        if ping < _LEAST_PING:
            raise KeyStoreError(f"{_SERVICE}: 'status.ping' must be at least '100ms'")
        self._creating = [threading.Lock() for _ in range(_LOCKS)]
        self._service = new_service(_SERVICE, settings)
        self.description = f"Hashicorp Vault: {self._service.endpoint}"
        self.atomic_create = self._versioned
        try:
            until = self._service.deadline()
            self._session = Session(self._service, settings, until, ping=ping)
            try:
                self._granted = self._check_engine(until)
            except KeyStoreError:
                self._session.close()
                raise
        except KeyStoreError:
            self._service.close()
            raise

    def status(self) -> float:
        return self._session.status(self._service.deadline())

    def create(self, name: str, value: bytes) -> None:
        from keswick.keystore.vault_session import tries, worth_another_try

        if not _can_be_kept(name):
            raise KeyStoreError(
                f"{_SERVICE} cannot keep a key of the name {name!r}: it has characters that do not print"
            )
        until = self._service.deadline()
        text = self._to_text(name, value, until)
        secret: dict[str, Any] = {name: text}
        if self._versioned:
            secret = {"data": secret, "options": {"cas": 0}}
        lost = False
        with self._one_at_a_time(name, until):
            for last in tries(until):
                if self._is_there(name, text, lost, until):
                    return
                try:
                    answer = self._session.call("PUT", self._data(name), until, body=secret, retries=0)
                except KeyStoreUnreachable:
                    if last:
                        raise
                    lost = True
                    continue
                if answer.status in (200, 204):
                    self._check_written(answer, name)
                    if not self._versioned:
                        self._check_kept(name, text, until)
                    return
                if answer.status in (400, 403) and self._is_there(name, text, lost, until):  # somebody was faster
                    return
                again = worth_another_try(answer.status)
                if last or not (again or self._is_taken(answer)):
                    raise self._failure(answer, "create", self._data(name))
                lost = lost or again

    def get(self, name: str) -> bytes:
        until = self._service.deadline()
        found = self._find(name, until)
        if found is None or found.text is None:
            raise KeyNotFound(name)
        return self._from_text(name, found.text, until)

    def delete(self, name: str) -> None:
        until = self._service.deadline()
        if self._find(name, until) is None:
            raise KeyNotFound(name)
        path = self._path("metadata" if self._versioned else "", name)
        answer = self._session.call("DELETE", path, until)
        if answer.status != 204:
            raise self._failure(answer, "delete", path)

    def list(self, prefix: str) -> Sequence[str]:
        path = self._path("metadata" if self._versioned else "")
        answer = self._session.call("GET", f"{path}?list=true", self._service.deadline())
        if _is_nothing(answer):
            return []
        if answer.status != 200:
            raise self._failure(answer, "list", path)
        names = self._fields(answer).get("keys") or []
        if not isinstance(names, list):
            raise self._no_secret(path)
        return [name for name in names if isinstance(name, str) and name.startswith(prefix) and is_stored_name(name)]

    def warnings(self) -> Sequence[str]:
        found = []
        if not self._granted:
            found.append(
                f"{_SERVICE}: no policy of its login grants anything in the engine '{self._engine}'"
                f"{self._where()}, or there is no such engine"
            )
        if not self._versioned:
            how = (
                "its policy allows to replace secrets. Take 'update' out of it, or use an engine of version 2"
                if self._may_replace()
                else "engines of version 1 have no lock. Use an engine of version 2"
            )
            found.append(
                f"{_SERVICE}: of two servers that create a key of the same name at the same moment, one may replace "
                f"the key of the other, for {how}"
            )
        if self._transit:
            try:
                self._to_text("", b"keswick", self._service.deadline())
            except KeyStoreError as error:
                found.append(f"no key can be created: {error}")
        url = urlsplit(self._service.endpoint)
        if url.scheme == "http" and url.hostname not in ("localhost", "127.0.0.1", "::1"):
            found.append(f"{_SERVICE}: keys and tokens cross the network in the clear: use an https:// endpoint")
        return found

    def close(self) -> None:
        self._session.close()
        self._service.close()

    # --- secrets ---

    def _find(self, name: str, until: float) -> "_Secret | None":
        """The secret of that name, if there is one."""
        if not _can_be_kept(name):
            return None
        path = self._data(name)
        answer = self._session.call("GET", f"{path}?version=1" if self._versioned else path, until)
        if _is_nothing(answer):
            return None
        if answer.status == 404 and self._versioned and _is_deleted(answer):
            return _Secret(None)
        if answer.status != 200:
            raise self._failure(answer, "read", path)
        fields: Any = self._fields(answer)
        if not fields:  # which no secret is
            raise self._no_secret(path)
        if self._versioned:
            fields = fields.get("data")
            if not isinstance(fields, dict):
                raise self._no_secret(path)
        text = fields.get(name)
        if not isinstance(text, str):
            raise NotAKey(
                f"{_SERVICE}: the secret '{path}'{self._where()} is no key, for it has no field '{name}' with a text: "
                "move it away"
            )
        return _Secret(text)

    def _is_there(self, name: str, text: str, lost: bool, until: float) -> bool:
        """Whether there is a secret that an earlier try has made whose answer was lost. Raises KeyExists when it is
        another."""
        found = self._find(name, until)
        if found is None:
            return False
        if found.text is None:
            raise KeyStoreError(
                f"{_SERVICE}: the first version of the secret '{self._data(name)}'{self._where()}, which was the key, "
                "was deleted: restore it with 'bao kv undelete', or delete the key for good with 'kes key rm' and then "
                "create it"
            )
        if lost and found.text == text:
            return True
        raise KeyExists(name)

    def _is_taken(self, answer: "Answer") -> bool:
        """A secret is there, although a standby may not know of it yet."""
        return answer.status == 400 and "check-and-set" in self._session.said(answer)

    def _check_written(self, answer: "Answer", name: str) -> None:
        if answer.status == 204:
            return
        data = self._service.object(answer).get("data")
        if data is not None and not (isinstance(data, dict) and data.get("version") == 1):
            raise self._no_secret(self._data(name))
        if data and data.get("deletion_time"):
            raise KeyStoreError(
                f"{_SERVICE}: the engine '{self._engine}'{self._where()} will delete the key '{name}' by itself at "
                f"{data['deletion_time']}: set its 'delete_version_after' to 0, delete the key and create it anew"
            )

    def _check_kept(self, name: str, text: str, until: float) -> None:
        """Raises KeyExists when somebody has replaced in the meantime what was written, and NotAKey when by no key."""
        try:
            found = self._find(name, until)
        except NotAKey:
            raise
        except KeyStoreError:
            return  # it was written, although it cannot be looked at now
        if found is not None and found.text != text:
            raise KeyExists(name)

    def _to_text(self, name: str, value: bytes, until: float) -> str:
        if not self._transit:
            try:
                return value.decode()
            except UnicodeDecodeError:
                raise KeyStoreError(
                    f"{_SERVICE}: the value for '{name}' is no text, which a secret has to be"
                ) from None
        plaintext = base64.b64encode(value).decode()
        text = self._call_transit("encrypt", {"plaintext": plaintext}, until).get("ciphertext")
        if not isinstance(text, str) or not _CIPHERTEXT.match(text):
            raise self._no_secret(f"{self._transit}/encrypt/{self._transit_key}")
        return text

    def _from_text(self, name: str, text: str, until: float) -> bytes:
        if not _CIPHERTEXT.match(text):
            try:
                return text.encode()
            except UnicodeEncodeError:
                raise NotAKey(f"{_SERVICE}: the secret '{self._data(name)}' is no key: move it away") from None
        if not self._transit:
            raise KeyStoreError(
                f"{_SERVICE}: the secret '{self._data(name)}' is encrypted by a transit engine: name its key with "
                "'transit.key'"
            )
        plaintext = self._call_transit("decrypt", {"ciphertext": text}, until).get("plaintext")
        with suppress(binascii.Error, TypeError, ValueError):
            return base64.b64decode(plaintext, validate=True)  # type: ignore[arg-type] # a text or a TypeError
        raise self._no_secret(f"{self._transit}/decrypt/{self._transit_key}")

    def _call_transit(self, action: str, body: Mapping[str, str], until: float) -> Mapping[str, Any]:
        path = f"{self._transit}/{action}/{self._transit_key}"
        answer = self._session.call("POST", path, until, body=body)
        if answer.status != 200:
            raise self._failure(answer, "update", path)
        return self._fields(answer)

    @contextmanager
    def _one_at_a_time(self, name: str, until: float) -> Iterator[None]:
        """Within this server a name is created by one call at a time, whatever the engine makes of several."""
        lock = self._creating[hash(name) % _LOCKS]
        if not lock.acquire(timeout=max(0.0, until - time.monotonic())):
            raise KeyStoreUnreachable(f"{_SERVICE}: another create of the key '{name}' takes too long")
        try:
            yield
        finally:
            lock.release()

    # --- the engine ---

    def _check_engine(self, until: float) -> bool:
        """Whether the token may do anything in the engine. Raises KeyStoreError when it is not one of keys and values
        of that version."""
        from keswick.keystore.vault_session import parts

        answer = self._session.call("GET", f"sys/internal/ui/mounts/{self._path()}", until)
        if answer.status != 200:
            return answer.status != 403
        match answer.json():
            case {"data": {"type": str(kind), "path": str(path), **more}}:
                options = more.get("options")
                version = options.get("version") if isinstance(options, dict) else None
            case _:
                return True
        if kind not in ("kv", "generic"):
            raise KeyStoreError(
                f"{_SERVICE}: the engine '{self._engine}'{self._where()} is of the type '{kind}': name one of the type "
                "'kv' with 'engine'"
            )
        if (version == "2") is not self._versioned:
            right = "v2" if version == "2" else "v1"
            raise KeyStoreError(
                f"{_SERVICE}: the engine '{self._engine}'{self._where()} is of version {right[1:]}: set 'version' to "
                f"'{right}'"
            )
        if self._versioned and parts(path) != self._engine:
            raise KeyStoreError(
                f"{_SERVICE}: the engine is at '{path}'{self._where()}: set 'engine' to that, and 'prefix' to what "
                "follows"
            )
        return True

    def _may_replace(self) -> bool:
        """Whether the token may replace a secret, as far as it may ask."""
        path = self._path("", "a-key")
        with suppress(KeyStoreError):
            answer = self._session.call(
                "PUT", "sys/capabilities-self", self._service.deadline(), body={"paths": [path]}
            )
            match answer.json():
                case {"capabilities": [*granted]} if answer.status == 200:
                    return bool({"update", "root"}.intersection(granted))
        return True

    def _path(self, *more: str) -> str:
        """Below the engine; the parts of a versioned one begin with `data` or `metadata`. Percent-encoded."""
        kind, names = more[0] if more else "", [quote(name, safe="") for name in more[1:]]
        return "/".join(part for part in (self._engine, kind, self._prefix, *names) if part)

    def _data(self, name: str) -> str:
        return self._path("data" if self._versioned else "", name)

    def _where(self) -> str:
        namespace = self._session.namespace
        return f" in the namespace '{namespace}'" if namespace else ""

    # --- answers ---

    def _fields(self, answer: "Answer") -> dict[str, Any]:
        data = self._service.object(answer).get("data") or {}
        if not isinstance(data, dict):
            raise self._no_secret()
        return data

    def _no_secret(self, path: str = "") -> KeyStoreError:
        about = f" for '{path}'" if path else ""
        return KeyStoreError(
            f"{_SERVICE} answered{about} as neither OpenBao nor Vault does: is '{self._service.endpoint}' the right "
            "endpoint?"
        )

    def _failure(self, answer: "Answer", capability: str, path: str) -> KeyStoreError:
        """For an answer to a call that needs that capability of the path."""
        words = self._session.said(answer)
        match answer.status:
            case 403:
                return KeyStoreError(
                    f"{_SERVICE} denies it: a policy of its login has to grant '{capability}' for the path "
                    f"'{path}'{self._where()}"
                )
            case 404:
                advice = (
                    f"look at 'engine', 'version' and 'namespace': no engine of that version is at '{self._engine}'"
                    f"{self._where()}"
                )
                return KeyStoreError(f"{_SERVICE} has no '{path}'{f' ({words})' if words else ''}: {advice}")
            case 400 if "brief period" in words:  # a new engine, as a standby sees it
                return KeyStoreUnreachable(
                    f"{_SERVICE}: the engine '{self._engine}'{self._where()} is not ready: {words}"
                )
            case 400 if self._is_taken(answer):
                return KeyStoreError(
                    f"{_SERVICE}: the secret '{path}'{self._where()} has later versions, but not the first one, which "
                    "is the key: remove it for good with 'bao kv metadata delete'"
                )
        return self._service.unexpected(answer, words)


class _Secret(NamedTuple):
    text: str | None
    """None when the first version was deleted, or destroyed."""


def _is_nothing(answer: "Answer") -> bool:
    """There is no such secret, or no secret at all below a path: any other 404 says what is wrong."""
    return answer.status == 404 and answer.json() == {"errors": []}


def _is_deleted(answer: "Answer") -> bool:
    match answer.json():
        case {"data": {"metadata": dict()}}:
            return True
    return False


def _can_be_kept(name: str) -> bool:
    return name.isprintable()
