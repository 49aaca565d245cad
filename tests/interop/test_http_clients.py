"""Real clients at a running server: curl over HTTP/1.1 and HTTP/2, and httpx over HTTP/2."""

import json
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from keswick.identity import APIKey, certificate_for
from support.server import RunningServer, start_server

CURL_VERSIONS = ("--http1.1", "--http2")


@dataclass
class Files:
    server: RunningServer
    cert: Path
    key: Path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Files]:
    """A server with a key, and the admin's API key as the files that such clients want."""
    folder = tmp_path_factory.mktemp("clients")
    with start_server(folder, keys=[{"name": "my-key"}]) as server:
        pair = certificate_for(APIKey.parse(server.api_key))
        cert, key = folder / "admin.crt", folder / "admin.key"
        cert.write_text(pair.certificate_pem)
        key.write_text(pair.key_pem())
        yield Files(server, cert, key)


def curl(files: Files, *arguments: str, body: bytes | None = None) -> tuple[int, bytes]:
    """Status and body of one call. What curl itself complains about fails the test."""
    data = [] if body is None else ["--data-binary", "@-"]
    trust = ["--cacert", str(files.server.ca_file), "--cert", str(files.cert), "--key", str(files.key)]
    done = subprocess.run(
        ["curl", "--silent", "--show-error", *trust, "--write-out", "\n%{http_code}", *data, *arguments],
        input=body,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    reply, _, status = done.stdout.rpartition(b"\n")
    return int(status), reply


@pytest.mark.parametrize("version", CURL_VERSIONS)
def test_curl_makes_a_data_key_and_opens_it(files: Files, version: str) -> None:
    url = f"{files.server.endpoint}/v1/key"
    status, made = curl(files, version, "-X", "PUT", f"{url}/generate/my-key", body=b"{}")
    assert status == 200
    data_key = json.loads(made)
    sealed = json.dumps({"ciphertext": data_key["ciphertext"]}).encode()
    status, opened = curl(files, version, "-X", "PUT", f"{url}/decrypt/my-key", body=sealed)
    assert (status, json.loads(opened)) == (200, {"plaintext": data_key["plaintext"]})


@pytest.mark.parametrize("version", CURL_VERSIONS)
@pytest.mark.parametrize("tls", ["--tlsv1.2", "--tlsv1.3"])
def test_curl_over_both_versions_of_tls(files: Files, version: str, tls: str) -> None:
    status, _ = curl(files, version, tls, "--tls-max", tls[-3:], f"{files.server.endpoint}/v1/ready")
    assert status == 200


@pytest.mark.parametrize("version", CURL_VERSIONS)
@pytest.mark.parametrize("size", [1_000_001, 2_000_000, 20_000_000])
def test_curl_reads_the_refusal_of_an_oversize_body(files: Files, version: str, size: int) -> None:
    body = b'{"plaintext":"' + b"A" * size + b'"}'
    status, reply = curl(files, version, "-X", "PUT", f"{files.server.endpoint}/v1/key/encrypt/my-key", body=body)
    assert (status, json.loads(reply)) == (400, {"message": "invalid request body"})


@pytest.mark.parametrize("version", CURL_VERSIONS)
def test_what_follows_a_whole_value_does_not_matter(files: Files, version: str) -> None:
    body = b'{"plaintext":"aGk="}' + b" " * 1_500_000
    status, _ = curl(files, version, "-X", "PUT", f"{files.server.endpoint}/v1/key/encrypt/my-key", body=body)
    assert status == 200


@pytest.mark.parametrize("version", CURL_VERSIONS)
def test_a_body_where_none_belongs_fails_nothing(files: Files, version: str) -> None:
    url = f"{files.server.endpoint}/v1/key"
    name = "with-a-body" + version.replace(".", "")
    for status in (200, 400):  # made, and made already
        assert curl(files, version, "-X", "PUT", f"{url}/create/{name}", body=b"x" * 300_000)[0] == status


@pytest.mark.parametrize("size", [700_000, 800_000])
def test_the_largest_plaintext(files: Files, size: int) -> None:
    """Base64 must fit into a megabyte: 700,000 bytes do, 800,000 do not."""
    body = b'{"plaintext":"' + b"QUJD" * (size // 3) + b'"}'
    status, _ = curl(files, "-X", "PUT", f"{files.server.endpoint}/v1/key/encrypt/my-key", body=body)
    assert status == (200 if size == 700_000 else 400)


def test_httpx_over_http2_with_many_requests_at_once(files: Files) -> None:
    context = ssl.create_default_context(cafile=str(files.server.ca_file))
    context.load_cert_chain(files.cert, files.key)
    with httpx.Client(http1=False, http2=True, verify=context, base_url=files.server.endpoint, timeout=30) as client:
        for _ in range(50):
            made = client.put("/v1/key/generate/my-key", json={"context": "aGk="})
            assert (made.status_code, made.http_version) == (200, "HTTP/2")
            sealed = {"ciphertext": made.json()["ciphertext"], "context": "aGk="}
            opened = client.put("/v1/key/decrypt/my-key", json=sealed)
            assert opened.json() == {"plaintext": made.json()["plaintext"]}
