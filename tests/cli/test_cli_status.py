"""`kes status`, against a real server and against none."""

import json
import re
from collections.abc import Iterator

import pytest

from keswick.identity import APIKey
from support.cli import Result, kes, kes_on_terminal
from support.fake_server import Answer, fake_server
from support.server import RunningServer, start_server

NOBODY = "127.0.0.1:1"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with start_server(tmp_path_factory.mktemp("server")) as server:
        yield server


def run(server: RunningServer, *arguments: str, **env: str) -> Result:
    return kes("status", *arguments, env={**server.environment, **env})


def block(server: RunningServer) -> str:
    return (
        rf"● 127\.0\.0\.1:{server.port}\n  Version  \S+\n  Uptime   \d+ \w+\n  Latency  \d+ms\n  OS       \w+\n"
        r"  CPUs     \d+ \w+\n  Memory\n  · Heap   [\d.]+MB\n  · Stack  [\d.]+KB\n"
    )


def test_a_status_for_people(server: RunningServer) -> None:
    result = run(server)
    assert (result.code, result.stderr) == (0, "")
    assert re.fullmatch(block(server), result.stdout)
    assert run(server, "--short").stdout == run(server, "-s", "-k").stdout == f"● 127.0.0.1:{server.port}\n"


def test_colours(server: RunningServer) -> None:
    green = f"\x1b[32m●\x1b[0m 127.0.0.1:{server.port}\n"
    assert run(server, "-s", "--color", "always").stdout == green
    assert kes_on_terminal("status", "-s", env=server.environment) == (0, green)
    for env, flags in (({"NO_COLOR": "1"}, []), ({"TERM": "dumb"}, []), ({}, ["--color=never"])):
        shown = kes_on_terminal("status", "-s", *flags, env={**server.environment, **env})
        assert shown == (0, f"● 127.0.0.1:{server.port}\n")
    assert run(server, "--color=x").stderr == (
        'Error: invalid argument "x" for "--color" flag: invalid color option. See \'kes status --help\'\n'
    )


def test_a_status_as_json(server: RunningServer) -> None:
    line = run(server, "--json").stdout
    assert line.count("\n") == 1
    status = json.loads(line)
    assert list(status)[:8] == [
        *("version", "os", "arch", "uptime", "num_cpu", "num_cpu_used", "mem_heap_used", "mem_stack_used")
    ]
    assert set(status) <= {*list(status)[:8], "keystore_latency"}
    _, shown = kes_on_terminal("status", "--json", env=server.environment)
    assert shown.startswith('{\n  "version": "')
    assert list(json.loads(shown)) == list(status)
    assert kes_on_terminal("status", "--json", "-s", env=server.environment)[1].count("\n") == 1


def test_the_apis(server: RunningServer) -> None:
    result = run(server, "--api", "--color=never")
    status, _, table = result.stdout.partition("\n\n")
    assert re.fullmatch(block(server), status + "\n")
    header, *rows = (line.split() for line in table.splitlines())
    assert header == ["Method", "API", "Timeout"]
    assert ["PUT", "/v1/key/create/", "15s"] in rows
    assert ["GET", "/v1/log/audit", "Inf"] in rows
    apis = json.loads(run(server, "--api", "--json").stdout)
    assert {"method": "PUT", "path": "/v1/key/encrypt/", "max_body": 1000000, "timeout": 15} in apis
    assert {"method": "GET", "path": "/v1/log/audit"} in apis
    assert len(apis) == len(rows)


def test_each_server_is_asked(server: RunningServer) -> None:
    twice = f"{server.endpoint},localhost:{server.port}"
    result = run(server, KES_SERVER=twice)
    second = block(server).replace(r"127\.0\.0\.1", "localhost")
    assert re.fullmatch(f"{block(server)}\n{second}", result.stdout)
    lines = [json.loads(line) for line in run(server, "--json", KES_SERVER=twice).stdout.splitlines()]
    assert [line["endpoint"] for line in lines] == twice.split(",")
    lines = [json.loads(line) for line in run(server, "--json", "--api", KES_SERVER=twice).stdout.splitlines()]
    assert all(line["apis"] for line in lines)


def test_one_of_several_does_not_answer(server: RunningServer) -> None:
    assert re.fullmatch(block(server), run(server, KES_SERVER=f"{NOBODY},{server.endpoint}").stdout)
    result = run(server, "-s", KES_SERVER=f"{NOBODY},{server.endpoint}")
    assert (result.code, result.stdout) == (0, f"● 127.0.0.1:{server.port}\n")
    assert re.fullmatch(r"Warning: cannot connect to https://127\.0\.0\.1:1: [^\n]*\n", result.stderr)


def test_none_answers() -> None:
    environment = {"KES_API_KEY": APIKey.generate().text, "KES_SERVER": NOBODY}
    for _ in range(2):
        result = kes("status", env=environment)
        assert (result.code, result.stdout) == (1, "")
        assert re.fullmatch(r"Error: cannot connect to https://127\.0\.0\.1:1: [^\n]*\n", result.stderr)
        environment["KES_SERVER"] = f"{NOBODY},localhost:1"
    assert "; " in result.stderr
    del environment["KES_API_KEY"]
    assert kes("status", env=environment).stderr == "Error: no API key specified. Consider setting KES_API_KEY\n"


def test_a_key_store_that_is_away_is_told(tmp_path_factory: pytest.TempPathFactory) -> None:
    body = b'{"version":"1","os":"linux","arch":"amd64","uptime":3600,"keystore_unreachable":true}'
    with fake_server(tmp_path_factory.mktemp("fake"), lambda *_: Answer(body=body)) as fake:
        environment = {"KES_SERVER": fake.endpoint, "KES_API_KEY": APIKey.generate().text}
        shown = kes("status", "-k", "--color", "always", env=environment).stdout
        assert shown.startswith("\x1b[33m●\x1b[0m 127.0.0.1:")
        assert "\n  Store    unreachable\n" in shown
        assert '"keystore_unreachable":true' in kes("status", "-k", "--json", env=environment).stdout


def test_too_many_arguments() -> None:
    assert kes("status", "x") == (1, "", "Error: too many arguments. See 'kes status --help'\n")
