"""`kes log`: the audit log or the error log of a server, as it happens. Line by line, so that one can scroll back."""

import gc
import sys
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from keswick.cli.command import Arguments, Command, CommandError, Flag, Group
from keswick.cli.connection import INSECURE, connect, failing
from keswick.cli.terminal import columns, fit, has_colour, is_terminal, printable, short_duration

if TYPE_CHECKING:
    from keswick.client import AuditEvent

_TYPES = ("audit", "error", "metric")


def log(arguments: Arguments) -> None:
    arguments.at_most(0)
    if arguments.has("audit") and arguments.has("error"):
        raise CommandError("cannot display audit and error logs at the same time")
    _follow("error" if arguments.has("error") else "audit", arguments, raw=arguments.has("json"))


def trace(arguments: Arguments) -> None:
    arguments.at_most(0)
    kind = arguments.value("type") or "audit"
    if kind not in _TYPES:
        arguments.fail(f'invalid argument "{kind}" for "--type" flag: it is one of {", ".join(_TYPES)}')
    raw = arguments.has("json") or not is_terminal()
    if kind == "metric":
        from keswick.cli.metric import follow_metrics

        follow_metrics(arguments, default_rate="3s", raw=raw)
    else:
        _follow(kind, arguments, raw=raw, trace=True)


def _follow(kind: str, arguments: Arguments, *, raw: bool, trace: bool = False) -> None:
    gc.enable()  # see main: this runs for long
    with connect(arguments) as client, failing(f"failed to read the {kind} log"):
        if kind == "error":
            with client.error_log(trace=trace) as messages:
                for message in messages:
                    _write(message.raw if raw else printable(message.message.rstrip()))
        else:
            with client.audit_log(trace=trace) as events:
                if not raw:
                    _write_row(_HEADER)
                for event in events:
                    if raw:
                        _write(event.raw)
                    else:
                        _write_row(as_row(event), event.status)
    raise CommandError(f"the server has ended the {kind} log")


def _write(line: str) -> None:
    print(printable(line) if is_terminal() else line, flush=True)


# --- rows ---


class _Row(NamedTuple):
    time: str
    status: str
    identity: str
    ip: str
    path: str
    latency: str


_HEADER = _Row("Time", "Status", "Identity", "IP", "API", "Latency")
_WIDTHS = (12, 10, 24, 19, 34, 0)
"""Columns of the original's rows, with the space behind them."""


def as_row(event: "AuditEvent") -> _Row:
    try:
        time = datetime.fromisoformat(event.time).astimezone().strftime("%H:%M:%S")
    except (ValueError, OverflowError, OSError):  # no time, or none that this machine has
        time = event.time
    # Only traces tell of less than a millisecond.
    latency = short_duration(event.response_time) if event.response_time else "<1ms"
    cells = (time, str(event.status), event.identity[:20] or "<none>", event.ip or "<unknown>", event.path, latency)
    return _Row._make(map(printable, cells))


def _write_row(row: _Row, status: int = 0) -> None:
    if not is_terminal():
        cells = [f"{cell:<{max(width, len(cell) + 1)}}" for cell, width in zip(row, _WIDTHS, strict=True)]
        print("".join(cells).rstrip(), flush=True)
        return
    # As wide as the window is now. What is cut first is the identity, whose beginning is enough to tell it from others.
    width = columns()
    sizes = {"time": 8, "status": 6, "identity": 20 if width >= 100 else 8, "ip": 15, "path": 12, "latency": 7}
    for name in ("ip", "identity"):  # for which a narrow window has no room
        if sum(sizes.values()) + 2 * (len(sizes) - 1) > width:
            del sizes[name]
    if "ip" in sizes:
        sizes["ip"] = max(len(row.ip), 15)
    sizes["path"] = max(width - sum(sizes.values()) + 12 - 2 * (len(sizes) - 1), 12)
    cells = [fit(getattr(row, name), size) for name, size in sizes.items()]
    if has_colour(sys.stdout):
        if row is _HEADER:
            cells = [f"\x1b[1m{cell}\x1b[0m" for cell in cells]
        else:
            colour = 31 if status >= 500 else 33 if status >= 400 else 32
            cells[1] = f"\x1b[{colour}m{cells[1]}\x1b[0m"
    print("  ".join(cells).rstrip(), flush=True)


JSON = Flag("json", "Print the lines as the server sends them.")

COMMAND = Group(
    "Follow the audit log or the error log of a server.",
    {
        "trace": Command(
            "",
            "Follow a log or the metrics as in 2021: JSON lines, or rows on a terminal.",
            trace,
            (
                Flag("type", "'audit' (the default), 'error' or 'metric'.", value="TYPE", choices=_TYPES),
                Flag("rate", "How often to read the metrics, such as '10s' (default 3s).", value="DURATION"),
                JSON,
                INSECURE,
            ),
            examples=("kes log trace --type error",),
        )
    },
    default=Command(
        "",
        "Follow the audit log or the error log of a server.",
        log,
        (
            Flag("audit", "Follow the audit log (the default)."),
            Flag("error", "Follow the error log."),
            JSON,
            INSECURE,
        ),
        details="The log is followed until the server ends it, or Ctrl-C does.",
        examples=("kes log", "kes log --error", "kes log --json | jq -r .request.path"),
    ),
)
