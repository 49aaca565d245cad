"""The environment variables that say where the server is and who the client is, in the words of every generation.

docs/cli.md lists them for people.
"""

from collections.abc import Mapping
from typing import NamedTuple

SERVER = ("MINIO_KES_SERVER", "KES_SERVER", "MINIO_KMS_KES_ENDPOINT")
API_KEY = ("MINIO_KES_API_KEY", "KES_API_KEY", "MINIO_KMS_KES_API_KEY")
KEY_FILE = ("MINIO_KES_KEY_FILE", "KES_CLIENT_KEY", "MINIO_KES_CLIENT_KEY", "KES_CLIENT_TLS_KEY_FILE")
CERT_FILE = ("MINIO_KES_CERT_FILE", "KES_CLIENT_CERT", "MINIO_KES_CLIENT_CERT", "KES_CLIENT_TLS_CERT_FILE")
CA_FILE = ("KES_CA_FILE",)
"""The variables of one setting; the first that is set counts, even if it is empty."""


class Settings(NamedTuple):
    """What the environment says; None where it says nothing, or an empty text."""

    endpoints: str | None
    api_key: str | None
    key: str | None
    cert: str | None
    ca_file: str | None

    def __repr__(self) -> str:
        return f"Settings({self.endpoints!r})"


def read(environment: Mapping[str, str]) -> Settings:
    return Settings(
        *(
            environment.get(variable(names, environment)) or None
            for names in (SERVER, API_KEY, KEY_FILE, CERT_FILE, CA_FILE)
        )
    )


def variable(names: tuple[str, ...], environment: Mapping[str, str]) -> str:
    """The variable of a setting that counts."""
    return next((name for name in names if name in environment), names[0])
