"""The encrypted folder: its format, its seals with all that may be wrong with them, and real servers on it."""

import base64
import itertools
import json
import os
import random
import re
import runpy
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from keswick import keystore
from keswick.config import ConfigError, load
from keswick.keystore import (
    KeyNotFound,
    KeyStore,
    KeyStoreError,
    KeyStoreUnreachable,
    StoreSection,
    encryptedfs,
    fs,
    http,
    seals,
)
from keswick.keystore.sealing import OVERHEAD, RootKey, SealedValueError
from keswick.keystore.seals import header, local
from support import softhsm
from support.certificates import make
from support.fault_proxy import FaultProxy
from support.kubernetes import FakeKubernetes
from support.openbao import OpenBao, settings
from support.server import start_server
from support.store_page import DOCS
from support.transport import wait_until
from support.walker import BLOCK, Walker, section

VECTORS = Path(__file__).parents[1] / "vectors" / "encryptedfs"
FOLDERS: list[dict[str, Any]] = json.loads((VECTORS / "folders.json").read_text())
VALUE = b'{"bytes":"8f58O260tzAnGcK9TE47B71i2OURUIsxB807lhTT3Q0="}'
SECRET = b"correct horse battery staple"
ENVIRONMENT = {**os.environ, "PYTHONPATH": ":".join(sys.path)}


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "SCRYPT", (1 << 10, 8, 1))


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "keys"


@pytest.fixture
def passphrase(tmp_path: Path) -> Path:
    return secret(tmp_path / "passphrase", SECRET + b"\n")


def secret(path: Path, content: bytes) -> Path:
    path.touch(mode=0o600)
    path.write_bytes(content)
    return path


def opened(keys: Path, seal: Mapping[str, Any]) -> KeyStore:
    """`seal`: as in a configuration, such as `{"passphrase": {"file": …}}`."""
    return encryptedfs.open({"path": str(keys), **settings(seal)})


@pytest.fixture
def store(keys: Path, passphrase: Path) -> Iterator[KeyStore]:
    store = opened(keys, {"passphrase": {"file": passphrase}})
    yield store
    store.close()


def refused(keys: Path, seal: Mapping[str, Any], kind: type[KeyStoreError] = KeyStoreError) -> str:
    """Why the folder does not open. Nothing of it has changed."""
    before = content(keys)
    with pytest.raises(kind) as caught:
        opened(keys, seal)
    assert type(caught.value) is kind
    assert content(keys) == before
    words = str(caught.value)
    assert SECRET.decode() not in words
    return words


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- the format ---


def as_a_file(folder: Path, vector: Mapping[str, Any]) -> dict[str, Any]:
    """The seal of a vector as a configuration names it."""
    ((kind, text),) = vector["opened_with"].items()
    data = base64.b64decode(text)
    if kind == "token_key":
        softhsm.import_key("vector", data)
        return {"pkcs11": softhsm.token().section("vector")}
    return {kind: {"file" if kind == "passphrase" else "path": secret(folder / kind, data)}}


@pytest.mark.parametrize("vector", FOLDERS, ids=lambda vector: str(vector["name"]))
def test_a_folder_that_was_sealed_once_is_read_for_ever(tmp_path: Path, keys: Path, vector: dict[str, Any]) -> None:
    keys.mkdir()
    for name, text in vector["files"].items():
        (keys / name).write_bytes(base64.b64decode(text))
    store = opened(keys, as_a_file(tmp_path, vector))
    assert {name: store.get(name) for name in store.list("")} == {
        name: base64.b64decode(text) for name, text in vector["keys"].items()
    }
    store.create("new", VALUE)
    assert store.get("new") == VALUE


def test_the_vectors_are_those_of_their_script() -> None:
    assert runpy.run_path(str(VECTORS / "make.py"))["folders"]() == FOLDERS


def test_what_is_written(store: KeyStore, keys: Path) -> None:
    store.create("key", VALUE)
    assert {path.name: mode(path) for path in keys.iterdir()} == {".keswick-folder": 0o600, "key": 0o600}
    assert mode(keys) == 0o700
    sealed = (keys / "key").read_bytes()
    assert len(sealed) == len(VALUE) + OVERHEAD == len(VALUE) + 89
    assert b"8f58" not in sealed
    assert (
        (keys / ".keswick-folder")
        .read_bytes()
        .startswith(b'{"format":"keswick encrypted folder","version":1,"root_check":"')
    )
    assert "passphrase" in store.description


def test_no_two_sealed_values_are_alike(store: KeyStore, keys: Path) -> None:
    for name in ("one", "two"):
        store.create(name, VALUE)
    first = content(keys)
    assert first["one"][9:] != first["two"][9:]
    store.delete("one")
    store.create("one", VALUE)
    assert content(keys)["one"][9:] != first["one"][9:]


def test_a_header_has_the_costs_that_the_page_promises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert local.SCRYPT == (131072, 8, 1)
    wrapped = seals.of({"passphrase.file": str(secret(tmp_path / "p", SECRET))}).wrap(bytes(32))
    assert isinstance(wrapped, header.ByPassphrase)
    assert (wrapped.kdf.n, wrapped.kdf.r, wrapped.kdf.p) == (131072, 8, 1)


def test_a_file_bound_to_its_name(store: KeyStore, keys: Path) -> None:
    store.create("one", VALUE)
    store.create("two", b"another")
    (keys / "one").rename(keys / "three")
    (keys / "two").rename(keys / "one")
    (keys / "three").rename(keys / "two")
    (keys / "copy").write_bytes((keys / "two").read_bytes())
    assert sorted(store.list("")) == ["copy", "one", "two"]
    for name in ("one", "two", "copy"):
        with pytest.raises(KeyStoreError, match=f"'{keys}/{name}' has been changed, or is the file of another key"):
            store.get(name)
    (keys / "one").rename(keys / "two")
    assert store.get("two") == b"another"


def test_a_file_of_another_folder(store: KeyStore, keys: Path, tmp_path: Path, passphrase: Path) -> None:
    other = opened(tmp_path / "other", {"passphrase": {"file": passphrase}})
    other.create("key", VALUE)
    shutil.copy(tmp_path / "other" / "key", keys / "key")
    with pytest.raises(KeyStoreError, match=f"'{keys}/key' was sealed in another encrypted folder"):
        store.get("key")


def test_every_changed_byte_and_every_cut_is_noticed() -> None:
    key = RootKey.new()
    sealed = key.seal("key", VALUE)
    assert key.open("key", sealed) == VALUE
    for index in range(len(sealed)):
        changed = sealed[:index] + bytes([sealed[index] ^ 1 << index % 8]) + sealed[index + 1 :]
        with pytest.raises(SealedValueError):
            key.open("key", changed)
        with pytest.raises(SealedValueError):
            key.open("key", sealed[:index])
    with pytest.raises(SealedValueError):
        key.open("key", sealed + b"\0")


@given(st.binary(max_size=300) | st.binary(max_size=200).map(lambda rest: b"\x89KFS\r\n\x1a\n\x01" + rest))
def test_nothing_but_a_sealed_value_opens(data: bytes) -> None:
    with pytest.raises(SealedValueError):
        RootKey(bytes(32)).open("key", data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (VALUE, "is not sealed: move it away, or bring it in with 'kes migrate' if it is a key"),
        (b"not", "is not sealed"),
        (b"", "has been cut off"),
        (b"\x89KF", "has been cut off"),
        (b"\x89KFS\r\n\x1a\n", "has been cut off"),
        (b"\x89KFS\r\n\x1a\n\x01" + bytes(79), "has been cut off"),
        (b"\x89KFS\r\n\x1a\n\x02" + bytes(200), "is sealed in version 2: a newer release of Keswick reads it"),
        (b"x" * (1 << 20) + b"x", "is no key: it is larger than 1048576 bytes"),
    ],
)
def test_what_is_no_sealed_file(store: KeyStore, keys: Path, data: bytes, words: str) -> None:
    store.create("key", VALUE)
    (keys / "foreign").write_bytes(data)
    with pytest.raises(KeyStoreError, match=re.escape(f"'{keys}/foreign' {words}")):
        store.get("foreign")
    assert store.get("key") == VALUE


def test_nothing_shows_a_secret(store: KeyStore, tmp_path: Path) -> None:
    key = RootKey(b"k" * 32)
    assert repr(key) == "RootKey(<redacted>)"
    pin = softhsm.token().pin
    seal = seals.of(settings({"pkcs11": softhsm.token().section("nothing")}))
    for thing in (store, seal, key):
        for shown in (repr(thing), str(thing)):
            assert "kkkk" not in shown
            assert pin not in shown


def test_a_closed_store_seals_nothing_with_a_wiped_key(keys: Path, passphrase: Path) -> None:
    store = opened(keys, {"passphrase": {"file": passphrase}})
    store.create("key", VALUE)
    sealed: list[str] = []
    ended: list[str] = []

    def create() -> None:
        for number in itertools.count():
            try:
                store.create(f"key-{number}", VALUE)
            except KeyStoreError as error:
                ended.append(str(error))
                return
            sealed.append(f"key-{number}")

    thread = threading.Thread(target=create, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while len(sealed) < 20 and time.monotonic() < deadline:
        time.sleep(0.001)
    store.close()
    thread.join(20)
    assert ended == ["the encrypted folder has been closed"]
    with pytest.raises(KeyStoreError, match="has been closed"):
        store.get("key")
    again = opened(keys, {"passphrase": {"file": passphrase}})
    assert {again.get(name) for name in again.list("")} == {VALUE}
    assert len(list(again.list(""))) >= len(sealed) + 1


# --- the header ---


def test_a_header_is_read_strictly(store: KeyStore, keys: Path, passphrase: Path) -> None:
    path = keys / header.FILE
    whole = json.loads(path.read_text())
    seal = whole["seal"]
    long = base64.b64encode(bytes(33)).decode()
    for changed, words in {
        "": "is no header of an encrypted folder",
        "no JSON": "is no header of an encrypted folder",
        "[]": "is no header of an encrypted folder",
        json.dumps({**whole, "format": "another"}): "is no header of an encrypted folder",
        json.dumps({**whole, "version": 2, "more": 1}): "is of version 2: a newer release of Keswick reads it",
        json.dumps({**whole, "more": 1}): "is damaged",
        json.dumps({**whole, "seal": {**seal, "more": 1}}): "is damaged",
        json.dumps({**whole, "seal": {**seal, "kind": "nix"}}): "is damaged",
        json.dumps({**whole, "seal": {**seal, "check": long}}): "is damaged",
        json.dumps({**whole, "seal": {**seal, "root_key": long}}): "is damaged",
        json.dumps({**whole, "seal": {**seal, "kdf": {**seal["kdf"], "name": "md5"}}}): "is damaged",
        json.dumps({**whole, "root_check": long}): "is damaged",
        json.dumps({"format": "keswick encrypted folder", "version": 1}): "is damaged",
        json.dumps(whole) + " " * (64 << 10): "is no header of an encrypted folder",
        '{"format":' + "[" * 60_000: "is no header of an encrypted folder",
        '{"more":' * 8_000: "is no header of an encrypted folder",
        json.dumps({**whole, "seal": {"kind": "transit", "key": "\x1b[31m", "ciphertext": "x"}}): "is damaged",
    }.items():
        path.write_text(changed)
        words_told = refused(keys, {"passphrase": {"file": passphrase}})
        assert f"'{path}' {words}" in words_told


@pytest.mark.parametrize(
    ("n", "r", "p"),
    [
        (1 << 21, 8, 1),
        (1 << 20, 32, 1),
        (1 << 20, 8, 16),
        (1 << 17, 8, 17),
        (1000, 8, 1),
        (0, 8, 1),
        (1 << 60, 8, 1),
        (1 << 16, 1, 1),
    ],
)
def test_a_planted_header_cannot_exhaust_the_memory(
    store: KeyStore, keys: Path, passphrase: Path, monkeypatch: pytest.MonkeyPatch, n: int, r: int, p: int
) -> None:
    planted = json.loads((keys / header.FILE).read_text())
    planted["seal"]["kdf"] |= {"n": n, "r": r, "p": p}
    (keys / header.FILE).write_text(json.dumps(planted))
    monkeypatch.setattr(local.PassphraseSeal, "_derived", None)  # it must not come so far
    assert f"'{keys}/.keswick-folder' " in refused(keys, {"passphrase": {"file": passphrase}})


@given(
    st.binary(max_size=400)
    | st.text().map(str.encode)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda made: json.dumps(made).encode())
)
def test_no_bytes_make_the_header_fail_otherwise(data: bytes) -> None:
    with pytest.raises(header.HeaderError):
        header.decode(data)


@given(st.data())
def test_no_changed_byte_of_a_header_makes_it_fail_otherwise(data: st.DataObject) -> None:
    whole = base64.b64decode(FOLDERS[1]["files"][header.FILE])
    place = data.draw(st.integers(0, len(whole) - 1))
    changed = whole[:place] + data.draw(st.binary(max_size=3)) + whole[place + 1 :]
    try:
        found = header.decode(changed)
    except header.HeaderError:
        return
    assert isinstance(found.seal, header.ByPassphrase)


def test_a_changed_seal_does_not_open(store: KeyStore, keys: Path, passphrase: Path) -> None:
    whole = json.loads((keys / header.FILE).read_text())
    for field in ("check", "root_key"):
        data = bytearray(base64.b64decode(whole["seal"][field]))
        data[5] ^= 1
        changed = {**whole, "seal": {**whole["seal"], field: base64.b64encode(data).decode()}}
        (keys / header.FILE).write_text(json.dumps(changed))
        assert "is wrong" in refused(keys, {"passphrase": {"file": passphrase}})


def test_a_folder_with_plain_keys_is_refused(keys: Path, passphrase: Path) -> None:
    keys.mkdir()
    (keys / "my-key").write_bytes(VALUE)
    words = refused(keys, {"passphrase": {"file": passphrase}})
    assert f"the encrypted folder '{keys}': it holds files that are not sealed, such as 'my-key'" in words
    assert "kes migrate" in words


def test_a_folder_that_has_lost_its_header_is_refused(store: KeyStore, keys: Path, passphrase: Path) -> None:
    store.create("key", VALUE)
    (keys / "a-plain-one").write_bytes(VALUE)
    kept = (keys / header.FILE).read_bytes()
    (keys / header.FILE).unlink()
    assert "it holds sealed keys, and its header '.keswick-folder' is not there: restore it" in refused(
        keys, {"passphrase": {"file": passphrase}}
    )
    for damaged in (None, b"damaged"):  # the one that runs goes on
        if damaged:
            (keys / header.FILE).write_bytes(damaged)
        assert store.get("key") == VALUE
        assert store.status() >= 0
        assert sorted(store.list("")) == ["a-plain-one", "key"]
        with pytest.raises(KeyNotFound):
            store.get("nix")
        with pytest.raises(KeyStoreError, match="has lost its header since this server has opened it, or it is dam"):
            store.create("new", VALUE)
    (keys / header.FILE).write_bytes(kept)
    assert opened(keys, {"passphrase": {"file": passphrase}}).get("key") == VALUE


def test_a_folder_in_whose_place_another_has_come_is_away(
    store: KeyStore, keys: Path, passphrase: Path, tmp_path: Path
) -> None:
    """As when it is unmounted, or somebody starts anew. Its keys are not missing; a new one would be lost, and one that
    is deleted would be somebody else's."""

    def assert_away(words: str) -> None:
        before = content(keys)
        for call in (
            store.status,
            lambda: store.get("key"),
            lambda: store.get("nix"),
            lambda: store.create("new", VALUE),
            lambda: store.delete("key"),
            lambda: store.list(""),
        ):
            with pytest.raises(KeyStoreUnreachable, match=words):
                call()
        assert content(keys) == before

    store.create("key", VALUE)
    keys.rename(tmp_path / "elsewhere")
    keys.mkdir()
    assert_away(f"'{keys}' is away, and an empty folder is in its place: mount it, or put it back")
    opened(keys, {"passphrase": {"file": passphrase}}).create("key", VALUE)
    assert_away(f"'{keys}' is away, and another encrypted folder is in its place")
    shutil.rmtree(keys)
    with pytest.raises(KeyStoreUnreachable, match="is away"):
        store.create("new", VALUE)
    (tmp_path / "elsewhere").rename(keys)
    store.create("new", VALUE)
    assert store.get("new") == store.get("key") == VALUE


def test_whether_opening_would_make_a_folder(store: KeyStore, keys: Path, passphrase: Path, tmp_path: Path) -> None:
    """It is told without making anything, and only if it would work."""

    def is_new(path: Path, seal: Mapping[str, Any]) -> bool:
        before = content(tmp_path / "new")
        try:
            return keystore.is_new(StoreSection("encryptedfs", {"path": str(path), **settings(seal)}))
        finally:
            assert content(tmp_path / "new") == before

    seal, wrong = {"passphrase": {"file": passphrase}}, {"passphrase": {"file": "/nix"}}
    new = tmp_path / "new"
    for _ in ("absent", "empty"):
        assert is_new(new, seal)
        with pytest.raises(
            KeyStoreError, match=f"the encrypted folder '{new}': 'passphrase.file': '/nix' cannot be re"
        ):
            is_new(new, wrong)
        new.mkdir(exist_ok=True)
    (new / "a-plain-one").write_bytes(VALUE)
    assert not is_new(new, seal)
    assert not is_new(keys, wrong)


def test_what_no_key_can_be_is_no_reason_to_refuse(keys: Path, passphrase: Path) -> None:
    (keys / "lost+found").mkdir(parents=True)
    (keys / ".hidden").write_text("something")
    assert list(opened(keys, {"passphrase": {"file": passphrase}}).list("")) == []


def test_the_plain_store_refuses_an_encrypted_folder(store: KeyStore, keys: Path) -> None:
    with pytest.raises(KeyStoreError, match=r"is an encrypted folder: let 'keystore\.encryptedfs' name it"):
        fs.open({"path": str(keys)})


def test_a_header_that_cannot_be_written_or_read(keys: Path, passphrase: Path) -> None:
    (keys / header.FILE).mkdir(parents=True)
    assert f"'{keys}/.keswick-folder' cannot be read: Is a directory" in refused_with_folders(keys, passphrase)
    (keys / header.FILE).rmdir()
    (keys / header.FILE).symlink_to("nowhere")
    assert f"the encrypted folder '{keys}': its header has come and gone" in refused_with_folders(keys, passphrase)


def refused_with_folders(keys: Path, passphrase: Path) -> str:
    with pytest.raises(KeyStoreError) as caught:
        opened(keys, {"passphrase": {"file": passphrase}})
    return str(caught.value)


CREATOR = """
import sys
from keswick.keystore import encryptedfs
print("ready", flush=True)
for line in sys.stdin:
    path, name = line.split()
    encryptedfs.open({"path": path, "keyfile.path": sys.argv[1]}).create(name, name.encode())
    print("done", flush=True)
"""


def test_of_servers_that_make_a_folder_at_once_one_makes_the_header(tmp_path: Path) -> None:
    """Each of their keys is sealed with the root key of the header that is there in the end."""
    key_file = secret(tmp_path / "key", os.urandom(32))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CREATOR, str(key_file)],
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        for _ in range(2)
    ]

    def wait(process: "subprocess.Popen[str]", expected: str) -> None:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{expected}\n"

    try:
        for process in processes:
            wait(process, "ready")
        for attempt in range(60):
            for number, process in enumerate(processes):
                assert process.stdin is not None
                process.stdin.write(f"{tmp_path}/keys-{attempt} key-{number}\n")
            for process in processes:
                wait(process, "done")
            store = opened(tmp_path / f"keys-{attempt}", {"keyfile": {"path": key_file}})
            assert {name: store.get(name) for name in store.list("")} == {"key-0": b"key-0", "key-1": b"key-1"}
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_of_threads_that_make_a_folder_at_once_all_open_the_same(tmp_path: Path) -> None:
    key_file = secret(tmp_path / "key", os.urandom(32))
    start = threading.Barrier(8)

    def create(number: int) -> None:
        start.wait()
        opened(tmp_path / "keys", {"keyfile": {"path": key_file}}).create(f"key-{number}", VALUE)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(create, range(8)))
    store = opened(tmp_path / "keys", {"keyfile": {"path": key_file}})
    assert {store.get(f"key-{number}") for number in range(8)} == {VALUE}


ENDLESS = """
import itertools, sys
from keswick.keystore import encryptedfs
for number in itertools.count():
    store = encryptedfs.open({"path": f"{sys.argv[1]}/keys-{number}", "keyfile.path": sys.argv[2]})
    for name in "abc":
        store.create(name, name.encode())
    print(number, flush=True)
"""


def test_a_kill_leaves_a_folder_without_keys_or_with_a_header_that_opens_them(tmp_path: Path) -> None:
    key_file = secret(tmp_path / "key", os.urandom(32))
    chance = random.Random(7)
    seen = 0
    for attempt in range(8):
        folder = tmp_path / str(attempt)
        process = subprocess.Popen(
            [sys.executable, "-c", ENDLESS, str(folder), str(key_file)], env=ENVIRONMENT, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(chance.random() * 0.03)  # any moment will do
        process.send_signal(signal.SIGKILL)
        process.communicate()
        for keys in folder.iterdir():
            files = content(keys)
            assert header.FILE in files or not files
            store = opened(keys, {"keyfile": {"path": key_file}})
            for name in store.list(""):
                assert store.get(name) == name.encode()
                seen += 1
    assert seen >= 24


# --- a passphrase, a key file ---


def test_a_wrong_passphrase(store: KeyStore, keys: Path, tmp_path: Path) -> None:
    wrong = secret(tmp_path / "wrong", b"battery horse")
    assert refused(keys, {"passphrase": {"file": wrong}}) == (
        f"the encrypted folder '{keys}': the passphrase in '{wrong}' is wrong: let 'passphrase.file' name the one that "
        "it was sealed with"
    )


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n"])
def test_a_line_end_behind_the_passphrase_does_not_count(
    store: KeyStore, keys: Path, tmp_path: Path, ending: bytes
) -> None:
    store.create("key", VALUE)
    file = secret(tmp_path / "again", SECRET + ending)
    assert opened(keys, {"passphrase": {"file": file}}).get("key") == VALUE


@pytest.mark.parametrize("other", [SECRET + b"\n\n", SECRET + b" ", b" " + SECRET, SECRET.upper(), SECRET + b"\r"])
def test_anything_else_counts(store: KeyStore, keys: Path, tmp_path: Path, other: bytes) -> None:
    assert "is wrong" in refused(keys, {"passphrase": {"file": secret(tmp_path / "other", other)}})


@pytest.mark.parametrize(
    ("data", "words"), [(b"", "is empty"), (b"\n", "is empty"), (b"x" * 70_000, "is larger than 65536 bytes")]
)
def test_a_passphrase_that_is_none(keys: Path, tmp_path: Path, data: bytes, words: str) -> None:
    file = secret(tmp_path / "passphrase", data)
    assert f"'passphrase.file': '{file}' {words}" in refused(keys, {"passphrase": {"file": file}})
    assert content(keys) == {}


def test_a_passphrase_that_is_not_there(keys: Path) -> None:
    assert "'passphrase.file': '/nix' cannot be read (No such file or directory): name the right file" in refused(
        keys, {"passphrase": {"file": "/nix"}}
    )


@pytest.mark.parametrize("kind", ["passphrase", "keyfile", "pin_file", "token"])
def test_a_secret_that_others_can_read_is_warned_of(tmp_path: Path, kind: str) -> None:
    file = secret(tmp_path / "secret", os.urandom(32))
    ways: dict[str, dict[str, Any]] = {
        "passphrase": {"passphrase": {"file": file}},
        "keyfile": {"keyfile": {"path": file}},
        "pin_file": {"pkcs11": {"module": "m", "token": "t", "key": "k", "pin_file": file}},
        "token": {"transit": {"endpoint": "https://x", "engine": "transit", "key": "k", "token": {"file": file}}},
    }
    seal = seals.of(settings(ways[kind]))
    assert seal.warnings() == []
    for wrong in (0o604, 0o640, 0o620):
        file.chmod(wrong)
        assert seal.warnings() == [
            f"others than the owner can use '{file}', which opens the key store: set its mode to 0400 or 0600"
        ]


def test_the_warnings_of_the_store_are_those_of_folder_and_seal(store: KeyStore, keys: Path, passphrase: Path) -> None:
    assert store.warnings() == []
    store.create("key", VALUE)
    (keys / "key").chmod(0o644)
    passphrase.chmod(0o644)
    assert len(store.warnings()) == 2


def test_a_credential(store: KeyStore, keys: Path, passphrase: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seal = {"credential": {"name": passphrase.name}}
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert refused(keys, seal) == (
        "the passphrase is the systemd credential 'passphrase', and this process has been given none: run it as a "
        "unit with 'LoadCredential=passphrase:/path/of/the/file'"
    )
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(passphrase.parent))
    store.create("key", VALUE)
    assert opened(keys, seal).get("key") == VALUE
    assert "'credential.name'" in refused(keys, {"credential": {"name": "other"}})
    assert "is no name of a credential" in refused(keys, {"credential": {"name": "../passphrase"}})


@pytest.mark.parametrize("form", [lambda key: key, base64.b64encode, lambda key: base64.b64encode(key) + b"\n"])
def test_a_key_file_is_bytes_or_base64(tmp_path: Path, keys: Path, form: Callable[[bytes], bytes]) -> None:
    key = os.urandom(31) + b"\n"
    raw, written = secret(tmp_path / "raw", key), secret(tmp_path / "written", form(key))
    opened(keys, {"keyfile": {"path": raw}}).create("key", VALUE)
    assert opened(keys, {"keyfile": {"path": written}}).get("key") == VALUE
    wrong = secret(tmp_path / "wrong", os.urandom(32))
    assert f"the key in '{wrong}' is another one" in refused(keys, {"keyfile": {"path": wrong}})


@pytest.mark.parametrize("data", [b"", b"short", bytes(31), bytes(33), base64.b64encode(bytes(31)), b"x" * 44])
def test_what_is_no_key_file(tmp_path: Path, keys: Path, data: bytes) -> None:
    file = secret(tmp_path / "key", data)
    words = refused(keys, {"keyfile": {"path": file}})
    assert f"'keyfile.path': '{file}' holds no key, which is 32 random bytes, or base64 of them" in words


def test_another_seal_than_that_of_the_folder(store: KeyStore, keys: Path, tmp_path: Path) -> None:
    key_file = secret(tmp_path / "key", os.urandom(32))
    assert "it is sealed with a passphrase, and the configuration names a key file" in refused(
        keys, {"keyfile": {"path": key_file}}
    )


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("path: /keys", "no seal is configured; add 'keystore.encryptedfs.passphrase' or 'keystore.encryptedfs.cred"),
        ("path: /keys, passphrase: {file: p}, keyfile: {path: k}", "more than one seal is configured: 'keystore.encr"),
        ("path: /keys, passphrase: {}", "'keystore.encryptedfs.passphrase.file' is missing"),
        ("path: /keys, transit: {endpoint: e, key: k}", "no way to log in is configured; add 'keystore.encryptedfs.tr"),
        (
            "path: /keys, pkcs11: {module: m, token: t, key: k, pin: '1', pin_file: f}",
            "more than one PIN is configured: 'keystore.encryptedfs.pkcs11.pin' and 'keystore.encryptedfs.pkcs11.pin_f",
        ),
    ],
)
def test_a_configuration_names_one_seal(tmp_path: Path, section: str, words: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        f"admin: {{identity: disabled}}\nkeystore: {{encryptedfs: {{{section}}}}}\ntls: {{key: k, cert: c}}"
    )
    with pytest.raises(ConfigError, match=re.escape(words)):
        load(file, apis={})


# --- another seal ---


def test_the_seal_is_changed_and_the_keys_stay(store: KeyStore, keys: Path, tmp_path: Path, passphrase: Path) -> None:
    store.create("key", VALUE)
    files = content(keys)
    softhsm.new_key("reseal")
    ways: list[dict[str, Any]] = [
        {"passphrase": {"file": passphrase}},
        {"keyfile": {"path": secret(tmp_path / "key", os.urandom(32))}},
        {"pkcs11": softhsm.token().section("reseal")},
        {"passphrase": {"file": secret(tmp_path / "other", b"another one")}},
        {"passphrase": {"file": passphrase}},
    ]
    for old, new in itertools.pairwise(ways):
        encryptedfs.reseal(str(keys), seals.of(settings(old)), seals.of(settings(new)))
        refused(keys, old)
        assert opened(keys, new).get("key") == VALUE
        assert mode(keys / header.FILE) == 0o600
    assert store.get("key") == VALUE
    assert {**content(keys), header.FILE: b""} == {**files, header.FILE: b""}


def test_a_seal_that_does_not_open_what_it_makes_is_not_taken(
    store: KeyStore, keys: Path, passphrase: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(keys)
    old = seals.of({"passphrase.file": str(passphrase)})
    new = seals.of({"keyfile.path": str(secret(tmp_path / "key", os.urandom(32)))})
    for another, words in ((bytes(32), "is another root key"), (bytes(31), "is no root key")):
        monkeypatch.setattr(new, "unwrap", lambda wrapped, another=another: another)
        with pytest.raises(KeyStoreError, match=words):
            encryptedfs.reseal(str(keys), old, new)
    with pytest.raises(KeyStoreError, match="it has no header"):
        encryptedfs.reseal(str(tmp_path), old, new)
    assert content(keys) == before


def test_the_seal_is_changed_by_one_at_a_time(
    store: KeyStore, keys: Path, passphrase: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = seals.of({"passphrase.file": str(passphrase)})
    first, second = (
        seals.of({"keyfile.path": str(secret(tmp_path / name, os.urandom(32)))}) for name in ("first", "second")
    )
    wrap = first.wrap

    def meanwhile(key: bytes) -> header.Wrapped:
        with pytest.raises(KeyStoreError, match="somebody else is changing its seal now"):
            encryptedfs.reseal(str(keys), old, second)
        return wrap(key)

    monkeypatch.setattr(first, "wrap", meanwhile)
    encryptedfs.reseal(str(keys), old, first)
    encryptedfs.reseal(str(keys), first, second)
    refused(keys, {"keyfile": {"path": tmp_path / "first"}})


KILLED = """
import os, signal, sys
from keswick.keystore import encryptedfs, seals
folder, passphrase, name = sys.argv[1:]

def replace(source, target):
    os.rename(source, name)
    os.kill(os.getpid(), signal.SIGKILL)

os.replace = replace
seal = seals.of({"passphrase.file": passphrase})
encryptedfs.reseal(folder, seal, seal)
"""


def test_what_a_killed_change_of_the_seal_has_left_is_removed(store: KeyStore, keys: Path, passphrase: Path) -> None:
    name = ".kes-0123456789abcdef.tmp"
    command = [sys.executable, "-c", KILLED, str(keys), str(passphrase), str(keys / name)]
    done = subprocess.run(command, env=ENVIRONMENT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert content(keys).keys() == {header.FILE, name}
    os.utime(keys / name, (0, 0))
    opened(keys, {"passphrase": {"file": passphrase}})
    assert content(keys).keys() == {header.FILE}


def test_the_seal_is_changed_by_the_owner_of_the_header(store: KeyStore, keys: Path, passphrase: Path) -> None:
    os.chown(keys / header.FILE, 12345, -1)
    seal = seals.of({"passphrase.file": str(passphrase)})
    with pytest.raises(KeyStoreError, match="its header belongs to the user 12345"):
        encryptedfs.reseal(str(keys), seal, seal)


# --- a transit key ---


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    with OpenBao(tmp_path_factory.mktemp("bao")) as bao:
        bao.enable_transit()
        bao.enable_auth("approle")
        bao.write_policy("kes", RIGHTS)
        yield bao


RIGHTS = {"transit/encrypt/kes": ("update",), "transit/decrypt/kes": ("update",)}


@pytest.fixture
def transit(bao: OpenBao) -> dict[str, Any]:
    """The section, with a role of its own that has the rights that the page names."""
    return transit_of(bao)


def transit_of(bao: OpenBao, policy: str = "kes", namespace: str = "", **changes: Any) -> dict[str, Any]:
    role = bao.new_app_role(f"role-{next(NUMBERS)}", [policy], namespace=namespace)
    made = {"endpoint": bao.endpoint, "key": "kes", "engine": "transit", "tls": {"ca": str(bao.ca_file)}}
    return {**made, "approle": {**role._asdict(), "engine": "approle"}, **changes}


NUMBERS = itertools.count()


def tokens(bao: OpenBao) -> int:
    return len(bao.call("LIST", "auth/token/accessors")["data"]["keys"])


def test_the_root_key_is_wrapped_by_the_transit_engine(bao: OpenBao, transit: dict[str, Any], keys: Path) -> None:
    before = tokens(bao)
    store = opened(keys, {"transit": transit})
    store.create("key", VALUE)
    assert tokens(bao) == before, "each token is given back"
    assert "login to vault" not in {thread.name for thread in threading.enumerate()}
    seal = json.loads((keys / header.FILE).read_text())["seal"]
    assert seal.keys() == {"kind", "key", "ciphertext"}
    assert (seal["kind"], seal["key"]) == ("transit", "kes")
    answer = bao.call("POST", "transit/decrypt/kes", {"ciphertext": seal["ciphertext"]})
    label, root = base64.b64decode(answer["data"]["plaintext"]).split(b"\x01", 1)
    assert label == b"keswick encrypted folder"
    assert RootKey(root).open("key", (keys / "key").read_bytes()) == VALUE


def test_the_engine_is_needed_at_the_start_only(tmp_path: Path, keys: Path) -> None:
    with OpenBao(tmp_path / "bao") as bao:
        bao.enable_transit()
        bao.enable_auth("approle")
        bao.write_policy("kes", RIGHTS)
        seal = {"transit": transit_of(bao)}
        store = opened(keys, seal)
        bao.seal()
        assert "is sealed: unseal it" in refused(keys, seal, KeyStoreUnreachable)
        bao.unseal()
        opened(keys, seal).close()
        bao.kill()
        store.create("key", VALUE)
        assert store.get("key") == VALUE
        assert store.status() >= 0
        assert f"the encrypted folder '{keys}': the transit engine at {bao.endpoint} cannot be reached" in refused(
            keys, seal, KeyStoreUnreachable
        )
        bao.start()
        assert opened(keys, seal).get("key") == VALUE


def test_a_rotated_transit_key_still_opens(bao: OpenBao, keys: Path) -> None:
    bao.enable_transit("rotating")
    bao.write_policy("rotating", {"rotating/*": ("update",)})
    seal = {"transit": transit_of(bao, "rotating", engine="/rotating/")}
    opened(keys, seal).create("key", VALUE)
    bao.rotate_transit("rotating")
    assert opened(keys, seal).get("key") == VALUE
    encryptedfs.reseal(str(keys), seals.of(settings(seal)), seals.of(settings(seal)))
    bao.call("POST", "rotating/keys/kes/config", {"min_decryption_version": 2})
    assert opened(keys, seal).get("key") == VALUE
    bao.rotate_transit("rotating")
    bao.call("POST", "rotating/keys/kes/config", {"min_decryption_version": 3})
    assert "whether the key still has the version that it was sealed with" in refused(keys, seal)


def test_a_folder_that_could_not_be_opened_again_is_not_made(bao: OpenBao, keys: Path) -> None:
    bao.write_policy("half", {"transit/encrypt/kes": ("update",)})
    words = refused(keys, {"transit": transit_of(bao, "half")})
    assert "lacks the right 'update' on 'transit/decrypt/kes'" in words
    assert content(keys) == {}


def test_a_login_that_is_refused(bao: OpenBao, transit: dict[str, Any], keys: Path) -> None:
    wrong = {**transit["approle"], "secret": "hush-hush"}
    words = refused(keys, {"transit": {**transit, "approle": wrong}})
    assert "refuses the login at 'auth/approle' (invalid role or secret ID): look at 'transit.approle.id' and" in words
    assert "hush" not in words


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"key": "other"}, "'update' on 'transit/encrypt/other'"),
        ({"engine": "nix"}, "'update' on 'nix/encrypt/kes'"),
        ({"tls": {}}, "its certificate is not trusted"),
        ({"tls": {"ca": "/nix"}}, "tls.ca '/nix' cannot be used"),
        ({"endpoint": "nonsense"}, "is no URL"),
        ({"namespace": "team\n"}, "'transit.namespace' can have only printable characters"),
        ({"approle": {"id": "x", "secret": "y", "engine": "nix"}}, "refuses the login at 'auth/nix'"),
    ],
)
def test_what_is_configured_wrongly(
    transit: dict[str, Any], keys: Path, change: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "pause_seconds", lambda: 0.01)
    with pytest.raises(KeyStoreError, match=re.escape(words)):
        opened(keys, {"transit": {**transit, **change}})
    assert content(keys) == {}


def test_another_transit_key_than_that_of_the_folder(bao: OpenBao, keys: Path) -> None:
    bao.call("PUT", "transit/keys/other", {})
    bao.write_policy("both", {"transit/+/+": ("update",)})
    opened(keys, {"transit": transit_of(bao, "both")})
    words = refused(keys, {"transit": transit_of(bao, "both", key="other")})
    assert "it was sealed with the key 'kes': set 'transit.key' to it" in words


def test_something_else_that_the_transit_key_has_encrypted_is_no_root_key(
    bao: OpenBao, transit: dict[str, Any], keys: Path
) -> None:
    opened(keys, {"transit": transit})
    planted = json.loads((keys / header.FILE).read_text())
    for plaintext, words in (
        (bytes(32), "is no root key"),
        (b"keswick encrypted folder\x01" + bytes(31), "is no root key"),
        (b"keswick encrypted folder\x01" + bytes(32), "is another root key"),
    ):
        body = {"plaintext": base64.b64encode(plaintext).decode()}
        planted["seal"]["ciphertext"] = bao.call("POST", "transit/encrypt/kes", body)["data"]["ciphertext"]
        (keys / header.FILE).write_text(json.dumps(planted))
        assert words in refused(keys, {"transit": transit})


def test_a_token_from_a_file(bao: OpenBao, transit: dict[str, Any], keys: Path, tmp_path: Path) -> None:
    made = bao.call("POST", "auth/token/create", {"policies": ["kes"]})["auth"]["client_token"]
    del transit["approle"]
    file = secret(tmp_path / "token", f"{made}\n".encode())
    transit["token"] = {"file": str(file)}
    opened(keys, {"transit": transit}).create("key", VALUE)
    assert opened(keys, {"transit": transit}).get("key") == VALUE  # it was not revoked
    bao.call("POST", "auth/token/revoke", {"token": made})
    assert "its token is no longer valid, or lacks the right 'update'" in refused(keys, {"transit": transit})
    file.write_text("two words")
    assert f"transit.token.file '{file}' holds no token" in refused(keys, {"transit": transit})


def test_a_namespace_and_a_login_outside_of_it(bao: OpenBao, keys: Path, tmp_path: Path) -> None:
    bao.new_namespace("team")
    bao.enable_transit(namespace="team")
    bao.enable_auth("approle", namespace="team")
    bao.write_policy("kes", RIGHTS, namespace="team")
    opened(keys, {"transit": transit_of(bao, namespace="team") | {"namespace": "team"}}).create("key", VALUE)
    bao.write_policy("team", {f"team/{path}": rights for path, rights in RIGHTS.items()})
    outside = transit_of(bao, "team", changes="")
    outside = {**outside, "namespace": "team/", "approle": {**outside["approle"], "namespace": "/"}}
    assert opened(keys, {"transit": outside}).get("key") == VALUE


def test_a_login_with_kubernetes(bao: OpenBao, transit: dict[str, Any], keys: Path, tmp_path: Path) -> None:
    with FakeKubernetes(tmp_path) as kubernetes:
        bao.enable_kubernetes(kubernetes, "kes", "kes", ["kes"])
        file = secret(tmp_path / "jwt", kubernetes.token("kes").encode())
        del transit["approle"]
        transit["kubernetes"] = {"role": "kes", "jwt": str(file), "engine": "kubernetes"}
        opened(keys, {"transit": transit}).create("key", VALUE)
        transit["kubernetes"]["jwt"] = kubernetes.token("kes")
        assert opened(keys, {"transit": transit}).get("key") == VALUE
        file.write_text("not.the.token")
        transit["kubernetes"]["jwt"] = str(file)
        assert "look at 'transit.kubernetes.role'" in refused(keys, {"transit": transit})


def test_a_certificate_of_the_client(tmp_path: Path, keys: Path) -> None:
    authority = make(name="clients", ca=True)
    ca_file, _ = authority.write(tmp_path, "clients")
    cert_file, key_file = make(name="kes", issuer=authority, eku=["client"]).write(tmp_path, "client")
    with OpenBao(tmp_path / "bao", client_ca=ca_file) as bao:
        bao.enable_transit()
        bao.enable_auth("approle")
        bao.write_policy("kes", RIGHTS)
        tls = {"ca": str(bao.ca_file)}
        refused(keys, {"transit": transit_of(bao)}, KeyStoreUnreachable)
        tls |= {"cert": str(cert_file), "key": str(key_file)}
        opened(keys, {"transit": transit_of(bao, tls=tls)}).create("key", VALUE)


@pytest.mark.parametrize(
    ("fault", "kind"), [("hanging", KeyStoreUnreachable), ("garbage", KeyStoreError), ("empty", KeyStoreError)]
)
def test_an_engine_in_trouble_is_told_in_time(
    bao: OpenBao, keys: Path, monkeypatch: pytest.MonkeyPatch, fault: str, kind: type[KeyStoreError]
) -> None:
    monkeypatch.setattr(http, "pause_seconds", lambda: 0.01)
    with FaultProxy(bao.plain_port) as proxy:
        seal = {"transit": transit_of(bao, endpoint=proxy.endpoint)}
        opened(keys, seal).create("key", VALUE)
        with proxy.fault(fault), patch.object(http, "CALL_SECONDS", 1.0):
            refused(keys, seal, kind)
        assert opened(keys, seal).get("key") == VALUE


def test_an_engine_that_hangs_after_the_login_is_told_in_time(bao: OpenBao, keys: Path) -> None:
    """To give the token back then takes a second more at most."""
    with FaultProxy(bao.plain_port) as proxy:
        seal = {"transit": transit_of(bao, endpoint=proxy.endpoint)}
        opened(keys, seal)
        proxy.choose = lambda request: "hanging" if "decrypt" in request.path or "revoke" in request.path else None
        begin = time.monotonic()
        with patch.object(http, "CALL_SECONDS", 1.0):
            assert "did not answer in time" in refused(keys, seal, KeyStoreUnreachable)
        assert time.monotonic() - begin < 4
        assert proxy.recorded[-1].path.endswith("revoke-self")
        wait_until(lambda: "login to vault" not in {thread.name for thread in threading.enumerate()})


# --- a token ---


@pytest.fixture
def label() -> str:
    """Of a key on the token, for one test."""
    label = f"key-{next(NUMBERS)}"
    softhsm.new_key(label)
    return label


def test_the_root_key_is_wrapped_on_the_token(keys: Path, label: str) -> None:
    store = opened(keys, {"pkcs11": softhsm.token().section(label)})
    store.create("key", VALUE)
    seal = json.loads((keys / header.FILE).read_text())["seal"]
    assert seal.keys() == {"kind", "key", "nonce", "root_key"}
    assert (seal["kind"], seal["key"]) == ("pkcs11", label)
    assert opened(keys, {"pkcs11": softhsm.token().section(label)}).get("key") == VALUE


def test_a_pin_from_a_file(keys: Path, label: str, tmp_path: Path) -> None:
    section_ = softhsm.token().section(label)
    file = secret(tmp_path / "pin", f"{section_.pop('pin')}\n".encode())
    opened(keys, {"pkcs11": {**section_, "pin_file": file}}).create("key", VALUE)
    file.write_bytes(b"\xff\xfe")
    assert f"'pkcs11.pin_file': '{file}' holds no text" in refused(keys, {"pkcs11": {**section_, "pin_file": file}})
    assert "or it is shown after a login only: set 'pkcs11.pin_file'" in refused(keys, {"pkcs11": section_})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pin": "99999999"}, "the token 'kes' refuses (PinIncorrect): the PIN is wrong"),
        ({"token": "nix"}, "the token 'nix' refuses (NoSuchToken): there is no token of this label"),
        ({"key": "nix"}, "the token 'kes' has no AES key 'nix': look at 'pkcs11.key'"),
        ({"module": "/nix.so"}, "'pkcs11.module': there is no library '/nix.so'"),
        ({"module": "/etc/passwd"}, "'pkcs11.module': '/etc/passwd' cannot be used"),
    ],
)
def test_what_is_wrong_with_a_token(keys: Path, label: str, change: dict[str, str], words: str) -> None:
    right = {"pkcs11": softhsm.token().section(label)}
    told = refused(keys, {"pkcs11": {**softhsm.token().section(label), **change}})
    assert words in told
    assert "99999999" not in told
    assert content(keys) == {}
    opened(keys, right).create("key", VALUE)


def test_another_key_on_the_token(keys: Path, label: str) -> None:
    opened(keys, {"pkcs11": softhsm.token().section(label)})
    softhsm.new_key("another")
    words = refused(keys, {"pkcs11": softhsm.token().section("another")})
    assert "the key 'another' on the token 'kes' does not open it" in words
    assert f"which was called '{label}'" in words


def test_keys_that_are_no_good(keys: Path) -> None:
    import pkcs11

    softhsm.new_key("only-wraps", capabilities=pkcs11.MechanismFlag.WRAP)
    assert "must be allowed to encrypt and to decrypt" in refused(
        keys, {"pkcs11": softhsm.token().section("only-wraps")}
    )
    softhsm.new_key("short", 128)
    assert "has 128 bits, and it takes 256" in refused(keys, {"pkcs11": softhsm.token().section("short")})
    for _ in range(2):
        softhsm.new_key("twins")
    assert "has several AES keys 'twins'" in refused(keys, {"pkcs11": softhsm.token().section("twins")})


def test_a_missing_package_is_named_with_what_installs_it(
    keys: Path, label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pkcs11", None)
    assert "pip install 'keswick[pkcs11]'" in refused(keys, {"pkcs11": softhsm.token().section(label)})


def test_many_folders_on_one_token_are_opened_at_once(tmp_path: Path, label: str) -> None:
    """A process logs in to a token once, for all: so one waits for the other."""
    seal = {"pkcs11": softhsm.token().section(label)}
    with ThreadPoolExecutor(8) as pool:
        stores = list(pool.map(lambda number: opened(tmp_path / f"keys-{number}", seal), range(8)))
    for store in stores:
        store.create("key", VALUE)
        assert store.get("key") == VALUE


# --- the page, in real servers ---

PAGE = DOCS / "keystore-encrypted-folder.md"


class Site:
    """A machine that looks like the one on the page: its paths are in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("etc", "lib"):
            (folder / name).mkdir()
        (folder / "walk").mkdir()
        self.walker = Walker(folder / "walk")

    def here(self, text: str) -> str:
        return text.replace("/etc/kes", f"{self.folder}/etc").replace("/var/lib/kes", f"{self.folder}/lib")

    def blocks(self, title: str, language: str) -> list[str]:
        return [self.here(text) for found, text in BLOCK.findall(section(PAGE, title)) if found == language]

    def serve(self, title: str, *changes: tuple[str, str], **environment: str) -> None:
        """Start a server as that section shows, make a key, and have the next server find it."""
        (text,) = self.blocks(title, "yaml")
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        keystore = {"fs": None, **yaml.safe_load(text)["keystore"]}
        for restart in (False, True):
            with start_server(self.folder / "server", keystore=keystore, environment=environment) as server:
                assert f"Encrypted folder: {self.folder}/lib/keys (sealed with a" in server.stdout
                assert "others than the owner" not in server.stdout + server.stderr
                with server.client() as client:
                    if not restart:
                        client.create_key("my-key")
                    sealed = client.encrypt("my-key", b"hello")
                    assert client.decrypt("my-key", sealed) == b"hello"
        assert content(self.folder / "lib" / "keys").keys() == {header.FILE, "my-key"}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.mark.parametrize("title", ["A passphrase", "A key file"])
def test_a_server_with_a_secret_in_a_file(site: Site, title: str) -> None:
    for lines in site.blocks(title, "sh"):
        site.walker.type(lines)
    site.serve(title)


def test_a_server_with_a_credential(site: Site) -> None:
    for lines in site.blocks("A passphrase", "sh"):
        site.walker.type(lines)
    (unit,) = site.blocks("A systemd credential", "ini")
    name, path = unit.strip().rpartition("LoadCredential=")[2].split(":")
    credentials = site.folder / "credentials"
    credentials.mkdir()
    shutil.copy(path, credentials / name)
    site.serve("A systemd credential", CREDENTIALS_DIRECTORY=str(credentials))


def test_a_server_with_a_transit_key(site: Site) -> None:
    with OpenBao(site.folder / "bao") as bao:
        site.walker.add_program("bao", f'exec "{Path(sys.executable).with_name("bao")}" "$@"')
        programs = {"PATH": f"{site.walker.folder}/bin:{os.environ['PATH']}"}
        site.walker.environment |= {"BAO_ADDR": bao.plain_endpoint, "BAO_TOKEN": bao.root_token, **programs}
        (lines,) = site.blocks("A transit key", "sh")
        site.walker.type(lines)
        shutil.copy(bao.ca_file, site.folder / "etc" / "vault-ca.crt")
        exported = {name: site.walker.environment[name] for name in ("VAULT_APPROLE_ID", "VAULT_APPROLE_SECRET")}
        site.serve("A transit key", ("https://127.0.0.1:8200", bao.endpoint), **exported)


def test_a_server_with_a_token(site: Site) -> None:
    tokens_folder = site.folder / "tokens"
    tokens_folder.mkdir()
    config = site.folder / "softhsm2.conf"
    config.write_text(f"directories.tokendir = {tokens_folder}\nlog.level = ERROR\n")
    site.walker.environment["SOFTHSM2_CONF"] = str(config)
    site.walker.add_program("python3", f'exec "{sys.executable}" "$@"')
    site.walker.environment["PATH"] = f"{site.walker.folder}/bin:{os.environ['PATH']}"
    module = ("/usr/lib/softhsm/libsofthsm2.so", softhsm.token().module)
    (lines,) = site.blocks("A token", "sh")
    site.walker.type(lines.replace(*module))
    site.serve("A token", module, SOFTHSM2_CONF=str(config))


def test_a_server_tells_of_a_damaged_key_and_serves_the_others(tmp_path: Path) -> None:
    passphrase = secret(tmp_path / "passphrase", SECRET)
    keystore = {"fs": None, "encryptedfs": {"path": str(tmp_path / "keys"), "passphrase": {"file": str(passphrase)}}}
    with start_server(
        tmp_path / "server", keystore=keystore, cache={"expiry": {"any": "1s", "unused": "1s"}}
    ) as server:
        with server.client() as client:
            client.create_key("good")
            client.create_key("bad")
        path = tmp_path / "keys" / "bad"
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    passphrase.chmod(0o644)
    with start_server(tmp_path / "server", keystore=keystore) as server, server.client() as client:
        server.wait_for(f"others than the owner can use '{passphrase}'", stream="stderr")
        client.encrypt("good", b"hello")
        with pytest.raises(Exception, match="failed to read key"):
            client.encrypt("bad", b"hello")
        server.wait_for(f"'{path}' has been changed", stream="stderr")


def test_a_server_whose_folder_is_unmounted_serves_what_it_has_cached(tmp_path: Path) -> None:
    """An empty folder is left in its place."""
    passphrase, keys = secret(tmp_path / "passphrase", SECRET), tmp_path / "keys"
    keystore = {"fs": None, "encryptedfs": {"path": str(keys), "passphrase": {"file": str(passphrase)}}}
    cache = {"expiry": {"any": "1s", "unused": "1s", "offline": "60s"}}
    with start_server(tmp_path / "server", keystore=keystore, cache=cache) as server, server.client() as client:
        client.create_key("key")
        sealed = client.encrypt("key", b"hello")
        keys.rename(tmp_path / "elsewhere")
        keys.mkdir()
        with pytest.raises(Exception, match="failed to list keys"):
            list(client.list_keys())
        with pytest.raises(Exception, match="failed to read key"):
            client.describe_key("never-used")
        server.wait_for("is away, and an empty folder is in its place", stream="stderr")
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:  # longer than the key lives without an outage
            assert client.decrypt("key", sealed) == b"hello"
        keys.rmdir()
        (tmp_path / "elsewhere").rename(keys)
        server.wait_for("the key store is back", stream="stderr")
        client.create_key("another")


def test_a_server_does_not_start_with_a_wrong_passphrase(tmp_path: Path) -> None:
    keystore = {"path": str(tmp_path / "keys"), "passphrase": {"file": str(secret(tmp_path / "one", SECRET))}}
    opened(tmp_path / "keys", {"passphrase": keystore["passphrase"]})
    keystore["passphrase"] = {"file": str(secret(tmp_path / "two", b"another"))}
    with (
        pytest.raises(RuntimeError, match=r"the passphrase in '.*/two' is wrong"),
        start_server(tmp_path / "server", keystore={"fs": None, "encryptedfs": keystore}),
    ):
        pass


def test_tls_goes_on_after_a_token_was_used(tmp_path: Path) -> None:
    """SoftHSM leaves an error in OpenSSL's queue when it is loaded, which is once for each process."""
    softhsm.new_key("before-tls")
    section_ = softhsm.token().section("before-tls")
    authority = make("p256", ca=True)
    script = (
        "import ssl, sys, json\n"
        "from keswick.keystore import encryptedfs\n"
        "encryptedfs.open(json.loads(sys.argv[1]))\n"
        "ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=bytes.fromhex(sys.argv[2]))"
    )
    flat = {"path": str(tmp_path / "keys"), **{f"pkcs11.{name}": text for name, text in section_.items()}}
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(flat), authority.cert_der.hex()],
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
