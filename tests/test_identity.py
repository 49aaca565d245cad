"""Identities, API keys and the certificates made of them."""

import ssl
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from keswick import pem
from keswick.identity import APIKey, certificate_for, identity_of, self_signed

KNOWN = """
kes:v1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA 339e2ff917630507b6a423b5ce084e285d1fa65d93b3e27a6195d3bbebc9ae23
kes:v1:AAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f a050837d85070582ccf7394b0988847cc312cb88259b894899f6f239cf1791a5
kes:v1:AP////////////////////////////////////////// 8d5eb75dbb64464ac9369d2416a026c99aad4ebf9cdb7c73adda86dd17815b0f
"""
"""API keys with the identities that the original computes."""

A_KEY = KNOWN.split()[0]


@pytest.mark.parametrize(("text", "identity"), [line.split() for line in KNOWN.strip().splitlines()])
def test_an_api_key_has_the_identity_of_its_public_key(text: str, identity: str) -> None:
    key = APIKey.parse(text)
    assert key.identity == identity
    assert key.text == text


def test_the_prefix_and_surrounding_white_space_do_not_matter() -> None:
    assert APIKey.parse(A_KEY.removeprefix("kes:v1:") + "\n") == APIKey.parse(A_KEY)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "invalid length"),
        ("kes:v1:AAAA", "invalid length"),
        ("kes:v1:AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "unsupported type"),
        ("kes:v2:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "not base64"),
        ("kes:v1:se cret", "not base64"),
    ],
)
def test_what_is_no_api_key_is_refused_in_plain_words(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match="kes: invalid API key: .*" + complaint) as caught:
        APIKey.parse(text)
    assert "cret" not in str(caught.value)


@given(st.text())
def test_any_text_is_an_api_key_or_a_value_error(text: str) -> None:
    try:
        key = APIKey.parse(text)
    except ValueError:
        return
    assert APIKey.parse(key.text) == key


def test_a_new_api_key_is_random_and_never_shown() -> None:
    key = APIKey.generate()
    assert key != APIKey.generate()
    secret = key.text.removeprefix("kes:v1:")
    assert secret not in repr(key)
    assert secret not in str(key)


def test_an_api_key_comes_back_from_its_private_key_file() -> None:
    key = APIKey.parse(A_KEY)
    assert APIKey.from_private_key(certificate_for(key).key) == key
    with pytest.raises(ValueError, match="Only ed25519"):
        APIKey.from_private_key(self_signed("x", lifetime=timedelta(days=1), client=True).key)
    with pytest.raises(ValueError, match="Only ed25519"):
        APIKey.from_private_key(b"no DER")


def test_the_certificate_of_an_api_key() -> None:
    key = APIKey.parse(A_KEY)
    pair = certificate_for(key)
    certificate = x509.load_der_x509_certificate(pair.certificate)
    public_key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert identity_of(public_key) == key.identity == pair.identity
    assert certificate.subject == certificate.issuer
    assert certificate.subject.rfc4514_string() == f"CN={key.identity}"
    assert certificate.not_valid_before_utc <= datetime.now(UTC)
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc == timedelta(days=90)
    extensions = certificate.extensions
    assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature
    assert extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(False, None)
    certificate.verify_directly_issued_by(certificate)


def test_a_server_certificate_names_its_hosts() -> None:
    pair = self_signed(
        "localhost", lifetime=timedelta(days=1), dns=["localhost", "*.a-b.c_d"], ips=["::1"], server=True
    )
    certificate = x509.load_der_x509_certificate(pair.certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "*.a-b.c_d"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["::1"]
    assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
    assert "PRIVATE" not in repr(pair)
    assert repr(pair.key) not in repr(pair)


@pytest.mark.parametrize(
    ("subject", "names"),
    [
        ("", {}),
        ("x" * 65, {}),
        ("x", {"ips": ["1.2.3"]}),
        ("x", {"dns": ["ké"]}),
        *(("x", {"dns": [name]}) for name in ("", "a b", "a..b", "-a", "a.*.b", "*", "x" * 64, "a." * 127 + "a")),
    ],
)
def test_what_cannot_be_in_a_certificate_is_a_value_error(subject: str, names: dict[str, list[str]]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        self_signed(subject, lifetime=timedelta(days=1), **names)  # type: ignore[arg-type]


def test_a_lifetime_beyond_the_calendar_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="so long"):
        self_signed("x", lifetime=timedelta(days=10**8))


def test_pem_files_are_read_back() -> None:
    pair = certificate_for(APIKey.generate())
    assert ssl.PEM_cert_to_DER_cert(pair.certificate_pem) == pair.certificate
    (certificate, key) = pem.blocks(pair.certificate_pem + "between\n" + pair.key_pem())
    assert (certificate.label, certificate.der) == ("CERTIFICATE", pair.certificate)
    assert (key.label, key.der, key.is_private_key, key.is_encrypted) == ("PRIVATE KEY", pair.key, True, False)


def test_an_encrypted_key_opens_with_its_password_only() -> None:
    pair = certificate_for(APIKey.generate())
    (block,) = pem.blocks(pair.key_pem("correct horse"))
    assert block.label == "ENCRYPTED PRIVATE KEY"
    assert block.is_encrypted
    assert pem.decrypt(block, "correct horse") == pair.key
    with pytest.raises(ValueError, match="incorrect password"):
        pem.decrypt(block, "wrong horse")
    with pytest.raises(ValueError, match="empty"):
        pair.key_pem("")


def test_a_key_encrypted_as_rfc_1423_says_opens_too() -> None:
    pair = self_signed("x", lifetime=timedelta(days=1), client=True)
    key = load_pem_private_key(pair.key_pem().encode(), None)
    (block,) = pem.blocks(
        key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(b"pw")).decode()
    )
    assert block.is_encrypted
    assert pem.decrypt(block, "pw") == pair.key
    with pytest.raises(ValueError, match="incorrect password"):
        pem.decrypt(block, "")
