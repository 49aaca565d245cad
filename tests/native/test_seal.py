import pytest
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st

from keswick._native import SealingKey, hmac_sha256

KEY = bytes(range(32))
CIPHERS = ("AES256", "ChaCha20")

ciphers = st.sampled_from(CIPHERS)


@given(ciphers, st.binary(), st.binary())
def test_what_is_sealed_opens(cipher: str, plaintext: bytes, context: bytes) -> None:
    key = SealingKey(cipher, KEY)
    sealed = key.seal(plaintext, context)
    assert len(sealed) == len(plaintext) + 44
    assert key.open(sealed, context) == plaintext


@pytest.mark.parametrize("cipher", CIPHERS)
@pytest.mark.parametrize("size", [64 * 1024 - 1, 64 * 1024, 1 << 20])
def test_large_texts_open(cipher: str, size: int) -> None:
    key = SealingKey(cipher, KEY)
    plaintext = bytes(range(256)) * (size // 256) + bytes(size % 256)
    assert key.open(key.seal(plaintext, b"context"), b"context") == plaintext


@pytest.mark.parametrize("cipher", CIPHERS)
def test_every_changed_bit_is_noticed(cipher: str) -> None:
    key = SealingKey(cipher, KEY)
    sealed = key.seal(b"text", b"context")
    for bit in range(8 * len(sealed)):  # of the text, the tag, the IV and the nonce
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match=r"^the text is not authentic$"):
            key.open(bytes(changed), b"context")


@pytest.mark.parametrize("cipher", CIPHERS)
def test_every_other_length_is_noticed(cipher: str) -> None:
    key = SealingKey(cipher, KEY)
    sealed = key.seal(b"text", b"context")
    for text in [sealed[:size] for size in range(len(sealed))] + [sealed + b"\0", b"\0" + sealed]:
        with pytest.raises(ValueError, match=r"^the text is not authentic$"):
            key.open(text, b"context")


@pytest.mark.parametrize("cipher", CIPHERS)
def test_another_context_key_or_cipher_opens_nothing(cipher: str) -> None:
    key = SealingKey(cipher, KEY)
    sealed = key.seal(b"text", b"context")
    (other_cipher,) = set(CIPHERS) - {cipher}
    for other, context in [
        (key, b""),
        (key, b"Context"),
        (SealingKey(cipher, bytes(32)), b"context"),
        (SealingKey(other_cipher, KEY), b"context"),
    ]:
        with pytest.raises(ValueError, match=r"^the text is not authentic$"):
            other.open(sealed, context)
    with pytest.raises(ValueError, match=r"^the text is not authentic$"):
        key.open_2019(sealed, b"context")


def test_aes_is_gcm_under_the_hmac_of_the_iv() -> None:
    sealed = SealingKey("AES256", KEY).seal(b"text", b"context")
    text, iv, nonce = sealed[:-28], sealed[-28:-12], sealed[-12:]
    message_key = hmac.HMAC(KEY, hashes.SHA256())
    message_key.update(iv)
    assert AESGCM(message_key.finalize()).decrypt(nonce, text, b"context") == b"text"


def test_chacha_is_poly1305_under_the_hchacha_of_the_iv() -> None:
    """The IV is the input of the test vector in draft-irtf-cfrg-xchacha-03, section 2.2.1."""
    iv = bytes.fromhex("000000090000004a0000000031415927")
    sub_key = bytes.fromhex("82413b4227b27bfed30e42508a877d73a0f9e4d58a74a853c12ec41326d3ecdc")
    nonce = bytes(range(12))
    text = ChaCha20Poly1305(sub_key).encrypt(nonce, b"text", b"context")
    assert SealingKey("ChaCha20", KEY).open(text + iv + nonce, b"context") == b"text"


@pytest.mark.parametrize("cipher", CIPHERS)
def test_nothing_random_comes_twice(cipher: str) -> None:
    key = SealingKey(cipher, KEY)
    assert len({key.seal(b"text", b"")[-28:] for _ in range(1000)}) == 1000
    assert len({key.generate(b"")[0] for _ in range(1000)}) == 1000


@pytest.mark.parametrize("cipher", CIPHERS)
def test_a_generated_key_comes_with_itself_sealed(cipher: str) -> None:
    key = SealingKey(cipher, KEY)
    plaintext, sealed = key.generate(b"context")
    assert len(plaintext) == 32
    assert key.open(sealed, b"context") == plaintext


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_a_key_has_32_bytes(size: int) -> None:
    with pytest.raises(ValueError, match=f"^a key has 32 bytes, not {size}$"):
        SealingKey("AES256", bytes(size))


@pytest.mark.parametrize("cipher", ["", "aes256", "AES256-GCM_SHA256", "XCHACHA20-POLY1305"])
def test_an_unknown_cipher_is_refused(cipher: str) -> None:
    with pytest.raises(ValueError, match="neither AES256 nor ChaCha20"):
        SealingKey(cipher, KEY)


@pytest.mark.parametrize("cipher", CIPHERS)
def test_a_key_shows_its_cipher_only(cipher: str) -> None:
    key = SealingKey(cipher, KEY)
    assert key.cipher == cipher
    assert repr(key) == f"SealingKey('{cipher}')"
    with pytest.raises(AttributeError):
        key.cipher = "AES256"  # type: ignore[misc]


@given(st.binary(), st.binary())
def test_hmac(key: bytes, message: bytes) -> None:
    expected = hmac.HMAC(key, hashes.SHA256())
    expected.update(message)
    assert hmac_sha256(key, message) == expected.finalize()
