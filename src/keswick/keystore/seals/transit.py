"""The transit engine of OpenBao or HashiCorp Vault: it wraps the root key with a key that never leaves it.

It is asked when the folder is opened, and not after that.
"""

import base64
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any
from urllib.parse import quote

from keswick.encoding import b64decode_go
from keswick.keystore.contract import KeyStoreError
from keswick.keystore.seals import files
from keswick.keystore.seals.header import BINDING, ByTransit, Wrapped
from keswick.keystore.vault_session import Session, new_service, parts

_SECTION = "transit."


class TransitSeal:
    kind = "transit"

    def __init__(self, settings: Mapping[str, str]) -> None:
        """`settings`: of the section `transit`."""
        self._settings = settings
        self._key = settings["key"]

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
        path = f"{parts(self._settings['engine'])}/{action}/{quote(self._key, safe='')}"
        with closing(new_service("the transit engine", self._settings, _SECTION)) as service:
            until = service.deadline()
            with closing(Session(service, self._settings, until, section=_SECTION)) as session:
                answer = session.call("PUT", path, until, body=body)
            advice = ""
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
            raise service.unexpected(answer, "; ".join(filter(None, (session.said(answer), advice))))
