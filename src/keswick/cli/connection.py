"""How a command reaches the server: the environment, in the words of every generation, and `--insecure`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from keswick.cli.command import Arguments, CommandError, Flag
from keswick.cli.terminal import ask_password

if TYPE_CHECKING:
    from keswick.client import Client

# The client library is imported late: `kes key --help` has no use for TLS.

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


def endpoints(arguments: Arguments) -> list[str]:
    """The servers that the flag `--server` or the environment names. Raises CommandError if there is none."""
    from keswick.client import DEFAULT_ENDPOINT, environment

    text = arguments.value("server") or environment.read(os.environ).endpoints or DEFAULT_ENDPOINT
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise CommandError("no endpoint given")
    return found


def connect(arguments: Arguments, *only: str) -> "Client":
    """A client as the environment and the flags `--server`, `--api-key` and `--insecure` say. Raises CommandError.

    `only`: for these of the endpoints.
    """
    from keswick.client import Client, environment

    settings = environment.read(os.environ)
    api_key = arguments.value("api-key") or settings.api_key
    key, cert, ca_file = settings.key, settings.cert, settings.ca_file
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
            only or endpoints(arguments),
            api_key=api_key,
            cert=cert,
            key=key,
            password=_password,
            ca_file=ca_file,
            verify=not arguments.has("insecure"),
            retries=0,
        )
    except ValueError as error:
        prefix = "parsing API key: " if str(error).startswith("kes: invalid API key") else ""
        raise CommandError(prefix + str(error)) from None
    except OSError as error:
        for file, names in (
            (ca_file, environment.CA_FILE),
            (cert, environment.CERT_FILE),
            (key, environment.KEY_FILE),
        ):
            if file and error.filename == str(Path(file)):
                raise CommandError(f"{environment.variable(names, os.environ)}: {file}: {error.strerror}") from None
        raise


@contextmanager
def failing(what: str = "", *, changes: bool = False) -> Iterator[None]:
    """Tell what was tried, if that says more than the reason, when the server refuses it or does not answer, or could
    not be asked for that name. `changes`: whether it is of importance that it may have been done nevertheless."""
    from keswick.client import APIError, CertificateRequired, ConnectionFailed

    try:
        yield
    except (APIError, ConnectionFailed, ValueError) as error:
        # The server's words, as scripts know them, but where they would puzzle who did show a certificate.
        puzzles = isinstance(error, CertificateRequired)
        reason = error.message if isinstance(error, APIError) and not puzzles else str(error)
        if changes and isinstance(error, ConnectionFailed) and error.sent:
            reason += "; the server may have done it nevertheless"
        if f"{what} ".startswith(f"{reason} "):
            raise CommandError(what) from None
        raise CommandError(f"{what}: {reason}" if what else reason) from None


@cache
def _password() -> str:
    return ask_password("Enter password for private key: ")
