"""Refusals, in the words of every generation, and what they say to do."""

import pickle

import pytest

from keswick import client
from keswick.client import APIError, ConnectionFailed, DecryptionFailed, NotServed, Overloaded
from keswick.client.errors import refusal

REFUSALS = [
    (400, "key already exists", "KeyExists"),
    (400, "key does already exist", "KeyExists"),
    (404, "key does not exist", "KeyNotFound"),
    (404, "policy does not exist", "PolicyNotFound"),
    (404, "identity does not exist", "IdentityNotFound"),
    (403, "not authorized: insufficient permissions", "NotAllowed"),
    (403, "prohibited by policy", "NotAllowed"),
    (400, "key name 'a/b\nc' is empty, too long or contains invalid characters", "InvalidName"),
    (400, "listing pattern '?' is empty, too long or is invalid", "InvalidName"),
    (400, "invalid argument: name is too long", "InvalidName"),
    (400, "invalid argument: pattern contains invalid character", "InvalidName"),
    (400, "request URL path does not match API pattern: /v1/key/create/*", "InvalidName"),
    (400, "decryption failed: ciphertext is not authentic", "DecryptionFailed"),
    (400, "ciphertext is not authentic", "DecryptionFailed"),
    (400, "invalid ciphertext", "DecryptionFailed"),
    (400, "invalid ciphertext: key ID mismatch", "DecryptionFailed"),
    (400, "invalid iv size 3", "DecryptionFailed"),
    (409, "key does not support HMAC", "HMACNotSupported"),
    (406, "algorithm 'DES' is not supported", "AlgorithmNotSupported"),
    (406, "algorithm 'ChaCha20' not supported by FIPS 140-2", "AlgorithmNotSupported"),
    (400, "key: invalid algorithm 'DES'", "AlgorithmNotSupported"),
    (400, "invalid algorithm", "AlgorithmNotSupported"),
    (422, "unsupported cryptographic algorithm", "AlgorithmNotSupported"),
    (406, "invalid key size for 'AES256'", "InvalidKey"),
    (400, "invalid key size", "InvalidKey"),
    (400, "invalid key", "InvalidKey"),
    (400, "invalid request body", "InvalidRequest"),
    (400, "invalid import key request body", "InvalidRequest"),
    (400, "invalid json", "InvalidRequest"),
    (500, "http: request body too large", "InvalidRequest"),
    (413, "request body is too large", "InvalidRequest"),
    (400, "tls: client certificate is required", "CertificateRequired"),
    (400, "no client certificate is present", "CertificateRequired"),
    (400, "tls: received more than one client certificate", "TooManyCertificates"),
    (400, "too many client certificates are present", "TooManyCertificates"),
    (400, "invalid client certificate", "InvalidCertificate"),
    (403, "not authorized: client certificate is not trusted", "NotAllowed"),
    (400, "too many identities: more than one certificate is present", "TooManyCertificates"),
    (403, "identity cannot assign policy to itself", "SelfAssignment"),
    (400, "identity is root", "IdentityIsAdmin"),
    (400, "invalid policy: the rule '[' is malformed at character 1: …", "InvalidPolicy"),
    (404, "404 page not found", "NotServed"),
    (405, "received method 'POST' expected 'GET'", "NotServed"),
    (501, "not implemented", "NotServed"),
    (505, "HTTP Version Not Supported", "NotServed"),
    (502, "key store is unavailable", "KeyStoreFailed"),
    (502, "failed to create key", "KeyStoreFailed"),
    (502, "bad gateway: failed to access key", "KeyStoreFailed"),
    (504, "key store is not reachable", "KeyStoreUnreachable"),
    (503, "server is overloaded, try again", "Overloaded"),
    (503, "request timeout exceeded", "TimeLimitExceeded"),
    (503, "timeout", "TimeLimitExceeded"),
    (503, "server is stopping", "ServerUnavailable"),
    (502, "HTTP status 502 Bad Gateway", "ServerUnavailable"),
    (418, "I'm a teapot", "APIError"),
    (400, "something new", "APIError"),
]


@pytest.mark.parametrize(("status", "message", "kind"), REFUSALS)
def test_a_refusal_is_recognised_by_status_and_words(status: int, message: str, kind: str) -> None:
    error = refusal(status, message)
    assert type(error) is getattr(client, kind)
    assert (error.status, error.message) == (status, message)
    assert str(error).startswith(message)
    assert str(error).endswith(error.advice)
    assert bool(error.advice) == (kind != "APIError")


def test_words_under_another_status_mean_something_else() -> None:
    assert type(refusal(404, "key already exists")) is APIError
    assert type(refusal(400, "server is overloaded, try again")) is APIError


def test_every_refusal_is_exported_and_tested() -> None:
    def kinds_of(kind: type[APIError]) -> set[str]:
        return {kind.__name__}.union(*(kinds_of(below) for below in kind.__subclasses__()))

    tested = {kind for _, _, kind in REFUSALS} | {"UnexpectedReply", "ListIncomplete", "RunTimePoliciesOff"}
    assert {name for name in kinds_of(APIError) if hasattr(client, name)} == tested
    assert tested <= set(client.__all__)


def test_errors_survive_another_process() -> None:
    for error in (DecryptionFailed(400, "no"), ConnectionFailed("no", sent=True), NotServed(404, "no")):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_only_an_overloaded_server_is_sure_that_nothing_was_done() -> None:
    assert Overloaded(503, "").undone
    assert not refusal(503, "request timeout exceeded").undone
    assert not refusal(502, "failed to create key").undone
    assert ConnectionFailed("").undone
    assert not ConnectionFailed("", sent=True).undone
