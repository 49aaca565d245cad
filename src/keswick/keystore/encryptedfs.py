"""An encrypted folder: the files of the file system store, each sealed, and a header with their root key, wrapped.

Whoever opens the folder has to open the seal: know a passphrase, have a key file, or be let in by the service or token
that keeps the wrapping key. That is done once; then the root key stays in memory. The names of keys are not hidden.
docs/formats.md describes the format.
"""

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hmac import compare_digest
from pathlib import Path
from typing import TYPE_CHECKING

from keswick.files import NewFile, write_files
from keswick.keystore.contract import KeyNotFound, KeyStore, KeyStoreError, KeyStoreUnreachable
from keswick.keystore.fs import FSStore
from keswick.keystore.sealing import MAGIC, RootKey, SealedValueError
from keswick.keystore.section import PEM_FILE, PEM_FILES, TEXT, URL, Setting, Shape
from keswick.keystore.vault import LOGIN_SETTINGS

if TYPE_CHECKING:
    from keswick.keystore.seals import Seal
    from keswick.keystore.seals.header import Header

SHAPE = Shape(
    required=("path",),
    folder="path",
    sections={
        "passphrase": Shape(required=("file",)),
        "credential": Shape(required=("name",)),
        "keyfile": Shape(required=("path",)),
        "transit": Shape(
            required=("endpoint", "key"),
            optional=("namespace",),
            defaults={"engine": "transit"},
            sections={
                "token": Shape(required=("file",)),
                "approle": Shape(required=("id", "secret"), optional=("namespace",), defaults={"engine": "approle"}),
                "kubernetes": Shape(
                    required=("role", "jwt"), optional=("namespace",), defaults={"engine": "kubernetes"}
                ),
                "tls": Shape(optional=("key", "cert", "ca"), together=("key", "cert")),
            },
            methods=("token", "approle", "kubernetes"),
            must_log_in=True,
        ),
        "pkcs11": Shape(
            required=("module", "token", "key"),
            optional=("pin", "pin_file"),
            methods=("pin", "pin_file"),
            purpose="PIN",
        ),
    },
    methods=("passphrase", "credential", "keyfile", "transit", "pkcs11"),
    must_log_in=True,
    purpose="seal",
)


def _setting(name: str, meaning: str, value: str, example: str, **more: str) -> Setting:
    return Setting(name, meaning, value, example, own=True, **more)


SETTINGS = (
    _setting(
        "path",
        "the folder; it is made if it does not exist. A relative path begins where the server was started",
        "path",
        "/var/lib/kes/keys",
        needed="",
    ),
    _setting(
        "passphrase.file", "the file that holds the passphrase", "path", "/etc/kes/passphrase", needed="passphrase"
    ),
    _setting(
        "credential.name",
        "the systemd credential that holds the passphrase (`LoadCredential`)",
        "name",
        "kes-passphrase",
        needed="credential",
    ),
    _setting(
        "keyfile.path",
        "the file that holds a key: 32 random bytes, or base64 of them",
        "path",
        "/etc/kes/master.key",
        needed="keyfile",
    ),
    _setting("transit.endpoint", "where OpenBao or Vault is", URL, "https://127.0.0.1:8200", needed="transit"),
    _setting("transit.key", "name of the transit key", "name", "kes", needed="transit"),
    _setting("transit.engine", "path of the transit engine", "path", "kes-transit", default="transit"),
    _setting("transit.namespace", "in which the engine is", "path", "team-a"),
    _setting("transit.token.file", "the file that holds a token", "path", "/run/kes/token", needed="transit.token"),
    *(
        login._replace(name=f"transit.{login.name}", needed=login.needed and f"transit.{login.needed}", own=True)
        for login in LOGIN_SETTINGS
    ),
    _setting("transit.tls.key", "private key of the client", PEM_FILE, "/etc/kes/vault.key", needed="transit.tls.cert"),
    _setting("transit.tls.cert", "certificate of the client", PEM_FILE, "/etc/kes/vault.crt", needed="transit.tls.key"),
    _setting("transit.tls.ca", "whom to trust when OpenBao or Vault is called", PEM_FILES, "/etc/kes/store-ca.crt"),
    _setting(
        "pkcs11.module",
        "the library of the token's vendor",
        "path",
        "/usr/lib/softhsm/libsofthsm2.so",
        needed="pkcs11",
    ),
    _setting("pkcs11.token", "label of the token", TEXT, "kes", needed="pkcs11"),
    _setting("pkcs11.key", "label of an AES key on it", TEXT, "kes-folder", needed="pkcs11"),
    _setting("pkcs11.pin", "the PIN of its user", TEXT, "${KES_PIN}"),
    _setting("pkcs11.pin_file", "the file that holds the PIN, instead of `pin`", "path", "/etc/kes/pin"),
)


def open(settings: Mapping[str, str]) -> KeyStore:
    from keswick.keystore import seals

    return EncryptedFSStore(settings["path"], seals.of(settings))


def is_new(settings: Mapping[str, str]) -> bool:
    """Whether opening would make the folder, or its header. Then it is tried whether the seal can do that, and nothing
    is made. Raises KeyStoreError."""
    from keswick.keystore import seals

    path = settings["path"]
    if os.path.lexists(path) and (read_header(path) is not None or FSStore(path).list("")):
        return False
    with _naming(path):
        _wrapped(RootKey.new(), seals.of(settings))
    return True


class EncryptedFSStore(KeyStore):
    """Keys in the folder `path`, which is made, with its header, when it is not there.

    Raises KeyStoreError when the folder cannot be used, or the seal does not open it.
    """

    atomic_create = True

    def __init__(self, path: str, seal: "Seal") -> None:
        from keswick.keystore.seals import words

        self.description = f"Encrypted folder: {path} (sealed with {words(seal.kind)})"
        self._seal = seal
        self._files = FSStore(path)
        with _naming(path):
            self._key = _root_key(self._files, seal)

    def status(self) -> float:
        seconds = self._files.status()
        self._has_header()
        return seconds

    def create(self, name: str, value: bytes) -> None:
        sealed = self._key.seal(name, value)
        if not self._has_header():
            raise KeyStoreError(
                f"the encrypted folder '{self._files.path}' has lost its header since this server has opened it, or it "
                "is damaged, and nobody could open new keys there: restore the header from a backup"
            )
        self._files.create(name, sealed)

    def get(self, name: str) -> bytes:
        try:
            return self._key.open(name, self._files.get(name))
        except KeyNotFound:
            self._has_header()
            raise
        except SealedValueError as error:
            self._has_header()
            raise KeyStoreError(f"'{os.path.join(self._files.path, name)}' {error}") from None

    def delete(self, name: str) -> None:
        self._has_header()
        self._files.delete(name)

    def list(self, prefix: str) -> Sequence[str]:
        self._has_header()
        return self._files.list(prefix)

    def warnings(self) -> Sequence[str]:
        return [*self._files.warnings(), *self._seal.warnings()]

    def close(self) -> None:
        self._key.close()
        self._files.close()

    def _has_header(self) -> bool:
        """False if the header was lost, or is damaged: keys can still be read.

        Raises KeyStoreUnreachable if another folder is in the place of this one, or the empty one that is left when it
        is unmounted: no key is missing then, none is to be deleted there, and a new one would be lost.
        """
        path = self._files.path
        try:
            found = read_header(path)
        except KeyStoreError:
            return False
        if found is not None and found.root_check == self._key.check:
            return True
        if found is None and self._files.list(""):
            return False
        what = "an empty folder" if found is None else "another encrypted folder"
        raise KeyStoreUnreachable(
            f"the encrypted folder '{path}' is away, and {what} is in its place: mount it, or put it back"
        )


def read_header(folder: str) -> "Header | None":
    """None where there is none, or no folder. Raises KeyStoreError."""
    from keswick.keystore.seals import header

    path = os.path.join(folder, header.FILE)
    try:
        with Path(path).open("rb") as file:
            return header.decode(file.read(header.MAX_SIZE + 1))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KeyStoreError(f"'{path}' cannot be read: {error.strerror}") from error
    except header.HeaderError as error:
        raise KeyStoreError(f"'{path}' {error}") from None


def opened(header: "Header", seal: "Seal") -> RootKey:
    """The root key in a header. Raises KeyStoreError, in words that go on after the name of the folder."""
    from keswick.keystore.seals import words
    from keswick.keystore.seals.header import kind

    if kind(header.seal) != seal.kind:
        raise KeyStoreError(
            f"it is sealed with {words(kind(header.seal))}, and the configuration names {words(seal.kind)}: name what "
            "it is sealed with, or change its seal with 'kes reseal'"
        )
    try:
        key = RootKey(seal.unwrap(header.seal))
    except ValueError as error:
        raise KeyStoreError(f"its seal opens, and what is in it is no root key ({error}): restore the header") from None
    if not compare_digest(key.check, header.root_check):
        key.close()
        raise KeyStoreError("its seal opens, and what is in it is another root key: restore the header")
    return key


def reseal(folder: str, old: "Seal", new: "Seal") -> None:
    """Wrap the root key with another seal. The key files stay as they are. Raises KeyStoreError."""
    from keswick.keystore.seals.header import FILE

    with _naming(folder), _locked(folder):
        found = read_header(folder)
        if found is None:
            raise KeyStoreError("it has no header, so there is no seal that could be changed")
        owner = Path(folder, FILE).stat().st_uid
        if owner != os.geteuid():
            raise KeyStoreError(f"its header belongs to the user {owner}, who has to be the one who changes the seal")
        key = opened(found, old)
        try:
            _write_header(folder, _wrapped(key, new), overwrite=True)
        finally:
            key.close()


def _root_key(files: FSStore, seal: "Seal") -> RootKey:
    found = read_header(files.path)
    if found is None and (names := files.list("")):
        found = read_header(files.path)  # of another server, which has made the folder meanwhile
        if found is None:
            raise _headless(files, names)
    if found is None:
        key = RootKey.new()
        try:
            _write_header(files.path, _wrapped(key, seal))
            return key
        except FileExistsError:
            key.close()  # the other server was first
        found = read_header(files.path)
        if found is None:
            raise KeyStoreError("its header has come and gone: who has removed it?")
    return opened(found, seal)


def _wrapped(key: RootKey, seal: "Seal") -> "Header":
    """A header that certainly can be opened again."""
    from keswick.keystore.seals import header

    made = header.Header(key.check, seal.wrap(key.expose()))
    try:
        opened(header.decode(header.encode(made).encode()), seal).close()
    except header.HeaderError as error:
        raise KeyStoreError(f"the header that this seal makes {error}") from None
    return made


def _write_header(folder: str, made: "Header", *, overwrite: bool = False) -> None:
    """Whole and on the disk, or not at all. Raises FileExistsError unless `overwrite`."""
    from keswick.keystore.seals import header

    path = Path(folder, header.FILE)
    try:
        write_files(NewFile(path, header.encode(made), secret=True), overwrite=overwrite)
    except FileExistsError:
        raise
    except OSError as error:
        raise KeyStoreError(f"the header '{path}' cannot be written: {error.strerror}") from error


def _headless(files: FSStore, names: Sequence[str]) -> KeyStoreError:
    """Why a folder with files, and without a header, is not used."""
    for name in names:
        try:
            if files.get(name).startswith(MAGIC):
                return KeyStoreError(
                    "it holds sealed keys, and its header '.keswick-folder' is not there: restore it from a backup, "
                    "as nothing else opens them"
                )
        except (KeyNotFound, KeyStoreError):
            continue
    return KeyStoreError(
        f"it holds files that are not sealed, such as '{min(names)}': name a folder of its own for sealed keys, and "
        "move keys there with 'kes migrate'"
    )


@contextmanager
def _locked(folder: str) -> Iterator[None]:
    """For one at a time: of two that change the seal at once, one would be told that its seal counts, and be wrong."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise KeyStoreError(f"it cannot be opened ({error.strerror}), so there is no seal to change") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise KeyStoreError("somebody else is changing its seal now: see first what comes of it") from None
        yield
    finally:
        os.close(handle)


@contextmanager
def _naming(folder: str) -> Iterator[None]:
    """Errors of the seal and the header say which folder it is."""
    try:
        yield
    except KeyStoreUnreachable as error:
        raise KeyStoreUnreachable(f"the encrypted folder '{folder}': {error}") from error
    except KeyStoreError as error:
        raise KeyStoreError(f"the encrypted folder '{folder}': {error}") from error
