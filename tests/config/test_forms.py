"""Every form of the configuration: files of each, next to what is read in them, and the mistakes that each refuses."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keswick.config import Address, ConfigError, differing_rules, load
from keswick.keystore import StoreSection

APIS = {"/v1/ready": True, "/v1/key/create/": False}
VECTORS = Path(__file__).parents[1] / "vectors" / "config"
FILES = sorted(path for path in VECTORS.iterdir() if path.suffix in (".yaml", ".toml") and path.stem != "mistakes")
MISTAKES = yaml.safe_load((VECTORS / "mistakes.yaml").read_text())


def as_data(value: Any) -> Any:
    """The model as JSON has it, without what is as by default."""
    match value:
        case StoreSection("fs", settings):
            return {"fs": settings["path"]}
        case StoreSection(kind, settings):
            return {kind: dict(settings)}
        case Address(host, port):
            return f"{host}:{port}"
        case dict():
            return {key: as_data(inner) for key, inner in value.items()}
        case tuple():
            return [as_data(inner) for inner in value]
    if not dataclasses.is_dataclass(value):
        return value
    found = {}
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        default = field.default_factory() if callable(field.default_factory) else field.default
        if inner != default and field.name not in ("warnings", "unsaid"):
            found[field.name] = as_data(inner)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = json.loads(path.with_suffix(path.suffix + ".json").read_text())
    for name, value in expected.get("environment", {}).items():
        monkeypatch.setenv(name, value)

    config = load(path, apis=APIS)

    assert as_data(config) == expected["config"]
    assert config.form == path.name.partition("-")[0]
    assert [warning.removeprefix(f"{path}: ") for warning in config.warnings] == expected.get("warnings", [])


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake["error"][:60])
def test_mistakes(tmp_path: Path, mistake: dict[str, str]) -> None:
    path = tmp_path / mistake.get("file", "config.yaml")
    path.write_text(mistake["text"])
    with pytest.raises(ConfigError) as failure:
        load(path, apis=APIS)
    assert str(failure.value).removeprefix(f"{path}: ") == mistake["error"]
    assert "hunter2" not in str(failure.value)


def test_a_file_is_read_once_however_often_it_is_looked_at(tmp_path: Path) -> None:
    merges = "".join(f"  p{number}: {{<<: *rules}}\n" for number in range(100))
    text = f"root: disabled\npolicy:\n  p: &rules {{paths: [/v1/ready]}}\n{merges}keys: {{fs: {{path: /keys}}}}\n"
    (tmp_path / "config.yaml").write_text(text)
    assert len(load(tmp_path / "config.yaml", apis=APIS).policies) == 101


def test_rules_of_older_forms_are_globs(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "root: disabled\nkeys: {fs: {path: /keys}}\n"
        "policy: {p: {paths: [/v1/*, /v1/key/create/*, /v1/identity/assign/*]}}\n"
    )
    config = load(tmp_path / "config.yaml", apis=APIS)
    assert config.globs_only
    first, second = differing_rules(config, ["/v1/key/create/", "/v1/identity/assign/"])
    assert first.startswith("policy 'p', allow rule '/v1/*': as a prefix it matches every path")
    assert first.endswith("; it is read as a glob")
    assert second.startswith("policy 'p', allow rule '/v1/identity/assign/*': ")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.text(),
        st.text(st.sampled_from("ab.=[]{}'\"\n#,1-: \\")),
        st.lists(
            st.sampled_from(["[tls]", "[[tls]]", "key='k'", "a.b.c=1", "root=1979-05-27", "[a", "x={y=[{}]}"])
        ).map("\n".join),
        st.integers(1, 3000).map(lambda depth: ".".join("a" * depth) + "=1"),
        st.integers(1, 3000).map(lambda depth: "a=" + "[" * depth + "]" * depth),
    )
)
def test_any_text_is_toml_or_a_config_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.toml").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError):  # none of these has a key store
        load(tmp_path / "config.toml", apis=APIS)
