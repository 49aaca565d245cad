"""Metrics in Prometheus's text format 0.0.4, under the names of the original, and some of our own.

Nothing is locked on the way of a request: each thread that answers requests counts in a recorder of its own, and a
scrape adds them up. Whatever others count already (cache, logs, transport) is asked for at the scrape. No label carries
a key name or an identity.
"""

import os
import sys
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from keswick.server.cache import KeyCache
from keswick.server.logs import AuditLog, ErrorLog

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores"

RESPONSE_TIME_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 3.0, 5.0, 10.0)
"""Seconds; those of the original, which its dashboards know."""
BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, *RESPONSE_TIME_BUCKETS)
"""Seconds. A cached key is sealed with in microseconds."""

Number = int | float
Labels = Mapping[str, str]


_OWN_ANSWERS = {"overload_total": 503, "timeout_total": 503, "too_large_total": 413, "malformed_total": 400}
"""What the transport answered without the server, in its `stats`, and with which status."""


class Histogram:
    """Counts of durations, by the bucket of BUCKETS that each is within, and their sum in seconds."""

    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.seconds = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.seconds += seconds

    def add(self, other: "Histogram") -> None:
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.seconds += other.seconds


class Recorder:
    """The counters of one thread. Only that thread may change them."""

    __slots__ = ("_apis", "_statuses", "started")

    def __init__(self, apis: int) -> None:
        self.started = 0
        """Requests that began on this thread; it may be another one that finishes them."""
        self._statuses = [0] * 600
        self._apis = [Histogram() for _ in range(apis)]

    def observe(self, api: int, status: int, seconds: float) -> None:
        """Count an answered request. `api` is the index of its route, or the number of routes when it has none."""
        self._statuses[status] += 1
        histogram = self._apis[api]
        histogram.counts[bisect_left(BUCKETS, seconds)] += 1
        histogram.seconds += seconds


class Metrics:
    """`apis`: the path of each route."""

    def __init__(self, apis: Sequence[str]) -> None:
        self._apis = (*apis, "unknown")
        self._recorders: list[Recorder] = []
        self._store_calls: dict[str, Histogram] = {}
        self._store_failures: dict[str, int] = {}
        self._storing = threading.Lock()
        self._asked: list[tuple[str, str, str, Callable[[], Number | None], Labels]] = []
        self._server: Callable[[], Mapping[str, int]] = dict
        self._started = time.monotonic()
        self._ask_system()

    def recorder(self) -> Recorder:
        """A recorder for one thread."""
        recorder = Recorder(len(self._apis))
        self._recorders.append(recorder)
        return recorder

    def observe_store(self, operation: str, seconds: float, failed: bool) -> None:
        """Count a call of the key store. On any thread: beside the call itself a lock costs nothing."""
        with self._storing:
            self._store_calls.setdefault(operation, Histogram()).observe(seconds)
            if failed:
                self._store_failures[operation] = self._store_failures.get(operation, 0) + 1

    def gauge(self, name: str, help: str, value: Callable[[], Number | None], labels: Labels | None = None) -> None:
        """Ask `value` at each scrape; for None there is no sample."""
        self._asked.append((name, "gauge", help, value, labels or {}))

    def counter(self, name: str, help: str, value: Callable[[], Number | None], labels: Labels | None = None) -> None:
        """As `gauge`, for a number that only grows."""
        self._asked.append((name, "counter", help, value, labels or {}))

    def watch(
        self,
        *,
        server: Callable[[], Mapping[str, int]],
        cache: Callable[[], KeyCache[Any]],
        certificate_expiry: Callable[[], Number | None],
        errors: ErrorLog,
        audit: AuditLog,
    ) -> None:
        """Show what other parts count. `server`: the transport's `stats`; `certificate_expiry`: seconds since 1970."""
        self._server = server
        self.gauge("kes_connections", "Open client connections.", lambda: server()["connections"])
        self.counter("kes_connections_opened", "Client connections.", lambda: server()["connections_total"])
        self.counter(
            "kes_connections_refused",
            "Connections and handshakes refused because of a bound.",
            lambda: server()["refused_total"],
        )
        self.gauge("kes_handshakes_active", "TLS handshakes in progress.", lambda: server()["handshakes"])
        self.counter("kes_handshakes_failed", "Failed TLS handshakes.", lambda: server()["handshakes_failed_total"])
        self.counter("kes_requests_timeout", "Requests whose body came too late.", lambda: server()["timeout_total"])
        self.counter(
            "kes_requests_overload", "Requests refused because of a bound.", lambda: server()["overload_total"]
        )
        self.gauge(
            "kes_requests_buffered_bytes",
            "Bytes of request bodies and unsent answers.",
            lambda: server()["buffered"],
        )
        self.counter("kes_cache_hits", "Keys found in the cache.", lambda: cache().hits)
        self.counter("kes_cache_misses", "Keys not found in the cache.", lambda: cache().misses)
        self.gauge("kes_cache_entries", "Keys in the cache.", lambda: len(cache()))
        self.gauge("kes_keystore_offline", "1 while the key store does not answer.", lambda: int(cache().offline))
        self.gauge(
            "kes_tls_certificate_expiry_seconds",
            "When the server's certificate expires, in seconds since 1970.",
            certificate_expiry,
        )
        self.counter("kes_log_audit_events", "Audit events.", lambda: audit.events)
        self.counter("kes_log_audit_dropped", "Audit events that could not be written.", lambda: audit.dropped)
        self.counter(
            "kes_log_stream_lost",
            "Events that readers of the live log streams were too slow for.",
            lambda: audit.lost + errors.lost,
        )
        self.counter("kes_log_error_events", "Events of the error log.", lambda: errors.events)
        self.counter(
            "kes_log_error_dropped", "Events of the error log that could not be written.", lambda: errors.dropped
        )

    def render(self) -> bytes:
        """What a scrape is answered with. On any thread."""
        families = {family.name: family for family in (*self._http(), *self._store())}
        for name, kind, help, value, labels in self._asked:
            number = value()
            if number is not None:
                families.setdefault(name, _Family(name, kind, help)).sample(number, labels)
        return "".join(text for name in sorted(families) for text in families[name].lines()).encode()

    def _http(self) -> Iterable["_Family"]:
        active = _Family("kes_http_request_active", "gauge", "Requests in progress.")
        success = _Family("kes_http_request_success", "counter", "Requests that succeeded (2xx, 3xx).")
        error = _Family("kes_http_request_error", "counter", "Requests that failed through the client's fault (4xx).")
        failure = _Family(
            "kes_http_request_failure", "counter", "Requests that failed through the server's fault (5xx)."
        )
        total = _Family("kes_http_response_time", "histogram", "Seconds that requests took.")
        by_api = _Family("kes_api_request_duration_seconds", "histogram", "Seconds that requests took, by API.")

        everything = Histogram()
        for index, path in enumerate(self._apis):
            histogram = Histogram()
            for recorder in self._recorders:
                histogram.add(recorder._apis[index])
            everything.add(histogram)
            if any(histogram.counts):
                by_api.histogram(histogram, BUCKETS, {"api": path})
        total.histogram(everything, RESPONSE_TIME_BUCKETS, {})

        statuses = [sum(counts) for counts in zip(*(recorder._statuses for recorder in self._recorders), strict=True)]
        if statuses:
            answered = self._server()
            for name, status in _OWN_ANSWERS.items():
                statuses[status] += answered.get(name, 0)
        for status, count in enumerate(statuses):
            if count:
                family = failure if status >= 500 else error if status >= 400 else success
                family.sample(count, {"code": str(status)})

        # Finished requests were read first: those that have begun cannot be fewer.
        active.sample(sum(recorder.started for recorder in self._recorders) - sum(everything.counts), {})
        return active, success, error, failure, total, by_api

    def _store(self) -> Iterable["_Family"]:
        calls = _Family("kes_keystore_request_duration_seconds", "histogram", "Seconds that key store calls took.")
        failures = _Family("kes_keystore_request_failure", "counter", "Key store calls that failed.")
        with self._storing:
            for operation, histogram in sorted(self._store_calls.items()):
                calls.histogram(histogram, BUCKETS, {"operation": operation})
            for operation, count in sorted(self._store_failures.items()):
                failures.sample(count, {"operation": operation})
        return calls, failures

    def _ask_system(self) -> None:
        started = self._started
        self.gauge("kes_system_up_time", "Seconds since the start.", lambda: round(time.monotonic() - started, 2))
        self.gauge("kes_system_num_cpu", "Logical CPUs.", lambda: os.cpu_count() or 1)
        self.gauge("kes_system_num_cpu_used", "CPUs that the process may use.", usable_cpus)
        self.gauge("kes_system_num_threads", "Threads.", lambda: _process("Threads"))
        self.gauge("kes_system_mem_heap_used", "Bytes of resident memory.", resident_memory)
        self.gauge("kes_system_mem_heap_objects", "Allocated blocks of memory.", sys.getallocatedblocks)
        self.gauge("kes_system_mem_stack_used", "Bytes of stack.", stack_memory)


class _Family:
    """One metric with all its samples."""

    def __init__(self, name: str, kind: str, help: str) -> None:
        self.name = name
        self._head = f"# HELP {name} {help}\n# TYPE {name} {kind}\n"
        self._samples: list[str] = []

    def sample(self, value: Number, labels: Labels, suffix: str = "") -> None:
        text = ",".join(f'{label}="{_escape(content)}"' for label, content in labels.items())
        self._samples.append(f"{self.name}{suffix}{{{text}}} {value}\n" if text else f"{self.name}{suffix} {value}\n")

    def histogram(self, histogram: Histogram, buckets: Sequence[float], labels: Labels) -> None:
        up_to = dict(zip(BUCKETS, accumulate(histogram.counts), strict=False))
        count = sum(histogram.counts)
        for bucket in buckets:
            self.sample(up_to[bucket], {**labels, "le": f"{bucket:g}"}, "_bucket")
        self.sample(count, {**labels, "le": "+Inf"}, "_bucket")
        self.sample(histogram.seconds, labels, "_sum")
        self.sample(count, labels, "_count")

    def lines(self) -> Sequence[str]:
        """Nothing before the first sample."""
        return (self._head, *self._samples) if self._samples else ()


def _escape(content: str) -> str:
    return content.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resident_memory() -> int:
    """Bytes."""
    return _process("VmRSS") * 1024


def stack_memory() -> int:
    """Bytes."""
    return _process("VmStk") * 1024


def _process(field: str) -> int:
    """A number that the kernel knows of this process; 0 where it tells none."""
    try:
        with open("/proc/self/status", "rb") as status:
            for line in status:
                if line.startswith(field.encode() + b":"):
                    return int(line.split()[1])
    except OSError:
        pass
    return 0
