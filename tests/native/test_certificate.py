import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keswick._native import Certificate, Verifier
from support.certificates import KINDS, make, make_v1


@pytest.mark.parametrize("kind", KINDS)
def test_says_what_the_certificate_says(kind: str) -> None:
    pair = make(kind, name="someone", sans=["a.example", "b.example", "10.1.2.3", "2001:db8::1"])
    certificate = Certificate(pair.cert_der)
    assert certificate.der == pair.cert_der
    assert certificate.public_key == pair.public_key_der
    assert certificate.dns_names == ["a.example", "b.example"]
    assert certificate.ip_addresses == ["10.1.2.3", "2001:db8::1"]
    assert certificate.subject == "CN=someone"
    assert certificate.not_before == pair.certificate.not_valid_before_utc.timestamp()
    assert certificate.not_after == pair.certificate.not_valid_after_utc.timestamp()
    assert not certificate.is_ca


def test_knows_an_authority() -> None:
    assert Certificate(make(ca=True).cert_der).is_ca


def test_reads_version_1() -> None:
    pair = make_v1()
    certificate = Certificate(pair.cert_der)
    assert certificate.public_key == pair.public_key_der
    assert not certificate.is_ca
    assert certificate.dns_names == []


def test_a_subject_cannot_steer_a_terminal() -> None:
    assert "\x1b" not in Certificate(make(name="\x1b[2Jadmin").cert_der).subject


PAIR = make("p256", sans=["localhost", "::1"], eku=["client"])


@given(st.binary(max_size=300))
def test_refuses_what_is_not_a_certificate(data: bytes) -> None:
    with pytest.raises(ValueError, match="certificate"):
        Certificate(data)


@given(st.data())
def test_reads_or_refuses_a_damaged_certificate(data: st.DataObject) -> None:
    der = bytearray(PAIR.cert_der)
    for _ in range(data.draw(st.integers(1, 4))):
        der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    try:
        certificate = Certificate(bytes(der))
    except ValueError:
        return
    assert certificate.public_key in bytes(der)
    for address in certificate.ip_addresses:
        ipaddress.ip_address(address)


@given(st.binary(min_size=1, max_size=20))
def test_refuses_bytes_after_the_end(tail: bytes) -> None:
    with pytest.raises(ValueError, match="bytes after the end"):
        Certificate(PAIR.cert_der + tail)


@given(st.integers(0, len(PAIR.cert_der) - 1))
def test_refuses_a_part(length: int) -> None:
    with pytest.raises(ValueError, match=r"not an X\.509 certificate"):
        Certificate(PAIR.cert_der[:length])


ROOT = make("p256", name="root", ca=True)
MIDDLE = make("p384", name="middle", issuer=ROOT, ca=True)


@pytest.mark.parametrize("eku", [[], ["client"], ["any"], ["client", "server"]])
def test_verifies_a_chain(eku: list[str]) -> None:
    leaf = make(issuer=MIDDLE, eku=eku)
    Verifier([ROOT.cert_der]).verify([leaf.cert_der, MIDDLE.cert_der])


@pytest.mark.parametrize(
    ("leaf", "reason"),
    [
        (make(issuer=ROOT, days=(-9, -1)), "has expired"),
        (make(issuer=ROOT, days=(1, 9)), "not valid yet"),
        (make(issuer=ROOT, eku=["server"]), "extended key usage"),
        (make(issuer=make(name="root", ca=True)), "signature|trusted authority"),
        (make(), "trusted authority"),
    ],
)
def test_says_why_a_chain_is_refused(leaf: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Verifier([ROOT.cert_der]).verify([leaf.cert_der])  # type: ignore[attr-defined]


def test_server_auth_passes_only_when_asked_for() -> None:
    leaf = make(issuer=ROOT, eku=["server"])
    Verifier([ROOT.cert_der]).verify([leaf.cert_der], server_auth=True)


def test_a_leaf_that_is_a_root_still_has_to_be_in_time_and_for_clients() -> None:
    good, expired, for_servers = make(), make(days=(-9, -1)), make(eku=["server"])
    verifier = Verifier([good.cert_der, expired.cert_der, for_servers.cert_der])
    verifier.verify([good.cert_der])
    with pytest.raises(ValueError, match="has expired"):
        verifier.verify([expired.cert_der])
    with pytest.raises(ValueError, match="extended key usage"):
        verifier.verify([for_servers.cert_der])
    verifier.verify([for_servers.cert_der], server_auth=True)


def test_no_certificate_and_no_root() -> None:
    with pytest.raises(ValueError, match="no certificate"):
        Verifier([]).verify([])
    with pytest.raises(ValueError, match="root certificate number 2 cannot be used"):
        Verifier([ROOT.cert_der, b"garbage"])
