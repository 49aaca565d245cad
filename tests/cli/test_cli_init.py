"""`kes init FOLDER`: everything a first server needs, whole or not at all."""

import fcntl
import os
import stat
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from cryptography import x509

from keswick.identity import APIKey
from support.cli import COMMAND, clean_environment, kes

FILES = {"config.yaml": 0o644, "server.key": 0o600, "server.crt": 0o644, "admin.apikey": 0o600, "keys": 0o700}


def modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


def test_a_folder_with_everything(tmp_path: Path) -> None:
    folder = tmp_path / "my kes"
    result = kes("init", str(folder))
    assert (result.code, result.stderr) == (0, "")
    assert modes(folder) == FILES
    config = yaml.safe_load((folder / "config.yaml").read_text())
    api_key = APIKey.parse((folder / "admin.apikey").read_text())
    assert config["address"] == "127.0.0.1:7373"
    assert config["admin"] == {"identity": api_key.identity}
    assert config["tls"] == {"key": str(folder / "server.key"), "cert": str(folder / "server.crt"), "auth": False}
    assert config["keystore"] == {"fs": {"path": str(folder / "keys")}}

    certificate = x509.load_pem_x509_certificate((folder / "server.crt").read_bytes())
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc == timedelta(days=365)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "localhost" in names.get_values_for_type(x509.DNSName)
    assert {"127.0.0.1", "::1"} <= {str(ip) for ip in names.get_values_for_type(x509.IPAddress)}

    assert f"kes server --config '{folder}/config.yaml'" in result.stdout
    assert "export KES_SERVER=https://127.0.0.1:7373" in result.stdout
    assert api_key.text not in result.stdout
    checked = kes("server", "--check", "--config", str(folder / "config.yaml"))
    assert checked == (0, "The configuration is valid.\n", "")


def test_the_printed_lines_start_a_server_and_call_it(tmp_path: Path) -> None:
    folder = tmp_path / "my kes"
    lines = kes("init", str(folder), "--address", "127.0.0.1:0").stdout.splitlines()
    start = next(line.strip() for line in lines if line.startswith("    kes server"))
    call = [line.strip() for line in lines if line.startswith(("    export", "    kes key"))]
    script = "\n".join(
        [
            'kes() { "$PYTHON" -m keswick "$@"; }',
            'exec_kes() { exec "$PYTHON" -m keswick "$@"; }',
            f"exec_{start} >'{tmp_path}/out' 2>'{tmp_path}/err' &",
            "server=$!",
            'trap "kill $server" EXIT',
            f"until grep -q 'up and running' '{tmp_path}/out'; do kill -0 $server || exit 9; sleep 0.02; done",
            *call[:1],
            f"export KES_SERVER=$(grep -o 'https://[0-9.:]*' '{tmp_path}/out' | head -n 1)",  # port 0 was asked for
            *call[1:],
            "kes key ls",
        ]
    )
    done = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        env={**clean_environment(), "PYTHON": COMMAND[0]},
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "Key\nmy-key\n"), done.stderr
    assert len(list((folder / "keys").iterdir())) == 1


def test_names_and_addresses_go_into_the_certificate(tmp_path: Path) -> None:
    result = kes("init", str(tmp_path), "--address", "0.0.0.0:9000", "--dns", "kes.example", "--ip=10.0.0.7")
    assert "KES_SERVER=https://127.0.0.1:9000\n" in result.stdout
    certificate = x509.load_pem_x509_certificate((tmp_path / "server.crt").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "kes.example" in names.get_values_for_type(x509.DNSName)
    ips = {str(ip) for ip in names.get_values_for_type(x509.IPAddress)}
    assert "10.0.0.7" in ips
    assert "0.0.0.0" not in ips


@pytest.mark.parametrize(
    ("address", "endpoint"),
    [("[::1]:9000", "https://[::1]:9000"), (":9000", "https://127.0.0.1:9000"), ("kes.lan:1", "https://kes.lan:1")],
)
def test_every_form_of_an_address(tmp_path: Path, address: str, endpoint: str) -> None:
    assert f"KES_SERVER={endpoint}\n" in kes("init", str(tmp_path), "--address", address).stdout
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["address"] == address


def test_a_second_run_says_that_all_is_there(tmp_path: Path) -> None:
    kes("init", str(tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    result = kes("init", str(tmp_path))
    assert (result.code, result.stdout) == (1, "")
    assert "is set up already: start the server with 'kes server --config" in result.stderr
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    result = kes("init", str(tmp_path))
    assert result.code == 1
    assert f"'{tmp_path / name}' already exists" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_what_a_killed_run_left_is_undone_by_the_next(tmp_path: Path) -> None:
    """As if the run was cut off after the key folder and one file had their final names."""
    staging = tmp_path / ".kes-init"
    staging.mkdir()
    for name in ("server.key", "server.crt"):
        (staging / name).write_text("half")
    os.link(staging / "server.key", tmp_path / "server.key")
    (tmp_path / "keys").mkdir()
    assert kes("init", str(tmp_path)).code == 0
    assert modes(tmp_path) == FILES
    assert (tmp_path / "server.key").read_text() != "half"


_KILLED_EVERYWHERE = """
import os, shutil, signal, sys
from pathlib import Path
from keswick.cli import main

calls, last = 0, None

def killer(event, arguments):
    global calls, last
    if last is not None and event.startswith(("open", "os.", "shutil.")):
        calls += 1
        if calls > last:
            last = None
            os.kill(os.getpid(), signal.SIGKILL)

def init(folder, last_call=None):
    global last
    child = os.fork()
    if not child:
        last = last_call
        os._exit(main(["init", str(folder)]))
    return os.waitpid(child, 0)[1]

sys.addaudithook(killer)
main(["init", "imports-everything"])
for number in range(1000):
    folder = Path(str(number))
    status = init(folder, number)
    if folder.exists():
        shutil.copytree(folder, f"{number}-after-first", copy_function=os.link)
    print(number, status, os.waitstatus_to_exitcode(init(folder)), file=sys.__stdout__, flush=True)
    if status == 0:
        break
"""


def test_a_run_may_be_killed_anywhere(tmp_path: Path) -> None:
    """A run that is killed before its first call, one before its second, and so on; each followed by a whole one."""
    done = subprocess.run(
        [COMMAND[0], "-c", _KILLED_EVERYWHERE],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    runs = [line.split() for line in done.stdout.splitlines() if line[:1].isdigit()]
    assert len(runs) > 25
    assert done.stderr.count("is set up already") == sum(code == "1" for _, _, code in runs) > 5
    for number, _, code in runs:
        folder, first = tmp_path / number, tmp_path / f"{number}-after-first"
        assert modes(folder) == FILES
        finished = (first / "config.yaml").exists()
        assert code == ("1" if finished else "0")
        if finished:
            assert all((first / name).samefile(folder / name) for name in FILES if name != "keys")


def test_two_runs_at_once_do_not_mix(tmp_path: Path) -> None:
    handle = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        result = kes("init", str(tmp_path))
    finally:
        os.close(handle)
    assert result == (1, "", f"Error: another 'kes init' is at work in '{tmp_path}'\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "no folder specified. See 'kes init --help'"),
        (["{}/a", "b"], "too many arguments. See 'kes init --help'"),
        (["{}/a", "--address", "a:b"], 'invalid argument "a:b" for "--address" flag: this is not an address'),
        (["{}/a", "--ip", "1.2.3"], "failed to create the server's certificate: '1.2.3' does not appear to be an IPv4"),
        (["{}/a", "--dns", "ké"], "failed to create the server's certificate: 'ké' is not a DNS name"),
        (["{}/\udcff"], "the name of '"),
        (["{}/a", "--dns", "a b"], "failed to create the server's certificate: 'a b' is not a DNS name"),
        (["{}/file"], "{}/file: File exists"),
        (["{}/file/a"], "{}/file/a: Not a directory"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_made(tmp_path: Path, arguments: list[str], error: str) -> None:
    (tmp_path / "file").touch()
    result = kes("init", *(argument.format(tmp_path) for argument in arguments))
    assert (result.code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: " + error.format(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_error_on_the_way_leaves_nothing(tmp_path: Path) -> None:
    """A limit on file sizes makes the first write fail, as a full disk would."""
    folder = tmp_path / "new"
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 0; trap "" XFSZ; "$0" -B -m keswick init "$1"', COMMAND[0], str(folder)],
        capture_output=True,
        env=clean_environment(),
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert not folder.exists()
