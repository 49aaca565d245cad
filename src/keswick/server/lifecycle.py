"""The life of a server process: start, reload, stop.

The configuration is read, the key store opened, predefined keys made, the port bound, the banner printed, and only
then are requests served. SIGHUP reads the configuration anew, SIGTERM and SIGINT let running requests end; what is
broken in a new configuration leaves the old state in force.
"""

import asyncio
import dataclasses
import gc
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from keswick import _native
from keswick.config import TLS, Config, ConfigError, Log, MemoryStore, differing_rules, parse_address
from keswick.config import load as load_config
from keswick.crypto import SecretKey
from keswick.identity import APIKey, self_signed
from keswick.keystore import KeyExists, KeyStore, KeyStoreError
from keswick.keystore import open as open_store
from keswick.server import tls
from keswick.server.addresses import interface_addresses, to_bind
from keswick.server.banner import banner
from keswick.server.cache import KeyCache
from keswick.server.logs import AuditLog, ErrorLog
from keswick.server.metrics import Metrics
from keswick.server.options import ServerOptions
from keswick.server.routes import ROUTES, SKIPPABLE, timeouts
from keswick.server.runtime import Runtime
from keswick.server.second import MetricsListener
from keswick.server.service import Service
from keswick.server.state import State
from keswick.server.store import MeasuredStore
from keswick.server.transport import listen

DRAIN_SECONDS = 15.0
"""How long running requests may take after the signal to stop."""
TLS_RELOAD_SECONDS = 15 * 60.0
TLS_RETRY_SECONDS = 60.0
STORE_THREADS = 16
"""Calls of the key store at the same time."""
OLD_STORE_SECONDS = 30.0
"""How long a store that a reload replaced stays open, for the requests that began with it."""


def run(options: ServerOptions) -> int:
    """Run a server until it is told to stop. Returns the exit code: 0, or 1 when it could not start."""
    _native.forbid_core_dumps()
    memory_locked = not options.dev and not options.check and _native.lock_memory()
    try:
        config, api_key = _development(options) if options.dev else (configured(options), None)
        if options.check:
            return _check(config)
        # The I/O thread waits for the GIL when a store's thread holds it; a short interval bounds how long.
        sys.setswitchinterval(0.0005)
        with asyncio.Runner() as runner:
            return runner.run(_Process(options, memory_locked, api_key).run(config))
    except (ConfigError, KeyStoreError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1


def configured(options: ServerOptions) -> Config:
    """The configuration of the file, with what the command line overrides. Raises ConfigError."""
    if not options.config:
        raise ConfigError(
            "no configuration given: name a file with '--config FILE', make one with 'kes init FOLDER', "
            "or try a server that forgets everything with '--dev'"
        )
    config = load_config(options.config, apis={route.path: route.path in SKIPPABLE for route in ROUTES})
    if config.tls is not None and config.tls.proxy.identities:
        raise ConfigError("tls.proxy: this version does not take forwarded certificates; remove 'tls.proxy.identities'")
    if config.tls is not None and (options.key or options.cert):
        section = dataclasses.replace(
            config.tls, key=options.key or config.tls.key, cert=options.cert or config.tls.cert
        )
        config = dataclasses.replace(config, tls=section)
    if options.auth is not None and config.tls is not None:
        config = dataclasses.replace(config, tls=_with_auth(config.tls, options.auth))
    if options.address is not None:
        config = dataclasses.replace(config, address=parse_address(options.address, "--addr"))
    return config


def _with_auth(section: TLS, auth: str) -> TLS:
    if auth.lower() not in ("on", "off"):
        raise ConfigError(f"invalid option for --auth: '{auth}'; write 'on' or 'off'")
    wanted = auth.lower() == "on"
    if section.auth and not wanted:
        raise ConfigError("'--auth off' contradicts 'tls.auth: on' in the configuration; remove one of them")
    return dataclasses.replace(section, auth=wanted)


def _development(options: ServerOptions) -> tuple[Config, APIKey]:
    """A server for trying things out: keys in memory, a fresh admin API key, a self-made certificate."""
    if options.config:
        raise ConfigError("'--config' flag is not supported in development mode")
    key = APIKey.generate()
    config = Config(admin=key.identity, keystore=MemoryStore(), tls=None, log=Log(audit=0))
    if options.address is not None:
        config = dataclasses.replace(config, address=parse_address(options.address, "--addr"))
    return config, key


def _check(config: Config) -> int:
    """`kes server --check`: what was read is valid; say what it means and where it may surprise."""
    for warning in config.warnings:
        print(f"Warning: {warning}")
    for sentence in differing_rules(config):
        print(f"Note: {sentence}")
    if config.tls is not None:
        tls.load(config.tls, optional=False)
    to_bind(config.address)
    print("The configuration is valid.")
    return 0


class _Process:
    """A running server. Everything here happens on the main thread."""

    def __init__(self, options: ServerOptions, memory_locked: bool, api_key: APIKey | None) -> None:
        self._options = options
        self._memory_locked = memory_locked
        self._api_key = api_key
        self._executor = ThreadPoolExecutor(STORE_THREADS, thread_name_prefix="keystore")
        self._errors = ErrorLog()
        self._audit = AuditLog()
        self._metrics = Metrics(tuple(route.path for route in ROUTES))
        self._signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
        self._background: set[asyncio.Task[None]] = set()

    async def run(self, config: Config) -> int:
        loop = asyncio.get_running_loop()
        try:
            await self._start(loop, config)
        except OSError as error:
            host, port = to_bind(config.address)
            print(f"Error: cannot listen on {host}:{port}: {error.strerror or error}", file=sys.stderr)
            return 1
        while await self._signals.get() is signal.SIGHUP:
            await self._reload()
        await self._stop(loop)
        return 0

    # --- start ---

    async def _start(self, loop: asyncio.AbstractEventLoop, config: Config) -> None:
        self._certificate = self._load_tls(config)
        store = self._open_store(config)
        await self._create_predefined(config, store)
        self._configure_logs(config)
        state = State.of(config, timeouts(config), store, self._new_cache(config, store))
        runtime = Runtime(errors=self._errors, audit=self._audit, metrics=self._metrics, executor=self._executor)
        self._service = Service(runtime, state)
        self._server = listen(self._service.handle, to_bind(config.address), self._certificate.tls)
        self._second = self._listen_second(config)
        self._register_gauges()
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signals.put_nowait, number)
        self._print_banner(config)
        for warning in (*config.warnings, *store.warnings()):
            self._errors.warn(warning)
        self._watcher = self._spawn(state.cache.watch())
        self._spawn(self._log_handshakes())
        if not self._options.dev:
            self._spawn(self._renew_tls())
        # What start-up made stays for good; the collector need not look at it again.
        gc.freeze()
        gc.enable()
        self._server.start()
        if self._second is not None:
            self._second.start()

    def _load_tls(self, config: Config) -> tls.ServerTLS:
        optional = any(api.skip_auth for api in config.api.values())
        if config.tls is not None:
            return tls.load(config.tls, optional=optional)
        made = self_signed(
            "localhost", lifetime=timedelta(days=90), dns=["localhost"], ips=interface_addresses(), server=True
        )
        return tls.from_der([made.certificate], made.key, optional=optional)

    def _open_store(self, config: Config) -> KeyStore:
        return MeasuredStore(open_store(config.keystore), self._metrics.observe_store)

    def _new_cache(self, config: Config, store: KeyStore) -> KeyCache[SecretKey]:
        expiry = config.cache
        return KeyCache(
            store,
            SecretKey.decode,
            any=expiry.any,
            unused=expiry.unused,
            offline=expiry.offline,
            executor=self._executor,
        )

    async def _create_predefined(self, config: Config, store: KeyStore) -> None:
        """Make the keys that the configuration names; those that are there already are left alone."""
        loop = asyncio.get_running_loop()
        for name in config.keys:
            value = SecretKey.generate(config.admin).encode()
            try:
                await loop.run_in_executor(self._executor, store.create, name, value)
            except KeyExists:
                continue

    def _configure_logs(self, config: Config) -> None:
        self._errors.level = config.log.error
        self._audit.configure(
            enabled=config.log.audit <= 0, skip=config.log.audit_skip, required=config.log.audit_required
        )

    def _listen_second(self, config: Config) -> _native.Server | None:
        if config.metrics is None:
            return None
        certificate = tls.load_for_metrics(config.tls) if config.metrics.tls and config.tls is not None else None
        return listen(MetricsListener(self._service).handle, to_bind(config.metrics.address), certificate)

    def _register_gauges(self) -> None:
        self._metrics.watch(
            server=self._server.stats,
            cache=lambda: self._service.state.cache,
            certificate_expiry=lambda: self._certificate.not_after,
            errors=self._errors,
            audit=self._audit,
        )

    def _print_banner(self, config: Config) -> None:
        text = banner(
            config,
            self._service.state.store.description,
            self._server.address,
            memory_locked=self._memory_locked,
            api_key=self._api_key.text if self._api_key is not None else None,
        )
        print(text, flush=True)

    def _spawn(self, work: "asyncio._CoroutineLike[None]") -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    # --- while it runs ---

    async def _log_handshakes(self) -> None:
        while True:
            await asyncio.sleep(1)
            for peer, reason in self._server.take_handshake_errors():
                self._errors.info(f"tls: handshake error from {peer}: {reason}")

    async def _renew_tls(self) -> None:
        """Read the TLS section and its files again and again: certificates are renewed on disk.

        A certificate that does not fit its key, half of a renewal, leaves the old pair in force and is tried again
        soon.
        """
        loop = asyncio.get_running_loop()
        wait = TLS_RELOAD_SECONDS
        while True:
            await asyncio.sleep(wait)
            try:
                config = await loop.run_in_executor(self._executor, configured, self._options)
                old = self._service.state.config
                self._use_tls(dataclasses.replace(old, tls=config.tls), old)
                self._service.state = dataclasses.replace(
                    self._service.state, config=dataclasses.replace(old, tls=config.tls)
                )
                wait = TLS_RELOAD_SECONDS
            except ConfigError as error:
                print(f"Failed to reload TLS configuration: {error}", file=sys.stderr, flush=True)
                wait = TLS_RETRY_SECONDS

    async def _reload(self) -> None:
        print("SIGHUP signal received. Reloading configuration...", file=sys.stderr, flush=True)
        if self._options.dev:
            print("There is nothing to reload in development mode.", file=sys.stderr, flush=True)
            return
        try:
            loop = asyncio.get_running_loop()
            config = await loop.run_in_executor(self._executor, configured, self._options)
            await self._install(config)
        except (ConfigError, KeyStoreError) as error:
            print(f"Failed to reload server config: {error}", file=sys.stderr, flush=True)
            return
        print()
        self._print_banner(config)
        print("=> Reloading configuration after SIGHUP signal completed.", flush=True)

    async def _install(self, config: Config) -> None:
        """Put a new configuration in force, all of it or nothing."""
        old = self._service.state
        certificate = self._load_tls(config)
        store, cache = old.store, old.cache
        if config.keystore != old.config.keystore:
            loop = asyncio.get_running_loop()
            store = await loop.run_in_executor(self._executor, self._open_store, config)
            cache = self._new_cache(config, store)
        await self._create_predefined(config, store)
        state = State.of(config, timeouts(config), store, cache)

        self._certificate = certificate
        self._server.set_tls(certificate.tls, drain=_tightened(old.config, config))
        self._service.state = state
        self._configure_logs(config)
        if cache is old.cache:
            cache.configure(any=config.cache.any, unused=config.cache.unused, offline=config.cache.offline)
        else:
            self._watcher.cancel()
            self._watcher = self._spawn(cache.watch())
            asyncio.get_running_loop().call_later(OLD_STORE_SECONDS, old.store.close)
        for warning in config.warnings:
            self._errors.warn(warning)
        for what, before, now in (
            ("address", old.config.address, config.address),
            ("metrics", old.config.metrics, config.metrics),
        ):
            if before != now:
                self._errors.warn(
                    f"a new '{what}' takes effect when the server is started again; the old one stays bound"
                )

    def _use_tls(self, config: Config, old: Config) -> None:
        certificate = self._load_tls(config)
        self._server.set_tls(certificate.tls, drain=_tightened(old, config))
        self._certificate = certificate

    # --- stop ---

    async def _stop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let running requests end, then close everything. A second signal ends the process at once."""
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, os._exit, 1)
        self._service.runtime.draining = True
        self._server.drain()
        await loop.run_in_executor(None, self._server.wait_drained, DRAIN_SECONDS)
        for server in (self._server, self._second):
            if server is not None:
                await loop.run_in_executor(None, server.close)
        for task in self._background:
            task.cancel()
        self._service.state.store.close()
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._errors.close()
        self._audit.close()
        print("\n=> Stopping server... Goodbye.", flush=True)


def _tightened(old: Config, new: Config) -> bool:
    """Whether clients that were let in by the old rules might not be let in by the new ones."""
    if old.tls is None or new.tls is None or not new.tls.auth:
        return False
    return not old.tls.auth or old.tls.ca != new.tls.ca
