import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keswick.server.logs import DEBUG, ERROR, INFO, WARN, AuditLog, ErrorLog

OFF = 1 << 30
IDENTITY = "40f0" + 56 * "0" + "98fd"
NOON = 1_795_313_460_311_000_000  # 2026-11-22T02:11:00.311Z


class Console:
    """A file that a log writes to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)

    def lines(self) -> list[str]:
        text = self.path.read_text()
        assert text == "" or text.endswith("\n")
        return text.split("\n")[:-1]


class Stream:
    """A reader that takes at most `capacity` events, until it goes away."""

    def __init__(self, capacity: int = 1000) -> None:
        self.capacity = capacity
        self.received: list[bytes] = []
        self.closed = False
        self._callbacks: list[Callable[[], None]] = []

    def send(self, data: bytes, /) -> bool:
        if self.closed or len(self.received) >= self.capacity:
            return False
        self.received.append(data)
        return True

    def on_close(self, callback: Callable[[], None], /) -> None:
        if self.closed:
            callback()
        self._callbacks.append(callback)

    def close(self) -> None:
        self.closed = True
        for callback in self._callbacks:
            callback()


@pytest.fixture
def console(tmp_path: Path) -> Iterator[Console]:
    console = Console(tmp_path / "log")
    yield console
    os.close(console.file)


@pytest.fixture
def full_pipe() -> Iterator[tuple[int, int]]:
    """The ends of a pipe that has no room left."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writer, True)
    yield reader, writer
    os.close(reader)
    os.close(writer)


def drain(reader: int, *, lines: int) -> list[bytes]:
    """Read a pipe until so many lines have come after what filled it."""
    seen = b""
    while seen.count(b"\n") < lines:
        seen += os.read(reader, 1 << 16)
    return seen.lstrip(b"x").splitlines()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def record(log: AuditLog, path: str = "/v1/key/create/my-key", **changes: object) -> None:
    event = {"time_ns": NOON, "ip": "127.0.0.1", "identity": IDENTITY, "code": 200, "duration_ns": 2_345_678} | changes
    log.record(path=path, **event)  # type: ignore[arg-type]


# --- the error log ---


def test_an_error_is_a_line_of_text(console: Console) -> None:
    log = ErrorLog(file=console.file)
    request = {
        "req.method": "GET",
        "req.path": "/v1/key/describe/garbage",
        "req.ip": "127.0.0.1",
        "req.identity": IDENTITY,
    }
    log.error("illegal base64 data at input byte 1", request)
    log.close()
    (line,) = console.lines()
    assert re.fullmatch(
        r'time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z level=ERROR msg="illegal base64 data at input byte 1" '
        rf"req\.method=GET req\.path=/v1/key/describe/garbage req\.ip=127\.0\.0\.1 req\.identity={IDENTITY}",
        line,
    )


def test_as_until_2023_a_line_begins_with_the_local_time_and_is_json(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, stream = ErrorLog(file=console.file), Stream()
    log.of_2023 = True
    log.subscribe(stream)
    with monkeypatch.context() as patch:
        patch.setattr(time, "time_ns", lambda: NOON)
        patch.setenv("TZ", "Etc/GMT-2")
        time.tzset()
        log.error('failed to read "key"\n', {"req.path": "/v1/a b"})
        log.close()
    time.tzset()
    (line,) = console.lines()
    assert json.loads(line) == {"message": '2026/11/22 04:11:00 failed to read "key"\\x0a req.path="/v1/a b"'}
    assert stream.received == [line.encode() + b"\n"]


def test_the_time_is_universal_and_in_milliseconds(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    for now in (NOON, NOON + 689_999_999, NOON - 311_000_000):
        monkeypatch.setattr(time, "time_ns", lambda now=now: now)
        log = ErrorLog(file=console.file)
        log.error("x")
        log.close()
    assert console.lines() == [
        "time=2026-11-22T02:11:00.311Z level=ERROR msg=x",
        "time=2026-11-22T02:11:01.000Z level=ERROR msg=x",
        "time=2026-11-22T02:11:00.000Z level=ERROR msg=x",
    ]


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("plain", "plain"),
        ("191.397µs", "191.397µs"),
        ("back\\slash", "back\\slash"),
        ("two words", '"two words"'),
        ("a=b", '"a=b"'),
        ('say "no"', r'"say \"no\""'),
        ("a \\ b", r'"a \\ b"'),
        ("line\nlevel=ERROR\r\t", r'"line\nlevel=ERROR\r\t"'),
        ("\x00\x1b[31m\x7f", r'"\x00\x1b[31m\x7f"'),
        ("no\u00a0break\u2028\U000e0001", '"no\\u00a0break\\u2028\\U000e0001"'),
        ("\udcff", r'"\udcff"'),
        (7, "7"),
    ],
)
def test_values_are_quoted_as_go_does(console: Console, value: object, written: str) -> None:
    log = ErrorLog(file=console.file)
    log.error(str(value), {"a.b": value, "none": None, "empty": ""})
    log.close()
    (line,) = console.lines()
    assert line.endswith(f" msg={written} a.b={written}")


@given(st.text(), st.text(min_size=1))
def test_nothing_that_is_logged_can_forge_a_line_or_an_attribute(
    tmp_path_factory: object, text: str, path: str
) -> None:
    reader, writer = os.pipe()
    log = ErrorLog(file=writer)
    log.error(text, {"req.path": path})
    log.close()
    os.close(writer)
    with open(reader, encoding="utf-8", newline="") as pipe:
        written = pipe.read()
    value = r'(?:"(?:[^"\\\n]|\\.)*"|[^\s"=]+)'
    assert re.fullmatch(rf"time=\S+ level=ERROR msg={value} req\.path={value}\n", written)
    assert written[:-1].isprintable()


def test_a_monstrous_value_is_cut(console: Console) -> None:
    log = ErrorLog(file=console.file)
    log.error("x" * 100_000)
    log.close()
    assert len(console.lines()[0]) < 5000


@pytest.mark.parametrize(
    ("level", "written"),
    [
        (DEBUG, "DEBUG INFO WARN ERROR"),
        (INFO, "INFO WARN ERROR"),
        (INFO + 1, "WARN ERROR"),
        (WARN, "WARN ERROR"),
        (ERROR, "ERROR"),
        (OFF, ""),
    ],
)
def test_the_level_decides_what_reaches_the_console_but_not_the_streams(
    console: Console, level: int, written: str
) -> None:
    log, stream = ErrorLog(level, file=console.file), Stream()
    log.subscribe(stream)
    log.debug("x")
    log.info("x")
    log.warn("x")
    log.error("x")
    log.close()
    assert [line.split()[1] for line in console.lines()] == [f"level={name}" for name in written.split()]
    streamed = [json.loads(line)["message"].split()[1] for line in stream.received]
    assert streamed == [f"level={name}" for name in ["DEBUG", "INFO", "WARN", "ERROR"][0 if level == DEBUG else 1 :]]
    assert log.events == len(streamed)


def test_an_error_that_comes_again_and_again_is_counted(console: Console) -> None:
    log, stream = ErrorLog(file=console.file, queue_events=100_000), Stream(capacity=100_000)
    log.subscribe(stream)
    for number in range(5000):
        log.error("the key store is away", {"req.path": f"/{number}"})
        log.info("nothing of note")
    until(lambda: any(b"log.repeated" in event for event in stream.received))
    log.error("the key store is away", {"req.path": "/last"})
    log.error("another thing")
    log.close()
    lines = [line.split(" ", 2)[2] for line in console.lines()]
    away = [line for line in lines if "away" in line]
    counted = [int(line.partition("log.repeated=")[2]) for line in away if "log.repeated" in line]
    assert away[0] == 'msg="the key store is away" req.path=/0'
    assert away[-1] == 'msg="the key store is away" req.path=/last'
    assert len(away) < 1000
    assert len(away) - len(counted) + sum(counted) == 5001
    assert (lines.count('msg="nothing of note"'), lines.count('msg="another thing"')) == (5000, 1)
    assert (len(stream.received), log.events, log.dropped) == (len(console.lines()), 10_002, 0)


def test_a_stream_gets_the_line_as_json(console: Console) -> None:
    log, stream = ErrorLog(file=console.file), Stream()
    log.subscribe(stream)
    log.error('say "no"\n', {"req.path": "/v1/schlüssel"})
    log.close()
    assert stream.received[0].endswith(b'"}\n')
    assert [json.loads(line) for line in stream.received] == [{"message": console.lines()[0]}]


# --- the audit log ---


def test_an_audit_event_is_a_line_of_json(console: Console) -> None:
    log = AuditLog(file=console.file)
    log.configure(enabled=True)
    record(log)
    record(log, path="/v1/key/list/ü\n", identity=None, code=403, duration_ns=999_999, time_ns=NOON + 5)
    record(log, identity="", via="ab12")
    log.close()
    lines = console.lines()
    assert lines[0] == (
        '{"time":"2026-11-22T02:11:00.311Z","request":{"ip":"127.0.0.1","path":"/v1/key/create/my-key",'
        f'"identity":"{IDENTITY}"}},"response":{{"code":200,"time":2}}}}'
    )
    assert json.loads(lines[1]) == {
        "time": "2026-11-22T02:11:00.311000005Z",
        "request": {"ip": "127.0.0.1", "path": "/v1/key/list/ü\n"},
        "response": {"code": 403, "time": 0},
    }
    assert json.loads(lines[2])["request"] == {"ip": "127.0.0.1", "path": "/v1/key/create/my-key", "via": "ab12"}
    assert (log.events, log.dropped) == (3, 0)


def test_each_stream_has_its_unit_and_so_has_the_console(console: Console) -> None:
    log, new, trace = AuditLog(file=console.file), Stream(), Stream()
    log.configure(enabled=True, form="ns")
    log.subscribe(new)
    log.subscribe(trace, form="ns")
    record(log)
    log.close()
    lines = [*new.received, *trace.received, console.lines()[0].encode()]
    assert [json.loads(line)["response"]["time"] for line in lines] == [2, 2_345_678, 2_345_678]


def test_streams_get_events_while_the_console_is_off(console: Console) -> None:
    log, stream = AuditLog(file=console.file), Stream()
    assert not log.active
    record(log)
    log.subscribe(stream)
    assert log.active
    record(log, code=404)
    log.close()
    assert [json.loads(line)["response"]["code"] for line in stream.received] == [404]
    assert console.lines() == []


def test_skipped_paths_are_not_recorded(console: Console) -> None:
    log = AuditLog(file=console.file)
    log.configure(enabled=True, skip=["/v1/metrics", "/v1/log/*"])
    for path in ("/v1/metrics", "/v1/log/audit", "/v1/log/", "/v1/metrics/", "/v1/logs", "/v1/ready"):
        record(log, path)
    log.close()
    assert [json.loads(line)["request"]["path"] for line in console.lines()] == [
        "/v1/metrics/",
        "/v1/logs",
        "/v1/ready",
    ]
    assert log.events == 3


def test_no_path_keeps_an_event_out_of_the_log(console: Console) -> None:
    log = AuditLog(file=console.file)
    log.configure(enabled=True)
    record(log, "/v1/\udcff")
    record(log, "/v1/" + "x" * 100_000)
    log.close()
    paths = [json.loads(line)["request"]["path"] for line in console.lines()]
    assert paths[0] == "/v1/?"
    assert paths[1].startswith("/v1/xxx")
    assert len(paths[1]) < 2000


def test_every_event_of_several_threads_is_written_once_in_order(console: Console) -> None:
    log = AuditLog(file=console.file, queue_events=100_000)
    log.configure(enabled=True)

    def work(thread: int) -> None:
        for number in range(2000):
            record(log, f"/{thread}", duration_ns=number * 1_000_000)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close(60)
    events = [json.loads(line) for line in console.lines()]
    for number in range(4):
        times = [event["response"]["time"] for event in events if event["request"]["path"] == f"/{number}"]
        assert times == list(range(2000))


# --- readers that are slow or gone, consoles that fail ---


def test_an_event_reaches_a_reader_without_a_close(console: Console) -> None:
    log, stream = AuditLog(file=console.file), Stream()
    log.configure(enabled=True)
    log.subscribe(stream)
    record(log)
    until(lambda: stream.received and console.lines())
    record(log)
    until(lambda: len(stream.received) == 2 and len(console.lines()) == 2)
    log.close()


def test_a_slow_reader_loses_events_and_the_others_do_not(console: Console) -> None:
    log, slow, quick = AuditLog(file=console.file), Stream(capacity=2), [Stream() for _ in range(50)]
    log.subscribe(slow)
    for stream in quick:
        log.subscribe(stream)
    for _ in range(10):
        record(log)
    log.close()
    assert len(slow.received) == 2
    assert all(len(stream.received) == 10 for stream in quick)
    assert (log.lost, log.dropped) == (8, 0)


def test_a_reader_that_goes_away_is_forgotten(console: Console) -> None:
    log, stream, gone = AuditLog(file=console.file), Stream(), Stream()
    gone.close()
    log.subscribe(gone)
    assert not log.active
    log.subscribe(stream)
    stream.close()
    assert not log.active
    record(log)
    log.close()
    assert stream.received == gone.received == []
    assert log.lost == 0


def test_a_console_that_stands_still_never_blocks_the_caller(full_pipe: tuple[int, int]) -> None:
    reader, writer = full_pipe
    log = AuditLog(file=writer, queue_events=100)
    log.configure(enabled=True)
    for _ in range(1000):
        record(log)
    assert log.events == 1000
    assert log.dropped >= 800
    log.close(0)
    kept = log.events - log.dropped
    lines = drain(reader, lines=kept)
    assert all(json.loads(line) for line in lines)
    assert len(lines) == kept


def test_a_required_log_refuses_requests_before_it_loses_events(full_pipe: tuple[int, int]) -> None:
    reader, writer = full_pipe
    log = AuditLog(file=writer, queue_events=100)
    assert log.ready()
    log.configure(enabled=True, required=True)
    in_flight = 20
    while log.ready():
        record(log)
    for _ in range(in_flight):
        record(log)
    assert log.dropped == 0
    drain(reader, lines=log.events)
    until(log.ready)
    log.close()
    assert log.dropped == 0


def test_a_log_that_is_not_required_or_not_enabled_never_refuses(full_pipe: tuple[int, int]) -> None:
    log = AuditLog(file=full_pipe[1], queue_events=10)
    log.configure(enabled=True)
    for _ in range(20):
        record(log)
    assert log.ready()
    log.configure(enabled=False, required=True)
    assert log.ready()
    log.close(0)
    drain(full_pipe[0], lines=log.events - log.dropped)


def test_a_broken_console_does_not_end_the_log() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    log, stream = AuditLog(file=writer), Stream()
    log.configure(enabled=True, required=True)
    log.subscribe(stream)
    record(log)
    until(lambda: log.dropped == 1)
    assert not log.ready()
    record(log)
    until(lambda: log.dropped == 2 and len(stream.received) == 2)
    log.close()
    os.close(writer)


def test_a_console_that_works_again_is_used_again(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    fault: list[int] = [10]

    def write_some(file: int, data: bytes) -> int:
        if file != console.file or not fault:
            return write(file, data)
        if count := fault.pop(0):
            fault.append(0)
            return write(file, data[:count])
        fault.append(0)
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(os, "write", write_some)
    log = AuditLog(file=console.file)
    log.configure(enabled=True, required=True)
    record(log)
    until(lambda: log.dropped == 1)
    assert not log.ready()
    fault.clear()
    record(log, code=404)
    until(log.ready)
    log.close()
    half, whole = console.lines()
    assert half == '{"time":"2'
    assert json.loads(whole)["response"]["code"] == 404


def test_a_console_that_does_not_block_is_waited_for(full_pipe: tuple[int, int]) -> None:
    reader, writer = full_pipe
    os.set_blocking(writer, False)
    log = AuditLog(file=writer)
    log.configure(enabled=True)
    record(log)
    drain(reader, lines=1)
    log.close()
    assert log.dropped == 0


def test_a_reader_that_fails_does_not_end_the_log(console: Console) -> None:
    class Broken(Stream):
        def send(self, data: bytes, /) -> bool:
            raise RuntimeError("no stream at all")

    log, good = AuditLog(file=console.file), Stream()
    log.configure(enabled=True)
    log.subscribe(Broken())
    log.subscribe(good)
    record(log)
    record(log)
    log.close()
    assert len(good.received) == len(console.lines()) == 2


def test_close_is_idempotent_and_later_events_are_counted_as_dropped(console: Console) -> None:
    log = AuditLog(file=console.file)
    log.close()
    log.configure(enabled=True)
    log.close()
    record(log)
    log.close()
    assert console.lines() == []
    assert log.dropped == 1
