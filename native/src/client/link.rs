//! An established TLS connection that remembers the alert the server ended it with, whoever reads it.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use rustls::{AlertDescription, Error as TlsError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::failure::tls_error;
use crate::tls::HTTP2;

/// What came from the server.
#[derive(Default)]
pub struct Heard {
    alert: OnceLock<AlertDescription>,
    data: AtomicBool,
}

impl Heard {
    pub fn alert(&self) -> Option<AlertDescription> {
        self.alert.get().copied()
    }

    /// Whether any byte of an answer came.
    pub fn data(&self) -> bool {
        self.data.load(Relaxed)
    }

    fn note(&self, error: &io::Error) {
        if let Some(TlsError::AlertReceived(alert)) = tls_error(error) {
            let _ = self.alert.set(*alert);
        }
    }
}

pub struct Link {
    stream: TlsStream<TcpStream>,
    heard: Arc<Heard>,
    /// Whether a write has failed, as it does when the server has closed. What the server said before it, an alert or an
    /// early answer, is still to be read; so that writes are swallowed from then on, and the reader comes to the end.
    deaf: bool,
}

impl Link {
    pub fn new(stream: TlsStream<TcpStream>) -> Self {
        Self { stream, heard: Arc::default(), deaf: false }
    }

    pub fn heard(&self) -> Arc<Heard> {
        self.heard.clone()
    }

    pub fn is_http2(&self) -> bool {
        self.stream.get_ref().1.alpn_protocol() == Some(HTTP2)
    }

    fn written<T>(&mut self, outcome: Poll<io::Result<T>>, swallowed: T) -> Poll<io::Result<T>> {
        match outcome {
            Poll::Ready(Err(error)) => {
                self.heard.note(&error);
                self.deaf = true;
                Poll::Ready(Ok(swallowed))
            }
            other => other,
        }
    }
}

impl AsyncRead for Link {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(cx, buffer);
        match &outcome {
            Poll::Ready(Ok(())) if buffer.filled().len() > before => self.heard.data.store(true, Relaxed),
            Poll::Ready(Err(error)) => self.heard.note(error),
            _ => {}
        }
        outcome
    }
}

impl AsyncWrite for Link {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if self.deaf {
            return Poll::Ready(Ok(data.len()));
        }
        let outcome = Pin::new(&mut self.stream).poll_write(cx, data);
        self.written(outcome, data.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = pieces.iter().map(|piece| piece.len()).sum();
        if self.deaf {
            return Poll::Ready(Ok(length));
        }
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(cx, pieces);
        self.written(outcome, length)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.deaf {
            return Poll::Ready(Ok(()));
        }
        let outcome = Pin::new(&mut self.stream).poll_flush(cx);
        self.written(outcome, ())
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.deaf {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
