"""`kes migrate` from a folder to a real OpenBao, and back: nothing is lost or changed on the way."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from keswick.crypto import KeyFormatError, SecretKey, stored
from support.cli import kes, kes_in_background
from support.golden import cases
from support.openbao import OpenBao

COUNT = 5_000


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    with OpenBao(tmp_path_factory.mktemp("bao")) as bao:
        yield bao


def configuration(folder: Path, name: str, keystore: dict[str, Any]) -> str:
    """The path of a file. The TLS files that it names are not there."""
    path = folder / f"{name}.yaml"
    tls = {"key": "/nowhere/tls.key", "cert": "/nowhere/tls.crt"}
    path.write_text(json.dumps({"admin": {"identity": "ab" * 32}, "tls": tls, "keystore": keystore}))
    return str(path)


def folder_of_keys(path: Path, count: int) -> dict[str, bytes]:
    """A key of every stored form, and many of today."""
    path.mkdir()
    values = {f"old-{number}": case.stored_key for number, case in enumerate(cases()) if is_key(case.stored_key)}
    values |= {f"key-{number:05}": SecretKey.generate("tests").encode() for number in range(count - len(values))}
    for name, value in values.items():
        (path / name).write_bytes(value)
    return values


def is_key(value: bytes) -> bool:
    try:
        stored.decode(value)
    except KeyFormatError:
        return False
    return True


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_thousands_of_keys_go_to_openbao_and_back(bao: OpenBao, tmp_path: Path) -> None:
    bao.enable_kv("many", 2)
    values = folder_of_keys(tmp_path / "keys", COUNT)
    folder = configuration(tmp_path, "folder", {"fs": {"path": str(tmp_path / "keys")}})
    vault = configuration(tmp_path, "vault", {"vault": bao.configuration("many", 2)})
    back = configuration(tmp_path, "back", {"fs": {"path": str(tmp_path / "back")}})

    there = json.loads(kes("migrate", "--from", folder, "--to", vault, "--json").stdout)
    assert (there["read"], there["copied"], there["failed"]) == (COUNT, COUNT, 0)
    home = json.loads(kes("migrate", "--from", vault, "--to", back, "--json").stdout)
    assert (home["read"], home["copied"], home["failed"]) == (COUNT, COUNT, 0)
    assert content(tmp_path / "back") == values


@pytest.mark.parametrize("version", [1, 2])
def test_what_is_no_key_in_openbao_is_named_and_left_there(bao: OpenBao, tmp_path: Path, version: int) -> None:
    engine = f"shared-{version}"
    bao.enable_kv(engine, version)
    vault = configuration(tmp_path, "vault", {"vault": bao.configuration(engine, version, prefix="kes")})
    folder = configuration(tmp_path, "folder", {"fs": {"path": str(tmp_path / "keys")}})

    def put(name: str, secret: dict[str, str]) -> None:
        path = f"{engine}/data/kes/{name}" if version == 2 else f"{engine}/kes/{name}"
        bao.call("PUT", path, {"data": secret} if version == 2 else secret)

    key = SecretKey.generate("tests").encode()
    put("key", {"key": key.decode()})
    put("password", {"value": "hunter2"})
    put("notes", {"notes": "hunter2"})
    put("folder/deep", {"value": "hunter2"})
    foreign = ["notes", "password"]
    if version == 2:
        put("deleted", {"deleted": key.decode()})
        bao.call("DELETE", f"{engine}/data/kes/deleted")
        foreign = ["deleted", *foreign]

    for copied, skipped in ((1, 0), (0, 1)):
        done = kes("migrate", "--from", vault, "--to", folder)
        assert done.code == 0, done.stderr
        counts = f"{copied} copied, {skipped} skipped, {len(foreign)} foreign, 0 failed"
        assert done.stdout.endswith(f"Keys: {len(foreign) + 1} read, {counts}\n")
        warnings = [f"Warning: '{name}' is no key and was not copied" for name in foreign]
        assert [line.partition(": the ")[0].partition(": it ")[0] for line in done.stderr.splitlines()] == warnings
        assert "kes/password' is no key, for it has no field 'password' with a text: move it away\n" in done.stderr
        assert ("has no value, looked at twice: it was deleted there\n" in done.stderr) is (version == 2)
        assert "hunter2" not in done.stderr
    assert json.loads(kes("migrate", "--from", vault, "--to", folder, "--json").stdout)["names"]["foreign"] == foreign
    assert content(tmp_path / "keys") == {"key": key}


def test_a_migration_that_loses_openbao_in_the_middle_goes_on_later(bao: OpenBao, tmp_path: Path) -> None:
    bao.enable_kv("cut", 1)
    values = folder_of_keys(tmp_path / "keys", 800)
    folder = configuration(tmp_path, "folder", {"fs": {"path": str(tmp_path / "keys")}})
    vault = configuration(tmp_path, "vault", {"vault": bao.configuration("cut", 1)})
    back = configuration(tmp_path, "back", {"fs": {"path": str(tmp_path / "back")}})

    with kes_in_background("migrate", "--from", folder, "--to", vault, "--json") as running:
        deadline = time.monotonic() + 60
        while len((bao.request("GET", "cut/?list=true").body or {}).get("data", {}).get("keys", [])) < 50:
            assert time.monotonic() < deadline
        bao.kill()
        stdout, stderr = running.communicate(timeout=60)
        assert running.returncode == 1
    assert "cannot be reached" in stderr, stdout
    bao.start()
    again = json.loads(kes("migrate", "--from", folder, "--to", vault, "--json").stdout)
    assert again["skipped"] >= 50
    assert (again["skipped"] + again["copied"], again["failed"]) == (len(values), 0)
    assert kes("migrate", "--from", vault, "--to", back).code == 0
    assert content(tmp_path / "back") == values
