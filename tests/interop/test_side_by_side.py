"""Three servers on one folder of keys behind one proxy, which are restarted and lose their store under load."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest

from keswick.client import AsyncClient, Client, KeyNotFound
from support.cluster import Member
from support.proxies import HAPROXY, NGINX, Front, behind
from support.transport import wait_until

HTTP = ("nginx", "haproxy")
WAYS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "nginx": (NGINX, "http.conf", {}),
    "haproxy": (HAPROXY, "http.cfg", {}),
    "nginx-stream": (NGINX, "stream.conf", {}),
    "haproxy-tcp": (HAPROXY, "tcp.cfg", {"proxy_protocol": {"from": ["127.0.0.0/8"]}}),
}
STOP = {"delay": "3s", "linger": "2s", "drain": "15s"}
"""As in deploy/behind-a-proxy.yaml."""
REQUESTS_PER_SECOND = 200
NEWCOMERS_PER_SECOND = 10
"""Of them each makes a key, over a connection of its own."""


@pytest.fixture(scope="module")
def front(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    program, name, section = WAYS[request.param]
    with behind(
        program,
        name,
        tmp_path_factory.mktemp(request.param),
        servers=3,
        keys=[{"name": "my-key"}],
        stop=STOP,
        cache={"expiry": {"any": "1s", "unused": "1s"}},
        **section,
    ) as front:
        yield front


@pytest.mark.parametrize("front", HTTP, indirect=True)
def test_a_key_made_through_one_server_is_there_for_all_at_once(front: Front) -> None:
    with front.client() as client, ExitStack() as stack:
        direct = [stack.enter_context(member.client()) for member in front.cluster.members]
        for number in range(20):
            direct[number % 3].create_key(f"new-{number}")
            made = direct[(number + 1) % 3].generate_key(f"new-{number}")
            assert direct[(number + 2) % 3].decrypt(f"new-{number}", made.ciphertext) == made.plaintext
            assert client.decrypt(f"new-{number}", made.ciphertext) == made.plaintext


@pytest.mark.parametrize("front", HTTP, indirect=True)
def test_a_deleted_key_dies_on_all_servers_when_their_cached_one_expires(front: Front) -> None:
    with ExitStack() as stack:
        direct = [stack.enter_context(member.client()) for member in front.cluster.members]
        direct[0].create_key("deleted")
        for client in direct:
            client.generate_key("deleted")  # from now on it is in the cache of each
        direct[0].delete_key("deleted")
        with pytest.raises(KeyNotFound):
            direct[0].generate_key("deleted")
        for client in direct[1:]:
            wait_until(partial(is_gone, client, "deleted"))


def is_gone(client: Client, name: str) -> bool:
    try:
        client.generate_key(name)
    except KeyNotFound:
        return True
    return False


class Load:
    """Clients who ask for data keys and have them opened, so often in a second, whatever happens behind the proxy; and
    now and then one who comes, makes a key and goes."""

    def __init__(self, front: Front, name: str) -> None:
        """`name`: what the keys are called that are made."""
        self._front, self._name = front, name
        self.answered = 0
        self.made = 0
        self.failures: list[str] = []

    def run_during(self, work: Callable[[], None]) -> None:
        asyncio.run(self._run_during(work))

    async def _run_during(self, work: Callable[[], None]) -> None:
        busy = asyncio.create_task(asyncio.to_thread(work))
        async with self._front.async_client() as first, self._front.async_client(http2=False) as second:
            begun, asked, came = time.monotonic(), 0, 0
            async with asyncio.TaskGroup() as running:
                while not busy.done():
                    passed = time.monotonic() - begun
                    for number in range(asked, int(passed * REQUESTS_PER_SECOND), 2):
                        running.create_task(self._ask_twice((first, second)[number // 2 % 2]))
                        asked += 2
                    for number in range(came, int(passed * NEWCOMERS_PER_SECOND)):
                        running.create_task(self._come_and_make(number))
                        came += 1
                    await asyncio.sleep(0.005)
        await busy

    async def _come_and_make(self, number: int) -> None:
        try:
            async with self._front.async_client(http2=number % 2 == 0) as newcomer:
                await newcomer.create_key(f"{self._name}-{number}")
                self.made += 1
        except Exception as error:
            self.failures.append(repr(error))

    async def _ask_twice(self, client: AsyncClient) -> None:
        try:
            made = await client.generate_key("my-key")
            assert await client.decrypt("my-key", made.ciphertext) == made.plaintext
            self.answered += 2
        except Exception as error:
            self.failures.append(repr(error))


@pytest.mark.parametrize("front", WAYS, indirect=True)
def test_no_client_notices_that_servers_are_restarted_one_after_the_other(front: Front) -> None:
    def restart_all() -> None:
        for member in front.cluster.members:
            member.restart()
            if front.is_http:  # else only new connections find their way to it, and all clients have one
                wait_until(partial(is_in_rotation, member))

    load = Load(front, "made-during-restarts")
    load.run_during(restart_all)
    assert load.failures == []
    assert load.answered > 1000
    assert load.made > 50
    with front.client() as client:
        assert sum(name.startswith("made-during-restarts-") for name in client.list_keys()) == load.made


def is_in_rotation(member: Member) -> bool:
    """Whether a server that has just started gets requests from the proxy, other than checks."""
    return "/v1/key/generate/my-key" in member.audit_log


@pytest.mark.parametrize("front", WAYS, indirect=True)
def test_no_client_notices_that_servers_are_reloaded_one_after_the_other(front: Front) -> None:
    def reload_all() -> None:
        while load.answered < 500 and not load.failures:
            for member in front.cluster.members:
                member.reload()

    load = Load(front, "made-during-reloads")
    load.run_during(reload_all)
    assert load.failures == []
