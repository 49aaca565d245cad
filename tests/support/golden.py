"""The golden cases: what real old releases stored and sealed, and what is the right answer to each."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "vectors" / "golden"


@dataclass(frozen=True)
class Case:
    """`file`: the release or the group of cases. `expected`: `status`, and the fields of the reply or its `message`.

    Right is the plaintext that a case's own era could read (`original_plaintext`), else what the newest original
    answers; where that drops the connection, 502 `failed to read key`.
    """

    file: str
    id: str
    kind: str
    stored_key: bytes
    request: dict[str, str]
    expected: dict[str, Any]
    key_origin: str


def cases() -> list[Case]:
    found = []
    for file in sorted(FOLDER.glob("*.json")):
        for case in json.loads(file.read_text())["cases"]:
            expected = dict(case["expect"])
            if "original_plaintext" in case:
                expected = {"status": 200, "plaintext": case["original_plaintext"]}
            elif expected.get("connection_aborted"):
                expected = {"status": 502, "message": "failed to read key"}
            found.append(
                Case(
                    file.stem,
                    case["id"],
                    case["kind"],
                    case["stored_key"].encode(),
                    case.get("request", {}),
                    expected,
                    case.get("key_origin", ""),
                )
            )
    return found
