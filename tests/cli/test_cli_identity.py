"""`kes identity`: API keys, certificates, and the identities of both."""

import os
import re
import stat
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from keswick import pem
from keswick.identity import APIKey, certificate_for, identity_of
from support.certificates import make
from support.cli import COMMAND, clean_environment, kes, kes_on_terminal

API_KEY = "kes:v1:AAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
IDENTITY = "a050837d85070582ccf7394b0988847cc312cb88259b894899f6f239cf1791a5"
PASSWORD, CONFIRM = "Enter password for private key:", "Confirm password for private key:"


def test_a_new_api_key_is_all_a_program_reads() -> None:
    first, second = kes("identity"), kes("identity")
    assert (first.code, first.stderr) == (0, "")
    assert APIKey.parse(first.stdout).text == first.stdout  # no newline
    assert first.stdout != second.stdout


def test_a_new_api_key_is_explained_to_a_person() -> None:
    code, shown = kes_on_terminal("identity")
    assert code == 0
    key = APIKey.parse(re.search(r"^   (kes:v1:\S+)$", shown, re.MULTILINE)[1])  # type: ignore[index]
    assert f"\n   {key.identity}\n" in shown


def test_the_identity_of_an_api_key() -> None:
    assert kes("identity", API_KEY) == (0, IDENTITY, "")
    assert kes("identity", "of", API_KEY) == (0, IDENTITY, "")
    assert kes_on_terminal("identity", "of", API_KEY) == (0, f"Identity:\n\n   {IDENTITY}\n")


@pytest.mark.parametrize("kind", ["ed25519", "p256", "rsa2048"])
def test_the_identity_of_a_certificate_file(tmp_path: Path, kind: str) -> None:
    pair = make(kind)
    cert, _ = pair.write(tmp_path, chain=[make()])
    assert kes("identity", str(cert)) == kes("identity", "of", str(cert)) == (0, identity_of(pair.public_key_der), "")


def test_the_api_key_of_a_private_key_file(tmp_path: Path) -> None:
    pair = certificate_for(APIKey.parse(API_KEY))
    file = tmp_path / "key"
    file.write_text(pair.key_pem())
    assert kes("identity", str(file)) == (0, API_KEY, "")

    file.write_text(pair.key_pem("open sesame"))
    code, shown = kes_on_terminal("identity", str(file), answers=[(PASSWORD, "open sesame")])
    assert (code, shown) == (0, f"{PASSWORD} \n{API_KEY}\n")
    code, shown = kes_on_terminal("identity", str(file), answers=[(PASSWORD, "wrong")], env={"NO_COLOR": "1"})
    assert (code, shown) == (1, f"{PASSWORD} \nError: incorrect password\n")


def test_new_prints_an_api_key_and_its_identity() -> None:
    result = kes("identity", "new")
    assert result.code == 0
    lines = result.stdout.splitlines()
    key = APIKey.parse(lines[lines.index("Your API key:") + 2].strip())
    assert lines[lines.index("Your Identity:") + 2] == f"   {key.identity}"


def test_new_writes_a_key_and_a_certificate(tmp_path: Path) -> None:
    key, cert = tmp_path / "my.key", tmp_path / "my.crt"
    result = kes(
        *("identity", "new", f"--key={key}", "--cert", str(cert), "my-app"),
        *("--ip", "127.0.0.1,::1", "--dns", "a.example", "--dns", "b.example", "--expiry", "1h30m"),
    )
    assert result.code == 0
    assert f"The generated TLS private key is stored at: {key}\n" in result.stdout
    assert f"The generated TLS certificate is stored at: {cert}\n" in result.stdout
    assert (stat.S_IMODE(key.stat().st_mode), stat.S_IMODE(cert.stat().st_mode)) == (0o600, 0o644)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my.crt", "my.key"]

    load_pem_private_key(key.read_bytes(), None)
    certificate = x509.load_pem_x509_certificate(cert.read_bytes())
    assert certificate.subject.rfc4514_string() == "CN=my-app"
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc == timedelta(minutes=90)
    usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usages) == {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["a.example", "b.example"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    api_key = kes("identity", str(key)).stdout
    assert f"\n   {api_key}\n" in result.stdout
    assert kes("identity", str(cert)).stdout == kes("identity", api_key).stdout


def test_new_overwrites_only_by_force(tmp_path: Path) -> None:
    key, cert = tmp_path / "my.key", tmp_path / "my.crt"
    command = ("identity", "new", "--key", str(key), "--cert", str(cert))
    key.write_text("mine")
    assert kes(*command) == (1, "", "Error: private key already exists. Use --force to overwrite it\n")
    key.rename(cert)
    assert kes(*command) == (1, "", "Error: certificate already exists. Use --force to overwrite it\n")
    assert cert.read_text() == "mine"
    assert not key.exists()
    cert.chmod(0o666)
    assert kes(*command, "-f").code == 0
    assert stat.S_IMODE(key.stat().st_mode) == 0o600


@pytest.mark.parametrize("force", [[], ["--force"]])
@pytest.mark.parametrize("wrong", ["no/my.crt", "folder", "my.key", "./other/../my.key", "link"])
def test_new_loses_no_key_when_the_certificate_cannot_be_written(tmp_path: Path, force: list[str], wrong: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to("my.key")
    if force:
        (tmp_path / "my.key").write_text("mine")
    before = sorted(tmp_path.iterdir())
    for key, cert in (("my.key", wrong), (wrong, "my.key")):
        result = kes("identity", "new", "--key", f"{tmp_path}/{key}", "--cert", f"{tmp_path}/{cert}", *force)
        assert (result.code, result.stdout) == (1, "")
        assert sorted(tmp_path.iterdir()) == before
        assert not force or (tmp_path / "my.key").read_text() == "mine"


def test_an_empty_word_is_no_file() -> None:
    assert kes("identity", "") == (1, "", "Error: no API key or file specified. See 'kes identity --help'\n")


def test_new_encrypts_the_private_key(tmp_path: Path) -> None:
    key, cert = tmp_path / "my.key", tmp_path / "my.crt"
    command = ("identity", "new", "--encrypt", "--key", str(key), "--cert", str(cert))
    code, shown = kes_on_terminal(*command, answers=[(PASSWORD, "a"), (CONFIRM, "b")], env={"NO_COLOR": "1"})
    assert code == 1
    assert "Error: passwords don't match\n" in shown
    assert not key.exists()

    code, shown = kes_on_terminal(*command, answers=[(PASSWORD, "open sesame"), (CONFIRM, "open sesame")])
    assert code == 0
    assert "open sesame" not in shown
    (block,) = pem.blocks(key.read_text())
    assert block.label == "ENCRYPTED PRIVATE KEY"
    assert APIKey.from_private_key(pem.decrypt(block, "open sesame")).text in shown


def test_without_a_terminal_nobody_can_be_asked(tmp_path: Path) -> None:
    command = ["identity", "new", "--encrypt", "--key", str(tmp_path / "k"), "--cert", str(tmp_path / "c")]
    done = subprocess.run(
        [*COMMAND, *command], capture_output=True, env=clean_environment(), preexec_fn=os.setsid, check=False, input=b""
    )
    assert done.returncode == 1
    assert done.stderr == b"Error: a password is needed, and there is no terminal to ask for it\n"


SEE = "See 'kes identity new --help'\n"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("new --key k", f"private key file specified but no certificate file. Set the '--cert' flag. {SEE}"),
        ("new --cert c", f"certificate file specified but no private key file. Set the '--key' flag. {SEE}"),
        *(
            (
                f"new --{flag}",
                f"'--{flag.split()[0]}' requires a private key and certificate file. "
                f"Set the '--cert' and '--key' flag. {SEE}",
            )
            for flag in ("encrypt", "force", "expiry 1h", "ip 1.2.3.4", "dns a")
        ),
        ("new a b", f"too many arguments. {SEE}"),
        ("a b", "too many arguments\n"),
        ("of", "no API key or certificate specified. See 'kes identity of --help'\n"),
        ("of a b", "too many arguments. See 'kes identity of --help'\n"),
        ("no.file", "open no.file: no such file or directory\n"),
        ("of nofile", "open nofile: no such file or directory\n"),
        ("foo", "\"foo\" is not an identity command or a file. See 'kes identity --help'\n"),
        ("nwe", "\"nwe\" is not an identity command or a file. Did you mean 'new'? See 'kes identity --help'\n"),
        ("kes:v1:AAAA", "kes: invalid API key: invalid length\n"),
        (
            "AAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f",
            "an API key begins with 'kes:v1:'; without that it is taken for a file\n",
        ),
    ],
)
def test_what_is_wrong_is_said(arguments: str, error: str) -> None:
    assert kes("identity", *arguments.split()) == (1, "", f"Error: {error}")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("--expiry 5", 'invalid argument "5" for "--expiry" flag: a duration needs a unit'),
        ("--expiry -1h", 'invalid argument "-1h" for "--expiry" flag: a certificate is valid for a second at least'),
        ("--expiry 1000000h --ip x", "'x' does not appear to be an IPv4 or IPv6 address"),
        ("--dns ,", "'' is not a DNS name"),
        ("--dns a_b,a..b", "'a..b' is not a DNS name"),
        (f"{'x' * 65}", "a certificate's subject has 1 to 64 characters"),
    ],
)
def test_what_cannot_be_in_a_certificate_is_said(tmp_path: Path, arguments: str, error: str) -> None:
    result = kes("identity", "new", "--key", str(tmp_path / "k"), "--cert", str(tmp_path / "c"), *arguments.split())
    assert (result.code, result.stdout) == (1, "")
    assert error in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "command", "error"),
    [
        ("nothing", [], "'{}' contains no valid PEM certificate or private key"),
        ("nothing", ["of"], "failed to parse certificate in '{}': no PEM certificate found"),
        ("key", ["of"], "failed to parse certificate in '{}': unsupported PEM data block"),
        ("p256", [], "'{}' contains unsupported private key. Only ed25519 private keys are supported"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", [], "failed to parse certificate in '{}': "),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n", [], "'{}': a PEM block is broken or has no end"),
    ],
)
def test_files_of_the_wrong_kind(tmp_path: Path, content: str, command: list[str], error: str) -> None:
    file = tmp_path / "file"
    contents = {"key": make().key_pem.decode(), "p256": make("p256").key_pem.decode()}
    file.write_text(contents.get(content, content))
    result = kes("identity", *command, str(file))
    assert (result.code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: " + error.format(file))


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    gone = tmp_path / "gone" / "k"
    result = kes("identity", "new", "--key", str(gone), "--cert", str(tmp_path / "c"))
    assert result == (1, "", f"Error: {gone}: No such file or directory\n")
