//! The way of a request on an established connection, over HTTP/1.1 and HTTP/2.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::HOST;
use hyper::http::request::Parts;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use pyo3::prelude::*;

use crate::activity::{Activity, Demand, Flight};
use crate::bridge::{self, Client, Outcome, Received, Streams};
use crate::limits::{Charge, Limits, OwnAnswer, Shared};
use crate::listener::Established;
use crate::reply::{Reply, ReplyBody};

/// hyper's least buffer for HTTP/1.1.
const LEAST_BUFFER: usize = 8 * 1024;

/// How many header lines hyper takes over HTTP/1.1 unless told otherwise. Up to that it needs no memory of the heap.
const USUAL_HEADERS: usize = 100;

/// Not more header lines than hyper can hold.
const MOST_HEADERS: usize = 16 * 1024;

/// The answers that the transport gives itself.
pub struct Replies {
    pub overload: Reply,
    pub timeout: Reply,
    pub too_large: Reply,
    pub malformed: Reply,
    pub error: Reply,
}

/// What all connections of a server need.
pub struct Core {
    pub shared: Arc<Shared>,
    pub handler: Py<PyAny>,
    pub replies: Replies,
    pub streams: Arc<Streams>,
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
}

impl Core {
    pub fn new(shared: Arc<Shared>, handler: Py<PyAny>, replies: Replies, streams: Arc<Streams>) -> Self {
        let (http1, http2) = (http1_settings(&shared.limits), http2_settings(&shared.limits));
        Self { shared, handler, replies, streams, http1, http2 }
    }
}

fn http1_settings(limits: &Limits) -> http1::Builder {
    let mut settings = http1::Builder::new();
    settings
        // The sweep does it: hyper's timer runs on a connection that is merely idle, too.
        .header_read_timeout(None)
        .max_header_size(limits.header_bytes)
        .max_buf_size(limits.header_bytes.max(LEAST_BUFFER));
    if limits.headers != USUAL_HEADERS {
        settings.max_headers(limits.headers.min(MOST_HEADERS));
    }
    settings
}

fn http2_settings(limits: &Limits) -> http2::Builder<TokioExecutor> {
    let mut settings = http2::Builder::new(TokioExecutor::new());
    settings
        .max_concurrent_streams(u32::try_from(limits.streams).unwrap_or(u32::MAX))
        .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
        .initial_stream_window_size(256 * 1024)
        .initial_connection_window_size(1024 * 1024)
        .max_send_buf_size(64 * 1024)
        // Streams that a client opens and resets at once, and those that break the protocol: over it, GOAWAY.
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(256);
    settings
}

/// Serves one connection to its end.
pub async fn serve(core: Arc<Core>, mut connection: Established, activity: Arc<Activity>) {
    if connection.transport.unpark(activity.clone()).is_err() {
        return;
    }
    let client = Client {
        activity: activity.clone(),
        streams: core.streams.clone(),
        peer: connection.peer,
        certificates: connection.certificates,
        python: OnceLock::new(),
    };
    let session = Arc::new(Session { core, client: Arc::new(client) });
    let io = TokioIo::new(connection.transport);
    let service = {
        let session = session.clone();
        service_fn(move |request| {
            let session = session.clone();
            async move { Ok::<_, Infallible>(session.answer(request).await) }
        })
    };
    if activity.http2 {
        let connection = session.core.http2.serve_connection(io, service);
        conduct(connection, &activity, http2::Connection::graceful_shutdown).await;
    } else {
        let connection = session.core.http1.serve_connection(io, service);
        conduct(connection, &activity, http1::Connection::graceful_shutdown).await;
    }
}

/// Drives a connection until it ends by itself or is cut.
async fn conduct<C: Future>(connection: C, activity: &Activity, end: fn(Pin<&mut C>)) {
    let mut connection = pin!(connection);
    let mut ending = false;
    loop {
        tokio::select! {
            biased;
            () = activity.changed() => match activity.demand() {
                Demand::Cut => return,
                Demand::End if !ending => {
                    // An idle HTTP/1.1 connection is closed by this without a look at what has come in. The socket is
                    // read once more before it; what it brings is answered, and that answer is the last one.
                    if !activity.http2 {
                        if poll_fn(|cx| Poll::Ready(connection.as_mut().poll(cx))).await.is_ready() {
                            return;
                        }
                        if activity.in_header() {
                            continue;
                        }
                    }
                    ending = true;
                    end(connection.as_mut());
                }
                _ => {}
            },
            // How it ended makes no difference: there is nobody left to tell.
            _ = connection.as_mut() => return,
        }
    }
}

struct Session {
    core: Arc<Core>,
    client: Arc<Client>,
}

/// Why a request does not reach the handler.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Refusal {
    Overload,
    Timeout,
    /// The body is so long that it is not read to its end.
    TooLarge,
    /// Not one Host over HTTP/1.1, or a body that breaks the protocol or ends before its end.
    Malformed,
}

impl Session {
    async fn answer(&self, request: Request<Incoming>) -> Response<ReplyBody> {
        let activity = &self.client.activity;
        let flight = Flight::begin(activity);
        let (parts, mut body) = request.into_parts();
        let method = parts.method.clone();
        let (reply, last) = match self.receive(&parts, &mut body, flight.excess).await {
            Ok(received) => {
                let truncated = received.truncated;
                (self.handle(parts, received).await, truncated)
            }
            Err(refusal) => (self.refuse(&parts, refusal), refusal != Refusal::Overload),
        };
        let unread = !body.is_end_stream();
        let close = last || unread || activity.excess || activity.demand() != Demand::GoOn;
        reply.into_response(&method, close, activity, flight)
    }

    async fn receive(&self, parts: &Parts, body: &mut Incoming, excess: bool) -> Result<Received, Refusal> {
        if excess || self.client.activity.excess || self.core.shared.over_budget() {
            return Err(Refusal::Overload);
        }
        if parts.version == Version::HTTP_11 && parts.headers.get_all(HOST).iter().take(2).count() != 1 {
            return Err(Refusal::Malformed);
        }
        if body.is_end_stream() {
            return Ok(Received { bytes: Bytes::new(), truncated: false, charge: None });
        }
        let limit = self.core.shared.body_limits.of(parts.uri.path());
        let read = read_body(&self.core.shared, body, limit);
        tokio::time::timeout(self.core.shared.limits.body_seconds, read).await.unwrap_or(Err(Refusal::Timeout))
    }

    fn refuse(&self, parts: &Parts, refusal: Refusal) -> Reply {
        let Core { shared, replies, .. } = &*self.core;
        let (reply, total) = match refusal {
            Refusal::Overload => (&replies.overload, &shared.overload_total),
            Refusal::Timeout => (&replies.timeout, &shared.timeout_total),
            Refusal::TooLarge => (&replies.too_large, &shared.too_large_total),
            Refusal::Malformed => (&replies.malformed, &shared.malformed_total),
        };
        total.fetch_add(1, Relaxed);
        let path = parts.uri.path().to_owned();
        shared.own_answers.push(OwnAnswer { peer: self.client.peer, path, status: reply.status.as_u16() });
        reply.clone()
    }

    async fn handle(&self, parts: Parts, received: Received) -> Reply {
        match bridge::Request::handle(&self.core.handler, parts, received, self.client.clone()) {
            Outcome::Answer(reply) => Some(reply),
            // It is cancelled here when the client goes away.
            Outcome::Wait(answer) => answer.await.ok(),
            Outcome::Failed => None,
        }
        .unwrap_or_else(|| self.core.replies.error.clone())
    }
}

/// Keeps at most `limit` bytes, and drops what follows up to the bound. There is no use in reading what goes beyond it.
async fn read_body(shared: &Arc<Shared>, body: &mut Incoming, limit: usize) -> Result<Received, Refusal> {
    let declared = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    let most = limit.saturating_add(shared.limits.drained_bytes);
    if declared > most {
        return Err(Refusal::TooLarge);
    }
    let mut charge = Charge::new(shared, 0);
    let mut kept = Kept::default();
    let mut total = 0_usize;
    while let Some(frame) = body.frame().await {
        let Ok(mut data) = frame.map_err(|_| Refusal::Malformed)?.into_data() else { continue };
        total = total.saturating_add(data.len());
        if total > most {
            return Err(Refusal::TooLarge);
        }
        data.truncate(limit - kept.len());
        if !charge.grow(data.len()) {
            return Err(Refusal::Overload);
        }
        kept.push(data, declared.min(limit));
    }
    Ok(Received { bytes: kept.into_bytes(), truncated: total > limit, charge: Some(charge) })
}

/// The bytes of a body. Most come in one piece, which is not copied.
#[derive(Default)]
struct Kept {
    first: Bytes,
    all: BytesMut,
}

impl Kept {
    fn len(&self) -> usize {
        self.first.len() + self.all.len()
    }

    fn push(&mut self, data: Bytes, expected: usize) {
        if self.len() == 0 {
            self.first = data;
        } else if !data.is_empty() {
            if self.all.is_empty() {
                // A client may announce more than it sends.
                self.all.reserve(expected.min(64 * 1024).max(self.first.len() + data.len()));
                self.all.extend_from_slice(&std::mem::take(&mut self.first));
            }
            self.all.extend_from_slice(&data);
        }
    }

    fn into_bytes(self) -> Bytes {
        if self.all.is_empty() { self.first } else { self.all.freeze() }
    }
}
