"""What `kes server` prints once the port is bound, in the shape that scripts of the original's users know."""

import os

from keswick.about import version_lines
from keswick.config import Config
from keswick.server.addresses import to_reach

_FORMS = {
    "2020": "the form of 2020",
    "2021": "the form of 2021",
    "transitional": "the form of 2022, with 'root' and 'keystore'",
    "2025": "the present form",
}


def banner(
    config: Config, store: str, address: tuple[str, int], *, memory_locked: bool, api_key: str | None = None
) -> str:
    host, port = address
    rows = [
        ("KMS", store),
        *_listed("API", [f"· https://{reached}:{port}" for reached in to_reach(host)]),
        ("", ""),
        *([("API Key", api_key)] if api_key else []),
        ("Admin", config.admin if _is_hex(config.admin) else "<disabled>"),
        ("Clients", _clients(config)),
        *_proxies(config),
        *([("Policies", "can be written through the API; a restart forgets them")] if config.runtime_policies else []),
        ("Dialect", f"{config.dialect}, from a configuration of {_FORMS[config.form]}"),
        *_listed("Logs", _logs(config)),
        *([("MLock", "enabled")] if memory_locked else []),
        ("Process", str(os.getpid())),
    ]
    lines = [f"{label:<12}{text}".rstrip() for label, text in rows]
    return "\n".join([*version_lines(), "", *lines, "", "=> Server is up and running...", ""])


def _listed(label: str, texts: list[str]) -> list[tuple[str, str]]:
    return [(label if index == 0 else "", text) for index, text in enumerate(texts)]


def _is_hex(identity: str) -> bool:
    try:
        return bool(bytes.fromhex(identity))
    except ValueError:
        return False


def _clients(config: Config) -> str:
    opened = [path for path, api in config.api.items() if api.skip_auth]
    verified = "verified" if config.tls is not None and config.tls.auth else "not verified"
    if opened:
        return f"certificates are asked for, {verified}; none is needed for {', '.join(sorted(opened))}"
    return f"certificates are demanded, {verified}; policies apply"


def _proxies(config: Config) -> list[tuple[str, str]]:
    if config.tls is None or not config.tls.proxy.identities:
        return []
    proxy = config.tls.proxy
    return [("Proxies", f"{len(proxy.identities)}, with the certificates of their clients in {proxy.header}")]


def _logs(config: Config) -> list[str]:
    logs = [("error", "stderr", config.log.error), ("audit", "stdout", config.log.audit)]
    return [f"{name}={target} level={_level(level)}" for name, target, level in logs if name == "error" or level <= 0]


def _level(level: int) -> str:
    for base, name in ((8, "ERROR"), (4, "WARN"), (0, "INFO")):
        if level >= base:
            return "OFF" if level >= 1 << 30 else name + (f"+{level - base}" if level > base else "")
    return "DEBUG" + (f"+{level + 4}" if level > -4 else "")
