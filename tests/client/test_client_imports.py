"""What is imported with the client: little, because every command of the command line waits for it."""

import json
import subprocess
import sys

import pytest

import keswick
from keswick import client
from keswick.identity import APIKey
from support.server import SOURCES

HEAVY = {
    "asyncio",
    "concurrent.futures",
    "cryptography",
    "email",
    "http",
    "msgspec",
    "random",
    "socket",
    "ssl",
    "tempfile",
}


def imported_by(code: str) -> set[str]:
    program = f"{code}\nimport json, sys\nprint(json.dumps(list(sys.modules)))"
    printed = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": SOURCES}, capture_output=True, check=True
    )
    return set(json.loads(printed.stdout))


@pytest.mark.parametrize(
    "code",
    [
        "from keswick import Client",
        "from keswick import Client; Client('kes.example.com:7373', verify=False)",
        f"from keswick import Client; Client(api_key='{APIKey.generate().text}', verify=False)",
    ],
)
def test_the_client_imports_nothing_heavy(code: str) -> None:
    assert imported_by(code) & HEAVY == set()


def test_the_package_imports_nothing_of_its_own() -> None:
    assert {name for name in imported_by("import keswick") if name.startswith("keswick")} == {"keswick"}


def test_all_that_is_exported_is_there() -> None:
    for module in (keswick, client):
        assert len(set(module.__all__)) == len(module.__all__)
        assert all(getattr(module, name) is not None for name in module.__all__)
        with pytest.raises(AttributeError, match="has no attribute 'Clients'"):
            _ = module.Clients
        assert set(module.__all__) <= set(dir(module))
    assert set(keswick.__all__) - {"__version__"} <= set(client.__all__)
