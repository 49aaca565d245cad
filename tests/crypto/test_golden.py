"""What the original's releases stored and sealed, and what they answered: 149 cases, run by one loop.

How an error becomes a status and a message is the server's affair; here it is an exception.
"""

import base64

import pytest

from keswick.crypto import DecryptionError, KeyFormatError, NoHMACKeyError, SecretKey
from support.golden import Case, cases

CASES = cases()

ERRORS = {
    "decryption failed: ciphertext is not authentic": DecryptionError,
    "failed to read key": KeyFormatError,
    "key does not support HMAC": NoHMACKeyError,
}


def answer(case: Case) -> dict[str, str]:
    """What the call of the case answers, as the API names and encodes it."""
    request = {name: base64.b64decode(value) for name, value in case.request.items()}
    key = SecretKey.decode(case.stored_key)
    match case.kind:
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


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_golden(case: Case) -> None:
    expected = dict(case.expected)
    if expected.pop("status") == 200:
        assert answer(case) == expected
    else:
        with pytest.raises(ERRORS[expected["message"]]):
            answer(case)


def test_stored_keys_of_today_are_written_as_the_original_wrote_them() -> None:
    values = {case.stored_key for case in CASES if case.key_origin and case.stored_key.startswith(b"Ci")}
    values = {value for value in values if b"\n" not in value}
    assert len(values) > 5
    for value in values:
        assert SecretKey.decode(value).encode() == value
