"""Where authorities are found."""

from pathlib import Path

import pytest

from keswick import pem, roots
from support.certificates import make


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)


def certificate(path: Path) -> bytes:
    pair = make("p256", ca=True)
    path.write_bytes(pair.cert_pem)
    return pair.cert_der


def test_a_file_has_all_its_certificates_and_nothing_else(tmp_path: Path) -> None:
    first, second = certificate(tmp_path / "a"), certificate(tmp_path / "b")
    bundle = tmp_path / "bundle.pem"
    bundle.write_text((tmp_path / "a").read_text() + pem.encode("X509 CRL", b"x") + (tmp_path / "b").read_text())
    assert list(roots.certificates(bundle)) == [first, second]


def test_a_folder_has_those_of_its_files(tmp_path: Path) -> None:
    found = [certificate(tmp_path / name) for name in ("a.pem", "b.0")]
    (tmp_path / "broken").write_text("-----BEGIN CERTIFICATE-----\n")
    (tmp_path / "readme").write_text("nothing here")
    (tmp_path / "folder").mkdir()
    certificate(tmp_path / "folder/c.pem")
    assert list(roots.certificates(tmp_path)) == found


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("-----BEGIN CERTIFICATE-----\n")
    with pytest.raises(ValueError, match="broken': a PEM block is broken"):
        list(roots.certificates(broken))
    with pytest.raises(FileNotFoundError):
        list(roots.certificates(tmp_path / "none"))


def test_the_environment_says_where_the_system_s_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = tmp_path / "one", tmp_path / "two"
    for folder in folders:
        folder.mkdir()
    file, one, two = (certificate(path) for path in (tmp_path / "a", folders[0] / "b", folders[1] / "c"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "a"))
    assert list(roots.system()) == [file]
    monkeypatch.setenv("SSL_CERT_DIR", f"{folders[0]}:{tmp_path / 'none'}:{folders[1]}")
    assert list(roots.system()) == [file, one, two]
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
    assert list(roots.system()) == [one, two]


def test_without_a_setting_the_first_bundle_that_is_there_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = certificate(tmp_path / "bundle.pem")
    monkeypatch.setattr(roots, "_BUNDLES", (str(tmp_path / "none"), str(tmp_path / "bundle.pem"), str(tmp_path)))
    assert list(roots.system()) == [bundle]
