"""Who a client is: certificates, keys and passwords."""

from pathlib import Path

import pytest

from keswick.client import Client
from keswick.identity import APIKey, certificate_for
from support.certificates import make
from support.fake_server import fake_server

API_KEY = APIKey.generate()


def test_certificate_files_with_an_encrypted_key(tmp_path: Path) -> None:
    pair = certificate_for(API_KEY)
    cert, key = tmp_path / "client.crt", tmp_path / "client.key"
    cert.write_text(pair.certificate_pem)
    key.write_text(pair.key_pem("open sesame"))
    asked = []

    def password() -> str:
        asked.append(1)
        return "open sesame"

    with fake_server(tmp_path, client_ca=cert) as server:
        with Client(server.endpoint, cert=cert, key=key, password=password, ca_file=server.ca_file) as client:
            client.ready()
        assert asked == [1]
        with pytest.raises(ValueError, match="incorrect password"):
            Client(server.endpoint, cert=cert, key=key, password="wrong")
        with pytest.raises(ValueError, match="is encrypted"):
            Client(server.endpoint, cert=cert, key=key)
        key.write_text(pair.key_pem())
        with Client(server.endpoint, cert=cert, key=key, password=password, ca_file=server.ca_file) as client:
            client.ready()
        assert asked == [1]


def test_variables_that_lead_to_no_certificate_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "absent"))
    with pytest.raises(ValueError, match="no certificates where SSL_CERT_FILE says: set KES_CA_FILE"):
        Client("127.0.0.1:1", api_key=API_KEY)
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    with pytest.raises(ValueError, match="no certificates where SSL_CERT_FILE and SSL_CERT_DIR say: "):
        Client("127.0.0.1:1", api_key=API_KEY)


def test_credentials_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    cert, key = make(name="a").write(tmp_path, "a")
    _, other = make(name="b").write(tmp_path, "b")
    _, p256 = make("p256", name="c").write(tmp_path, "c")
    for arguments, complaint in (
        ({"api_key": API_KEY, "cert": cert, "key": key}, "API key and a certificate"),
        ({"cert": cert}, "needed together"),
        ({"cert": key, "key": key}, "holds certificates only"),
        ({"cert": cert, "key": cert}, "no PEM private key"),
        ({"cert": cert, "key": other}, "does not belong"),
        ({"cert": cert, "key": p256}, "does not belong"),
        ({"api_key": "kes:v1:AAAA"}, "invalid length"),
        ({"ca_file": key}, "no PEM certificate to trust"),
        ({"endpoints": []}, "no endpoint"),
        ({"endpoints": ", ,"}, "no endpoint"),
    ):
        with pytest.raises(ValueError, match=complaint):
            Client(**arguments)
    with pytest.raises(FileNotFoundError, match=r"gone\.crt"):
        Client(cert=tmp_path / "gone.crt", key=key)
    with pytest.raises(FileNotFoundError, match=r"gone\.crt"):
        Client(ca_file=tmp_path / "gone.crt")
