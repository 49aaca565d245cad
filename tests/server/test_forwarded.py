"""Clients behind a TLS proxy: who they are, for each request anew, and what speaks against them."""

import base64
import itertools
import json
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keswick import pem
from keswick._native import Request, Verifier
from keswick.config import TLS, Config, Proxy
from keswick.identity import APIKey, identity_of
from keswick.keystore import MEMORY
from keswick.server import forwarded
from keswick.server.forwarded import Forwarding, address_in, certificate_in, client_address
from keswick.server.logs import ErrorLog
from support.api import Answer, Caller
from support.certificates import Pair, make
from support.cli import kes
from support.proxy import HEADER, Field, certificate_header, escaped, forwarding
from support.server import RunningServer, start_server, write_config
from support.transport import wait_until

SELF = "/v1/identity/self/describe"
REQUIRED = "tls: client certificate is required"
SEVERAL = "tls: received more than one client certificate"
INVALID = "invalid client certificate"
REFUSED = "not authorized: insufficient permissions"
UNTRUSTED = "not authorized: client certificate is not trusted"


def identity(pair: Pair) -> str:
    return identity_of(pair.public_key_der)


@dataclass
class Place:
    """A server with its proxy and some clients."""

    server: RunningServer
    folder: Path
    proxy: Pair
    other_proxy: Pair
    admin: Pair
    alice: Pair
    """May create keys."""
    bob: Pair
    """May do nothing."""

    def config(
        self, *, proxy: dict[str, Any] | None = None, tls: dict[str, Any] | None = None, **changes: Any
    ) -> dict[str, Any]:
        identities = [identity(self.proxy), identity(self.other_proxy)]
        section = {"identities": identities, "header": {"cert": HEADER}} | (proxy or {})
        return {
            "admin": {"identity": identity(self.admin)},
            "tls": {"proxy": section} | (tls or {}),
            "policy": {"alice": {"allow": ["/v1/key/create/*"], "identities": [identity(self.alice)]}},
            "log": {"audit": "on"},
            "api": {"/v1/ready": {"skip_auth": True}},
            **changes,
        }


def place_in(folder: Path, **pairs: Pair) -> Place:
    names = ("proxy", "other_proxy", "admin", "alice", "bob")
    return Place(cast(RunningServer, None), folder, *(pairs.get(name) or make(name=name) for name in names))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Verifies nobody, and lets the admin be forwarded."""
    place = place_in(tmp_path_factory.mktemp("forwarded"))
    with start_server(place.folder, **place.config()) as place.server:
        yield place


@pytest.fixture(params=["1.1", "2"], ids=["HTTP/1.1", "HTTP/2"])
def http(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def ask(place: Place, http: str, path: str, *fields: Field, proxy: Pair | None = None, method: str = "GET") -> Answer:
    with forwarding(place.server.port, proxy or place.proxy, place.folder, http=http) as connection:
        return connection.ask(path, *fields, method=method)


def refusal(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.message


# --- what the header may hold ---

CLIENT = make("p256", name="client", days=(-1, 30))
PEM = CLIENT.cert_pem.decode()
BASE64 = base64.b64encode(CLIENT.cert_der).decode()

USED = {
    "escaped as nginx does": escaped(CLIENT),
    "escaped as a form does": quote_plus(PEM),
    "escaped in lower case": escaped(CLIENT).replace("%2B", "%2b").replace("%0A", "%0a"),
    "with CRLF": quote(PEM.replace("\n", "\r\n")),
    "without an end of line": quote(PEM.rstrip()),
    "text before": quote("subject=CN%3Dx\n") + quote(PEM),
    "several blocks": quote(PEM + make().cert_pem.decode()),
    "a key after it": quote(PEM + make().key_pem.decode()),
    "rubbish after it": quote(PEM + "-----BEGIN NOTHING"),
    "base64 of DER": BASE64,
}
NOT_USED = {
    "empty": "",
    "no PEM": "hello",
    "no PEM, escaped": "hello%20world",
    "a bad escape": escaped(CLIENT) + "%",
    "another bad escape": escaped(CLIENT).replace("%0A", "%0G", 1),
    "a private key": quote(CLIENT.key_pem.decode()),
    "a private key before it": quote(CLIENT.key_pem.decode() + PEM),
    "a public key": quote(pem.encode("PUBLIC KEY", CLIENT.public_key_der)),
    "a certificate of OpenSSL's own kind": quote(PEM.replace(" CERTIFICATE", " TRUSTED CERTIFICATE")),
    "no end": quote(PEM.partition("-----END")[0]),
    "a broken block before it": quote(PEM.partition("-----END")[0] + "\n" + PEM),
    "spaces for line feeds": quote(PEM.replace("\n", " ")),
    "spaces for line feeds, not escaped": PEM.replace("\n", " ").rstrip(),
    "a plus that was not escaped": quote(PEM, safe="+").replace("%2F", "+"),
    "PEM without its lines": quote("".join(PEM.splitlines()[1:-1])),
    "base64 of something else": base64.b64encode(b"no certificate").decode(),
    "base64 with bytes after the certificate": base64.b64encode(CLIENT.cert_der + b"\0").decode(),
    "base64 that is cut": BASE64.rstrip("=")[:-1],
    "base64 for URLs": base64.urlsafe_b64encode(b"\xff\xef\xbe" + CLIENT.cert_der).decode(),
    "PEM of half a certificate": quote(pem.encode("CERTIFICATE", CLIENT.cert_der[:-20])),
    "PEM of nothing": quote("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"),
}


@pytest.mark.parametrize("value", USED.values(), ids=USED)
def test_a_forwarded_certificate_makes_the_identity(place: Place, http: str, value: str) -> None:
    answer = ask(place, http, SELF, (HEADER, value))
    assert (answer.status, answer.json["identity"]) == (200, identity(CLIENT))


@pytest.mark.parametrize("value", NOT_USED.values(), ids=NOT_USED)
def test_what_is_no_certificate_is_refused(place: Place, http: str, value: str) -> None:
    assert refusal(ask(place, http, SELF, (HEADER, value))) == (400, INVALID)


def test_a_request_without_the_header_is_nobodys(place: Place, http: str) -> None:
    assert refusal(ask(place, http, SELF)) == (400, REQUIRED)
    assert refusal(ask(place, http, "/v1/key/create/k", method="PUT")) == (400, REQUIRED)


@pytest.mark.parametrize("path", ["/version", "/v1/ready"])
def test_what_nobody_needs_a_certificate_for(place: Place, http: str, path: str) -> None:
    assert ask(place, http, path).status == 200
    assert ask(place, http, path, (HEADER, "")).status == 200
    assert ask(place, http, path, certificate_header(place.bob)).status == 200
    assert refusal(ask(place, http, path, (HEADER, "rubbish"))) == (400, INVALID)
    assert refusal(ask(place, http, path, *[certificate_header(place.bob)] * 2)) == (400, SEVERAL)


def test_two_headers_are_one_too_many(place: Place, http: str) -> None:
    mine, admins = certificate_header(place.bob), certificate_header(place.admin)
    for fields in ([mine, admins], [admins, mine], [mine, mine], [mine, (HEADER, "")], [mine, (HEADER.lower(), "x")]):
        assert refusal(ask(place, http, SELF, *fields)) == (400, SEVERAL)
    joined = (HEADER, f"{escaped(place.admin)}, {escaped(place.bob)}")  # as something in between may join two lines
    assert refusal(ask(place, http, SELF, joined)) == (400, SEVERAL)


@pytest.mark.parametrize("name", [HEADER.lower(), HEADER.upper(), "x-TLS-cliENT-cERT"])
def test_the_name_of_the_header_is_in_any_case(place: Place, name: str) -> None:
    answer = ask(place, "1.1", SELF, (name, escaped(place.alice)))
    assert answer.json["identity"] == identity(place.alice)


@pytest.mark.parametrize("size", [16 << 10, 64 << 10])
def test_a_header_that_is_too_large_is_refused_by_itself(place: Place, http: str, size: int) -> None:
    with forwarding(place.server.port, place.proxy, place.folder, http=http) as connection:
        try:
            status = connection.ask(SELF, (HEADER, "A" * size)).status
        except (ConnectionError, OSError):
            status = 431  # the server closes while the header is still being sent
    assert status == 431
    assert ask(place, http, SELF, certificate_header(place.bob)).status == 200


# --- who they are then ---


def test_a_client_has_its_own_rights_and_no_others(place: Place, http: str) -> None:
    with forwarding(place.server.port, place.proxy, place.folder, http=http) as connection:
        for number, (pair, status) in enumerate([(place.alice, 200), (place.bob, 403), (place.admin, 200)]):
            path = f"/v1/key/create/by-{number}-{http[0]}"
            assert connection.ask(path, certificate_header(pair), method="PUT").status == status
            status = 200 if pair is place.admin else 403
            assert connection.ask("/v1/policy/list/", certificate_header(pair)).status == status


def test_a_proxy_itself_has_no_rights(place: Place, http: str) -> None:
    for own in (place.proxy, place.other_proxy):
        assert refusal(ask(place, http, SELF, certificate_header(own))) == (403, REFUSED)


def test_the_header_of_somebody_else_means_nothing(place: Place, http: str) -> None:
    for stranger in (place.bob, place.alice, make()):
        answer = ask(place, http, SELF, certificate_header(place.admin), proxy=stranger)
        assert answer.json["identity"] == identity(stranger)
        answer = ask(place, http, SELF, (HEADER, "rubbish"), (HEADER, "more"), proxy=stranger)
        assert answer.json["identity"] == identity(stranger)


def test_other_headers_mean_nothing(place: Place, http: str) -> None:
    others = [(name, escaped(place.admin)) for name in ("X-Ssl-Cert", "X-Tls-Client-Cert-2", "X_Tls_Client_Cert")]
    assert ask(place, http, SELF, *others, certificate_header(place.bob)).json["identity"] == identity(place.bob)
    assert refusal(ask(place, http, SELF, *others)) == (400, REQUIRED)


def test_the_certificate_of_an_authority_is_nobodys(place: Place, http: str) -> None:
    header = certificate_header(make("p256", ca=True))
    assert refusal(ask(place, http, SELF, header)) == (400, REQUIRED)


@pytest.mark.parametrize("kind", ["ed25519", "p384", "p521", "rsa2048"])
def test_certificates_of_every_kind_are_forwarded(place: Place, kind: str) -> None:
    for options in ({}, {"days": (-30, -1)}, {"days": (10, 30)}, {"eku": ["server"]}):
        pair = make(kind, **options)
        assert ask(place, "2", SELF, certificate_header(pair)).json["identity"] == identity(pair)


def test_no_answer_goes_to_another_client(place: Place, http: str) -> None:
    """The identity belongs to the request: over few connections that are kept, thousands of requests of many clients,
    some without a certificate and some with rubbish, side by side and one after the other."""
    order = random.Random(7)
    clients = [make(name=f"client-{number}") for number in range(40)]
    headers = [(certificate_header(pair), identity(pair)) for pair in clients]
    headers += [((HEADER, base64.b64encode(pair.cert_der).decode()), identity(pair)) for pair in clients]
    proxies = [place.proxy, place.other_proxy, place.proxy]
    mistaken = asked = 0
    connections = [forwarding(place.server.port, proxy, place.folder, http=http) for proxy in proxies]
    with connections[0] as one, connections[1] as two, connections[2] as three:
        direct = Caller(place.server.port, place.bob, place.folder)
        for connection in itertools.islice(itertools.cycle([one, two, three]), 150):
            wanted: list[tuple[str, Sequence[Field]]] = []
            expected: list[str] = []
            for _ in range(20):
                if order.random() < 0.15:
                    fields = order.choice([[], [(HEADER, "rubbish")], [headers[0][0], headers[1][0]]])
                    wanted.append((SELF, fields))
                    expected.append("")
                else:
                    header, who = order.choice(headers)
                    wanted.append((SELF, [header]))
                    expected.append(who)
            answers = connection.ask_all(wanted)
            got = [answer.json["identity"] if answer.status == 200 else "" for answer in answers]
            mistaken += sum(one != other for one, other in zip(got, expected, strict=True))
            asked += len(wanted)
            if connection is one:
                mistaken += direct.call("GET", SELF).json["identity"] != identity(place.bob)
    assert (asked, mistaken) == (3000, 0)


# --- verification ---


@pytest.fixture(scope="module")
def verified(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Place, Pair]]:
    """Verifies clients: a place, and the authority in `tls.ca`."""
    folder = tmp_path_factory.mktemp("verified")
    authority = make("p256", ca=True, name="authority")
    (folder / "ca.crt").write_bytes(authority.cert_pem)
    proxy = make(issuer=authority, eku=["client"])
    place = place_in(folder, proxy=proxy)
    tls = {"auth": "on", "ca": str(folder / "ca.crt")}
    with start_server(folder, **place.config(tls=tls, log={"audit": "on", "error": "debug"})) as place.server:
        yield place, authority


def test_a_trusted_certificate_is_let_in(verified: tuple[Place, Pair], http: str) -> None:
    place, authority = verified
    for eku in (["client"], ["any"], ["client", "server"], []):
        pair = make("p256", issuer=authority, eku=eku)
        for _ in range(2):  # the second time it is known
            answer = ask(place, http, SELF, certificate_header(pair))
            assert (answer.status, answer.json.get("identity")) == (200, identity(pair))


def test_a_certificate_that_is_not_trusted_is_refused(verified: tuple[Place, Pair], http: str) -> None:
    place, authority = verified
    for pair in (
        make(eku=["client"]),
        make(issuer=make(ca=True, name="authority"), eku=["client"]),
        make(issuer=authority, eku=["client"], days=(-30, -1)),
        make(issuer=authority, eku=["client"], days=(10, 30)),
        make(issuer=authority, eku=["server"]),
    ):
        for path in (SELF, "/v1/key/create/k", "/version") * 2:
            method = "PUT" if "create" in path else "GET"
            assert refusal(ask(place, http, path, certificate_header(pair), method=method)) == (403, UNTRUSTED)
    place.server.wait_for("a forwarded client certificate is not trusted", stream="stderr")


def test_who_is_trusted_is_asked_anew_after_a_reload(tmp_path: Path) -> None:
    stays, goes = (make("p256", ca=True, name=name) for name in ("stays", "goes"))
    bundle = tmp_path / "ca.crt"
    bundle.write_bytes(stays.cert_pem + goes.cert_pem)
    place = place_in(tmp_path, proxy=make(issuer=stays, eku=["client"]))
    config = place.config(tls={"auth": "on", "ca": str(bundle)})
    good, bad = (make(issuer=authority, eku=["client"]) for authority in (stays, goes))
    with start_server(tmp_path, **config) as place.server:
        assert ask(place, "2", SELF, certificate_header(bad)).status == 200
        bundle.write_bytes(stays.cert_pem)
        place.server.reload(**config)
        assert refusal(ask(place, "2", SELF, certificate_header(bad))) == (403, UNTRUSTED)
        assert ask(place, "2", SELF, certificate_header(good)).status == 200
        proxies = {"identities": [identity(place.other_proxy)]}
        with forwarding(place.server.port, place.proxy, tmp_path) as connection:
            assert connection.ask(SELF, certificate_header(good)).json["identity"] == identity(good)
            # A list that changes changes what connections are that stand already.
            place.server.reload(**place.config(tls={"auth": "on", "ca": str(bundle)}, proxy=proxies))
            assert connection.ask(SELF, certificate_header(good)).json["identity"] == identity(place.proxy)
            place.server.reload(**config)
            assert connection.ask(SELF, certificate_header(good)).json["identity"] == identity(good)
            assert refusal(connection.ask(SELF)) == (400, REQUIRED)


@pytest.mark.parametrize("dialect", ["2021", "2022", "2023"])
def test_the_words_of_older_releases(tmp_path: Path, dialect: str) -> None:
    """They verified clients unless they were told otherwise, and took certificates for servers."""
    authority = make("p256", ca=True, name="authority")
    (tmp_path / "ca.crt").write_bytes(authority.cert_pem)
    place = place_in(tmp_path, proxy=make(issuer=authority, eku=["client"]))
    with start_server(
        tmp_path, **place.config(compatibility=dialect, tls={"ca": str(tmp_path / "ca.crt")})
    ) as place.server:
        for eku in (["server"], ["client"]) * 2:
            pair = make(issuer=authority, eku=eku)
            assert ask(place, "1.1", SELF, certificate_header(pair)).json["identity"] == identity(pair)
        refused = ask(place, "1.1", SELF, certificate_header(place.bob))
        assert (refused.status, refused.body) == (403, b'{"message":""}')
        several = "too many client certificates are present"
        assert refusal(ask(place, "1.1", SELF)) == (400, "no client certificate is present")
        assert refusal(ask(place, "1.1", SELF, *[certificate_header(pair)] * 2)) == (400, several)
        assert refusal(ask(place, "1.1", SELF, (HEADER, "x"))) == (400, INVALID)
        # Nor may others show several, as soon as there are proxies.
        direct = Caller(place.server.port, make(issuer=authority, eku=["client"]), tmp_path, chain=(place.proxy,))
        assert refusal(direct.call("GET", SELF)) == (400, several)
        assert place.server.stderr.count("is for servers only") == 1


class Stranger:
    """A request of which only the headers count."""

    def __init__(self, **headers: str | list[str]) -> None:
        self._headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def headers(self, name: str) -> list[str]:
        value = self._headers.get(name.lower(), [])
        return [value] if isinstance(value, str) else value


def request_with(**headers: str | list[str]) -> Request:
    return cast(Request, Stranger(**headers))


class CountingVerifier:
    """Trusts everybody until it does not, and counts how often it was asked."""

    def __init__(self) -> None:
        self.trusts = True
        self.asked = 0

    def verify(self, certificates: Sequence[bytes], *, server_auth: bool = False) -> None:
        self.asked += 1
        if not self.trusts:
            raise ValueError("not today")


def looking(verifier: CountingVerifier | None = None) -> Forwarding:
    section = Proxy(("p",), HEADER)
    config = Config(admin="a", keystore=MEMORY, tls=TLS("k", "c", proxy=section))
    return Forwarding(config, cast(Verifier, verifier), ErrorLog(level=1 << 30))


def test_a_verified_certificate_is_trusted_for_as_long_as_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = CountingVerifier()
    looked = looking(verifier)
    request = request_with(x_tls_client_cert=escaped(CLIENT))
    now = time.time()
    day = 86400

    def asked_at(moment: float) -> int:
        monkeypatch.setattr(time, "time", lambda: moment)
        before = verifier.asked
        trusted = looked.caller_of(request).problem is None
        assert trusted is verifier.trusts
        return verifier.asked - before

    assert [asked_at(now), asked_at(now + 1), asked_at(now + 29 * day), asked_at(now)] == [1, 0, 0, 0]
    verifier.trusts = False
    assert [asked_at(now + 31 * day), asked_at(now - 2 * day)] == [1, 1]  # after its end, before its beginning
    # What was refused is asked again after a moment, for a certificate may begin to be valid.
    assert [asked_at(now - 2 * day + 1), asked_at(now - 2 * day + 60)] == [0, 1]
    verifier.trusts = True
    assert asked_at(now) == 1


def test_what_is_remembered_is_bounded_and_never_mixed() -> None:
    looked = looking()
    pairs = [make() for _ in range(20)]
    values = [(escaped(pair) + "%0A" * number, identity(pair)) for pair in pairs for number in range(100)]
    random.Random(1).shuffle(values)
    for value, who in values + values[:500]:
        assert looked.caller_of(request_with(x_tls_client_cert=value)).identity == who
    assert len(looked._known) == forwarded.REMEMBERED
    long = escaped(CLIENT) + "%0A" * forwarded.REMEMBERED_LENGTH
    assert looked.caller_of(request_with(x_tls_client_cert=long)).identity == identity(CLIENT)
    assert long not in looked._known


# --- the admin ---


def test_the_admin_may_be_kept_from_being_forwarded(tmp_path: Path) -> None:
    place = place_in(tmp_path)
    with start_server(tmp_path, **place.config(proxy={"admin": "off"})) as place.server:
        for path in ("/v1/status", SELF, "/v1/policy/list/"):
            assert refusal(ask(place, "2", path, certificate_header(place.admin))) == (403, REFUSED)
        assert ask(place, "2", "/v1/status", proxy=place.admin).status == 200
        assert ask(place, "2", SELF, certificate_header(place.alice)).status == 200
        assert "tls.proxy" not in place.server.stderr


def test_a_server_warns_that_a_proxy_can_be_the_admin(place: Place) -> None:
    line = place.server.line("can act as the admin", stream="stderr")
    assert "tls.proxy.admin: off" in line
    done = kes("server", "--check", "--config", str(place.server.config))
    assert "can act as the admin" in done.stdout


# --- the audit log ---


def events(server: RunningServer, path: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in server.stdout.splitlines() if line.startswith("{")]
    return [line["request"] | {"code": line["response"]["code"]} for line in lines if line["request"]["path"] == path]


def event(server: RunningServer, path: str) -> dict[str, Any]:
    """The one event about a path."""
    wait_until(lambda: events(server, path))
    (found,) = events(server, path)
    return found


names = map("audited-{}".format, itertools.count())


def test_the_log_tells_the_client_and_the_proxy(place: Place, http: str) -> None:
    path = f"/v1/key/create/{next(names)}"
    fields = [certificate_header(place.alice), ("X-Forwarded-For", "1.1.1.1, 10.1.2.3")]
    ask(place, http, path, *fields, method="PUT")
    assert event(place.server, path) == {
        "ip": "10.1.2.3",
        "path": path,
        "identity": identity(place.alice),
        "via": identity(place.proxy),
        "code": 200,
    }


@pytest.mark.parametrize(
    ("fields", "code"),
    [([], 400), ([(HEADER, "x")], 400), ([(HEADER, "x"), (HEADER, "x")], 400), ([certificate_header(CLIENT)], 403)],
    ids=["none", "invalid", "several", "not permitted"],
)
def test_refused_requests_are_recorded_too(place: Place, http: str, fields: list[Field], code: int) -> None:
    path = f"/v1/key/create/{next(names)}"
    assert ask(place, http, path, *fields, ("Forwarded", "for=10.9.9.9"), method="PUT").status == code
    found = event(place.server, path)
    assert (found["via"], found["ip"], found["code"]) == (identity(place.proxy), "10.9.9.9", code)
    assert found.get("identity") == (identity(CLIENT) if code == 403 else None)


def test_an_untrusted_client_is_recorded_by_name(verified: tuple[Place, Pair]) -> None:
    place, _ = verified
    path = f"/v1/key/create/{next(names)}"
    assert ask(place, "2", path, certificate_header(place.bob), method="PUT").status == 403
    found = event(place.server, path)
    assert (found["identity"], found["via"]) == (identity(place.bob), identity(place.proxy))


def test_only_a_proxy_is_believed_where_a_client_is(place: Place, http: str) -> None:
    path = f"/v1/key/create/{next(names)}"
    fields = [("X-Forwarded-For", "10.1.2.3"), ("Forwarded", "for=10.1.2.3")]
    ask(place, http, path, *fields, proxy=place.alice, method="PUT")
    found = event(place.server, path)
    assert found["ip"] == "127.0.0.1"
    assert "via" not in found


ADDRESSES: list[tuple[dict[str, str | list[str]], str | None]] = [
    ({}, None),
    ({"x_forwarded_for": "10.1.2.3"}, "10.1.2.3"),
    ({"x_forwarded_for": "1.1.1.1,10.1.2.3 "}, "10.1.2.3"),
    ({"x_forwarded_for": "10.1.2.3:99"}, "10.1.2.3"),
    ({"x_forwarded_for": "1.1.1.1, [2001:DB8::1]:443"}, "2001:db8::1"),
    ({"x_forwarded_for": "[2001:db8::1]"}, "2001:db8::1"),
    ({"x_forwarded_for": "2001:db8::1"}, "2001:db8::1"),
    ({"x_forwarded_for": "::ffff:10.1.2.3"}, "10.1.2.3"),
    ({"x_forwarded_for": ["1.1.1.1", "2.2.2.2, 3.3.3.3"]}, "3.3.3.3"),
    ({"x_forwarded_for": "1.1.1.1, unknown"}, None),  # what stands further left may come from the client
    ({"x_forwarded_for": "1.1.1.1,"}, None),
    ({"x_forwarded_for": "10.1.2.3.4"}, None),
    ({"x_forwarded_for": "fe80::1%eth0"}, None),
    ({"x_forwarded_for": "unknown", "forwarded": "for=1.1.1.1"}, None),
    ({"x_forwarded_for": "2.2.2.2", "forwarded": "for=1.1.1.1"}, "2.2.2.2"),
    ({"forwarded": "for=192.0.2.60;proto=http;by=203.0.113.43"}, "192.0.2.60"),
    ({"forwarded": 'for=1.1.1.1, For="[2001:db8:cafe::17]:4711"'}, "2001:db8:cafe::17"),
    ({"forwarded": 'by=203.0.113.43; for="192.0.2.43:47011"'}, "192.0.2.43"),
    ({"forwarded": ["for=1.1.1.1", "for=2.2.2.2"]}, "2.2.2.2"),
    ({"forwarded": "for=1.1.1.1, for=unknown"}, None),
    ({"forwarded": "for=1.1.1.1, for=_hidden"}, None),
    ({"forwarded": "for=1.1.1.1, by=2.2.2.2"}, None),
    ({"forwarded": 'for="1.1.1.1, for=2.2.2.2'}, "2.2.2.2"),  # a client's open quote hides nothing
    ({"forwarded": 'for="1.1.1.1, for="[2001:db8::1]:4711"'}, "2001:db8::1"),
    ({"forwarded": 'for=2.2.2.2;host="a,for=1.1.1.1"'}, "2.2.2.2"),  # nor does the host that it asked for
    ({"forwarded": 'host="a,for=1.1.1.1;b=";for=2.2.2.2'}, "2.2.2.2"),
    ({"forwarded": 'host="a;for=1.1.1.1";for=2.2.2.2'}, "2.2.2.2"),
    ({"forwarded": 'a="b, for=2.2.2.2;host="c,for=1.1.1.1;d="'}, "2.2.2.2"),
    ({"forwarded": 'for="1.1.1.1'}, None),
]


@pytest.mark.parametrize(("headers", "address"), ADDRESSES)
def test_the_last_address_that_the_proxy_named(headers: dict[str, str | list[str]], address: str | None) -> None:
    assert client_address(request_with(**headers)) == address


# --- proxies and policies ---


def test_a_proxy_cannot_be_assigned_to_a_policy(tmp_path: Path) -> None:
    place = place_in(tmp_path)
    with start_server(tmp_path, **place.config(runtime_policies="on")) as place.server:
        admin = Caller(place.server.port, place.admin, tmp_path)
        for who in (place.proxy, place.other_proxy):
            answer = admin.call("PUT", "/v1/policy/assign/alice", {"identity": identity(who)})
            assert refusal(answer) == (400, "identity is a TLS proxy")
            answer = admin.call("PUT", f"/v1/identity/assign/alice/{identity(who)}")
            assert refusal(answer) == (400, "identity is a TLS proxy")
        # Who was assigned before it became a proxy has no rights either.
        assert admin.call("PUT", "/v1/policy/assign/alice", {"identity": identity(place.bob)}).status == 200
        proxies = {"identities": [identity(place.proxy), identity(place.bob)]}
        place.server.reload(**place.config(runtime_policies="on", proxy=proxies))
        bob = Caller(place.server.port, place.bob, tmp_path)
        assert refusal(bob.call("PUT", "/v1/key/create/k")) == (400, REQUIRED)
        assert ask(place, "2", "/v1/key/create/k", certificate_header(place.bob), method="PUT").status == 403


def test_a_proxy_that_is_more_than_a_proxy_stops_the_start(place: Place, tmp_path: Path) -> None:
    def error(*arguments: str, **config: Any) -> str:
        tls = {"key": str(place.folder / "server.key"), "cert": str(place.folder / "server.crt"), **config.pop("tls")}
        path = write_config(tmp_path, APIKey.generate(), {**config, "tls": tls})
        done = kes("server", "--config", str(path), *arguments)
        assert done.code == 1
        return done.stderr

    proxy, admin = identity(place.proxy), identity(place.admin)
    config = place.config()
    assert "is the admin already" in error(**{**config, "admin": {"identity": proxy}})
    assert "contains a TLS proxy" in error(**{**config, "policy": {"p": {"identities": [proxy]}}})
    old = {
        "tls": config["tls"],
        "admin": None,
        "keystore": None,
        "keys": {"fs": {"path": str(tmp_path / "keys")}},
    }
    assert "contains the admin of '--root'" in error("--root", proxy, **old)
    assert "contradicts" in error("--root", proxy, **old, root=admin)


def test_a_file_of_2021_has_proxies_too(tmp_path: Path) -> None:
    authority = make("p256", ca=True, name="authority")
    (tmp_path / "roots.crt").write_bytes(authority.cert_pem)
    place = place_in(tmp_path, proxy=make(issuer=authority, eku=["client"]))
    alice = make(issuer=authority, eku=["client"])
    proxies = {"identities": [identity(place.proxy), ""], "header": {"cert": HEADER.lower()}}
    config: dict[str, Any] = {
        "admin": None,
        "root": identity(place.admin),
        "tls": {"proxy": proxies},
        "keystore": None,
        "keys": {"fs": {"path": str(tmp_path / "keys")}},
        "policy": {"alice": {"paths": ["/v1/key/create/*"], "identities": [identity(alice)]}},
    }
    environment = {"SSL_CERT_FILE": str(tmp_path / "roots.crt")}  # the system's roots, the only ones of the time
    with start_server(tmp_path, environment=environment, **config) as place.server:
        assert ask(place, "1.1", "/v1/key/create/k", certificate_header(alice), method="POST").status == 200
        assert refusal(ask(place, "1.1", "/v1/key/create/k", method="POST")) == (
            400,
            "no client certificate is present",
        )
        assert ask(place, "1.1", "/version", certificate_header(make())).body == b'{"message":""}'


# --- any text ---


@given(st.text(max_size=300) | st.text(alphabet="%-BEGINCRTFA abc+/=0123456789\n", max_size=300))
def test_any_text_is_bytes_or_a_value_error(text: str) -> None:
    for value in (text, quote(text), f"-----BEGIN CERTIFICATE-----%0A{quote(text)}%0A-----END CERTIFICATE-----"):
        with suppress(ValueError):
            assert isinstance(certificate_in(value), bytes)


@given(st.binary(min_size=1, max_size=2000), st.sampled_from([quote, quote_plus]))
def test_what_is_escaped_or_encoded_comes_out(der: bytes, escape: Any) -> None:
    assert certificate_in(escape(pem.encode("CERTIFICATE", der))) == der
    assert certificate_in(base64.b64encode(der).decode()) == der


def test_a_header_has_a_bound_here_too() -> None:
    with pytest.raises(ValueError, match="more than 65536 characters"):
        certificate_in("A" * (forwarded.LONGEST + 4))


@given(st.text(max_size=60) | st.text(alphabet='0123456789abcdef.:[]%" ', max_size=60))
def test_any_text_is_an_address_or_none(text: str) -> None:
    found = address_in(text)
    assert found is None or address_in(found) == found
    client_address(request_with(forwarded=text, x_forwarded_for=[]))


@given(st.ip_addresses(), st.integers(0, 65535))
def test_addresses_come_out(address: Any, port: int) -> None:
    bracketed = f"[{address}]" if address.version == 6 else str(address)
    plain = address_in(str(address))
    assert plain is not None
    assert address_in(f"{bracketed}:{port}") == plain
    assert client_address(request_with(forwarded=f'for=1.2.3.4, for="{bracketed}:{port}"')) == plain
