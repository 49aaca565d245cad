"""Every example of docs/client.md and of the client's docstrings, against a server that takes policies at run time."""

import asyncio
import doctest
import importlib
import io
import pkgutil
import re
import secrets
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

import keswick
import keswick.client
from keswick import APIError, AsyncClient, Client
from keswick.client import Endpoint
from keswick.identity import APIKey, certificate_for
from support.server import RunningServer, start_server
from support.sockets import free_port

GUIDE = Path(__file__).parents[2] / "docs/client.md"
PACKAGE = keswick.client
MODULES = [importlib.import_module(name) for _, name, _ in pkgutil.iter_modules(PACKAGE.__path__, "keswick.client.")]
EXAMPLES = [example for module in MODULES for example in doctest.DocTestFinder().find(module) if example.examples]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningServer]:
    """Its certificate, the key pair of somebody else and a file lie in the current folder; the environment knows it."""
    with start_server(tmp_path, runtime_policies="on") as server:
        pair = certificate_for(APIKey.generate())
        (tmp_path / "app.crt").write_text(pair.certificate_pem)
        (tmp_path / "app.key").write_text(pair.key_pem("open sesame"))
        (tmp_path / "backup.tar").write_bytes(b"a backup")
        monkeypatch.chdir(tmp_path)
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        with server.client() as client:
            client.create_key("my-key")
        yield server


def test_the_guide(server: RunningServer) -> None:
    """What stands behind a `print` is what it prints."""
    text = GUIDE.read_text()
    for name, value in {
        "https://127.0.0.1:7373": server.endpoint,
        "https://kes-1.example.com:7373": f"https://127.0.0.1:{free_port()}",
        "https://kes-2.example.com:7373": server.endpoint,
        "kes:v1:…": server.api_key,
    }.items():
        text = text.replace(name, value)
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) > 10
    names: dict[str, Any] = {}
    for block in blocks:
        with redirect_stdout(io.StringIO()) as printed:
            exec(compile(block, GUIDE.name, "exec"), names)
        assert printed.getvalue().splitlines() == re.findall(r"^ *print\(.*\)  # (.+)$", block, re.MULTILINE)
    names["client"].close()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name.removeprefix("keswick.client."))
def test_a_docstring(server: RunningServer, example: doctest.DocTest) -> None:
    with server.client() as client:
        example.globs |= {
            "APIError": APIError,
            "AsyncClient": AsyncClient,
            "Client": Client,
            "Endpoint": Endpoint,
            "Path": Path,
            "api_key": server.api_key,
            "asyncio": asyncio,
            "client": client,
            "endpoint": server.endpoint,
            "io": io,
            "keswick": keswick,
            "secrets": secrets,
        }
        if example.name.endswith(".unseal"):
            client.seal("backup.tar", key="my-key")
        output = io.StringIO()
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
        runner.run(example, out=output.write)
        assert runner.failures == 0, output.getvalue()
