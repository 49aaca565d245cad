//! Calls over HTTPS, for Python threads that wait and for event loops that do not.
//!
//! `engine` is the native thread. A call walks through `exchange` (request, answer, time), `pool` (connections, kept and
//! new ones), `dial` (addresses, TCP, handshake by `tls`) and `link` (which hears the server's last word); `failure` says
//! why it did not arrive.

mod dial;
mod engine;
mod exchange;
mod failure;
mod link;
mod pool;
mod tls;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{HeaderMap, HeaderValue};
use hyper::{Method, Uri};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};
use tokio::time::Instant;

use self::engine::{Engine, Owned, Pending};
use self::exchange::{Answer, Call, Content, Opened};
use self::failure::{CallFailed, Failure};
use self::pool::{Pool, Server, Settings};
use self::tls::{ClientTls, Witness};

#[pyclass(module = "keswick._native", frozen)]
pub struct HttpClient {
    tls: Py<ClientTls>,
    connect_timeout: Duration,
    idle_timeout: Duration,
    max_reply: usize,
    http2: bool,
    user_agent: Option<HeaderValue>,
    /// That of this process, or of the one that it is a fork of. Locked with the GIL only.
    pool: Mutex<Option<Owned<Arc<Pool>>>>,
}

#[pymethods]
impl HttpClient {
    #[new]
    #[pyo3(signature = (
        tls, *, connect_timeout = 5.0, idle_timeout = 60.0, max_reply = 64 << 20, http2 = true, user_agent = ""
    ))]
    fn new(
        tls: Py<ClientTls>,
        connect_timeout: f64,
        idle_timeout: f64,
        max_reply: usize,
        http2: bool,
        user_agent: &str,
    ) -> PyResult<Self> {
        Ok(Self {
            tls,
            connect_timeout: duration("connect_timeout", connect_timeout)?,
            idle_timeout: duration("idle_timeout", idle_timeout)?,
            max_reply,
            http2,
            user_agent: header("user_agent", user_agent)?,
            pool: Mutex::default(),
        })
    }

    #[pyo3(signature = (host, port, method, path, body = None, *, accept = "", timeout))]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn call(
        &self,
        py: Python<'_>,
        host: &str,
        port: u16,
        method: &str,
        path: &str,
        body: Option<&[u8]>,
        accept: &str,
        timeout: Option<f64>,
    ) -> PyResult<Answer> {
        let (engine, server) = self.server(host, port)?;
        let call = new_call(&server, method, path, body, accept)?;
        engine.wait(py, exchange::call(server, call, optional("timeout", timeout)?))
    }

    #[pyo3(signature = (done, host, port, method, path, body = None, *, accept = "", timeout))]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn begin(
        &self,
        done: Py<PyAny>,
        host: &str,
        port: u16,
        method: &str,
        path: &str,
        body: Option<&[u8]>,
        accept: &str,
        timeout: Option<f64>,
    ) -> PyResult<Pending> {
        let (engine, server) = self.server(host, port)?;
        let call = new_call(&server, method, path, body, accept)?;
        Ok(engine.begin(done, exchange::call(server, call, optional("timeout", timeout)?), drop))
    }

    #[pyo3(signature = (host, port, path, *, accept = "", timeout))]
    fn open(
        &self,
        py: Python<'_>,
        host: &str,
        port: u16,
        path: &str,
        accept: &str,
        timeout: Option<f64>,
    ) -> PyResult<Reader> {
        let (engine, server) = self.server(host, port)?;
        let call = new_call(&server, "GET", path, None, accept)?;
        engine.wait(py, Reader::open(engine, server, call, optional("timeout", timeout)?))
    }

    #[pyo3(signature = (done, host, port, path, *, accept = "", timeout))]
    fn begin_open(
        &self,
        done: Py<PyAny>,
        host: &str,
        port: u16,
        path: &str,
        accept: &str,
        timeout: Option<f64>,
    ) -> PyResult<Pending> {
        let (engine, server) = self.server(host, port)?;
        let call = new_call(&server, "GET", path, None, accept)?;
        Ok(engine.begin(done, Reader::open(engine, server, call, optional("timeout", timeout)?), drop))
    }

    fn close(&self) {
        let pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pool.as_ref().and_then(Owned::get) {
            pool.close();
        }
    }
}

impl HttpClient {
    fn server(&self, host: &str, port: u16) -> PyResult<(&'static Engine, Arc<Server>)> {
        let engine = Engine::current()?;
        let mut slot = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = slot.as_ref().and_then(Owned::get) {
            return Ok((engine, pool.server(host, port)));
        }
        let pool = Pool::new(Settings {
            tls: self.tls.get().config(self.http2),
            connect_timeout: self.connect_timeout,
            idle_timeout: self.idle_timeout,
            max_reply: self.max_reply,
            http2: self.http2,
            user_agent: self.user_agent.clone(),
        });
        engine.spawn(Pool::sweep(Arc::downgrade(&pool), self.idle_timeout));
        let server = pool.server(host, port);
        *slot = Some(Owned::new(engine, pool));
        Ok((engine, server))
    }
}

fn new_call(server: &Server, method: &str, path: &str, body: Option<&[u8]>, accept: &str) -> PyResult<Call> {
    let method = Method::from_bytes(method.as_bytes())
        .map_err(|_| PyValueError::new_err(format!("{method:?} is not a method of HTTP")))?;
    let uri = Uri::builder().scheme("https").authority(server.authority.as_str()).path_and_query(path).build();
    let is_whole = |uri: &Uri| {
        path.starts_with('/')
            && uri.path_and_query().is_some_and(|kept| kept == path)
            && uri
                .authority()
                .is_some_and(|authority| !authority.host().is_empty() && !authority.as_str().contains('@'))
    };
    let uri = uri.ok().filter(is_whole);
    let uri = uri.ok_or_else(|| {
        PyValueError::new_err(format!("https://{}{path} cannot be called: it is no URL", server.authority))
    })?;
    Ok(Call { method, uri, body: body.map(Bytes::copy_from_slice), accept: header("accept", accept)? })
}

fn header(name: &str, value: &str) -> PyResult<Option<HeaderValue>> {
    if value.is_empty() {
        return Ok(None);
    }
    let value = HeaderValue::from_str(value);
    value.map(Some).map_err(|_| PyValueError::new_err(format!("{name} has characters that cannot be sent")))
}

fn duration(name: &str, seconds: f64) -> PyResult<Duration> {
    // Longer ones are for ever, and no clock counts to their end.
    Duration::try_from_secs_f64(if seconds > 1e9 { 1e9 } else { seconds })
        .map_err(|_| PyValueError::new_err(format!("{name} is a number of seconds, not {seconds}")))
}

fn optional(name: &str, seconds: Option<f64>) -> PyResult<Option<Duration>> {
    seconds.map(|seconds| duration(name, seconds)).transpose()
}

#[pyclass(module = "keswick._native", frozen)]
pub struct Reader {
    #[pyo3(get)]
    status: u16,
    headers: HeaderMap,
    content: Owned<Arc<Content>>,
}

impl Reader {
    async fn open(
        engine: &'static Engine,
        server: Arc<Server>,
        call: Call,
        timeout: Option<Duration>,
    ) -> Result<Self, Failure> {
        let Opened { status, headers, content } = exchange::open(server, call, timeout).await?;
        Ok(Self { status, headers, content: Owned::new(engine, content) })
    }

    fn content(&self) -> PyResult<Arc<Content>> {
        let gone = || Failure::sent("closed", "the reader belongs to the parent of this process").into_exception();
        self.content.get().cloned().ok_or_else(gone)
    }
}

#[pymethods]
impl Reader {
    fn header(&self, name: &str) -> String {
        exchange::text(&self.headers, name)
    }

    #[pyo3(signature = (*, timeout))]
    fn read<'py>(&self, py: Python<'py>, timeout: Option<f64>) -> PyResult<Bound<'py, PyBytes>> {
        let timeout = optional("timeout", timeout)?;
        let content = self.content()?;
        let piece = self.content.engine.wait(py, async move { content.read(timeout).await })?;
        Ok(PyBytes::new(py, &piece))
    }

    #[pyo3(signature = (done, *, timeout))]
    fn begin_read(&self, done: Py<PyAny>, timeout: Option<f64>) -> PyResult<Pending> {
        let timeout = optional("timeout", timeout)?;
        let content = self.content()?;
        let source = content.clone();
        let work = async move { source.read(timeout).await.map(Piece) };
        Ok(self.content.engine.begin(done, work, move |piece| content.unread(piece.0)))
    }

    fn close(&self) {
        if let Some(content) = self.content.get().cloned() {
            self.content.engine.spawn(async move { content.close().await });
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.close();
    }
}

struct Piece(Bytes);

impl<'py> IntoPyObject<'py> for Piece {
    type Target = PyBytes;
    type Output = Bound<'py, PyBytes>;
    type Error = PyErr;

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Self::Output> {
        Ok(PyBytes::new(py, &self.0))
    }
}

#[pyfunction]
#[pyo3(signature = (host, port, *, server_name = "", timeout))]
fn peer_certificates<'py>(
    py: Python<'py>,
    host: String,
    port: u16,
    server_name: &str,
    timeout: f64,
) -> PyResult<Vec<Bound<'py, PyBytes>>> {
    let timeout = duration("timeout", timeout)?;
    let name = if server_name.is_empty() { host.clone() } else { server_name.to_owned() };
    let witness = Arc::new(Witness::default());
    let config = witness.config().map_err(|error| PyValueError::new_err(error.to_string()))?;
    let shown = Engine::current()?.wait(py, async move {
        let handshake = dial::dial(&host, port, &name, config, Instant::now() + timeout).await;
        let shown = witness.take();
        // What the server thinks of this client does not matter once it has shown itself.
        if shown.is_empty() { handshake.map(|_| shown) } else { Ok(shown) }
    })?;
    Ok(shown.iter().map(|certificate| PyBytes::new(py, certificate)).collect())
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    engine::register(m)?;
    m.add("CallFailed", m.py().get_type::<CallFailed>())?;
    m.add_class::<ClientTls>()?;
    m.add_class::<HttpClient>()?;
    m.add_class::<Reader>()?;
    m.add_function(wrap_pyfunction!(peer_certificates, m)?)?;
    // A type alias of the Python face, for annotations.
    m.add("Answer", m.py().get_type::<PyTuple>())
}
