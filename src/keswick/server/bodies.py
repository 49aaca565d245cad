"""Request bodies: JSON objects whose byte fields are base64, read as leniently as the original reads them.

Two decoders stand behind `decode`. The strict one is fast and takes what clients send nearly always. Whatever it
refuses goes to the lenient one, which decides: field names match in any case, unknown fields and anything behind the
first JSON value are ignored, null is absence, and CR and LF inside base64 are skipped. The strict one must refuse
unknown fields, else a field in another case would decode as absent and an empty text would be sealed.
"""

import json
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from keswick.encoding import b64decode_go
from keswick.server.replies import ApiError

MIB = 1 << 20


class BadBody(ApiError):
    """The body is not what the call takes."""

    def __init__(self) -> None:
        super().__init__(400, "invalid request body")


class _Body(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


class Generate(_Body):
    context: bytes = b""


class Encrypt(_Body):
    plaintext: bytes = b""
    context: bytes = b""


class Decrypt(_Body):
    ciphertext: bytes = b""
    context: bytes = b""


class HMAC(_Body):
    message: bytes = b""


class Import(_Body):
    """`key` and `cipher` since October 2023, `bytes` and `algorithm` before."""

    key: bytes = b""
    cipher: str = ""
    material: bytes | None = msgspec.field(default=None, name="bytes")
    algorithm: str = ""


class PolicyBody(_Body):
    """`allow` and `deny` today, `paths` in 2021; both only if they say the same, so that all releases understand it."""

    allow: tuple[str, ...] | None = None
    deny: tuple[str, ...] | None = None
    paths: tuple[str, ...] | None = None


class IdentityBody(_Body):
    identity: str


Body = TypeVar("Body", bound=_Body)
Whole = TypeVar("Whole")


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _number(text: str) -> int:
    return 0


# NaN and the infinities are Python's, not JSON's. No field that is read is a number, so that none needs its value,
# however long it is; but a number it must stay, lest its digits be taken for base64.
_JSON = json.JSONDecoder(parse_constant=_refuse, parse_int=_number, parse_float=_number)

_NOT_STRICT = (ValueError, RecursionError)
"""What the strict decoders raise: msgspec's errors and those of texts that are not UTF-8 are ValueErrors."""

_strict: dict[type[_Body], Callable[[bytes], Any]] = {
    model: msgspec.json.Decoder(model).decode for model in (Generate, Encrypt, Decrypt, HMAC, Import)
}
_policy = msgspec.json.Decoder(PolicyBody)
_identity = msgspec.json.Decoder(IdentityBody)
_strict_bulk = msgspec.json.Decoder(list[Decrypt]).decode
_TEXT_FIELDS = frozenset({"cipher", "algorithm"})


def decode(model: type[Body], body: bytes) -> Body:
    """The body as `model`. Raises BadBody when it is not such an object."""
    try:
        return _strict[model](body)  # type: ignore[no-any-return]
    except _NOT_STRICT:
        return _from_value(model, _first_value(body))


def decode_bulk(body: bytes) -> list[Decrypt]:
    """An array of what decrypt takes, for bulk decrypt. Raises BadBody."""
    try:
        return _strict_bulk(body)
    except _NOT_STRICT:
        value = _first_value(body)
    if value is None:
        return []
    if not isinstance(value, list):
        raise BadBody
    return [_from_value(Decrypt, item) for item in value]


def decode_policy(body: bytes) -> PolicyBody:
    """The rules of a policy. Raises BadBody, also for fields that are not known: what was meant to be a rule must not
    be lost, or the policy would allow something else."""
    rules = _decode_whole(_policy, body)
    if rules.paths is not None and not (rules.allow in (None, rules.paths) and rules.deny is None):
        raise BadBody
    return rules


def decode_identity(body: bytes) -> str:
    """The identity in `{"identity": …}`. Raises BadBody."""
    return _decode_whole(_identity, body).identity


def _decode_whole(decoder: msgspec.json.Decoder[Whole], body: bytes) -> Whole:
    try:
        return decoder.decode(body)
    except _NOT_STRICT:
        pass
    try:  # fields are matched in any case, but each may be there once only
        fields = json.loads(body, parse_constant=_refuse)
        folded = {key.lower(): value for key, value in fields.items()}
        if len(folded) < len(fields):
            raise BadBody
        return msgspec.convert(folded, decoder.type)
    except (*_NOT_STRICT, AttributeError):
        raise BadBody from None


def _first_value(body: bytes) -> Any:
    text = body.decode("utf-8", "replace").lstrip(" \t\r\n")
    try:
        return _JSON.raw_decode(text)[0]
    except (ValueError, RecursionError):
        raise BadBody from None


def _from_value(model: type[Body], value: Any) -> Body:
    if value is None:
        return model()
    if not isinstance(value, dict):
        raise BadBody
    names = dict(zip(model.__struct_encode_fields__, model.__struct_fields__, strict=True))
    fields: dict[str, Any] = {}
    for key, item in value.items():
        name = names.get(key.lower())
        if name is None or item is None:
            continue
        if not isinstance(item, str):
            raise BadBody
        try:
            fields[name] = item if name in _TEXT_FIELDS else b64decode_go(item)
        except ValueError:
            raise BadBody from None
    return model(**fields)
