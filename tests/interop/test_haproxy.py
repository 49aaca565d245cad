"""What only HAProxy does: it asks each server again and again whether it is ready, repeats what was lost, and starts
without a server that it cannot find."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from keswick.client import APIError
from support.proxies import HAPROXY, NGINX, Front, behind
from support.transport import wait_until


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Front]:
    with behind(
        HAPROXY,
        "http.cfg",
        tmp_path,
        servers=3,
        keys=[{"name": "my-key"}],
        cache={"expiry": {"any": "1s", "unused": "1s"}},
        log={"audit": "on"},
        stop={"delay": "3s"},
    ) as front:
        yield front


def test_a_server_without_its_key_store_gets_no_requests_until_it_is_back(front: Front) -> None:
    lost = front.cluster.members[1]
    said = partial(lambda words: words in front.proxy.log)
    lost.store.rename(lost.store.with_name("elsewhere"))
    wait_until(partial(said, "Server kes/kes-2 is DOWN"))
    assert "code: 504" in front.proxy.log or "code: 502" in front.proxy.log
    with front.client() as client:
        for _ in range(60):
            made = client.generate_key("my-key")
            assert client.decrypt("my-key", made.ciphertext) == made.plaintext
    lost.store.with_name("elsewhere").rename(lost.store)
    wait_until(partial(said, "Server kes/kes-2 is UP"))

    def is_asked() -> bool:
        with front.client() as client:
            client.generate_key("my-key")
        return "/v1/key/generate/my-key" in lost.audit_log

    wait_until(is_asked)


def test_a_server_that_goes_on_with_cached_keys_stays_and_has_no_others(tmp_path: Path) -> None:
    def checks_passed() -> int:
        return sum('"path":"/v1/ready"' in line and '"code":200' in line for line in lost.audit_log.splitlines())

    def is_lost() -> bool:
        with lost.client(retries=0) as direct:
            try:
                direct.ready()
            except APIError:
                return True
        return False

    with (
        behind(
            HAPROXY,
            "http.cfg",
            tmp_path,
            servers=3,
            keys=[{"name": "cached"}, {"name": "not-cached"}],
            cache={"expiry": {"any": "1h", "unused": "1h", "offline": "1h"}},
            log={"audit": "on", "audit_skip": []},
        ) as front,
        front.client() as client,
    ):
        lost = front.cluster.members[1]
        for member in front.cluster.members:
            with member.client() as direct:
                direct.generate_key("cached")
        lost.store.rename(lost.store.with_name("elsewhere"))
        wait_until(is_lost)
        before = checks_passed()
        wait_until(lambda: checks_passed() >= before + 3)
        before = lost.audit_log.count("/v1/key/generate/cached")
        for _ in range(60):
            client.generate_key("cached")
        assert lost.audit_log.count("/v1/key/generate/cached") > before
        outcomes = set()
        for _ in range(60):
            try:
                client.generate_key("not-cached")
                outcomes.add(200)
            except APIError as error:
                outcomes.add(error.status)
        assert 200 in outcomes
        assert outcomes & {502, 504}
        with lost.client(retries=0) as direct:
            for operate in (direct.create_key, direct.delete_key, lambda name: list(direct.list_keys(name))):
                with pytest.raises(APIError) as failure:
                    operate("another")
                assert failure.value.status in (502, 504)
        assert "is DOWN" not in front.proxy.log


SECOND = {"server kes-2 kes-2.internal:7373": "server kes-2 kes-2.internal:7373\n    server gone kes.invalid:7373"}


@pytest.mark.parametrize(
    ("name", "section"), [("http.cfg", {}), ("tcp.cfg", {"proxy_protocol": {"from": ["127.0.0.0/8"]}})]
)
def test_it_starts_while_one_server_has_no_address_and_serves_through_the_others(
    name: str, section: dict[str, Any], tmp_path: Path
) -> None:
    with behind(HAPROXY, name, tmp_path, servers=2, changes=SECOND, keys=[{"name": "my-key"}], **section) as front:
        assert "could not resolve address 'kes.invalid'" in front.proxy.log
        for _ in range(10):
            with front.client() as client:
                assert client.generate_key("my-key")


@pytest.mark.parametrize("name", ["http.conf", "stream.conf"])
def test_nginx_does_not(name: str, tmp_path: Path) -> None:
    changes = {"server kes-2.internal:7373 ": "server kes.invalid:7373; server kes-2.internal:7373 "}
    with (
        pytest.raises(AssertionError, match="host not found in upstream"),
        behind(NGINX, name, tmp_path, changes=changes, servers=2),
    ):
        pass


def test_a_request_that_was_lost_with_its_server_goes_to_another_one(front: Front) -> None:
    killed = front.cluster.members[2].server.process
    with ThreadPoolExecutor(1) as pool, front.client() as client:
        client.generate_key("my-key")
        for number in range(600):
            if number == 200:
                pool.submit(killed.kill)
            made = client.generate_key("my-key")
            assert client.decrypt("my-key", made.ciphertext) == made.plaintext
    assert killed.wait(20) != 0


def test_a_server_that_stops_is_left_out_before_it_refuses_connections(front: Front) -> None:
    stopping = front.cluster.members[0].server
    wait_until(lambda: "/v1/ready" in stopping.stdout)
    assert stopping.stop() == 0
    wait_until(lambda: "Server kes/kes-1 is DOWN" in front.proxy.log)
    (said,) = [line for line in front.proxy.log.splitlines() if line.startswith("Server kes/kes-1 is DOWN")]
    assert "Layer7 wrong status, code: 503" in said
