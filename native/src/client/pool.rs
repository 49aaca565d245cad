//! The connections of a client: one per server over HTTP/2, as many as there are calls at a time over HTTP/1.1.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::{TrySendError, http1, http2};
use hyper::header::{HOST, HeaderValue};
use hyper::rt::Executor;
use hyper::{Request, Response, Uri, Version};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, interval, sleep, timeout};

use super::dial::{dial, within};
use super::failure::Failure;
use super::link::{Heard, Link};

/// How many handshakes of one server run at a time, so that a crowd of calls is no attack.
const HANDSHAKES: usize = 32;

/// Bytes that the server may send ahead, of one answer and of all answers on a connection. A stream that nobody reads
/// holds at most its own window, so that many of them leave room for calls.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 64 << 20;

/// How long a connection may take to be ready again after an answer; it takes longer if the server has answered before
/// it has read the whole request.
const READY: Duration = Duration::from_millis(50);

/// How long a connection that nobody uses any more may take to say so to the server, which perhaps reads nothing.
const FAREWELL: Duration = Duration::from_secs(1);

pub struct Settings {
    pub tls: Arc<ClientConfig>,
    pub connect_timeout: Duration,
    pub idle_timeout: Duration,
    pub max_reply: usize,
    pub http2: bool,
    pub user_agent: Option<HeaderValue>,
}

pub struct Pool {
    pub settings: Arc<Settings>,
    servers: Mutex<HashMap<(String, u16), Arc<Server>>>,
}

impl Pool {
    pub fn new(settings: Settings) -> Arc<Self> {
        Arc::new(Self { settings: Arc::new(settings), servers: Mutex::default() })
    }

    pub fn server(&self, host: &str, port: u16) -> Arc<Server> {
        let new = || Arc::new(Server::new(self.settings.clone(), host, port));
        self.servers().entry((host.to_owned(), port)).or_insert_with(new).clone()
    }

    /// Lets go of all connections; those in use end with their calls.
    pub fn close(&self) {
        self.servers().values().for_each(|server| server.close());
    }

    /// Ends connections that were not used for a while, as long as there is the pool.
    pub async fn sweep(pool: Weak<Self>, idle_timeout: Duration) {
        let mut ticks = interval((idle_timeout / 4).max(Duration::from_millis(10)));
        loop {
            ticks.tick().await;
            let Some(pool) = pool.upgrade() else { return };
            pool.servers().values().for_each(|server| server.sweep());
        }
    }

    fn servers(&self) -> MutexGuard<'_, HashMap<(String, u16), Arc<Server>>> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub struct Server {
    pub settings: Arc<Settings>,
    host: String,
    port: u16,
    /// As a URL has it.
    pub authority: String,
    handshakes: Semaphore,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Whether the server is known to speak HTTP/1.1 only, so that each call needs a connection of its own.
    http1: bool,
    shared: Option<Shared>,
    idle: Vec<Idle>,
    dialling: Option<watch::Receiver<Option<Dialled>>>,
    /// Connections of earlier generations are not kept.
    generation: u64,
}

/// What comes of dialling for all calls that wait: a connection for all, or nothing but the news that there is one in
/// `idle`, and that each call needs its own.
type Dialled = Result<Option<Shared>, Failure>;

type Body = Full<Bytes>;

#[derive(Clone)]
struct Shared {
    sender: http2::SendRequest<Body>,
    heard: Arc<Heard>,
    user: User,
    last_used: Instant,
}

struct Idle {
    sender: http1::SendRequest<Body>,
    heard: Arc<Heard>,
    user: User,
    since: Instant,
}

enum Sender {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

/// A connection, or a share in one, for one call.
pub struct Channel {
    sender: Sender,
    heard: Arc<Heard>,
    user: User,
    generation: u64,
}

/// Held by every call and by what keeps the connection for the next one. Nothing is ever sent.
type User = mpsc::Sender<Infallible>;

/// What runs a connection. It ends soon after the last user has gone, even if what is still to be sent never can be.
#[derive(Clone)]
struct Tasks {
    end: watch::Receiver<()>,
}

impl Tasks {
    fn new() -> (Self, User) {
        let (user, mut users) = mpsc::channel(1);
        let (life, end) = watch::channel(());
        tokio::spawn(async move {
            users.recv().await;
            sleep(FAREWELL).await;
            drop(life);
        });
        (Self { end }, user)
    }
}

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for Tasks {
    fn execute(&self, task: F) {
        let mut end = self.end.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = task => {}
                _ = end.changed() => {}
            }
        });
    }
}

impl Server {
    fn new(settings: Arc<Settings>, host: &str, port: u16) -> Self {
        let name = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let authority = if port == 443 { name } else { format!("{name}:{port}") };
        let state = State { http1: !settings.http2, ..State::default() };
        Self {
            settings,
            host: host.to_owned(),
            port,
            authority,
            handshakes: Semaphore::new(HANDSHAKES),
            state: Mutex::new(state),
        }
    }

    pub async fn channel(self: &Arc<Self>) -> Result<Channel, Failure> {
        loop {
            let dialling = {
                let mut state = self.state();
                if let Some(channel) = state.kept() {
                    return Ok(channel);
                }
                if state.http1 { None } else { Some(self.dialling(&mut state)) }
            };
            let Some(mut dialling) = dialling else {
                let (channel, _) = self.dial().await?;
                return Ok(channel);
            };
            let dialled = match dialling.wait_for(Option::is_some).await {
                Ok(dialled) => dialled.clone(),
                Err(_) => None, // the task has gone
            };
            match dialled {
                Some(Ok(Some(shared))) => return Ok(shared.channel(self.state().generation)),
                Some(Ok(None)) | None => {}
                Some(Err(failure)) => return Err(failure),
            }
        }
    }

    /// What dials for all calls that wait; it goes on if they go away.
    fn dialling(self: &Arc<Self>, state: &mut State) -> watch::Receiver<Option<Dialled>> {
        // Its sender has gone only if the task has broken down.
        if let Some(dialling) = state.dialling.as_ref().filter(|dialling| dialling.has_changed().is_ok()) {
            return dialling.clone();
        }
        let (sender, receiver) = watch::channel(None);
        state.dialling = Some(receiver.clone());
        let server = self.clone();
        tokio::spawn(async move {
            let dialled = server.dial().await;
            let mut state = server.state();
            state.dialling = None;
            let _ = sender.send(Some(dialled.map(|(channel, shared)| {
                if shared.is_none() {
                    state.keep(channel);
                }
                shared
            })));
        });
        receiver
    }

    /// A new connection; also as one for all, if it can be.
    async fn dial(&self) -> Result<(Channel, Option<Shared>), Failure> {
        let generation = self.state().generation;
        let deadline = Instant::now() + self.settings.connect_timeout;
        let turn = async { self.handshakes.acquire().await.map_err(|_| Failure::unsent("connect", "")) };
        let _turn = within(deadline, "waiting for other connections to the server", turn).await?;
        let stream = dial(&self.host, self.port, &self.host, self.settings.tls.clone(), deadline).await?;
        let link = Link::new(stream);
        let heard = link.heard();
        let failed = |error: hyper::Error| Failure::of_exchange(&error, &heard, false);
        let (tasks, user) = Tasks::new();
        if !link.is_http2() {
            let (sender, connection) = http1::handshake(TokioIo::new(link)).await.map_err(failed)?;
            tasks.execute(connection);
            self.state().http1 = true;
            return Ok((Channel { sender: Sender::Http1(sender), heard, user, generation }, None));
        }
        let (sender, connection) = http2::Builder::new(tasks.clone())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(TokioIo::new(link))
            .await
            .map_err(failed)?;
        tasks.execute(connection);
        let shared = Shared { sender, heard, user, last_used: Instant::now() };
        let mut state = self.state();
        state.http1 = false;
        if state.generation == generation {
            state.shared = Some(shared.clone());
        }
        Ok((shared.clone().channel(generation), Some(shared)))
    }

    /// Keeps a connection for the next call, after a whole answer.
    pub async fn give_back(&self, mut channel: Channel) {
        let Sender::Http1(sender) = &mut channel.sender else { return };
        if let Ok(Ok(())) = timeout(READY, sender.ready()).await {
            self.state().keep(channel);
        }
    }

    /// Gives a connection to no further call: it may be dead without saying so.
    pub fn distrust(&self, channel: &Channel) {
        let mut state = self.state();
        state.shared = state.shared.take().filter(|shared| !shared.user.same_channel(&channel.user));
    }

    fn close(&self) {
        let mut state = self.state();
        state.generation += 1;
        state.shared = None;
        state.idle.clear();
    }

    fn sweep(&self) {
        let longest = self.settings.idle_timeout;
        let mut state = self.state();
        state.idle.retain(|idle| !idle.sender.is_closed() && idle.since.elapsed() < longest);
        if let Some(shared) = &mut state.shared {
            if shared.user.strong_count() > 1 {
                shared.last_used = Instant::now();
            } else if shared.last_used.elapsed() >= longest {
                state.shared = None;
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// A connection that is there already.
    fn kept(&mut self) -> Option<Channel> {
        if let Some(shared) = &mut self.shared {
            if !shared.sender.is_closed() {
                shared.last_used = Instant::now();
                return Some(shared.clone().channel(self.generation));
            }
            self.shared = None;
        }
        while let Some(Idle { sender, heard, user, .. }) = self.idle.pop() {
            if sender.is_ready() {
                let sender = Sender::Http1(sender);
                return Some(Channel { sender, heard, user, generation: self.generation });
            }
        }
        None
    }

    fn keep(&mut self, channel: Channel) {
        match channel.sender {
            Sender::Http1(sender) if channel.generation == self.generation => {
                self.idle.push(Idle { sender, heard: channel.heard, user: channel.user, since: Instant::now() });
            }
            _ => {}
        }
    }
}

impl Shared {
    fn channel(self, generation: u64) -> Channel {
        Channel { sender: Sender::Http2(self.sender), heard: self.heard, user: self.user, generation }
    }
}

impl Channel {
    /// Sends a request with an absolute URL.
    pub async fn send(&mut self, mut request: Request<Body>) -> Result<Response<Incoming>, Failure> {
        let outcome = match &mut self.sender {
            Sender::Http1(sender) => {
                to_http1(&mut request);
                sender.try_send_request(request).await
            }
            Sender::Http2(sender) => {
                *request.version_mut() = Version::HTTP_2;
                sender.try_send_request(request).await
            }
        };
        outcome.map_err(|error: TrySendError<_>| {
            Failure::of_exchange(error.error(), &self.heard, error.message().is_none())
        })
    }

    /// What an error while reading the answer means. Its beginning came, so that the server got the request.
    pub fn failure(&self, error: &hyper::Error) -> Failure {
        let mut failure = Failure::of_exchange(error, &self.heard, true);
        failure.sent = true;
        failure
    }

    /// Whether the answer broke off where it seemed to end. Over HTTP/2 it also seems to end when the server resets the
    /// stream or goes away without an error, as it may after an early answer; then the announced length tells.
    pub fn broke_off(&self, body: &Incoming) -> bool {
        let ended = body.is_end_stream() || body.size_hint().exact() == Some(0);
        matches!(self.sender, Sender::Http2(_)) && !ended
    }
}

/// The form without the server, which goes to a header.
fn to_http1(request: &mut Request<Body>) {
    let uri = std::mem::take(request.uri_mut()).into_parts();
    if let Some(host) = uri.authority.and_then(|authority| HeaderValue::from_str(authority.as_str()).ok()) {
        request.headers_mut().insert(HOST, host);
    }
    *request.uri_mut() = uri.path_and_query.map(Uri::from).unwrap_or_default();
}
