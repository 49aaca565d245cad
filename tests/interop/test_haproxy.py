"""What only HAProxy does: it asks each server again and again whether it is ready, and repeats what was lost."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from support.proxies import HAPROXY, Front, behind
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
