//! One request and its answer, whole or piece by piece.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Response, Uri};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::failure::Failure;
use super::pool::{Channel, Server};

/// How often a request that was not sent is tried on another connection.
const ATTEMPTS: usize = 4;

pub struct Call {
    pub method: Method,
    pub uri: Uri,
    /// JSON.
    pub body: Option<Bytes>,
    pub accept: Option<HeaderValue>,
}

impl Call {
    fn request(&self, user_agent: Option<&HeaderValue>) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(self.body.clone().unwrap_or_default()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        let headers = request.headers_mut();
        let json = self.body.as_ref().map(|_| HeaderValue::from_static("application/json"));
        // Otherwise it is left out where there is no body; but these methods have one.
        let has_body = matches!(self.method, Method::POST | Method::PUT | Method::PATCH);
        let length = has_body.then(|| HeaderValue::from(self.body.as_ref().map_or(0, Bytes::len)));
        let fields = [
            (ACCEPT, self.accept.clone()),
            (USER_AGENT, user_agent.cloned()),
            (CONTENT_TYPE, json),
            (CONTENT_LENGTH, length),
        ];
        headers.extend(fields.into_iter().filter_map(|(name, value)| Some((name, value?))));
        request
    }
}

/// The longest time from the request on, which begins when there is a connection.
struct Limit {
    timeout: Option<Duration>,
    end: Option<Instant>,
}

impl Limit {
    fn new(timeout: Option<Duration>) -> Self {
        Self { timeout, end: None }
    }

    fn begin(&mut self) {
        if self.end.is_none() {
            self.end = self.timeout.map(|timeout| Instant::now() + timeout);
        }
    }

    async fn keep<T>(&self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        match self.end {
            Some(end) => timeout_at(end, work).await.unwrap_or_else(|_| Err(Failure::sent("timeout", ""))),
            None => work.await,
        }
    }
}

pub struct Answer {
    status: u16,
    content_type: String,
    body: Vec<u8>,
}

impl<'py> IntoPyObject<'py> for Answer {
    type Target = PyTuple;
    type Output = Bound<'py, PyTuple>;
    type Error = PyErr;

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Self::Output> {
        (self.status, self.content_type, PyBytes::new(py, &self.body)).into_pyobject(py)
    }
}

/// The whole answer.
pub async fn call(server: Arc<Server>, call: Call, timeout: Option<Duration>) -> Result<Answer, Failure> {
    let mut limit = Limit::new(timeout);
    let (response, channel) = begin(&server, &call, &mut limit).await?;
    let status = response.status().as_u16();
    let content_type = content_type(response.headers());
    match limit.keep(whole(response.into_body(), &channel, server.settings.max_reply)).await {
        Ok(body) => {
            server.give_back(channel).await;
            Ok(Answer { status, content_type, body })
        }
        Err(failure) => Err(given_up(&server, &channel, failure)),
    }
}

/// The beginning of an answer.
pub async fn open(server: Arc<Server>, call: Call, timeout: Option<Duration>) -> Result<Opened, Failure> {
    let (response, channel) = begin(&server, &call, &mut Limit::new(timeout)).await?;
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let content = Arc::new(Content {
        server,
        progress: tokio::sync::Mutex::new(Progress::Reading(Box::new((response.into_body(), channel)))),
        returned: Mutex::default(),
        closed: watch::Sender::new(false),
    });
    Ok(Opened { status, headers, content })
}

async fn begin(server: &Arc<Server>, call: &Call, limit: &mut Limit) -> Result<(Response<Incoming>, Channel), Failure> {
    let mut attempt = 1;
    loop {
        let mut channel = server.channel().await?;
        limit.begin();
        match limit.keep(channel.send(call.request(server.settings.user_agent.as_ref()))).await {
            Ok(response) => return Ok((response, channel)),
            // The server has ended a kept connection just now, and the request did not get to it.
            Err(failure) if failure.kind == "closed" && !failure.sent && attempt < ATTEMPTS => {
                server.distrust(&channel);
                attempt += 1;
            }
            Err(failure) => return Err(given_up(server, &channel, failure)),
        }
    }
}

fn given_up(server: &Server, channel: &Channel, failure: Failure) -> Failure {
    if failure.kind == "timeout" {
        server.distrust(channel);
    }
    failure
}

async fn whole(mut body: Incoming, channel: &Channel, longest: usize) -> Result<Vec<u8>, Failure> {
    let too_long = || Failure::sent("too_long", format!("the answer is longer than {longest} bytes"));
    let announced = usize::try_from(body.size_hint().lower()).ok().filter(|announced| *announced <= longest);
    let mut whole = Vec::with_capacity(announced.ok_or_else(too_long)?);
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(|error| channel.failure(&error))?.into_data() {
            if data.len() > longest - whole.len() {
                return Err(too_long());
            }
            whole.extend_from_slice(&data);
        }
    }
    if channel.broke_off(&body) { Err(broken_off()) } else { Ok(whole) }
}

fn broken_off() -> Failure {
    Failure::sent("closed", "the answer broke off")
}

fn content_type(headers: &HeaderMap) -> String {
    text(headers, CONTENT_TYPE.as_str())
}

/// The value of a header, empty if there is none.
pub fn text(headers: &HeaderMap, name: &str) -> String {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).unwrap_or_default()
}

pub struct Opened {
    pub status: u16,
    pub headers: HeaderMap,
    pub content: Arc<Content>,
}

/// A body that comes piece by piece.
pub struct Content {
    server: Arc<Server>,
    progress: tokio::sync::Mutex<Progress>,
    /// Pieces that were read and then wanted by nobody.
    returned: Mutex<VecDeque<Bytes>>,
    closed: watch::Sender<bool>,
}

enum Progress {
    Reading(Box<(Incoming, Channel)>),
    Ended,
    Failed(Failure),
}

impl Content {
    /// The next piece, empty at the end. It may be dropped at any time, and loses nothing.
    pub async fn read(&self, timeout: Option<Duration>) -> Result<Bytes, Failure> {
        let mut limit = Limit::new(timeout);
        limit.begin();
        let mut closed = self.closed.subscribe();
        tokio::select! {
            biased;
            _ = closed.wait_for(|closed| *closed) => Err(Failure::sent("closed", "the reader is closed")),
            piece = limit.keep(self.next()) => piece,
        }
    }

    async fn next(&self) -> Result<Bytes, Failure> {
        let mut progress = self.progress.lock().await;
        if let Some(piece) = self.returned().pop_front() {
            return Ok(piece);
        }
        loop {
            let (body, channel) = match &mut *progress {
                Progress::Reading(reading) => &mut **reading,
                Progress::Ended => return Ok(Bytes::new()),
                Progress::Failed(failure) => return Err(failure.clone()),
            };
            match body.frame().await {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => return Ok(data),
                    _ => {}
                },
                Some(Err(error)) => *progress = Progress::Failed(channel.failure(&error)),
                None if channel.broke_off(body) => *progress = Progress::Failed(broken_off()),
                None => {
                    if let Progress::Reading(reading) = std::mem::replace(&mut *progress, Progress::Ended) {
                        self.server.give_back(reading.1).await;
                    }
                }
            }
        }
    }

    /// Takes back a piece, to be read again.
    pub fn unread(&self, piece: Bytes) {
        if !piece.is_empty() {
            self.returned().push_front(piece);
        }
    }

    /// Ends the call; what waits for a piece fails.
    pub async fn close(&self) {
        self.closed.send_replace(true);
        *self.progress.lock().await = Progress::Ended;
    }

    fn returned(&self) -> MutexGuard<'_, VecDeque<Bytes>> {
        self.returned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
