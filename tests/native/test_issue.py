"""Self-signed certificates, read by another library."""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from keswick._native import Certificate, ClientTls, Tls, public_key_of, self_signed

SEED = bytes(range(32))
PKCS8_OF_ED25519 = bytes.fromhex("302e020100300506032b657004220420")
FIRST, LAST = datetime(1950, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
DIGITAL_SIGNATURE = x509.KeyUsage(True, *[False] * 8)


def issue(key: bytes | None = SEED, subject: str = "x", **options: Any) -> tuple[bytes, bytes, bytes]:
    return self_signed(key, subject, **{"not_before": 0, "not_after": 1, **options})


@pytest.mark.parametrize("key", [SEED, None])
@pytest.mark.parametrize(("client", "server"), [(True, False), (False, True), (True, True), (False, False)])
def test_a_certificate_says_what_it_is_told_to(key: bytes | None, client: bool, server: bool) -> None:
    dns, ips = ["localhost", "*.example.org"], ["127.0.0.1", "2001:db8::1"]
    der, _, public_key = issue(key, "Zürich", dns=dns, ips=ips, client=client, server=server)
    certificate = x509.load_der_x509_certificate(der)
    certificate.verify_directly_issued_by(certificate)
    assert certificate.version is x509.Version.v3
    assert certificate.subject == certificate.issuer
    assert certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "Zürich"
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert spki == public_key == Certificate(der).public_key
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH] * client + [ExtendedKeyUsageOID.SERVER_AUTH] * server
    names = [*map(x509.DNSName, dns), *(x509.IPAddress(ip_address(ip)) for ip in ips)]
    expected = [
        (x509.KeyUsage, True, DIGITAL_SIGNATURE),
        *([(x509.ExtendedKeyUsage, False, x509.ExtendedKeyUsage(usages))] if usages else []),
        (x509.BasicConstraints, True, x509.BasicConstraints(False, None)),
        (x509.SubjectAlternativeName, False, x509.SubjectAlternativeName(names)),
    ]
    found = [(type(extension.value), extension.critical, extension.value) for extension in certificate.extensions]
    assert found == expected


def test_serial_numbers_are_random() -> None:
    serials = {x509.load_der_x509_certificate(issue()[0]).serial_number for _ in range(300)}
    assert len(serials) == 300
    assert 120 < max(serials).bit_length() <= 128
    assert min(serials) > 0


def test_the_key_of_a_seed() -> None:
    _, key, public_key = issue()
    assert key == PKCS8_OF_ED25519 + SEED
    by_others = ed25519.Ed25519PrivateKey.from_private_bytes(SEED).public_key()
    assert public_key == by_others.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert public_key_of(SEED) == public_key


def test_a_new_key() -> None:
    certificate, key, public_key = issue(None)
    private_key = load_der_private_key(key, None)
    assert isinstance(private_key, ec.EllipticCurvePrivateKey)
    assert isinstance(private_key.curve, ec.SECP256R1)
    assert private_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == public_key
    assert issue(None)[1] != key
    Tls(certificates=[certificate], key=key)
    ClientTls(roots=None, certificates=[certificate], key=key)


@given(st.integers(int(FIRST.timestamp()), int(LAST.timestamp())), st.integers(0, 10**9))
def test_dates(begin: int, length: int) -> None:
    end = min(begin + length, int(LAST.timestamp()))
    certificate = x509.load_der_x509_certificate(issue(not_before=begin, not_after=end)[0])
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    assert certificate.not_valid_before_utc == epoch + timedelta(seconds=begin)
    assert certificate.not_valid_after_utc == epoch + timedelta(seconds=end)


@pytest.mark.parametrize("text", ["2049-12-31T23:59:59Z", "2050-01-01T00:00:00Z", "1950-01-01T00:00:00Z"])
def test_the_years_that_have_two_digits(text: str) -> None:
    moment = datetime.fromisoformat(text)
    certificate = x509.load_der_x509_certificate(issue(not_before=int(moment.timestamp()), not_after=2**32)[0])
    assert certificate.not_valid_before_utc == moment


@pytest.mark.parametrize("count", [1, 5, 20, 400, 4000])
def test_many_names(count: int) -> None:
    names = [f"host-{number}.example.org" for number in range(count)]
    der, _, _ = issue(dns=names)
    assert Certificate(der).dns_names == names
    certificate = x509.load_der_x509_certificate(der)
    certificate.verify_directly_issued_by(certificate)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"key": SEED[1:]}, "32 bytes, not 31"),
        ({"key": SEED + b"x"}, "32 bytes, not 33"),
        ({"key": b""}, "32 bytes, not 0"),
        ({"subject": ""}, "1 to 64 characters"),
        ({"subject": "ü" * 65}, "1 to 64 characters"),
        ({"dns": [""]}, "'' is not a DNS name"),
        ({"dns": ["zürich.example"]}, "is not a DNS name"),
        ({"dns": ["a b"]}, "'a b' is not a DNS name"),
        ({"ips": ["1.2.3"]}, r"'1\.2\.3' does not appear to be an IPv4 or IPv6 address"),
        ({"not_after": int(LAST.timestamp()) + 1}, "dates are from 1950 to 9999"),
        ({"not_before": int(FIRST.timestamp()) - 1}, "dates are from 1950 to 9999"),
        ({"not_after": -1}, "end before it begins"),
    ],
)
def test_what_cannot_be_in_a_certificate(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        issue(**options)


def test_a_seed_of_another_length_has_no_public_key() -> None:
    for seed in (b"", SEED[1:], SEED + b"x"):
        with pytest.raises(ValueError, match="32 bytes"):
            public_key_of(seed)
