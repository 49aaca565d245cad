"""Clients as environment variables describe them."""

from pathlib import Path

import pytest

from keswick.client import AsyncClient, Client
from keswick.client.environment import read
from keswick.identity import APIKey
from support.certificates import make
from support.fake_server import Answer, fake_server
from support.server import start_server


def test_a_real_server_is_found(tmp_path: Path) -> None:
    with start_server(tmp_path) as server, Client.from_environment(server.environment) as client:
        assert client.describe_self()[0].is_admin
        with Client.from_environment(server.environment, api_key=APIKey.generate()) as other:
            assert not other.describe_self()[0].is_admin


def test_certificate_and_key_by_their_old_names(tmp_path: Path) -> None:
    cert, key = make(name="client").write(tmp_path, "client")
    with fake_server(tmp_path, lambda *_: Answer(), client_ca=cert) as server:
        environment = {
            "KES_SERVER": server.endpoint,
            "KES_CLIENT_TLS_KEY_FILE": str(key),
            "KES_CLIENT_TLS_CERT_FILE": str(cert),
            "KES_CA_FILE": str(server.ca_file),
        }
        with Client.from_environment(environment) as client:
            client.ready()


def test_the_first_variable_that_is_set_counts_even_if_it_is_empty() -> None:
    settings = read({"MINIO_KES_SERVER": "", "KES_SERVER": "a", "KES_API_KEY": "b", "MINIO_KMS_KES_API_KEY": "c"})
    assert (settings.endpoints, settings.api_key) == (None, "b")
    assert "b" not in repr(settings)


def test_without_variables_the_server_is_at_its_default() -> None:
    assert repr(Client.from_environment({}, verify=False)) == "Client(https://127.0.0.1:7373)"
    assert repr(AsyncClient.from_environment({"KES_SERVER": "a,b:1"}, verify=False)) == (
        "AsyncClient(https://a:443, https://b:1)"
    )


def test_both_credentials_are_refused() -> None:
    environment = {"KES_API_KEY": APIKey.generate().text, "KES_CLIENT_KEY": "k", "KES_CLIENT_CERT": "c"}
    with pytest.raises(ValueError, match="API key and a certificate cannot be used at the same time"):
        Client.from_environment(environment)


def test_overrides_win() -> None:
    client = Client.from_environment({"KES_SERVER": "a"}, endpoints="b", verify=False)
    assert repr(client) == "Client(https://b:443)"
    files = {"KES_CLIENT_KEY": "no-key", "KES_CLIENT_CERT": "no-cert"}
    Client.from_environment(files, api_key=APIKey.generate(), verify=False)
