"""`kes metric`: what a server is doing, as one JSON object per interval, or as a view that is drawn anew."""

import gc
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from keswick.cli.command import Arguments, Command, Flag
from keswick.cli.connection import INSECURE, connect, endpoints, failing
from keswick.cli.terminal import can_redraw, changed_terminal, printable, short_duration, size, to_json, uptime

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

    from keswick.client import Client, Metrics

_REQUESTS = _SUCCESS, _ERROR, _FAILURE = tuple(f"kes_http_request_{name}" for name in ("success", "error", "failure"))
_ACTIVE = "kes_http_request_active"
_RESPONSE_TIME = "kes_http_response_time"
_LOG_EVENTS = _AUDIT_EVENTS, _ERROR_EVENTS = "kes_log_audit_events", "kes_log_error_events"
_UP_TIME = "kes_system_up_time"
_CPUS = _ALL_CPUS, _USED_CPUS = "kes_system_num_cpu", "kes_system_num_cpu_used"
_THREADS = "kes_system_num_threads"
_HEAP, _OBJECTS, _STACK = "kes_system_mem_heap_used", "kes_system_mem_heap_objects", "kes_system_mem_stack_used"


def metric(arguments: Arguments) -> None:
    arguments.at_most(0)
    follow_metrics(arguments, default_rate="5s")


def follow_metrics(arguments: Arguments, *, default_rate: str, raw: bool = False) -> None:
    """Until the server is lost. `raw`: JSON lines, on a terminal too."""
    from keswick.config import duration  # late: `kes metric --help` has no use for YAML

    text = arguments.value("rate") or default_rate
    try:
        rate = duration.parse(text)
    except ValueError as error:
        advice = str(error).partition("; to switch off")[0]  # which a rate cannot be
        arguments.fail(f'invalid argument "{text}" for "--rate" flag: {advice}')
    if rate <= 0:
        arguments.fail(f'invalid argument "{text}" for "--rate" flag: it must be more than 0s')
    gc.enable()  # see main: this runs for long
    with connect(arguments) as client, failing("failed to read metrics"):
        if raw or not can_redraw(sys.stdout):
            for _ in _ticks(rate):
                print(json_line(client.metrics()), flush=True)
        else:
            _watch(client, rate, ", ".join(endpoints(arguments)))


def _ticks(rate: float) -> Iterator[None]:
    """At once, and then every `rate` seconds; those that a slow server missed are left out."""
    start = time.monotonic()
    while True:
        yield
        time.sleep(rate - (time.monotonic() - start) % rate)


# --- for programs ---


def json_line(metrics: "Metrics") -> str:
    """One line with the keys of the original. Times are in nanoseconds, and so are the bounds of the histogram."""

    def values(*names: str) -> dict[str, int]:
        return {name: round(total(metrics, name)) for name in names}

    buckets = {str(round(bound * 1e9)): round(count) for bound, count in _buckets(metrics, _RESPONSE_TIME)[:-1]}
    return to_json(
        values(*_REQUESTS, _ACTIVE, *_LOG_EVENTS)
        | {_RESPONSE_TIME: buckets, _UP_TIME: round(total(metrics, _UP_TIME) * 1e9)}
        | values(*_CPUS, _THREADS, _HEAP, _OBJECTS, _STACK)
    )


# --- numbers of a server, whatever it sends ---

_MOST = 1e18
"""What is not below is no number of requests, bytes or seconds."""
Buckets = list[tuple[float, float]]
"""A histogram: upper bounds in seconds, ascending, the last infinite, and how many requests were within each."""


def total(metrics: "Metrics", *names: str) -> float:
    """All that is counted under these names; 0.0 if that is no number, or an absurd one."""
    value = sum(map(metrics.total, names))
    return value if 0 <= value < _MOST else 0.0


def _buckets(metrics: "Metrics", *names: str) -> Buckets:
    """The first of these histograms that the server has."""
    for name in names:
        buckets = [
            (bound, count)
            for bound, count in metrics.buckets(name)
            if (0 < bound < _MOST or bound == math.inf) and 0 <= count < _MOST
        ]
        if buckets and buckets[-1][0] == math.inf:
            return buckets
    return []


# --- what changed ---


class Scrape(NamedTuple):
    at: float
    """Seconds of a clock that never jumps."""
    metrics: "Metrics"


def per_second(before: Scrape, after: Scrape, *names: str) -> float:
    """How fast these counters grew together. What has become less is another server's, and has counted from 0."""
    grown = 0.0
    for name in names:
        old, new = total(before.metrics, name), total(after.metrics, name)
        grown += new - old if new >= old else new
    return grown / max(after.at - before.at, 1e-9)


def response_times(before: Scrape | None, after: Scrape) -> Buckets:
    """Of the requests between two scrapes, or of all since the server's start."""
    names = ("kes_api_request_duration_seconds", _RESPONSE_TIME)  # the first is Keswick's own, with finer bounds
    buckets = _buckets(after.metrics, *names)
    old = dict(_buckets(before.metrics, *names)) if before is not None else {}
    if buckets and buckets[-1][1] < old.get(math.inf, 0.0):
        return buckets
    return [(bound, count - old.get(bound, 0.0)) for bound, count in buckets]


def quantile(buckets: Buckets, share: float) -> str:
    """How long that share of the requests took at most, as far as the buckets tell; nothing without a request."""
    rank = share * buckets[-1][1] if buckets else 0.0
    if rank <= 0:
        return ""
    for (lower, below), (upper, count) in pairwise([(0.0, 0.0), *buckets]):
        if count >= rank:
            if upper == math.inf:
                return f"> {short_duration(lower)}"
            if lower == 0.0:
                return f"< {short_duration(upper)}"
            return short_duration(lower + (upper - lower) * (rank - below) / (count - below))
    return ""


# --- for people ---

_LOST_AFTER = 60.0
"""Seconds without the next answer after which the view ends."""
_OVERDUE = 2.0
"""Seconds that an answer may be late before the view says so."""
_SOON = 1.0
"""Seconds at most between the first two scrapes, which are compared, and until a server that is away is tried again."""
_HISTORY = 200
"""As many scrapes are kept for the curve of requests."""


def _watch(client: "Client", rate: float, title: str) -> None:
    """Show what the server is doing until it is lost: it does not answer for long, or says no."""
    from keswick.client import APIError, ClientRefused, ConnectionFailed, ServerNotTrusted

    view = View(rate, title)
    view.add(client.metrics())  # who cannot read metrics at all gets an error, and no view
    pause = min(rate, _SOON)
    with _screen(view):
        while True:
            time.sleep(pause)
            try:
                view.add(client.metrics())
                pause = rate
            except (APIError, ConnectionFailed) as error:
                if isinstance(error, APIError):
                    passing = error.status >= 500
                else:
                    passing = not isinstance(error, ClientRefused | ServerNotTrusted)
                if not passing or view.late > _LOST_AFTER:
                    raise
                view.trouble = str(error)
                pause = min(rate, _SOON)


@contextmanager
def _screen(view: "View") -> Iterator[None]:
    """A screen of its own, which another thread keeps drawing. The terminal is as before when it ends."""
    from rich.console import Console
    from rich.live import Live

    live = Live(
        view,
        console=Console(file=sys.stdout, highlight=False),
        screen=True,
        refresh_per_second=4,
        redirect_stdout=False,
        redirect_stderr=False,
    )

    with changed_terminal(lambda: live.start(refresh=True), live.stop):
        yield


class View:
    """The last scrape, and what changed since the one before."""

    def __init__(self, rate: float, title: str) -> None:
        self.trouble = ""
        """Why there is no newer scrape."""
        self._rate = rate
        self._title = printable(title)
        self._scrapes: tuple[Scrape, ...] = ()  # replaced, never changed: another thread draws

    def add(self, metrics: "Metrics") -> None:
        self._scrapes = (*self._scrapes[1 - _HISTORY :], Scrape(time.monotonic(), metrics))
        self.trouble = ""

    @property
    def late(self) -> float:
        """Seconds since there should have been a newer scrape."""
        return time.monotonic() - self._scrapes[-1].at - self._rate

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.text import Text

        yield Text(self._title, style="bold", no_wrap=True, overflow="ellipsis")
        yield self._state()
        yield self._table(options.max_width)
        yield Text()
        yield self._curve(options.max_width)

    def _state(self) -> "RenderableType":
        from rich.text import Text

        server = self._scrapes[-1].metrics
        text = Text(no_wrap=True, overflow="ellipsis")
        if self.trouble or self.late > _OVERDUE:
            waited = short_duration(round(self.late + self._rate))
            text.append(f"no answer for {waited}, trying again", style="bold red")
            text.append(f"  {printable(self.trouble)}")
        else:
            text.append(f"up {uptime(total(server, _UP_TIME))}")
            if total(server, "kes_keystore_offline"):
                text.append(", the key store does not answer", style="bold red")
            text.append(f"   every {short_duration(self._rate)}, until Ctrl-C", style="dim")
        return text

    def _table(self, width: int) -> "RenderableType":
        from rich.table import Table
        from rich.text import Text

        last = self._scrapes[-1]
        before = self._scrapes[-2] if len(self._scrapes) > 1 else None
        is_wide = width >= 66
        table = Table.grid(padding=(0, 2 if is_wide else 1))
        table.add_column(min_width=18 if is_wide else None)
        numbers = 3 if width >= 50 else 2  # a narrow window does without the last column
        for _ in range(numbers):
            table.add_column(justify="right", min_width=12 if is_wide else None)

        def line(*cells: "str | Text", style: str | None = None) -> None:
            table.add_row(*cells[: numbers + 1], style=style)

        def heading(*cells: str) -> None:
            line()
            line(*cells, style="bold")

        def counter(label: str, *names: str, style: str = "", share: bool = False) -> None:
            count, requests = total(last.metrics, *names), total(last.metrics, *_REQUESTS)
            speed = per_second(before, last, *names) if before else 0.0
            line(
                label,
                Text(f"{speed:,.1f}" if before else "", style=style if speed else ""),
                f"{round(count):,}",
                f"{count / requests:.1%}" if share and requests else "",
            )

        heading("Requests", "per second", "since start", "share")
        counter("succeeded (2xx)", _SUCCESS, style="green", share=True)
        counter("refused (4xx)", _ERROR, style="yellow", share=True)
        counter("failed (5xx)", _FAILURE, style="red", share=True)
        counter("all", *_REQUESTS)
        heading("Response time", "now", "since start")
        now, ever = response_times(before, last) if before else [], response_times(None, last)
        for share in (0.5, 0.9, 0.99):
            line(f"{share:.0%} within", quantile(now, share), quantile(ever, share))
        heading("Log events", "per second", "since start")
        counter("audit", _AUDIT_EVENTS)
        counter("error", _ERROR_EVENTS, style="yellow")
        heading("Memory", "stack", "threads", "CPUs used")
        heap, stack, threads, used, cpus = (
            total(last.metrics, name) for name in (_HEAP, _STACK, _THREADS, _USED_CPUS, _ALL_CPUS)
        )
        line(size(heap), size(stack), f"{round(threads):,}", f"{round(used)} of {round(cpus)}")
        return table

    def _curve(self, width: int) -> "RenderableType":
        """Requests per second, the newest on the right."""
        from rich.text import Text

        speeds = [per_second(before, after, *_REQUESTS) for before, after in pairwise(self._scrapes)][
            -max(width - 44, 1) :
        ]
        top = max(speeds, default=0.0)
        bars = "".join("▁▂▃▄▅▆▇█"[min(int(speed / top * 8), 7)] if top else "▁" for speed in speeds)
        return Text(f"{bars}  requests per second, {top:,.1f} at most", no_wrap=True, style="cyan")


COMMAND = Command(
    "",
    "Show what a server is doing: requests, response times, memory.",
    metric,
    (
        Flag("rate", "How often to ask, such as '500ms' or '1m' (default 5s).", value="DURATION"),
        INSECURE,
    ),
    details=(
        "On a terminal it is a view that is drawn anew, until Ctrl-C. For a program it is a JSON object a line;\n"
        "times are in nanoseconds."
    ),
    examples=("kes metric --rate 1s", "kes metric | jq .kes_http_request_success"),
)
