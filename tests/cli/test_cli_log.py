"""`kes log` through pipes and on a terminal, against real servers."""

import json
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keswick.cli.log import as_row
from keswick.client import AuditEvent
from keswick.identity import APIKey
from support.api import Caller, new_pair
from support.cli import Terminal, kes, kes_in_background
from support.server import RunningServer, start_server

USER = APIKey.generate()
"""Somebody who may not read logs."""
HEADER = "Time        Status    Identity                IP                 API                               Latency"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    policy = {"app": {"allow": ["/v1/key/list/*"], "identities": [USER.identity]}}
    folder = tmp_path_factory.mktemp("server")
    with start_server(folder, policy=policy, log={"audit": "on"}) as server:
        (folder / "keys" / "broken").write_text("no key")  # whose look-up is an event of the error log
        yield server


@pytest.fixture(scope="module")
def stranger(server: RunningServer) -> Caller:
    """Somebody without any rights, whose requests are recorded."""
    return Caller(server.port, new_pair(), server.folder)


def next_line(process: "subprocess.Popen[str]", request: Callable[[], object]) -> str:
    """The first line of a follower, but not that of its own request; requests are made until there is one."""
    assert process.stdout is not None
    deadline = time.monotonic() + 20
    while not select.select([process.stdout], [], [], 0.05)[0]:
        assert process.poll() is None
        assert time.monotonic() < deadline
        request()
    line = process.stdout.readline()
    return line if "/v1/log/" not in line else next_line(process, request)


# --- for programs ---


def test_the_audit_log_is_rows_under_a_header(server: RunningServer, stranger: Caller) -> None:
    with kes_in_background("log", env=server.environment) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == f"{HEADER}\n"  # from here on the log is followed
        long = "/v1/key/describe/" + "a" * 40
        for path, shown in (("/version", f"{'/version':<34}"), (long, f"{long} ")):
            assert stranger.call("GET", path).status in (200, 403)
            status = "200" if path == "/version" else "403"
            start = rf"\d\d:\d\d:\d\d    {status}       {stranger.identity[:20]}    127\.0\.0\.1          "
            row = process.stdout.readline()
            while "/v1/log/audit" in row:  # the follower's own request
                row = process.stdout.readline()
            assert re.fullmatch(rf"{start}{shown}(\d+ms|<1ms)\n", row)
        process.send_signal(signal.SIGINT)
        assert (process.wait(20), process.stderr.read()) == (1, "")


@pytest.mark.parametrize(
    ("arguments", "most"),
    [(["log", "--json"], 1_000), (["log", "trace"], 10**9), (["log", "trace", "--type=audit", "--json"], 10**9)],
)
def test_the_audit_log_as_the_server_sends_it(
    server: RunningServer, stranger: Caller, arguments: list[str], most: int
) -> None:
    """`most`: a second, in the unit of the response time."""
    with kes_in_background(*arguments, env=server.environment) as process:
        line = next_line(process, lambda: stranger.call("GET", "/v1/key/describe/a%C2%9Bb"))
        event = json.loads(line)
        path = "/v1/key/describe/a\x9bb"
        assert event["request"] == {"ip": "127.0.0.1", "path": path, "identity": stranger.identity}
        assert path in line  # as it was sent
        assert event["response"]["code"] == 403
        assert most // 10**6 <= event["response"]["time"] < most


@pytest.mark.parametrize("arguments", [["log", "--error"], ["log", "trace", "--type", "error"]])
def test_the_error_log(server: RunningServer, arguments: list[str]) -> None:
    admin = server.client()

    def look_up() -> None:
        with pytest.raises(Exception, match="failed to read key"):
            admin.describe_key("broken")

    with admin:
        for flags in ([], ["--json"]):
            with kes_in_background(*arguments, *flags, env=server.environment) as process:
                line = next_line(process, look_up)
                raw = "trace" in arguments or flags
                message = json.loads(line)["message"] if raw else line
                assert message.startswith("time=")
                assert "level=ERROR" in message
                assert "req.path=/v1/key/describe/broken" in message


def test_the_end_of_the_stream_is_an_error(server: RunningServer) -> None:
    with (
        start_server(server.folder / "stopping") as stopping,
        kes_in_background("log", env=stopping.environment) as process,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        assert stopping.stop() == 0
        assert process.wait(20) == 1
        assert process.stderr.read() == "Error: the server has ended the audit log\n"


def test_what_cannot_be_followed(server: RunningServer) -> None:
    environment = {**server.environment, "KES_API_KEY": USER.text}
    refused = "not authorized: insufficient permissions"
    assert kes("log", env=environment) == (1, "", f"Error: failed to read the audit log: {refused}\n")
    assert kes("log", "--error", env=environment) == (1, "", f"Error: failed to read the error log: {refused}\n")
    assert kes("log", "--audit", "--error") == (
        1,
        "",
        "Error: cannot display audit and error logs at the same time\n",
    )
    assert kes("log", "trace", "--type", "bogus").stderr == (
        'Error: invalid argument "bogus" for "--type" flag: it is one of audit, error, metric. '
        "See 'kes log trace --help'\n"
    )
    assert kes("log", "bogus").stderr.startswith("Error: ")


# --- for people ---


def row(terminal: Terminal, text: str) -> str:
    """The first line with that text, once it is there."""
    terminal.wait_for(text)
    return next(line for line in terminal.lines if text in line)


def test_rows_on_a_terminal_fit_into_the_window(server: RunningServer, stranger: Caller) -> None:
    with Terminal("log", env=server.environment) as terminal:
        terminal.wait_for("Latency")
        assert "\x1b[1mTime    \x1b[0m" in terminal.output.decode()
        assert stranger.call("GET", "/v1/key/describe/" + "a" * 100).status == 403
        short = row(terminal, "aaa")
        assert re.fullmatch(
            rf"\d\d:\d\d:\d\d  403     {stranger.identity[:7]}…  127\.0\.0\.1        /v1/key/describe/aaa+…  \S+", short
        )
        assert len(short) <= 80
        assert b"\x1b[33m403" in terminal.output

        terminal.resize(120, 24)
        assert stranger.call("GET", "/version").status == 200
        wide = row(terminal, "/version")
        assert stranger.identity[:20] in wide
        assert b"\x1b[32m200" in terminal.output

        terminal.resize(40, 24)
        assert stranger.call("GET", "/v1/key/list/").status == 403
        assert re.fullmatch(r"\d\d:\d\d:\d\d  403     /v1/key/list/  \S+", row(terminal, "/v1/key/list"))

        terminal.press_ctrl_c()
        assert terminal.wait() == 1
        assert terminal.is_clean
        assert "^C" not in terminal.shown
        assert b"\x1b[?1049h" not in terminal.output  # rows stay, to scroll back to


def test_without_colours(server: RunningServer, stranger: Caller) -> None:
    for variables in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        with Terminal("log", env={**server.environment, **variables}) as terminal:
            terminal.wait_for("Latency")
            stranger.call("GET", "/version")
            terminal.wait_for("/version")
            assert b"\x1b" not in terminal.output


@pytest.mark.parametrize("arguments", [["log"], ["log", "--json"], ["log", "trace"]])
def test_what_others_send_does_not_reach_a_terminal_as_it_is(
    server: RunningServer, stranger: Caller, arguments: list[str]
) -> None:
    with Terminal(*arguments, env={**server.environment, "NO_COLOR": "1"}, size=(300, 24)) as terminal:

        def requested() -> bool:
            stranger.call("GET", "/v1/key/describe/%1B%5B31m-%C2%9B31m-%E2%80%AE")
            return "describe" in terminal.shown

        terminal.wait_for(requested)
        terminal.press_ctrl_c()
        terminal.wait()
        shown = terminal.output.decode().replace("\r\x1b[K", "")
        assert "\x1b" not in shown
        assert "\x9b" not in shown
        assert "\u202e" not in shown
        assert r"\x9b31m" in shown
        assert r"\u202e" in shown


def test_a_name_of_wide_characters_keeps_the_columns(server: RunningServer, stranger: Caller) -> None:
    with Terminal("log", env=server.environment) as terminal:
        terminal.wait_for("Latency")
        stranger.call("GET", "/v1/key/describe/" + "%E9%8D%B5" * 30)  # each takes two columns
        cut = row(terminal, "鍵")
        assert re.search(r"describe/鍵+ ?…  \S+$", cut)
        # The screen has an empty cell behind each of them.
        assert len(cut) + cut.count("鍵") <= 80


def test_the_end_of_the_stream_on_a_terminal(server: RunningServer) -> None:
    with (
        start_server(server.folder / "ending") as ending,
        Terminal("log", env={**ending.environment, "NO_COLOR": "1"}) as terminal,
    ):
        terminal.wait_for("Latency")
        ending.stop()
        assert terminal.wait() == 1
        assert terminal.is_clean
        assert terminal.shown.splitlines()[-1] == "Error: the server has ended the audit log"


def test_metrics_in_the_words_of_2021_are_the_same_view(server: RunningServer) -> None:
    with Terminal("log", "trace", "--type", "metric", "--rate=100ms", env=server.environment) as terminal:
        terminal.wait_for("Response time")
        assert terminal.has_own_screen
        terminal.press_ctrl_c()
        assert terminal.wait() == 1
        assert terminal.is_clean


@given(
    st.builds(
        AuditEvent,
        time=st.one_of(st.text(), st.datetimes().map(lambda time: f"{time.isoformat()}Z")),
        path=st.text(),
        identity=st.text(),
        ip=st.text(),
        status=st.integers(),
        response_time=st.integers(0, 1 << 70),
        raw=st.just(""),
    )
)
@settings(deadline=None)
def test_any_event_is_one_line(event: AuditEvent) -> None:
    assert all(cell.isprintable() for cell in as_row(event))
