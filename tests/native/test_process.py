"""The functions change the process for good, so each test runs them in one of its own."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent.parent / "src"
LINUX = sys.platform == "linux"
CAP_IPC_LOCK = 14


def run(code: str) -> list[str]:
    """The lines that the code prints in a new interpreter."""
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout.split("\n")[:-1]


def test_core_dumps_are_forbidden() -> None:
    assert run("""
import resource
from keswick._native import forbid_core_dumps
forbid_core_dumps()
forbid_core_dumps()
print(resource.getrlimit(resource.RLIMIT_CORE))
""") == ["(0, 0)"]


@pytest.mark.skipif(not LINUX, reason="only Linux has the attribute")
def test_the_process_is_not_dumpable() -> None:
    assert run("""
import ctypes
from keswick._native import forbid_core_dumps
PR_GET_DUMPABLE = 3
print(ctypes.CDLL(None).prctl(PR_GET_DUMPABLE))
forbid_core_dumps()
print(ctypes.CDLL(None).prctl(PR_GET_DUMPABLE))
""") == ["1", "0"]


def may_lock() -> bool:
    status = Path("/proc/self/status").read_text()
    (effective,) = (int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))
    unlimited = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY
    return unlimited or bool(effective >> CAP_IPC_LOCK & 1)


def test_memory_is_locked_where_that_is_allowed() -> None:
    done, locked = run("""
import sys
from keswick._native import lock_memory
print(lock_memory())
status = open("/proc/self/status").read() if sys.platform == "linux" else "VmLck: 0 kB"
print([line.split()[1] for line in status.splitlines() if line.startswith("VmLck:")][0])
""")
    assert done == str(LINUX and may_lock())
    assert (int(locked) > 0) == (done == "True")


@pytest.mark.skipif(not LINUX, reason="elsewhere nothing is locked")
def test_memory_is_not_locked_under_a_limit() -> None:
    """Where the process may not raise it: later allocations would fail, threads among them."""
    assert run("""
import ctypes, resource
from keswick._native import lock_memory
hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
resource.setrlimit(resource.RLIMIT_MEMLOCK, (8 << 20 if hard < 0 else min(8 << 20, hard), hard))
header = (ctypes.c_uint32 * 2)(0x20080522, 0)
ctypes.CDLL(None).capset(header, (ctypes.c_uint32 * 6)())  # no capabilities
print(lock_memory())
""") == ["False"]


@pytest.mark.skipif(not LINUX, reason="elsewhere nothing is locked")
def test_threads_start_after_locking() -> None:
    assert run("""
import threading
from keswick._native import lock_memory
lock_memory()
threads = [threading.Thread(target=bytearray, args=(1 << 20,)) for _ in range(50)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print("ok")
""") == ["ok"]
