"""Keys: `/v1/key/…`. The four operations of the hot path answer at once when the key is cached."""

import sys

import msgspec

from keswick.crypto import AES256, DecryptionError, NoHMACKeyError, SecretKey, algorithm_from_name
from keswick.keystore import KeyExists, KeyNotFound, KeyStoreError
from keswick.names import is_pattern
from keswick.server import bodies
from keswick.server.call import Answer, Call
from keswick.server.replies import EMPTY, NDJSON, ApiError, Reply, forbidden, json_reply, sealed_reply

PAGE = 1024
"""Names on one page of a list; clients read at most 1 MiB of one."""

MAX_BULK = 1000


class _Secrets(msgspec.Struct, gc=False):
    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


class _Ciphertext(_Secrets):
    ciphertext: bytes


class _Plaintext(_Secrets):
    plaintext: bytes


class _DataKey(_Secrets):
    plaintext: bytes
    ciphertext: bytes


class _HMAC(_Secrets):
    hmac: bytes


class _Key(msgspec.Struct, omit_defaults=True):
    name: str
    algorithm: str
    created_at: str
    created_by: str = ""


class _Names(msgspec.Struct, omit_defaults=True):
    names: list[str]
    continue_at: str = ""


def generate(call: Call) -> Answer:
    """A new data key, and the same sealed. An empty body means an empty context."""
    key = call.key()
    body = call.request.body
    # A body that was cut to nothing is not an empty one.
    context = bodies.decode(bodies.Generate, body).context if body or call.request.truncated else b""

    def operate(key: SecretKey) -> Reply:
        return sealed_reply(_DataKey(*key.generate_data_key(context)))

    return call.with_key(key, operate)


def encrypt(call: Call) -> Answer:
    key = call.key()
    body = bodies.decode(bodies.Encrypt, call.request.body)

    def operate(key: SecretKey) -> Reply:
        return sealed_reply(_Ciphertext(key.encrypt(body.plaintext, body.context)))

    return call.with_key(key, operate)


def decrypt(call: Call) -> Answer:
    key = call.key()
    body = bodies.decode(bodies.Decrypt, call.request.body)

    def operate(key: SecretKey) -> Reply:
        return sealed_reply(_Plaintext(_open(key, body)))

    return call.with_key(key, operate)


def decrypt_bulk(call: Call) -> Answer:
    """Up to 1,000 ciphertexts at once, in order; the first that fails fails all. Unlike that of other calls, the body
    matters only if there is such a key."""

    def operate(key: SecretKey) -> Reply:
        items = bodies.decode_bulk(call.request.body)
        if len(items) > MAX_BULK:
            raise ApiError(400, "too many ciphertexts")
        return json_reply([_Plaintext(_open(key, item)) for item in items])

    return call.with_key(call.key(), operate)


def _open(key: SecretKey, sealed: bodies.Decrypt) -> bytes:
    try:
        return key.decrypt(sealed.ciphertext, sealed.context)
    except DecryptionError:
        raise ApiError(400, "decryption failed: ciphertext is not authentic") from None


def hmac(call: Call) -> Answer:
    key = call.key()
    body = bodies.decode(bodies.HMAC, call.request.body)

    def operate(key: SecretKey) -> Reply:
        try:
            return sealed_reply(_HMAC(key.hmac(body.message)))
        except NoHMACKeyError:
            raise ApiError(409, "key does not support HMAC") from None

    return call.with_key(key, operate)


def describe(call: Call) -> Answer:
    def operate(key: SecretKey) -> Reply:
        return json_reply(_Key(call.resource, key.algorithm, key.created_at, key.created_by))

    return call.with_key(call.key(), operate)


def create(call: Call) -> Answer:
    return _create(call, call.new_key_name(), SecretKey.generate(call.identity))


def import_(call: Call) -> Answer:
    """A key that the caller brings, for one of the two ciphers. The field names are today's or those before 2023."""
    name = call.new_key_name()
    try:
        body = bodies.decode(bodies.Import, call.request.body)
    except bodies.BadBody:
        raise ApiError(400, "invalid import key request body") from None
    if body.material is not None and not body.key:
        material, cipher = body.material, body.cipher or body.algorithm or AES256
    else:
        material, cipher = body.key, body.cipher
    try:
        algorithm = algorithm_from_name(cipher)
    except ValueError:
        raise ApiError(406, f"algorithm '{cipher}' is not supported") from None
    if len(material) != 32:
        raise ApiError(406, f"invalid key size for '{cipher}'")
    return _create(call, name, SecretKey.of(material, algorithm, call.identity))


async def _create(call: Call, name: str, key: SecretKey) -> Reply:
    try:
        await call.state.cache.create(name, key.encode())
    except KeyExists:
        raise ApiError(400, "key already exists") from None
    except KeyStoreError as error:
        raise call.failed("failed to create key", error) from error
    return EMPTY


async def delete(call: Call) -> Reply:
    name = call.key_name()
    try:
        await call.state.cache.delete(name)
    except KeyNotFound:
        raise call.key_not_found(name) from None
    except KeyStoreError as error:
        raise call.failed("failed to delete key", error) from error
    return EMPTY


def list_(call: Call) -> Answer:
    """Pages of names that begin with a prefix, sorted.

    `continue_at` is `<next name>~<length of the prefix>`; a client gives it back in the prefix's place. What it
    stands for is checked against the policy as if it had been asked for. Clients of 2022 that accept NDJSON get all
    names, a line each.
    """
    start, prefix = _listing(call.resource)
    path = call.path.removesuffix(call.resource) + prefix
    if prefix != call.resource and not call.state.access.permits(call.identity, path):
        raise forbidden()
    lines = "application/x-ndjson" in (call.request.header("accept") or "")
    return _list(call, prefix, start, lines)


def _listing(resource: str) -> tuple[str, str]:
    """Where a page begins, and the prefix of its names."""
    start, tilde, length = resource.rpartition("~")
    if tilde and length.isascii() and length.isdigit() and len(length) <= 3 and int(length) <= len(start):
        prefix = start[: int(length)]
        if is_pattern(prefix + "*"):  # as it was asked for: a prefix may end in what no name ends in
            return start, prefix
    if not is_pattern(resource):
        raise ApiError(400, f"listing pattern '{resource}' is empty, too long or is invalid")
    prefix = resource.removesuffix("*")
    return prefix, prefix


async def _list(call: Call, prefix: str, start: str, lines: bool) -> Reply:
    try:
        names, following = await call.state.listings.page(prefix, start, sys.maxsize if lines else PAGE)
    except KeyStoreError as error:
        raise call.failed("failed to list keys", error) from error
    if lines:
        encode = msgspec.json.encode
        return (200, NDJSON, b"".join(b'{"name":' + encode(name) + b"}\n" for name in names))
    return json_reply(_Names(names, f"{following}~{len(prefix)}" if following else ""))
