"""What key stores other than a folder cost: cached keys, keys that are used for the first time, and long lists."""

import base64
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPSConnection
from pathlib import Path
from threading import local

from lab import HERE, HTTP1, Lab, Report, Server, Target, end, free_port

sys.path.insert(0, str(HERE.parent / "tests"))

from support.fault_proxy import FaultProxy
from support.openbao import OpenBao

CACHED_BOUND = 1.1
"""CPU of a generate on another key store, as a ratio to the same on a folder."""
FIRST_USES = 1000
FIRST_USES_BOUND = 0.2
"""Time of that many first uses at once, as a ratio to one after the other, on a store that is some way off."""
DISTANCE = 0.005
"""Seconds to the store and back."""
CONNECTIONS_BOUND = 32
LONG_LIST = 10_000
CLIENTS = 64


def compare(lab: Lab, report: Report, rounds: int, seconds: float, stack: contextlib.ExitStack) -> None:
    bao = stack.enter_context(OpenBao(lab.folder / "openbao"))
    bao.enable_kv("kv", 2)
    section = bao.configuration("kv", 2)
    cost_of_cached_keys(lab, report, rounds, seconds, {"vault": section})
    first_uses(lab, report, bao, 3, stack)
    long_lists(lab, report, bao)


def cost_of_cached_keys(lab: Lab, report: Report, rounds: int, seconds: float, openbao: dict[str, object]) -> None:
    passphrase = lab.folder / "passphrase"
    passphrase.write_text("correct horse battery staple\n")
    passphrase.chmod(0o600)
    sealed = {"encryptedfs": {"path": str(lab.folder / "sealed"), "passphrase": {"file": str(passphrase)}}}
    folder = Target("folder", lab.start_keswick(lab.folder / "keys"), "/v1/key/generate/bench", "{}")
    others = [
        Target(name, lab.start_keswick(lab.folder, keystore=keystore), folder.path, folder.body)
        for name, keystore in (("OpenBao", openbao), ("an encrypted folder", sealed))
    ]
    taken: dict[str, list[float]] = {target.name: [] for target in others}
    for _ in range(rounds):
        base = lab.measure(folder, HTTP1, seconds).cpu
        for target in others:
            taken[target.name].append(lab.measure(target, HTTP1, seconds).cpu / base)
    report.title("A cached key on another key store: CPU, ratio to a folder")
    for name, values in taken.items():
        report.ratio(name, values, CACHED_BOUND)


def first_uses(lab: Lab, report: Report, bao: OpenBao, rounds: int, stack: contextlib.ExitStack) -> None:
    """Each round takes keys that the server has not seen yet."""
    names = iter(fill(bao, "kv", rounds * 4 * FIRST_USES))
    port = free_port()
    command = [sys.executable, str(HERE / "relay.py"), str(port), str(bao.port), str(DISTANCE / 2)]
    stack.callback(end, subprocess.Popen(command))
    section = bao.configuration("kv", 2)
    report.title(f"{FIRST_USES:,} first uses on OpenBao at once: time, ratio to one after the other")
    for where, endpoint, bound in (
        (f"{DISTANCE * 1000:.0f} ms away", f"https://127.0.0.1:{port}", FIRST_USES_BOUND),
        ("on this machine", bao.endpoint, None),
    ):
        server = lab.start_keswick(lab.folder, pinned=False, keystore={"vault": {**section, "endpoint": endpoint}})
        ratios, connections = [], 0
        for _ in range(rounds):
            together, apart = ([next(names) for _ in range(FIRST_USES)] for _ in range(2))
            at_once = describe_all(lab, server, together, CLIENTS)
            connections = max(connections, connections_of(server))
            ratios.append(at_once / describe_all(lab, server, apart, 1))
        report.ratio(where, ratios, bound)
        report.ratio(f"connections, to {CONNECTIONS_BOUND}", [connections / CONNECTIONS_BOUND], 1.0)


def long_lists(lab: Lab, report: Report, bao: OpenBao) -> None:
    bao.enable_kv("long", 2)
    fill(bao, "long", LONG_LIST)
    with FaultProxy(bao.plain_port) as proxy:
        section = {**bao.configuration("long", 2, plain=True), "endpoint": proxy.endpoint}
        server = lab.start_keswick(lab.folder, keystore={"vault": section})
        before, listed, pages, start = len(proxy.requests), 0, 0, ""
        while True:
            page = json.loads(lab.ask(server, "GET", f"/v1/key/list/{start}"))
            listed, pages, start = listed + len(page["names"]), pages + 1, page.get("continue_at", "")
            if not start:
                break
        asked = [path for _, path in proxy.requests[before:] if "list=true" in path]
    if listed != LONG_LIST + 1:  # `bench` is there, too
        raise SystemExit(f"a list of {LONG_LIST + 1} keys has {listed}")
    report.title(f"A list of {LONG_LIST:,} keys on OpenBao, in {pages} pages")
    report.ratio("requests of the store, to one", [float(len(asked))], 1.0)


def fill(bao: OpenBao, engine: str, count: int) -> Sequence[str]:
    """Keys, all of the same bytes."""
    value = base64.b64encode(b"\x0a\x24\x0a\x20" + bytes(32) + b"\x10\x01\x12\x24\x0a\x20" + bytes(32) + b"\x10\x01")
    names = [f"key-{number:05}" for number in range(count)]

    def write(name: str) -> None:
        bao.call("PUT", f"{engine}/data/{name}", {"data": {name: value.decode()}, "options": {"cas": 0}})

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(write, names))
    return names


def describe_all(lab: Lab, server: Server, names: Sequence[str], clients: int) -> float:
    """Seconds that the clients take together."""
    own = local()
    connections: list[HTTPSConnection] = []

    def describe(name: str) -> None:
        if not hasattr(own, "connection"):
            own.connection = lab.connect(server)
            connections.append(own.connection)
        own.connection.request("GET", f"/v1/key/describe/{name}")
        answer = own.connection.getresponse()
        if answer.status != 200:
            raise SystemExit(f"describe {name}: {answer.status} {answer.read().decode()}")
        answer.read()

    with ThreadPoolExecutor(clients) as pool, closing_all(connections):
        begin = time.perf_counter()
        list(pool.map(describe, names))
        return time.perf_counter() - begin


@contextlib.contextmanager
def closing_all(connections: Sequence[HTTPSConnection]) -> Iterator[None]:
    try:
        yield
    finally:
        for connection in connections:
            connection.close()


def connections_of(server: Server) -> int:
    """How many a server has made that are open (proc(5): /proc/net/tcp; state 01 is established), those of its clients
    left out."""
    own = {
        link.readlink().name.removeprefix("socket:[").removesuffix("]")
        for link in Path(f"/proc/{server.process.pid}/fd").iterdir()
        if link.is_symlink() and link.readlink().name.startswith("socket:")
    }
    count = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        is_client = int(fields[1].rpartition(":")[2], 16) != server.port
        count += fields[3] == "01" and fields[9] in own and is_client
    return count
