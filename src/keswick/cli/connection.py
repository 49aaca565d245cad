"""How a command reaches the server: the environment, in the words of every generation, and `--insecure`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from keswick.cli.command import Arguments, CommandError, Flag
from keswick.cli.terminal import ask_password

if TYPE_CHECKING:
    from keswick.client import Client

# The client library is imported late: `kes key --help` has no use for TLS.

ENDPOINT = ("MINIO_KES_SERVER", "KES_SERVER", "MINIO_KMS_KES_ENDPOINT")
API_KEY = ("MINIO_KES_API_KEY", "KES_API_KEY", "MINIO_KMS_KES_API_KEY")
KEY_FILE = ("MINIO_KES_KEY_FILE", "KES_CLIENT_KEY", "MINIO_KES_CLIENT_KEY", "KES_CLIENT_TLS_KEY_FILE")
CERT_FILE = ("MINIO_KES_CERT_FILE", "KES_CLIENT_CERT", "MINIO_KES_CLIENT_CERT", "KES_CLIENT_TLS_CERT_FILE")
"""The variables of one setting; the first that is set counts, even if it is empty."""
CA_FILE = ("KES_CA_FILE",)

ENVIRONMENT = (
    ("KES_SERVER", "The server, or several that share a key store: HOST:PORT[,HOST:PORT...]."),
    ("KES_API_KEY", "Who the client is: an API key."),
    ("KES_CLIENT_KEY", "Or, instead of an API key: a file with a private key,"),
    ("KES_CLIENT_CERT", "and a file with its certificate."),
    ("KES_CA_FILE", "A file or folder of certificates to trust, instead of the system's."),
    ("SSL_CERT_FILE", "The file with the system's, when it is not where OpenSSL looks for it."),
)
ENVIRONMENT_DETAILS = """
MINIO_KES_SERVER, MINIO_KES_API_KEY, MINIO_KES_KEY_FILE and MINIO_KES_CERT_FILE go before the first four.
docs/cli.md tells more.
"""

INSECURE = Flag("insecure", "Do not verify the server's certificate.", short="k")


def connect(arguments: Arguments) -> "Client":
    """A client as the environment and the flags `--server`, `--api-key` and `--insecure` say. Raises CommandError."""
    from keswick.client import DEFAULT_ENDPOINT, Client

    endpoint = arguments.value("server") or _setting(ENDPOINT) or DEFAULT_ENDPOINT
    api_key = arguments.value("api-key") or _setting(API_KEY)
    key, cert, ca_file = _setting(KEY_FILE), _setting(CERT_FILE), _setting(CA_FILE)
    if not api_key and not key and not cert:
        raise CommandError("no API key specified. Consider setting KES_API_KEY")
    if api_key and key:
        raise CommandError("API key and private key file cannot be used at the same time")
    if api_key and cert:
        raise CommandError("API key and certificate file cannot be used at the same time")
    if key and not cert:
        raise CommandError("no certificate file specified. Consider setting KES_CLIENT_CERT")
    if cert and not key:
        raise CommandError("no private key file specified. Consider setting KES_CLIENT_KEY")
    try:
        return Client(
            endpoint,
            api_key=api_key,
            cert=cert,
            key=key,
            password=lambda: ask_password("Enter password for private key: "),
            ca_file=ca_file,
            verify=not arguments.has("insecure"),
        )
    except ValueError as error:
        prefix = "parsing API key: " if str(error).startswith("kes: invalid API key") else ""
        raise CommandError(prefix + str(error)) from None
    except OSError as error:
        for file, names in ((ca_file, CA_FILE), (cert, CERT_FILE), (key, KEY_FILE)):
            if file and error.filename == str(Path(file)):
                raise CommandError(f"{_name(names)}: {file}: {error.strerror}") from None
        raise


@contextmanager
def failing(what: str) -> Iterator[None]:
    """Tell what was tried when the server refuses it or does not answer, or could not be asked for that name."""
    from keswick.client import APIError, ConnectionFailed

    try:
        yield
    except (APIError, ConnectionFailed, ValueError) as error:
        reason = str(error)
        raise CommandError(what if f"{what} ".startswith(f"{reason} ") else f"{what}: {reason}") from None


def _setting(names: tuple[str, ...]) -> str | None:
    return os.environ.get(_name(names)) or None


def _name(names: tuple[str, ...]) -> str:
    """The first variable that is set, even if it is empty."""
    return next((name for name in names if name in os.environ), names[0])
