"""`kes init FOLDER`: everything a first server needs, in one folder, made whole or not at all."""

import fcntl
import json
import os
import shlex
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from keswick.cli.command import Arguments, Command, CommandError, Flag
from keswick.files import NewFile, sync_folder, write_files
from keswick.identity import APIKey, is_dns_name, self_signed

if TYPE_CHECKING:
    from keswick.config import Address

CONFIG, SERVER_KEY, SERVER_CERT, API_KEY, KEYS = "config.yaml", "server.key", "server.crt", "admin.apikey", "keys"
_STAGING = ".kes-init"
"""Where the files are made; a run that was cut off is undone by the next one, which finds this folder."""

_CONFIG = """\
# A server for one machine, its keys in a folder. docs/configuration.md of the project describes every key of this file.

address: {address}

admin:
  # Who may do everything: the identity of the API key in {api_key}.
  identity: {admin}

tls:
  key: {key}
  cert: {cert}
  auth: off # clients are known by their keys, whoever issued their certificates

keystore:
  fs:
    # One file per key, in plain text: whoever can read this folder can read what the keys protect.
    path: {keys}

# What each application may do. An identity comes from 'kes identity new'.
#
# policy:
#   my-app:
#     allow:
#     - /v1/key/create/my-app-*
#     - /v1/key/generate/my-app-*
#     - /v1/key/decrypt/my-app-*
#     identities:
#     - <the identity of my-app>

log:
  error: on
  audit: off
"""


def init(arguments: Arguments) -> None:
    word = arguments.word(0, "folder")
    arguments.at_most(1)
    address = _address(arguments)
    folder = Path(os.path.abspath(word))
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise CommandError(f"the name of '{folder}' is not UTF-8, as the configuration file has to be") from None
    api_key = APIKey.generate()
    dns, ips = _names(arguments, address)
    try:
        server = self_signed("localhost", lifetime=timedelta(days=365), dns=dns, ips=ips, server=True)
    except ValueError as error:
        raise CommandError(f"failed to create the server's certificate: {error}") from None
    config = _CONFIG.format(
        address=_quoted(_join(address.host, address.port)),
        api_key=API_KEY,
        admin=_quoted(api_key.identity),
        key=_quoted(str(folder / SERVER_KEY)),
        cert=_quoted(str(folder / SERVER_CERT)),
        keys=_quoted(str(folder / KEYS)),
    )
    with _staging(folder) as staging:
        write_files(
            NewFile(staging / SERVER_KEY, server.key_pem(), secret=True),
            NewFile(staging / SERVER_CERT, server.certificate_pem, secret=False),
            NewFile(staging / API_KEY, api_key.text + "\n", secret=True),
            NewFile(staging / CONFIG, config, secret=False),
        )
        (folder / KEYS).mkdir(mode=0o700)
        for name in (SERVER_KEY, SERVER_CERT, API_KEY, CONFIG):  # with the configuration the folder is finished
            os.link(staging / name, folder / name)  # never over a file that somebody made meanwhile
        sync_folder(folder)
    print(_next_steps(folder, address))


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """A folder to make the files in. A run that fails leaves nothing behind, one that is killed until the next run."""
    created = not folder.exists()
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from None
    staging = folder / _STAGING
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandError(f"another 'kes init' is at work in '{folder}'") from None
        if os.path.lexists(folder / CONFIG):  # whoever was cut off had finished; from then on it is somebody's server
            shutil.rmtree(staging, ignore_errors=True)
        elif staging.exists():
            _undo(folder, staging)
        _refuse_existing(folder)
        done = False
        try:
            staging.mkdir(mode=0o700)
            yield staging
            done = True
        except FileExistsError as error:
            raise CommandError(
                f"'{error.filename2 or error.filename}' already exists; nothing is overwritten"
            ) from None
        finally:
            if done:
                shutil.rmtree(staging)
            else:
                _undo(folder, staging)
                if created:
                    with suppress(OSError):  # somebody else has put something there
                        folder.rmdir()
    finally:
        os.close(lock)


def _undo(folder: Path, staging: Path) -> None:
    """Remove what a run has put into the folder: the files that are those in `staging`, and the key folder."""
    for name in (CONFIG, API_KEY, SERVER_CERT, SERVER_KEY):  # without the configuration it is not finished any more
        with suppress(FileNotFoundError):
            if (staging / name).samefile(folder / name):
                (folder / name).unlink()
    if staging.exists() and (folder / KEYS).is_dir() and not any((folder / KEYS).iterdir()):
        (folder / KEYS).rmdir()
    shutil.rmtree(staging, ignore_errors=True)


def _refuse_existing(folder: Path) -> None:
    names = (CONFIG, SERVER_KEY, SERVER_CERT, API_KEY, KEYS)
    existing = [name for name in names if os.path.lexists(folder / name)]
    if len(existing) == len(names):
        raise CommandError(
            f"'{folder}' is set up already: start the server with 'kes server --config {_shell(folder / CONFIG)}'"
        )
    if existing:
        raise CommandError(
            f"'{folder / existing[0]}' already exists; nothing is overwritten: remove it or name another folder"
        )


def _address(arguments: Arguments) -> "Address":
    from keswick.config import address

    text = arguments.value("address") or "127.0.0.1:7373"
    try:
        return address.parse(text)
    except ValueError as error:
        arguments.fail(f'invalid argument "{text}" for "--address" flag: {error}')


def _names(arguments: Arguments, address: "Address") -> tuple[list[str], list[str]]:
    """The DNS names and IP addresses for the certificate: this machine by its usual names, and what was asked for."""
    dns = ["localhost", *arguments.values("dns")]
    ips = ["127.0.0.1", "::1", *arguments.values("ip")]
    if is_dns_name(name := socket.gethostname()):
        dns.append(name)
    if address.host:
        try:
            if not ip_address(address.host).is_unspecified:
                ips.append(address.host)
        except ValueError:
            dns.append(address.host)
    return list(dict.fromkeys(dns)), list(dict.fromkeys(ips))


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _next_steps(folder: Path, address: "Address") -> str:
    anywhere = address.host in ("", "0.0.0.0", "::")  # noqa: S104 - compared only
    endpoint = _join("127.0.0.1" if anywhere else address.host, address.port)
    return (
        f"Created {folder} with a configuration, a server certificate (valid for a year), and the admin's API key.\n\n"
        f"Start the server:\n\n"
        f"    kes server --config {_shell(folder / CONFIG)}\n\n"
        f"Call it, from another shell:\n\n"
        f"    export KES_SERVER=https://{endpoint}\n"
        f"    export KES_CA_FILE={_shell(folder / SERVER_CERT)}\n"
        f'    export KES_API_KEY="$(cat {_shell(folder / API_KEY)})"\n'
        f"    kes key create my-key"
    )


def _shell(path: Path) -> str:
    return shlex.quote(str(path))


def _quoted(text: str) -> str:
    """A JSON string is a YAML string."""
    return json.dumps(text, ensure_ascii=False)


COMMAND = Command(
    "FOLDER",
    "Set up a folder with everything a first server needs.",
    init,
    (
        Flag("address", "The address the server listens on (default 127.0.0.1:7373).", value="IP:PORT"),
        Flag("dns", "One more DNS name of the server; may be repeated.", value="NAME"),
        Flag("ip", "One more IP address of the server; may be repeated.", value="IP"),
    ),
    details="Nothing that exists is overwritten.",
    examples=("kes init ./kes", "kes init /etc/kes --address 0.0.0.0:7373 --dns kes.example.com"),
)
