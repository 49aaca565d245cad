"""Every golden case through a running server: a folder of the stored keys of all releases, and their ciphertexts
opened over the API."""

from pathlib import Path

from support.api import Caller, new_pair
from support.golden import cases
from support.server import start_server


def test_every_golden_case(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir(mode=0o700)
    numbered = list(enumerate(cases()))
    for number, case in numbered:  # names differ from case to case, for several bring other contents under one name
        (keys / f"case-{number}").write_bytes(case.stored_key)
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
