"""`kes status`: how the servers are."""

import time
from typing import TYPE_CHECKING

from keswick.cli.command import Arguments, Command, CommandError, Flag
from keswick.cli.connection import INSECURE, connect, endpoints, failing
from keswick.cli.output import COLOUR, GREEN, JSON, UNDERLINED, YELLOW, styled, wants_colour, warn
from keswick.cli.terminal import is_terminal, printable, size, to_json, uptime

if TYPE_CHECKING:
    from keswick.client import API, Status


def status(arguments: Arguments) -> None:
    """The endpoints share a key store, but each is a server of its own: all are asked."""
    arguments.at_most(0)
    wants_colour(arguments)  # a wrong word is told before a server is asked
    in_blocks = not arguments.has("json") and not arguments.has("short")
    asked = endpoints(arguments)
    answered, failures = 0, []
    for endpoint in asked:
        try:
            answer = _ask(arguments, endpoint, alone=len(asked) == 1)
        except CommandError as error:
            failures.append(str(error))
        else:
            print(f"\n{answer}" if in_blocks and answered else answer)
            answered += 1
    if not answered:
        raise CommandError("; ".join(dict.fromkeys(failures)))
    for failure in failures:
        warn(failure)


def _ask(arguments: Arguments, endpoint: str, *, alone: bool) -> str:
    """What is to be printed about one server; `alone` if there are no others."""
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
        return to_json(value, indented=is_terminal() and not arguments.has("short"))
    colour = wants_colour(arguments)
    name = endpoint.removeprefix("https://").removeprefix("http://")
    lines = [f"{styled('●', YELLOW if found.keystore_unreachable else GREEN, colour)} {name}"]
    if not arguments.has("short"):
        lines += _details(found, latency)
    if apis:
        lines += ["", *_table(apis, colour)]
    return "\n".join(lines)


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
    "Show how the servers are.",
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
