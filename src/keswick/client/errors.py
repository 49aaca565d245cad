"""What can go wrong: the server says no (APIError), or no answer comes (ConnectionFailed).

Each refusal that the API knows is a class, recognised by the status and the words of every generation of servers, and
says what to do about it.
"""

import re
from typing import ClassVar


class APIError(Exception):
    """The server answered, and said no. `status`: of HTTP. `message`: the server's words, exactly. `advice`: what to do
    about it, or empty.

    >>> try:
    ...     client.describe_key("no-such-key")
    ... except APIError as error:
    ...     print(type(error).__name__, error.status, error.message, sep="; ")
    KeyNotFound; 404; key does not exist
    """

    advice: ClassVar[str] = ""
    later: ClassVar[bool] = False
    """Whether the same server might do it a moment later."""
    undone: ClassVar[bool] = False
    """Whether it is certain that nothing was done, although the server is in trouble."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message

    def __str__(self) -> str:
        return f"{self.message}; {self.advice}" if self.advice else self.message


# --- what the caller can change ---


class KeyExists(APIError):
    """A key of that name is there already."""

    advice = "use the key that is there, or choose another name"


class KeyNotFound(APIError):
    """There is no key of that name."""

    advice = "look for the name in the list of keys, or create the key"


class PolicyNotFound(APIError):
    """There is no policy of that name."""

    advice = "look for the name in the list of policies, or add it to them"


class IdentityNotFound(APIError):
    """No policy is assigned to that identity."""

    advice = "assign a policy to it"


class NotAllowed(APIError):
    """No policy lets this client do that."""

    advice = "let a policy with this client's identity allow the path, or call as another identity"


class SelfAssignment(APIError):
    """Whoever calls wanted to assign a policy to itself."""

    advice = "let the administrator, or another identity, do it"


class IdentityIsAdmin(APIError):
    """The administrator may do everything: it takes no policy, and cannot be forgotten."""

    advice = "the server's configuration says who the administrator is"


class InvalidPolicy(APIError):
    """A rule is no pattern."""

    advice = "write '\\[' and '\\\\' for the characters themselves"


class InvalidName(APIError):
    """The server takes that name for no name, or that prefix for no prefix."""

    advice = "a name has 1 to 80 of the characters A-Z a-z 0-9 - _, neither '-' first or last nor '_' alone"


class DecryptionFailed(APIError):
    """The ciphertext, its context and the key do not belong together, or something was changed."""

    advice = "decrypt with the key and the context that encrypted, and with the whole ciphertext"


class HMACNotSupported(APIError):
    """The key was made by a release that gave keys no HMAC key."""

    advice = "use a key that was created since 2024"


class AlgorithmNotSupported(APIError):
    """The server does not know that cipher."""

    advice = "use AES256 or ChaCha20"


class InvalidKey(APIError):
    """What was to be imported is no key for that cipher."""

    advice = "a key has 32 bytes"


class InvalidRequest(APIError):
    """The server cannot read the body of the request."""

    advice = "servers take at most 1,000,000 bytes of JSON, which is some 700,000 bytes of plaintext"


class CertificateRequired(APIError):
    """The server saw no client certificate, or only one of an authority."""

    advice = "give an API key, or a certificate that is no CA and its key; a proxy in between must forward it"


class TooManyCertificates(APIError):
    """The client showed several certificates, and the server cannot tell which one it is."""

    advice = "leave one certificate in the file, and those of authorities"


class InvalidCertificate(APIError):
    """What a TLS proxy in between forwarded as the client's certificate is none."""

    advice = "the proxy must forward the certificate as escaped PEM or as base64 of its DER"


class NotServed(APIError):
    """The server does not have this API."""

    advice = "the server is of another release, or the endpoint is no KES server"


class RunTimePoliciesOff(NotServed):
    """The server takes policies, and to whom they apply, only from its configuration."""

    advice = "write it into the server's configuration, or set 'runtime_policies: on' there, as older forms of it imply"


# --- what the server cannot help ---


class ServerUnavailable(APIError):
    """The server cannot do its work at the moment (502, 503, 504). Another one may."""

    advice = "try again later"


class KeyStoreUnreachable(ServerUnavailable):
    """The server does not reach its key store."""

    advice = "see whether the key store runs, and whether the server's network reaches it"


class KeyStoreFailed(ServerUnavailable):
    """The key store failed, or keeps something that is no key. The server's error log tells more."""

    advice = "the server's error log tells why"


class Overloaded(ServerUnavailable):
    """The server has more requests than it takes in; it did nothing about this one."""

    later = True
    undone = True


class TimeLimitExceeded(ServerUnavailable):
    """The server could not finish within the time that its API has."""

    advice = "see how fast the key store answers; the server's setting 'api' gives an API more time"


# --- what is not as it should be ---


class UnexpectedReply(APIError):
    """A success that is none of a KES server."""


class ListIncomplete(APIError):
    """The server has more names than it can list."""


_REFUSALS: tuple[tuple[int, str, type[APIError]], ...] = (
    (400, r"key (already exists|does already exist)\Z", KeyExists),
    (404, r"key does not exist\Z", KeyNotFound),
    (404, r"policy does not exist\Z", PolicyNotFound),
    (404, r"identity does not exist\Z", IdentityNotFound),
    (400, r"identity is unknown\Z", IdentityNotFound),
    (403, r"identity cannot assign policy to itself\Z", SelfAssignment),
    (403, r"", NotAllowed),
    (400, r"identity is root\Z", IdentityIsAdmin),
    (400, r"invalid policy: ", InvalidPolicy),
    (400, r"(?s).* is empty, too long or (contains invalid characters|is invalid)\Z", InvalidName),
    (400, r"invalid argument: (name|pattern) (is empty|is too long|contains invalid character)", InvalidName),
    (400, r"request URL path does not match API pattern", InvalidName),
    (400, r"(decryption failed: )?ciphertext is not authentic\Z", DecryptionFailed),
    (400, r"invalid (ciphertext|iv size|nonce size)", DecryptionFailed),
    (409, r"key does not support HMAC\Z", HMACNotSupported),
    (406, r"algorithm ", AlgorithmNotSupported),
    (400, r"(key: )?invalid algorithm", AlgorithmNotSupported),
    (422, r"unsupported cryptographic algorithm\Z", AlgorithmNotSupported),
    (406, r"invalid key size", InvalidKey),
    (400, r"invalid key( size)?\Z", InvalidKey),
    (400, r"invalid ((import key )?request body|json)\Z", InvalidRequest),
    (
        400,
        r"(EOF|unexpected EOF|invalid character .*|http: request body too large|too many ciphertexts)\Z",
        InvalidRequest,
    ),
    (500, r"(EOF|unexpected EOF|invalid character .*|http: request body too large)\Z", InvalidRequest),
    (413, r"", InvalidRequest),
    (400, r"(tls: client certificate is required|no client certificate is present)\Z", CertificateRequired),
    (400, r"tls: received more than one client certificate\Z", TooManyCertificates),
    (400, r"too many (client certificates are present|identities: more than one certificate)", TooManyCertificates),
    (400, r"invalid client certificate\Z", InvalidCertificate),
    (404, r"404 page not found\Z", NotServed),
    (405, r"", NotServed),
    (501, r"", NotServed),
    (505, r"", NotServed),
    (502, r"(bad gateway: |failed to |key store is )", KeyStoreFailed),
    (504, r"key store is not reachable\Z", KeyStoreUnreachable),
    (503, r"server is overloaded, try again\Z", Overloaded),
    (503, r"(request timeout exceeded|timeout)\Z", TimeLimitExceeded),
    (502, r"", ServerUnavailable),
    (503, r"", ServerUnavailable),
    (504, r"", ServerUnavailable),
)
"""How a refusal begins, in the words of every generation; the first that fits counts."""


def refusal(status: int, message: str) -> APIError:
    """The error that a server means with that status and those words."""
    for of_status, words, kind in _REFUSALS:
        if status == of_status and re.match(words, message):
            return kind(status, message)
    return APIError(status, message)


class ConnectionFailed(ConnectionError):
    """No answer came from the server. `sent`: whether it may have got the request nevertheless.

    >>> Client("127.0.0.1:1").version()
    Traceback (most recent call last):
    ...
    keswick.client.errors.ServerUnreachable: cannot connect to https://127.0.0.1:1: connection refused; does a ...
    """

    later: ClassVar[bool] = False
    """Whether the server might answer a moment later."""

    def __init__(self, message: str, *, sent: bool = False) -> None:
        super().__init__(message)
        self.sent = sent

    @property
    def undone(self) -> bool:
        """Whether it is certain that nothing was done."""
        return not self.sent


class ServerUnreachable(ConnectionFailed):
    """There is nobody to connect to."""

    later = True


class ConnectionClosed(ConnectionFailed):
    """The connection ended before the answer did."""

    later = True


class TimedOut(ConnectionFailed, TimeoutError):
    """The server does not let anyone connect in time, or does not answer in time."""


class ServerNotTrusted(ConnectionFailed):
    """The server's certificate chains to nothing that this client trusts, or is not valid now."""


class ServerNameMismatch(ServerNotTrusted):
    """The server's certificate is for other names than the one in the endpoint."""


class ClientRefused(ConnectionFailed):
    """The server did not take the client's certificate, or wants one where there is none."""
