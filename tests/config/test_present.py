"""The present form: what is read, and what each mistake is answered with."""

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keswick.config import (
    API,
    TLS,
    Address,
    Cache,
    Config,
    ConfigError,
    Log,
    Metrics,
    Policy,
    Proxy,
    ProxyProtocol,
    Stop,
    differing_rules,
    document,
    load,
)
from keswick.keystore import StoreSection

APIS = {
    "/version": True,
    "/v1/ready": True,
    "/v1/metrics": True,
    "/v1/key/create/": False,
    "/v1/key/list/": False,
}

ID = "3ecfcdf38fcbe141ae26a1030f81e96b753365a46760ae6b578698a97c59fd22"
OTHER = "4ecfcdf38fcbe141ae26a1030f81e96b753365a46760ae6b578698a97c59fd22"

ADMIN = "admin: {identity: disabled}\n"
TLS_FILES = "tls: {key: k, cert: c}\n"
FS = "keystore: {fs: {path: /keys}}\n"
LEAST = ADMIN + TLS_FILES + FS


def read(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "config.yml"
    path.write_text(text)
    return load(path, apis=APIS)


# --- what is read -------------------------------------------------------------------------------------------------


def test_the_least_that_is_needed(tmp_path: Path) -> None:
    assert read(tmp_path, LEAST) == Config(
        admin="disabled", tls=TLS("k", "c"), keystore=StoreSection("fs", {"path": "/keys"})
    )


def test_every_key(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        f"""
version: v1
address: 127.0.0.1:7000
admin:
  identity: {ID}
tls:
  key: /k
  cert: /c
  password: secret
  ca: /ca
  auth: "ON"
  proxy:
    identities: [proxy]
    header: {{cert: X-Tls-Client-Cert}}
    admin: off
api:
  /v1/ready: {{skip_auth: true, timeout: 3s}}
  /v1/key/list/: {{skip_auth: false, timeout: 0s}}
policy:
  app:
    allow: [/v1/key/create/*, "/v1/key/*/my-[a-c]*"]
    deny: [/v1/key/create/x]
    identities: [one, two]
  empty:
cache:
  expiry: {{any: 1h, unused: 0s, offline: 1.5m}}
log:
  error: debug
  audit: DEBUG+2
  audit_skip: [/v1/ready]
  audit_required: on
keys:
  - name: a
  - name: b
metrics: {{address: "localhost:9000", tls: on, proxy_protocol: {{from: [127.0.0.1]}}}}
proxy_protocol: {{from: [10.0.0.0/8, 192.168.7.1, "2001:db8::/32"], timeout: 2.5s}}
stop: {{delay: 10s, linger: 0s, drain: 1m}}
limits: {{connections: 20000, idle_seconds: 5m, requests: ~}}
keystore:
  fs:
    path: /keys
""",
    )

    assert config == Config(
        admin=ID,
        tls=TLS("/k", "/c", "secret", "/ca", True, Proxy(("proxy",), "X-Tls-Client-Cert", False)),
        keystore=StoreSection("fs", {"path": "/keys"}),
        address=Address("127.0.0.1", 7000),
        api={"/v1/ready": API(True, 3.0), "/v1/key/list/": API(False, None)},
        policies={
            "app": Policy(("/v1/key/create/*", "/v1/key/*/my-[a-c]*"), ("/v1/key/create/x",), ("one", "two")),
            "empty": Policy(),
        },
        cache=Cache(3600, 0, 90),
        log=Log(-4, -2, ("/v1/ready",), True),
        keys=("a", "b"),
        metrics=Metrics(Address("localhost", 9000), True, ProxyProtocol(("127.0.0.1/32",), 5.0)),
        proxy_protocol=ProxyProtocol(("10.0.0.0/8", "192.168.7.1/32", "2001:db8::/32"), 2.5),
        stop=Stop(10, 0, 60),
        limits={"connections": 20000, "idle_seconds": 300},
    )


def test_keys_without_values_count_as_absent(tmp_path: Path) -> None:
    absent = "version:\naddress: ~\napi:\npolicy:\ncache: {expiry: }\nlog: {error: '', audit: null}\nkeys:\nmetrics:\n"
    assert read(tmp_path, LEAST + absent) == read(tmp_path, LEAST)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:80", Address("127.0.0.1", 80)),
        ("127.0.0.1", Address("127.0.0.1", 7373)),
        (":80", Address("", 80)),
        ("'[::1]:80'", Address("::1", 80)),
        ("'[::1]'", Address("::1", 7373)),
        ("localhost", Address("localhost", 7373)),
        ("kes-0.kes.svc:0", Address("kes-0.kes.svc", 0)),
        ("''", Address()),
    ],
)
def test_addresses(tmp_path: Path, text: str, address: Address) -> None:
    assert read(tmp_path, f"address: {text}\n" + LEAST).address == address


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("on", 0),
        ("Off", Log.OFF),
        ("debug", -4),
        ("INFO", 0),
        ("warn", 4),
        ("ERROR", 8),
        ("error+3", 11),
        ("' info '", 0),
        ("-4", -4),
        ("12", 12),
    ],
)
def test_log_levels(tmp_path: Path, text: str, level: int) -> None:
    log = read(tmp_path, LEAST + f"log: {{error: {text}, audit: {text}}}").log
    assert (log.error, log.audit) == (level, level)


def test_unset_logs(tmp_path: Path) -> None:
    log = read(tmp_path, LEAST + "log: {}").log
    assert (log.error, log.audit) == (0, Log.OFF)


@pytest.mark.parametrize("text", ["disabled", "_", "abcd", "not an identity"])
def test_any_word_may_stand_for_no_admin(tmp_path: Path, text: str) -> None:
    config = read(tmp_path, f"admin: {{identity: '{text}'}}\n" + TLS_FILES + FS)
    assert config.admin == text
    assert config.warnings == ()


@pytest.mark.parametrize(
    ("section", "kind", "expected"),
    [
        (
            "vault: {endpoint: e, approle: {id: i, secret: s}}",
            "vault",
            {"endpoint": "e", "engine": "kv", "version": "v1", "status.ping": "10.0"}
            | {"approle.engine": "approle", "approle.id": "i", "approle.secret": "s"},
        ),
        (
            "vault: {endpoint: e, engine: kv2, version: v2, namespace: n, prefix: p, transit: {key: t}, "
            "kubernetes: {role: r, jwt: /j, namespace: /}, tls: {key: k, cert: c, ca: a}, status: {ping: 1m}}",
            "vault",
            {"endpoint": "e", "engine": "kv2", "version": "v2", "namespace": "n", "prefix": "p"}
            | {"transit.engine": "transit", "transit.key": "t", "kubernetes.engine": "kubernetes"}
            | {"kubernetes.role": "r", "kubernetes.jwt": "/j", "kubernetes.namespace": "/"}
            | {"tls.key": "k", "tls.cert": "c", "tls.ca": "a", "status.ping": "60.0"},
        ),
        (
            "fortanix: {sdkms: {endpoint: e, group_id: g, credentials: {key: k}, tls: {ca: a}}}",
            "fortanix.sdkms",
            {"endpoint": "e", "group_id": "g", "credentials.key": "k", "tls.ca": "a"},
        ),
        (
            "gemalto: {keysecure: {endpoint: e, credentials: {token: t, domain: d}}}",
            "gemalto.keysecure",
            {"endpoint": "e", "credentials.token": "t", "credentials.domain": "d"},
        ),
        (
            "gcp: {secretmanager: {project_id: p, scopes: [a, b]}}",
            "gcp.secretmanager",
            {"project_id": "p", "endpoint": "secretmanager.googleapis.com:443", "scopes": "a b"},
        ),
        (
            "gcp: {secretmanager: {project_id: p, credentials: "
            "{client_email: a, client_id: 007, private_key_id: 1e3, private_key: d}}}",
            "gcp.secretmanager",
            {"project_id": "p", "endpoint": "secretmanager.googleapis.com:443"}
            | {"credentials.client_email": "a", "credentials.client_id": "007"}
            | {"credentials.private_key_id": "1e3", "credentials.private_key": "d"},
        ),
        (
            "aws: {secretsmanager: {endpoint: e, region: r, credentials: {accesskey: '', secretkey: '', token: ''}}}",
            "aws.secretsmanager",
            {"endpoint": "e", "region": "r"},
        ),
        (
            "aws: {secretsmanager: {endpoint: e, region: r, kmskey: k, credentials: {accesskey: a, secretkey: s}}}",
            "aws.secretsmanager",
            {"endpoint": "e", "region": "r", "kmskey": "k", "credentials.accesskey": "a", "credentials.secretkey": "s"},
        ),
        (
            "azure: {keyvault: {endpoint: e, managed_identity: {client_id: i}}}",
            "azure.keyvault",
            {"endpoint": "e", "managed_identity.client_id": "i"},
        ),
        (
            "entrust: {keycontrol: {endpoint: e, vault_id: v, box_id: b, credentials: {username: u, password: p}}}",
            "entrust.keycontrol",
            {"endpoint": "e", "vault_id": "v", "box_id": "b", "credentials.username": "u", "credentials.password": "p"},
        ),
    ],
)
def test_stores(tmp_path: Path, section: str, kind: str, expected: dict[str, str]) -> None:
    store = read(tmp_path, ADMIN + TLS_FILES + f"keystore: {{{section}}}").keystore
    assert store == StoreSection(kind, expected)


def test_a_store_without_settings_is_not_there(tmp_path: Path) -> None:
    config = read(tmp_path, ADMIN + TLS_FILES + "keystore: {fs: {path: /keys}, vault: , aws: null}")
    assert config.keystore == StoreSection("fs", {"path": "/keys"})


def test_no_secret_is_in_a_repr(tmp_path: Path) -> None:
    store = "keystore: {vault: {endpoint: e, approle: {id: i, secret: hunter2}}}"
    config = read(tmp_path, ADMIN + "tls: {key: k, cert: c, password: hunter2}\n" + store)
    assert "hunter2" not in repr(config)


# --- environment --------------------------------------------------------------------------------------------------


def test_values_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "KES_ID": ID,
        "KES_ADDRESS": ":80",
        "KES_SKIP": "true",
        "KES_TIME": "7s",
        "KES_AUTH": "on",
        "KES_LEVEL": "warn",
        "KES_KEY": "key-1",
        "KES_PATH": "/k",
        "KES_EMPTY": "",
    }.items():
        monkeypatch.setenv(name, value)
    config = read(
        tmp_path,
        """
address: ${KES_ADDRESS}
admin: {identity: "${KES_ID}"}
tls: {key: " ${ KES_PATH } ", cert: "x${KES_PATH}", password: "$KES_PATH", ca: "${KES_EMPTY}", auth: "${KES_AUTH}"}
api: {/v1/ready: {skip_auth: "${KES_SKIP}", timeout: "${KES_TIME}"}}
policy: {p: {allow: ["/${KES_PATH}"], deny: ["${KES_PATH}"], identities: ["${KES_KEY}"]}}
log: {error: "${KES_LEVEL}"}
keys: [{name: "${KES_KEY}"}]
keystore: {fs: {path: "${KES_PATH}"}}
""",
    )

    assert config.address == Address("", 80)
    assert config.admin == ID
    assert config.tls == TLS("/k", "x${KES_PATH}", "$KES_PATH", None, True)
    assert config.api == {"/v1/ready": API(True, 7.0)}
    assert config.policies == {"p": Policy(("/${KES_PATH}",), ("${KES_PATH}",), ("key-1",))}
    assert config.log.error == 4
    assert config.keys == ("key-1",)
    assert config.keystore == StoreSection("fs", {"path": "/k"})


@pytest.mark.parametrize(
    ("text", "value", "message"),
    [
        (
            TLS_FILES + "admin: {identity: '${KES_X}'}",
            None,
            "line 2: the environment variable 'KES_X', for 'admin.identity', is",
        ),
        (TLS_FILES + "admin: {identity: '${KES_X}'}", "", "line 2: 'admin.identity' is missing: .*'KES_X' is empty"),
        (
            LEAST + "api: {/v1/ready: {skip_auth: '${KES_X}'}}",
            None,
            "'KES_X', for 'api./v1/ready.skip_auth', is not set",
        ),
        (
            LEAST + "api: {/v1/ready: {skip_auth: '${KES_X}'}}",
            "hunter2",
            "not the value of the environment variable 'KES_X'",
        ),
        (LEAST + "address: '${KES_X}'", "hunter2:x", "'address' is the value of the environment variable 'KES_X'"),
        (
            LEAST + "cache: {expiry: {any: '${KES_X}'}}",
            "hunter2",
            "environment variable 'KES_X': this is not a duration",
        ),
        (LEAST + "cache: {expiry: {any: '${KES_X}'}}", "-2h", "environment variable 'KES_X', but cannot be negative"),
        (LEAST + "log: {error: '${KES_X}'}", "hunter2", "environment variable 'KES_X': this is not a log level"),
        (
            LEAST + "policy: {p: {identities: ['${KES_X}']}}",
            "hunter 2",
            "environment variable 'KES_X' in the policy 'p'",
        ),
        (LEAST + "policy: {p: {identities: ['${KES_X}']}}", "hunter 2\udcff", "'KES_X', .* is not UTF-8 text"),
        (LEAST + "keys: [{name: '${KES_X}'}]", "hunter2=", "environment variable 'KES_X' is not the name of a key"),
        (LEAST + "version: ${KES_X}", "v1", r"unknown version '\$\{KES_X\}'"),
        (LEAST + "address: ${KES_X}${KES_X}", "v1", r"variable 'KES_X\}\$\{KES_X', for 'address', is not set"),
        (LEAST + "address: ${}", "v1", "variable '', for 'address', is not set"),
    ],
)
def test_mistakes_in_the_environment_do_not_show_its_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, value: str | None, message: str
) -> None:
    monkeypatch.delenv("KES_X", raising=False)
    if value is not None:
        monkeypatch.setenv("KES_X", value)
    with pytest.raises(ConfigError, match=message) as failure:
        read(tmp_path, text)
    assert "hunter" not in str(failure.value)


# --- mistakes -----------------------------------------------------------------------------------------------------

MISTAKES = [
    # keys
    ("\nadress: x", "line 2: unknown key 'adress' in the configuration; did you mean 'address'?"),
    ("zzz: x", "line 1: unknown key 'zzz' in the configuration; it has address, admin, "),
    (ADMIN + "tls: {key: k, cert: c, pasword: hunter2}", "unknown key 'pasword' in 'tls'; did you mean 'password'?"),
    (
        ADMIN + "tls: {key: k, cert: c, password:hunter2}",
        "unknown key 'password' in 'tls'; write a space after its ':'",
    ),
    ("address: a\naddress: b", "line 2: the key 'address' stands already in line 1"),
    (ADMIN + "root: x", "line 2: 'root' belongs to the forms of 2020, 2021, v0.14 and v0.17, but 'admin.identity' in"),
    ("[a]: b", "line 1: a key in the configuration must be plain text, not a list"),
    (LEAST + "cache: on", "'cache' must hold keys with values, not a single value"),
    (LEAST + "keys: on", "'keys' must be a list, with lines such as '- name: …', not a single value"),
    (LEAST + "keys: [a]", "'keys' must hold keys with values, not a single value"),
    (LEAST + "address: [a]", "'address' must be a single value, not a list"),
    (LEAST + "address: !x hunter2", "the value of 'address' has a tag"),
    (LEAST + "address: !!binary hunter2", "the value of 'address' has a tag"),
    # version
    ("version: v2", "line 1: unknown version 'v2' of the configuration; the only one is 'v1'"),
    # address
    ("address: 1.2.3\n" + LEAST, "line 1: 'address' is '1.2.3': the host of an address must be an IP address or"),
    ("address: 1.2.3.4:70000\n" + LEAST, "'1.2.3.4:70000': the port of an address must be a number from 0 to 65535"),
    ("address: 1.2.3.4:https\n" + LEAST, "this is not an address; write 'IP:PORT'"),
    ("address: ::1\n" + LEAST, "or '[IP]:PORT' for an IPv6 address"),
    ("address: '[1.2.3.4]:1'\n" + LEAST, "between the brackets of an address only an IPv6 address can stand"),
    ("address: a b:1\n" + LEAST, "the host of an address must be"),
    ("address: ':'\n" + LEAST, "this is not an address"),
    ("address: '[]'\n" + LEAST, "between the brackets"),
    # admin
    (TLS_FILES + FS, "'admin.identity' is missing"),
    ("admin: {}\n" + TLS_FILES + FS, "line 1: 'admin.identity' is missing"),
    ("admin: {identity: ''}\n" + TLS_FILES + FS, "line 1: 'admin.identity' is missing"),
    ("admin: {identity: 'kes:v1:hunter2'}\n", "'admin.identity' holds an API key, which is a secret"),
    # tls
    (ADMIN + FS, "'tls.key' is missing: the path of the server's private key"),
    (ADMIN + "tls: {key: k}\n", "line 2: 'tls.cert' is missing: the path of the server's certificate"),
    (ADMIN + "tls: {cert: k}\n", "line 2: 'tls.key' is missing"),
    (ADMIN + "tls: {key: k, cert: c, auth: maybe}\n", "line 2: 'tls.auth' must be on or off, not 'maybe'"),
    (ADMIN + "tls: {key: k, cert: c, auth: true}\n", "line 2: 'tls.auth' must be on or off, not 'true'"),
    (ADMIN + "tls: {key: k, cert: c, proxy: {identities: [disabled], header: {cert: X}}}", "is the admin already"),
    (ADMIN + "tls: {key: k, cert: c, proxy: {identities: [''], header: {cert: X}}}", "identities' is empty"),
    (ADMIN + "tls: {key: k, cert: c, proxy: {identities: [~], header: {cert: X}}}", "identities' is empty"),
    (ADMIN + "tls: {key: k, cert: c, proxy: {identities: ['kes:v1:hunter2']}}", "holds an API key"),
    (ADMIN + "tls: {key: k, cert: c, proxy: {identities: [a]}}", "'tls.proxy.header.cert' is missing"),
    (ADMIN + "tls: {key: k, cert: c, proxy: {identities: [a], header: {cert: 'a: b'}}}", "not the name of a header"),
    # api
    (
        LEAST + "api: {/v1/key/list: {timeout: 1s}}",
        "unknown path '/v1/key/list' in 'api'; did you mean '/v1/key/list/'",
    ),
    (LEAST + "api: {v1/metrics: {skip_auth: on}}", "did you mean '/v1/metrics'?"),
    (LEAST + "api: {/v1/ready: {skip_auth: maybe}}", "must be on, off, true, false, yes or no, not 'maybe'"),
    (
        LEAST + "api: {/v1/key/create/: {skip_auth: true}}",
        "line 4: 'skip_auth' cannot be used for '/v1/key/create/', only for /v1/metrics, /v1/ready, /version",
    ),
    (LEAST + "api: {/v1/ready: {timeout: -1s}}", "'api./v1/ready.timeout' is '-1s', but cannot be negative"),
    (LEAST + "api: {/v1/ready: {timeout: 15}}", "'api./v1/ready.timeout' is '15': a duration needs a unit, write for"),
    # policies
    (LEAST + "policy: {'a b': {}}", "line 4: 'a b' is not the name of a policy: a name has 1 to 80 of the characters"),
    (LEAST + "policy: {'': {}}", "'' is not the name of a policy"),
    (LEAST + f"policy: {{{'p' * 81}: {{}}}}", "is not the name of a policy"),
    (LEAST + "policy: {p: {paths: [/v1/*]}}", "write 'policy.p.allow' in place of 'policy.p.paths'"),
    (LEAST + "policy: {p: {allow: /v1/*}}", "'policy.p.allow' must be a list, with lines such as '- …'"),
    (LEAST + "policy:\n  p:\n    allow:\n    - /v1/[a", "line 7: 'policy.p.allow': the rule '/v1/[a' is malformed at"),
    (LEAST + "policy: {p: {deny: ['/v1/a\\']}}", "line 4: 'policy.p.deny': the rule '/v1/a\\\\' is malformed at"),
    (LEAST + "policy: {p: {identities: [_]}}", "'_' in the policy 'p' is not an identity"),
    (LEAST + "policy: {p: {identities: ['']}}", "'' in the policy 'p' is not an identity"),
    (LEAST + "policy: {p: {identities: ['kes:v1:hunter2']}}", "'policy.p.identities' holds an API key"),
    (LEAST + "policy: {p: {identities: [disabled]}}", "the policy 'p' contains the admin, who needs no policy"),
    (
        ADMIN
        + FS
        + "tls: {key: k, cert: c, proxy: {identities: [a], header: {cert: X}}}\npolicy: {p: {identities: [a]}}",
        "line 4: the policy 'p' contains a TLS proxy, which has no rights: 'a'",
    ),
    (
        LEAST + "policy:\n  p: {identities: [a]}\n  q: {identities: [a]}",
        "line 6: an identity can have one policy only; 'a' stands in the policies 'p' and 'q'",
    ),
    (LEAST + "policy: {p: {identities: [a, a]}}", "'a' stands in the policy 'p' twice"),
    (ADMIN + "tls: {key: k, cert: c, proxy: {identities: [a], header: {cert: X}, admin: no}}", "must be on or off"),
    # proxy_protocol
    (LEAST + "proxy_protocol: {timeout: 1s}", "line 4: 'proxy_protocol.from' is missing"),
    (LEAST + "proxy_protocol: {from: []}", "'proxy_protocol.from' is missing"),
    (LEAST + "metrics: {address: ':1', proxy_protocol: {}}", "'metrics.proxy_protocol.from' is missing"),
    (LEAST + "proxy_protocol: {from: 10.0.0.0/8}", "'proxy_protocol.from' must be a list"),
    (LEAST + "proxy_protocol: {from: [0.0.0.0/0]}", "line 4: 'proxy_protocol.from' covers '0.0.0.0/0', which is every"),
    (LEAST + "proxy_protocol: {from: ['::/0']}", "'proxy_protocol.from' covers '::/0', which is every address"),
    (LEAST + "proxy_protocol: {from: [0.0.0.0/1, '::1', 128.0.0.0/1]}", "covers '0.0.0.0/0', which is every address"),
    (LEAST + "proxy_protocol: {from: ['8000::/1', 10.0.0.1, '::/2', '4000::/2']}", "covers '::/0', which is every"),
    (LEAST + "proxy_protocol: {from: ['::/1']}", "covers '::/1', which is wider than any network of one operator"),
    (LEAST + "proxy_protocol: {from: ['2000::/3']}", "covers '2000::/3', which is wider"),
    (LEAST + "proxy_protocol: {from: [10.0.0.0/8, 11.0.0.0/8]}", "covers '10.0.0.0/7', which is wider"),
    (
        LEAST + "metrics: {address: ':1', proxy_protocol: {from: [128.0.0.0/1, 0.0.0.0/1]}}",
        "line 4: 'metrics.proxy_protocol.from' covers '0.0.0.0/0', which is every address",
    ),
    (LEAST + "proxy_protocol: {from: ['::ffff:10.0.0.0/104']}", "write an IPv4 network as such"),
    (LEAST + "proxy_protocol: {from: [10.0.0.1/8]}", "lies within a network; write '10.0.0.0/8'"),
    (LEAST + "proxy_protocol: {from: [proxy.internal]}", "holds 'proxy.internal', which is no network"),
    (LEAST + "proxy_protocol: {from: [10.0.0.0/33]}", "which is no network"),
    (LEAST + "proxy_protocol: {from: ['']}", "which is no network"),
    (LEAST + "proxy_protocol: {from: [10.0.0.1], timeout: 0s}", "must be a duration from '100ms' to '1m0s', not '0s'"),
    (LEAST + "proxy_protocol: {from: [10.0.0.1], timeout: 5}", "a duration needs a unit"),
    (LEAST + "proxy_protocol: {form: [10.0.0.1]}", "did you mean 'from'"),
    # stop
    (LEAST + "stop: {delay: 2h}", "'stop.delay' must be a duration from '0s' to '1h0m0s', not '2h'"),
    (LEAST + "stop: {linger: -1s}", "'stop.linger' is '-1s', but cannot be negative"),
    (LEAST + "stop: {drain: soon}", "'stop.drain' is 'soon': this is not a duration"),
    (LEAST + "stop: {dealy: 1s}", "did you mean 'delay'"),
    # limits
    (LEAST + "limits: {connections: 0}", "'limits.connections' must be a whole number from 1 to 1000000, not '0'"),
    (LEAST + "limits: {connections: 1e3}", "must be a whole number from 1 to 1000000, not '1e3'"),
    (LEAST + "limits: {header_bytes: 100}", "must be a whole number from 4096 to 1048576, not '100'"),
    (LEAST + "limits: {idle_seconds: 90}", "'limits.idle_seconds' is '90': a duration needs a unit"),
    (LEAST + "limits: {idle_seconds: 1ms}", "must be a duration from '100ms' to '24h0m0s', not '1ms'"),
    (LEAST + "limits: {conections: 1}", "unknown key 'conections' in 'limits'; did you mean 'connections'"),
    # cache
    (LEAST + "cache: {expiry: {any: -1s}}", "'cache.expiry.any' is '-1s', but cannot be negative"),
    (LEAST + "cache: {expiry: {unused: -1s}}", "'cache.expiry.unused' is '-1s', but cannot be negative"),
    (LEAST + "cache: {expiry: {offline: -1s}}", "'cache.expiry.offline' is '-1s', but cannot be negative"),
    (LEAST + "cache: {expiry: {any: 0}}", "'cache.expiry.any' is '0': a duration needs a unit"),
    (LEAST + "cache: {expiry: {any: ''}}", "'cache.expiry.any' is '': a duration is missing"),
    (LEAST + "cache: {expiry: {any: 1d}}", "'cache.expiry.any' is '1d': this is not a duration"),
    (LEAST + "cache: {expiry: {all: 1s}}", "write 'cache.expiry.any' in place of 'cache.expiry.all'"),
    # log
    (LEAST + "log: {error: yes}", "'log.error' is 'yes': this is not a log level; write 'on', 'off', 'debug'"),
    (LEAST + "log: {audit: info-1}", "'log.audit' is 'info-1': this is not a log level"),
    (LEAST + "log: {audit_skip: [v1/ready]}", "must be a path that begins with '/'"),
    (LEAST + "log: {audit_required: on}", "'log.audit_required' needs an audit log: write 'audit: on', too"),
    (LEAST + "log: {audit_required: 1}", "'log.audit_required' must be on or off, not '1'"),
    # keys
    (LEAST + "keys: [{name: a}, {name: a}]", "the key 'a' stands already in line 4"),
    (LEAST + "keys: [{name: in valid}]", "'in valid' is not the name of a key"),
    (LEAST + "keys: [{}]", "'keys.name' is missing"),
    # metrics
    (LEAST + "metrics: {}", "'metrics.address' is missing: write for example 'address: 127.0.0.1:7374'"),
    (LEAST + "metrics: {address: 0.0.0.0}", "'metrics.address' must differ from 'address'"),
    (LEAST + "metrics: {address: ':1', tls: maybe}", "'metrics.tls' must be on or off"),
    # key stores
    (ADMIN + TLS_FILES, "or run 'kes server --dev'"),
    (ADMIN + TLS_FILES, "no key store is configured; write for example 'keystore: {fs: {path"),
    (ADMIN + TLS_FILES + "keystore: {}", "line 3: no key store is configured"),
    (
        ADMIN + TLS_FILES + "keystore: {fs: {path: a}, vault: {}}",
        "more than one key store is configured: 'fs' and 'vault'",
    ),
    (ADMIN + TLS_FILES + "keystore: {fs: {}}", "line 3: 'keystore.fs.path' is missing: the folder"),
    (ADMIN + TLS_FILES + "keystore: {fs: {path: ''}}", "'keystore.fs.path' is missing"),
    (ADMIN + TLS_FILES + "keystore: {fss: {}}", "unknown key store 'fss'; did you mean 'fs'?"),
    (ADMIN + TLS_FILES + "keystore: {memory: {}}", "unknown key store 'memory'; there are fs, vault, "),
    (ADMIN + TLS_FILES + "keystore: {kes: {}}", "the key store 'kes' no longer exists: a KES server as the key store"),
    (
        ADMIN + TLS_FILES + "keystore: {aws: {}}",
        "'keystore.aws' holds no key store; write the settings below 'secretsmanager:'",
    ),
    (
        ADMIN + TLS_FILES + "keystore: {aws: {secretmanager: {}}}",
        "unknown key 'secretmanager' in 'keystore.aws'; did you mean 'secretsmanager'?",
    ),
]

VAULT = "keystore: {vault: {endpoint: e, %s}}"
APPROLE = "approle: {id: i, secret: s}"
STORE_MISTAKES = [
    ("keystore: {vault: {}}", "'keystore.vault.endpoint' is missing"),
    (VAULT % "", "no way to log in is configured; add 'keystore.vault.approle' or 'keystore.vault.kubernetes'"),
    (VAULT % f"{APPROLE}, kubernetes: {{}}", "more than one way to log in is configured: 'keystore.vault.approle' and"),
    (VAULT % "approle: {id: i}", "'keystore.vault.approle.secret' is missing"),
    (VAULT % "approle: {secret: hunter2}", "'keystore.vault.approle.id' is missing"),
    (VAULT % "kubernetes: {role: r}", "'keystore.vault.kubernetes.jwt' is missing"),
    (VAULT % f"{APPROLE}, version: v3", "'keystore.vault.version' must be 'v1' or 'v2', not 'v3'"),
    (VAULT % f"{APPROLE}, transit: {{}}", "'keystore.vault.transit.key' is missing"),
    (VAULT % f"{APPROLE}, tls: {{key: k}}", "'keystore.vault.tls.cert' is missing: it goes together with"),
    (VAULT % f"{APPROLE}, status: {{ping: 10}}", "'keystore.vault.status.ping': a duration needs a unit"),
    (VAULT % f"{APPROLE}, status: {{ping: 0s}}", "'keystore.vault.status.ping' must be longer than nothing"),
    (VAULT % f"{APPROLE}, name: x", "write 'keystore.vault.prefix' in place of 'keystore.vault.name'"),
    ("keystore: {fortanix: {sdkms: {endpoint: e}}}", "'keystore.fortanix.sdkms.credentials' is missing"),
    (
        "keystore: {fortanix: {sdkms: {endpoint: e, credentials: {}}}}",
        "'keystore.fortanix.sdkms.credentials.key' is missing",
    ),
    ("keystore: {gemalto: {keysecure: {credentials: {token: t}}}}", "'keystore.gemalto.keysecure.endpoint' is missing"),
    ("keystore: {gemalto: {keysecure: {endpoint: e, credentials: {}}}}", "credentials.token' is missing"),
    ("keystore: {gcp: {secretmanager: {}}}", "'keystore.gcp.secretmanager.project_id' is missing"),
    (
        "keystore: {gcp: {secretmanager: {project_id: p, credentials: {client_id: c}}}}",
        "client_email' is missing: it goes",
    ),
    ("keystore: {aws: {secretsmanager: {endpoint: e}}}", "'keystore.aws.secretsmanager.region' is missing"),
    (
        "keystore: {aws: {secretsmanager: {endpoint: e, region: r, credentials: {accesskey: a}}}}",
        "secretkey' is missing: it",
    ),
    ("keystore: {azure: {keyvault: {}}}", "'keystore.azure.keyvault.endpoint' is missing"),
    ("keystore: {azure: {keyvault: {endpoint: e, credentials: {tenant_id: t}}}}", "credentials.client_id' is missing"),
    (
        "keystore: {azure: {keyvault: {endpoint: e, credentials: {}, managed_identity: {}}}}",
        "'keystore.azure.keyvault.credentials' and 'keystore.azure.keyvault.managed_identity'; keep one",
    ),
    ("keystore: {entrust: {keycontrol: {endpoint: e, vault_id: v, box_id: b}}}", "keycontrol.credentials' is missing"),
    (
        "keystore: {entrust: {keycontrol: {endpoint: e, vault_id: v}}}",
        "'keystore.entrust.keycontrol.box_id' is missing",
    ),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES + [(ADMIN + TLS_FILES + a, b) for a, b in STORE_MISTAKES])
def test_mistakes(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as failure:
        read(tmp_path, text)
    assert str(failure.value).startswith(f"{tmp_path}/config.yml: ")
    assert "hunter2" not in str(failure.value)


# --- warnings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            f"admin: {{identity: {ID.upper()}}}\n" + TLS_FILES + FS,
            f"line 1: 'admin.identity' holds '{ID.upper()}', which has upper-case letters",
        ),
        (
            ADMIN + f"tls: {{key: k, cert: c, proxy: {{identities: [a, {ID.upper()}], header: {{cert: X}}}}}}\n" + FS,
            f"line 2: 'tls.proxy.identities' holds '{ID.upper()}', which has upper-case letters",
        ),
        (
            LEAST + f"policy: {{p: {{identities: [{ID}, a]}}, q: {{identities: [{ID.upper()}]}}}}",
            f"line 4: 'policy.q.identities' holds '{ID.upper()}', which has upper-case letters",
        ),
        (
            LEAST + "api: {/v1/enclave/create/: {timeout: 1s}}",
            "line 4: the path '/v1/enclave/create/' in 'api' is of older",
        ),
        (LEAST + "api: {/v1/key/bulk/decrypt/: {skip_auth: on}}", "line 4: the path '/v1/key/bulk/decrypt/' in 'api'"),
        (LEAST + "policy: {p: {allow: [v1/ready]}}", "line 4: the rule 'v1/ready' in 'policy.p.allow' matches nothing"),
        (LEAST + "policy: {p: {deny: ['']}}", "line 4: the rule '' in 'policy.p.deny' matches nothing"),
        (LEAST + "---\nmore: x", "line 4: only the first document of the file is read"),
        (LEAST + "---\nmore: [", "line 4: only the first document of the file is read"),
        (
            ADMIN + TLS_FILES + "keystore: {vault: {endpoint: e, approle: {id: i, secret: s, retry: 5s}}}",
            "line 3: 'keystore.vault.approle.retry' has no meaning any more and is ignored",
        ),
        (
            ADMIN + TLS_FILES + "keystore: {gemalto: {keysecure: {endpoint: e, credentials: {token: t, retry: 5s}}}}",
            "line 3: 'keystore.gemalto.keysecure.credentials.retry' has no meaning any more and is ignored",
        ),
    ],
)
def test_warnings(tmp_path: Path, text: str, message: str) -> None:
    (warning,) = read(tmp_path, text).warnings
    assert warning.startswith(f"{tmp_path}/config.yml: {message}")


def test_rules_that_are_read_in_two_ways(tmp_path: Path) -> None:
    config = read(tmp_path, LEAST + "policy: {p: {allow: [/v1/ready, /v1/*], deny: ['/v1/key/*/x*']}}")
    prefix, denied = differing_rules(config)
    assert prefix.startswith(
        "policy 'p', allow rule '/v1/*': as a prefix it matches every path that begins with '/v1/'"
    )
    assert prefix.endswith("; it is read as a prefix")
    assert denied.startswith("policy 'p', deny rule '/v1/key/*/x*': as a glob its special characters")
    assert denied.endswith("; what either matches is refused")


def test_networks_of_private_use_may_send_a_proxy_header(tmp_path: Path) -> None:
    networks = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/17", "192.168.128.0/17", "fc00::/7", "2001:db8::/32")
    config = read(tmp_path, LEAST + f"proxy_protocol: {{from: {json.dumps(networks)}}}")
    assert config.proxy_protocol is not None
    assert config.proxy_protocol.networks == networks


TAKEN = ("Host", "Connection", "Content-Length", "Transfer-Encoding", "X-Forwarded-For", "Forwarded")


@pytest.mark.parametrize("name", [*TAKEN, *map(str.lower, TAKEN), "HOST"])
def test_a_header_that_means_something_else_forwards_no_certificates(tmp_path: Path, name: str) -> None:
    text = ADMIN + f"tls: {{key: k, cert: c, proxy: {{identities: [a], header: {{cert: {name}}}}}}}"
    with pytest.raises(ConfigError, match=f"line 2: 'tls.proxy.header.cert' cannot be '{name}', which means something"):
        read(tmp_path, text)


# --- YAML ---------------------------------------------------------------------------------------------------------


def test_anchors_and_merges(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        LEAST
        + """
policy:
  a: &rules
    allow: &list [/v1/ready]
    identities: [one]
  b:
    <<: *rules
    identities: [two]
    deny: *list
""",
    )
    assert config.policies["b"] == Policy(("/v1/ready",), ("/v1/ready",), ("two",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("# nothing\n", "the file is empty"),
        ("---\n", "the file is empty"),
        ("on", "line 1: this is not a configuration"),
        ("- a", "line 1: this is not a configuration"),
        ("admin:\n\tidentity: x", "line 2: column 1: this is not YAML: a tab; indent with spaces"),
        ("admin: [", "this is not YAML: "),
        ("admin: b: c", "line 1: column 9: this is not YAML: mapping values are not allowed"),
        (
            "admin: *hunter2",
            "line 1: column 8: this is not YAML: a value that begins with '*', '&' or '!' must stand in quotes",
        ),
        ("admin: !hunter2!x y", "must stand in quotes"),
        ("admin: \x07", "the file contains control characters"),
        ("admin: &a {<<: *a}", "there are more than 100 merges"),
        ("<<: 1\n", "line 1: after '<<:' the anchor of a mapping is expected"),
        ("admin: " + "[" * 100_000, "line 1: this is not a configuration: it is nested more than 32 levels deep"),
        ("- " * 100_000, "it is nested more than 32 levels deep"),
        ("? " * 100_000, "it is nested more than 32 levels deep"),
        (LEAST + "keys: &k [*k]", "'keys' must hold keys with values, not a list"),
    ],
)
@pytest.mark.parametrize("loader", [yaml.CSafeLoader, yaml.SafeLoader])
def test_what_is_no_yaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loader: type[yaml.SafeLoader], text: str, message: str
) -> None:
    monkeypatch.setattr(document, "LOADER", loader)
    with pytest.raises(ConfigError, match=re.escape(message)) as failure:
        read(tmp_path, text)
    assert "hunter2" not in str(failure.value)


def test_nested_merges_are_bounded(tmp_path: Path) -> None:
    bomb = "policy:\n  a: &a {allow: [/v1/ready]}\n" + "".join(
        f"  {name}: &{name} {{<<: [*{before}, *{before}, *{before}]}}\n"
        for before, name in zip("abcdefg", "bcdefgh", strict=True)
    )
    with pytest.raises(ConfigError, match=r"line [0-9]+: there are more than 100 merges"):
        read(tmp_path, LEAST + bomb)


# --- anything -----------------------------------------------------------------------------------------------------

words = st.one_of(
    st.sampled_from(
        ["", "on", "off", "0s", "5m", "-1s", "7", ":80", "v1", "${PATH}", "${NO}", "/v1/*", "[a", "a", "b", ID]
    ),
    st.text(max_size=5),
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
)
keys = st.one_of(
    st.sampled_from(
        [
            "version",
            "address",
            "admin",
            "identity",
            "tls",
            "key",
            "cert",
            "password",
            "ca",
            "auth",
            "proxy",
            "identities",
            "header",
            "api",
            "policy",
            "allow",
            "deny",
            "paths",
            "cache",
            "expiry",
            "any",
            "unused",
            "offline",
            "log",
            "error",
            "audit",
            "audit_skip",
            "audit_required",
            "keys",
            "name",
            "keystore",
            "fs",
            "path",
            "vault",
            "endpoint",
            "engine",
            "approle",
            "id",
            "secret",
            "kubernetes",
            "role",
            "jwt",
            "transit",
            "status",
            "ping",
            "aws",
            "secretsmanager",
            "region",
            "credentials",
            "accesskey",
            "secretkey",
            "azure",
            "keyvault",
            "gcp",
            "secretmanager",
            "project_id",
            "scopes",
            "metrics",
            "root",
            "/v1/ready",
            "skip_auth",
            "timeout",
            "<<",
            "p",
        ]
    ),
    st.text(max_size=3),
)
trees = st.recursive(
    words, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=6))
)
valid: dict[str, Any] = {
    "admin": {"identity": "a"},
    "tls": {"key": "k", "cert": "c"},
    "keystore": {"fs": {"path": "p"}},
}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.text(), trees.map(lambda tree: yaml.safe_dump(tree, allow_unicode=True))))
def test_any_text_is_a_configuration_or_a_config_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yml").write_bytes(text.encode("utf-8", "surrogatepass"))
    with contextlib.suppress(ConfigError):
        assert isinstance(load(tmp_path / "config.yml", apis=APIS), Config)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(
    st.sampled_from(["api", "policy", "cache", "log", "keys", "metrics", "keystore", "tls", "admin", "address"]), trees
)
def test_any_section_is_read_or_a_config_error(tmp_path: Path, key: str, tree: object) -> None:
    (tmp_path / "config.yml").write_text(yaml.safe_dump(valid | {key: tree}, allow_unicode=True))
    with contextlib.suppress(ConfigError):
        assert isinstance(load(tmp_path / "config.yml", apis=APIS), Config)
