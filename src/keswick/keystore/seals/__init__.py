"""Seals: what wraps the root key of an encrypted folder, and opens it again. A kind is a module, and a line in `of`."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from keswick.keystore.seals.header import Wrapped


class Seal(Protocol):
    """Both calls raise KeyStoreError (or KeyStoreUnreachable), in words that go on after the name of the folder."""

    kind: str
    """As in the header."""

    def wrap(self, key: bytes) -> Wrapped: ...

    def unwrap(self, wrapped: Wrapped) -> bytes:
        """`wrapped` is of the kind that it opens. The key is a root key, if anybody's."""

    def warnings(self) -> Sequence[str]:
        """As those of a key store."""


def words(kind: str) -> str:
    """What a seal of that kind is."""
    return {"keyfile": "a key file", "transit": "a transit key", "pkcs11": "a token"}.get(kind, f"a {kind}")


def of(settings: Mapping[str, str]) -> Seal:
    """The seal that the settings of an encrypted folder name. Nothing is read or called yet."""
    from keswick.keystore.seals.local import KeyFileSeal, PassphraseSeal, credential

    if "passphrase.file" in settings:
        return PassphraseSeal(settings["passphrase.file"], "passphrase.file")
    if "credential.name" in settings:
        return PassphraseSeal(credential(settings["credential.name"]), "credential.name")
    if "keyfile.path" in settings:
        return KeyFileSeal(settings["keyfile.path"])
    if "transit.key" in settings:
        from keswick.keystore.seals.transit import TransitSeal

        return TransitSeal(inner(settings, "transit"))
    from keswick.keystore.seals.pkcs11 import TokenSeal

    return TokenSeal(inner(settings, "pkcs11"))


def inner(settings: Mapping[str, str], section: str) -> dict[str, str]:
    """The settings of a section in it."""
    begin = f"{section}."
    return {key.removeprefix(begin): value for key, value in settings.items() if key.startswith(begin)}
