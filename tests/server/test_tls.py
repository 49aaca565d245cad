"""The TLS section of a configuration: what is read, and what is said of files that cannot be used."""

from pathlib import Path

import pytest

from keswick import pem
from keswick.config import TLS, ConfigError
from keswick.server.tls import load
from support.certificates import make


def section(folder: Path, **more: object) -> TLS:
    cert, key = make("p256", sans=["localhost"]).write(folder, "server")
    return TLS(key=str(key), cert=str(cert), **more)  # type: ignore[arg-type]


def test_an_encrypted_key_needs_its_password(tmp_path: Path) -> None:
    tls = section(tmp_path, password="secret")
    (block,) = pem.blocks(Path(tls.key).read_text())
    Path(tls.key).write_text(pem.encrypt(block.der, "secret"))
    assert load(tls, optional=False).roots is None
    for password, message in ((None, "is encrypted; set 'tls.password'"), ("wrong", "cannot be decrypted")):
        with pytest.raises(ConfigError, match=message) as refused:
            load(TLS(key=tls.key, cert=tls.cert, password=password), optional=False)
        assert "secret" not in str(refused.value)


def test_roots_come_from_a_file_or_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere")
    authorities = tmp_path / "authorities"
    authorities.mkdir()
    for number in range(3):
        (authorities / f"{number}.pem").write_bytes(make("p256", ca=True).cert_pem)
    for path, count in ((authorities, 3), (authorities / "0.pem", 1)):
        roots = load(section(tmp_path, ca=str(path), auth=True), optional=False).roots
        assert roots is not None
        assert len(roots) == count


def test_what_the_system_trusts_is_trusted_and_what_it_breaks_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = make("p256", ca=True).cert_pem
    (tmp_path / "system.pem").write_bytes(pem.encode("CERTIFICATE", b"nonsense").encode() + good)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "system.pem"))
    roots = load(section(tmp_path, auth=True), optional=False).roots
    assert roots is not None
    assert len(roots) == 1


@pytest.mark.parametrize("content", [None, b"", b"no pem", pem.encode("CERTIFICATE", b"nonsense").encode()])
def test_an_authority_that_cannot_be_used_is_named(tmp_path: Path, content: bytes | None) -> None:
    ca = tmp_path / "ca.pem"
    if content is not None:
        ca.write_bytes(content)
    with pytest.raises(ConfigError, match=r"ca\.pem|root certificate"):
        load(section(tmp_path, ca=str(ca), auth=True), optional=False)


def test_tightening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere")
    first, second = (make("p256", ca=True).cert_pem for _ in range(2))

    def verified(*roots: bytes) -> TLS:
        (tmp_path / "ca.pem").write_bytes(b"".join(roots))
        return section(tmp_path, ca=str(tmp_path / "ca.pem"), auth=True)

    anybody = load(section(tmp_path), optional=False)
    one, both, other = (load(verified(*roots), optional=False) for roots in ((first,), (first, second), (second,)))
    assert one.tightens(anybody)
    assert one.tightens(both)
    assert other.tightens(one)
    assert not both.tightens(one)
    assert not anybody.tightens(one)
    assert not one.tightens(one)
