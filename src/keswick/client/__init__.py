"""The client library: every call of the API as a method, over HTTP/2 or HTTP/1.1 and mutual TLS.

    with Client("https://127.0.0.1:7373", api_key="kes:v1:…", ca_file="server.crt") as client:
        client.create_key("my-key")
        data_key = client.generate_key("my-key")

`Client` waits for its answers, `AsyncClient` is for asyncio. Servers of every generation are understood.
"""

from typing import TYPE_CHECKING

from keswick.client.endpoint import DEFAULT_ENDPOINT, Endpoint
from keswick.client.envelope import (
    DataKeyRefused,
    HeaderChanged,
    NotSealed,
    SealError,
    Tampered,
    Truncated,
    UnsupportedVersion,
)
from keswick.client.errors import (
    AlgorithmNotSupported,
    APIError,
    CertificateRequired,
    ClientRefused,
    ConnectionClosed,
    ConnectionFailed,
    DecryptionFailed,
    HMACNotSupported,
    IdentityIsAdmin,
    IdentityNotFound,
    InvalidCertificate,
    InvalidKey,
    InvalidName,
    InvalidPolicy,
    InvalidRequest,
    KeyExists,
    KeyNotFound,
    KeyStoreFailed,
    KeyStoreUnreachable,
    ListIncomplete,
    NotAllowed,
    NotServed,
    Overloaded,
    PolicyNotFound,
    RunTimePoliciesOff,
    SelfAssignment,
    ServerNameMismatch,
    ServerNotTrusted,
    ServerUnavailable,
    ServerUnreachable,
    TimedOut,
    TimeLimitExceeded,
    TooManyCertificates,
    UnexpectedReply,
)
from keswick.client.metrics import Metrics
from keswick.client.results import (
    API,
    AuditEvent,
    DataKey,
    ErrorEvent,
    IdentityInfo,
    KeyInfo,
    Policy,
    PolicyInfo,
    Status,
    Version,
)
from keswick.client.sync import Client, LogStream

if TYPE_CHECKING:
    from keswick.client.aio import AsyncClient

__all__ = [
    "API",
    "DEFAULT_ENDPOINT",
    "APIError",
    "AlgorithmNotSupported",
    "AsyncClient",
    "AuditEvent",
    "CertificateRequired",
    "Client",
    "ClientRefused",
    "ConnectionClosed",
    "ConnectionFailed",
    "DataKey",
    "DataKeyRefused",
    "DecryptionFailed",
    "Endpoint",
    "ErrorEvent",
    "HMACNotSupported",
    "HeaderChanged",
    "IdentityInfo",
    "IdentityIsAdmin",
    "IdentityNotFound",
    "InvalidCertificate",
    "InvalidKey",
    "InvalidName",
    "InvalidPolicy",
    "InvalidRequest",
    "KeyExists",
    "KeyInfo",
    "KeyNotFound",
    "KeyStoreFailed",
    "KeyStoreUnreachable",
    "ListIncomplete",
    "LogStream",
    "Metrics",
    "NotAllowed",
    "NotSealed",
    "NotServed",
    "Overloaded",
    "Policy",
    "PolicyInfo",
    "PolicyNotFound",
    "RunTimePoliciesOff",
    "SealError",
    "SelfAssignment",
    "ServerNameMismatch",
    "ServerNotTrusted",
    "ServerUnavailable",
    "ServerUnreachable",
    "Status",
    "Tampered",
    "TimeLimitExceeded",
    "TimedOut",
    "TooManyCertificates",
    "Truncated",
    "UnexpectedReply",
    "UnsupportedVersion",
    "Version",
]


def __getattr__(name: str) -> object:
    if name == "AsyncClient":  # late: asyncio takes longer to import than all the rest
        from keswick.client.aio import AsyncClient

        return AsyncClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
