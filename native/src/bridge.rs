//! To Python and back: requests as objects that read themselves when asked, replies as tuples.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use bytes::Bytes;
use hyper::header::{CONNECTION, CONTENT_LENGTH, DATE, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING, UPGRADE};
use hyper::http::request::Parts;
use hyper::{Method, StatusCode};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString, PyTuple};
use pyo3::{PyTraverseError, PyVisit, intern};
use rustls_pki_types::CertificateDer;
use tokio::sync::oneshot;

use crate::activity::Activity;
use crate::limits::Charge;
use crate::reply::{Channel, Content, Reply};

/// The open streams of a server, so that they can be cut.
#[derive(Default)]
pub struct Streams(Mutex<OpenStreams>);

#[derive(Default)]
struct OpenStreams {
    channels: Vec<Weak<Channel>>,
    /// Streams of connections made under earlier TLS settings than this are not wanted any more.
    oldest_generation: u64,
}

impl Streams {
    fn add(&self, channel: &Arc<Channel>) {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if open.channels.len() == open.channels.capacity() {
            open.channels.retain(|channel| channel.strong_count() > 0);
        }
        open.channels.push(Arc::downgrade(channel));
        let unwanted = channel.generation() < open.oldest_generation;
        drop(open);
        if unwanted {
            channel.close();
        }
    }

    /// Ends those of connections made under TLS settings before `generation`, now and from now on.
    pub fn close_older_than(&self, generation: u64) {
        let channels = {
            let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            open.oldest_generation = open.oldest_generation.max(generation);
            open.channels.clone()
        };
        for channel in channels.iter().filter_map(Weak::upgrade) {
            if channel.generation() < generation {
                channel.close();
            }
        }
    }
}

/// What the requests of one connection have in common.
pub struct Client {
    pub activity: Arc<Activity>,
    pub streams: Arc<Streams>,
    pub peer: IpAddr,
    pub certificates: Arc<[CertificateDer<'static>]>,
    pub python: OnceLock<Py<Connection>>,
}

impl Client {
    fn connection(&self, py: Python<'_>) -> PyResult<Py<Connection>> {
        if let Some(connection) = self.python.get() {
            return Ok(connection.clone_ref(py));
        }
        let connection = Connection {
            peer: PyString::new(py, &self.peer.to_string()).unbind(),
            certificates: self.certificates.clone(),
            state: Mutex::new(py.None()),
        };
        let connection = Py::new(py, connection)?;
        Ok(self.python.get_or_init(|| connection).clone_ref(py))
    }
}

#[pyclass(module = "keswick._native", frozen)]
pub struct Connection {
    peer: Py<PyString>,
    certificates: Arc<[CertificateDer<'static>]>,
    state: Mutex<Py<PyAny>>,
}

#[pymethods]
impl Connection {
    #[getter]
    fn peer(&self, py: Python<'_>) -> Py<PyString> {
        self.peer.clone_ref(py)
    }

    #[getter]
    fn certificates<'py>(&self, py: Python<'py>) -> Vec<Bound<'py, PyBytes>> {
        self.certificates.iter().map(|certificate| PyBytes::new(py, certificate)).collect()
    }

    #[getter]
    fn state(&self, py: Python<'_>) -> Py<PyAny> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone_ref(py)
    }

    #[setter]
    fn set_state(&self, value: Py<PyAny>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let previous = std::mem::replace(&mut *state, value);
        // Its destructor may run Python code, which may come back here.
        drop(state);
        drop(previous);
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        match self.state.try_lock() {
            Ok(state) => visit.call(&*state),
            Err(_) => Ok(()),
        }
    }
}

#[pyclass(module = "keswick._native", frozen)]
pub struct Headers {
    fields: HeaderMap,
}

#[pymethods]
impl Headers {
    #[new]
    #[pyo3(signature = (fields = Vec::new()))]
    fn new(fields: Vec<(String, String)>) -> PyResult<Self> {
        let mut map = HeaderMap::with_capacity(fields.len());
        for (name, value) in &fields {
            let header = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| PyValueError::new_err(format!("{name:?} is not a header name")))?;
            if [CONNECTION, CONTENT_LENGTH, DATE, TRANSFER_ENCODING, UPGRADE].contains(&header) {
                return Err(PyValueError::new_err(format!("the header {name} belongs to the transport")));
            }
            let latin_1: Option<Vec<u8>> = value.chars().map(|letter| u8::try_from(letter).ok()).collect();
            let value = latin_1.and_then(|bytes| HeaderValue::from_bytes(&bytes).ok()).ok_or_else(|| {
                PyValueError::new_err(format!("the value of the header {name} has characters that cannot be sent"))
            })?;
            map.append(header, value);
        }
        Ok(Self { fields: map })
    }
}

impl Reply {
    pub fn new(status: u16, headers: &Headers, content: Content) -> PyResult<Self> {
        let status = StatusCode::from_u16(status).ok().filter(|status| (200..600).contains(&status.as_u16()));
        let status = status.ok_or_else(|| PyValueError::new_err("the status of an answer is from 200 to 599"))?;
        Ok(Self { status, headers: headers.fields.clone(), content })
    }

    pub fn from_python(value: &Bound<'_, PyAny>) -> PyResult<Self> {
        let reply = value.cast::<PyTuple>().ok().filter(|reply| reply.len() == 3);
        let Some(reply) = reply else {
            return Err(PyTypeError::new_err("an answer is a tuple of status, headers and body"));
        };
        let headers = reply.get_item(1)?;
        let headers = headers.cast::<Headers>()?.get();
        let body = reply.get_item(2)?;
        let body = Bytes::copy_from_slice(body.cast::<PyBytes>()?.as_bytes());
        Self::new(reply.get_item(0)?.extract()?, headers, Content::Whole(body))
    }
}

/// A request's body, as far as it was read.
pub struct Received {
    pub bytes: Bytes,
    pub truncated: bool,
    pub charge: Option<Charge>,
}

/// Where a request stands. It has one answer, given by whoever comes first.
enum Progress {
    /// The handler has not returned yet.
    Handling,
    /// The handler has returned None; the answer goes here.
    Waiting(oneshot::Sender<Reply>),
    /// Answered through the request before the handler returned.
    Ready(Reply),
    Answered,
    Gone,
}

/// What the transport has to do after the handler.
pub enum Outcome {
    Answer(Reply),
    Wait(oneshot::Receiver<Reply>),
    /// The handler failed; the exception has been shown.
    Failed,
}

#[pyclass(module = "keswick._native", frozen)]
pub struct Request {
    parts: Parts,
    received: Received,
    client: Arc<Client>,
    progress: Mutex<Progress>,
}

impl Request {
    /// Asks the handler. Called on the I/O thread.
    pub fn handle(handler: &Py<PyAny>, parts: Parts, received: Received, client: Arc<Client>) -> Outcome {
        let progress = Mutex::new(Progress::Handling);
        Python::attach(|py| {
            let handler = handler.bind(py);
            let request = Self { parts, received, client, progress };
            let outcome = Bound::new(py, request).and_then(|request| {
                let answer = handler.call1((&request,))?;
                let answer = if answer.is_none() { None } else { Some(Reply::from_python(&answer)?) };
                Ok(request.get().handled(answer))
            });
            outcome.unwrap_or_else(|error| {
                error.write_unraisable(py, Some(handler));
                Outcome::Failed
            })
        })
    }

    fn handled(&self, answer: Option<Reply>) -> Outcome {
        let mut progress = self.progress();
        match (std::mem::replace(&mut *progress, Progress::Answered), answer) {
            (Progress::Ready(reply), _) | (_, Some(reply)) => Outcome::Answer(reply),
            (_, None) => {
                let (sender, receiver) = oneshot::channel();
                *progress = Progress::Waiting(sender);
                Outcome::Wait(receiver)
            }
        }
    }

    fn answer(&self, reply: Reply) -> bool {
        let mut progress = self.progress();
        match std::mem::replace(&mut *progress, Progress::Answered) {
            Progress::Handling => {
                *progress = Progress::Ready(reply);
                true
            }
            Progress::Waiting(sender) => {
                let sent = sender.send(reply).is_ok();
                if !sent {
                    *progress = Progress::Gone;
                }
                sent
            }
            before => {
                *progress = before;
                false
            }
        }
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Request {
    #[getter]
    fn connection(&self, py: Python<'_>) -> PyResult<Py<Connection>> {
        self.client.connection(py)
    }

    #[getter]
    fn method<'py>(&self, py: Python<'py>) -> Bound<'py, PyString> {
        match self.parts.method {
            Method::GET => intern!(py, "GET").clone(),
            Method::POST => intern!(py, "POST").clone(),
            Method::PUT => intern!(py, "PUT").clone(),
            Method::DELETE => intern!(py, "DELETE").clone(),
            Method::HEAD => intern!(py, "HEAD").clone(),
            ref other => PyString::new(py, other.as_str()),
        }
    }

    #[getter]
    fn path(&self) -> &str {
        self.parts.uri.path()
    }

    #[getter]
    fn query(&self) -> &str {
        self.parts.uri.query().unwrap_or_default()
    }

    #[getter]
    fn body<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.received.bytes)
    }

    #[getter]
    fn truncated(&self) -> bool {
        self.received.truncated
    }

    fn header(&self, name: &str) -> Option<String> {
        self.parts.headers.get(name).map(latin_1)
    }

    fn headers(&self, name: &str) -> Vec<String> {
        self.parts.headers.get_all(name).iter().map(latin_1).collect()
    }

    fn respond(&self, status: u16, headers: &Headers, body: &Bound<'_, PyBytes>) -> PyResult<bool> {
        let body = Bytes::copy_from_slice(body.as_bytes());
        Ok(self.answer(Reply::new(status, headers, Content::Whole(body))?))
    }

    #[pyo3(signature = (status, headers, *, capacity = 256))]
    fn stream(&self, status: u16, headers: &Headers, capacity: usize) -> PyResult<Stream> {
        let channel = Arc::new(Channel::new(self.client.activity.clone(), capacity));
        let reply = Reply::new(status, headers, Content::Stream(channel.clone()))?;
        self.client.streams.add(&channel);
        if !self.answer(reply) {
            channel.close();
        }
        Ok(Stream { channel })
    }

    #[getter]
    fn gone(&self) -> bool {
        match &*self.progress() {
            Progress::Waiting(sender) => sender.is_closed(),
            Progress::Gone => true,
            _ => false,
        }
    }

    fn __repr__(&self) -> String {
        format!("<Request {} {}>", self.parts.method, self.parts.uri.path())
    }
}

fn latin_1(value: &HeaderValue) -> String {
    match value.to_str() {
        Ok(ascii) => ascii.to_owned(),
        Err(_) => value.as_bytes().iter().map(|byte| char::from(*byte)).collect(),
    }
}

#[pyclass(module = "keswick._native", frozen)]
pub struct Stream {
    channel: Arc<Channel>,
}

#[pymethods]
impl Stream {
    fn send(&self, data: &Bound<'_, PyBytes>) -> bool {
        self.channel.send(data.as_bytes())
    }

    #[getter]
    fn closed(&self) -> bool {
        self.channel.is_closed()
    }

    fn on_close(&self, py: Python<'_>, callback: Py<PyAny>) {
        self.channel.on_close(py, callback);
    }

    fn close(&self) {
        self.channel.close();
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.channel.close();
    }
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Connection>()?;
    m.add_class::<Headers>()?;
    m.add_class::<Request>()?;
    m.add_class::<Stream>()?;
    // A type alias of the Python face, for annotations.
    m.add("Reply", m.py().get_type::<PyTuple>())
}
