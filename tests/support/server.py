"""A real server in a process of its own.

with start_server(tmp_path, cache={"expiry": {"any": "1h"}}) as server:
    with server.client() as client:
        client.create_key("my-key")
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from keswick.client import Client
from keswick.identity import APIKey, self_signed

SOURCES = str(Path(__file__).parents[2] / "src")
UP = "=> Server is up and running"
START_SECONDS = 30.0


@dataclass
class RunningServer:
    process: "subprocess.Popen[bytes]"
    folder: Path
    config: Path
    """The configuration file; write it anew and call `reload`."""
    ca_file: Path
    api_key: str = field(repr=False)
    """Of the admin."""
    endpoint: str = ""

    @property
    def port(self) -> int:
        return int(self.endpoint.rpartition(":")[2])

    @property
    def stdout(self) -> str:
        return (self.folder / "stdout").read_text()

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr").read_text()

    @property
    def environment(self) -> dict[str, str]:
        """What the commands of `kes` need to call this server as the admin."""
        return {"KES_SERVER": self.endpoint, "KES_CA_FILE": str(self.ca_file), "KES_API_KEY": self.api_key}

    def client(self, api_key: str | None = None, **options: Any) -> Client:
        """A client that is the admin, or who has that API key."""
        return Client(self.endpoint, api_key=api_key or self.api_key, ca_file=self.ca_file, **options)

    def wait_for(self, text: str, *, stream: str = "stdout", count: int = 1, seconds: float = START_SECONDS) -> None:
        """Until the server has printed `text` that often."""
        deadline = time.monotonic() + seconds
        while (self.folder / stream).read_text().count(text) < count:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}:\n{self.stdout}\n{self.stderr}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"no {text!r} on {stream} in time:\n{self.stdout}\n{self.stderr}")
            time.sleep(0.01)

    def line(self, text: str, *, stream: str = "stdout") -> str:
        """The newest line with that text, once there is one."""
        self.wait_for(text, stream=stream)
        return [line for line in (self.folder / stream).read_text().splitlines() if text in line][-1]

    def configure(self, **overrides: Any) -> None:
        """Write another configuration, which is read at the next reload."""
        write_config(self.folder, APIKey.parse(self.api_key), overrides)

    def reload(self, expect: str = "SIGHUP signal completed", *, stream: str = "stdout", **overrides: Any) -> str:
        """Write another configuration, tell the server, and wait until it says what is expected; that line."""
        self.configure(**overrides)
        count = (self.folder / stream).read_text().count(expect) + 1
        self.process.send_signal(signal.SIGHUP)
        self.wait_for(expect, stream=stream, count=count)
        return self.line(expect, stream=stream)

    def stop(self, number: signal.Signals = signal.SIGTERM, seconds: float = 30.0) -> int:
        """Send the signal and wait; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(seconds)


@contextmanager
def start_server(
    folder: Path,
    *,
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    **overrides: Any,
) -> Iterator[RunningServer]:
    """A server on a free port of 127.0.0.1, its keys in `folder/keys`; killed in the end if it still runs.

    `overrides` are merged into the configuration: `tls={"auth": "on"}` leaves the certificate as it is, None removes a
    key. `arguments` follow `kes server --config FILE`. Everything lies in `folder`, so that a second server in it
    takes over certificates and keys, but has another API key.
    """
    folder.mkdir(parents=True, exist_ok=True)
    api_key = APIKey.generate()
    cert, key = folder / "server.crt", folder / "server.key"
    if not cert.exists():
        pair = self_signed(
            "localhost", lifetime=timedelta(days=365), dns=["localhost"], ips=["127.0.0.1", "::1"], server=True
        )
        cert.write_text(pair.certificate_pem)
        key.touch(mode=0o600)
        key.write_text(pair.key_pem())
    config = write_config(folder, api_key, overrides)
    with running(["server", "--config", str(config), *arguments], folder, api_key, environment) as server:
        yield server


@contextmanager
def running(
    arguments: Sequence[str],
    folder: Path,
    api_key: APIKey,
    environment: Mapping[str, str] | None = None,
    *,
    command: Sequence[str] = (sys.executable, "-m", "keswick"),
) -> Iterator[RunningServer]:
    """Any `kes` command that starts a server, once it serves; killed in the end if it still runs."""
    with open(folder / "stdout", "wb") as stdout, open(folder / "stderr", "wb") as stderr:
        process = subprocess.Popen(
            [*command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env={**os.environ, "PYTHONPATH": SOURCES, **(environment or {})},
        )
    server = RunningServer(process, folder, folder / "config.yaml", folder / "server.crt", api_key.text)
    try:
        server.wait_for(UP)
        server.endpoint = next(word for word in server.stdout.partition("\nAPI ")[2].split() if "https://" in word)
        yield server
    finally:
        process.kill()
        process.wait()


def write_config(folder: Path, api_key: APIKey, overrides: Mapping[str, Any]) -> Path:
    """A whole configuration in `folder/config.yaml`."""
    defaults: dict[str, Any] = {
        "address": "127.0.0.1:0",
        "admin": {"identity": api_key.identity},
        "tls": {"key": str(folder / "server.key"), "cert": str(folder / "server.crt")},
        "keystore": {"fs": {"path": str(folder / "keys")}},
    }
    config = folder / "config.yaml"
    config.write_text(json.dumps(_merged(defaults, overrides), indent=1))  # which is YAML, too
    return config


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merged(merged[key], value)
        else:
            merged[key] = value
    return merged
