//! From the listening socket to an established connection, on threads that never touch Python.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use socket2::{Domain, Protocol, TcpKeepalive, Type};
use tokio::net::TcpStream;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;

use crate::limits::{Arrival, Shared, Slot};
use crate::proxy_protocol::ProxyProtocol;
use crate::socket::{Origin, Socket, Transport};
use crate::tls;

const BACKLOG: i32 = 1024;

const KEEPALIVE: Duration = Duration::from_secs(60);

/// How long to wait when no connection can be accepted, such as when there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// From how many pending handshakes on the newcomers wait.
const CROWD: usize = 16;

/// In what time a connection becomes whole that the kernel has begun to make: half a round trip, and some.
const HALF_MADE: Duration = Duration::from_millis(50);

/// No longer than this are the last ones accepted, however fast they come.
const LAST_ONES: Duration = Duration::from_secs(1);

/// Binds and listens. The kernel queues connections from now on.
pub fn bind(host: &str, port: u16) -> io::Result<TcpListener> {
    let mut last_error = io::Error::new(io::ErrorKind::AddrNotAvailable, "the host name has no address");
    for address in (host, port).to_socket_addrs()? {
        match bind_address(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => last_error = error,
        }
    }
    Err(last_error)
}

fn bind_address(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.ip().is_unspecified() && address.is_ipv6() {
        // "::" means every address, those of IPv4 too.
        socket.set_only_v6(false)?;
    }
    // Accepted sockets inherit these, so that a connection costs no call for them.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 4))?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// A connection that has done its handshake, off any runtime.
pub struct Established {
    pub transport: Transport,
    pub peer: IpAddr,
    pub certificates: Arc<[CertificateDer<'static>]>,
    pub http2: bool,
    pub generation: u64,
    pub slot: Slot,
}

/// What a handshake is done with. Each has the generation after the one before it.
struct Terms {
    tls: Option<Arc<ServerConfig>>,
    generation: u64,
}

/// Told to the task that accepts when it is to end.
pub struct Farewell {
    /// For handshakes that are not done.
    pub time: Duration,
    /// Held until the last connection is accepted.
    pub arrival: Arrival,
}

/// Lets connections in.
pub struct Gate {
    shared: Arc<Shared>,
    proxy_protocol: Option<ProxyProtocol>,
    terms: RwLock<Terms>,
    pending: Mutex<Pending>,
    established: UnboundedSender<Established>,
}

impl Gate {
    pub fn new(
        shared: Arc<Shared>,
        tls: Option<Arc<ServerConfig>>,
        proxy_protocol: Option<ProxyProtocol>,
        established: UnboundedSender<Established>,
    ) -> Self {
        let terms = RwLock::new(Terms { tls, generation: 0 });
        Self { shared, proxy_protocol, terms, pending: Mutex::default(), established }
    }

    /// Uses `tls` from now on. Returns its generation, or None when the listener is a plain one.
    pub fn set_tls(&self, tls: Arc<ServerConfig>) -> Option<u64> {
        let mut terms = self.terms.write().unwrap_or_else(PoisonError::into_inner);
        *terms.tls.as_mut()? = tls;
        terms.generation += 1;
        Some(terms.generation)
    }

    /// Accepts until the farewell. What the kernel has let in by then is a connection for its client, which may have
    /// sent a request, so that it is served, too. Dropping the future closes the listening socket.
    pub async fn accept(self: Arc<Self>, listener: TcpListener, farewell: oneshot::Receiver<Farewell>) {
        let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
        let farewell = tokio::select! {
            farewell = farewell => farewell,
            never = self.accept_for_ever(&listener) => match never {},
        };
        let Ok(Farewell { time, arrival }) = farewell else { return };
        ignore_newcomers(&listener);
        let last_ones = async {
            while tokio::time::timeout(HALF_MADE, self.accept_one(&listener)).await.is_ok() {
                self.give_way().await;
            }
        };
        let _ = tokio::time::timeout(LAST_ONES, last_ones).await;
        drop(listener);
        drop(arrival);
        tokio::time::sleep(time).await;
        self.drop_handshakes();
    }

    async fn accept_for_ever(self: &Arc<Self>, listener: &tokio::net::TcpListener) -> Infallible {
        loop {
            self.accept_one(listener).await;
            self.give_way().await;
        }
    }

    /// When a crowd comes, the handshakes that can go on have their turn before the next one begins. It waits in the
    /// kernel's queue while this machine is the slow one, so that what is pending, and bounded, waits for its client.
    async fn give_way(&self) {
        if self.pending_handshakes() >= CROWD {
            tokio::task::yield_now().await;
        }
    }

    async fn accept_one(self: &Arc<Self>, listener: &tokio::net::TcpListener) {
        match listener.accept().await {
            Ok((stream, peer)) => self.admit(stream, peer.ip().to_canonical()),
            Err(error) if is_about_one_client(&error) => {}
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }

    fn admit(self: &Arc<Self>, stream: TcpStream, peer: IpAddr) {
        if self.shared.full() {
            self.shared.refused_total.fetch_add(1, Relaxed);
            return;
        }
        // All connections of a proxy come from its address: the bound is for its clients, once it has named them.
        let proxied = self.proxy_protocol.as_ref().is_some_and(|protocol| protocol.expects_from(peer));
        // The lock is held until the task is noted, so that the task cannot end before that.
        let mut pending = self.pending();
        if !proxied {
            self.make_room_of(peer, &mut pending);
        }
        let limits = &self.shared.limits;
        self.dropped(pending.make_room(limits.handshakes, limits.handshakes_per_address));
        let number = pending.next_number();
        let arrival = Arrival::new(&self.shared);
        let task = tokio::spawn(self.clone().let_in(stream, Origin { peer, proxied }, number, arrival));
        pending.insert(number, peer, task.abort_handle());
        if !proxied {
            pending.count(number, peer);
        }
    }

    fn make_room_of(&self, peer: IpAddr, pending: &mut Pending) {
        let limits = &self.shared.limits;
        while pending.is_slow(peer, limits.handshakes_per_address, limits.handshake_grace_seconds) {
            self.dropped(pending.drop_oldest_of(peer));
        }
    }

    fn dropped(&self, peer: Option<IpAddr>) {
        if let Some(peer) = peer {
            self.shared.refused_total.fetch_add(1, Relaxed);
            self.shared.handshake_failed(peer, "dropped for newer ones, too many handshakes are pending".to_owned());
        }
    }

    async fn let_in(self: Arc<Self>, mut stream: TcpStream, mut origin: Origin, number: u64, _arrival: Arrival) {
        // Also when the handshake is dropped or panics.
        let _pending = Removal { gate: &self, number };
        if let Some(protocol) = self.proxy_protocol.as_ref().filter(|_| origin.proxied) {
            match protocol.read_from(&mut stream).await {
                Ok(None) => {}
                Ok(Some(client)) => {
                    origin.peer = client;
                    self.introduce(client, number);
                }
                Err(reason) => return self.shared.handshake_failed(origin.peer, reason),
            }
        }
        self.shake_hands(stream, origin).await;
    }

    /// A proxy has named the client behind a pending handshake.
    fn introduce(&self, client: IpAddr, number: u64) {
        let mut pending = self.pending();
        self.make_room_of(client, &mut pending);
        pending.count(number, client);
    }

    async fn shake_hands(&self, stream: TcpStream, origin: Origin) {
        let (tls, generation) = {
            let terms = self.terms.read().unwrap_or_else(PoisonError::into_inner);
            (terms.tls.clone(), terms.generation)
        };
        let peer = origin.peer;
        let socket = Socket::new(stream, self.shared.clone(), origin, tls.is_some());
        let mut http2 = false;
        let mut certificates = Vec::new();
        let mut transport = match tls {
            None => Transport::Plain(socket),
            Some(config) => {
                let handshake = async {
                    let (error, socket) = match TlsAcceptor::from(config).accept(socket).into_fallible().await {
                        Ok(stream) => return Ok(stream),
                        Err(failed) => failed,
                    };
                    socket.answer_plain_http().await;
                    Err(error)
                };
                match tokio::time::timeout(self.shared.limits.handshake_seconds, handshake).await {
                    Ok(Ok(stream)) => {
                        let session = stream.get_ref().1;
                        http2 = session.alpn_protocol() == Some(tls::HTTP2);
                        certificates = session.peer_certificates().unwrap_or_default().to_vec();
                        Transport::Tls(Box::new(stream))
                    }
                    Ok(Err(error)) => return self.shared.handshake_failed(peer, tls::in_words(&error)),
                    Err(_) => return self.shared.handshake_failed(peer, "timed out".to_owned()),
                }
            }
        };
        let Some(slot) = Slot::take(&self.shared) else {
            self.shared.refused_total.fetch_add(1, Relaxed);
            return;
        };
        if transport.park().is_ok() {
            let certificates = certificates.into();
            let connection = Established { transport, peer, certificates, http2, generation, slot };
            // It fails only when the server has closed meanwhile.
            let _ = self.established.send(connection);
        }
    }

    pub fn pending_handshakes(&self) -> usize {
        self.pending().by_age.len()
    }

    /// Drops all handshakes that are not done.
    pub fn drop_handshakes(&self) {
        let dropped = {
            let mut pending = self.pending();
            pending.by_address.clear();
            std::mem::take(&mut pending.by_age)
        };
        dropped.values().for_each(|handshake| handshake.task.abort());
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Has the kernel drop the beginnings of new connections, while those that are half made become whole: between the last
/// one that is accepted and the end of the listening socket none is made that nobody would ever serve. Their clients try
/// again after a second, and are refused. Where the kernel cannot do it, the gap of some microseconds stays.
#[cfg(target_os = "linux")]
fn ignore_newcomers(listener: &tokio::net::TcpListener) {
    const FLAGS: u32 = 13;
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    let code = |code: u32| u16::try_from(code).unwrap_or_default();
    let load = code(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS);
    let and = code(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K);
    let is_equal = code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K);
    let keep_bytes = code(libc::BPF_RET | libc::BPF_K);
    let _ = socket2::SockRef::from(listener).attach_filter(&[
        socket2::SockFilter::new(load, 0, 0, FLAGS),
        socket2::SockFilter::new(and, 0, 0, SYN | ACK),
        socket2::SockFilter::new(is_equal, 0, 1, SYN),
        socket2::SockFilter::new(keep_bytes, 0, 0, 0),
        socket2::SockFilter::new(keep_bytes, 0, 0, u32::MAX),
    ]);
}

#[cfg(not(target_os = "linux"))]
fn ignore_newcomers(_listener: &tokio::net::TcpListener) {}

/// Errors of `accept` that are about the connection that was to be accepted; the next one may be well.
fn is_about_one_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, PermissionDenied, TimedOut};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted | PermissionDenied | TimedOut)
}

/// The handshakes that are not done yet, numbered by age.
///
/// When there are too many an old one is dropped: a client that shakes hands without delay gets in, however many stay in
/// the door. A crowd that comes at once from one address, such as that of a proxy, is let in as far as it makes haste.
#[derive(Default)]
struct Pending {
    last_number: u64,
    by_age: BTreeMap<u64, Handshake>,
    /// Those that the bound per address is for.
    by_address: HashMap<IpAddr, BTreeSet<u64>>,
}

struct Handshake {
    peer: IpAddr,
    began: Instant,
    task: AbortHandle,
}

impl Pending {
    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    fn insert(&mut self, number: u64, peer: IpAddr, task: AbortHandle) {
        self.by_age.insert(number, Handshake { peer, began: Instant::now(), task });
    }

    /// From now on it is one of that peer, and counts as one.
    fn count(&mut self, number: u64, peer: IpAddr) {
        if let Some(handshake) = self.by_age.get_mut(&number) {
            handshake.peer = peer;
            self.by_address.entry(peer).or_default().insert(number);
        }
    }

    fn remove(&mut self, number: u64) -> Option<Handshake> {
        let handshake = self.by_age.remove(&number)?;
        if let Some(numbers) = self.by_address.get_mut(&handshake.peer) {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.by_address.remove(&handshake.peer);
            }
        }
        Some(handshake)
    }

    /// Whether the peer's oldest one has had its time, while so many more are pending that it has to make room.
    fn is_slow(&self, peer: IpAddr, at_most: usize, grace: Duration) -> bool {
        let numbers = self.by_address.get(&peer).filter(|numbers| numbers.len() >= at_most);
        let oldest = numbers.and_then(BTreeSet::first).and_then(|number| self.by_age.get(number));
        oldest.is_some_and(|handshake| handshake.began.elapsed() >= grace)
    }

    fn drop_oldest_of(&mut self, peer: IpAddr) -> Option<IpAddr> {
        let oldest = *self.by_address.get(&peer)?.first()?;
        self.drop_one(oldest)
    }

    /// Makes room for one more, at the cost of a crowd if there is one. Whose handshake was dropped for that.
    fn make_room(&mut self, at_most: usize, at_most_of_one: usize) -> Option<IpAddr> {
        let oldest = *self.by_age.first_key_value().filter(|_| self.by_age.len() >= at_most)?.0;
        let largest = self.by_address.values().max_by_key(|numbers| numbers.len());
        let of_crowd = largest.filter(|numbers| numbers.len() > at_most_of_one).and_then(BTreeSet::first).copied();
        self.drop_one(of_crowd.unwrap_or(oldest))
    }

    fn drop_one(&mut self, number: u64) -> Option<IpAddr> {
        let handshake = self.remove(number)?;
        handshake.task.abort();
        Some(handshake.peer)
    }
}

/// Takes a handshake off the list when it ends, whichever way.
struct Removal<'a> {
    gate: &'a Gate,
    number: u64,
}

impl Drop for Removal<'_> {
    fn drop(&mut self) {
        self.gate.pending().remove(self.number);
    }
}
