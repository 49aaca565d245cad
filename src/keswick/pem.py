"""PEM files (RFC 7468, and the headers of RFC 1421 that encrypted keys of old have)."""

import binascii
import re
from typing import NamedTuple

_BLOCK = re.compile(
    r"^-----BEGIN (?P<label>[A-Z0-9 ]+)-----[ \t]*\r?\n"
    r"(?P<headers>(?:[A-Za-z0-9-]+:[^\n]*\n)*)"
    r"(?P<body>[A-Za-z0-9+/=\s]*?)"
    r"^-----END (?P=label)-----",
    re.MULTILINE,
)


class Block(NamedTuple):
    label: str
    """Such as `CERTIFICATE` or `EC PRIVATE KEY`."""
    headers: str
    der: bytes
    text: str
    """The block as it stands in the file."""

    def __repr__(self) -> str:
        return f"Block({self.label!r})"

    @property
    def is_private_key(self) -> bool:
        return self.label == "PRIVATE KEY" or self.label.endswith(" PRIVATE KEY")

    @property
    def is_encrypted(self) -> bool:
        return self.label == "ENCRYPTED PRIVATE KEY" or "ENCRYPTED" in self.headers


def blocks(text: str) -> list[Block]:
    """The PEM blocks of a text, in order; what stands between them is passed over. ValueError if a block is broken."""
    found = [_block(match) for match in _BLOCK.finditer(text)]
    if len(found) != text.count("-----BEGIN "):
        raise ValueError("a PEM block is broken or has no end")
    return found


def first(text: str) -> Block:
    """The first PEM block of a text; what stands behind it is not looked at. ValueError if there is none or it is
    broken."""
    match = _BLOCK.search(text)
    if match is None or "-----BEGIN " in text[: match.start()]:
        raise ValueError("there is no PEM block, or it is broken or has no end")
    return _block(match)


def _block(match: re.Match[str]) -> Block:
    try:
        der = binascii.a2b_base64("".join(match["body"].split()), strict_mode=True)
    except binascii.Error:
        raise ValueError(f"the PEM block '{match['label']}' is not valid base64") from None
    return Block(match["label"], match["headers"], der, match[0] + "\n")


def encode(label: str, der: bytes) -> str:
    """One PEM block."""
    body = binascii.b2a_base64(der, newline=False).decode()
    lines = (body[i : i + 64] for i in range(0, len(body), 64))
    return "\n".join((f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""))


def decrypt(block: Block, password: str) -> bytes:
    """The DER (PKCS#8) of an encrypted private key, RFC 1423 or PKCS#8. ValueError `incorrect password` when it is."""
    from cryptography.hazmat.primitives import serialization  # late: few keys are encrypted

    try:
        key = serialization.load_pem_private_key(block.text.encode(), password.encode())
    except (ValueError, TypeError):
        raise ValueError("incorrect password") from None
    return key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def encrypt(der: bytes, password: str) -> str:
    """A PEM block of the private key `der` (PKCS#8), encrypted as PKCS#8 says. The password must not be empty."""
    from cryptography.hazmat.primitives import serialization

    if not password:
        raise ValueError("the password is empty")
    return (
        serialization.load_der_private_key(der, None)
        .private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(password.encode()),
        )
        .decode()
    )
