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
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import stores
from lab import HTTP1, HTTP2, PATIENCE, SHAPES, Lab, Report, Sample, Shape, Target, memory, ratios

COLD_START_BOUND = 0.2
"""Seconds from the command to the first answer."""
COMMAND_BOUND = 0.25
"""Seconds that `kes key ls` takes on a warm machine."""
MEMORY_BOUND = 60.0
"""MB of resident memory, however many requests were answered."""
MEMORY_GROWTH_BOUND = 1.05
"""Memory after the last request, as a ratio to a quarter of them."""
MOST_FOR_OTHERS = 0.1
"""The part of the machine that other programs may take before the report warns."""
MANY_KEYS = 100_000
MANY_KEYS_BOUND = 1.1
"""CPU of a generate beside many keys, as a ratio to the same beside a few."""


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
        time_command(lab, report, rounds)
        serve_beside_many_keys(lab, report, rounds, seconds)
        stores.compare(lab, report, rounds, seconds, stack)
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


def time_command(lab: "Lab", report: "Report", rounds: int) -> None:
    server = lab.start_keswick(lab.folder / "keys", pinned=False)
    taken = []
    for _ in range(2 * rounds + 1):
        begin = time.perf_counter()
        lab.type(server, "key", "ls")
        taken.append(time.perf_counter() - begin)
    report.title("`kes key ls`, from the command to its end")
    report.ratio(f"to {COMMAND_BOUND * 1000:.0f} ms", [seconds / COMMAND_BOUND for seconds in taken[1:]], 1.0)


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


if __name__ == "__main__":
    sys.exit(main())
