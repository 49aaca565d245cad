"""`kes metric` through pipes and on a terminal, against real servers."""

import io
import json
import re
import signal
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from keswick.cli.metric import Scrape, View, json_line, per_second, quantile, response_times
from keswick.client import Metrics
from keswick.identity import APIKey
from support.cli import Terminal, kes, kes_in_background
from support.server import RunningServer, start_server

USER = APIKey.generate()
"""Somebody who may not read metrics."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    policy = {"app": {"allow": ["/v1/key/list/*"], "identities": [USER.identity]}}
    with start_server(tmp_path_factory.mktemp("server"), policy=policy, log={"audit": "on"}) as server:
        yield server


# --- for programs ---

KEYS = [
    "kes_http_request_success",
    "kes_http_request_error",
    "kes_http_request_failure",
    "kes_http_request_active",
    "kes_log_audit_events",
    "kes_log_error_events",
    "kes_http_response_time",
    "kes_system_up_time",
    "kes_system_num_cpu",
    "kes_system_num_cpu_used",
    "kes_system_num_threads",
    "kes_system_mem_heap_used",
    "kes_system_mem_heap_objects",
    "kes_system_mem_stack_used",
]
BOUNDS = [10, 50, 100, 250, 500, 1000, 1500, 3000, 5000, 10000]
"""Milliseconds."""


@pytest.mark.parametrize("arguments", [["metric"], ["log", "trace", "--type", "metric"]])
def test_a_program_gets_an_object_for_each_interval(server: RunningServer, arguments: list[str]) -> None:
    with (
        server.client() as client,
        kes_in_background(*arguments, "--rate", "50ms", env=server.environment) as process,
    ):
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        assert list(first) == KEYS
        assert list(first["kes_http_response_time"]) == [str(bound * 1_000_000) for bound in BOUNDS]
        assert all(isinstance(first[key], int) for key in KEYS if key != "kes_http_response_time")
        assert first["kes_http_request_active"] >= 1  # the scrape itself
        assert first["kes_system_num_cpu"] >= first["kes_system_num_cpu_used"] >= 1
        assert first["kes_system_mem_heap_used"] > 1_000_000
        assert 0 < first["kes_system_up_time"] < 120 * 1e9

        for _ in range(3):
            client.version()
        later = json.loads(process.stdout.readline())
        while later["kes_http_request_success"] < first["kes_http_request_success"] + 3:
            later = json.loads(process.stdout.readline())
        assert later["kes_system_up_time"] > first["kes_system_up_time"]
        assert later["kes_http_response_time"]["10000000000"] >= first["kes_http_response_time"]["10000000000"] + 3

        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 1
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_a_program_is_told_when_the_server_is_lost(server: RunningServer) -> None:
    with (
        start_server(server.folder / "lost") as lost,
        kes_in_background("metric", "--rate", "50ms", env=lost.environment) as process,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        lost.process.kill()
        assert process.wait(20) == 1
        assert process.stderr.read().startswith("Error: failed to read metrics: ")


@pytest.mark.parametrize(
    ("rate", "reason"),
    [
        ("3", "a duration needs a unit"),
        ("soon", "this is not a duration"),
        ("0s", "it must be more than 0s"),
        ("-1s", "it must be more than 0s"),
    ],
)
def test_a_rate_that_is_none(rate: str, reason: str) -> None:
    result = kes("metric", f"--rate={rate}")
    assert (result.code, result.stdout) == (1, "")
    assert result.stderr.startswith(f'Error: invalid argument "{rate}" for "--rate" flag: {reason}')
    assert result.stderr.endswith(". See 'kes metric --help'\n")


def test_who_may_not_read_metrics_gets_an_error_and_no_view(server: RunningServer) -> None:
    environment = {**server.environment, "KES_API_KEY": USER.text}
    error = "Error: failed to read metrics: not authorized: insufficient permissions\n"
    assert kes("metric", env=environment) == (1, "", error)
    with Terminal("metric", env={**environment, "NO_COLOR": "1"}) as terminal:
        assert terminal.wait() == 1
        assert terminal.output.decode().replace("\r\n", "\n") == error


# --- for people ---


def test_the_view_shows_what_the_server_does_and_leaves_the_terminal_clean(server: RunningServer) -> None:
    with server.client() as client, Terminal("metric", "--rate", "100ms", env=server.environment) as terminal:
        terminal.wait_for("Response time")
        assert terminal.has_own_screen
        assert terminal.lines[0] == server.endpoint
        assert terminal.lines[1].startswith("up ")
        for _ in range(25):
            client.version()
        terminal.wait_for(lambda: _count(terminal, "all", -1) >= 25)
        terminal.wait_for(lambda: _count(terminal, "audit", -1) >= 25)
        terminal.wait_for("50% within")
        assert len(terminal.shown.splitlines()) <= 24

        terminal.press_ctrl_c()
        assert terminal.wait() == 1
        assert terminal.is_clean
        assert b"\x1b[?25h\x1b[?1049l" in terminal.output


def _count(terminal: Terminal, label: str, column: int) -> int:
    """A number of the row with that label, 0 when there is no such row."""
    rows = [line.split() for line in terminal.lines if line.startswith(f"{label} ")]
    return int(rows[0][column].replace(",", "")) if rows else 0


def test_the_view_follows_the_size_of_the_window(server: RunningServer) -> None:
    with Terminal("metric", "--rate", "100ms", env=server.environment, size=(80, 10)) as terminal:
        terminal.wait_for("Requests")
        assert "Memory" not in terminal.shown
        terminal.resize(100, 30)
        terminal.wait_for("Memory")
        terminal.wait_for("requests per second, ")
        terminal.resize(40, 30)
        terminal.wait_for("Requests        per second since start\n")
        terminal.wait_for(lambda: re.search(r"succeeded \(2xx\) +\d+\.\d +\d+\n", terminal.shown) is not None)


def test_the_view_is_left_and_drawn_again_when_the_command_is_stopped_for_a_while(server: RunningServer) -> None:
    with Terminal("metric", "--rate", "100ms", env=server.environment) as terminal:
        terminal.wait_for("█")  # the second scrape: by now it has its hand on the signals
        terminal.process.send_signal(signal.SIGTSTP)
        terminal.wait_for(lambda: not terminal.has_own_screen and terminal.has_stopped())
        assert terminal.is_clean
        terminal.process.send_signal(signal.SIGCONT)
        terminal.wait_for(lambda: terminal.has_own_screen)
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.wait() == 1
        assert terminal.is_clean


def test_ctrl_backslash_leaves_the_view_too(server: RunningServer) -> None:
    with Terminal("metric", "--rate", "100ms", env=server.environment) as terminal:
        terminal.wait_for("█")
        terminal.press(b"\x1c")
        assert terminal.wait() == 1
        assert terminal.is_clean


def test_the_view_waits_for_a_server_that_is_away_and_ends_when_it_says_no(server: RunningServer) -> None:
    folder = server.folder / "away"
    with start_server(folder) as first:
        terminal = Terminal("metric", "--rate", "100ms", env={**first.environment, "NO_COLOR": "1"})
        admin = {"identity": APIKey.parse(first.api_key).identity}
        address = f"127.0.0.1:{first.port}"
        with terminal:
            terminal.wait_for("up ")
            first.process.kill()
            first.process.wait()
            terminal.wait_for("trying again")
            assert terminal.has_own_screen
            with start_server(folder, address=address, admin=admin) as second:
                terminal.wait_for(lambda: "trying again" not in terminal.shown)
                second.reload(address=address, admin={"identity": USER.identity})
                assert terminal.wait() == 1
            assert terminal.is_clean
            end = terminal.output.decode().rpartition("\x1b[?1049l")[2]
            assert end == "Error: failed to read metrics: not authorized: insufficient permissions\r\n"


def test_the_view_ends_when_the_server_has_been_away_for_long(server: RunningServer) -> None:
    impatient = "import sys; from keswick.cli import main, metric; metric._LOST_AFTER = 0.0; sys.exit(main())"
    command = [sys.executable, "-c", impatient]
    with (
        start_server(server.folder / "gone") as gone,
        Terminal("metric", "--rate", "100ms", env=gone.environment, command=command) as terminal,
    ):
        terminal.wait_for("up ")
        gone.process.kill()
        assert terminal.wait() == 1
        assert terminal.is_clean
        assert b"Error: " in terminal.output.rpartition(b"\x1b[?1049l")[2]


def test_a_terminal_that_cannot_be_redrawn_gets_lines(server: RunningServer) -> None:
    for arguments, term in ((["metric"], "dumb"), (["log", "trace", "--type=metric", "--json"], "xterm")):
        with Terminal(*arguments, env={**server.environment, "TERM": term}, size=(2000, 5)) as terminal:
            terminal.wait_for(lambda terminal=terminal: terminal.lines[0].endswith("}"))  # type: ignore[misc]
            assert list(json.loads(terminal.lines[0])) == KEYS
            assert not terminal.has_own_screen


# --- what is computed ---


def _scrape(at: float, text: str) -> Scrape:
    return Scrape(at, Metrics(text))


def test_a_speed_is_of_all_labels_and_begins_anew_with_the_server() -> None:
    first = _scrape(10.0, 'a{code="200"} 5\na{code="201"} 1\nb 100')
    second = _scrape(12.0, 'a{code="200"} 7\na{code="201"} 3\nb 110')
    anew = _scrape(14.0, 'a{code="200"} 4\nb 120')
    assert per_second(first, second, "a") == 2.0
    assert per_second(first, second, "a", "b") == 7.0
    assert per_second(second, anew, "a") == 2.0
    assert per_second(second, anew, "none") == 0.0


COARSE = 'kes_http_response_time_bucket{{le="0.01"}} {}\nkes_http_response_time_bucket{{le="+Inf"}} {}\n'
FINE = (
    'kes_api_request_duration_seconds_bucket{{api="/version",le="0.001"}} {}\n'
    'kes_api_request_duration_seconds_bucket{{api="/version",le="+Inf"}} {}\n'
)
INF = float("inf")


def test_response_times_are_of_the_finest_histogram_and_of_the_requests_in_between() -> None:
    coarse = _scrape(1.0, COARSE.format(5, 8))
    fine = _scrape(2.0, COARSE.format(7, 9) + FINE.format(1, 9))
    finer = _scrape(3.0, COARSE.format(7, 9) + FINE.format(3, 12))
    assert response_times(None, coarse) == [(0.01, 5.0), (INF, 8.0)]
    assert response_times(coarse, _scrape(2.0, COARSE.format(7, 9))) == [(0.01, 2.0), (INF, 1.0)]
    assert response_times(None, fine) == [(0.001, 1.0), (INF, 9.0)]
    assert response_times(fine, finer) == [(0.001, 2.0), (INF, 3.0)]
    assert response_times(finer, fine) == response_times(None, fine)  # the server was started anew


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0.1, "< 10ms"), (0.5, "< 10ms"), (0.6, "30ms"), (0.75, "75ms"), (0.8, "100ms"), (0.9, "> 100ms"), (1, "> 100ms")],
)
def test_quantiles_say_as_much_as_the_buckets_do(share: float, shown: str) -> None:
    assert quantile([(0.01, 50.0), (0.05, 70.0), (0.1, 80.0), (INF, 100.0)], share) == shown


def test_without_requests_there_is_no_quantile() -> None:
    assert quantile([], 0.5) == ""
    assert quantile([(0.01, 0.0), (INF, 0.0)], 0.5) == ""


NUMBERS = st.one_of(st.floats(), st.integers(-5, 5), st.sampled_from(["NaN", "+Inf", "-Inf", 1e308, 1e-308]))
BUCKET = st.builds('kes_http_response_time_bucket{{le="{}"}} {}'.format, NUMBERS, NUMBERS)
SAMPLE = st.builds("{} {}".format, st.sampled_from([key for key in KEYS if key != "kes_http_response_time"]), NUMBERS)
SCRAPES = st.lists(st.one_of(SAMPLE, BUCKET), max_size=30).map("\n".join).map(Metrics)


@settings(deadline=None)
@given(st.lists(SCRAPES, min_size=1, max_size=3), st.integers(1, 200))
def test_no_server_can_send_numbers_that_cannot_be_shown(scrapes: list[Metrics], width: int) -> None:
    view = View(1.0, "https://kes.example.com:7373")
    for scrape in scrapes:
        assert list(json.loads(json_line(scrape))) == KEYS
        view.add(scrape)
    console = Console(file=io.StringIO(), width=width)
    console.print(view)
