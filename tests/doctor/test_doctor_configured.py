"""Each failure of a configuration, provoked for real."""

import os
import resource
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from keswick.crypto import SecretKey
from keswick.doctor import FAILED, OK, WARNING, Finding, configured, examine
from keswick.doctor.configured import checks
from keswick.doctor.rights import FOR_ALL
from keswick.identity import APIKey
from keswick.keystore import KeyStoreError
from keswick.keystore.fs import FSStore
from keswick.server.routes import ROUTES, Access
from support.certificates import make
from support.fake_server import Answer, fake_server
from support.server import running, start_server, write_config

API_KEY = APIKey.generate()
SOMEBODY, NOBODY = "a" * 64, "b" * 64
POLICIES = {
    "my-app": {
        "allow": ["/v1/key/create/my-*", "/v1/key/generate/*", "/v1/status"],
        "deny": ["/v1/key/generate/my-secret*"],
        "identities": [SOMEBODY],
    }
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With all that a configuration needs."""
    make("p256", sans=["localhost", "127.0.0.1"], days=(-1, 365)).write(tmp_path, "server")
    (tmp_path / "keys").mkdir(mode=0o700)
    return tmp_path


def found(folder: Path, config: dict[str, Any] | None = None, **arguments: Any) -> list[Finding]:
    file = write_config(folder, API_KEY, config or {})
    return list(examine(checks(str(file), **arguments)))


def of(check: str, findings: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.result, finding.text) for finding in findings if finding.check == check]


def bad(findings: list[Finding]) -> list[str]:
    return [finding.check for finding in findings if finding.result == FAILED]


def fails(findings: list[Finding], check: str, text: str) -> bool:
    """Whether this check failed, in these words among others, and no other check did."""
    return bad(findings) == [check] and any(text in words for result, words in of(check, findings) if result == FAILED)


def warns(findings: list[Finding], check: str, text: str) -> bool:
    return any(text in words for result, words in of(check, findings) if result == WARNING)


def test_a_configuration_that_is_as_it_should_be(folder: Path) -> None:
    findings = found(folder, write=True)
    assert bad(findings) == []
    assert [finding.check for finding in findings if finding.result == WARNING and finding.check not in MACHINE] == []
    assert list((folder / "keys").iterdir()) == []


MACHINE = {"memory", "open files"}
"""Of these checks nobody knows what they find on the machine of the test."""


def test_what_cannot_be_read_hides_nothing_of_the_machine(folder: Path) -> None:
    findings = found(folder, {"keystore": {"fs": {"pth": "x"}}})
    assert fails(findings, "configuration", "pth")
    assert {finding.check for finding in findings} >= MACHINE


def test_warnings_of_the_configuration(folder: Path) -> None:
    policy = {"allow": ["/v1/key/*/my-key", "v1/nothing"], "identities": [SOMEBODY]}
    findings = found(folder, {"policy": {"p": policy}})
    assert warns(findings, "configuration", "every path begins with '/'")
    assert warns(findings, "configuration", "it is read as a glob")


# --- TLS ---


@pytest.mark.parametrize(
    ("days", "result", "text"),
    [
        ((-30, -1), FAILED, "expired on"),
        ((1, 30), FAILED, "is not valid before"),
        ((-1, 20.5), WARNING, "in 20 days: renew it"),
        ((-1, 1.5), WARNING, "in 1 day: renew it"),
        ((-1, 31), OK, "is valid until"),
    ],
)
def test_dates_of_the_certificate(folder: Path, days: tuple[float, float], result: str, text: str) -> None:
    make("p256", sans=["127.0.0.1"], days=days).write(folder, "server")
    findings = found(folder)
    (found_result, found_text), *_ = of("tls certificate", findings)
    assert found_result == result
    assert text in found_text


def test_a_certificate_without_names(folder: Path) -> None:
    make("p256", days=(-1, 365)).write(folder, "server")
    assert fails(found(folder), "tls certificate", "does not contain any DNS or IP address as SAN")


def test_an_address_that_is_not_in_the_certificate(folder: Path) -> None:
    make("p256", sans=["kes.example.com", "*.internal"], days=(-1, 365)).write(folder, "server")
    assert warns(found(folder), "tls certificate", "it is not for 127.0.0.1, where the server listens")
    assert warns(found(folder, {"address": "localhost:0"}), "tls certificate", "it is not for localhost")
    for address in (":0", "0.0.0.0:0"):
        assert {result for result, _ in of("tls certificate", found(folder, {"address": address}))} == {OK}


def test_the_certificate_of_an_authority(folder: Path) -> None:
    make("p256", sans=["127.0.0.1"], ca=True, days=(-1, 365)).write(folder, "server")
    assert warns(found(folder), "tls certificate", "the certificate of an authority")


def test_the_key_of_another_certificate(folder: Path) -> None:
    (folder / "server.key").write_bytes(make("p256").key_pem)
    findings = found(folder)
    assert fails(findings, "tls pair", "server.key")
    assert of("tls key", findings)[0][0] == OK


@pytest.mark.parametrize(("file", "check"), [("server.crt", "tls certificate"), ("server.key", "tls key")])
def test_files_that_are_not_there_or_something_else(folder: Path, file: str, check: str) -> None:
    (folder / file).write_text("something else")
    assert fails(found(folder), check, file)
    (folder / file).unlink()
    assert fails(found(folder), check, "No such file")


def test_a_private_key_that_everybody_can_read(folder: Path) -> None:
    (folder / "server.key").chmod(0o644)
    assert warns(found(folder), "tls key", "set its mode to 0600")


def test_authorities_of_clients(folder: Path) -> None:
    make("p256", name="old authority", ca=True, days=(-30, -1)).write(folder, "ca")
    config = {"tls": {"auth": "on", "ca": str(folder / "ca.crt")}}
    assert warns(found(folder, config), "tls clients", "'CN=old authority' expired")
    (folder / "ca.crt").write_text("nothing")
    assert fails(found(folder, config), "tls clients", "contains no certificate")


# --- who may do what ---


def test_admins(folder: Path) -> None:
    def admin(identity: str, **config: Any) -> tuple[str, str]:
        (finding,) = of("admin", found(folder, {"admin": {"identity": identity}, **config}))
        return finding

    assert admin(SOMEBODY) == (OK, f"the admin is {SOMEBODY}")
    assert admin("disabled")[0] == WARNING
    assert admin("disabled", policy=POLICIES)[0] == OK
    assert "has 63 characters" in admin("a" * 63)[1]
    assert admin("a" * 63)[0] == WARNING
    assert admin("A" * 64)[0] == WARNING


def test_policies(folder: Path) -> None:
    policies = {
        "empty": {"identities": [SOMEBODY]},
        "unassigned": {"allow": ["/v1/status"]},
        "mistyped": {"allow": ["/v1/keys/create/*", "/v1/*", "/v1/key/create/a*"], "identities": ["c" * 63]},
    }
    findings = found(folder, {"policy": policies})
    assert bad(findings) == []
    assert warns(findings, "policy empty", "it allows nothing")
    assert warns(findings, "policy unassigned", "nobody has it")
    assert of("policy unassigned", findings)[0] == (OK, "it allows 1 rule and denies 0 rules, for nobody")
    assert of("policy mistyped", findings)[0] == (OK, f"it allows 3 rules and denies 0 rules, for {'c' * 63}")
    assert warns(findings, "policy mistyped", "has not the form of an identity")
    misspelt = [text for _, text in of("policy mistyped", findings) if "misspelling" in text]
    assert misspelt == ["the rule '/v1/keys/create/*' matches no path of the API; look for a misspelling"]


def test_tls_proxies(folder: Path) -> None:
    proxies = {"identities": [NOBODY, "proxy-1"], "header": {"cert": "X-Tls-Client-Cert"}}
    findings = found(folder, {"tls": {"proxy": proxies}, "policy": POLICIES})
    assert (OK, f"{NOBODY} forwards the certificates of its clients in 'X-Tls-Client-Cert'") in of(
        "tls proxies", findings
    )
    assert warns(findings, "tls proxies", "'proxy-1' has not the form of an identity")
    assert warns(findings, "configuration", "can act as the admin")
    texts = [text for _, text in of("tls proxies", findings)]
    assert "they can act for 1 identity of the policies and for the admin" in texts
    assert any("are not verified" in text for text in texts)
    findings = found(folder, {"tls": {"proxy": proxies | {"admin": "off"}}}, identity=NOBODY)
    assert not warns(findings, "configuration", "can act as the admin")
    assert (OK, "they can act for 0 identities of the policies") in of("tls proxies", findings)
    assert fails(findings, "rights", "this is a TLS proxy")


def rights(folder: Path, identity: str | None, path: str | None) -> list[tuple[str, str]]:
    return of("rights", found(folder, {"policy": POLICIES}, identity=identity, path=path))


def test_an_identity_and_a_path(folder: Path) -> None:
    assert rights(folder, SOMEBODY, "/v1/key/create/my-key")[1] == (
        OK,
        "it may call '/v1/key/create/my-key': the policy 'my-app' allows '/v1/key/create/my-*'",
    )
    assert rights(folder, SOMEBODY, "/v1/key/generate/my-secret")[1] == (
        FAILED,
        "it may not call '/v1/key/generate/my-secret': the policy 'my-app' denies '/v1/key/generate/my-secret*', which "
        "goes before allow",
    )
    assert rights(folder, SOMEBODY, "/v1/key/delete/my-key")[1][0] == FAILED
    assert rights(folder, API_KEY.identity, "/v1/key/delete/my-key") == [
        (OK, "this is the admin, who may call everything")
    ]
    assert rights(folder, NOBODY, "/v1/key/delete/my-key")[0][0] == FAILED
    assert rights(folder, SOMEBODY, "/v1/key/create/%6dy-key")[1][0] == OK


def test_an_identity_alone_or_a_path_alone(folder: Path) -> None:
    texts = [text for result, text in rights(folder, SOMEBODY, None) if result == OK]
    assert "it may call /v1/key/create/NAME for some names, by '/v1/key/create/my-*'" in texts
    assert "it may call /v1/key/generate/NAME, by '/v1/key/generate/*', but not '/v1/key/generate/my-secret*'" in texts
    assert "/v1/key/delete/NAME" in texts[-1]
    assert "/version" not in texts[-1]
    assert rights(folder, SOMEBODY, "/version")[1] == (OK, "it may call '/version', as all clients may")
    assert rights(folder, None, "/version") == [(OK, "all clients may call '/version'")]
    assert rights(folder, None, "/v1/key/delete/a") == [
        (OK, "the policy 'my-app' refuses '/v1/key/delete/a', as no rule of it matches")
    ]
    assert {route.path for route in ROUTES if route.access is not Access.PERMITTED} == FOR_ALL
    assert rights(folder, None, "/v1/status") == [(OK, "the policy 'my-app' allows '/v1/status', by '/v1/status'")]


@pytest.mark.parametrize("path", ["/v1/keys/create/x", "/v1/key/create/../x", "x", "", "/v1/key/create"])
def test_what_is_no_path(folder: Path, path: str) -> None:
    ((result, text),) = rights(folder, SOMEBODY, path)
    assert result == FAILED
    assert "is no path of the API" in text


def test_an_api_key_in_place_of_an_identity_is_not_shown(folder: Path) -> None:
    ((result, text),) = rights(folder, API_KEY.text, None)
    assert result == FAILED
    assert API_KEY.text not in text


# --- the key store ---


def test_a_key_folder_that_is_not_there_is_not_made(folder: Path) -> None:
    (folder / "keys").rmdir()
    findings = found(folder, write=True)
    assert warns(findings, "key store", "a server makes it when it starts")
    assert fails(findings, "key store write", "the key store is not open")
    assert not (folder / "keys").exists()


def test_an_encrypted_folder_without_a_header_is_not_given_one(folder: Path) -> None:
    """It would belong to whoever asks, which need not be the user of the server, and stand in the way of a restore."""
    (folder / "key").write_bytes(bytes(32))
    config = {
        "keystore": {
            "fs": None,
            "encryptedfs": {"path": str(folder / "keys"), "keyfile": {"path": str(folder / "key")}},
        }
    }
    assert warns(found(folder, config), "key store", "is empty, and has no header: a server makes one when it starts")
    (folder / "key").unlink()
    assert fails(found(folder, config), "key store", "'keyfile.path'")
    assert list((folder / "keys").iterdir()) == []


def test_a_key_that_could_not_be_made_is_not_said_to_stay(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(store: FSStore, name: str, value: bytes = b"") -> None:
        raise KeyStoreError("only reading is allowed")

    monkeypatch.setattr(FSStore, "create", refuse)
    monkeypatch.setattr(FSStore, "delete", refuse)
    assert of("key store write", found(folder, write=True)) == [(FAILED, "only reading is allowed")]


def test_a_key_folder_that_cannot_be_made(folder: Path) -> None:
    findings = found(folder, {"keystore": {"fs": {"path": str(folder / "server.key" / "keys")}}})
    assert fails(findings, "key store", "cannot be made in")


def test_a_key_folder_that_is_a_file(folder: Path) -> None:
    (folder / "keys").rmdir()
    (folder / "keys").write_text("")
    assert fails(found(folder), "key store", "is not a folder")


def test_a_key_store_that_is_away_fails_once(folder: Path) -> None:
    findings = found(folder, {"keystore": {"fs": None, "generic": {"endpoint": "http://127.0.0.1:1"}}})
    assert fails(findings, "key store", "cannot be reached (Connection refused)")


def test_the_key_store_is_closed_in_the_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[FSStore] = []
    monkeypatch.setattr(FSStore, "close", lambda store: closed.append(store))
    found(folder)
    assert len(closed) == 1


def test_stored_keys(folder: Path) -> None:
    for number in range(3):
        (folder / "keys" / f"key-{number}").write_bytes(SecretKey.generate("").encode())
        (folder / "keys" / f"key-{number}").chmod(0o600)
    findings = found(folder)
    assert of("key store list", findings) == [(OK, "it lists 3 keys")]
    assert of("stored keys", findings) == [(OK, "3 are keys that can be used")]
    (folder / "keys" / "key-1").write_text('{"bytes":"c2VjcmV0IQ=="}')
    (folder / "keys" / "key-2").chmod(0o644)
    findings = found(folder)
    assert fails(findings, "stored keys", "'key-1' is no key, requests for it fail")
    assert (OK, "2 are keys that can be used") in of("stored keys", findings)
    assert not any("c2VjcmV0IQ" in finding.text or "secret!" in finding.text for finding in findings)
    assert warns(findings, "key store", "set their mode to 0600")


def test_a_key_folder_that_this_user_may_not_read(folder: Path) -> None:
    write_config(folder, API_KEY, {})
    is_root = os.geteuid() == 0
    (folder / "keys").chmod(0o000)
    if is_root:  # whom no mode stops
        os.chown(folder / "server.key", 65534, 65534)
        for parent in (folder, *folder.parents[:2]):  # those that are made for tests
            parent.chmod(0o755)
        os.seteuid(65534)
    try:
        findings = list(examine(checks(str(folder / "config.yaml"))))
    finally:
        if is_root:
            os.seteuid(0)
    assert fails(findings, "key store", "Permission denied; let the user of this process")
    assert not is_root or warns(findings, "user", "belongs to 'root': run it as the user of the server")


# --- the address ---


def test_an_address_that_another_program_has(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        assert fails(found(folder, {"address": address}), "address", f"another program listens on {address}")


def test_an_address_that_a_server_has(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with start_server(tmp_path_factory.mktemp("server")) as server:
        findings = found(folder, {"address": f"127.0.0.1:{server.port}"})
    assert bad(findings) == []
    assert warns(findings, "address", "a KES server, version")


def test_an_address_that_another_server_with_tls_has(folder: Path) -> None:
    with fake_server(folder, lambda method, path: Answer(404, b"no", "text/plain")) as fake:
        address = fake.endpoint.removeprefix("https://")
        assert fails(found(folder, {"address": address}), "address", "another program listens on")


def test_addresses_that_cannot_be_had(folder: Path) -> None:
    assert fails(found(folder, {"address": "192.0.2.1:7373"}), "address", "it is no address of this machine")
    assert fails(found(folder, {"address": "no-such-host.invalid:7373"}), "address", "cannot listen on 'no-such-host")
    with socket.create_server(("127.0.0.1", 0)) as other:
        metrics = {"address": f"127.0.0.1:{other.getsockname()[1]}"}
        assert fails(found(folder, {"metrics": metrics}), "metrics address", "another program listens")


# --- the machine ---


def test_limits_of_the_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1000, limits[1]))
    try:
        assert warns(found(folder), "open files", "1,000 files can be open at once")
        assert warns(found(folder, {"limits": {"connections": 500}}), "open files", "takes 500 connections")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    monkeypatch.setattr(configured, "_CAP_IPC_LOCK", 0)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1 << 16, 1 << 16))
    assert warns(found(folder), "memory", "CAP_IPC_LOCK")


def test_clocks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: 1e6)
    assert of("clock", found(folder))[0][0] == FAILED
    monkeypatch.setattr(time, "time", lambda: now - 3 * 86400)
    assert warns(found(folder), "clock", "was written in the future")


def test_a_check_that_breaks_hides_nothing_and_shows_no_secret(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr("keswick.doctor.certificates.dates", broken)
    findings = found(folder)
    assert fails(findings, "tls certificate", "it could not be checked: internal error: RuntimeError")
    assert not any("a secret" in finding.text for finding in findings)


def test_what_the_doctor_finds_well_starts(folder: Path) -> None:
    config = {"policy": POLICIES, "keys": [{"name": "my-key"}]}
    assert bad(found(folder, config)) == []
    with running(["server", "--config", str(write_config(folder, API_KEY, config))], folder, API_KEY) as server:
        assert server.endpoint
