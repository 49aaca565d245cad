import builtins
import re
from pathlib import Path

import pytest

from keswick.config import Address, ConfigError, load, parse_address
from keswick.keystore import StoreSection

SAMPLE = Path(__file__).parents[2] / "deploy" / "config.yaml"


def test_the_sample_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KES_ADMIN_IDENTITY", "disabled")
    monkeypatch.setenv("STORAGE_IDENTITY", "storage")

    config = load(SAMPLE, apis={"/v1/ready": True})

    assert config.warnings == ()
    assert config.admin == "disabled"
    assert config.policies["storage"].identities == ("storage",)
    assert config.keystore == StoreSection("fs", {"path": "/var/lib/kes/keys"})


def test_what_the_sample_has_commented_out_is_valid_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = re.sub(r"^( *)# (?= *(?:[a-z_]+:|- ))", r"\1", SAMPLE.read_text(), flags=re.MULTILINE)
    text = text.replace("  fs:\n    path: /var/lib/kes/keys\n", "")  # there can be one store only
    for name in re.findall(r"\$\{(\w{5,})\}", text):
        monkeypatch.setenv(name, name)
    (tmp_path / "config.yml").write_text(text)

    config = load(tmp_path / "config.yml", apis={"/v1/ready": True})

    assert config.warnings == ()
    assert config.tls is not None
    assert config.tls.proxy.identities == ("KES_PROXY_IDENTITY",)
    assert config.tls.ca == "/etc/kes/clients.crt"
    assert config.log.audit_skip == ("/v1/ready", "/v1/metrics")
    assert config.metrics is not None
    assert config.metrics.address == Address("127.0.0.1", 7374)
    assert isinstance(config.keystore, StoreSection)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/nowhere/config.yml", "/nowhere/config.yml: there is no such file"),
        ("/", "/: this is a folder, not a file"),
        ("/proc/self/mem", "/proc/self/mem: the file cannot be read: "),
        ("a\0b", "the file cannot be read: embedded null byte"),
    ],
)
def test_files_that_cannot_be_read(path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(path, apis={})


def test_a_file_without_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(builtins, "open", refuse)
    with pytest.raises(ConfigError, match=r"config\.yml: no permission to read this file"):
        load("config.yml", apis={})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a: 1\nb: \xff\n", "line 2: the file is not UTF-8 text"),
        ("a: b".encode("utf-16"), "line 1: the file is not UTF-8 text"),
        (b"#" * (32 << 20) + b"\n", "the file is larger than 33554432 bytes"),
    ],
)
def test_files_that_are_no_text(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "config.yml").write_bytes(data)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path / "config.yml", apis={})


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "config.yml").write_text(
        "admin: {identity: a}\ntls: {key: k, cert: c}\nkeystore: {fs: {path: p}}\n", encoding="utf-8-sig"
    )
    assert load(tmp_path / "config.yml", apis={}).admin == "a"


@pytest.mark.parametrize(
    ("name", "text", "form"),
    [
        ("config.yml", "root: x\nkeys: {fs: {path: p}}\npolicy: {p: {paths: [/v1/*]}}", "2021"),
        ("config.yml", "keys: {fs: {path: p}}", "2021"),
        ("config.yml", "root: x\nkeystore: {fs: {path: p}}", "transitional"),
        ("config.yml", "root: x\nkeys: [{name: k}]\nkeystore: {fs: {path: p}}", "transitional"),
        ("config.yml", "policy: {p: {paths: [/v1/*]}}\nkeystore: {fs: {path: p}}", "transitional"),
        ("config.yml", "log: {error: {file: [/dev/stderr]}}\nkeystore: {fs: {path: p}}", "2020"),
        ("config.yml", "root: x\nkeystore: {fs: {path: p}, vault: {name: ''}}", "2020"),
        ("config.toml", "address = '0.0.0.0:7373'\n[keystore.fs]\npath = 'p'", "2020"),
        ("config", "address = '0.0.0.0:7373'\n[fs]\npath = 'p'", "2020"),
        ("config", "root = 'x'\nkeystore.fs.path = 'p'", "2020"),
        ("config.yml", "admin: {identity: x}\ntls: {key: k, cert: c}\nkeystore: {fs: {path: p}}", "2025"),
    ],
)
def test_a_form_is_known_by_its_keys(tmp_path: Path, name: str, text: str, form: str) -> None:
    (tmp_path / name).write_text(text)
    assert load(tmp_path / name, apis={}).form == form


def test_the_address_of_a_flag() -> None:
    assert parse_address(":80", "--addr") == Address("", 80)
    with pytest.raises(ConfigError, match="--addr: the host of an address must be an IP address"):
        parse_address("1.2.3", "--addr")
