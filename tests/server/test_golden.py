"""Every golden case through running servers: a folder of the stored keys of all releases, and their ciphertexts opened
over the API, by today's server and by one with the configuration and in the words of the time."""

from pathlib import Path
from typing import Any

import pytest

from support.api import Caller, new_pair
from support.forms import form_of, start_form, write_form
from support.golden import FOLDER, Case, cases
from support.server import start_server

RELEASES = sorted(file.stem for file in FOLDER.glob("*.json") if file.stem.startswith(("v", "2")))
NOT_AUTHENTIC = {"2021": "ciphertext is not authentic"}


def _store(keys: Path, numbered: list[tuple[int, Case]]) -> None:
    """Under names of their own, for several cases bring other contents under one name."""
    keys.mkdir(mode=0o700)
    for number, case in numbered:
        (keys / f"case-{number}").write_bytes(case.stored_key)


def test_every_golden_case(tmp_path: Path) -> None:
    numbered = list(enumerate(cases()))
    _store(tmp_path / "keys", numbered)
    pair = new_pair()
    admin = Caller(0, pair, tmp_path)
    with start_server(tmp_path, admin={"identity": admin.identity}) as server:
        caller = Caller(server.port, pair, tmp_path)
        wrong = []
        for number, case in numbered:
            method = "GET" if case.kind == "describe" else "PUT"
            body = None if case.kind == "describe" else case.request
            answer = caller.call(method, f"/v1/key/{case.kind}/case-{number}", body)
            got = {"status": answer.status, **answer.json}
            got.pop("name", None)
            if got != case.expected:
                wrong.append((case.id, got, case.expected))
        assert not wrong
        assert len(numbered) == 149


@pytest.mark.parametrize("release", RELEASES)
def test_what_a_release_stored_and_sealed_opens_with_its_configuration(tmp_path: Path, release: str) -> None:
    numbered = [(number, case) for number, case in enumerate(cases()) if case.file == release]
    assert {case.kind for _, case in numbered} == {"decrypt"}
    _store(tmp_path / "keys", numbered)
    pair = new_pair()
    config = write_form(release, tmp_path, admin=Caller(0, pair, tmp_path).identity)
    _, dialect, _ = form_of(release)
    with start_form(config, tmp_path, "--auth", "off") as server:
        assert f"{dialect}, from" in server.line("Dialect")
        caller = Caller(server.port, pair, tmp_path)
        wrong = []
        for number, case in numbered:
            answer = caller.call("POST", f"/v1/key/decrypt/case-{number}", case.request)
            got = {"status": answer.status, **answer.json}
            if got != _in_dialect(case.expected, dialect):
                wrong.append((case.id, got))
        assert not wrong
        assert any(case.expected["status"] == 200 for _, case in numbered)
        # And what today's server seals there, it opens there.
        sealed = caller.call("POST", f"/v1/key/encrypt/case-{numbered[0][0]}", {"plaintext": "QQ=="}).json
        assert caller.call("POST", f"/v1/key/decrypt/case-{numbered[0][0]}", sealed).json == {"plaintext": "QQ=="}


def _in_dialect(expected: dict[str, Any], dialect: str) -> dict[str, Any]:
    """The right answer in the words of the time."""
    if expected["status"] == 400:
        return {"status": 400, "message": NOT_AUTHENTIC.get(dialect, expected["message"])}
    return {**expected, "plaintext": expected["plaintext"] or (None if dialect != "2025" else "")}
