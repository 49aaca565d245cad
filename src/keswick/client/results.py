"""What calls return. Times are text in RFC 3339, as the server keeps them; identities are 64 hex digits, or empty."""

from typing import NamedTuple


class Version(NamedTuple):
    version: str
    commit: str


class Status(NamedTuple):
    version: str
    os: str
    arch: str
    uptime: int
    """Seconds."""
    num_cpu: int
    num_cpu_used: int
    mem_heap_used: int
    """Bytes, as the next one."""
    mem_stack_used: int
    keystore_latency: int
    """Milliseconds; 0 when unknown."""
    keystore_unreachable: bool


class API(NamedTuple):
    """One API that a server has. A path that ends in a slash is a prefix."""

    method: str
    path: str
    max_body: int
    """Bytes."""
    timeout: float
    """Seconds that the server has for an answer; 0 for no limit."""


class KeyInfo(NamedTuple):
    name: str
    algorithm: str
    """`AES256` or `ChaCha20`; longer names from servers before October 2023, empty from older ones."""
    created_at: str
    created_by: str


class DataKey(NamedTuple):
    """A new key for data: as it is used, and as it is stored."""

    plaintext: bytes
    ciphertext: bytes

    def __repr__(self) -> str:
        return f"DataKey(<redacted>, {self.ciphertext!r})"


class PolicyInfo(NamedTuple):
    name: str
    created_at: str
    created_by: str


class Policy(NamedTuple):
    """A policy with its rules: patterns of the paths that it allows, and of those that it denies nevertheless."""

    name: str
    created_at: str
    created_by: str
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()


class IdentityInfo(NamedTuple):
    identity: str
    is_admin: bool
    created_at: str
    created_by: str
    policy: str
    """The name of its policy, or empty."""


class AuditEvent(NamedTuple):
    """One request that a server answered."""

    time: str
    path: str
    identity: str
    """Of the caller; empty when it showed none, or none that is known."""
    ip: str
    """Of the caller; empty from servers before 2022."""
    status: int
    response_time: float
    """Seconds."""
    raw: str
    """The line as the server sent it."""


class ErrorEvent(NamedTuple):
    """One line of a server's error log."""

    message: str
    raw: str
    """The line as the server sent it."""
