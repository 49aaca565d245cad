"""What docs/configuration.md says of each key, held against what the reader does with it."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from keswick.config import Config, ConfigError, load
from keswick.config.document import Section
from keswick.config.limits import DEFAULT_LIMITS, RANGES
from keswick.config.reference import reference
from keswick.config.stores import KINDS
from keswick.keystore import table
from keswick.keystore.section import Setting, Shape

ALL: dict[str, tuple[str, Setting]] = {
    f"{section}.{key.name}".removeprefix("."): (section, key) for section, keys in reference().items() for key in keys
}
"""Every key by its whole name, with its section."""
CHOSEN = {"api.*": "api./v1/ready", "policy.*": "policy.my-app"}
"""What stands for the names that operators choose."""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for _, key in ALL.values():
        for name in re.findall(r"\$\{(\w+)\}", str(key.example)):
            monkeypatch.setenv(name, name)


def needed(name: str) -> str | None:
    """The whole name of what a key is required with."""
    section, key = ALL[name]
    return None if key.needed is None else f"{section}.{key.needed}".rstrip(".")


def document(*names: str) -> dict[str, Any]:
    """A configuration with the examples of these keys and of all that are required then."""
    chosen = {"admin.identity", "tls.key", *names}
    if not any(name.startswith("keystore.") for name in chosen):
        chosen.add("keystore.fs.path")
    for kind in KINDS:
        chosen |= set(methods(f"keystore.{kind}", table.module(kind).SHAPE, chosen))
    while True:
        more = {name for name in ALL.keys() - chosen if (with_ := needed(name)) and is_within(chosen, with_)}
        if not more:
            break
        chosen |= more
    made: dict[str, Any] = {}
    for name in sorted(chosen):
        example = ALL[name][1].example
        section, last = place(made, name)
        section[last] = example if isinstance(example, str) else list(example)
    return made


def methods(section: str, shape: Shape, chosen: Iterable[str]) -> Iterator[str]:
    """A key of the first method, in each section that is chosen and must have one, and has none."""
    if not is_within(chosen, section):
        return
    ways = [f"{section}.{method}" for method in shape.methods]
    if shape.must_log_in and not any(is_within(chosen, way) for way in ways):
        yield next(name for name in ALL if is_within([name], ways[0]))
    for key, inner in shape.sections.items():
        yield from methods(f"{section}.{key}", inner, chosen)


def is_within(names: Iterable[str], section: str) -> bool:
    return any(name == section or name.startswith(section + ".") for name in names)


def place(made: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    """The section in which a key stands, made if it does not exist, and the key's last name there."""
    *sections, last = path(name)
    for section in sections:
        made = made.setdefault(section.removesuffix("[]"), [{}] if section.endswith("[]") else {})
        made = made[0] if isinstance(made, list) else made
    return made, last


def path(name: str) -> list[str]:
    for pattern, chosen in CHOSEN.items():
        name = name.replace(pattern, chosen)
    return name.split(".")


def shown(name: str) -> str:
    """As errors show it."""
    return ".".join(path(name)).replace("[]", "")


def read(folder: Path, made: dict[str, Any]) -> Config:
    (folder / "config.yaml").write_text(json.dumps(made))  # which is YAML, too
    return load(folder / "config.yaml", apis={"/v1/ready": True})


@pytest.mark.parametrize("name", ALL)
def test_the_example_of_a_key_is_valid(tmp_path: Path, name: str) -> None:
    assert read(tmp_path, document(name)).warnings == ()


@pytest.mark.parametrize("name", ALL)
def test_a_key_is_looked_at(tmp_path: Path, name: str) -> None:
    made = document(name)
    section, last = place(made, name)
    is_list = isinstance(section[last], list)
    section[last] = "no list" if is_list else {"no": "value"}
    with pytest.raises(ConfigError, match=re.escape(f"{shown(name)!r} must be a {'list' if is_list else 'single'}")):
        read(tmp_path, made)


@pytest.mark.parametrize("name", [name for name, (_, key) in ALL.items() if key.needed is not None])
def test_a_required_key_cannot_be_left_out(tmp_path: Path, name: str) -> None:
    with_ = needed(name)
    made = document(name, *([with_] if with_ in ALL else []))
    section, last = place(made, name)
    del section[last]
    with pytest.raises(ConfigError, match=re.escape(f"'{shown(name)}' is missing")):
        read(tmp_path, made)


@pytest.mark.parametrize("name", [name for name, (_, key) in ALL.items() if key.needed is None])
def test_what_an_optional_key_is_when_it_is_left_out(tmp_path: Path, name: str) -> None:
    made = document(name)
    section, last = place(made, name)
    del section[last]
    without = read(tmp_path, made)
    if default := ALL[name][1].default:
        section[last] = default
        spelled_out = read(tmp_path, made)
        if name == "tls.auth":  # the one switch of which the model tells whether anything was said
            assert without.tls is not None
            assert without.tls.auth is None
            without = replace(without, tls=replace(without.tls, auth=False))
        assert spelled_out == without


def test_no_other_key_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accepted = {f"keystore.{kind.partition('.')[0]}" for kind in KINDS}
    only = Section.only

    def recorded(self: Section, *known: str, **others: Any) -> Section:
        accepted.update(f"{self.key}.{key}".removeprefix(".") for key in known)
        return only(self, *known, **others)

    monkeypatch.setattr(Section, "only", recorded)
    for name in ALL:
        read(tmp_path, document(name))

    described = set()
    for name in ALL:
        parts = path(name)
        described |= {".".join(parts[:length]).replace("[]", "") for length in range(1, len(parts) + 1)}
    assert accepted == described - set(CHOSEN.values())


def test_every_bound_of_the_transport_can_be_set() -> None:
    assert RANGES.keys() == DEFAULT_LIMITS.keys()
    assert [key.name for key in reference()["limits"]] == list(DEFAULT_LIMITS)
    for name, (least, most) in RANGES.items():
        assert least <= DEFAULT_LIMITS[name] <= most
