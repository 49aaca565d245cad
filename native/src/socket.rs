//! The bytes of one connection: a TCP socket that can move from one runtime to another, with or without TLS over it.

use std::io::{self, Read};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::activity::{Activity, Demand};
use crate::limits::{Lingerer, Shared};
use crate::proxy_protocol;

/// How long a closed connection waits for its client to have read the last answer. Without that, bytes of the client
/// that nobody read make the kernel reset the connection, and the answer is lost.
const LINGER: Duration = Duration::from_secs(2);

/// To a client that speaks HTTP where TLS is spoken; in the words of Go's servers.
const USE_TLS: &[u8] = b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";

enum State {
    /// In use on a runtime.
    Live(TcpStream),
    /// On the way to another runtime.
    Parked(std::net::TcpStream),
    Gone,
}

/// What the client has said first.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Greeting {
    /// Nothing yet.
    Awaited,
    /// HTTP, where TLS is expected.
    PlainHttp,
    /// What only a proxy that is known says, and not twice.
    ProxyHeader,
    Good,
}

/// Whose connection it is.
#[derive(Clone, Copy)]
pub struct Origin {
    /// The client's address: of the TCP peer, or as a proxy has named it.
    pub peer: IpAddr,
    /// Whether there was the header of a proxy.
    pub proxied: bool,
}

pub struct Socket {
    state: State,
    origin: Origin,
    expects_tls: bool,
    greeting: Greeting,
    shared: Arc<Shared>,
    /// Known once the connection is made.
    activity: Option<Arc<Activity>>,
    /// The client has closed its side, or the connection is broken.
    ended: bool,
}

impl Socket {
    pub fn new(stream: TcpStream, shared: Arc<Shared>, origin: Origin, expects_tls: bool) -> Self {
        let (state, greeting) = (State::Live(stream), Greeting::Awaited);
        Self { state, origin, expects_tls, greeting, shared, activity: None, ended: false }
    }

    /// Tells a client that has begun with HTTP in place of TLS.
    pub async fn answer_plain_http(mut self) {
        if let (Greeting::PlainHttp, State::Live(stream)) = (self.greeting, &mut self.state) {
            // There is nobody to hear of an error.
            let _ = stream.write_all(USE_TLS).await;
        }
    }

    /// Takes the socket off its runtime.
    fn park(&mut self) -> io::Result<()> {
        if let State::Live(stream) = std::mem::replace(&mut self.state, State::Gone) {
            self.state = State::Parked(stream.into_std()?);
        }
        Ok(())
    }

    /// Puts the socket on the runtime of the caller.
    fn unpark(&mut self, activity: Arc<Activity>) -> io::Result<()> {
        self.activity = Some(activity);
        if let State::Parked(stream) = std::mem::replace(&mut self.state, State::Gone) {
            self.state = State::Live(TcpStream::from_std(stream)?);
        }
        Ok(())
    }

    fn stream(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        match &mut self.state {
            State::Live(stream) => Ok(Pin::new(stream)),
            _ => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Looks at the first bytes that came in. An error, in words, when they are nothing to go on with.
    fn greet(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.greeting = Greeting::of(bytes, self.expects_tls);
        let reason = match self.greeting {
            Greeting::PlainHttp => "an HTTP request without TLS",
            Greeting::ProxyHeader if self.origin.proxied => "a second PROXY header",
            Greeting::ProxyHeader => "a PROXY header from an address that is not in 'proxy_protocol.from'",
            Greeting::Awaited | Greeting::Good => return Ok(()),
        };
        if !self.expects_tls {
            // There is no handshake that would tell of it.
            self.shared.handshake_failed(self.origin.peer, reason.to_owned());
        }
        Err(io::Error::other(reason))
    }

    /// Reads what the runtime does not know of yet: it hears of it once in a turn, which takes a while under load.
    fn read_at_once(&mut self, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let stream = self.stream()?;
        match (&*SockRef::from(&*stream)).read(buf.initialize_unfilled()) {
            Ok(count) => buf.advance(count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
            Err(error) => return Poll::Ready(Err(error)),
        }
        Poll::Ready(Ok(()))
    }

    fn is_ending(&self) -> bool {
        self.activity.as_ref().is_some_and(|activity| activity.demand() == Demand::End)
    }

    fn wrote<T>(&mut self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(_)) = result {
            self.ended = true;
        }
        if let Some(activity) = &self.activity {
            activity.blocked(result.is_pending());
        }
        result
    }
}

impl Greeting {
    fn of(bytes: &[u8], expects_tls: bool) -> Self {
        let methods: [&[u8]; 7] = [b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"PATCH ", b"OPTIONS "];
        if proxy_protocol::is_header(bytes) {
            Self::ProxyHeader
        } else if expects_tls && methods.iter().any(|method| bytes.starts_with(method)) {
            Self::PlainHttp
        } else {
            Self::Good
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let mut result = self.stream()?.poll_read(cx, buf);
        if result.is_pending() && self.is_ending() {
            result = self.read_at_once(buf);
        }
        match &result {
            Poll::Ready(Ok(())) if buf.filled().len() > before => {
                if self.greeting == Greeting::Awaited {
                    if let Err(refused) = self.greet(&buf.filled()[before..]) {
                        // Nobody above sees it, or an alert would stand before the answer.
                        buf.set_filled(before);
                        return Poll::Ready(Err(refused));
                    }
                }
                if let Some(activity) = &self.activity {
                    activity.received();
                }
            }
            Poll::Ready(_) => self.ended = true,
            Poll::Pending => {}
        }
        result
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = self.stream()?.poll_write(cx, buf);
        self.wrote(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = self.stream()?.poll_write_vectored(cx, bufs);
        self.wrote(result)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_shutdown(cx)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let State::Live(stream) = std::mem::replace(&mut self.state, State::Gone) else { return };
        if self.activity.as_ref().is_some_and(|activity| activity.demand() == Demand::Cut) {
            // The client takes nothing: the kernel should not go on offering it for minutes.
            let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            return;
        }
        if self.ended {
            return;
        }
        if let (Ok(runtime), Some(lingerer)) = (tokio::runtime::Handle::try_current(), Lingerer::take(&self.shared)) {
            runtime.spawn(linger(stream, lingerer));
        }
    }
}

async fn linger(mut stream: TcpStream, _lingerer: Lingerer) {
    let read_to_end = async {
        let mut void = [0; 4096];
        stream.shutdown().await?;
        while stream.read(&mut void).await? > 0 {}
        io::Result::Ok(())
    };
    let _ = tokio::time::timeout(LINGER, read_to_end).await;
}

/// What HTTP is spoken over.
pub enum Transport {
    Plain(Socket),
    Tls(Box<TlsStream<Socket>>),
}

impl Transport {
    fn socket(&mut self) -> &mut Socket {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => stream.get_mut().0,
        }
    }

    /// Takes the socket off its runtime.
    pub fn park(&mut self) -> io::Result<()> {
        self.socket().park()
    }

    /// Puts the socket on the runtime of the caller.
    pub fn unpark(&mut self, activity: Arc<Activity>) -> io::Result<()> {
        self.socket().unpark(activity)
    }
}

/// `$call` on the stream inside, whichever it is.
macro_rules! inside {
    ($transport:expr, $stream:ident => $call:expr) => {
        match $transport.get_mut() {
            Self::Plain($stream) => {
                let $stream = Pin::new($stream);
                $call
            }
            Self::Tls($stream) => {
                let $stream = Pin::new($stream.as_mut());
                $call
            }
        }
    };
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        inside!(self, stream => stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        inside!(self, stream => stream.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        inside!(self, stream => stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        inside!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        inside!(self, stream => stream.poll_shutdown(cx))
    }
}
