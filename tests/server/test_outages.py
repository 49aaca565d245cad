"""A real OpenBao that is killed, sealed, or hangs, while a server on it is under load."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from keswick.keystore.http import RETRIES
from keswick.server.store import OUTAGE_CALLS
from support.api import Caller, new_pair
from support.certificates import Pair
from support.fault_proxy import FaultProxy
from support.openbao import OpenBao
from support.server import RunningServer, start_server

BACK_SECONDS = 10.0
"""In which a server must be back after its key store is."""


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    with OpenBao(tmp_path_factory.mktemp("bao")) as bao:
        bao.enable_kv("kv", 2)
        yield bao


@pytest.fixture(scope="module")
def section(bao: OpenBao) -> dict[str, Any]:
    return bao.configuration("kv", 2)


class Cast:
    """A server on OpenBao, its admin, and clients that never stop asking for a key that is cached."""

    def __init__(self, server: RunningServer, pair: Pair, folder: Path) -> None:
        self.server = server
        self._pair = pair
        self._folder = folder
        self.admin = self.caller()

    def caller(self) -> Caller:
        return Caller(self.server.port, self._pair, self._folder)

    @property
    def identity(self) -> str:
        return self.admin.identity

    @contextmanager
    def load(self, name: str) -> Iterator[list[int]]:
        """Yields the statuses of all answers until now."""
        statuses: list[int] = []
        enough = threading.Event()

        def ask(caller: Caller) -> None:
            while not enough.is_set():
                statuses.append(caller.call("PUT", f"/v1/key/generate/{name}").status)

        threads = [threading.Thread(target=ask, args=[self.caller()]) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            until(lambda: len(statuses) > 20)
            yield statuses
            count = len(statuses)
            until(lambda: len(statuses) > count + 20)
        finally:
            enough.set()
            for thread in threads:
                thread.join(30)
        assert set(statuses) == {200}


@contextmanager
def serving(folder: Path, section: dict[str, Any]) -> Iterator[Cast]:
    """The keys `cached` and, not read yet, `cold-0` to `cold-59` are there."""
    pair = new_pair()
    with start_server(
        folder,
        keystore={"fs": None, "vault": section},
        cache={"expiry": {"any": "1h", "unused": "1h", "offline": "1h"}},
        admin={"identity": Caller(1, pair, folder.parent).identity},
        keys=[{"name": "cached"}, *({"name": f"cold-{number}"} for number in range(60))],
    ) as server:
        cast = Cast(server, pair, folder)
        assert cast.admin.call("PUT", "/v1/key/generate/cached").status == 200
        yield cast


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


def is_ready(cast: Cast) -> bool:
    return cast.admin.call("GET", "/v1/ready").status == 200


def is_known_to_be_away(cast: Cast) -> bool:
    return "\nkes_keystore_offline 1\n" in cast.admin.call("GET", "/v1/metrics").body.decode()


def assert_away(cast: Cast, cold: str) -> None:
    """What clients and the operator are told of an outage."""
    admin = cast.admin
    assert (answer := admin.call("PUT", f"/v1/key/generate/{cold}")).status == 502, answer
    assert answer.message == "failed to read key"
    assert admin.call("PUT", "/v1/key/create/new").message == "failed to create key"
    assert admin.call("DELETE", f"/v1/key/delete/{cold}").message == "failed to delete key"
    assert admin.call("GET", "/v1/key/list/").message == "failed to list keys"
    ready = admin.call("GET", "/v1/ready")
    assert (ready.status, ready.message) == (504, "key store is not reachable")
    assert admin.call("GET", "/v1/ready?cached=ok").status == 200
    assert admin.call("GET", "/v1/status").json["keystore_unreachable"] is True
    assert is_known_to_be_away(cast)


def test_openbao_is_killed_and_started_again_under_load(bao: OpenBao, section: dict[str, Any], tmp_path: Path) -> None:
    with serving(tmp_path / "kes", section) as cast:
        for turn in range(2):
            with cast.load("cached"):
                bao.kill()
                assert_away(cast, f"cold-{turn}")
                cast.server.wait_for("the key store is not reachable: ", stream="stderr", count=turn + 1)
                assert "Connection refused" in cast.server.line("is not reachable: ", stream="stderr")
                bao.start()
                until(lambda: is_ready(cast), BACK_SECONDS)
                assert cast.admin.call("PUT", f"/v1/key/generate/cold-{turn}").status == 200
                assert cast.admin.call("PUT", f"/v1/key/create/made-{turn}").status == 200
            cast.server.wait_for("the key store is back, after it was away", stream="stderr", count=turn + 1)
        for turn in range(2):
            assert cast.admin.call("DELETE", f"/v1/key/delete/made-{turn}").status == 200


def test_openbao_is_sealed_and_unsealed_under_load(bao: OpenBao, section: dict[str, Any], tmp_path: Path) -> None:
    with serving(tmp_path / "kes", {**section, "status": {"ping": "200ms"}}) as cast, cast.load("cached"):
        bao.seal()
        try:
            assert_away(cast, "cold-10")
            assert "sealed" in cast.server.line("the key store is not reachable: ", stream="stderr")
        finally:
            bao.unseal()
        until(lambda: is_ready(cast), BACK_SECONDS)
        assert cast.admin.call("PUT", "/v1/key/generate/cold-10").status == 200


def test_a_key_store_that_hangs_holds_up_nothing_else(bao: OpenBao, tmp_path: Path) -> None:
    with FaultProxy(bao.plain_port) as proxy:
        section = {**bao.configuration("kv", 2, plain=True), "endpoint": proxy.endpoint}
        with serving(tmp_path / "kes", section) as cast, cast.load("cached"):
            with proxy.fault("hanging"):
                until(lambda: not is_ready(cast))
                until(lambda: is_known_to_be_away(cast))
                begun = len(proxy.requests)
                with ThreadPoolExecutor(40) as pool:
                    asked = [
                        pool.submit(cast.caller().call, "PUT", f"/v1/key/generate/cold-{number}")
                        for number in range(20, 60)
                    ]
                    # Another policy is in force at once, though every call of the store hangs.
                    cast.server.reload(policy={"p": {"allow": ["/version"]}}, **overrides(cast, section))
                    assert cast.admin.call("GET", "/v1/policy/describe/p").status == 200
                    assert {call.result().status for call in asked} <= {502, 503}
                tried = [path for _, path in proxy.requests[begun:] if "cold-" in path]
                assert len(set(tried)) <= OUTAGE_CALLS
                assert len(tried) <= OUTAGE_CALLS * (RETRIES + 1)
            until(lambda: is_ready(cast), BACK_SECONDS)
            assert cast.admin.call("PUT", "/v1/key/generate/cold-30").status == 200


def overrides(cast: Cast, section: dict[str, Any]) -> dict[str, Any]:
    return {
        "keystore": {"fs": None, "vault": section},
        "cache": {"expiry": {"any": "1h", "unused": "1h", "offline": "1h"}},
        "admin": {"identity": cast.identity},
    }
