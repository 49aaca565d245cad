"""The encrypted folder, with each of its seals. Its store is on this machine, whatever opens it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from conformance.stores import Service
from keswick.keystore import KeyStore, encryptedfs
from keswick.keystore.seals import local
from support import softhsm
from support.openbao import OpenBao, settings


@contextmanager
def passphrase(folder: Path) -> Iterator[Service]:
    yield _service({"passphrase.file": _secret(folder, b"correct horse\n")})


@contextmanager
def keyfile(folder: Path) -> Iterator[Service]:
    yield _service({"keyfile.path": _secret(folder, os.urandom(32))})


@contextmanager
def transit(folder: Path) -> Iterator[Service]:
    with OpenBao(folder) as bao:
        bao.enable_transit()
        section = {"endpoint": bao.endpoint, "key": "kes", "engine": "transit", "tls": {"ca": str(bao.ca_file)}}
        section["token"] = {"file": _secret(folder, bao.root_token.encode())}
        yield _service(settings({"transit": section}))


@contextmanager
def pkcs11(folder: Path) -> Iterator[Service]:
    token = softhsm.token()
    softhsm.new_key("conformance")
    yield _service(settings({"pkcs11": token.section("conformance")}))


def _service(seal: dict[str, str]) -> Service:
    def new_store(folder: Path) -> KeyStore:
        with patch.object(local, "SCRYPT", (1 << 10, 8, 1)):  # instead of 128 MiB
            return encryptedfs.open({"path": str(folder / "keys"), **seal})

    return Service(new_store)


def _secret(folder: Path, content: bytes) -> str:
    path = folder / "secret"
    path.touch(mode=0o600)
    path.write_bytes(content)
    return str(path)


SERVICES = {
    "encryptedfs-passphrase": passphrase,
    "encryptedfs-keyfile": keyfile,
    "encryptedfs-transit": transit,
    "encryptedfs-pkcs11": pkcs11,
}
