"""Several servers side by side on one folder of keys. Each keeps its port when it is started anew.

with Cluster(folder, 3, cache={"expiry": {"any": "2s"}}) as cluster:
    cluster.members[0].client().create_key("my-key")
    cluster.members[1].restart()
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

from keswick.client import Client
from keswick.identity import APIKey, self_signed
from support.server import RunningServer, running, write_config
from support.sockets import free_port

NAME = "kes.internal"
"""Of the certificate that all servers have, beside localhost and 127.0.0.1."""


class Member:
    """One of the servers. It reaches the keys through a link of its own, `store`, that a test may take away."""

    def __init__(self, folder: Path, api_key: APIKey, overrides: Mapping[str, Any]) -> None:
        folder.mkdir()
        self.store = folder / "keys"
        self.store.symlink_to(folder.parent / "keys")
        self._folder, self._api_key = folder, api_key
        self._overrides = {**overrides, "address": f"127.0.0.1:{free_port()}"}
        self._running: AbstractContextManager[RunningServer] | None = None
        self.start()

    def start(self) -> None:
        config = write_config(self._folder, self._api_key, self._overrides)
        self._running = running(["server", "--config", str(config)], self._folder, self._api_key)
        self.server = self._running.__enter__()

    def restart(self) -> None:
        """SIGTERM, and a new process as soon as the old one has ended by itself."""
        assert self.server.stop() == 0
        self.close()
        self.start()

    def reload(self) -> None:
        self.server.reload(**self._overrides)

    def close(self) -> None:
        if self._running is not None:
            self._running.__exit__(None, None, None)
            self._running = None

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def audit_log(self) -> str:
        return self.server.stdout

    def client(self, **options: Any) -> Client:
        """A client of this server alone, who is the admin."""
        return Client(
            self.server.endpoint, api_key=self._api_key.text, ca_file=self._folder.parent / "kes.crt", **options
        )


class Cluster:
    def __init__(self, folder: Path, count: int, **overrides: Any) -> None:
        """`overrides`: of the configuration of all, as for `start_server`."""
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.api_key = APIKey.generate()
        """Of the admin."""
        (folder / "keys").mkdir(mode=0o700)
        self.ca_file = folder / "kes.crt"
        pair = self_signed(
            NAME, lifetime=timedelta(days=1), dns=[NAME, "localhost"], ips=["127.0.0.1", "::1"], server=True
        )
        self.ca_file.write_text(pair.certificate_pem)
        key = folder / "kes.key"
        key.touch(mode=0o600)
        key.write_text(pair.key_pem())
        section = {**overrides.pop("tls", {}), "cert": str(self.ca_file), "key": str(key)}
        self.members = [
            Member(folder / f"kes-{number}", self.api_key, {**overrides, "tls": section})
            for number in range(1, count + 1)
        ]

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for member in self.members:
            member.close()

    @property
    def ports(self) -> list[int]:
        return [member.port for member in self.members]
