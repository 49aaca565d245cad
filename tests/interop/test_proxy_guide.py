"""The guide docs/behind-a-proxy.md, walked as it stands there, with nginx and then with HAProxy."""

import json
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import yaml

from keswick.config import PRESENT, load
from keswick.identity import APIKey
from keswick.server.routes import APIS
from support.proxies import DEPLOY, HAPROXY, NGINX, Environment, deployed, haproxy, nginx, run_proxy
from support.server import RunningServer, running
from support.sockets import free_port
from support.walker import BLOCK, Walker, section, shell_blocks

PAGE = DEPLOY.parent / "docs" / "behind-a-proxy.md"
WITH_NGINX = section(PAGE, "nginx as an HTTP proxy, step by step")
WITH_HAPROXY = section(PAGE, "HAProxy as an HTTP proxy")


class Operator(Walker):
    """Somebody whose /etc and /var are in a folder, and whose kes.example.com is this machine."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        for name in ("etc/kes", "etc/nginx/kes", "etc/haproxy/kes", "var/lib/kes"):
            (folder / name).mkdir(parents=True)
        self.port = free_port()
        self.server_port = free_port()
        self._add(NGINX, nginx())
        self._add(HAPROXY, haproxy())
        self.type(". .venv/bin/activate")

    def _add(self, name: str, program: tuple[Path, Environment]) -> None:
        path, environment = program
        variables = " ".join(f'{key}="{value}"' for key, value in environment.items())
        self.add_program(name, f'{variables} exec "{path}" "$@"')

    def type(self, lines: str) -> str:
        return super().type(self.here(lines).replace("--dns kes.example.com", "--dns localhost"))

    def here(self, text: str) -> str:
        for old, new in (
            ("/etc/", f"{self.folder}/etc/"),
            ("/var/", f"{self.folder}/var/"),
            ("https://kes.example.com", f"https://localhost:{self.port}"),
        ):
            text = text.replace(old, new)
        return text

    def install(self, name: str, target: str) -> Path:
        """Copy a file of deploy/ to where the guide says."""
        text = deployed(name, {})
        text = text.replace("kes-1.internal:7373", f"127.0.0.1:{self.server_port}")
        text = "\n".join(line for line in text.splitlines() if "kes-2.internal" not in line and "kes-3" not in line)
        text = text.replace("listen 443", f"listen 127.0.0.1:{self.port}").replace(":443", f"127.0.0.1:{self.port}")
        text = text.replace("/run/nginx.pid", f"{self.folder}/nginx.pid").replace(
            "0.0.0.0:7373", f"127.0.0.1:{self.server_port}"
        )
        path = Path(self.here(target))
        path.write_text(self.here(text) + "\n")
        return path

    @contextmanager
    def server(self, config: Path) -> Iterator[RunningServer]:
        nobody = APIKey.generate()  # the administrator is disabled
        with running(["server", "--config", str(config)], self.folder, nobody, self.environment) as server:
            yield server


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Operator:
    """After the first two steps, which are the same for both proxies."""
    operator = Operator(tmp_path_factory.mktemp("operator"))
    (operator.folder / "var" / "log" / "nginx").mkdir(parents=True)
    certificates, identities, *_ = shell_blocks(WITH_NGINX)
    operator.type(certificates)
    operator.install("behind-a-proxy.yaml", "/etc/kes/config.yaml")
    assert "The configuration is valid." in operator.type(identities)
    return operator


def test_nginx(operator: Operator) -> None:
    _, _, check, call = shell_blocks(WITH_NGINX)
    config = operator.install("nginx/http.conf", "/etc/nginx/nginx.conf")
    operator.type(check)
    with operator.server(operator.folder / "etc/kes/config.yaml"), run_proxy(NGINX, config, operator.port):
        answers_of(operator, call)


def test_haproxy(operator: Operator) -> None:
    config = operator.install("haproxy/http.cfg", "/etc/haproxy/haproxy.cfg")
    (files,) = shell_blocks(WITH_HAPROXY)
    operator.type(files)
    assert all(path.stat().st_mode & 0o077 == 0 for path in operator.folder.glob("etc/haproxy/kes/*.pem"))
    call = shell_blocks(WITH_NGINX)[-1].replace("my-key", "another-key")
    with operator.server(operator.folder / "etc/kes/config.yaml"), run_proxy(HAPROXY, config, operator.port):
        answers_of(operator, call)


def test_a_proxy_may_shake_hands_for_many_clients_at_once(operator: Operator) -> None:
    context = ssl.create_default_context(cafile=str(operator.folder / "etc/kes/server.crt"))
    folder = operator.folder / "etc/nginx/kes"
    context.load_cert_chain(folder / "proxy.crt", folder / "proxy.key")
    here = ("127.0.0.1", operator.server_port)
    with operator.server(operator.folder / "etc/kes/config.yaml"), ExitStack() as stack:
        begun = [stack.enter_context(socket.create_connection(here, timeout=20)) for _ in range(500)]
        for connection in begun:
            with context.wrap_socket(connection, server_hostname="kes.internal") as shaken:
                assert shaken.version() == "TLSv1.3"


def answers_of(operator: Operator, call: str) -> None:
    printed = operator.type(call)
    assert operator.environment["STORAGE_IDENTITY"] in printed
    assert json.loads(printed.splitlines()[-1]).keys() >= {"plaintext", "ciphertext"}


def test_what_the_page_shows_of_the_configuration_stands_in_the_file() -> None:
    (shown,) = [yaml.safe_load(block) for language, block in BLOCK.findall(WITH_NGINX) if language == "yaml"]
    whole = yaml.safe_load((DEPLOY / "behind-a-proxy.yaml").read_text())
    assert shown["api"] == whole["api"]
    assert shown["tls"]["proxy"] == whole["tls"]["proxy"]


YAML = [
    (name, block)
    for name in ("behind-a-proxy", "side-by-side", "deployment")
    for language, block in BLOCK.findall((PAGE.parent / f"{name}.md").read_text())
    if language == "yaml"
]


@pytest.mark.parametrize(("page", "block"), YAML)
def test_a_configuration_that_is_shown_is_one(
    page: str, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KES_PROXY_IDENTITY", "0" * 64)
    files = "tls:\n  cert: server.crt\n  key: server.key\n"
    text = block.replace("tls:\n", files, 1) if block.startswith("tls:\n") else files + block
    config = tmp_path / "config.yaml"
    config.write_text(f"admin: {{identity: disabled}}\nkeystore: {{fs: {{path: keys}}}}\n{text}")
    assert load(str(config), apis=APIS).form == PRESENT


@pytest.mark.parametrize(("program", "file"), [(NGINX, "nginx/http.conf"), (HAPROXY, "haproxy/http.cfg")])
def test_the_lines_that_the_page_explains_stand_in_the_file(program: str, file: str) -> None:
    text = " ".join((DEPLOY / file).read_text().split())
    lines = (WITH_NGINX if program == NGINX else WITH_HAPROXY).splitlines()
    for line in [line for line in lines if line.startswith("| `")]:
        for words in line.split("|")[1].split("`")[1::2]:
            for part in words.split("…"):
                assert part.strip() in text, words
