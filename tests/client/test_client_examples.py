"""Every example of docs/client.md and of the client's docstrings: against a server that takes policies at run time,
and, but for those that write policies, against one in development mode."""

import asyncio
import doctest
import importlib
import io
import pkgutil
import re
import secrets
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

import keswick
import keswick.client
from keswick import APIError, AsyncClient, Client
from keswick._native import peer_certificates
from keswick.client import Endpoint
from keswick.identity import APIKey, certificate_for
from support.server import RunningServer, running, start_server
from support.sockets import free_port

GUIDE = Path(__file__).parents[2] / "docs/client.md"
PACKAGE = keswick.client
MODULES = [importlib.import_module(name) for _, name, _ in pkgutil.iter_modules(PACKAGE.__path__, "keswick.client.")]
EXAMPLES = [example for module in MODULES for example in doctest.DocTestFinder().find(module) if example.examples]
FOR_DEVELOPMENT = [example for example in EXAMPLES if "client.write_policy" not in str(example.docstring)]


@contextmanager
def development(folder: Path) -> Iterator[RunningServer]:
    """Its certificate and its API key are only in its memory and on its console."""
    with running(["server", "--dev", "--addr", "127.0.0.1:0"], folder, APIKey.generate()) as server:
        (der,) = peer_certificates("127.0.0.1", server.port, timeout=20)
        server.ca_file.write_text(ssl.DER_cert_to_PEM_cert(der))
        server.api_key = server.line("API Key").split()[-1]
        yield server


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningServer]:
    """Its certificate, the key pair of somebody else and a file lie in the current folder; the environment knows it."""
    is_development = getattr(request, "param", None) == "dev"
    with development(tmp_path) if is_development else start_server(tmp_path, runtime_policies="on") as server:
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


@pytest.mark.parametrize(
    ("server", "example"),
    [*(("dev", example) for example in FOR_DEVELOPMENT), *(("file", example) for example in EXAMPLES)],
    indirect=["server"],
    ids=lambda value: value if isinstance(value, str) else value.name.removeprefix("keswick.client."),
)
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
