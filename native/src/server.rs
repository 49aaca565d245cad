//! A server: a listening socket, the threads behind it, and how they begin and end.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hyper::StatusCode;
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::activity::{Activity, Demand, NEWCOMER};
use crate::bridge::Streams;
use crate::http::{self, Core, Replies};
use crate::limits::{Arrival, BodyLimits, Limits, Shared, milliseconds};
use crate::listener::{self, Established, Farewell, Gate};
use crate::proxy_protocol::ProxyProtocol;
use crate::reply::Reply;
use crate::tls::Tls;

/// How many threads do handshakes. They take most of the time of a new connection and none of the I/O thread's.
const HANDSHAKE_THREADS: usize = 2;

/// All running servers, so that the end of the interpreter finds and closes them.
static RUNNING: Mutex<Vec<Arc<Engine>>> = Mutex::new(Vec::new());

/// What the I/O thread is told.
enum Command {
    /// End the connections made under TLS settings before this generation.
    EndOlderThan(u64),
    /// End all, and idle ones after that time.
    Drain(Duration),
    Close,
}

/// What is needed to begin.
struct Prepared {
    listener: TcpListener,
    handler: Py<PyAny>,
    replies: Replies,
    commands: UnboundedReceiver<Command>,
    established: UnboundedReceiver<Established>,
}

struct Threads {
    io: JoinHandle<()>,
    handshakes: Runtime,
    accept: AbortHandle,
    farewell: Option<oneshot::Sender<Farewell>>,
}

enum Phase {
    Prepared(Box<Prepared>),
    Running(Threads),
    Closed,
}

struct Engine {
    shared: Arc<Shared>,
    gate: Arc<Gate>,
    streams: Arc<Streams>,
    commands: UnboundedSender<Command>,
    phase: Mutex<Phase>,
}

impl Engine {
    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(self: &Arc<Self>) -> PyResult<()> {
        let mut phase = self.phase();
        match std::mem::replace(&mut *phase, Phase::Closed) {
            Phase::Prepared(prepared) => {
                *phase = Phase::Running(self.run(*prepared).map_err(os_error)?);
                drop(phase);
                RUNNING.lock().unwrap_or_else(PoisonError::into_inner).push(self.clone());
                Ok(())
            }
            Phase::Running(threads) => {
                *phase = Phase::Running(threads);
                Err(PyRuntimeError::new_err("the server has been started already"))
            }
            Phase::Closed => Err(PyRuntimeError::new_err("the server is closed")),
        }
    }

    fn run(&self, prepared: Prepared) -> std::io::Result<Threads> {
        let Prepared { listener, handler, replies, commands, established } = prepared;
        let handshakes = Builder::new_multi_thread()
            .worker_threads(HANDSHAKE_THREADS)
            .thread_name("keswick-tls")
            .enable_all()
            .build()?;
        let core = Arc::new(Core::new(self.shared.clone(), handler, replies, self.streams.clone()));
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let io = thread::Builder::new().name("keswick-io".to_owned()).spawn(move || {
            // Attached once for the whole life of the thread, so that it has one Python thread state and each request
            // only takes the GIL.
            Python::attach(|py| {
                py.detach(|| {
                    runtime.block_on(attend(core, commands, established));
                    drop(runtime);
                });
            });
        })?;
        let (farewell, until) = oneshot::channel();
        let accept = handshakes.spawn(self.gate.clone().accept(listener, until)).abort_handle();
        Ok(Threads { io, handshakes, accept, farewell: Some(farewell) })
    }

    /// Lets in who is at the door and nobody else, and ends what is there.
    fn drain(&self, linger: Duration) {
        if let Phase::Running(Threads { farewell, .. }) = &mut *self.phase() {
            // The second time the door is shut.
            if let Some(farewell) = farewell.take() {
                let _ = farewell.send(Farewell { time: linger.max(NEWCOMER), arrival: Arrival::new(&self.shared) });
            }
        }
        let _ = self.commands.send(Command::Drain(linger));
        self.streams.close_older_than(u64::MAX);
    }

    /// Cuts everything and waits for the threads. Called without the GIL, since the I/O thread may want it to finish.
    fn close(&self) {
        let phase = std::mem::replace(&mut *self.phase(), Phase::Closed);
        if let Phase::Running(threads) = phase {
            let _ = self.commands.send(Command::Close);
            threads.accept.abort();
            if threads.io.thread().id() == thread::current().id() {
                // The handler closes its own server: the thread ends when the handler has returned.
                threads.handshakes.shutdown_background();
            } else {
                threads.handshakes.shutdown_timeout(Duration::from_secs(1));
                let _ = threads.io.join();
            }
        }
        RUNNING.lock().unwrap_or_else(PoisonError::into_inner).retain(|engine| !std::ptr::eq(&**engine, self));
    }
}

/// The I/O thread: takes over established connections, obeys, and sweeps.
async fn attend(
    core: Arc<Core>,
    mut commands: UnboundedReceiver<Command>,
    mut established: UnboundedReceiver<Established>,
) {
    let shared = core.shared.clone();
    let connections = Arc::new(Connections::default());
    let mut oldest_generation = 0;
    let mut draining_until = None;
    let mut sweep = tokio::time::interval(shared.limits.sweep_interval());
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            command = commands.recv() => match command {
                Some(Command::EndOlderThan(generation)) => {
                    oldest_generation = generation;
                    connections.for_each(|activity| {
                        if activity.generation < generation {
                            activity.retire(0);
                        }
                    });
                }
                Some(Command::Drain(linger)) => {
                    shared.clock.advance();
                    let until = shared.clock.now() + milliseconds(linger);
                    draining_until = Some(until);
                    connections.for_each(|activity| activity.retire(until));
                }
                Some(Command::Close) | None => break,
            },
            Some(connection) = established.recv() => {
                // One whose handshake was under way at that time is asked like those before it.
                let retire = if connection.generation < oldest_generation { Some(0) } else { draining_until };
                tokio::spawn(connections.clone().keep(core.clone(), connection, retire));
            }
            _ = sweep.tick() => {
                shared.clock.advance();
                connections.for_each(Activity::check);
            }
        }
    }
    // Let tasks end by themselves, so that streams are closed and callbacks called while there is a runtime.
    connections.for_each(|activity| activity.ask(Demand::Cut));
    for _ in 0..1_000 {
        if connections.is_empty() && shared.requests.load(Relaxed) == 0 {
            break;
        }
        tokio::task::yield_now().await;
    }
}

/// The connections that are open.
#[derive(Default)]
struct Connections(Mutex<HashMap<u64, Arc<Activity>>>);

impl Connections {
    async fn keep(self: Arc<Self>, core: Arc<Core>, connection: Established, retire: Option<u64>) {
        let Established { http2, generation, ref slot, .. } = connection;
        let activity = Arc::new(Activity::new(core.shared.clone(), http2, slot.excess, generation));
        if let Some(until) = retire {
            activity.retire(until);
        }
        // An address is a name that no other connection has meanwhile.
        let name = Arc::as_ptr(&activity) as u64;
        self.all().insert(name, activity.clone());
        let _removal = Removal { connections: &self, name };
        http::serve(core, connection, activity).await;
    }

    fn for_each(&self, action: impl Fn(&Activity)) {
        self.all().values().for_each(|activity| action(activity));
    }

    fn is_empty(&self) -> bool {
        self.all().is_empty()
    }

    fn all(&self) -> MutexGuard<'_, HashMap<u64, Arc<Activity>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Removal<'a> {
    connections: &'a Connections,
    name: u64,
}

impl Drop for Removal<'_> {
    fn drop(&mut self) {
        self.connections.all().remove(&self.name);
    }
}

#[pyclass(module = "keswick._native", frozen)]
pub struct Server {
    engine: Arc<Engine>,
    address: SocketAddr,
}

#[pymethods]
impl Server {
    #[new]
    #[pyo3(signature = (
        handler, *, host, port, tls, body_limits = Vec::new(), limits = None, replies = None, proxy_protocol = None
    ))]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn new(
        py: Python<'_>,
        handler: Py<PyAny>,
        host: &str,
        port: u16,
        tls: Option<&Tls>,
        body_limits: Vec<(String, usize)>,
        limits: Option<&Bound<'_, PyDict>>,
        replies: Option<&Bound<'_, PyDict>>,
        proxy_protocol: Option<(Vec<String>, f64)>,
    ) -> PyResult<Self> {
        let limits = Limits::from_python(limits)?;
        let replies = replies_from_python(replies)?;
        let proxy_protocol = proxy_protocol
            .map(|(networks, seconds)| ProxyProtocol::new(&networks, seconds).map_err(PyValueError::new_err))
            .transpose()?;
        few_arenas();
        let listener = py.detach(|| listener::bind(host, port)).map_err(os_error)?;
        let address = listener.local_addr().map_err(os_error)?;
        let shared = Arc::new(Shared::new(limits, BodyLimits::new(body_limits)));
        let (hand_over, established) = unbounded_channel();
        let (command, commands) = unbounded_channel();
        let gate = Gate::new(shared.clone(), tls.map(|tls| tls.config.clone()), proxy_protocol, hand_over);
        let prepared = Prepared { listener, handler, replies, commands, established };
        let engine = Engine {
            shared,
            gate: Arc::new(gate),
            streams: Arc::default(),
            commands: command,
            phase: Mutex::new(Phase::Prepared(Box::new(prepared))),
        };
        Ok(Self { engine: Arc::new(engine), address })
    }

    #[getter]
    fn address(&self) -> (String, u16) {
        (self.address.ip().to_string(), self.address.port())
    }

    fn start(&self) -> PyResult<()> {
        self.engine.start()
    }

    #[pyo3(signature = (tls, *, drain = false))]
    fn set_tls(&self, tls: &Tls, drain: bool) -> PyResult<()> {
        let Some(generation) = self.engine.gate.set_tls(tls.config.clone()) else {
            return Err(PyValueError::new_err("this server is a plain one, without TLS"));
        };
        if drain {
            let _ = self.engine.commands.send(Command::EndOlderThan(generation));
            self.engine.streams.close_older_than(generation);
        }
        Ok(())
    }

    #[pyo3(signature = (linger = 0.0))]
    fn drain(&self, linger: f64) {
        self.engine.drain(from_seconds(linger));
    }

    fn wait_drained(&self, py: Python<'_>, seconds: f64) -> bool {
        py.detach(|| self.engine.shared.wait_until_none_left(from_seconds(seconds)))
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.engine.close());
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let shared = &self.engine.shared;
        let stats = PyDict::new(py);
        stats.set_item("connections", shared.connections())?;
        stats.set_item("handshakes", self.engine.gate.pending_handshakes())?;
        stats.set_item("requests", shared.requests.load(Relaxed))?;
        stats.set_item("buffered", shared.buffered())?;
        stats.set_item("connections_total", shared.connections_total())?;
        stats.set_item("handshakes_failed_total", shared.handshakes_failed_total.load(Relaxed))?;
        stats.set_item("refused_total", shared.refused_total.load(Relaxed))?;
        stats.set_item("overload_total", shared.overload_total.load(Relaxed))?;
        stats.set_item("timeout_total", shared.timeout_total.load(Relaxed))?;
        stats.set_item("too_large_total", shared.too_large_total.load(Relaxed))?;
        stats.set_item("malformed_total", shared.malformed_total.load(Relaxed))?;
        Ok(stats)
    }

    fn take_handshake_errors(&self) -> Vec<(String, String)> {
        let errors = self.engine.shared.handshake_errors.take();
        errors.into_iter().map(|(peer, reason)| (peer.to_string(), reason)).collect()
    }

    fn take_own_answers(&self) -> Vec<(String, String, u16)> {
        let answers = self.engine.shared.own_answers.take();
        answers.into_iter().map(|answer| (answer.peer.to_string(), answer.path, answer.status)).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        Python::try_attach(|py| py.detach(|| self.engine.close()));
    }
}

fn from_seconds(number: f64) -> Duration {
    Duration::try_from_secs_f64(number.clamp(0.0, 1e6)).unwrap_or_default()
}

fn replies_from_python(given: Option<&Bound<'_, PyDict>>) -> PyResult<Replies> {
    let mut replies = Replies {
        overload: Reply::empty(StatusCode::SERVICE_UNAVAILABLE),
        timeout: Reply::empty(StatusCode::REQUEST_TIMEOUT),
        too_large: Reply::empty(StatusCode::PAYLOAD_TOO_LARGE),
        malformed: Reply::empty(StatusCode::BAD_REQUEST),
        error: Reply::empty(StatusCode::INTERNAL_SERVER_ERROR),
    };
    for (name, reply) in given.into_iter().flatten() {
        let reply = Reply::from_python(&reply)?;
        match name.extract::<String>()?.as_str() {
            "overload" => replies.overload = reply,
            "timeout" => replies.timeout = reply,
            "too_large" => replies.too_large = reply,
            "malformed" => replies.malformed = reply,
            "error" => replies.error = reply,
            other => return Err(PyValueError::new_err(format!("there is no reply of the name {other:?}"))),
        }
    }
    Ok(replies)
}

/// With its number, so that Python makes the fitting subclass.
fn os_error(error: std::io::Error) -> PyErr {
    match error.raw_os_error() {
        Some(number) => {
            let text = error.to_string();
            let text = text.split(" (os error").next().unwrap_or_default().to_owned();
            PyOSError::new_err((number, text))
        }
        None => PyOSError::new_err(error.to_string()),
    }
}

/// The C library keeps a heap for each thread, which several threads that hold short-lived buffers only waste.
fn few_arenas() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: sets a number in the allocator; it may be called at any time.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// Called when the interpreter ends: no thread may want the GIL after that.
#[pyfunction]
fn close_servers(py: Python<'_>) {
    py.detach(|| {
        let running = std::mem::take(&mut *RUNNING.lock().unwrap_or_else(PoisonError::into_inner));
        running.iter().for_each(|engine| engine.close());
    });
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Server>()?;
    let close = wrap_pyfunction!(close_servers, m)?;
    m.py().import("atexit")?.call_method1("register", (close,))?;
    Ok(())
}
