"""The words of 2021, and `kes update`."""

import hashlib
import os
import stat
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from keswick.identity import identity_of
from support.certificates import make
from support.cli import COMMAND, Result, clean_environment, kes, kes_on_terminal


def run_in(folder: Path, *arguments: str) -> Result:
    done = subprocess.run(
        [*COMMAND, *arguments], cwd=folder, capture_output=True, env=clean_environment(), text=True, check=False
    )
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("flags", "key", "cert", "usage"),
    [
        ([], "private.key", "public.crt", ExtendedKeyUsageOID.CLIENT_AUTH),
        (["--server"], "private.key", "public.crt", ExtendedKeyUsageOID.SERVER_AUTH),
        (["-key=root.key", "-cert", "root.cert"], "root.key", "root.cert", ExtendedKeyUsageOID.CLIENT_AUTH),
    ],
)
def test_new_is_silent_and_its_files_are_for_their_owner(
    tmp_path: Path, flags: list[str], key: str, cert: str, usage: x509.ObjectIdentifier
) -> None:
    assert run_in(tmp_path, "tool", "identity", "new", *flags, "--ip", "::1", "--dns=a.example", "-t", "2h", "me") == (
        *(0, "", ""),
    )
    assert sorted(os.listdir(tmp_path)) == sorted([key, cert])
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in (key, cert)} == {0o600}
    certificate = x509.load_pem_x509_certificate((tmp_path / cert).read_bytes())
    assert certificate.subject.rfc4514_string() == "CN=me"
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc == timedelta(hours=2)
    assert list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [usage]
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["a.example"]


def test_new_overwrites_by_force_only(tmp_path: Path) -> None:
    command = ("tool", "identity", "new", "--key", "root.key", "--cert", "root.cert")
    (tmp_path / "root.key").write_text("mine")
    exists = 'Error: private key "root.key" already exists: Use --force to overwrite it\n'
    assert run_in(tmp_path, *command) == (1, "", exists)
    (tmp_path / "root.key").rename(tmp_path / "root.cert")
    exists = 'Error: certificate "root.cert" already exists: Use --force to overwrite it\n'
    assert run_in(tmp_path, *command) == (1, "", exists)
    assert run_in(tmp_path, *command, "-f") == (0, "", "")
    assert (tmp_path / "root.cert").read_text().startswith("-----BEGIN CERTIFICATE")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("new a b", "too many arguments. See 'kes tool identity new --help'"),
        (
            "new --key=x --cert=./x",
            "the private key and the certificate need a file each. See 'kes tool identity new --help'",
        ),
        (
            "new -t 5",
            "invalid argument \"5\" for \"--time\" flag: a duration needs a unit, write for example '300s' or '5m'; to "
            "switch off, '0s'. See 'kes tool identity new --help'",
        ),
        (
            "of --hash MD5 x",
            'invalid argument "MD5" for "--hash" flag: it is one of SHA256, SHA384, SHA512. See \'kes tool identity of '
            "--help'",
        ),
        ("of nofile", "open nofile: no such file or directory"),
        ("of", "no certificate specified. See 'kes tool identity of --help'"),
        ("fo", "\"fo\" is not a tool identity command. See 'kes tool identity --help'"),
    ],
)
def test_wrong_calls_are_told(tmp_path: Path, arguments: str, error: str) -> None:
    assert run_in(tmp_path, "tool", "identity", *arguments.split()) == (1, "", f"Error: {error}\n")
    assert list(tmp_path.iterdir()) == []


def test_of_takes_a_file_or_standard_input(tmp_path: Path) -> None:
    pair = make("p256")
    cert, _ = pair.write(tmp_path)
    identity = identity_of(pair.public_key_der)
    assert kes("tool", "identity", "of", str(cert)) == (0, identity, "")
    for arguments in ([], ["-"], ["--hash", "SHA-256"], ["-hash=sha256", "-"]):
        assert kes("tool", "identity", "of", *arguments, stdin=cert.read_bytes()) == (0, identity, "")
    for name in ("SHA384", "SHA512"):
        expected = hashlib.new(name, pair.public_key_der).hexdigest()
        assert kes("tool", "identity", "of", "--hash", name, str(cert)) == (0, expected, "")
    assert kes_on_terminal("tool", "identity", "of", str(cert)) == (0, f"\n  Identity:  {identity}\n")


def test_update_says_what_to_do() -> None:
    told = kes("update")
    assert (told.code, told.stderr) == (0, "")
    assert f"{sys.executable} -m pip install --upgrade .\n" in told.stdout
    assert kes("--update") == kes("-u") == told
    flags = ["-k", "-d", "-o", "x", "--os", "linux", "--arch", "amd64", "--minisign-key", "k"]
    assert kes("update", *flags, "latest") == told
    assert "version v1.2" in kes("update", "v1.2").stdout
    assert kes("update", "a", "b").code == 1
