"""How a command finds its server and shows itself, and how it fails."""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from keswick.identity import APIKey, certificate_for
from support.certificates import make
from support.cli import COMMAND, clean_environment, kes, kes_on_terminal
from support.fake_server import Answer, fake_server

API_KEY = APIKey.generate()
ONE_KEY = Answer(body=b'{"names":["a"]}')


@pytest.mark.parametrize("name", ["MINIO_KES_SERVER", "KES_SERVER", "MINIO_KMS_KES_ENDPOINT"])
@pytest.mark.parametrize("key_name", ["MINIO_KES_API_KEY", "KES_API_KEY", "MINIO_KMS_KES_API_KEY"])
def test_endpoint_and_api_key_by_every_name(tmp_path: Path, name: str, key_name: str) -> None:
    with fake_server(tmp_path, lambda *_: ONE_KEY) as server:
        environment = {name: server.endpoint, key_name: API_KEY.text, "KES_CA_FILE": str(server.ca_file)}
        assert kes("key", "ls", env=environment) == (0, "Key\na\n", "")


@pytest.mark.parametrize(
    ("key_name", "cert_name"),
    [
        ("MINIO_KES_KEY_FILE", "MINIO_KES_CERT_FILE"),
        ("KES_CLIENT_KEY", "KES_CLIENT_CERT"),
        ("MINIO_KES_CLIENT_KEY", "MINIO_KES_CLIENT_CERT"),
        ("KES_CLIENT_TLS_KEY_FILE", "KES_CLIENT_TLS_CERT_FILE"),
    ],
)
def test_certificate_and_key_by_every_name(tmp_path: Path, key_name: str, cert_name: str) -> None:
    cert, key = make(name="client").write(tmp_path, "client")
    with fake_server(tmp_path, lambda *_: ONE_KEY, client_ca=cert) as server:
        environment = {"KES_SERVER": server.endpoint, key_name: str(key), cert_name: str(cert)}
        assert kes("key", "ls", env={**environment, "KES_CA_FILE": str(server.ca_file)}).code == 0
        assert kes("key", "ls", env={**environment, "SSL_CERT_FILE": str(server.ca_file)}).code == 0
        assert kes("key", "ls", "-k", env=environment).code == 0


def test_the_first_variable_that_is_set_counts() -> None:
    environment = {"MINIO_KES_API_KEY": "", "KES_API_KEY": API_KEY.text}
    assert kes("key", "ls", env=environment).stderr == ("Error: no API key specified. Consider setting KES_API_KEY\n")


@pytest.mark.parametrize(
    ("environment", "error"),
    [
        ({}, "no API key specified. Consider setting KES_API_KEY"),
        (
            {"KES_API_KEY": API_KEY.text, "KES_CLIENT_KEY": "k", "KES_CLIENT_CERT": "c"},
            "API key and private key file cannot be used at the same time",
        ),
        (
            {"KES_API_KEY": API_KEY.text, "KES_CLIENT_CERT": "c"},
            "API key and certificate file cannot be used at the same time",
        ),
        ({"KES_CLIENT_KEY": "k"}, "no certificate file specified. Consider setting KES_CLIENT_CERT"),
        ({"KES_CLIENT_CERT": "c"}, "no private key file specified. Consider setting KES_CLIENT_KEY"),
        ({"KES_API_KEY": "kes:v1:AAAA"}, "parsing API key: kes: invalid API key: invalid length"),
        ({"KES_CLIENT_KEY": "no-k", "KES_CLIENT_CERT": "no-c"}, "KES_CLIENT_CERT: no-c: No such file or directory"),
        (
            {"KES_API_KEY": "", "MINIO_KES_KEY_FILE": "no-k", "KES_CLIENT_CERT": "{cert}"},
            "MINIO_KES_KEY_FILE: no-k: No such file or directory",
        ),
        ({"KES_API_KEY": API_KEY.text, "KES_CA_FILE": "./no-ca"}, "KES_CA_FILE: ./no-ca: No such file or directory"),
        ({"KES_API_KEY": API_KEY.text, "KES_SERVER": ","}, "no endpoint given"),
        (
            {"KES_API_KEY": API_KEY.text, "KES_SERVER": "ftp://x"},
            "'ftp://x' is not an endpoint such as https://127.0.0.1:7373",
        ),
    ],
)
def test_settings_that_do_not_do(tmp_path: Path, environment: Mapping[str, str], error: str) -> None:
    cert, _ = make().write(tmp_path)
    environment = {name: value.format(cert=cert) for name, value in environment.items()}
    assert kes("key", "ls", env=environment) == (1, "", f"Error: {error}\n")


@pytest.mark.parametrize("form", ["PKCS#8", "RFC 1423"])
def test_an_encrypted_key_asks_on_the_terminal(tmp_path: Path, form: str) -> None:
    cert, key = tmp_path / "client.crt", tmp_path / "client.key"
    if form == "PKCS#8":
        pair = certificate_for(API_KEY)
        cert.write_text(pair.certificate_pem)
        key.write_text(pair.key_pem("open sesame"))
    else:
        made = make("p256")
        cert = made.write(tmp_path, "made")[0]
        private_key = load_pem_private_key(made.key_pem, None)
        key.write_bytes(
            private_key.private_bytes(
                Encoding.PEM, PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(b"open sesame")
            )
        )
        assert "Proc-Type: 4,ENCRYPTED" in key.read_text()
    prompt = "Enter password for private key:"
    with fake_server(tmp_path, lambda *_: ONE_KEY, client_ca=cert) as server:
        environment = {
            "KES_SERVER": server.endpoint,
            "KES_CA_FILE": str(server.ca_file),
            "KES_CLIENT_KEY": str(key),
            "KES_CLIENT_CERT": str(cert),
            "NO_COLOR": "1",
        }
        code, shown = kes_on_terminal("key", "ls", env=environment, answers=[(prompt, "open sesame")])
        assert (code, shown) == (0, f"{prompt} \nKey\na\n")
        twice = {**environment, "KES_SERVER": f"{server.endpoint},{server.endpoint}"}
        code, shown = kes_on_terminal("status", "--short", env=twice, answers=[(prompt, "open sesame")])
        assert (code, shown.count(prompt)) == (0, 1)
        code, shown = kes_on_terminal("key", "ls", env=environment, answers=[(prompt, "wrong")])
        assert (code, shown) == (1, f"{prompt} \nError: incorrect password\n")
        code, shown = kes_on_terminal("key", "ls", env=environment, answers=[(prompt, "\x03")])
        assert code == 1
        assert "Traceback" not in shown


def test_a_folder_of_certificates_to_trust(tmp_path: Path) -> None:
    folder = tmp_path / "trusted"
    folder.mkdir()
    with fake_server(tmp_path, lambda *_: ONE_KEY) as server:
        (folder / "ca.pem").write_text(server.ca_file.read_text())
        subprocess.run(["openssl", "rehash", str(folder)], check=True)
        environment = {"KES_SERVER": server.endpoint, "KES_API_KEY": API_KEY.text, "KES_CA_FILE": str(folder)}
        assert kes("key", "ls", env=environment) == (0, "Key\na\n", "")


def test_no_server() -> None:
    environment = {"KES_SERVER": "127.0.0.1:1", "KES_API_KEY": API_KEY.text}
    assert kes("key", "create", "k", env=environment) == (
        1,
        "",
        'Error: failed to create key "k": cannot connect to https://127.0.0.1:1: connection refused; '
        "does a server run there?\n",
    )


def test_a_server_with_another_name_or_unknown(tmp_path: Path) -> None:
    with fake_server(tmp_path, lambda *_: ONE_KEY, sans=("example.com",)) as server:
        environment = {"KES_SERVER": server.endpoint, "KES_API_KEY": API_KEY.text}
        unknown = kes("ls", env=environment)
        assert (unknown.code, unknown.stdout) == (1, "")
        assert "is not trusted" in unknown.stderr
        assert "set KES_CA_FILE" in unknown.stderr
        mismatch = kes("ls", env={**environment, "KES_CA_FILE": str(server.ca_file)})
        assert "is not valid for '127.0.0.1'" in mismatch.stderr
        for kind in ("rsa2048", "p256"):
            make(kind, sans=["example.com"]).write(tmp_path, "other")  # of the same name
            other = kes("ls", env={**environment, "KES_CA_FILE": str(tmp_path / "other.crt")})
            assert "is not issued by a trusted authority, though one of the same name is trusted)" in other.stderr
        assert kes("ls", "-k", env=environment).code == 0


def test_several_endpoints_are_tried_in_turn(tmp_path: Path) -> None:
    with fake_server(tmp_path, lambda *_: ONE_KEY) as server:
        environment = {"KES_SERVER": f"127.0.0.1:1,{server.endpoint}", "KES_API_KEY": API_KEY.text}
        assert kes("ls", env={**environment, "KES_CA_FILE": str(server.ca_file)}) == (0, "Key\na\n", "")


@pytest.mark.parametrize(
    ("command", "message", "error"),
    [
        ("key ls", "failed to list keys", "failed to list keys"),
        ("key create q", "failed to create key", 'failed to create key "q"'),
        ("key create q", "failed to create keys", 'failed to create key "q": failed to create keys'),
    ],
)
def test_what_the_server_repeats_is_said_once(tmp_path: Path, command: str, message: str, error: str) -> None:
    answer = Answer(502, json.dumps({"message": message}).encode())
    with fake_server(tmp_path, lambda *_: answer) as server:
        environment = {"KES_SERVER": server.endpoint, "KES_API_KEY": API_KEY.text, "KES_CA_FILE": str(server.ca_file)}
        assert kes(*command.split(), env=environment) == (1, "", f"Error: {error}\n")


def test_who_shows_the_certificate_of_an_authority_is_told_what_a_client_needs(tmp_path: Path) -> None:
    answer = Answer(400, b'{"message":"tls: client certificate is required"}')
    with fake_server(tmp_path, lambda *_: answer) as server:
        environment = {"KES_SERVER": server.endpoint, "KES_API_KEY": API_KEY.text, "KES_CA_FILE": str(server.ca_file)}
        assert kes("key", "ls", env=environment).stderr.startswith(
            "Error: failed to list keys: tls: client certificate is required; give an API key, or a certificate"
        )


def test_an_interrupt_ends_a_request_without_a_word() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        environment = {"KES_SERVER": f"127.0.0.1:{listener.getsockname()[1]}", "KES_API_KEY": API_KEY.text}
        process = subprocess.Popen(
            [*COMMAND, "key", "ls"], env=clean_environment(environment), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        connection, _ = listener.accept()
        with connection:
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=30) == (b"", b"")
        assert process.returncode == 1


@pytest.mark.parametrize("arguments", [("identity",), ("identity", "new"), ("--version",)])
def test_a_reader_that_has_gone_is_no_error_to_talk_about(arguments: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [*COMMAND, *arguments], stdout=writer, stderr=subprocess.PIPE, env=clean_environment(), check=False
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("arguments", [("identity",), ("identity", "new"), ("--version",)])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_is_an_error(arguments: tuple[str, ...], unbuffered: str) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*COMMAND, *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            env=clean_environment({"PYTHONUNBUFFERED": unbuffered}),
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, b"Error: No space left on device\n")


def test_without_standard_output_a_command_still_works() -> None:
    done = subprocess.run(
        ["bash", "-c", '"$0" -m keswick --version >&-', COMMAND[0]],
        stderr=subprocess.PIPE,
        env=clean_environment(),
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
