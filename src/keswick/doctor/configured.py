"""A configuration, and everything that it names: would a server start with it, and serve?"""

import os
import resource
import secrets
import socket
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, partial
from ipaddress import ip_address
from itertools import islice
from pathlib import Path
from typing import NoReturn

from keswick import _native, keystore
from keswick._native import Certificate
from keswick.config import TLS, Address, Config, ConfigError
from keswick.crypto import KeyFormatError, SecretKey
from keswick.doctor import Check, Finding, certificates, failed, milliseconds, ok, rights, warning
from keswick.encoding import day
from keswick.identity import is_identity
from keswick.keystore import KeyExists, KeyNotFound, KeyStore, KeyStoreError, KeyStoreUnreachable
from keswick.names import is_name
from keswick.server import routes, tls
from keswick.server.access import Access
from keswick.server.addresses import interface_addresses, to_bind, to_reach
from keswick.server.options import ServerOptions
from keswick.server.settings import configured, notes

_IDENTITY_DIGITS = 64
_SHOWN_IDENTITIES = 3
_COUNTED_KEYS = 100_000
_READ_KEYS = 100
_SLOW_STORE = 1.0  # seconds
_THE_PAST = 1_735_689_600  # 2025-01-01, before this program was written
_DAY = 86400.0
_CAP_IPC_LOCK = 1 << 14  # linux/capability.h


def checks(file: str, *, identity: str | None = None, path: str | None = None, write: bool = False) -> Iterator[Check]:
    """`identity` and `path`: whose right to ask for what is wanted. `write`: whether a key may be made, to see whether
    that works; it is deleted again."""
    limits: Mapping[str, float] = {}
    try:
        config = configured(ServerOptions(config=file))
    except ConfigError as error:
        yield Check("configuration", partial(_raise, error))
    else:
        limits = config.limits
        yield from _Configured(file, config, identity, path, write).checks()
    yield Check("memory", _memory)
    yield Check("open files", partial(_open_files, limits))
    yield Check("clock", partial(_clock, file))


def _raise(error: Exception) -> NoReturn:
    raise error


class _Configured:
    """The checks of a configuration that can be read."""

    def __init__(self, file: str, config: Config, identity: str | None, path: str | None, write: bool) -> None:
        self.file = file
        self.config = config
        self.identity = identity
        self.path = path
        self.write = write

    def checks(self) -> Iterator[Check]:
        yield Check("configuration", self.configuration)
        if self.config.tls is not None:
            section = self.config.tls
            yield Check("tls certificate", partial(self.certificate, section))
            yield Check("tls key", partial(self.private_key, section))
            yield Check("tls pair", partial(self.pair, section))
            yield Check("tls clients", partial(self.clients, section))
            if section.proxy.identities:
                yield Check("tls proxies", partial(self.proxies, section))
        yield Check("admin", self.admin)
        for name in self.config.policies:
            yield Check(f"policy {name}", partial(self.policy, name))
        if self.identity is not None or self.path is not None:
            yield Check("rights", self.rights)
        try:
            yield Check("key store", self.store)
            yield Check("key store list", self.list_keys)
            yield Check("stored keys", self.stored_keys)
            yield Check("key store read", self.read_key)
            if self.write:
                yield Check("key store write", self.write_key)
        finally:
            if self.opened is not None:
                self.opened.close()
        yield Check("address", partial(_listener, self.config.address))
        if self.config.metrics is not None:
            yield Check("metrics address", partial(_listener, self.config.metrics.address))
        yield Check("user", self.user)

    # --- the file ---

    def configuration(self) -> Iterator[Finding]:
        yield ok(f"'{self.file}' can be used")
        yield from map(warning, self.config.warnings)
        yield from map(warning, notes(self.config))

    # --- TLS ---

    def certificate(self, section: TLS) -> Iterator[Finding]:
        leaf = Certificate(tls.chain(section)[0])
        yield from certificates.dates(leaf, f"the certificate '{section.cert}'")
        if leaf.is_ca:
            yield warning(f"'{section.cert}' is the certificate of an authority, which some clients refuse of a server")
        tls.refuse_nameless(section, leaf)
        yield ok(f"it is for {', '.join(certificates.names(leaf))}")
        missing = [host for host in self._hosts() if not certificates.is_for(leaf, host)]
        if missing:
            yield warning(
                f"it is not for {' and '.join(missing)}, where the server listens: clients that call it so refuse it; "
                "call it by a name of the certificate, or make one with this name in its subjectAltName"
            )

    def _hosts(self) -> list[str]:
        """Under which the server is called for sure: the address that is configured, unless that is all of them."""
        host = self.config.address.host
        try:
            return [] if not host or ip_address(host).is_unspecified else [host]
        except ValueError:
            return [host]

    def private_key(self, section: TLS) -> Iterator[Finding]:
        tls.private_key(section)
        yield ok(f"'{section.key}' can be read")
        if os.stat(section.key).st_mode & stat.S_IRWXO:
            yield warning(f"all users of this machine can use '{section.key}': set its mode to 0600")

    def pair(self, section: TLS) -> Iterator[Finding]:
        try:
            chain, key = tls.chain(section), tls.private_key(section)
        except ConfigError:
            return  # as the checks of each have told
        try:
            tls.from_der(chain, key, optional=True)
        except ValueError as error:
            yield failed(f"'{section.cert}' and '{section.key}': {error}")
        else:
            yield ok("certificate and key belong together")

    def clients(self, section: TLS) -> Iterator[Finding]:
        if not section.auth:
            yield ok("clients may have any certificate; their policies decide")
            return
        found = [Certificate(root) for root in tls.client_roots(section)]
        yield ok(f"clients' certificates must come from one of {len(found)} authorities")
        for root in found:
            if section.ca and time.time() > root.not_after:
                end = day(root.not_after)
                yield warning(f"the authority '{root.subject}' expired on {end}; clients that it certified are refused")

    def proxies(self, section: TLS) -> Iterator[Finding]:
        proxy = section.proxy
        for identity in proxy.identities:
            if is_identity(identity):
                yield ok(f"{identity} forwards the certificates of its clients in '{proxy.header}'")
            else:
                yield warning(
                    f"'{identity}' has not the form of an identity, which is {_IDENTITY_DIGITS} digits from 0 to f: it "
                    "is no client's; compute it anew with 'kes identity of'"
                )
        count = sum(len(policy.identities) for policy in self.config.policies.values())
        admin = " and for the admin" if proxy.admin and is_identity(self.config.admin) else ""
        yield ok(f"they can act for {count} {'identity' if count == 1 else 'identities'} of the policies{admin}")
        if not section.auth:
            yield ok(
                "forwarded certificates are not verified, as 'tls.auth' is off: the proxies vouch for their clients"
            )

    # --- who may do what ---

    def admin(self) -> Iterator[Finding]:
        admin = self.config.admin
        if is_identity(admin):
            yield ok(f"the admin is {admin}")
        elif len(admin) > _IDENTITY_DIGITS // 2 and set(admin) <= set("0123456789abcdefABCDEF"):
            yield warning(
                f"'admin.identity' has {len(admin)} characters, and an identity {_IDENTITY_DIGITS} digits from 0 to f: "
                "it matches nobody; compute it anew with 'kes identity of'"
            )
        elif any(policy.identities for policy in self.config.policies.values()):
            yield ok(f"there is no admin: '{admin}' matches nobody")
        else:
            yield warning(
                f"there is no admin ('{admin}' matches nobody), and no policy has an identity: nobody is served"
            )

    @cached_property
    def access(self) -> Access:
        return Access.configured(self.config, "")

    @property
    def routes(self) -> list[str]:
        return [route.path for route in routes.ROUTES if self.config.runtime_policies or not route.is_optional]

    @property
    def for_all(self) -> frozenset[str]:
        """The paths that no policy is asked about."""
        return rights.FOR_ALL | {path for path, api in self.config.api.items() if api.skip_auth}

    def policy(self, name: str) -> Iterator[Finding]:
        policy = self.config.policies[name]
        shown = ", ".join(policy.identities[:_SHOWN_IDENTITIES]) or "nobody"
        more = len(policy.identities) - _SHOWN_IDENTITIES
        who = f"{shown} and {more} more" if more > 0 else shown
        yield ok(f"it allows {_counted(policy.allow)} and denies {_counted(policy.deny)}, for {who}")
        if not policy.allow:
            yield warning("it allows nothing: who has this policy is refused everything")
        if not policy.identities:
            yield warning("nobody has it: name the identities that it is for, or remove it")
        for identity in policy.identities:
            if not is_identity(identity):
                yield warning(
                    f"'{identity}' has not the form of an identity, which is {_IDENTITY_DIGITS} digits from 0 to f: "
                    "it matches nobody; compute it anew with 'kes identity of'"
                )
        for rule in (*policy.allow, *policy.deny):
            if rights.matches_no_route(rule, self.routes):
                yield warning(f"the rule '{rule}' matches no path of the API; look for a misspelling")

    def rights(self) -> Iterator[Finding]:
        path = _decoded(self.path) if self.path is not None else None
        if self.identity is None:
            assert path is not None
            if path in self.for_all:
                yield ok(f"all clients may call '{path}'")
                return
            for name, entry in self.access.policies.items():
                permitted, rule = entry.policy.explain(path)
                by = f"by '{rule}'" if rule else "as no rule of it matches"
                yield ok(f"the policy '{name}' {'allows' if permitted else 'refuses'} '{path}', {by}")
            return
        if not is_name(self.identity):
            raise ValueError("'--identity' is not an identity, which is 64 digits from 0 to f; see 'kes identity of'")
        if self.identity == self.config.admin:
            yield ok("this is the admin, who may call everything")
            return
        if self.config.tls is not None and self.identity in self.config.tls.proxy.identities:
            yield failed(
                "this is a TLS proxy, which has no rights but those of the clients whose certificates it forwards"
            )
            return
        if self.config.runtime_policies:
            yield warning("policies can be written at run time: a running server may decide otherwise")
        assignment = self.access.assignments.get(self.identity)
        if assignment is None:
            yield failed(
                "this identity has no policy, and is refused everything: add it to the 'identities' of a policy"
            )
            return
        yield ok(f"this identity has the policy '{assignment.policy}'")
        policy = self.access.policies[assignment.policy].policy
        if path is None:
            yield from rights.of_routes("it", policy, self.routes, self.for_all)
        else:
            yield rights.of_path("it", policy, path, self.for_all)

    # --- the key store ---

    def store(self) -> Iterator[Finding]:
        section = self.config.keystore
        folder = keystore.folder(section)
        if folder is not None and keystore.is_new(section):  # to open it would make it
            yield _new_folder(folder)
            return
        self.opened = store = keystore.open(section)
        yield ok(store.description)
        try:
            seconds = store.status()
        except KeyStoreUnreachable:  # the other checks would find out the same, each after a while
            self.opened = None
            store.close()
            raise
        if seconds > _SLOW_STORE:
            yield warning(f"it took {seconds:.1f} s to answer: see what slows it or its network down")
        else:
            yield ok(f"it answers, after {milliseconds(seconds)}")
        yield from map(warning, store.warnings())

    opened: KeyStore | None = None
    """None until it is open, and if it cannot be, or is away."""

    @cached_property
    def names(self) -> list[str]:
        """Of all keys, or of very many."""
        return [] if self.opened is None else list(islice(self.opened.list(""), _COUNTED_KEYS + 1))

    def list_keys(self) -> Iterator[Finding]:
        if self.opened is not None:
            count = len(self.names)
            many = f"more than {_COUNTED_KEYS:,}" if count > _COUNTED_KEYS else f"{count:,}"
            yield ok(f"it lists {many} key{'s' * (count != 1)}")

    def stored_keys(self) -> Iterator[Finding]:
        store = self.opened
        if store is None:
            return
        chosen = sorted(self.names)[:_READ_KEYS]
        sound = 0
        for name in chosen:
            try:
                SecretKey.decode(store.get(name))
                sound += 1
            except KeyNotFound:
                continue  # deleted meanwhile
            except KeyFormatError as error:
                yield failed(
                    f"'{name}' is no key, requests for it fail ({error}): restore it from a backup, or delete it"
                )
            except KeyStoreError as error:
                yield failed(f"'{name}' cannot be read: {error}")
        if sound:
            more = f" of those, the first {len(chosen)}," if len(self.names) > len(chosen) else ""
            yield ok(f"{sound}{more} {'is a key' if sound == 1 else 'are keys'} that can be used")

    def read_key(self) -> Iterator[Finding]:
        if self.opened is None:
            return
        try:
            self.opened.get(_probe_name())
        except KeyNotFound:
            yield ok("it says so when there is no key of a name")
        else:
            yield failed("it has a value for a name that nobody gave: it is no key store, or the wrong one")

    def write_key(self) -> Iterator[Finding]:
        store = self.opened
        if store is None:
            yield failed("nothing was written, because the key store is not open")
            return
        name, value = _probe_name(), SecretKey.generate("").encode()
        begin = time.perf_counter()
        try:
            store.create(name, value)
        except KeyStoreError:
            with suppress(KeyNotFound, KeyStoreError):  # it may have been made, and its answer lost
                store.delete(name)
            raise
        try:
            if store.get(name) != value:
                yield failed(f"what was kept as '{name}' comes back changed: no key is safe in this store")
            try:
                store.create(name, value)
                yield failed("it keeps a second key under a name that is taken: the first would be lost")
            except KeyExists:
                pass
        finally:
            try:
                store.delete(name)
            except KeyNotFound:
                pass
            except KeyStoreError as error:
                yield failed(f"the key '{name}' of this check stays, for it cannot be deleted: {error}")
        seconds = time.perf_counter() - begin
        yield ok(f"a key could be created, read and deleted, in {milliseconds(seconds)}")

    # --- this process ---

    def user(self) -> Iterator[Finding]:
        folder = keystore.folder(self.config.keystore)
        if folder is not None and folder.exists():
            owner = folder.stat().st_uid
            if owner != os.geteuid():
                yield warning(
                    f"this runs as {_user(os.geteuid())}, and the key folder belongs to {_user(owner)}: run it as the "
                    "user of the server, whose permissions count"
                )
                return
        yield ok(f"this runs as {_user(os.geteuid())}; a server under another user may have other permissions")


def _counted(rules: Sequence[str]) -> str:
    return f"{len(rules)} rule{'s' * (len(rules) != 1)}"


def _new_folder(path: Path) -> Finding:
    if os.path.lexists(path):
        return warning(
            f"the key folder '{path}' is empty, and has no header: a server makes one when it starts. If there should "
            "be keys, mount or restore the folder first"
        )
    parent = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    if parent.is_dir() and os.access(parent, os.W_OK | os.X_OK):
        return warning(f"the key folder '{path}' is not there: a server makes it when it starts")
    return failed(
        f"the key folder '{path}' is not there, and cannot be made in '{parent}': make it, for the server's user"
    )


def _listener(address: Address) -> Iterator[Finding]:
    host, port = to_bind(address)
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen()
        except OSError as error:
            yield _taken(host, port, where) if _is_taken(error) else failed(_cannot_listen(where, error))
        else:
            yield ok(f"{where} is free, to be reached at {', '.join(f'{at}:{port}' for at in to_reach(host))}")


def _is_taken(error: OSError) -> bool:
    from errno import EADDRINUSE

    return error.errno == EADDRINUSE


def _cannot_listen(where: str, error: OSError) -> str:
    from errno import EACCES, EADDRNOTAVAIL

    match error.errno:
        case code if code == EADDRNOTAVAIL:
            advice = f"it is no address of this machine, which has {', '.join(interface_addresses())}"
        case code if code == EACCES:
            advice = "ports below 1024 need the capability CAP_NET_BIND_SERVICE"
        case _:
            advice = "choose another 'address'"
    return f"cannot listen on {where}: {error.strerror}; {advice}"


def _taken(host: str, port: int, where: str) -> Finding:
    """Who listens there: a server that runs with this very configuration is no mistake."""
    from keswick.client import APIError, Client, ClientRefused, ConnectionFailed
    from keswick.identity import APIKey

    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared only
    endpoint = f"https://[{local}]:{port}" if ":" in local else f"https://{local}:{port}"
    try:
        with Client(
            endpoint, api_key=APIKey.generate(), verify=False, timeout=3, connect_timeout=1, retries=0
        ) as client:
            who = f"a KES server, version {client.version().version},"
    except ClientRefused:
        who = "a server that demands the certificate of another client"
    except (APIError, ConnectionFailed):
        return failed(f"another program listens on {where}: stop it, or choose another 'address'")
    return warning(f"{who} listens on {where}: if it is not this one, stop it or choose another 'address'")


def _memory() -> Iterator[Finding]:
    if _may_lock_memory():
        yield ok("a server can keep its memory, with all keys, out of swap")
    else:
        yield warning(
            "a server cannot keep its memory, with all keys, out of swap: give it the capability CAP_IPC_LOCK or "
            "LimitMEMLOCK=infinity, or let the machine have no swap"
        )


def _may_lock_memory() -> bool:
    """As `_native.lock_memory` decides it, but without doing it: this process may be one that goes on."""
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY:
        return True
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        effective = next((line.split()[1] for line in status if line.startswith("CapEff:")), "0")
    return bool(int(effective, 16) & _CAP_IPC_LOCK)


def _open_files(limits: Mapping[str, float]) -> Iterator[Finding]:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    connections = int(limits.get("connections", _native.DEFAULT_LIMITS["connections"]))
    if limit == resource.RLIM_INFINITY or limit > connections + 1000:
        yield ok("as many files can be open as a server takes connections")
    else:
        yield warning(
            f"{limit:,} files can be open at once, and a server takes {connections:,} connections: "
            "set LimitNOFILE=65536 in its unit, or 'ulimit -n 65536'"
        )


def _clock(file: str) -> Iterator[Finding]:
    now = time.time()
    if now < _THE_PAST:
        yield failed(f"the clock says {day(int(now))}: set it, or no certificate is valid")
    elif Path(file).exists() and os.stat(file).st_mtime > now + _DAY:
        yield warning(f"'{file}' was written in the future, says the clock ({day(int(now))}): see if it is right")
    else:
        yield ok("it may be right")


def _decoded(path: str) -> str:
    """The path as a policy sees it. Raises ValueError."""
    try:
        route, decoded, _ = routes.resolve(path)
    except routes.UncleanPath:
        route = None
    if route is None:
        raise ValueError(f"'{path}' is no path of the API; 'kes status --api' lists them")
    return decoded


def _probe_name() -> str:
    return f"keswick-doctor-{secrets.token_hex(8)}"


def _user(number: int) -> str:
    import pwd

    try:
        return f"'{pwd.getpwuid(number).pw_name}'"
    except KeyError:
        return f"user {number}"
