"""Servers that run with the configuration files of 2020 to 2022."""

import http.client
from pathlib import Path

import pytest

from support.api import Caller, new_pair
from support.certificates import Pair, make
from support.cli import kes
from support.forms import FORMS, form_of, start_form, write_form
from support.server import RunningServer

OLD = [release for release, (form, _, _) in FORMS.items() if form != "2025"]


def _is_let_in(server: RunningServer, pair: Pair, folder: Path) -> bool:
    try:
        return Caller(server.port, pair, folder).call("GET", "/version").status == 200
    except (OSError, http.client.HTTPException):  # the handshake failed
        return False


@pytest.mark.parametrize("release", OLD)
def test_every_old_form_is_served_in_its_dialect(tmp_path: Path, release: str) -> None:
    admin, app = new_pair(), new_pair()
    identity = Caller(0, admin, tmp_path).identity
    config = write_form(release, tmp_path, admin=identity, apps=(Caller(0, app, tmp_path).identity,))
    form, dialect, _ = form_of(release)
    with start_form(config, tmp_path, "--auth", "off") as server:
        assert {"2020": "of 2020", "2021": "of 2021", "transitional": "of 2022"}[form] in server.line("Dialect")
        assert f"{dialect}, from" in server.line("Dialect")
        assert "can be written through the API" in server.line("Policies")
        root, user = Caller(server.port, admin, tmp_path), Caller(server.port, app, tmp_path)
        assert root.call("POST", "/v1/key/create/app-1").status == 200
        assert user.call("POST", "/v1/key/generate/app-1", {}).status == 200
        assert user.call("POST", "/v1/key/create/other").message == "prohibited by policy"
        assert user.call("POST", "/v1/key/bulk/decrypt/app-1", []).status == 403  # its '*' does not cross a slash
        assert root.call("GET", "/v1/key/list/*").body == b'{"Name":"app-1"}\n'
        rules = root.call("GET", "/v1/policy/read/app").json
        globs = ["/v1/key/*/app-*"]
        assert rules == ({"paths": globs} if dialect == "2021" else {"allow": globs, "deny": []})
        server.process.send_signal(1)  # SIGHUP: the same file again
        server.wait_for("SIGHUP signal completed")
        assert user.call("POST", "/v1/key/generate/app-1", {}).status == 200


@pytest.mark.parametrize("release", ["v0.5.0", "v0.13.4", "v0.14.0", "v0.17.6", "2023-04-18T19-36-09Z"])
def test_until_2023_clients_were_verified(tmp_path: Path, release: str) -> None:
    authority = make("p256", ca=True, name="authority")
    (tmp_path / "ca.crt").write_bytes(authority.cert_pem)
    trusted, stranger = make(issuer=authority, eku=["client"]), new_pair()
    system = {"SSL_CERT_FILE": str(tmp_path / "ca.crt")}
    config = write_form(release, tmp_path, admin=Caller(0, trusted, tmp_path).identity)
    with start_form(config, tmp_path, environment=system) as server:
        assert "certificates are demanded, verified" in server.line("Clients")
        assert _is_let_in(server, trusted, tmp_path)
        assert not _is_let_in(server, stranger, tmp_path)
        assert Caller(server.port, trusted, tmp_path).call("POST", "/v1/key/create/k").status == 200
    for flag in (["--auth", "off"], ["--mtls-auth=ignore"], ["-auth=off"]):
        with start_form(config, tmp_path, *flag, environment=system) as server:
            assert "certificates are demanded, not verified" in server.line("Clients")
            assert _is_let_in(server, stranger, tmp_path)


def test_rules_that_releases_read_differently_are_told_as_globs(tmp_path: Path) -> None:
    policy = {"app": {"paths": ["/v1/*", "/v1/key/*/a", "/v1/key/create/*"], "identities": []}}
    config = write_form("v0.13.4", tmp_path, admin="_", policy=policy)
    done = kes("server", "--config", str(config), "--check")
    assert (done.code, done.stderr) == (0, "")
    notes = [line for line in done.stdout.splitlines() if line.startswith("Note: ")]
    assert len(notes) == 2
    assert all("it is read as a glob" in note for note in notes)


@pytest.mark.parametrize(("before", "after"), [("v0.13.4", "2025"), ("v0.13.4", "v0.17.6"), ("2025", "v0.13.4")])
def test_a_reload_never_changes_the_form(tmp_path: Path, before: str, after: str) -> None:
    config = write_form(before, tmp_path, admin="_")
    with start_form(config, tmp_path, "--auth", "off") as server:
        write_form(after, tmp_path, admin="_")
        server.process.send_signal(1)
        server.wait_for("cannot change while a server runs", stream="stderr")


def test_toml_as_in_2020(tmp_path: Path) -> None:
    write_form("v0.5.0", tmp_path, admin="_")  # for the certificate
    config = tmp_path / "config.toml"
    config.write_text(
        f'''
        address = "127.0.0.1:0"
        root = "_"
        [tls]
        key = "{tmp_path}/server.key"
        cert = "{tmp_path}/server.crt"
        [keystore.fs]
        path = "{tmp_path}/keys"
        '''
    )
    with start_form(config, tmp_path, "--mtls-auth", "ignore") as server:
        assert "2021, from a configuration of the form of 2020" in server.line("Dialect")
        assert "<disabled>" in server.line("Admin")


@pytest.mark.parametrize("release", ["v0.5.0", "v0.13.4", "v0.17.6"])
def test_no_key_store_is_an_error_in_every_form(tmp_path: Path, release: str) -> None:
    config = write_form(release, tmp_path, admin="_", keys=None, keystore=None)
    done = kes("server", "--config", str(config), "--auth", "off")
    assert done.code == 1
    assert "no key store is configured" in done.stderr
    assert "--dev" in done.stderr
