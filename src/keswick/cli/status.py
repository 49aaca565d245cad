"""`kes status`: how the servers are."""

import sys
import time
from typing import TYPE_CHECKING

from keswick.cli.command import Arguments, Command, CommandError, Flag
from keswick.cli.connection import INSECURE, connect, endpoints, failing
from keswick.cli.output import COLOUR, GREEN, JSON, UNDERLINED, YELLOW, styled, wants_colour
from keswick.cli.terminal import is_terminal, printable, size, to_json, uptime

if TYPE_CHECKING:
    from keswick.client import API, Status


def status(arguments: Arguments) -> None:
    """The endpoints share a key store, but each is a server of its own: all are asked."""
    arguments.at_most(0)
    wants_colour(arguments)  # a wrong word is told before a server is asked
    asked, failures = endpoints(arguments), list[str]()
    for endpoint in asked:
        try:
            _show(arguments, endpoint, alone=len(asked) == 1, first=not failures and endpoint == asked[0])
        except CommandError as error:
            failures.append(str(error))
    if len(failures) == len(asked):
        raise CommandError("; ".join(failures))
    for failure in failures:
        print("Warning:", printable(failure), file=sys.stderr)


def _show(arguments: Arguments, endpoint: str, *, alone: bool, first: bool) -> None:
    apis: tuple[API, ...] = ()
    with connect(arguments, endpoint) as client, failing():
        start = time.perf_counter()
        found = client.status()
        latency = time.perf_counter() - start
        if arguments.has("api"):
            apis = client.apis()
    if arguments.has("json"):
        value: object = [_api_fields(api) for api in apis] if arguments.has("api") else _fields(found)
        if not alone:
            value = {"endpoint": endpoint, **(value if isinstance(value, dict) else {"apis": value})}
        print(to_json(value, indented=is_terminal() and not arguments.has("short")))
        return
    colour = wants_colour(arguments)
    name = endpoint.removeprefix("https://").removeprefix("http://")
    lines = [f"{styled('●', YELLOW if found.keystore_unreachable else GREEN, colour)} {name}"]
    if not arguments.has("short"):
        lines += _details(found, latency)
    if apis:
        lines += ["", *_table(apis, colour)]
    print("\n".join(lines if first or arguments.has("short") else ["", *lines]))


def _details(found: "Status", latency: float) -> list[str]:
    """What older servers do not tell is left out."""
    rows = (
        ("  Version", printable(found.version)),
        ("  Uptime", uptime(found.uptime)),
        ("  Latency", f"{max(round(latency * 1000), 1)}ms" if latency < 1 else f"{latency:.1f}s"),
        ("  Store", "unreachable" if found.keystore_unreachable else ""),
        ("  OS", printable(found.os)),
        ("  CPUs", f"{found.num_cpu} {printable(found.arch)}" if found.num_cpu else ""),
    )
    memory = (("  · Heap", found.mem_heap_used), ("  · Stack", found.mem_stack_used))
    used = [f"{label:<10} {size(count)}" for label, count in memory if count]
    return [*(f"{label:<10} {value}" for label, value in rows if value), *(["  Memory", *used] if used else [])]


def _table(apis: "tuple[API, ...]", colour: bool) -> list[str]:
    width = max(len(api.path) for api in apis)
    header = f"{'Method':<7} {'API':<{width}} Timeout"
    return [
        styled(header, UNDERLINED, colour),
        *(
            f"{api.method:<7} {api.path:<{width}} {f'{api.timeout:g}s' if api.timeout else 'Inf'}"
            for api in sorted(apis, key=lambda api: api.path)
        ),
    ]


def _fields(found: "Status") -> dict[str, object]:
    fields: dict[str, object] = {
        "version": found.version,
        "os": found.os,
        "arch": found.arch,
        "uptime": found.uptime,
        "num_cpu": found.num_cpu,
        "num_cpu_used": found.num_cpu_used,
        "mem_heap_used": found.mem_heap_used,
        "mem_stack_used": found.mem_stack_used,
    }
    if found.keystore_latency:
        fields["keystore_latency"] = found.keystore_latency
    if found.keystore_unreachable:
        fields["keystore_unreachable"] = True
    return fields


def _api_fields(api: "API") -> dict[str, object]:
    fields: dict[str, object] = {"method": api.method, "path": api.path}
    if api.max_body:
        fields["max_body"] = api.max_body
    if api.timeout:
        fields["timeout"] = int(api.timeout) if api.timeout == int(api.timeout) else api.timeout
    return fields


COMMAND = Command(
    "",
    "Show how the server is.",
    status,
    (
        INSECURE,
        Flag("short", "Only whether it answers.", short="s"),
        Flag("api", "Also the APIs it has, and their time limits."),
        JSON,
        COLOUR,
    ),
    details="If several servers are named, each is asked; it is an error if none answers.",
    examples=("kes status", "kes status --short", "kes status --api --json"),
)
