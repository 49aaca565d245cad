"""What the original's releases stored and sealed, and what they answered: 149 cases, run by one loop.

Right is the plaintext that a case's own era could read (`original_plaintext`), else what the newest original answers;
where that drops the connection, an error. How an error becomes a status and a message is the server's affair.
"""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from keswick.crypto import DecryptionError, KeyFormatError, NoHMACKeyError, SecretKey

GOLDEN = Path(__file__).parent.parent / "vectors" / "golden"
CASES = [case for file in sorted(GOLDEN.glob("*.json")) for case in json.loads(file.read_text())["cases"]]

ERRORS = {
    "decryption failed: ciphertext is not authentic": DecryptionError,
    "failed to read key": KeyFormatError,
    "key does not support HMAC": NoHMACKeyError,
}


def answer(case: dict[str, Any]) -> dict[str, str]:
    """What the call of the case answers, as the API names and encodes it."""
    request = {name: base64.b64decode(value) for name, value in case["request"].items()}
    key = SecretKey.decode(case["stored_key"].encode())
    match case["kind"]:
        case "decrypt":
            plaintext = key.decrypt(request["ciphertext"], request.get("context", b""))
            return {"plaintext": base64.b64encode(plaintext).decode()}
        case "hmac":
            return {"hmac": base64.b64encode(key.hmac(request["message"])).decode()}
        case "describe":
            described = {"algorithm": key.algorithm, "created_at": key.created_at, "created_by": key.created_by}
            return {name: value for name, value in described.items() if value}
        case kind:
            raise AssertionError(f"unknown kind of case: {kind}")


def test_all_cases_are_here() -> None:
    assert len(CASES) == 149


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_golden(case: dict[str, Any]) -> None:
    expected = dict(case["expect"])
    if "original_plaintext" in case:
        expected = {"status": 200, "plaintext": case["original_plaintext"]}
    if expected.pop("connection_aborted", False):
        expected = {"status": 502, "message": "failed to read key"}

    if expected.pop("status") == 200:
        assert answer(case) == expected
    else:
        with pytest.raises(ERRORS[expected["message"]]):
            answer(case)
