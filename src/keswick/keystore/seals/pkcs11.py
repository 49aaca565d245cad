"""A token that speaks PKCS#11, such as an HSM: it wraps the root key with an AES key that never leaves it.

The token is used when the folder is opened, and not after that.
"""

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from keswick.keystore.contract import KeyStoreError
from keswick.keystore.sealing import KEY_SIZE
from keswick.keystore.seals import files
from keswick.keystore.seals.header import BINDING, ByToken, Wrapped

_one_at_a_time = threading.Lock()
"""A process logs in to a token once, for all its sessions."""

_ADVICE = {
    "PinIncorrect": "the PIN is wrong; set the right one before the next start, as a token locks after a few tries",
    "PinLenRange": "the PIN is wrong; set the right one before the next start, as a token locks after a few tries",
    "PinInvalid": "the PIN is wrong; set the right one before the next start, as a token locks after a few tries",
    "PinLocked": "the PIN is locked after too many wrong ones: unlock it with the tools of the token",
    "PinExpired": "the PIN has expired: set a new one with the tools of the token",
    "UserPinNotInitialized": "it has no PIN yet: initialize the token with its tools",
    "NoSuchToken": "there is no token of this label: look at 'pkcs11.token', and whether this user may use it",
    "MultipleTokensReturned": "there are several tokens of this label: give each its own",
    "TokenNotPresent": "the token is not there: plug it in",
    "DeviceRemoved": "the token is not there: plug it in",
    "UserNotLoggedIn": "it wants a PIN: set 'pkcs11.pin_file' or 'pkcs11.pin'",
    "MechanismInvalid": "it cannot do AES-GCM (CKM_AES_GCM), which a seal needs",
}
"""What a failure means, by the name of its exception."""


T = TypeVar("T")


def in_own_thread(call: Callable[..., T], *arguments: Any) -> T:
    """Libraries of tokens may leave an error in the queue that OpenSSL has for each thread; the next TLS call of that
    thread would take it for its own."""
    with ThreadPoolExecutor(1, thread_name_prefix="pkcs11") as thread:
        return thread.submit(call, *arguments).result()


class TokenSeal:
    kind = "pkcs11"

    def __init__(self, settings: Mapping[str, str]) -> None:
        """`settings`: of the section `pkcs11`."""
        self._module = settings["module"]
        self._token = settings["token"]
        self._label = settings["key"]
        self._pin = settings.get("pin")
        self._pin_file = settings.get("pin_file")

    def wrap(self, key: bytes) -> Wrapped:
        return in_own_thread(self._wrap, key)

    def unwrap(self, wrapped: Wrapped) -> bytes:
        assert isinstance(wrapped, ByToken)
        return in_own_thread(self._unwrap, wrapped)

    def _wrap(self, key: bytes) -> Wrapped:
        nonce = os.urandom(12)
        with self._key() as token_key:
            return ByToken(self._label, nonce, bytes(token_key.encrypt(key, **_aes_gcm(nonce))))

    def _unwrap(self, wrapped: ByToken) -> bytes:
        from pkcs11.exceptions import PKCS11Error

        with self._key() as token_key:
            try:
                return bytes(token_key.decrypt(wrapped.root_key, **_aes_gcm(wrapped.nonce)))
            except PKCS11Error as error:
                if type(error).__name__ in _ADVICE:
                    raise
                raise KeyStoreError(
                    f"the key '{self._label}' on the token '{self._token}' does not open it: it is another key than "
                    f"the one it was sealed with, which was called '{wrapped.key}', or the header has been changed"
                ) from error

    def warnings(self) -> Sequence[str]:
        return files.warnings(self._pin_file) if self._pin_file else []

    @contextmanager
    def _key(self) -> Iterator[Any]:
        """The key on the token, while it is logged in."""
        try:
            import pkcs11
        except ImportError:
            raise KeyStoreError(
                "a seal by PKCS#11 needs a package that is not installed: pip install 'keswick[pkcs11]'"
            ) from None
        pin = self._pin
        if self._pin_file:
            try:
                pin = files.read_line(self._pin_file, "pkcs11.pin_file").decode()
            except UnicodeDecodeError:
                raise KeyStoreError(f"'pkcs11.pin_file': '{self._pin_file}' holds no text") from None
        if not os.path.isfile(self._module):
            raise KeyStoreError(f"'pkcs11.module': there is no library '{self._module}'")
        token = f"the token '{self._token}'"
        with _one_at_a_time:
            try:
                library = pkcs11.lib(self._module)
            except pkcs11.PKCS11Error as error:
                words = str(error) or type(error).__name__
                raise KeyStoreError(
                    f"'pkcs11.module': '{self._module}' cannot be used ({words}): is it the token's library, and is "
                    "that set up for this user?"
                ) from error
            try:
                with library.get_token(token_label=self._token).open(user_pin=pin) as session:
                    found = list(
                        session.get_objects(
                            {
                                pkcs11.Attribute.CLASS: pkcs11.ObjectClass.SECRET_KEY,
                                pkcs11.Attribute.KEY_TYPE: pkcs11.KeyType.AES,
                                pkcs11.Attribute.LABEL: self._label,
                            }
                        )
                    )
                    if not found:
                        login = "" if pin else ", or it is shown after a login only: set 'pkcs11.pin_file'"
                        raise KeyStoreError(f"{token} has no AES key '{self._label}': look at 'pkcs11.key'{login}")
                    if len(found) > 1:
                        raise KeyStoreError(f"{token} has several AES keys '{self._label}': give each its own label")
                    (key,) = found
                    if not (hasattr(key, "encrypt") and hasattr(key, "decrypt")):
                        raise KeyStoreError(
                            f"the key '{self._label}' on {token} must be allowed to encrypt and to decrypt "
                            "(CKA_ENCRYPT, CKA_DECRYPT)"
                        )
                    if key.key_length != 8 * KEY_SIZE:
                        raise KeyStoreError(
                            f"the key '{self._label}' on {token} has {key.key_length} bits, and it takes {8 * KEY_SIZE}"
                        )
                    yield key
            except pkcs11.PKCS11Error as error:
                kind = type(error).__name__
                advice = _ADVICE.get(kind, "see to the token, and to the log of its library")
                raise KeyStoreError(f"{token} refuses ({kind}): {advice}") from error


def _aes_gcm(nonce: bytes) -> dict[str, Any]:
    import pkcs11

    return {"mechanism": pkcs11.Mechanism.AES_GCM, "mechanism_param": pkcs11.GCMParams(nonce, BINDING, 128)}
