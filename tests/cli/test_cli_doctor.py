import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.certificates import make
from support.cli import kes, kes_on_terminal
from support.server import RunningServer, start_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with start_server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """That of a server that was set up with `kes init`."""
    assert kes("init", str(tmp_path / "kes"), "--address", "127.0.0.1:0").code == 0
    return tmp_path / "kes" / "config.yaml"


def test_a_folder_that_kes_init_made(config: Path) -> None:
    result = kes("doctor", "--config", str(config), "--write")
    assert (result.code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == f"ok      configuration: '{config}' can be used"
    assert any(line.startswith("ok      key store write: a key could be created") for line in lines)
    assert all(line[:8] in ("ok      ", "warning ") for line in lines)


def test_a_failure(config: Path) -> None:
    (config.parent / "server.key").write_bytes(make("p256").key_pem)
    result = kes("doctor", "--config", str(config))
    assert result.code == 1
    assert [line for line in result.stdout.splitlines() if line.startswith("FAILED  tls pair: ")]
    assert "ok      key store: it answers" in result.stdout


def test_json_is_one_line(config: Path) -> None:
    good = kes("doctor", "--config", str(config), "--json")
    assert good.code == 0
    assert good.stdout.count("\n") == 1
    report = json.loads(good.stdout)
    assert (report["ok"], report["failures"]) == (True, 0)
    assert {"check": "configuration", "result": "ok", "text": f"'{config}' can be used"} in report["findings"]
    config.unlink()
    bad = kes("doctor", "--config", str(config), "--json")
    assert (bad.code, json.loads(bad.stdout)["ok"], json.loads(bad.stdout)["failures"]) == (1, False, 1)


def test_an_identity_and_a_path(config: Path) -> None:
    result = kes("doctor", "--config", str(config), "--identity", "a" * 64, "--path", "/v1/key/create/my-key")
    assert result.code == 1
    assert "FAILED  rights: this identity has no policy" in result.stdout


def test_a_running_server(server: RunningServer) -> None:
    result = kes("doctor", env=server.environment)
    assert (result.code, result.stderr) == (0, "")
    assert "ok      server ready: it is ready" in result.stdout
    assert server.api_key not in result.stdout
    nobody = kes("doctor", env={**server.environment, "KES_SERVER": "127.0.0.1:1"})
    assert nobody.code == 1
    assert "FAILED  server connection: 127.0.0.1 port 1: Connection refused" in nobody.stdout


def test_on_a_terminal_the_results_have_colours(server: RunningServer) -> None:
    code, shown = kes_on_terminal("doctor", env=server.environment)
    assert code == 0
    assert "\x1b[32mok     \x1b[0m server ready: " in shown
    _, plain = kes_on_terminal("doctor", env={**server.environment, "NO_COLOR": "1"})
    assert "\x1b" not in plain


def test_the_password_of_a_private_key(server: RunningServer, tmp_path: Path) -> None:
    key, cert = str(tmp_path / "key"), str(tmp_path / "cert")
    answers = [("Enter password for private key:", "open sesame"), ("Confirm password for private key:", "open sesame")]
    made = kes_on_terminal("identity", "new", "--key", key, "--cert", cert, "--encrypt", answers=answers)
    assert made[0] == 0, made[1]
    environment = {**server.environment, "KES_API_KEY": "", "KES_CLIENT_KEY": key, "KES_CLIENT_CERT": cert}
    code, shown = kes_on_terminal("doctor", env=environment, answers=answers[:1])
    assert code == 1  # it has no policy
    assert shown.count("Enter password for private key:") == 1
    assert "which has no policy" in shown
    assert "a password is needed" in kes("doctor", env=environment).stdout


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--identity", "a" * 64), "'--identity' needs '--config FILE'"),
        (("--write",), "'--write' needs '--config FILE'"),
        (("x",), "too many arguments"),
    ],
)
def test_errors(arguments: tuple[str, ...], error: str) -> None:
    assert kes("doctor", *arguments) == (1, "", f"Error: {error}. See 'kes doctor --help'\n")
