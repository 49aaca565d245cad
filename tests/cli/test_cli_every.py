"""Every command, typed as a user types it: through a pipe and on a terminal, with a server and without one."""

import base64
import itertools
import json
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from keswick import backup
from keswick.identity import APIKey, certificate_for
from keswick.keystore import encryptedfs
from support.cli import COMMAND, Terminal, clean_environment, kes, kes_in_background
from support.commands import every_command
from support.server import RunningServer, start_server, write_config

NAMES = r"(k\d+\n)+"
IDENTITIES = r"([0-9a-f]{64}\n)+"
BASE64 = r"[0-9A-Za-z+/]+={0,2}"
API_KEY = r"kes:v1:[0-9A-Za-z+/]{44}"
NOTHING = ""


@dataclass(frozen=True)
class Call:
    """`piped` and `shown`: what is printed, as regular expressions; `shown` is the same on a terminal if None."""

    line: str
    piped: str
    shown: str | None = None
    asks: bool = True
    """Whether it asks the server."""
    endless: bool = False
    """It goes on until Ctrl-C; the expressions are what is seen before."""
    told: str = NOTHING
    """What is said on standard error."""


CALLS = {
    "kes server": Call("server --check --config {config}", r".*(\n.*)*", asks=False),
    "kes init": Call("init {folder}", r"Created (.*\n)+", asks=False),
    "kes key create": Call("key create {new}", NOTHING),
    "kes key import": Call("key import {new} AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", NOTHING),
    "kes key info": Call("key info k1", r"Name        k1\n(.*\n)+Owner       [0-9a-f]{64}\n?"),
    "kes key ls": Call("key ls k", rf"Key\n{NAMES}"),
    "kes key list": Call("key list k*", r'(\{"name":"k\d+"\}\n)+', NAMES),
    "kes key rm": Call("key rm {old}", NOTHING),
    "kes key encrypt": Call("key encrypt k1 text", rf'\{{"ciphertext":"{BASE64}"\}}', rf"\nciphertext: {BASE64}\n"),
    "kes key decrypt": Call("key decrypt k1 {ciphertext}", r'\{"plaintext":"aGVsbG8="\}', r"\nplaintext: aGVsbG8=\n"),
    "kes key dek": Call(
        "key dek k1",
        rf'\{{"plaintext":"{BASE64}","ciphertext":"{BASE64}"\}}',
        rf"\nplaintext:  {BASE64}\nciphertext: {BASE64}\n",
    ),
    "kes ls": Call("ls k", rf"Key\n{NAMES}"),
    "kes policy info": Call("policy info app", r"Name        app\nDate        .*\nCreated by  [0-9a-f]{64}\n"),
    "kes policy ls": Call("policy ls app", r"Policy\napp\n"),
    "kes policy list": Call("policy list app", r'\["app"\]\n', r"\[\n  app\n\]\n"),
    "kes policy show": Call(
        "policy show app", r'\{"allow":\{.*\},"created_at":".*","created_by":".*"\}\n', r"Allow:\n  · .*\n(.*\n)+"
    ),
    "kes policy add": Call("policy add app {policy}", NOTHING),
    "kes policy create": Call("policy create app {policy}", NOTHING),
    "kes policy assign": Call("policy assign app {user}", NOTHING),
    "kes policy rm": Call("policy rm {written}", NOTHING),
    "kes identity": Call("identity", API_KEY, rf"Your API key:\n\n   {API_KEY}\n(.*\n)+", asks=False),
    "kes identity new": Call("identity new", rf"Your API key:\n\n   {API_KEY}\n(.*\n)+", asks=False),
    "kes identity of": Call("identity of {cert}", "[0-9a-f]{64}", r"Identity:\n\n   [0-9a-f]{64}\n", asks=False),
    "kes identity info": Call("identity info", r"Identity    [0-9a-f]{64}\nCreated At  .*\nRole        Admin\n"),
    "kes identity ls": Call("identity ls", rf"Identity\n{IDENTITIES}"),
    "kes identity list": Call(
        "identity list", r'\{"identity":"[0-9a-f]{64}","policy":"app"\}\n', r"[0-9a-f]{64} => app\n"
    ),
    "kes identity assign": Call("identity assign {user} app", NOTHING),
    "kes identity rm": Call("identity rm {nobody}", NOTHING),
    "kes seal": Call("seal {file} --key k1", NOTHING),
    "kes unseal": Call("unseal {sealed}", NOTHING),
    "kes status": Call("status", r"● 127\.0\.0\.1:\d+\n  Version  (.*\n)+"),
    "kes metric": Call("metric", r'\{"kes_http_request_success":\d+,.*\}', r"until Ctrl-C", endless=True),
    "kes log": Call("log", r"Time +Status +Identity +IP +API +Latency", r"Time +Status", endless=True),
    "kes log trace": Call("log trace", r'\{"time":".*\}', r"Time +Status", endless=True),
    "kes migrate": Call(
        "migrate --from {config} --to {other} --merge", r"Starting key migration:\n(.*\n)+", asks=False
    ),
    "kes backup": Call(
        "backup --config {encrypted} {file}.backup",
        r'\{"backup":.*,"keys":1,.*\}\n?',
        r"Backed up 1 key of .*\n",
        asks=False,
    ),
    "kes restore": Call(
        "restore --config {restored} {backup}",
        r'\{"backup":.*,"keys":1,.*\}\n?',
        r"Restored 1 key of .*\n",
        asks=False,
    ),
    "kes reseal": Call(
        "reseal --from {encrypted} --to {encrypted}",
        r'\{"folder":".*","from":"keyfile","to":"keyfile"\}\n?',
        r".* is sealed with a key file now, .*\n",
        asks=False,
    ),
    "kes config migrate": Call(
        "config migrate {of_2021}",
        r"admin:\n(.*\n)+",
        r"(.*\n)+",
        asks=False,
        told=r"What changes:\n(  - .*\n)+(.*\n)+",
    ),
    "kes doctor": Call("doctor", r"((ok|warning|FAILED) .+\n)+"),
    "kes audit trace": Call("audit trace", r'\{"time":".*\}', r"Time +Status", endless=True),
    "kes tool identity new": Call("tool identity new --key {folder}.key --cert {folder}.crt", NOTHING, asks=False),
    "kes tool identity of": Call(
        "tool identity of {cert}", "[0-9a-f]{64}", r"\n  Identity:  [0-9a-f]{64}\n", asks=False
    ),
    "kes tool migrate": Call(
        "tool migrate --from {config} --to {other} --merge", r"Starting key migration:\n(.*\n)+", asks=False
    ),
    "kes update": Call("update", r"(.*\n)+.*pip install(.*\n)+", asks=False),
    "kes completion bash": Call("completion bash", r"complete .* kes\n", asks=False),
    "kes completion zsh": Call("completion zsh", r"#compdef kes\n(.*\n)+", asks=False),
    "kes completion fish": Call("completion fish", r"# (.*\n)+complete -c kes .*\n", asks=False),
}
"""One call of every command, by its path."""

EVERY = [pytest.param(call, id=path) for path, call in CALLS.items()]
ASKING = [pytest.param(call, id=path) for path, call in CALLS.items() if call.asks and path != "kes doctor"]
"""Those that fail without a server; `kes doctor` tells what it finds."""
USER = APIKey.generate()
POLICY = {"allow": ["/v1/nothing"], "identities": [USER.identity]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("server")
    with start_server(folder, policy={"app": POLICY}, runtime_policies="on", log={"audit": "on"}) as server:
        with server.client() as client:
            client.create_key("k1")
            client.create_key("k2")
        yield server


NUMBERS = itertools.count(100)


def words(call: Call, server: RunningServer, folder: Path) -> list[str]:
    """The line with everything that stands in braces made afresh."""
    number = next(NUMBERS)
    files = {name: folder / f"{name}{number}" for name in ("file", "folder", "cert", "other", "policy")}
    values = {name: str(path) for name, path in files.items()}
    values |= {"config": str(server.config), "new": f"n{number}", "old": f"o{number}"}
    values |= {"user": USER.identity, "nobody": "0" * 64, "written": f"w{number}"}
    if "{of_2021}" in call.line:
        files["file"].write_text("root: disabled\ntls: {key: k, cert: c}\nkeys: {fs: {path: /keys}}\n")
        values["of_2021"] = str(files["file"])
    if "{policy}" in call.line:
        files["policy"].write_text(json.dumps({"allow": POLICY["allow"]}))
    if "{cert}" in call.line:
        files["cert"].write_text(certificate_for(USER).certificate_pem)
    if "{other}" in call.line:
        files["other"].mkdir()
        keystore = {"fs": {"path": str(files["other"] / "keys")}}
        values["other"] = str(write_config(files["other"], USER, {"keystore": keystore}))
    if "{encrypted}" in call.line:
        values["encrypted"] = encrypted_folder(folder / f"encrypted{number}")
    if "{backup}" in call.line:
        values["restored"], values["backup"] = encrypted_folder(folder / f"restored{number}"), str(folder / "backup")
        keys = folder / f"restored{number}" / "keys"
        backup.make(str(keys), Path(values["backup"]))
        shutil.rmtree(keys)
    with server.client() as client:
        if "{old}" in call.line:
            client.create_key(values["old"])
        if "{written}" in call.line:
            client.write_policy(values["written"])
        if "{ciphertext}" in call.line:
            values["ciphertext"] = base64.b64encode(client.encrypt("k1", b"hello")).decode()
        if "{file}" in call.line:
            files["file"].write_text("something")
        if "{sealed}" in call.line:
            files["file"].write_text("something")
            values["sealed"] = str(client.seal(files["file"], key="k1"))
            files["file"].unlink()
    return [word.format(**values) for word in call.line.split()]


def encrypted_folder(folder: Path) -> str:
    """A configuration with an encrypted folder, `keys`, which has a key."""
    folder.mkdir()
    key_file = folder / "key"
    key_file.touch(mode=0o600)
    key_file.write_bytes(bytes(32))
    encryptedfs.open({"path": str(folder / "keys"), "keyfile.path": str(key_file)}).create("one", b"value")
    section = {"path": str(folder / "keys"), "keyfile": {"path": str(key_file)}}
    return str(write_config(folder, USER, {"keystore": {"fs": None, "encryptedfs": section}}))


def test_the_table_has_every_command() -> None:
    assert list(CALLS) == [path for path, _ in every_command()]
    for path, call in CALLS.items():
        assert f"kes {call.line}".startswith(path)


@pytest.mark.parametrize("call", EVERY)
def test_through_a_pipe(server: RunningServer, tmp_path: Path, call: Call) -> None:
    arguments = words(call, server, tmp_path)
    if call.endless:
        with kes_in_background(*arguments, env=server.environment) as process:
            assert process.stdout is not None
            assert re.search(call.piped, process.stdout.readline())
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 1
            assert process.stderr is not None
            assert process.stderr.read() == ""
        return
    result = kes(*arguments, env=server.environment)
    assert result.code == 0
    assert re.fullmatch(call.told, result.stderr), result.stderr
    assert re.fullmatch(call.piped, result.stdout), result.stdout
    assert "\x1b" not in result.stdout


@pytest.mark.parametrize("call", EVERY)
def test_on_a_terminal(server: RunningServer, tmp_path: Path, call: Call) -> None:
    arguments = words(call, server, tmp_path)
    expected = call.piped if call.shown is None else call.shown
    with Terminal(*arguments, env={**server.environment, "NO_COLOR": "1"}, size=(300, 100)) as terminal:
        if call.endless:
            terminal.wait_for(lambda: re.search(expected, terminal.shown) is not None)
            terminal.press_ctrl_c()
            assert terminal.wait() == 1
        else:
            assert terminal.wait() == 0
            shown = terminal.output.decode().replace("\r\n", "\n")
            assert re.fullmatch(expected, shown), shown
            assert "\x1b" not in shown
        assert terminal.is_clean


@pytest.mark.parametrize("path", ["kes key ls", "kes policy ls", "kes identity info", "kes identity ls", "kes status"])
def test_colours_only_where_they_are_wanted(server: RunningServer, tmp_path: Path, path: str) -> None:
    api_key = {"KES_API_KEY": USER.text} if path == "kes identity info" else {}  # only rules have a colour there
    arguments = words(CALLS[path], server, tmp_path)
    for wanted, env, flags in (
        (True, {}, []),
        (False, {"NO_COLOR": "1"}, []),
        (False, {"TERM": "dumb"}, []),
        (False, {}, ["--color=never"]),
        (True, {"NO_COLOR": "1", "TERM": "dumb"}, ["--color=ALWAYS"]),
    ):
        with Terminal(*arguments, *flags, env={**server.environment, **api_key, **env}) as terminal:
            assert terminal.wait() == 0
            assert (b"\x1b[" in terminal.output) == wanted
        piped = kes(*arguments, *flags, env={**server.environment, **api_key, **env})
        assert ("\x1b[" in piped.stdout) == (flags == ["--color=ALWAYS"])


# --- what goes wrong ---


@pytest.mark.parametrize("call", ASKING)
def test_without_a_server(server: RunningServer, tmp_path: Path, call: Call) -> None:
    arguments = words(call, server, tmp_path)
    result = kes(*arguments, env={**server.environment, "KES_SERVER": "127.0.0.1:1"})
    assert (result.code, result.stdout) == (1, "")
    assert re.fullmatch(
        r"Error: [^\n]*cannot connect to https://127\.0\.0\.1:1: connection refused[^\n]*\n", result.stderr
    )


@pytest.mark.parametrize("call", ASKING)
def test_without_a_right_to_it(server: RunningServer, tmp_path: Path, call: Call) -> None:
    arguments = words(call, server, tmp_path)
    result = kes(*arguments, env={**server.environment, "KES_API_KEY": USER.text})
    if call.line == "identity info":
        assert result.code == 0  # who one is, everybody may know
        return
    assert result.code == 1
    assert re.fullmatch(r"Error: [^\n]*not authorized: insufficient permissions\n", result.stderr)


@pytest.mark.parametrize("call", ASKING)
def test_an_interrupt_while_the_server_hangs(server: RunningServer, tmp_path: Path, call: Call) -> None:
    arguments = words(call, server, tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        environment = {**server.environment, "KES_SERVER": f"127.0.0.1:{listener.getsockname()[1]}"}
        with kes_in_background(*arguments, env=environment) as process:
            connection, _ = listener.accept()
            with connection:
                process.send_signal(signal.SIGINT)
                assert process.communicate(timeout=30) == ("", "")
            assert process.returncode == 1


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_an_interrupt_leaves_the_next_prompt_a_line_of_its_own(server: RunningServer, term: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        environment = {"KES_SERVER": f"127.0.0.1:{listener.getsockname()[1]}", "TERM": term}
        with Terminal("key", "ls", env={**server.environment, **environment}) as terminal:
            connection, _ = listener.accept()
            with connection:
                terminal.press_ctrl_c()
                assert terminal.wait() == 1
            assert terminal.is_clean
            assert terminal.shown == ("" if term == "xterm" else "^C")


@pytest.mark.parametrize("call", ASKING)
@pytest.mark.parametrize("closed", ["<&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_reason_to_fail(server: RunningServer, tmp_path: Path, call: Call, closed: str) -> None:
    if call.endless:
        return
    arguments = words(call, server, tmp_path)
    done = subprocess.run(
        ["bash", "-c", f'"$@" {closed}', "bash", *COMMAND, *arguments],
        capture_output=True,
        env=clean_environment(server.environment),
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    if ">" not in closed:
        assert re.fullmatch(call.piped, done.stdout)
