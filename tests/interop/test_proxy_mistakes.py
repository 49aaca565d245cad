"""The tables of mistakes in docs/behind-a-proxy.md: each mistake is made, and looks like that on every side."""

import http.client
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from support.certificates import Pair, make
from support.proxies import HAPROXY, NGINX, Front, behind
from support.transport import wait_until

PAGE = (Path(__file__).parents[2] / "docs" / "behind-a-proxy.md").read_text()
PATH = "/v1/key/list/"
CLIENT = make("ed25519", eku=["client"])
WITHOUT = re.compile("without `([^`]+)`")


@dataclass
class Mistake:
    """What is changed in the proxy's file and in the servers' configuration, and what else."""

    changes: dict[str, str] = field(default_factory=dict)
    configuration: dict[str, Any] = field(default_factory=dict)
    file: str = ""
    """Of the proxy, when it is not the one for HTTP."""
    stopped: bool = False
    forged: bool = False
    """Whether the client sends the header, too."""
    client: Pair = CLIENT
    trusted: str = ""
    """A file of the proxy, which is the authority that the servers trust."""


UNLISTED = {"tls": {"proxy": {"identities": ["0" * 64], "header": {"cert": "X-Tls-Client-Cert"}}}}
HERE = {"proxy_protocol": {"from": ["127.0.0.0/8"]}}
NO_CERTIFICATE = {
    "        proxy_ssl_certificate /etc/nginx/kes/proxy.crt;\n": "",
    "        proxy_ssl_certificate_key /etc/nginx/kes/proxy.key;\n": "",
}

ON_NGINX = {
    "no `proxy_ssl_trusted_certificate`": Mistake({"proxy_ssl_trusted_certificate /etc/nginx/kes/kes-ca.crt;": ""}),
    "`proxy_ssl_trusted_certificate` is another authority": Mistake({"kes/kes-ca.crt": "kes/server.crt"}),
    "no `proxy_ssl_name`": Mistake({"proxy_ssl_name kes.internal;": ""}),
    "no `proxy_ssl_certificate`": Mistake(NO_CERTIFICATE),
    "no `proxy_ssl_certificate`, and no route with `skip_auth`": Mistake(NO_CERTIFICATE, {"api": None}),
    "the servers have `tls.auth: on` and do not trust the proxy's certificate": Mistake({}, {"tls": {"auth": "on"}}),
    "the proxy's identity is not in `tls.proxy.identities`": Mistake({}, UNLISTED),
    "the header is not set": Mistake({"proxy_set_header X-Tls-Client-Cert $ssl_client_escaped_cert;": ""}),
    "the header has another name than in `tls.proxy.header.cert`": Mistake({"X-Tls-Client-Cert": "X-Client-Cert"}),
    "the header holds something else": Mistake({"$ssl_client_escaped_cert": "$ssl_client_fingerprint"}),
    "the header is appended to what the client sent": Mistake(
        {"$ssl_client_escaped_cert": '"$http_x_tls_client_cert, $ssl_client_escaped_cert"'}, forged=True
    ),
    "the servers have `tls.auth: on` and trust the proxy, but not the client": Mistake(
        {}, {"tls": {"auth": "on"}}, trusted="proxy.crt"
    ),
    "`ssl_verify_client optional`, and the client's certificate is of another authority": Mistake(
        {"optional_no_ca;": "optional; ssl_client_certificate /etc/nginx/kes/kes-ca.crt;"}
    ),
    "the client's certificate is out of its time": Mistake(client=make(days=(-30, -1), eku=["client"])),
    "no server runs": Mistake(stopped=True),
}

ON_HAPROXY = {
    "`ca-file` of the servers is another authority": Mistake(
        {"required ca-file /etc/haproxy/kes/kes-ca.crt": "required ca-file /etc/haproxy/kes/server.crt"}
    ),
    "`sni` is another name than in the certificate": Mistake(
        {"sni str(kes.internal)": "sni str(kes)", "check-sni kes.internal": "check-sni kes"}
    ),
    "no `crt` for the servers": Mistake({" crt /etc/haproxy/kes/proxy.pem": ""}),
    "no `skip_auth` for `/v1/ready`": Mistake({}, {"api": None}),
    "the proxy's identity is not in `tls.proxy.identities`": Mistake({}, UNLISTED),
    "the header is not set": Mistake(
        {"http-request set-header X-Tls-Client-Cert %[ssl_c_der,base64] if { ssl_c_used }": ""}
    ),
    "the header holds something else": Mistake({"ssl_c_der,base64": "ssl_c_sha1,hex"}),
    "clients' certificates are verified by HAProxy": Mistake({" ca-ignore-err all crt-ignore-err all": ""}),
    "no server runs": Mistake(stopped=True),
}

ON_LAYER_4 = {
    "HAProxy's address is not in `proxy_protocol.from`": Mistake(file="tcp.cfg"),
    "it is, and HAProxy sends no header: no `send-proxy-v2`": Mistake({"send-proxy-v2 ": ""}, HERE, file="tcp.cfg"),
    "nginx with `proxy_protocol on`": Mistake(
        {"proxy_pass kes;": "proxy_pass kes; proxy_protocol on;"}, HERE, "stream.conf"
    ),
}

SECTIONS = {"nginx": ON_NGINX, "HAProxy": ON_HAPROXY, "Passing connections through": ON_LAYER_4}


def rows(section: str) -> dict[str, list[str]]:
    """The table of a section: mistake, then what the client, the proxy and the servers say."""
    text = PAGE.partition("## What mistakes look like")[2].partition(f"### {section}\n")[2].partition("\n###")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    return {cells[0]: cells[1:] for cells in ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)}


def quoted(cell: str) -> list[str]:
    return re.findall("`([^`]+)`", cell)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_mistake_of_the_page_is_made_here(section: str) -> None:
    assert rows(section).keys() == SECTIONS[section].keys()


@pytest.mark.parametrize(
    ("section", "what"), [(section, what) for section, mistakes in SECTIONS.items() for what in mistakes]
)
def test_a_mistake_looks_as_described(section: str, what: str, tmp_path: Path) -> None:
    mistake = SECTIONS[section][what]
    program = NGINX if "nginx" in (section, what.split()[0]) else HAPROXY
    name = mistake.file or ("http.conf" if program == NGINX else "http.cfg")
    changes = {**mistake.changes, **({"inter 1s": "inter 100ms"} if program == HAPROXY else {})}
    configuration: dict[str, Any] = {"log": {"audit": "on", "audit_skip": ["/v1/ready"], "error": "info"}}
    configuration.update(mistake.configuration)
    if mistake.trusted:
        configuration["tls"]["ca"] = str(tmp_path / program / mistake.trusted)
    told, said, logged = rows(section)[what]
    if not told:
        with (
            pytest.raises(AssertionError, match=quoted(said)[0]),
            behind(program, name, tmp_path, changes=changes, **configuration),
        ):
            pass
        return
    with behind(program, name, tmp_path, stopped=mistake.stopped, changes=changes, **configuration) as front:
        with suppress(AssertionError):
            wait_until(lambda: not missing(front, mistake, told, said, logged), seconds=15)
        assert missing(front, mistake, told, said, logged) == []


def missing(front: Front, mistake: Mistake, told: str, said: str, logged: str) -> list[str]:
    """What the page says and cannot be seen when a client calls."""
    caller = front.caller(mistake.client)
    try:
        answer = caller.call("GET", PATH, None, **({"X_Tls_Client_Cert": "forged"} if mistake.forged else {}))
        heard = f"{answer.status} {answer.body.decode()}"
    except (OSError, http.client.HTTPException):
        heard = "no answer"
    server = front.cluster.members[0].server
    events = [line for line in server.stdout.splitlines() if f'"path":"{PATH}"' in line]
    of_server = f"{server.stderr}\n{events[-1] if events else ''}"
    lacks = [text for text in quoted(told) or [told] if text not in heard]
    lacks += [text for text in quoted(said) if text not in front.proxy.log]
    absent = WITHOUT.findall(logged)
    lacks += [text for text in quoted(logged) if text not in of_server and text not in absent]
    lacks += [f"without {text}" for text in absent if text in of_server or not events]
    if logged.endswith("is the proxy's") and f'"identity":"{front.identity}"' not in of_server:
        lacks.append("the proxy's identity")
    return lacks
