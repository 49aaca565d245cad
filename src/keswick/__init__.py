"""Keswick, a key encryption server, and its client.

from keswick import Client

with Client("https://127.0.0.1:7373", api_key="kes:v1:…", ca_file="server.crt") as client:
    data_key = client.generate_key("my-key")
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keswick.client import (
        APIError,
        AsyncClient,
        Client,
        ClientRefused,
        ConnectionFailed,
        DataKey,
        DecryptionFailed,
        KeyExists,
        KeyNotFound,
        KeyStoreUnreachable,
        NotAllowed,
        SealError,
        ServerNotTrusted,
    )

__version__ = "0.1.0"

__all__ = [
    "APIError",
    "AsyncClient",
    "Client",
    "ClientRefused",
    "ConnectionFailed",
    "DataKey",
    "DecryptionFailed",
    "KeyExists",
    "KeyNotFound",
    "KeyStoreUnreachable",
    "NotAllowed",
    "SealError",
    "ServerNotTrusted",
    "__version__",
]


def __getattr__(name: str) -> object:
    """The client is imported when it is asked for: the server has no use for it."""
    if name in __all__:
        from keswick import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
