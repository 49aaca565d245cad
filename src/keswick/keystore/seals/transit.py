"""The transit engine of OpenBao or HashiCorp Vault: it wraps the root key with a key that never leaves it.

It is asked when the folder is opened, and not after that.
"""

import base64
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from keswick.encoding import b64decode_go
from keswick.keystore.contract import KeyStoreError
from keswick.keystore.seals import files
from keswick.keystore.seals.header import BINDING, ByTransit, Wrapped

if TYPE_CHECKING:
    from keswick.keystore.http import Answer, HttpService


class TransitSeal:
    kind = "transit"

    def __init__(self, settings: Mapping[str, str]) -> None:
        """`settings`: of the section `transit`."""
        self._settings = settings
        self._key = settings["key"]
        for setting in ("namespace", "approle.namespace", "kubernetes.namespace"):
            if not (settings.get(setting, "").isascii() and settings.get(setting, "").isprintable()):
                raise KeyStoreError(f"'transit.{setting}' can have only printable characters of ASCII")

    def wrap(self, key: bytes) -> Wrapped:
        plaintext = base64.b64encode(BINDING + key).decode()
        ciphertext = self._ask("encrypt", {"plaintext": plaintext}).get("ciphertext")
        if not isinstance(ciphertext, str) or not ciphertext:
            raise KeyStoreError("the transit engine answered without a ciphertext")
        return ByTransit(self._key, ciphertext)

    def unwrap(self, wrapped: Wrapped) -> bytes:
        assert isinstance(wrapped, ByTransit)
        answer = self._ask("decrypt", {"ciphertext": wrapped.ciphertext}, wrapped)
        try:
            plaintext = b64decode_go(str(answer.get("plaintext")))
        except ValueError:
            raise KeyStoreError("the transit engine answered without a plaintext") from None
        if not plaintext.startswith(BINDING):
            raise KeyStoreError("what the transit engine opens is no root key: the header has been changed; restore it")
        return plaintext.removeprefix(BINDING)

    def warnings(self) -> Sequence[str]:
        return files.warnings(self._settings["token.file"]) if "token.file" in self._settings else []

    def _ask(self, action: str, body: Mapping[str, str], wrapped: ByTransit | None = None) -> dict[str, Any]:
        """What `encrypt` or `decrypt` answers."""
        path = f"{_parts(self._settings['engine'])}/{action}/{quote(self._key, safe='')}"
        namespace = self._settings.get("namespace", "")
        with self._service() as service, self._login(service, deadline := service.deadline()) as token:
            answer = self._call(service, path, body, token, namespace, deadline)
            if answer.status == 403 and service.wait(deadline):  # a standby may not yet know a new token
                answer = self._call(service, path, body, token, namespace, deadline)
            words = _words(answer)
            match answer.status:
                case 200:
                    data = service.object(answer).get("data")
                    return data if isinstance(data, dict) else {}
                case 403:
                    advice = f"its token is no longer valid, or lacks the right 'update' on '{path}'"
                case 404:
                    advice = "look at 'transit.engine' and 'transit.namespace'"
                case 400 if wrapped is not None and wrapped.key != self._key:
                    advice = f"it was sealed with the key '{wrapped.key}': set 'transit.key' to it"
                case 400:
                    advice = "look at 'transit.key', and whether the key still has the version that it was sealed with"
                case _:
                    raise service.unexpected(answer, words)
            raise service.unexpected(answer, f"{words}; {advice}")

    @contextmanager
    def _service(self) -> "Iterator[HttpService]":
        from keswick.keystore.http import HttpService

        settings = self._settings
        certificate = (settings["tls.cert"], settings["tls.key"]) if "tls.cert" in settings else None
        service = HttpService(
            "the transit engine",
            settings["endpoint"],
            ca=settings.get("tls.ca"),
            only_ca=True,
            certificate=certificate,
        )
        try:
            yield service
        finally:
            service.close()

    @contextmanager
    def _login(self, service: "HttpService", deadline: float) -> Iterator[str]:
        """A token: that of the file, or a new one, which is given back."""
        settings = self._settings
        if "token.file" in settings:
            yield _token(settings["token.file"], "transit.token.file")
            return
        method = "approle" if "approle.id" in settings else "kubernetes"
        if method == "approle":
            body = {"role_id": settings["approle.id"], "secret_id": settings["approle.secret"]}
        else:
            jwt = settings["kubernetes.jwt"]
            token = _token(jwt, "transit.kubernetes.jwt") if "/" in jwt else jwt
            body = {"role": settings["kubernetes.role"], "jwt": token}
        engine = _parts(settings[f"{method}.engine"])
        namespace = settings.get(f"{method}.namespace") or settings.get("namespace", "")
        answer = self._call(service, f"auth/{engine}/login", body, "", namespace, deadline)
        if answer.status != 200:
            words = _words(answer)
            if answer.status < 500:
                words += f"; the login at 'auth/{engine}' is refused: look at 'transit.{method}'"
            raise service.unexpected(answer, words)
        auth = service.object(answer).get("auth")
        given = auth.get("client_token") if isinstance(auth, dict) else None
        if not isinstance(given, str) or not given:
            raise KeyStoreError("the transit engine answered a login without a token")
        try:
            yield given
        finally:
            with suppress(KeyStoreError):  # then it ends by itself, in time
                self._call(service, "auth/token/revoke-self", {}, given, namespace, deadline)

    def _call(
        self,
        service: "HttpService",
        path: str,
        body: Mapping[str, str],
        token: str,
        namespace: str,
        deadline: float,
    ) -> "Answer":
        headers = {"X-Vault-Request": "true", "X-Vault-Token": token, "X-Vault-Namespace": namespace.strip("/")}
        return service.call(
            "PUT",
            f"/v1/{path}",
            body=body,
            headers={name: value for name, value in headers.items() if value},
            seconds=max(0.1, deadline - time.monotonic()),
        )


def _parts(path: str) -> str:
    """Percent-encoded, without slashes that mean nothing."""
    return "/".join(quote(part, safe="") for part in path.split("/") if part)


def _token(path: str, setting: str) -> str:
    from keswick.keystore.renewal import is_token

    token = files.read(path, setting).decode("utf-8", "replace").strip()
    if not is_token(token):
        raise KeyStoreError(f"'{setting}': '{path}' holds no token")
    return token


def _words(answer: "Answer") -> str:
    """Of the service, for what is wrong."""
    match answer.json():
        case {"errors": [*errors]} if errors:
            return "; ".join(" ".join(error.split()) for error in errors if isinstance(error, str))
    return "no reason given"
