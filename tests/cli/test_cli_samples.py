"""What the original printed is what Keswick prints: one loop over tests/vectors/cli."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from keswick.identity import APIKey, certificate_for
from support.cli import kes, kes_in_background, kes_on_terminal
from support.server import RunningServer, start_server

SAMPLES = json.loads((Path(__file__).parents[1] / "vectors" / "cli" / "samples.json").read_text())
USER = APIKey.generate()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    allow, deny = ["/v1/key/create/app*"], ["/v1/key/create/app-x*"]
    policy = {"app": {"allow": allow, "deny": deny, "identities": [USER.identity]}}
    with start_server(tmp_path_factory.mktemp("server"), policy=policy) as server:
        with server.client() as client:
            client.create_key("k1")
            client.create_key("k2")
        yield server


@pytest.fixture(scope="module")
def values(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What stands for the braces."""
    folder = tmp_path_factory.mktemp("files")
    certificate, key = folder / "root.cert", folder / "root.key"
    certificate.write_text(certificate_for(USER).certificate_pem)
    key.touch()
    sealed = json.loads(kes("key", "encrypt", "k1", "hello", env=server.environment).stdout)["ciphertext"]
    return {"user": USER.identity, "certificate": str(certificate), "key": str(key), "sealed": sealed}


@pytest.mark.parametrize("sample", [pytest.param(sample, id=sample["id"]) for sample in SAMPLES["cases"]])
def test_the_same_form(server: RunningServer, values: dict[str, str], sample: dict[str, Any]) -> None:
    assert re.fullmatch(filled(sample["form"]), sample["original"]), "the record has not the form that is said of it"
    assert ("own" in sample) == bool(sample.get("differs"))

    arguments = [argument.format(**values) for argument in sample["arguments"]]
    environment = {**server.environment, **sample.get("environment", {}), "NO_COLOR": "1"}
    form = filled(sample.get("own", sample["form"]))
    if sample.get("terminal"):
        code, printed = kes_on_terminal(*arguments, env=environment)
    elif sample.get("endless"):
        with kes_in_background(*arguments, env=environment) as process:
            assert process.stdout is not None
            code, printed = 0, process.stdout.readline()
    else:
        result = kes(*arguments, env=environment)
        code, printed = result.code, result.stdout + result.stderr
        assert not (result.stdout and result.stderr)
        assert bool(result.stderr) == bool(code)
    assert code == sample.get("code", 0)
    assert re.fullmatch(form, printed), printed


def filled(form: str) -> str:
    return re.sub(r"<([\w-]+)>", lambda part: SAMPLES["parts"][part[1]], form)


def test_the_loop_notices_another_form() -> None:
    form = filled('\\{"name":"k1","created_at":"<time>"\\}')
    assert re.fullmatch(form, '{"name":"k1","created_at":"2026-11-22T02:10:08.9Z"}')
    for other in ('{"name": "k1","created_at":"2026-11-22T02:10:08.9Z"}', '{"name":"k1","created_at":"yesterday"}'):
        assert not re.fullmatch(form, other)
