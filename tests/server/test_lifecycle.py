"""The life of a server process: start, what stops it from starting, reload, and its end."""

import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from keswick.identity import APIKey
from support.api import Caller, new_pair
from support.certificates import make
from support.cli import COMMAND, clean_environment, kes
from support.server import running, start_server, write_config


def _refused(folder: Path, *arguments: str, **config: Any) -> str:
    """The error line of a server that does not start."""
    path = write_config(folder, APIKey.generate(), config)
    done = kes("server", "--config", str(path), *arguments)
    assert done.code == 1
    assert "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("Error: ")
    return line


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make("p256", sans=["localhost", "127.0.0.1"], eku=["server"]).write(tmp_path, "server")
    return tmp_path


# --- what stops it from starting ---


def test_a_key_store_that_is_away(folder: Path) -> None:
    store = {"fs": None, "generic": {"endpoint": "http://127.0.0.1:1"}}
    path = write_config(folder, APIKey.generate(), {"keystore": store, "keys": [{"name": "a"}]})
    done = kes("server", "--config", str(path))
    assert (done.code, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith(
        "Error: keys: cannot create 'a': the key store plugin at http://127.0.0.1:1 cannot be"
    )
    assert kes("server", "--config", str(path), "--check").code == 0


def test_port_taken(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = _refused(folder, address=f"127.0.0.1:{port}")
    assert f"cannot listen on 127.0.0.1:{port}" in line


def test_no_configuration_names_what_to_do() -> None:
    done = kes("server")
    assert done.code == 1
    assert "--dev" in done.stderr
    assert "kes init" in done.stderr


def test_certificate_without_names(folder: Path) -> None:
    make("p256").write(folder, "server")
    assert "does not contain any DNS or IP address as SAN" in _refused(folder)


def test_key_that_does_not_fit(folder: Path) -> None:
    other = make("p256", sans=["localhost"])
    (folder / "server.key").write_bytes(other.key_pem)
    assert "server.key" in _refused(folder)


@pytest.mark.parametrize("content", [b"", b"no pem", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_broken_certificate_files(folder: Path, content: bytes) -> None:
    (folder / "server.crt").write_bytes(content)
    assert "tls.cert" in _refused(folder)


def test_missing_files(folder: Path) -> None:
    (folder / "server.key").unlink()
    assert "No such file" in _refused(folder)


def test_key_store_that_is_a_file(folder: Path) -> None:
    (folder / "keys").write_text("")
    assert "keys" in _refused(folder)


def test_unknown_configuration_key_has_its_line(folder: Path) -> None:
    line = _refused(folder, adress="127.0.0.1:1")
    assert "did you mean 'address'" in line
    assert ": line " in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--addr", "nonsense:port"), "--addr"),
        (("--auth", "maybe"), "invalid option for --auth"),
        (("--dev",), "'--config' flag is not supported in development mode"),
        (("--auth", "on"), "'--auth on' contradicts 'tls.auth: off'"),
    ],
)
def test_flags_that_cannot_be_followed(folder: Path, arguments: tuple[str, ...], message: str) -> None:
    assert message in _refused(folder, *arguments, tls={"auth": "off"})


def test_check_reads_validates_and_exits(folder: Path) -> None:
    api_key = APIKey.generate()
    policy = {"a": {"allow": ["/v1/key/*/x*"], "deny": ["/v1/key/*/y"]}}
    path = write_config(folder, api_key, {"policy": policy})
    done = kes("server", "--config", str(path), "--check")
    assert (done.code, done.stderr) == (0, "")
    assert "/v1/key/*/y" in done.stdout  # its two readings differ
    assert not (folder / "keys").exists()
    path.write_text("admin: {identity: }")
    assert kes("server", "--config", str(path), "--check").code == 1
    vault = {"endpoint": "https://v:8200"}  # and no way to log in
    for change in ({"keystore": {"fs": None, "vault": vault}}, {"metrics": {"address": "no-such-host.invalid:1"}}):
        done = kes("server", "--config", str(write_config(folder, api_key, change)), "--check")
        assert (done.code, done.stdout) == (1, "")


# --- while it runs ---


def _with_admin(folder: Path, **config: Any) -> tuple[dict[str, Any], Any]:
    pair = new_pair()
    identity = Caller(0, pair, folder).identity
    return {"admin": {"identity": identity}, **config}, pair


def test_reload_takes_over_policies_and_keeps_connections_and_keys(folder: Path) -> None:
    config, pair = _with_admin(folder)
    user = new_pair()
    identity = Caller(0, user, folder).identity
    with start_server(folder, **config) as server:
        admin, caller = Caller(server.port, pair, folder), Caller(server.port, user, folder)
        admin.call("PUT", "/v1/key/create/k")
        assert caller.call("PUT", "/v1/key/generate/k").status == 403
        sealed = admin.call("PUT", "/v1/key/encrypt/k", {"plaintext": "QQ=="}).json
        config["policy"] = {"p": {"allow": ["/v1/key/*"], "identities": [identity]}}
        config["keys"] = [{"name": "later"}]
        server.reload(**config)
        assert caller.call("PUT", "/v1/key/generate/k").status == 200  # over the connection it had
        assert caller.call("GET", "/v1/key/describe/later").status == 200
        # The cached key is still there although its file is gone: the cache outlives the reload.
        (folder / "keys" / "k").unlink()
        server.reload(**config)
        assert caller.call("PUT", "/v1/key/decrypt/k", sealed).json == {"plaintext": "QQ=="}
        # Another store has other keys.
        config["keystore"] = {"fs": {"path": str(folder / "other")}}
        server.reload(**config)
        assert caller.call("PUT", "/v1/key/decrypt/k", sealed).status == 404


def test_a_reload_tells_what_is_to_be_said_of_a_new_key_store(folder: Path) -> None:
    config, _ = _with_admin(folder)
    (folder / "open").mkdir()
    (folder / "open").chmod(0o777)
    with start_server(folder, **config) as server:
        server.reload(**{**config, "keystore": {"fs": {"path": str(folder / "open")}}})
        assert "level=WARN" in server.line(str(folder / "open"), stream="stderr")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"admin": {"identity": ""}}, "admin"),
        ({"policy": {"p": {"allow": ["[bad"]}}}, "bad"),
        ({"keystore": {"fs": {"path": "/dev/null/x"}}}, "/dev/null"),
        ({"tls": {"key": "/nowhere", "cert": "/nowhere"}}, "/nowhere"),
    ],
)
def test_a_broken_file_keeps_the_old_state_and_says_why(folder: Path, change: dict[str, Any], why: str) -> None:
    config, pair = _with_admin(folder)
    with start_server(folder, **config) as server:
        admin = Caller(server.port, pair, folder)
        line = server.reload("Failed to reload server config", stream="stderr", **{**config, **change})
        assert why in line
        assert admin.call("PUT", "/v1/key/create/still-here").status == 200


def test_a_reload_brings_the_new_certificate_to_new_connections(folder: Path) -> None:
    config, pair = _with_admin(folder)
    with start_server(folder, **config) as server:
        kept = Caller(server.port, pair, folder)
        before = _certificate(kept)
        make("p256", sans=["localhost"], eku=["server"]).write(folder, "server")
        server.reload(**config)
        assert kept.call("GET", "/version").status == 200
        assert _certificate(Caller(server.port, pair, folder)) != before


def _certificate(caller: Caller) -> bytes:
    """The server's certificate, as a new connection sees it."""
    with socket.create_connection(("127.0.0.1", caller.port)) as plain, caller.context.wrap_socket(plain) as secure:
        certificate = secure.getpeercert(binary_form=True)
        assert certificate is not None
        return certificate


def test_verification_switched_on_ends_old_connections(folder: Path) -> None:
    config, pair = _with_admin(folder)
    authority = make("p256", ca=True, name="authority")
    (folder / "ca.crt").write_bytes(authority.cert_pem)
    with start_server(folder, **config) as server:
        old = Caller(server.port, pair, folder)
        assert old.call("GET", "/version").status == 200
        trusted = make("p256", issuer=authority, eku=["client"])
        config["admin"] = {"identity": Caller(0, trusted, folder).identity}
        config["tls"] = {
            "key": str(folder / "server.key"),
            "cert": str(folder / "server.crt"),
            "ca": str(folder / "ca.crt"),
            "auth": "on",
        }
        server.reload(**config)
        _until(lambda: _is_cut(old))
        assert Caller(server.port, trusted, folder).call("GET", "/v1/ready").status == 200


def _is_cut(caller: Caller) -> bool:
    """Whether its connection ends, and it cannot connect again."""
    try:
        caller.call("GET", "/version")
    except (OSError, http.client.HTTPException):
        return True
    return False


def test_a_root_that_is_taken_away_ends_old_connections(folder: Path) -> None:
    authorities = [make("p256", ca=True, name=name) for name in ("stays", "goes")]
    bundle = folder / "ca.crt"
    bundle.write_bytes(b"".join(authority.cert_pem for authority in authorities))
    with start_server(folder, tls={"ca": str(bundle), "auth": "on"}) as server:
        stays, goes = (Caller(server.port, make(issuer=ca, eku=["client"]), folder) for ca in authorities)
        assert stays.call("GET", "/version").status == goes.call("GET", "/version").status == 200
        bundle.write_bytes(authorities[0].cert_pem)  # the same file, with less in it
        server.reload(tls={"ca": str(bundle), "auth": "on"})
        _until(lambda: _is_cut(goes))
        _until(lambda: not _is_cut(stays))


def test_a_reload_during_an_outage_changes_all_that_needs_no_key_store(folder: Path) -> None:
    config, pair = _with_admin(folder, keys=[{"name": "predefined"}])
    with start_server(folder, **config) as server:
        admin = Caller(server.port, pair, folder)
        shutil.move(folder / "keys", folder / "away")
        server.reload(**config, policy={"p": {"allow": ["/version"]}})
        assert admin.call("GET", "/v1/policy/describe/p").status == 200
        more = {**config, "keys": [{"name": "predefined"}, {"name": "more"}]}
        assert "cannot create 'more'" in server.reload("Failed to reload", stream="stderr", **more)
        assert admin.call("GET", "/v1/policy/describe/p").status == 200
        shutil.move(folder / "away", folder / "keys")
        server.reload(**more)
        assert admin.call("GET", "/v1/key/describe/more").status == 200


SHORT_FAREWELL = """
import sys, time
from keswick.keystore.fs import FSStore
from keswick.server import lifecycle
from keswick.server.cache import KeyCache
from keswick.server.options import ServerOptions
close = KeyCache.close
KeyCache.close = lambda cache: (close(cache), print("cache closed", flush=True))
FSStore.close = lambda store: (print("closing", store.path, flush=True), time.sleep(60))
lifecycle.OLD_STORE_SECONDS = 0.1
sys.exit(lifecycle.run(ServerOptions(config=sys.argv[1])))
"""


def test_a_key_store_that_was_replaced_is_closed_and_holds_up_nothing(folder: Path) -> None:
    config, pair = _with_admin(folder)
    api_key = APIKey.generate()
    path = write_config(folder, api_key, config)
    with running([str(path)], folder, api_key, command=[sys.executable, "-c", SHORT_FAREWELL]) as server:
        admin = Caller(server.port, pair, folder)
        assert admin.call("PUT", "/v1/key/create/k").status == 200
        server.reload(**config, keystore={"fs": {"path": str(folder / "other")}})
        server.wait_for("cache closed")
        server.wait_for(f"closing {folder / 'keys'}")
        assert admin.call("PUT", "/v1/key/create/k").status == 200
        assert server.stop() == 0
        assert f"closing {folder / 'other'}" in server.stdout


def test_a_reload_that_hangs_neither_stops_the_service_nor_its_end(folder: Path) -> None:
    config, pair = _with_admin(folder)
    with start_server(folder, **config) as server:
        admin = Caller(server.port, pair, folder)
        (folder / "server.crt").unlink()
        os.mkfifo(folder / "server.crt")  # as a network file system that does not answer
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("Reloading configuration", stream="stderr")
        assert admin.call("PUT", "/v1/key/create/k").status == 200
        assert server.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_console_that_has_gone_is_no_reason_to_fail(folder: Path, number: signal.Signals) -> None:
    config, pair = _with_admin(folder)
    with _on_pipes(folder, config) as (process, stdout, stderr):
        port = _port_of_banner(stdout)
        stdout.close()
        stderr.close()
        admin = Caller(port, pair, folder)
        assert admin.call("PUT", "/v1/key/create/k").status == 200
        process.send_signal(number)
        if number is signal.SIGHUP:
            (folder / "keys" / "k").rename(folder / "keys" / "renamed")
            _until(lambda: admin.call("GET", "/v1/key/describe/renamed").status == 200)
            process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


@contextmanager
def _on_pipes(folder: Path, config: dict[str, Any]) -> Iterator[tuple["subprocess.Popen[bytes]", IO[bytes], IO[bytes]]]:
    """A server whose standard output and error are in the test's hands; killed in the end."""
    process = subprocess.Popen(
        [*COMMAND, "server", "--config", str(write_config(folder, APIKey.generate(), config))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=clean_environment(),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process, process.stdout as stdout, process.stderr as stderr:
        try:
            yield process, stdout, stderr
        finally:
            process.kill()


def _port_of_banner(stdout: IO[bytes]) -> int:
    for line in stdout:
        if b"https://" in line:
            return int(line.rpartition(b":")[2])
    raise AssertionError("the server ended before its banner")


SLOW_DELETE = """
import sys, time
from keswick.keystore.fs import FSStore
from keswick.server import lifecycle
from keswick.server.options import ServerOptions
fast = FSStore.delete
FSStore.delete = lambda store, name: (time.sleep(1), fast(store, name))
sys.exit(lifecycle.run(ServerOptions(config=sys.argv[1])))
"""


def test_a_key_is_not_served_after_a_delete_that_took_too_long(folder: Path) -> None:
    config, pair = _with_admin(folder, api={"/v1/key/delete/": {"timeout": "100ms"}})
    api_key = APIKey.generate()
    path = write_config(folder, api_key, config)
    with running([str(path)], folder, api_key, command=[sys.executable, "-c", SLOW_DELETE]) as server:
        admin = Caller(server.port, pair, folder)
        assert admin.call("PUT", "/v1/key/create/k").status == 200
        assert admin.call("PUT", "/v1/key/generate/k").status == 200
        answer = admin.call("DELETE", "/v1/key/delete/k")
        assert (answer.status, answer.message) == (503, "request timeout exceeded")
        _until(lambda: admin.call("PUT", "/v1/key/generate/k").status == 404)


def test_a_new_address_waits_for_a_new_start(folder: Path) -> None:
    config, pair = _with_admin(folder)
    with start_server(folder, **config) as server:
        server.reload("new 'address'", stream="stderr", **{**config, "address": "127.0.0.1:1"})
        assert Caller(server.port, pair, folder).call("GET", "/v1/ready").status == 200


def test_terminate_lets_running_requests_end_and_exits_cleanly(folder: Path) -> None:
    config, pair = _with_admin(folder)
    with start_server(folder, **config) as server:
        admin = Caller(server.port, pair, folder)
        assert admin.call("PUT", "/v1/key/create/k").status == 200
        stream = http.client.HTTPSConnection("127.0.0.1", server.port, context=admin.context, timeout=20)
        stream.request("GET", "/v1/log/audit")
        response = stream.getresponse()
        assert server.stop() == 0
        assert server.stdout.endswith("=> Stopping server... Goodbye.\n")
        response.read()  # the stream ended
        stream.close()


def test_every_acknowledged_key_survives_sigkill(folder: Path) -> None:
    config, pair = _with_admin(folder)
    with start_server(folder, **config) as server:
        acknowledged: list[str] = []
        enough = threading.Event()

        def create(worker: int, caller: Caller) -> None:
            try:
                for number in range(10_000):
                    name = f"key-{worker}-{number}"
                    if caller.call("PUT", f"/v1/key/create/{name}").status == 200:
                        acknowledged.append(name)
                    if len(acknowledged) >= 100:
                        enough.set()
            except (OSError, http.client.HTTPException):
                return

        callers = [Caller(server.port, pair, folder) for _ in range(4)]
        workers = [threading.Thread(target=create, args=numbered) for numbered in enumerate(callers)]
        for worker in workers:
            worker.start()
        assert enough.wait(60)
        server.process.kill()
        for worker in workers:
            worker.join(60)
    with start_server(folder, **config) as server:
        admin = Caller(server.port, pair, folder)
        for name in acknowledged:
            assert admin.call("PUT", f"/v1/key/generate/{name}").status == 200, name
        listed = admin.call("GET", "/v1/key/list/", accept="application/x-ndjson").body.splitlines()
        for line in listed:  # what was not acknowledged is there whole or not at all
            assert admin.call("GET", f"/v1/key/describe/{json.loads(line)['name']}").status == 200


def test_the_key_folder_goes_away_and_comes_back(folder: Path) -> None:
    config, pair = _with_admin(folder, cache={"expiry": {"offline": "1h"}})
    with start_server(folder, **config) as server:
        admin = Caller(server.port, pair, folder)
        admin.call("PUT", "/v1/key/create/k")
        admin.call("PUT", "/v1/key/generate/k")
        shutil.move(folder / "keys", folder / "away")
        assert admin.call("GET", "/v1/key/describe/never-read").status in (404, 502)
        assert admin.call("PUT", "/v1/key/create/new").status == 502
        assert admin.call("GET", "/v1/ready").status == 504
        assert admin.call("GET", "/v1/ready?cached=ok").status == 200
        assert admin.call("PUT", "/v1/key/generate/k").status == 200
        assert admin.call("GET", "/v1/status").json["keystore_unreachable"] is True
        shutil.move(folder / "away", folder / "keys")
        _until(lambda: admin.call("GET", "/v1/ready").status == 200)
        assert admin.call("PUT", "/v1/key/create/new").status == 200


def _until(condition: Any) -> None:
    """Wait for what must become true, within the test's time limit."""
    pause = threading.Event()
    while not condition():
        pause.wait(0.05)


# --- development mode and the second listener ---


def test_development_mode_needs_nothing(tmp_path: Path) -> None:
    with running(["server", "--dev", "--addr", "127.0.0.1:0"], tmp_path, APIKey.generate()) as server:
        key = APIKey.parse(server.line("API Key").split()[-1])
        assert key.identity in server.line("Admin")
        done = kes("key", "create", "k", "-k", env={"KES_SERVER": server.endpoint, "KES_API_KEY": key.text})
        assert (done.code, done.stderr) == (0, "")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("nothing to reload", stream="stderr")
        assert server.stop() == 0


def test_the_second_listener_shows_metrics_and_readiness_alone(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    config, pair = _with_admin(folder, metrics={"address": f"127.0.0.1:{port}"})
    with start_server(folder, **config) as server:
        admin = Caller(server.port, pair, folder)
        admin.call("PUT", "/v1/key/create/my-secret-name")
        answers = {}
        for path in ("/metrics", "/v1/metrics", "/v1/ready", "/v1/status", "/version", "/v1/key/list/"):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request("GET", path)
            response = connection.getresponse()
            answers[path] = (response.status, response.read())
            connection.close()
        assert {path: status for path, (status, _) in answers.items()} == {
            "/metrics": 200,
            "/v1/metrics": 200,
            "/v1/ready": 200,
            "/v1/status": 404,
            "/version": 404,
            "/v1/key/list/": 404,
        }
        text = answers["/metrics"][1].decode()
        assert "kes_http_request_success" in text
        assert "my-secret-name" not in text
        assert admin.identity not in text


def test_the_second_listener_can_speak_tls_without_asking_for_certificates(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    metrics = {"address": f"127.0.0.1:{port}", "tls": "on"}
    with start_server(folder, metrics=metrics) as server:
        nobody = Caller(port, None, folder)
        assert b"kes_system_up_time" in nobody.call("GET", "/v1/metrics").body
        assert nobody.call("POST", "/v1/metrics").status == 405
        renewed = make("p256", sans=["localhost"], eku=["server"])
        renewed.write(folder, "server")
        server.reload(metrics=metrics)
        assert _certificate(nobody) == renewed.cert_der


# --- certificates that are renewed on disk ---

RENEWING = """
import sys
from keswick.server import lifecycle
from keswick.server.options import ServerOptions
lifecycle.TLS_RELOAD_SECONDS = lifecycle.TLS_RETRY_SECONDS = 0.1
sys.exit(lifecycle.run(ServerOptions(config=sys.argv[1])))
"""


def test_renewed_certificates_are_taken_over_and_half_renewed_ones_are_not(folder: Path) -> None:
    api_key = APIKey.generate()
    config = write_config(folder, api_key, {})
    with running([str(config)], folder, api_key, command=[sys.executable, "-c", RENEWING]) as server:
        caller = Caller(server.port, new_pair(), folder)
        first = _certificate(caller)
        renewed = make("p256", sans=["localhost"], eku=["server"])
        (folder / "server.crt").write_bytes(renewed.cert_pem)  # its key is not there yet
        server.wait_for("Failed to reload TLS configuration", stream="stderr")
        assert _certificate(caller) == first
        (folder / "server.key").write_bytes(renewed.key_pem)
        _until(lambda: _certificate(caller) == renewed.cert_der)


def test_nothing_is_taken_over_from_a_file_that_is_meant_for_the_next_start(folder: Path) -> None:
    """Clients are verified as in 2023 until then, although the section for TLS would be read otherwise today."""
    api_key = APIKey.generate()
    config = write_config(folder, api_key, {"compatibility": "2023"})
    with running([str(config)], folder, api_key, command=[sys.executable, "-c", RENEWING]) as server:
        write_config(folder, api_key, {})
        server.wait_for("cannot change while a server runs", stream="stderr", count=2)
        with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
            Caller(server.port, new_pair(), folder).call("GET", "/version")


# --- an audit log that must not lose events ---


def test_a_required_audit_log_refuses_requests_rather_than_lose_events(folder: Path) -> None:
    config, pair = _with_admin(folder, log={"audit": "on", "audit_required": "on"})
    with _on_pipes(folder, config) as (process, stdout, _):
        admin = Caller(_port_of_banner(stdout), pair, folder)  # from here on nothing is read, so that the pipe fills up
        while admin.call("GET", "/nowhere").status == 404:  # refused ones are recorded, too
            continue
        assert admin.call("GET", "/v1/api").message == "audit log is not available"
        pump = threading.Thread(target=stdout.read)
        pump.start()
        _until(lambda: admin.call("GET", "/v1/api").status == 200)
        assert b"\nkes_log_audit_dropped 0\n" in admin.call("GET", "/v1/metrics").body
        process.kill()
        pump.join(30)


@pytest.mark.parametrize(("days", "told"), [((-2, -1), "expired on"), ((-1, 10), "expires on"), ((-1, 31), None)])
def test_a_certificate_that_ends_soon_is_told_at_start(
    folder: Path, days: tuple[float, float], told: str | None
) -> None:
    make("p256", sans=("localhost", "127.0.0.1"), days=days).write(folder, "server")
    with start_server(folder) as server:
        assert server.stop() == 0
        assert (f"the server's certificate {told}" in server.stderr) if told else (server.stderr == "")
