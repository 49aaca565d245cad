"""Each failure between a client and a server, provoked for real."""

import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from keswick.client import APIError
from keswick.doctor import FAILED, OK, WARNING, Finding, examine
from keswick.doctor.running import checks
from keswick.identity import APIKey
from support.certificates import make
from support.fake_server import Answer, fake_server
from support.server import RunningServer, start_server

APP, STRANGER = APIKey.generate(), APIKey.generate()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    policy = {
        "allow": ["/v1/key/create/my-*", "/v1/key/generate/*", "/v1/ready"],
        "deny": ["/v1/key/generate/secret*"],
        "identities": [APP.identity],
    }
    with start_server(tmp_path_factory.mktemp("server"), policy={"my-app": policy}) as server:
        yield server


def found(environment: Mapping[str, str], path: str | None = None) -> list[Finding]:
    return list(examine(checks(environment, path=path)))


def of(check: str, findings: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.result, finding.text) for finding in findings if finding.check == check]


def bad(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.check, finding.text) for finding in findings if finding.result == FAILED]


def test_the_admin_and_a_server_that_is_as_it_should_be(server: RunningServer) -> None:
    findings = found(server.environment)
    assert bad(findings) == []
    identity = APIKey.parse(server.api_key).identity
    assert of("server identity", findings) == [(OK, f"the server takes this client for the admin, {identity}")]
    assert of("server rights", findings) == [(OK, "the admin may call everything")]
    certificate = [text for _, text in of("server certificate", findings)]
    assert certificate[0] == "it is CN=localhost, for localhost, 127.0.0.1, ::1"
    assert certificate[-1] == f"it is trusted, with KES_CA_FILE ('{server.ca_file}')"
    assert of("server ready", findings)[0][0] == of("server status", findings)[0][0] == OK
    assert not any(server.api_key in finding.text for finding in findings)


def test_an_application_and_its_policy(server: RunningServer) -> None:
    findings = found({**server.environment, "KES_API_KEY": APP.text})
    assert bad(findings) == []
    texts = [text for _, text in of("server rights", findings)]
    assert (
        "this client may call /v1/key/generate/NAME, by '/v1/key/generate/*', but not '/v1/key/generate/secret*'"
        in texts
    )
    assert "this client may call /v1/key/create/NAME for some names, by '/v1/key/create/my-*'" in texts
    assert "this client may call /v1/ready, by '/v1/ready'" in texts
    assert of("server status", findings) == [(OK, "this client may not ask how it is ('/v1/status')")]


@pytest.mark.parametrize(
    ("path", "result", "text"),
    [
        ("/v1/key/create/my-key", OK, "the policy 'my-app' allows '/v1/key/create/my-*'"),
        ("/v1/key/create/key", FAILED, "no rule of the policy 'my-app' matches it"),
        ("/v1/key/generate/secret", FAILED, "the policy 'my-app' denies '/v1/key/generate/secret*'"),
    ],
)
def test_a_path(server: RunningServer, path: str, result: str, text: str) -> None:
    findings = found({**server.environment, "KES_API_KEY": APP.text}, path)
    ((found_result, found_text),) = of("server rights", findings)
    assert found_result == result
    assert text in found_text


def test_a_client_without_a_policy(server: RunningServer) -> None:
    ((check, text),) = bad(found({**server.environment, "KES_API_KEY": STRANGER.text}))
    assert check == "server identity"
    assert f"takes this client for {STRANGER.identity}, which has no policy" in text


# --- who the client is ---


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "neither KES_API_KEY nor KES_CLIENT_CERT is set"),
        ({"KES_API_KEY": "kes:v1:AAAA"}, "KES_API_KEY: kes: invalid API key: invalid length"),
        ({"KES_API_KEY": APP.text, "KES_CLIENT_CERT": "x"}, "KES_API_KEY and KES_CLIENT_CERT are both set"),
        ({"KES_CLIENT_KEY": "x"}, "KES_CLIENT_KEY is set, and KES_CLIENT_CERT is not"),
        ({"MINIO_KES_CERT_FILE": "x"}, "MINIO_KES_CERT_FILE is set, and KES_CLIENT_KEY is not"),
        ({"KES_CLIENT_KEY": "absent", "KES_CLIENT_CERT": "absent"}, "absent: No such file"),
    ],
)
def test_credentials(server: RunningServer, settings: dict[str, str], text: str) -> None:
    environment = {"KES_SERVER": server.endpoint, "KES_CA_FILE": str(server.ca_file), **settings}
    findings = found(environment)
    ((result, found_text),) = of("client", findings)
    assert result == FAILED
    assert text in found_text
    assert of("server certificate", findings)[-1][0] == OK  # which does not depend on it
    assert not any(APP.text in finding.text for finding in findings)


def test_certificates_of_clients(server: RunningServer, tmp_path: Path) -> None:
    def certificate(**options: object) -> list[Finding]:
        cert, key = make("p256", **options).write(tmp_path)  # type: ignore[arg-type]
        environment = {
            **server.environment,
            "KES_API_KEY": "",
            "KES_CLIENT_KEY": str(key),
            "KES_CLIENT_CERT": str(cert),
        }
        return [finding for finding in found(environment) if finding.check == "client certificate"]

    assert {finding.result for finding in certificate(days=(-1, 90), eku=["client"])} == {OK}
    assert {finding.result for finding in certificate(days=(-1, 90))} == {OK}
    assert any("expired on" in finding.text for finding in certificate(days=(-30, -1)))
    assert any("CA:FALSE" in finding.text for finding in certificate(ca=True))
    (warned,) = (finding for finding in certificate(days=(-1, 90), eku=["server"]) if finding.result == WARNING)
    assert "has no clientAuth" in warned.text


def test_a_key_of_another_certificate(server: RunningServer, tmp_path: Path) -> None:
    cert, _ = make("p256").write(tmp_path, "one")
    _, key = make("p256").write(tmp_path, "other")
    findings = found({"KES_SERVER": server.endpoint, "KES_CLIENT_KEY": str(key), "KES_CLIENT_CERT": str(cert)})
    assert of("client", findings)[0][0] == FAILED


# --- where the server is ---


def test_a_name_without_an_address(server: RunningServer) -> None:
    findings = found({**server.environment, "KES_SERVER": "no-such-host.invalid:7373"})
    ((check, text),) = bad(findings)
    assert check == "server name"
    assert "no-such-host.invalid has no address" in text


def test_what_is_no_endpoint(server: RunningServer) -> None:
    ((check, text),) = bad(found({**server.environment, "KES_SERVER": "https://a/b"}))
    assert check == "server"
    assert "KES_SERVER: 'https://a/b' is not an endpoint" in text


def test_nobody_listens(server: RunningServer) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        findings = found({**server.environment, "KES_SERVER": f"127.0.0.1:{taken.getsockname()[1]}"})
    ((check, text),) = bad(findings)
    assert check == "server connection"
    assert "Connection refused; does a server run there" in text


def test_one_of_two_servers(server: RunningServer) -> None:
    findings = found({**server.environment, "KES_SERVER": f"127.0.0.1:1,{server.endpoint}"})
    assert [check for check, _ in bad(findings)] == ["https://127.0.0.1:1 connection"]
    assert of(f"{server.endpoint} ready", findings)[0][0] == OK


# --- whether it can be trusted ---


def test_another_authority(server: RunningServer, tmp_path: Path) -> None:
    other, _ = make("p256", name="another", ca=True).write(tmp_path)
    findings = found({**server.environment, "KES_CA_FILE": str(other)})
    ((check, text),) = bad(findings)
    assert check == "server certificate"
    assert f"it is not trusted with KES_CA_FILE ('{other}') (it is not issued by a trusted authority): set" in text
    assert of("server ready", findings)[0][0] == OK  # what follows is told nevertheless


def test_no_certificate_to_trust(server: RunningServer, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("")
    findings = found({**server.environment, "KES_CA_FILE": str(tmp_path / "empty")})
    assert "trust" in [check for check, _ in bad(findings)]
    findings = found({**server.environment, "KES_CA_FILE": str(tmp_path / "absent")})
    assert any(check == "trust" and "No such file" in text for check, text in bad(findings))
    assert not any("Errno" in text for _, text in bad(findings))


def environment_of(endpoint: str, ca_file: Path) -> dict[str, str]:
    return {"KES_SERVER": endpoint, "KES_CA_FILE": str(ca_file), "KES_API_KEY": APP.text}


def reply(method: str, path: str) -> Answer:
    """A server that hardly says anything."""
    body = b'{"version":"v9"}' if path == "/version" else b'{"identity":"' + APP.identity.encode() + b'"}'
    return Answer(body=body)


def test_the_certificate_is_for_other_names(tmp_path: Path) -> None:
    with fake_server(tmp_path, reply, sans=("kes.example.com",)) as fake:
        findings = bad(found(environment_of(fake.endpoint, fake.ca_file)))
    texts = [text for check, text in findings if "cert" in check or "version" in check]
    advice = "call the server by one of these names, or make a certificate with '127.0.0.1' in its subjectAltName"
    assert texts == [f"it is not for '127.0.0.1', and clients refuse it: {advice}"]


def test_the_certificate_has_no_names(tmp_path: Path) -> None:
    with fake_server(tmp_path, reply, sans=()) as fake:
        texts = [text for check, text in bad(found(environment_of(fake.endpoint, fake.ca_file))) if "cert" in check]
    assert any("make one with '127.0.0.1' in its subjectAltName" in text for text in texts)


def test_the_certificate_has_expired(tmp_path: Path) -> None:
    with fake_server(tmp_path, reply, days=(-30, -1)) as fake:
        findings = found(environment_of(fake.endpoint, fake.ca_file))
    texts = [text for check, text in bad(findings) if check == "server certificate"]
    assert any("it expired on" in text for text in texts)
    assert of("server version", findings)[0] == (OK, "it is v9")


def test_a_server_without_tls(server: RunningServer) -> None:
    import threading

    def answer(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(1)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, args=(listener,))
        thread.start()
        try:
            findings = found({**server.environment, "KES_SERVER": f"127.0.0.1:{listener.getsockname()[1]}"})
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
    ((check, text),) = bad(findings)
    assert check == "server certificate"
    assert "TLS" in text


# --- what the server says ---


def test_a_key_store_that_is_away(tmp_path: Path) -> None:
    with start_server(tmp_path) as server:
        (tmp_path / "keys").rename(tmp_path / "gone")
        with server.client() as client, pytest.raises(APIError):
            client.create_key("lost")  # so that the server knows it
        checks_failed = [check for check, _ in bad(found(server.environment))]
    assert checks_failed == ["server ready", "server status"]


def test_a_server_that_is_none_of_ours(tmp_path: Path) -> None:
    with fake_server(tmp_path, lambda method, path: Answer(404, b"no", "text/plain")) as fake:
        findings = found(environment_of(fake.endpoint, fake.ca_file))
    assert [check for check, _ in bad(findings)] == ["server version"]
