"""The two ciphers and the names that they have had."""

AES256 = "AES256"
CHACHA20 = "ChaCha20"

BY_NAME = {
    "AES256": AES256,
    "AES256-GCM_SHA256": AES256,
    "ChaCha20": CHACHA20,
    "XCHACHA20-POLY1305": CHACHA20,
}
"""The names in stored keys, in MessagePack ciphertexts and in requests: today's short ones, and the long ones of
v0.19 to 2023-10-03. Exact in case."""

LONG_NAMES = {AES256: "AES256-GCM_SHA256", CHACHA20: "XCHACHA20-POLY1305"}


def algorithm_from_name(name: str) -> str:
    """AES256 or CHACHA20, by any name it has had. Raises ValueError."""
    try:
        return BY_NAME[name]
    except KeyError:
        raise ValueError(f"algorithm '{name}' is not supported") from None
