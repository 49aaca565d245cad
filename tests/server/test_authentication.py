"""Who is let in: certificates of every kind at a running server, verified and not."""

import http.client
import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.api import Caller
from support.certificates import KINDS, make
from support.server import RunningServer, start_server

REQUIRED = "tls: client certificate is required"
SEVERAL = "tls: received more than one client certificate"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Demands certificates and verifies none."""
    with start_server(tmp_path_factory.mktemp("unverified")) as server:
        yield server


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("days", [(-1, 30), (-30, -1), (10, 30)], ids=["valid", "expired", "not yet valid"])
def test_an_identity_is_its_key_whatever_the_certificate_says(
    server: RunningServer, tmp_path: Path, kind: str, days: tuple[float, float]
) -> None:
    caller = Caller(server.port, make(kind, days=days, eku=["server"]), tmp_path)
    assert caller.call("GET", "/v1/identity/self/describe").json["identity"] == caller.identity


def test_no_certificate_is_refused_in_the_handshake(server: RunningServer, tmp_path: Path) -> None:
    caller = Caller(server.port, None, tmp_path)
    with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
        caller.call("GET", "/version")
    server.wait_for("tls: handshake error from 127.0.0.1", stream="stderr")


def test_a_lone_authority_is_nobody_but_may_ask_for_the_version(server: RunningServer, tmp_path: Path) -> None:
    caller = Caller(server.port, make("p256", ca=True), tmp_path)
    assert caller.call("GET", "/version").status == 200
    answer = caller.call("GET", "/v1/identity/self/describe")
    assert (answer.status, answer.message) == (400, REQUIRED)


def test_two_certificates_are_one_too_many(server: RunningServer, tmp_path: Path) -> None:
    caller = Caller(server.port, make(), tmp_path, chain=(make(),))
    answer = caller.call("GET", "/v1/status")
    assert (answer.status, answer.message) == (400, SEVERAL)
    assert caller.call("GET", "/version").status == 200


def test_a_certificate_with_its_authority_is_fine(server: RunningServer, tmp_path: Path) -> None:
    authority = make("p256", ca=True, name="authority")
    leaf = make("p256", issuer=authority)
    caller = Caller(server.port, leaf, tmp_path, chain=(authority,))
    assert caller.call("GET", "/v1/identity/self/describe").json["identity"] == caller.identity


def test_verification_asks_for_chain_dates_and_usage(tmp_path: Path) -> None:
    authority, other = (make("p256", ca=True, name=name) for name in ("authority", "other"))
    (tmp_path / "ca.crt").write_bytes(authority.cert_pem)
    with start_server(tmp_path, tls={"ca": str(tmp_path / "ca.crt"), "auth": "on"}) as server:
        for good in (
            make(issuer=authority, eku=["client"]),
            make(issuer=authority),
            make(issuer=authority, eku=["any"]),
        ):
            assert Caller(server.port, good, tmp_path).call("GET", "/version").status == 200
        for bad in (
            make(),
            make(issuer=other, eku=["client"]),
            make(issuer=authority, eku=["client"], days=(-30, -1)),
            make(issuer=authority, eku=["server"]),
        ):
            with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
                Caller(server.port, bad, tmp_path).call("GET", "/version")


def test_skip_auth_opens_its_route_alone(tmp_path: Path) -> None:
    config: dict[str, Any] = {"api": {"/v1/ready": {"skip_auth": True}, "/v1/status": {"timeout": "3s"}}}
    with start_server(tmp_path, **config) as server:
        nobody = Caller(server.port, None, tmp_path)
        assert nobody.call("GET", "/v1/ready").status == 200
        assert nobody.call("GET", "/version").status == 200
        answer = nobody.call("GET", "/v1/status")
        assert (answer.status, answer.message) == (400, REQUIRED)
        done = Caller(server.port, make(), tmp_path).call("GET", "/v1/api")
        assert done.status == 403


def test_a_timeout_of_the_configuration_shows_in_the_list_of_routes(tmp_path: Path) -> None:
    pair = make()
    identity = Caller(0, pair, tmp_path).identity
    config: dict[str, Any] = {"admin": {"identity": identity}, "api": {"/v1/status": {"timeout": "3s"}}}
    with start_server(tmp_path, **config) as server:
        listed = Caller(server.port, pair, tmp_path).call("GET", "/v1/api").json
    assert {"method": "GET", "path": "/v1/status", "max_body": 0, "timeout": 3} in listed


@pytest.mark.parametrize("admin", ["_", "disabled"])
def test_the_admin_can_be_disabled(tmp_path: Path, admin: str) -> None:
    pair = make()
    user = Caller(0, pair, tmp_path).identity
    policy = {"p": {"allow": ["/v1/identity/*"], "identities": [user]}}
    with start_server(tmp_path, admin={"identity": admin}, policy=policy) as server:
        assert "<disabled>" in server.line("Admin")
        caller = Caller(server.port, pair, tmp_path)
        assert admin in caller.call("GET", "/v1/identity/list/").json["identities"]
        assert caller.call("GET", "/v1/status").status == 403


def test_a_hundred_thousand_identities(tmp_path: Path) -> None:
    pair = make()
    user = Caller(0, pair, tmp_path).identity
    identities = [f"{number:064x}" for number in range(100_000)]
    config: dict[str, Any] = {"policy": {"p": {"allow": ["/v1/identity/*"], "identities": [*identities, user]}}}
    with start_server(tmp_path, **config) as server:
        caller = Caller(server.port, pair, tmp_path)
        listed = json.loads(caller.call("GET", "/v1/identity/list/").body)["identities"]
        assert len(listed) == 100_002
