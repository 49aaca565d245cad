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
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial

from keswick import _native
from keswick.config import PRESENT, Config, ConfigError, duration
from keswick.crypto import SecretKey
from keswick.identity import APIKey, self_signed
from keswick.keystore import KeyExists, KeyStore, KeyStoreError, KeyStoreUnreachable
from keswick.keystore import open as open_store
from keswick.server import tls
from keswick.server.addresses import interface_addresses
from keswick.server.banner import banner
from keswick.server.cache import KeyCache
from keswick.server.console import STDERR, Console
from keswick.server.faults import describe
from keswick.server.forwarded import Forwarding
from keswick.server.listings import Listings
from keswick.server.logs import AuditLog, ErrorLog
from keswick.server.metrics import Metrics
from keswick.server.options import ServerOptions
from keswick.server.routes import ROUTES, body_limits, timeouts
from keswick.server.runtime import Runtime
from keswick.server.second import MetricsListener
from keswick.server.service import Service
from keswick.server.settings import check, configured, development
from keswick.server.signals import Signals
from keswick.server.state import State
from keswick.server.store import MeasuredStore, StoreThreads
from keswick.server.tls import ServerTLS
from keswick.server.transport import listen

TLS_RELOAD_SECONDS = 15 * 60.0
TLS_RETRY_SECONDS = 60.0
THREADS = 4
"""For reading files and opening key stores; the calls of a store have threads of their own."""
CLOSE_SECONDS = 2.0
"""How long a key store may take to say good-bye, at the end."""
FLUSH_SECONDS = 2.0
"""How long a log or the console may take to write what is left, at the end."""
OLD_STORE_SECONDS = 30.0
"""How long a store that a reload replaced stays open, for the requests that began with it."""


def run(options: ServerOptions) -> int:
    """Run a server until it is told to stop. Returns the exit code: 0, or 1 when it could not start."""
    _native.forbid_core_dumps()
    signal.signal(signal.SIGTERM, _at_once())  # until there is something to stop
    try:
        memory_locked = _lock_memory(options)
        config, api_key = development(options) if options.dev else (configured(options), None)
        if options.check:
            print("\n".join([*check(config), "The configuration is valid."]))
            return 0
        # The I/O thread waits for the GIL when a store's thread holds it; a short interval bounds how long.
        sys.setswitchinterval(0.0005)
        with asyncio.Runner() as runner:
            runner.run(_serve(options, config, memory_locked, api_key))
    except (ConfigError, KeyStoreError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


def _lock_memory(options: ServerOptions) -> bool:
    """Whether it is done. Raises ConfigError when it was asked for and cannot be."""
    if options.check or (options.dev and not options.mlock):
        return False
    locked = _native.lock_memory()
    if options.mlock and not locked:
        raise ConfigError(
            "--mlock: memory cannot be locked: give the process the capability CAP_IPC_LOCK or an unlimited limit "
            "('ulimit -l unlimited'), or leave '--mlock' out, for it is tried in any case"
        )
    return locked


async def _serve(options: ServerOptions, config: Config, memory_locked: bool, api_key: APIKey | None) -> None:
    await _Process(options, memory_locked, api_key).run(config)


class _Process:
    """A running server. Everything here happens on the main thread, and nothing that may wait blocks it."""

    def __init__(self, options: ServerOptions, memory_locked: bool, api_key: APIKey | None) -> None:
        self._options = options
        self._memory_locked = memory_locked
        self._api_key = api_key
        self._console = Console()
        self._runtime = Runtime(
            errors=ErrorLog(),
            audit=AuditLog(),
            metrics=Metrics(tuple(route.path for route in ROUTES)),
            executor=ThreadPoolExecutor(THREADS, thread_name_prefix="worker"),
        )
        self._stop_asked = asyncio.Event()
        self._reload_asked = asyncio.Event()
        self._changing = asyncio.Lock()
        """Held while the configuration in force changes."""
        self._background: set[asyncio.Task[None]] = set()

    async def run(self, config: Config) -> None:
        await self._start(config)
        await self._stop_asked.wait()
        await self._stop()

    # --- start ---

    async def _start(self, config: Config) -> None:
        self._certificate = _load_tls(config)
        store = self._open_store(config)
        cache = self._new_cache(config, store)
        await self._create_predefined(config, store, cache)
        state = self._state(config, store, cache, _listings(cache, store), self._certificate)
        self._configure_logs(state)
        self._service = Service(self._runtime, state)
        self._server = listen(
            self._service.handle,
            config.address,
            self._certificate.tls,
            body_limits=body_limits(config),
            limits=config.limits,
            proxy_protocol=config.proxy_protocol,
        )
        self._second_speaks_tls = config.metrics is not None and config.metrics.tls
        self._second = self._listen_second(config)
        self._register_gauges()
        loop = self._runtime.loop
        signals = Signals(loop)
        signals.on(signal.SIGHUP, self._reload_asked.set)
        signals.on(signal.SIGTERM, self._stop_asked.set)
        signals.on(signal.SIGINT, self._stop_asked.set)
        self._say(self._banner(config))
        for warning in (*config.warnings, *store.warnings(), *self._certificate.warnings(time.time())):
            self._runtime.errors.warn(warning)
        self._watcher = self._spawn(state.cache.watch())
        self._spawn(self._log_transport())
        self._spawn(self._reload_when_asked())
        if not self._options.dev:
            self._spawn(self._renew_tls())
        # What start-up made stays for good; the collector need not look at it again.
        gc.freeze()
        gc.enable()
        self._server.start()
        if self._second is not None:
            self._second.start()

    def _open_store(self, config: Config) -> KeyStore:
        return MeasuredStore(open_store(config.keystore), self._runtime.metrics.observe_store)

    def _new_cache(self, config: Config, store: KeyStore) -> KeyCache[SecretKey]:
        expiry = config.cache
        return KeyCache(
            store,
            SecretKey.decode,
            any=expiry.any,
            unused=expiry.unused,
            offline=expiry.offline,
            threads=StoreThreads(),
            report=self._report_outage,
        )

    def _report_outage(self, error: KeyStoreError | None, seconds: float) -> None:
        lasted = f" for {duration.format(round(seconds))}" if seconds else ""
        if error is None:
            self._runtime.errors.warn(f"the key store is back, after it was away{lasted}")
        else:
            away = "is not reachable" if isinstance(error, KeyStoreUnreachable) else "is unavailable"
            self._runtime.errors.error(f"the key store {away}{lasted}: {error}")

    def _state(
        self,
        config: Config,
        store: KeyStore,
        cache: KeyCache[SecretKey],
        listings: Listings,
        certificate: ServerTLS,
    ) -> State:
        forwarding = Forwarding.configured(config, certificate.verifier, self._runtime.errors)
        return State.of(config, self._runtime.started_at, timeouts(config), store, cache, listings, forwarding)

    async def _create_predefined(
        self, config: Config, store: KeyStore, cache: KeyCache[SecretKey], made: Collection[str] = ()
    ) -> None:
        """Make the keys that the configuration names, but for those that were `made`; those that are there already are
        left alone."""
        for name in config.keys:
            if name in made:
                continue
            value = SecretKey.generate(config.admin).encode()
            try:
                await self._runtime.blocking(store.create, name, value)
                cache.forget(name)
            except KeyExists:
                continue
            except KeyStoreError as error:
                raise KeyStoreError(f"keys: cannot create '{name}': {error}") from error

    def _configure_logs(self, state: State) -> None:
        log = state.config.log
        self._runtime.errors.level = log.error
        self._runtime.errors.of_2023 = state.config.dialect != PRESENT
        self._runtime.audit.configure(
            enabled=log.audit <= 0, skip=log.audit_skip, required=log.audit_required, form=state.audit_form
        )

    def _listen_second(self, config: Config) -> _native.Server | None:
        if config.metrics is None:
            return None
        certificate = self._certificate.public if config.metrics.tls else None
        return listen(
            MetricsListener(self._service).handle,
            config.metrics.address,
            certificate,
            limits=config.limits,
            proxy_protocol=config.metrics.proxy_protocol,
        )

    def _register_gauges(self) -> None:
        self._runtime.metrics.watch(
            server=self._server.stats,
            cache=lambda: self._service.state.cache,
            certificate_expiry=lambda: self._certificate.not_after,
            errors=self._runtime.errors,
            audit=self._runtime.audit,
        )

    def _banner(self, config: Config) -> str:
        return banner(
            config,
            self._service.state.store.description,
            self._server.address,
            memory_locked=self._memory_locked,
            api_key=self._api_key.text if self._api_key is not None else None,
        )

    def _say(self, text: str) -> None:
        if not self._options.quiet:
            self._console.say(text)

    def _spawn(self, work: Coroutine[None, None, None]) -> "asyncio.Task[None]":
        task = self._runtime.loop.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    # --- while it runs ---

    async def _log_transport(self) -> None:
        """Put on record what the transport did without asking: failed handshakes, and requests that it answered."""
        errors, audit = self._runtime.errors, self._runtime.audit
        servers = [self._server] if self._second is None else [self._server, self._second]
        while True:
            await asyncio.sleep(1)
            for server in servers:
                for peer, reason in server.take_handshake_errors():
                    errors.info(f"tls: handshake error from {peer}: {reason}")
                for peer, path, status in server.take_own_answers():
                    audit.record(time.time_ns(), peer, path, None, status, 0)

    async def _renew_tls(self) -> None:
        """Read the TLS section and its files again and again: certificates are renewed on disk.

        A certificate that does not fit its key, half of a renewal, leaves the old pair in force and is tried again
        soon.
        """
        wait = TLS_RELOAD_SECONDS
        while True:
            await asyncio.sleep(wait)
            async with self._changing:
                renewed = await self._attempt("reload TLS configuration", self._take_over_tls())
            wait = TLS_RELOAD_SECONDS if renewed else TLS_RETRY_SECONDS

    async def _reload_when_asked(self) -> None:
        while True:
            await self._reload_asked.wait()
            self._reload_asked.clear()
            self._console.say("SIGHUP signal received. Reloading configuration...", STDERR)
            if self._options.dev:
                self._console.say("There is nothing to reload in development mode.", STDERR)
                continue
            async with self._changing:
                if await self._attempt("reload server config", self._take_over()):
                    self._say(f"\n{self._banner(self._service.state.config)}")
                    self._say("=> Reloading configuration after SIGHUP signal completed.")

    async def _attempt(self, what: str, work: Awaitable[None]) -> bool:
        """Whether it worked. If not, the operator is told why, and the old state stays in force."""
        try:
            await work
        except (ConfigError, KeyStoreError) as error:
            self._console.say(f"Failed to {what}: {error}", STDERR)
            return False
        except Exception as error:
            self._console.say(f"Failed to {what}: {describe(error)}", STDERR)
            return False
        return True

    async def _take_over_tls(self) -> None:
        blocking = self._runtime.blocking
        config = dataclasses.replace(self._service.state.config, tls=(await self._configured_anew()).tls)
        certificate = await blocking(_load_tls, config)
        forwarding = Forwarding.configured(config, certificate.verifier, self._runtime.errors)
        self._use_tls(certificate)
        self._service.adopt(dataclasses.replace(self._service.state, config=config, forwarding=forwarding))

    async def _take_over(self) -> None:
        """Put the configuration of the file in force, all of it or nothing."""
        blocking = self._runtime.blocking
        old = self._service.state
        config = await self._configured_anew()
        certificate = await blocking(_load_tls, config)
        store, cache, listings = old.store, old.cache, old.listings
        if config.keystore != old.config.keystore:
            store = await blocking(self._open_store, config)
            cache = self._new_cache(config, store)
            listings = _listings(cache, store)
        try:
            # An outage of a store that stays must not keep other changes from being put in force.
            made = old.config.keys if store is old.store else ()
            await self._create_predefined(config, store, cache, made)
            state = await blocking(self._state, config, store, cache, listings, certificate)
            of_store = await blocking(store.warnings) if store is not old.store else ()
        except BaseException:
            if store is not old.store:
                self._let_go(store, cache)
            raise

        self._use_tls(certificate)
        self._service.adopt(state)
        self._configure_logs(state)
        if cache is old.cache:
            cache.configure(any=config.cache.any, unused=config.cache.unused, offline=config.cache.offline)
        else:
            self._watcher.cancel()
            self._watcher = self._spawn(cache.watch())
            old.cache.retire()
            self._runtime.loop.call_later(OLD_STORE_SECONDS, self._let_go, old.store, old.cache)
        for warning in (*config.warnings, *of_store, *certificate.warnings(time.time())):
            self._runtime.errors.warn(warning)
        for what, before, now in (
            ("address", old.config.address, config.address),
            ("metrics", old.config.metrics, config.metrics),
            ("proxy_protocol", old.config.proxy_protocol, config.proxy_protocol),
            ("limits", old.config.limits, config.limits),
        ):
            if before != now:
                self._runtime.errors.warn(
                    f"a new '{what}' takes effect when the server is started again; the old one stays in force"
                )

    def _let_go(self, store: KeyStore, cache: KeyCache[SecretKey]) -> None:
        cache.close()
        self._spawn(self._runtime.blocking(store.close))

    async def _configured_anew(self) -> Config:
        """What the file says now. Of another form or dialect not even a section fits: they differ in what is left out,
        such as whether clients are verified."""
        config, old = await self._runtime.blocking(configured, self._options), self._service.state.config
        if (config.form, config.dialect) != (old.form, old.dialect):
            raise ConfigError(
                "the form of the configuration, or its 'compatibility', cannot change while a server runs"
            )
        return config

    def _use_tls(self, certificate: ServerTLS) -> None:
        self._server.set_tls(certificate.tls, drain=certificate.tightens(self._certificate))
        if self._second is not None and self._second_speaks_tls:
            self._second.set_tls(certificate.public)
        self._certificate = certificate

    # --- stop ---

    async def _stop(self) -> None:
        """Say that this server is not ready, let clients leave and running requests end, then close everything and end
        the process. A second signal ends it at once."""
        loop = self._runtime.loop
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _at_once())
        stop = self._service.state.config.stop
        self._runtime.draining = True
        await asyncio.sleep(stop.delay)
        self._server.drain(stop.linger)
        await loop.run_in_executor(None, self._server.wait_drained, stop.linger + stop.drain)
        for server in (self._server, self._second):
            if server is not None:
                await loop.run_in_executor(None, server.close)
        closing = loop.run_in_executor(None, self._service.state.store.close)
        await asyncio.wait([closing], timeout=CLOSE_SECONDS)
        self._say("\n=> Stopping server... Goodbye.")
        for flush in (self._runtime.errors.close, self._runtime.audit.close, self._console.flush):
            await loop.run_in_executor(None, flush, FLUSH_SECONDS)
        # Calls of a key store that hangs would keep the process as long as they last.
        os._exit(0)


def _at_once() -> Callable[[int, object], None] | signal.Handlers:
    """What ends the process on a signal. To the first process of a container the default does nothing."""
    return signal.SIG_DFL if os.getpid() != 1 else lambda number, _: os._exit(128 + number)


def _listings(cache: KeyCache[SecretKey], store: KeyStore) -> Listings:
    return Listings(partial(cache.ask, listing=True), store.list)


def _load_tls(config: Config) -> ServerTLS:
    optional = any(api.skip_auth for api in config.api.values())
    if config.tls is not None:
        return tls.load(config.tls, optional=optional)
    made = self_signed(
        "localhost", lifetime=timedelta(days=90), dns=["localhost"], ips=interface_addresses(), server=True
    )
    return tls.from_der([made.certificate], made.key, optional=optional)
