"""The guide to nginx of 2023, with servers of each configuration form that it was written for."""

from pathlib import Path
from typing import Any

import pytest

from keswick.identity import APIKey, certificate_for
from support.cli import kes
from support.proxies import NGINX, run_proxy, write_certificates
from support.server import start_server
from support.sockets import free_port

DIRECTIVES = """
events {{}}
error_log {files}/error.log warn;
pid {files}/nginx.pid;
http {{
    access_log off;
    server {{
        listen         127.0.0.1:{port} ssl http2;
        server_name    your.domain.com;
        proxy_buffering off;
        client_max_body_size 0;
        ssl_certificate     {files}/server.crt;
        ssl_certificate_key {files}/server.key;
        ssl_verify_client   optional_no_ca;
        location / {{
            proxy_pass             https://localhost:{server_port};
            proxy_buffering        off;
            proxy_http_version     {upstream};
            proxy_ssl_verify       on;
            proxy_ssl_trusted_certificate {ca_file};
            proxy_ssl_protocols    TLSv1.3;
            proxy_ssl_certificate     {files}/proxy.crt;
            proxy_ssl_certificate_key {files}/proxy.key;
            proxy_set_header X-Tls-Client-Cert $ssl_client_escaped_cert;
        }}
    }}
}}
"""
"""Those of the guide, with the one that it left out, and the HTTP version that was nginx's default then, or not."""


@pytest.mark.parametrize("upstream", ["1.0", "1.1"])
@pytest.mark.parametrize("form", [{}, {"compatibility": "2023"}, {"compatibility": "2021"}], ids=str)
def test_the_administrator_lists_policies_through_nginx(upstream: str, form: dict[str, Any], tmp_path: Path) -> None:
    files = tmp_path / "nginx"
    write_certificates(files)
    told = kes("tool", "identity", "of", str(files / "proxy.crt"))
    section = {"identities": [told.stdout.strip()], "header": {"cert": "X-Tls-Client-Cert"}}
    policy = {"my-app": {"allow": ["/v1/key/create/*"]}}
    with start_server(tmp_path / "kes", policy=policy, tls={"proxy": section, "auth": "off"}, **form) as server:
        port = free_port()
        config = files / "nginx.conf"
        config.write_text(
            DIRECTIVES.format(
                files=files, port=port, server_port=server.port, ca_file=server.ca_file, upstream=upstream
            )
        )
        pair = certificate_for(APIKey.parse(server.api_key))
        (files / "root.crt").write_text(pair.certificate_pem)
        (files / "root.key").write_text(pair.key_pem())
        environment = {
            "KES_SERVER": f"https://127.0.0.1:{port}",
            "KES_CLIENT_TLS_CERT_FILE": str(files / "root.crt"),
            "KES_CLIENT_TLS_KEY_FILE": str(files / "root.key"),
        }
        with run_proxy(NGINX, config, port):
            listed = kes("policy", "list", "-k", env=environment)
        assert (listed.code, listed.stderr) == (0, "")
        assert "my-app" in listed.stdout
