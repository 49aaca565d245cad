import base64
import contextlib
import hashlib
import hmac
import json
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keswick.crypto import AES256, CHACHA20, DecryptionError, NoHMACKeyError, SecretKey, algorithm_from_name
from keswick.encoding import parse_rfc3339

KEY = bytes(range(32))
ALGORITHMS = (AES256, CHACHA20)
AEADS = {AES256: "AES-256-GCM-HMAC-SHA-256", CHACHA20: "ChaCha20Poly1305"}

algorithms = st.sampled_from(ALGORITHMS)


def legacy(algorithm: str = "") -> SecretKey:
    return SecretKey.decode(json.dumps({"bytes": base64.b64encode(KEY).decode(), "algorithm": algorithm}).encode())


def as_json(ciphertext: bytes, aead: str) -> bytes:
    parts = {"iv": ciphertext[-28:-12], "nonce": ciphertext[-12:], "bytes": ciphertext[:-28]}
    encoded = {name: base64.b64encode(part).decode() for name, part in parts.items()}
    return json.dumps({"aead": aead, **encoded}, separators=(",", ":")).encode()


def as_msgpack(ciphertext: bytes, algorithm: str) -> bytes:
    return msgspec.msgpack.encode((algorithm, "0" * 32, ciphertext[-28:-12], ciphertext[-12:], ciphertext[:-28]))


def test_a_new_key_is_for_aes_and_has_an_hmac_key() -> None:
    before = time.time_ns()
    key = SecretKey.generate("creator")
    assert key.algorithm == AES256
    assert before <= parse_rfc3339(key.created_at) <= time.time_ns()
    assert key.created_at.endswith("Z")
    assert key.created_by == "creator"
    assert len(key.hmac(b"message")) == 32


def test_new_keys_differ() -> None:
    assert len({SecretKey.generate("").encode()[4:48] for _ in range(100)}) == 100


@given(algorithms, st.text())
def test_a_stored_key_is_the_same_key(algorithm: str, created_by: str) -> None:
    key = SecretKey.of(KEY, algorithm, created_by)
    again = SecretKey.decode(key.encode())
    assert again.decrypt(key.encrypt(b"text", b"context"), b"context") == b"text"
    assert again.hmac(b"message") == key.hmac(b"message")
    assert (again.algorithm, again.created_at, again.created_by) == (algorithm, key.created_at, created_by)
    assert again.encode() == key.encode()


@pytest.mark.parametrize(("key", "algorithm"), [(KEY[1:], AES256), (KEY + b"x", CHACHA20), (KEY, "AES256-GCM_SHA256")])
def test_an_import_that_is_no_key_is_refused(key: bytes, algorithm: str) -> None:
    with pytest.raises(ValueError, match=r"a key has 32 bytes|neither AES256 nor ChaCha20"):
        SecretKey.of(key, algorithm, "")


def test_algorithms_have_four_names() -> None:
    names = ("AES256", "AES256-GCM_SHA256", "ChaCha20", "XCHACHA20-POLY1305")
    assert [algorithm_from_name(name) for name in names] == [AES256, AES256, CHACHA20, CHACHA20]
    for name in ("", "aes256", "AES-256-GCM-HMAC-SHA-256"):
        with pytest.raises(ValueError, match=f"^algorithm '{name}' is not supported$"):
            algorithm_from_name(name)


@given(algorithms, st.binary(), st.binary())
def test_every_encoding_of_a_ciphertext_opens(algorithm: str, plaintext: bytes, context: bytes) -> None:
    key = SecretKey.of(KEY, algorithm, "")
    ciphertext = key.encrypt(plaintext, context)
    assert key.decrypt(ciphertext, context) == plaintext
    # An envelope's own cipher is not looked at when the key names one.
    for name in ("AES256", "AES256-GCM_SHA256", "ChaCha20", "XCHACHA20-POLY1305"):
        assert key.decrypt(as_msgpack(ciphertext, name), context) == plaintext
    for aead in AEADS.values():
        assert key.decrypt(as_json(ciphertext, aead), context) == plaintext


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_raw_ciphertext_may_begin_like_an_envelope(algorithm: str) -> None:
    key = SecretKey.of(KEY, algorithm, "")
    seen: set[bytes] = set()
    while seen != {b"{", b"\x95"}:
        ciphertext = key.encrypt(b"text", b"")
        if ciphertext[:1] in (b"{", b"\x95"):
            seen.add(ciphertext[:1])
            assert key.decrypt(ciphertext, b"") == b"text"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_key_that_names_no_cipher_opens_what_either_has_sealed(algorithm: str) -> None:
    ciphertext = SecretKey.of(KEY, algorithm, "").encrypt(b"text", b"context")
    for envelope in (as_json(ciphertext, AEADS[algorithm]), as_msgpack(ciphertext, algorithm)):
        assert legacy().decrypt(envelope, b"context") == b"text"
        with pytest.raises(DecryptionError):
            legacy().decrypt(envelope, b"")


def test_a_key_that_names_no_cipher_is_for_aes() -> None:
    assert legacy().algorithm == AES256
    assert SecretKey.of(KEY, AES256, "").decrypt(legacy().encrypt(b"text", b""), b"") == b"text"
    with pytest.raises(DecryptionError):
        legacy().decrypt(SecretKey.of(KEY, CHACHA20, "").encrypt(b"text", b""), b"")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_key_that_names_its_cipher_opens_nothing_else(algorithm: str) -> None:
    (other,) = set(ALGORITHMS) - {algorithm}
    ciphertext = SecretKey.of(KEY, other, "").encrypt(b"text", b"")
    for envelope in (ciphertext, as_json(ciphertext, AEADS[other]), as_msgpack(ciphertext, other)):
        with pytest.raises(DecryptionError):
            legacy(algorithm).decrypt(envelope, b"")


def test_the_name_of_2019_stands_for_its_derivation_only() -> None:
    ciphertext = legacy().encrypt(b"text", b"")
    with pytest.raises(DecryptionError):
        legacy().decrypt(as_json(ciphertext, "AES-256-GCM"), b"")


@given(st.binary(), st.sampled_from([b"", b"{", b"\x95"]))
def test_arbitrary_bytes_are_refused_in_one_way(ciphertext: bytes, first: bytes) -> None:
    with pytest.raises(DecryptionError, match=r"^the ciphertext is not authentic$"):
        legacy().decrypt(first + ciphertext, b"")


CIPHERTEXTS = [legacy().encrypt(b"text", b"")]
CIPHERTEXTS += [as_json(CIPHERTEXTS[0], aead) for aead in (*AEADS.values(), "AES-256-GCM")]
CIPHERTEXTS += [as_msgpack(CIPHERTEXTS[0], name) for name in ALGORITHMS]


@given(st.sampled_from(CIPHERTEXTS), st.data())
def test_damaged_ciphertexts_never_open_to_another_text(ciphertext: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(ciphertext)))
    cut = data.draw(st.integers(0, 4))
    damaged = ciphertext[:at] + data.draw(st.binary(max_size=4)) + ciphertext[at + cut :]
    with contextlib.suppress(DecryptionError):
        assert legacy().decrypt(damaged, b"") == b"text"


@given(algorithms, st.binary())
def test_a_data_key_comes_with_its_ciphertext(algorithm: str, context: bytes) -> None:
    key = SecretKey.of(KEY, algorithm, "")
    plaintext, ciphertext = key.generate_data_key(context)
    assert len(plaintext) == 32
    assert key.decrypt(ciphertext, context) == plaintext


@given(st.binary())
def test_hmac_is_sha256_under_the_key_of_its_own(message: bytes) -> None:
    key = SecretKey.generate("")
    hmac_key = base64.b64decode(key.encode())[42:74]
    assert key.hmac(message) == hmac.digest(hmac_key, message, hashlib.sha256)


def test_a_key_of_an_older_form_never_gains_an_hmac_key() -> None:
    with pytest.raises(NoHMACKeyError):
        legacy().hmac(b"message")
    with pytest.raises(NoHMACKeyError):
        legacy().encode()


def test_a_key_shows_no_secret_and_cannot_be_changed() -> None:
    key = SecretKey.of(b"A" * 32, AES256, "creator")
    assert repr(key) == f"<SecretKey AES256 created_at='{key.created_at}' created_by='creator'>"
    for name in ("algorithm", "created_at", "created_by", "other"):
        with pytest.raises(AttributeError):
            setattr(key, name, "")
