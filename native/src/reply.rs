//! Answers: fixed ones, and those whose body comes piece by piece.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use hyper::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderValue};
use hyper::{Method, Response, StatusCode};
use pyo3::prelude::*;

use crate::activity::{Activity, Flight, Waiting};
use crate::limits::Charge;

/// No longer frames than this are handed to HTTP, so that what a slow client has not taken stays here, and is seen.
const PIECE: usize = 16 * 1024;

/// An answer as Python gave it.
#[derive(Clone)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub content: Content,
}

#[derive(Clone)]
pub enum Content {
    Whole(Bytes),
    Stream(Arc<Channel>),
}

impl Reply {
    pub fn empty(status: StatusCode) -> Self {
        Self { status, headers: HeaderMap::new(), content: Content::Whole(Bytes::new()) }
    }

    /// The answer as hyper sends it. `close`: say that this is the last one on an HTTP/1.1 connection.
    pub fn into_response(
        self,
        method: &Method,
        close: bool,
        activity: &Arc<Activity>,
        flight: Flight,
    ) -> Response<ReplyBody> {
        let Self { status, mut headers, content } = self;
        let kind = match content {
            Content::Whole(bytes) => {
                // hyper adds the length of a body that there is, on both protocols, but not of one that there is not.
                let without_body = bytes.is_empty() || method == Method::HEAD;
                if without_body && !matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
                    headers.insert(CONTENT_LENGTH, bytes.len().into());
                }
                if without_body {
                    Kind::Empty
                } else {
                    let charge = Charge::new(&activity.shared, bytes.len());
                    Kind::Whole { bytes, charge, waiting: Waiting::new(activity) }
                }
            }
            Content::Stream(channel) if method == Method::HEAD => {
                channel.close();
                Kind::Empty
            }
            Content::Stream(channel) => Kind::Stream(channel),
        };
        if close && !activity.http2 {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let mut response = Response::new(ReplyBody { kind, activity: activity.clone(), _flight: flight });
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }
}

pub struct ReplyBody {
    kind: Kind,
    activity: Arc<Activity>,
    /// The request is in flight until its answer is sent.
    _flight: Flight,
}

enum Kind {
    Empty,
    Whole { bytes: Bytes, charge: Charge, waiting: Waiting },
    Stream(Arc<Channel>),
}

impl Body for ReplyBody {
    type Data = Piece;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, Infallible>>> {
        let this = self.get_mut();
        let piece = match &mut this.kind {
            Kind::Empty => None,
            Kind::Whole { bytes, .. } if bytes.is_empty() => None,
            Kind::Whole { bytes, charge, waiting } => {
                let bytes = bytes.split_to(bytes.len().min(PIECE));
                waiting.moved();
                let charge = charge.split(bytes.len());
                Some(Piece { waiting: Waiting::new(&this.activity), bytes, _charge: charge })
            }
            Kind::Stream(channel) => match channel.poll_piece(cx) {
                Poll::Ready(piece) => piece,
                Poll::Pending => return Poll::Pending,
            },
        };
        if matches!(&this.kind, Kind::Whole { bytes, .. } if bytes.is_empty()) {
            this.kind = Kind::Empty;
        }
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.kind, Kind::Empty)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Whole { bytes, .. } => SizeHint::with_exact(bytes.len() as u64),
            Kind::Stream(_) => SizeHint::default(),
        }
    }
}

impl Drop for ReplyBody {
    fn drop(&mut self) {
        if let Kind::Stream(channel) = &self.kind {
            channel.close_and_forget();
        }
    }
}

/// Bytes on their way out.
pub struct Piece {
    bytes: Bytes,
    waiting: Waiting,
    _charge: Charge,
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.waiting.moved();
        self.bytes.advance(count);
    }
}

/// A body between the Python threads that make it and the connection that sends it.
pub struct Channel {
    activity: Arc<Activity>,
    capacity: usize,
    state: Mutex<ChannelState>,
}

#[derive(Default)]
struct ChannelState {
    pieces: VecDeque<(Bytes, Charge)>,
    /// There while there are pieces.
    waiting: Option<Waiting>,
    closed: bool,
    reader: Option<Waker>,
    callbacks: Vec<Py<PyAny>>,
}

impl Channel {
    pub fn new(activity: Arc<Activity>, capacity: usize) -> Self {
        Self { activity, capacity, state: Mutex::default() }
    }

    pub fn generation(&self) -> u64 {
        self.activity.generation
    }

    /// False when it is full, closed, or the budget for buffered bytes is used up.
    pub fn send(&self, data: &[u8]) -> bool {
        let mut state = self.state();
        if state.closed || state.pieces.len() >= self.capacity {
            return false;
        }
        if data.is_empty() {
            return true;
        }
        let mut charge = Charge::new(&self.activity.shared, 0);
        if !charge.grow(data.len()) {
            return false;
        }
        state.pieces.push_back((Bytes::copy_from_slice(data), charge));
        if state.waiting.is_none() {
            state.waiting = Some(Waiting::new(&self.activity));
        }
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
        true
    }

    fn poll_piece(&self, cx: &mut Context<'_>) -> Poll<Option<Piece>> {
        let mut state = self.state();
        let Some((bytes, charge)) = state.pieces.pop_front() else {
            if state.closed {
                return Poll::Ready(None);
            }
            state.reader = Some(cx.waker().clone());
            return Poll::Pending;
        };
        if state.pieces.is_empty() {
            state.waiting = None;
        } else if let Some(waiting) = &mut state.waiting {
            waiting.moved();
        }
        Poll::Ready(Some(Piece { bytes, waiting: Waiting::new(&self.activity), _charge: charge }))
    }

    pub fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// Calls back when it is closed; at once if it is.
    pub fn on_close(&self, py: Python<'_>, callback: Py<PyAny>) {
        let mut state = self.state();
        if state.closed {
            drop(state);
            call(py, callback);
        } else {
            state.callbacks.push(callback);
        }
    }

    /// Ends the body after the pieces that wait.
    pub fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        let callbacks = std::mem::take(&mut state.callbacks);
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
        if !callbacks.is_empty() {
            Python::try_attach(|py| callbacks.into_iter().for_each(|callback| call(py, callback)));
        }
    }

    /// Nobody reads any more.
    fn close_and_forget(&self) {
        let forgotten = {
            let mut state = self.state();
            (std::mem::take(&mut state.pieces), state.waiting.take())
        };
        drop(forgotten);
        self.close();
    }

    fn state(&self) -> MutexGuard<'_, ChannelState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn call(py: Python<'_>, callback: Py<PyAny>) {
    if let Err(error) = callback.call0(py) {
        error.write_unraisable(py, Some(callback.bind(py)));
    }
}
