"""What the flags of `kes server` do beside the configuration file, those of all releases."""

import json
import os
import resource
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from keswick.identity import APIKey
from support.api import Caller, new_pair
from support.cli import COMMAND, clean_environment, kes
from support.forms import form_of, start_form, write_form
from support.server import running
from support.transport import wait_until

SOMEBODY = "0" * 63 + "1"
RELEASES = ("v0.5.0", "v0.13.4", "v0.17.6", "2023-04-18T19-36-09Z", "2025-03-12T09-35-18Z")


def _refused(*arguments: str) -> str:
    """Why a server does not start: one line."""
    done = kes("server", *arguments)
    assert (done.code, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


# --- --check ---


@pytest.mark.parametrize(
    ("release", "changes", "told"),
    [
        ("v0.13.4", {"address": None}, ["'address' is not set: the server listens on every address of this machine"]),
        (
            *("2025-03-12T09-35-18Z", {"log": None}),
            ["'tls.auth' is not set: certificates of clients are not verified", "'log.audit' is not set: requests are"],
        ),
        ("2025-03-12T09-35-18Z", {"log": None, "compatibility": "2023"}, []),
    ],
)
def test_a_check_tells_what_others_understood_where_nothing_is_said(
    tmp_path: Path, release: str, changes: dict[str, Any], told: list[str]
) -> None:
    config = write_form(release, tmp_path, admin=SOMEBODY, **changes)
    done = kes("server", "--config", str(config), "--check")
    *notes, last = done.stdout.splitlines()
    assert (done.code, done.stderr, last) == (0, "", "The configuration is valid.")
    about = [note for note in notes if "is not set" in note]
    assert len(about) == len(told)
    assert all(note.startswith(f"Note: {words}") for note, words in zip(about, told, strict=True))


# --- --root ---


@pytest.mark.parametrize("release", RELEASES)
def test_root_stands_where_the_file_names_no_admin(tmp_path: Path, release: str) -> None:
    pair = new_pair()
    identity = Caller(0, pair, tmp_path).identity
    config = write_form(release, tmp_path, admin=None)
    missing = _refused("--config", str(config))
    assert "admin.identity" in missing or "--root IDENTITY" in missing
    for flags in (["--root", identity], [f"-root={identity}"]):
        with start_form(config, tmp_path, *flags, "--auth", "off") as server:
            assert server.line("Admin").endswith(identity)
            assert Caller(server.port, pair, tmp_path).call("GET", "/v1/metrics").status == 200


@pytest.mark.parametrize("release", RELEASES)
def test_root_and_the_file_must_agree(tmp_path: Path, release: str) -> None:
    config = write_form(release, tmp_path, admin="a-word")
    key = "admin.identity" if form_of(release)[0] == "2025" else "root"
    line = _refused("--config", str(config), "--root", SOMEBODY)
    assert f"'--root {SOMEBODY}' contradicts '{key}: a-word'" in line
    with start_form(config, tmp_path, "--root", "a-word", "--auth", "off") as server:
        assert "<disabled>" in server.line("Admin")
        write_form(release, tmp_path, admin="another")
        server.process.send_signal(1)
        server.wait_for("contradicts", stream="stderr")


def test_no_admin_by_flag_and_by_file(tmp_path: Path) -> None:
    for admin, flags in ((None, ["--root=_"]), (None, ["--root=disabled"]), ("_", [])):
        config = write_form("v0.13.4", tmp_path, admin=admin)
        with start_form(config, tmp_path, *flags, "--auth", "off") as server:
            assert "<disabled>" in server.line("Admin")
            answer = Caller(server.port, new_pair(), tmp_path).call("GET", "/v1/metrics")
            assert answer.status == 403


@pytest.mark.parametrize("value", ["", APIKey.generate().text])
def test_root_is_an_identity(tmp_path: Path, value: str) -> None:
    line = _refused("--config", str(write_form("v0.13.4", tmp_path, admin=None)), "--root", value)
    assert "give an identity" in line
    assert not value or value not in line


def test_the_root_of_the_flag_may_not_stand_in_a_policy(tmp_path: Path) -> None:
    config = write_form("v0.13.4", tmp_path, admin=None, apps=(SOMEBODY,))
    line = _refused("--config", str(config), "--root", SOMEBODY)
    assert f"the policy 'app' contains the admin of '--root', who needs no policy: '{SOMEBODY}'" in line


# --- certificates ---


@pytest.mark.parametrize("names", [("--key", "--cert"), ("--tls-key", "--tls-cert"), ("-key", "-cert")])
@pytest.mark.parametrize("release", ["v0.5.0", "v0.13.4", "2025-03-12T09-35-18Z"])
def test_key_and_certificate_by_flags(tmp_path: Path, release: str, names: tuple[str, str]) -> None:
    config = write_form(release, tmp_path, admin="_", tls=None)
    assert "tls.key" in _refused("--config", str(config))
    assert "tls.cert" in _refused("--config", str(config), "--key", "k")
    flags = [names[0], str(tmp_path / "server.key"), names[1], str(tmp_path / "server.crt"), "--auth=off"]
    with start_form(config, tmp_path, *flags) as server:
        assert Caller(server.port, new_pair(), tmp_path).call("GET", "/version").status == 200


def test_they_win_over_the_file(tmp_path: Path) -> None:
    tls = {"key": "/nowhere", "cert": "/nowhere"}
    config = write_form("v0.13.4", tmp_path, admin="_", tls=tls, address="192.0.2.1:1")
    key, cert = str(tmp_path / "server.key"), str(tmp_path / "server.crt")
    flags = ["--key", key, "--cert", cert, "--addr", "127.0.0.1:0", "--auth", "off"]
    with start_form(config, tmp_path, *flags) as server:
        assert Caller(server.port, new_pair(), tmp_path).call("GET", "/version").status == 200
    assert "give one of them" in _refused("--config", str(config), "--key", key, "--tls-key", "other")


# --- --auth ---


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--auth", "maybe"], "invalid option for --auth: 'maybe'; write 'on' or 'off'"),
        (["--mtls-auth", "off"], "invalid option for --mtls-auth: 'off'; write '--auth on' or '--auth off'"),
        (["--mtls-auth", "ignore", "--auth", "on"], "'--mtls-auth ignore' means '--auth off'"),
    ],
)
def test_auth_that_says_nothing(tmp_path: Path, flags: list[str], message: str) -> None:
    assert message in _refused("--config", str(write_form("v0.13.4", tmp_path, admin="_")), *flags)


@pytest.mark.parametrize(("said", "flag"), [("on", "off"), ("off", "on")])
def test_auth_that_contradicts_the_file(tmp_path: Path, said: str, flag: str) -> None:
    write_form("2023-04-18T19-36-09Z", tmp_path, admin="_")
    tls = {"key": str(tmp_path / "server.key"), "cert": str(tmp_path / "server.crt"), "auth": said}
    config = write_form("2023-04-18T19-36-09Z", tmp_path, admin="_", tls=tls)
    assert f"'--auth {flag}' contradicts 'tls.auth: {said}'" in _refused("--config", str(config), "--auth", flag)


# --- without a file ---


def test_without_a_file_there_is_no_key_store(tmp_path: Path) -> None:
    write_form("v0.13.4", tmp_path, admin="_")
    key, cert = str(tmp_path / "server.key"), str(tmp_path / "server.crt")
    line = _refused("--root", SOMEBODY, "--key", key, "--cert", cert)
    assert "'keystore'" in line
    assert "'--dev'" in line


@pytest.mark.parametrize("flag", ["root", "key", "cert", "auth"])
def test_development_mode_has_its_own(flag: str) -> None:
    assert f"'--{flag}' flag is not supported in development mode" in _refused("--dev", f"--{flag}", "off")


def test_development_mode_has_to_show_its_key() -> None:
    assert "would hide the API key" in _refused("--dev", "--quiet")


# --- the process ---


def test_memory_is_locked_or_the_server_does_not_start(tmp_path: Path) -> None:
    config = str(write_form("v0.13.4", tmp_path, admin="_"))
    arguments = [*COMMAND, "server", "--config", config, "--auth", "off", "--mlock"]
    if _may_lock():
        with running(arguments, tmp_path, APIKey.generate(), command=[]) as server:
            assert server.line("MLock").endswith("enabled")
    # As in a container without the capability.
    limited = ["setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock", "--"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*limited, *arguments],
        env=clean_environment(),
        capture_output=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536)),
    )
    assert done.returncode == 1
    assert b"--mlock: memory cannot be locked" in done.stderr
    assert b"CAP_IPC_LOCK" in done.stderr


def _may_lock() -> bool:
    script = "import sys; from keswick import _native; sys.exit(not _native.lock_memory())"
    return subprocess.run([*COMMAND[:1], "-c", script], env=clean_environment(), check=False).returncode == 0


@pytest.mark.parametrize("flag", ["-q", "--quiet"])
def test_quiet_leaves_the_audit_log_and_warnings(tmp_path: Path, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    log = {"error": "on", "audit": "on"}
    config = write_form("v0.13.4", tmp_path, admin="A" * 64, log=log, address=f"127.0.0.1:{port}")
    with subprocess.Popen(
        [*COMMAND, "server", "--config", str(config), "--auth", "off", flag],
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert b"matches nobody" in process.stderr.readline()
        wait_until(lambda: _answers(port, tmp_path))
        process.send_signal(signal.SIGHUP)
        said = process.stderr.readline() + process.stderr.readline()
        assert b"SIGHUP signal received" in said
        assert b"matches nobody" in said  # the reload is done
        process.terminate()
        stdout, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert [json.loads(line)["request"]["path"] for line in stdout.splitlines()] == ["/version"]


def _answers(port: int, folder: Path) -> bool:
    try:
        return Caller(port, new_pair(), folder).call("GET", "/version").status == 200
    except OSError:
        return False
