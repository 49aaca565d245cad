//! The one native thread that serves all clients of a process, and how Python waits for it.

use std::future::{Future, pending};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

use pyo3::IntoPyObjectExt;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::AbortHandle;

use super::failure::Failure;
use crate::process;

/// How often a waiting call lets the handlers of signals run.
const SIGNALS: Duration = Duration::from_millis(50);

/// The engine of this process or of the one that it is a fork of. Locked by threads that have the GIL only, so that a
/// fork, which needs it too, finds it unlocked.
static CURRENT: Mutex<Option<&'static Engine>> = Mutex::new(None);

/// Whether the interpreter ends: an engine that begins now never calls Python.
static EXITING: AtomicBool = AtomicBool::new(false);

/// It lives for ever. In the child of a fork it has no thread, and its locks may be held by nobody: it is left alone, and
/// what it holds is never dropped.
pub struct Engine {
    process: u32,
    runtime: Handle,
    thread: OnceLock<ThreadId>,
    /// Held while Python is called; false once the interpreter ends.
    gate: Mutex<bool>,
}

impl Engine {
    /// That of this process, started if need be. Called with the GIL.
    pub fn current() -> PyResult<&'static Self> {
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        match *current {
            Some(engine) if engine.is_here() => Ok(engine),
            _ => {
                let engine = Self::start()?;
                *current = Some(engine);
                Ok(engine)
            }
        }
    }

    fn start() -> std::io::Result<&'static Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let engine: &'static Self = Box::leak(Box::new(Self {
            process: std::process::id(),
            runtime: runtime.handle().clone(),
            thread: OnceLock::new(),
            gate: Mutex::new(!EXITING.load(SeqCst)),
        }));
        let thread = thread::Builder::new().name("keswick-client".to_owned()).spawn(move || engine.run(&runtime))?;
        let _ = engine.thread.set(thread.thread().id());
        Ok(engine)
    }

    fn run(&self, runtime: &Runtime) {
        process::leave_signals_to_others();
        let gate = self.gate();
        if *gate {
            // Attached once for the whole life of the thread, so that a callback only takes the GIL.
            Python::attach(|py| {
                drop(gate);
                py.detach(|| runtime.block_on(pending::<()>()));
            });
        } else {
            drop(gate);
            runtime.block_on(pending::<()>());
        }
    }

    /// Whether this process, not the one that it is a fork of, has the thread.
    pub fn is_here(&self) -> bool {
        self.process == std::process::id()
    }

    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        self.runtime.spawn(work).abort_handle()
    }

    /// Waits for the outcome without the GIL, and runs the handlers of signals; their exception ends the work.
    pub fn wait<T: Send + 'static>(
        &self,
        py: Python<'_>,
        work: impl Future<Output = Result<T, Failure>> + Send + 'static,
    ) -> PyResult<T> {
        if self.thread.get() == Some(&thread::current().id()) {
            return Err(PyRuntimeError::new_err(
                "a callback of the client must not wait for another call, which needs its thread",
            ));
        }
        let (sender, mut receiver) = sync_channel(1);
        let _end = AbortOnDrop(self.spawn(async move {
            let _ = sender.send(work.await);
        }));
        loop {
            let (outcome, unused) = py.detach(move || (receiver.recv_timeout(SIGNALS), receiver));
            receiver = unused;
            match outcome {
                Ok(result) => return result.map_err(Failure::into_exception),
                Err(RecvTimeoutError::Timeout) => py.check_signals()?,
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(PyRuntimeError::new_err("the call ended without an outcome"));
                }
            }
        }
    }

    /// Gives the outcome to `done`, unless it is cancelled before: then to `unclaimed`.
    pub fn begin<T>(
        &'static self,
        done: Py<PyAny>,
        work: impl Future<Output = Result<T, Failure>> + Send + 'static,
        unclaimed: impl FnOnce(T) + Send + 'static,
    ) -> Pending
    where
        T: for<'py> IntoPyObject<'py> + Send + 'static,
    {
        let done = Arc::new(Mutex::new(Some(done)));
        let callback = done.clone();
        let task = self.spawn(async move {
            let outcome = work.await;
            self.deliver(&callback, outcome, unclaimed);
        });
        Pending { engine: self, done, task }
    }

    fn deliver<T: for<'py> IntoPyObject<'py>>(
        &self,
        callback: &Mutex<Option<Py<PyAny>>>,
        outcome: Result<T, Failure>,
        unclaimed: impl FnOnce(T),
    ) {
        let gate = self.gate();
        if !*gate {
            return;
        }
        Python::attach(|py| {
            let Some(done) = callback.lock().unwrap_or_else(PoisonError::into_inner).take() else {
                if let Ok(value) = outcome {
                    unclaimed(value);
                }
                return;
            };
            let called = match outcome {
                Ok(value) => value.into_bound_py_any(py).and_then(|value| done.call1(py, (value,))),
                Err(failure) => done.call1(py, (failure.into_exception().into_value(py),)),
            };
            if let Err(error) = called {
                error.write_unraisable(py, Some(done.bind(py)));
            }
        });
    }

    fn gate(&self) -> MutexGuard<'_, bool> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Something that belongs to an engine, forgotten where that has no thread.
pub struct Owned<T> {
    pub engine: &'static Engine,
    value: Option<T>,
}

impl<T> Owned<T> {
    pub fn new(engine: &'static Engine, value: T) -> Self {
        Self { engine, value: Some(value) }
    }

    /// None in the child of a fork.
    pub fn get(&self) -> Option<&T> {
        self.value.as_ref().filter(|_| self.engine.is_here())
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        if !self.engine.is_here() {
            std::mem::forget(self.value.take());
        }
    }
}

#[pyclass(module = "keswick._native", frozen)]
pub struct Pending {
    engine: &'static Engine,
    done: Arc<Mutex<Option<Py<PyAny>>>>,
    task: AbortHandle,
}

#[pymethods]
impl Pending {
    fn cancel(&self) {
        // Taken with the GIL, which the native thread needs for calling it.
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(done);
        if self.engine.is_here() {
            self.task.abort();
        }
    }
}

/// Called when the interpreter ends: no thread may want the GIL after that.
#[pyfunction]
fn end_callbacks(py: Python<'_>) {
    EXITING.store(true, SeqCst);
    let current = *CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(engine) = current.filter(|engine| engine.is_here()) {
        py.detach(|| *engine.gate() = false);
    }
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Pending>()?;
    let end = wrap_pyfunction!(end_callbacks, m)?;
    m.py().import("atexit")?.call_method1("register", (end,))?;
    Ok(())
}
