"""nginx and HAProxy as HTTP proxies, with the files of deploy/: who is who, over every pair of HTTP versions."""

import json
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from keswick.client import APIError
from keswick.identity import APIKey, certificate_for, identity_of
from support.certificates import KINDS, Pair, make
from support.proxies import HAPROXY, NGINX, Front, behind
from support.transport import wait_until

CLIENTS = [APIKey.generate() for _ in range(12)]
PAIRS = {
    **{kind: make(kind, eku=["client"]) for kind in KINDS},
    "from an authority": make(issuer=make("p256", name="authority", ca=True), eku=["client"]),
}
POLICY = {
    "clients": {
        "allow": ["/v1/key/encrypt/*"],
        "identities": [*(key.identity for key in CLIENTS), *(identity_of(p.public_key_der) for p in PAIRS.values())],
    }
}
NEWER_NGINX = {"listen 443 ssl http2;": "listen 443 ssl;\n        http2 on;"}
"""What the file says for 1.25.1 or newer."""
WAYS = {
    "nginx-http1": (NGINX, "http.conf", {}),
    "nginx-http2": (NGINX, "http.conf", {"proxy_http_version 1.1;": "proxy_http_version 2;", **NEWER_NGINX}),
    "haproxy-http1": (
        HAPROXY,
        "http.cfg",
        {"proxy.pem alpn h2,http/1.1": "proxy.pem alpn http/1.1", "http-reuse safe": "http-reuse always"},
    ),
    "haproxy-http2": (HAPROXY, "http.cfg", {}),
}
"""A proxy, and the HTTP version that it speaks to the servers."""


@pytest.fixture(scope="module", params=WAYS)
def front(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    program, name, changes = WAYS[request.param]
    with behind(
        program,
        name,
        tmp_path_factory.mktemp(request.param),
        servers=2,
        changes=changes,
        policy=POLICY,
        keys=[{"name": "my-key"}],
    ) as front:
        yield front


def test_a_proxy_warns_of_nothing_but_the_older_way_to_write_http2(front: Front) -> None:
    warnings = [line for line in front.proxy.log.splitlines() if "[warn" in line.lower()]
    if "ssl http2;" in front.proxy.config.read_text():
        warnings = [line for line in warnings if 'the "listen ... http2" directive is deprecated' not in line]
    assert warnings == []


@pytest.mark.parametrize("kind", PAIRS)
def test_every_kind_of_certificate_is_who_it_is(front: Front, kind: str) -> None:
    caller = front.caller(PAIRS[kind])
    assert caller.call("GET", "/v1/identity/self/describe").json["identity"] == caller.identity
    assert caller.call("PUT", "/v1/key/encrypt/my-key", {"plaintext": "aGk="}).status == 200
    assert caller.call("PUT", "/v1/key/decrypt/my-key", {"ciphertext": "aGk="}).status == 403


@pytest.mark.parametrize("kind", ["ed25519", "rsa2048"])
@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/2"])
def test_the_largest_body_has_room_beside_the_certificate(front: Front, kind: str, version: str) -> None:
    with http_client(front, PAIRS[kind], version) as client:
        answer = client.put("/v1/key/encrypt/my-key", json={"plaintext": "QUJD" * 230_000})
        assert (answer.status_code, answer.http_version) == (200, version)
        assert len(answer.json()["ciphertext"]) > 900_000
        answer = client.put("/v1/key/encrypt/my-key", json={"plaintext": "QUJD" * 300_000})
        assert (answer.status_code, answer.json()) == (400, {"message": "invalid request body"})


def http_client(front: Front, pair: Pair, version: str) -> httpx.Client:
    context = front.caller(pair).context
    return httpx.Client(
        base_url=front.endpoint, verify=context, http1=version == "HTTP/1.1", http2=version == "HTTP/2", timeout=20
    )


def test_an_api_key_works_as_without_a_proxy(front: Front) -> None:
    for http2 in (True, False):
        with front.client(CLIENTS[0].text, http2=http2) as client:
            assert client.describe_self()[0].identity == CLIENTS[0].identity
            assert client.encrypt("my-key", b"hello")
            with pytest.raises(APIError, match="insufficient permissions"):
                client.generate_key("my-key")


def test_a_client_without_a_certificate_is_told_so_by_the_server(front: Front) -> None:
    nobody = front.caller(None)
    answer = nobody.call("PUT", "/v1/key/encrypt/my-key", {"plaintext": "aGk="})
    assert (answer.status, answer.message) == (400, "tls: client certificate is required")
    assert nobody.call("GET", "/version").status == 200
    assert nobody.call("GET", "/v1/ready").status == 200  # has skip_auth


@pytest.mark.parametrize("sizes", [[64 << 10], [8 << 10] * 8], ids=["one header", "eight headers"])
@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/2"])
def test_headers_of_64_kibibytes_are_refused_and_nobody_else_notices(
    front: Front, version: str, sizes: list[int]
) -> None:
    pair = PAIRS["p256"]
    headers = {f"x-large-{number}": "A" * size for number, size in enumerate(sizes)}
    path = "/v1/identity/self/describe"
    with http_client(front, PAIRS["p384"], version) as other:
        assert other.get(path).status_code == 200
        with http_client(front, pair, version) as client:
            try:
                status = client.get(path, headers=headers).status_code
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                status = 431  # the connection is closed while the header is still being sent
            assert status in (400, 431)
        with http_client(front, pair, version) as client:
            assert client.get(path).json()["identity"] == identity_of(pair.public_key_der)
        assert other.get(path).status_code == 200


def test_what_a_client_sends_under_the_names_of_the_proxy_never_counts(front: Front) -> None:
    admin = certificate_for(front.cluster.api_key).certificate_pem
    forged = {"X_Tls_Client_Cert": quote(admin), "X_Forwarded_For": "6.6.6.6", "Forwarded": "for=6.6.6.6"}
    path = "/v1/key/describe/forged"
    caller = front.caller(PAIRS["ed25519"], source="127.0.0.7")
    assert caller.call("GET", "/v1/identity/self/describe", None, **forged).json["identity"] == caller.identity
    assert caller.call("GET", path, None, **forged).status == 403
    answer = front.caller(None, source="127.0.0.7").call("GET", path, None, **forged)
    assert (answer.status, answer.message) == (400, "tls: client certificate is required")
    wait_until(lambda: len(front.events(path)) == 2)
    assert {event["request"]["ip"] for event in front.events(path)} == {"127.0.0.7"}
    assert {event["request"].get("identity") for event in front.events(path)} == {caller.identity, None}
    assert {event["request"]["via"] for event in front.events(path)} == {front.identity}


def test_thousands_of_requests_of_many_clients_share_connections_and_none_is_taken_for_another(front: Front) -> None:
    def ask_again_and_again(number: int) -> int:
        if number == len(CLIENTS):
            nobody = front.caller(None)
            for _ in range(200):
                answer = nobody.call("GET", "/v1/identity/self/describe")
                assert (answer.status, answer.message) == (400, "tls: client certificate is required")
            return 200
        key = CLIENTS[number]
        with front.client(key.text, http2=number % 2 == 0) as client:
            for _ in range(100):
                assert client.describe_self()[0].identity == key.identity
                with pytest.raises(APIError, match="insufficient permissions"):
                    client.generate_key("my-key")
        return 200

    opened = connections_opened(front)
    with ThreadPoolExecutor(len(CLIENTS) + 1) as pool:
        asked = sum(pool.map(ask_again_and_again, range(len(CLIENTS) + 1)))
    assert asked == 2600
    assert connections_opened(front) - opened < 200  # each of them brought requests of several clients


def connections_opened(front: Front) -> float:
    total = 0.0
    for member in front.cluster.members:
        with member.client() as client:
            total += client.metrics().total("kes_connections_opened")
    return total


@pytest.mark.parametrize("version", ["--tls1_2", "--tls1_3"])
def test_a_resumed_session_keeps_its_certificate(front: Front, version: str) -> None:
    folder = front.proxy.folder
    cert, key = PAIRS["p256"].write(folder, "resuming")
    identity = identity_of(PAIRS["p256"].public_key_der)
    session = folder / f"session{version}"
    request = b"GET /v1/identity/self/describe HTTP/1.1\r\nHost: kes.example.com\r\nConnection: close\r\n\r\n"
    for options in (f"-cert {cert} -key {key} -sess_out {session}", f"-sess_in {session}"):
        command = f"openssl s_client -connect 127.0.0.1:{front.proxy.port} {version[1:]} -ign_eof {options}"
        shown = subprocess.run(command.split(), input=request, capture_output=True, timeout=20, check=False).stdout
        assert f'"identity":"{identity}"'.encode() in shown
    assert b"Reused, TLS" in shown


def test_no_names_of_authorities_keep_a_client_from_showing_its_certificate(front: Front) -> None:
    """Go's clients show none that is not from one of them."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{front.proxy.port}"]
    shown = subprocess.run(command, input=b"", capture_output=True, timeout=20, check=False).stdout
    assert b"No client certificate CA names sent" in shown


@pytest.mark.parametrize(("program", "name"), [(NGINX, "http.conf"), (HAPROXY, "http.cfg")])
def test_servers_that_verify_clients_do_so_behind_a_proxy(program: str, name: str, tmp_path: Path) -> None:
    authority = make("p256", name="authority", ca=True)
    path = "/v1/identity/self/describe"
    with behind(program, name, tmp_path, authority=authority) as front:
        for _ in range(2):  # the second time it is known
            good = front.caller(make("p256", issuer=authority, eku=["client"]))
            assert good.call("GET", path).json["identity"] == good.identity
            expired = front.caller(make("p256", issuer=authority, eku=["client"], days=(-30, -1))).call("GET", path)
            stranger = front.caller(make("p256", eku=["client"])).call("GET", path)
            untrusted = "not authorized: client certificate is not trusted"
            assert (stranger.status, stranger.message) == (403, untrusted)
            if program == NGINX:  # which looks at the time of a certificate by itself
                assert expired.status == 400
                assert b"The SSL certificate error" in expired.body
            else:
                assert (expired.status, expired.message) == (403, untrusted)


SHORT_TIMES = {
    NGINX: {"proxy_read_timeout 20s": "proxy_read_timeout 1s"},
    HAPROXY: {
        "timeout client 90s": "timeout client 1s",
        "timeout server 20s": "timeout server 1s",
        "timeout http-keep-alive 60s": "timeout http-keep-alive 1s",
    },
}
"""All but that for live logs."""


@pytest.mark.parametrize(("program", "name"), [(NGINX, "http.conf"), (HAPROXY, "http.cfg")])
def test_a_live_log_may_say_nothing_for_longer_than_an_answer_may_take(program: str, name: str, tmp_path: Path) -> None:
    with (
        behind(program, name, tmp_path, changes=SHORT_TIMES[program]) as front,
        front.client() as client,
        client.audit_log() as log,
        front.cluster.members[0].client() as direct,
    ):
        assert next(iter(log)).path == "/v1/log/audit"
        time.sleep(2.5)  # nothing can be asked that would tell: it is the silence that is tried
        direct.version()
        assert next(iter(log)).path == "/version"


@pytest.mark.parametrize("http2", [True, False])
def test_a_live_log_arrives_line_by_line(front: Front, http2: bool) -> None:
    with front.client(http2=http2) as client, client.audit_log() as log:
        for number in range(3):
            # It is the log of one of the servers, whichever the proxy chose.
            for member in front.cluster.members:
                with member.client() as direct, pytest.raises(APIError, match="does not exist"):
                    direct.describe_key(f"line-{number}")
            assert any(event.path == f"/v1/key/describe/line-{number}" for event in log)


def test_the_proxy_itself_may_do_nothing(front: Front) -> None:
    """Whoever has its certificate and forwards none is nobody."""
    folder = front.proxy.folder
    url = front.cluster.members[0].server.endpoint + "/v1/key/list/"
    command = f"curl --silent --cacert {front.cluster.ca_file} --cert {folder}/proxy.crt --key {folder}/proxy.key {url}"
    done = subprocess.run(command.split(), capture_output=True, timeout=20, check=True)
    assert json.loads(done.stdout) == {"message": "tls: client certificate is required"}
