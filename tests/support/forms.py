"""Configuration files in the forms of all releases, for servers that run.

config = write_form("v0.13.4", tmp_path, admin=identity)
with start_form(config, tmp_path, "--auth", "off") as server:
    ...
"""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from keswick.identity import APIKey
from support.certificates import make
from support.server import RunningServer, running

_GLOBS = ["/v1/key/*/app-*"]


def _general(folder: Path, admin: str | None) -> dict[str, Any]:
    return {
        "address": "127.0.0.1:0",
        **({} if admin is None else {"root": admin}),
        "tls": {"key": str(folder / "server.key"), "cert": str(folder / "server.crt")},
    }


def _of_2020(folder: Path, admin: str | None, apps: list[str]) -> dict[str, Any]:
    return {
        **_general(folder, admin),
        "policy": {"app": {"paths": _GLOBS, "identities": apps}},
        "cache": {"expiry": {"all": "5m"}},
        "log": {"error": {"file": ["/dev/stderr"]}, "audit": {"file": []}},
        "keystore": {"fs": {"path": str(folder / "keys")}},
    }


def _of_2021(folder: Path, admin: str | None, apps: list[str]) -> dict[str, Any]:
    return {
        **_general(folder, admin),
        "policy": {"app": {"paths": _GLOBS, "identities": apps}},
        "cache": {"expiry": {"any": "5m0s", "unused": "20s"}},
        "log": {"error": "on", "audit": "off"},
        "keys": {"fs": {"path": str(folder / "keys")}},
    }


def _transitional(folder: Path, admin: str | None, apps: list[str]) -> dict[str, Any]:
    return {
        **_general(folder, admin),
        "policy": {"app": {"allow": _GLOBS, "identities": apps}},
        "keystore": {"fs": {"path": str(folder / "keys")}},
    }


def _present(folder: Path, admin: str | None, apps: list[str], **more: str) -> dict[str, Any]:
    general = _general(folder, admin)
    return {
        **({"admin": {"identity": general.pop("root")}} if admin is not None else {}),
        **general,
        "policy": {"app": {"allow": _GLOBS, "identities": apps}},
        "keystore": {"fs": {"path": str(folder / "keys")}},
        **more,
    }


def _with_paths(folder: Path, admin: str | None, apps: list[str]) -> dict[str, Any]:
    return {**_transitional(folder, admin, apps), "policy": {"app": {"paths": _GLOBS, "identities": apps}}}


def _spoken(dialect: str) -> Any:
    return lambda folder, admin, apps: _present(folder, admin, apps, compatibility=dialect)


FORMS: Mapping[str, tuple[str, str, Any]] = {
    "v0.5.0": ("2020", "2021", _of_2020),
    "v0.8.3": ("2020", "2021", _of_2020),
    "v0.11.0": ("2021", "2021", _of_2021),
    "v0.13.4": ("2021", "2021", _of_2021),
    "v0.14.0": ("transitional", "2022", _with_paths),
    "v0.17.6": ("transitional", "2022", _transitional),
    "v0.18.0": ("2025", "2022", _spoken("2022")),
    "v0.19.4": ("2025", "2023", _spoken("2023")),
    "v0.22.3": ("2025", "2023", _spoken("2023")),
    "2023-04-18T19-36-09Z": ("2025", "2023", _spoken("2023")),
}
"""The form that a release took, the dialect that a server speaks with it, and what makes the file. Later releases took
the present form."""


def form_of(release: str) -> tuple[str, str, Any]:
    return FORMS.get(release, ("2025", "2025", _present))


def write_form(release: str, folder: Path, *, admin: str | None, apps: tuple[str, ...] = (), **changes: Any) -> Path:
    """The configuration of that release, with a certificate and a folder for keys. `admin`: None leaves it to a flag.
    `apps`: who may call keys whose names begin with `app-`. `changes` replace what stands at the top; None removes."""
    if not (folder / "server.crt").exists():
        make("p256", sans=["localhost", "127.0.0.1"], eku=["server"]).write(folder, "server")
    config = {**form_of(release)[2](folder, admin, list(apps)), **changes}
    path = folder / "config.yaml"
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}, indent=1))
    return path


def start_form(
    config: Path, folder: Path, *flags: str, environment: Mapping[str, str] | None = None
) -> AbstractContextManager[RunningServer]:
    arguments = ["server", "--config", str(config), *flags]
    return running(arguments, folder, APIKey.generate(), environment)
