"""A client of a few lines for tests: one call, its whole answer, nothing hidden. HTTP/1.1 over the standard library."""

import http.client
import json
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keswick.identity import identity_of
from support.certificates import Pair, make


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    """By lower-case name."""
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def message(self) -> str:
        return str(self.json["message"])


class Caller:
    """Somebody with a key pair, or with none, who calls one server over one connection."""

    def __init__(
        self,
        port: int,
        pair: Pair | None,
        folder: Path,
        *,
        chain: tuple[Pair, ...] = (),
        source: str = "127.0.0.1",
    ) -> None:
        """`source`: the address that the server sees, any of 127.0.0.0/8."""
        self.port = port
        context = ssl.create_default_context()
        self._connection = http.client.HTTPSConnection(
            "127.0.0.1", port, context=context, timeout=20, source_address=(source, 0)
        )
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self.identity = identity_of(pair.public_key_der) if pair else ""
        if pair is not None:
            cert, key = pair.write(folder, self.identity[:16], chain=chain)
            context.load_cert_chain(cert, key)
        self.context = context

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """`body`: bytes as they are, anything else as JSON. Header names are written with underscores."""
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            self._connection.request(method, path, body, fields)
            response = self._connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        except (OSError, http.client.HTTPException):
            self._connection.close()  # the next call connects again
            raise

    def close(self) -> None:
        self._connection.close()

    def __del__(self) -> None:  # so that a test need not close each of its callers
        self.close()


def new_pair() -> Pair:
    return make("ed25519", eku=["client"])
