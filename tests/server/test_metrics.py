import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

from keswick.keystore.memory import MemoryStore
from keswick.server.cache import KeyCache
from keswick.server.logs import AuditLog, ErrorLog
from keswick.server.metrics import CONTENT_TYPE, Metrics
from keswick.server.store import StoreThreads

APIS = ("/version", "/v1/key/generate/", "/v1/metrics")
UNKNOWN = len(APIS)
ORIGINAL_BUCKETS = ["0.01", "0.05", "0.1", "0.25", "0.5", "1", "1.5", "3", "5", "10", "+Inf"]

HELP = re.compile(r"# HELP ([a-z_]+) (\S.*)")
TYPE = re.compile(r"# TYPE ([a-z_]+) (counter|gauge|histogram)")
LABEL = re.compile(r'([a-z]+)="((?:[^"\\\n]|\\["\\n])*)"')
SAMPLE = re.compile(rf"([a-z_]+)(?:\{{({LABEL.pattern}(?:,{LABEL.pattern})*)\}})? (-?[0-9][0-9.e+-]*)")


class Family(NamedTuple):
    kind: str
    samples: dict[str, float]
    """By suffix of the name and labels, as written."""


def parse(text: bytes) -> dict[str, Family]:
    """Read the text format as strictly as it is written: HELP, TYPE, samples; families once, sorted, never empty."""
    assert text.endswith(b"\n")
    families: dict[str, Family] = {}
    lines = iter(text.decode().splitlines())
    name = ""
    for line in lines:
        if help_line := HELP.fullmatch(line):
            name = help_line[1]
            type_line = TYPE.fullmatch(next(lines))
            assert type_line is not None
            assert type_line[1] == name
            assert name not in families
            families[name] = Family(type_line[2], {})
            continue
        sample = SAMPLE.fullmatch(line)
        assert sample is not None, line
        suffix = sample[1].removeprefix(name)
        assert sample[1] == name + suffix
        assert suffix in (("_bucket", "_sum", "_count") if families[name].kind == "histogram" else ("",))
        key = suffix + (f"{{{sample[2]}}}" if sample[2] else "")
        assert key not in families[name].samples
        families[name].samples[key] = float(sample[sample.lastindex or 0])
    assert list(families) == sorted(families)
    assert all(family.samples for family in families.values())
    return families


def test_the_content_type_is_that_of_the_original() -> None:
    assert CONTENT_TYPE == "text/plain; version=0.0.4; charset=utf-8; escaping=underscores"


def test_before_the_first_request_no_labelled_series_is_there() -> None:
    families = parse(Metrics(APIS).render())
    assert {name: family.kind for name, family in families.items()} == {
        "kes_http_request_active": "gauge",
        "kes_http_response_time": "histogram",
        "kes_system_mem_heap_objects": "gauge",
        "kes_system_mem_heap_used": "gauge",
        "kes_system_mem_stack_used": "gauge",
        "kes_system_num_cpu": "gauge",
        "kes_system_num_cpu_used": "gauge",
        "kes_system_num_threads": "gauge",
        "kes_system_up_time": "gauge",
    }
    assert families["kes_http_request_active"].samples == {"": 0}
    buckets = [f'_bucket{{le="{bound}"}}' for bound in ORIGINAL_BUCKETS]
    assert families["kes_http_response_time"].samples == dict.fromkeys([*buckets, "_sum", "_count"], 0)


def test_requests_are_counted_by_status() -> None:
    metrics = Metrics(APIS)
    recorder = metrics.recorder()
    for status in (200, 200, 201, 307, 400, 404, 404, 500, 503):
        recorder.started += 1
        recorder.observe(1, status, 0.001)
    families = parse(metrics.render())
    assert families["kes_http_request_success"] == (
        "counter",
        {'{code="200"}': 2, '{code="201"}': 1, '{code="307"}': 1},
    )
    assert families["kes_http_request_error"] == ("counter", {'{code="400"}': 1, '{code="404"}': 2})
    assert families["kes_http_request_failure"] == ("counter", {'{code="500"}': 1, '{code="503"}': 1})


def test_response_times_fall_into_buckets() -> None:
    metrics = Metrics(APIS)
    recorder = metrics.recorder()
    for seconds in (0.00005, 0.01, 0.0100001, 0.3, 1.5, 60):
        recorder.observe(1, 200, seconds)
    samples = parse(metrics.render())["kes_http_response_time"].samples
    counts = [samples[f'_bucket{{le="{bound}"}}'] for bound in ORIGINAL_BUCKETS]
    assert counts == [2, 3, 3, 3, 4, 4, 5, 5, 5, 5, 6]
    assert samples["_count"] == 6
    assert samples["_sum"] == pytest.approx(61.8200501)


def test_durations_are_shown_by_api_in_finer_buckets() -> None:
    metrics = Metrics(APIS)
    recorder = metrics.recorder()
    recorder.observe(1, 200, 0.0002)
    recorder.observe(1, 200, 0.003)
    recorder.observe(UNKNOWN, 404, 0.1)
    samples = parse(metrics.render())["kes_api_request_duration_seconds"].samples
    assert samples['_bucket{api="/v1/key/generate/",le="0.0001"}'] == 0
    assert samples['_bucket{api="/v1/key/generate/",le="0.00025"}'] == 1
    assert samples['_bucket{api="/v1/key/generate/",le="0.005"}'] == 2
    assert samples['_count{api="/v1/key/generate/"}'] == 2
    assert samples['_count{api="unknown"}'] == 1
    assert not any("/version" in labels for labels in samples)


def test_requests_in_progress_are_those_that_no_thread_has_finished() -> None:
    metrics = Metrics(APIS)
    first, second = metrics.recorder(), metrics.recorder()
    first.started += 3
    first.observe(0, 200, 0.1)
    second.observe(0, 200, 0.1)
    assert parse(metrics.render())["kes_http_request_active"].samples == {"": 1}


def test_no_count_of_several_threads_is_lost_while_they_are_scraped() -> None:
    metrics = Metrics(APIS)

    def work(_: int) -> None:
        recorder = metrics.recorder()
        for _ in range(5000):
            recorder.started += 1
            recorder.observe(1, 200, 0.001)
            metrics.observe_store("get", 0.001, failed=False)

    done = threading.Event()
    with ThreadPoolExecutor(5) as pool:

        def scrape() -> None:
            seen = 0.0
            while not done.is_set():
                families = parse(metrics.render())
                assert families["kes_http_request_active"].samples[""] >= 0
                assert families["kes_http_response_time"].samples["_count"] >= seen
                seen = families["kes_http_response_time"].samples["_count"]

        scraping = pool.submit(scrape)
        list(pool.map(work, range(4)))
        done.set()
        scraping.result()
    families = parse(metrics.render())
    assert families["kes_http_request_success"].samples == {'{code="200"}': 20000}
    assert families["kes_http_request_active"].samples == {"": 0}
    assert families["kes_keystore_request_duration_seconds"].samples['_count{operation="get"}'] == 20000


def test_store_calls_and_failures_are_counted_by_operation() -> None:
    metrics = Metrics(APIS)
    metrics.observe_store("get", 0.02, failed=False)
    metrics.observe_store("get", 3, failed=True)
    metrics.observe_store("list", 0.02, failed=False)
    families = parse(metrics.render())
    samples = families["kes_keystore_request_duration_seconds"].samples
    assert samples['_count{operation="get"}'] == 2
    assert samples['_bucket{operation="get",le="0.05"}'] == 1
    assert samples['_count{operation="list"}'] == 1
    assert families["kes_keystore_request_failure"] == ("counter", {'{operation="get"}': 1})


def test_gauges_are_asked_at_each_scrape() -> None:
    metrics = Metrics(APIS)
    values: list[int | float | None] = [1, 2.5, None]
    metrics.gauge("kes_test", "A test.", lambda: values[0])
    metrics.counter("kes_test_labelled", "A test.", lambda: 1, {"of": 'a "quote", a \\ and a\nline'})
    metrics.counter("kes_test_labelled", "A test.", lambda: 2, {"of": "b"})
    for value in (1, 2.5):
        assert parse(metrics.render())["kes_test"] == ("gauge", {"": value})
        values.pop(0)
    families = parse(metrics.render())
    assert "kes_test" not in families
    assert families["kes_test_labelled"] == ("counter", {r'{of="a \"quote\", a \\ and a\nline"}': 1, '{of="b"}': 2})


def test_the_system_is_described() -> None:
    samples = {name: family.samples[""] for name, family in parse(Metrics(APIS).render()).items() if "system" in name}
    assert samples["kes_system_num_cpu"] == os.cpu_count()
    assert samples["kes_system_num_cpu_used"] == len(os.sched_getaffinity(0))
    assert samples["kes_system_num_threads"] >= 1
    assert samples["kes_system_mem_heap_used"] > 1 << 20
    assert samples["kes_system_mem_heap_objects"] > 1000
    assert samples["kes_system_mem_stack_used"] > 1 << 10
    assert samples["kes_system_up_time"] >= 0


def test_what_other_parts_count_is_shown() -> None:
    metrics = Metrics(APIS)
    metrics.recorder().observe(0, 503, 0.1)
    cache = KeyCache(MemoryStore(), bytes, any=0, unused=0, offline=0, threads=StoreThreads())
    cache.hits, cache.misses = 7, 3
    errors, audit = ErrorLog(), AuditLog()
    errors.events, audit.events, audit.dropped = 5, 6, 2
    stats = {
        "connections": 1,
        "handshakes": 2,
        "requests": 3,
        "buffered": 4,
        "connections_total": 5,
        "handshakes_failed_total": 6,
        "refused_total": 7,
        "overload_total": 8,
        "timeout_total": 2,
        "too_large_total": 3,
        "malformed_total": 4,
    }
    metrics.watch(
        server=lambda: stats,
        cache=lambda: cache,
        certificate_expiry=lambda: 1_900_000_000,
        errors=errors,
        audit=audit,
    )
    families = parse(metrics.render())
    expected = {
        "kes_cache_entries": ("gauge", 0),
        "kes_cache_hits": ("counter", 7),
        "kes_cache_misses": ("counter", 3),
        "kes_connections": ("gauge", 1),
        "kes_connections_opened": ("counter", 5),
        "kes_connections_refused": ("counter", 7),
        "kes_handshakes_active": ("gauge", 2),
        "kes_handshakes_failed": ("counter", 6),
        "kes_keystore_offline": ("gauge", 0),
        "kes_log_audit_dropped": ("counter", 2),
        "kes_log_audit_events": ("counter", 6),
        "kes_log_error_dropped": ("counter", 0),
        "kes_log_error_events": ("counter", 5),
        "kes_requests_buffered_bytes": ("gauge", 4),
        "kes_requests_overload": ("counter", 8),
        "kes_tls_certificate_expiry_seconds": ("gauge", 1_900_000_000),
    }
    assert {name: (families[name].kind, families[name].samples[""]) for name in expected} == expected
    assert families["kes_http_request_failure"].samples == {'{code="503"}': 11}  # the transport's own answers, too
    assert families["kes_http_request_error"].samples == {'{code="400"}': 4, '{code="413"}': 3}
