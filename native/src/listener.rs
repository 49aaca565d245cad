//! From the listening socket to an established connection, on threads that never touch Python.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use socket2::{Domain, Protocol, TcpKeepalive, Type};
use tokio::net::TcpStream;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;

use crate::limits::{Shared, Slot};
use crate::socket::{Socket, Transport};
use crate::tls;

const BACKLOG: i32 = 1024;

const KEEPALIVE: Duration = Duration::from_secs(60);

/// How long to wait when no connection can be accepted, such as when there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

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

/// Lets connections in.
pub struct Gate {
    shared: Arc<Shared>,
    terms: RwLock<Terms>,
    pending: Mutex<Pending>,
    established: UnboundedSender<Established>,
}

impl Gate {
    pub fn new(shared: Arc<Shared>, tls: Option<Arc<ServerConfig>>, established: UnboundedSender<Established>) -> Self {
        Self { shared, terms: RwLock::new(Terms { tls, generation: 0 }), pending: Mutex::default(), established }
    }

    /// Uses `tls` from now on. Returns its generation, or None when the listener is a plain one.
    pub fn set_tls(&self, tls: Arc<ServerConfig>) -> Option<u64> {
        let mut terms = self.terms.write().unwrap_or_else(PoisonError::into_inner);
        *terms.tls.as_mut()? = tls;
        terms.generation += 1;
        Some(terms.generation)
    }

    /// Accepts for ever. Dropping the future closes the listening socket.
    pub async fn accept(self: Arc<Self>, listener: TcpListener) -> io::Result<()> {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => self.admit(stream, peer.ip().to_canonical()),
                Err(error) if is_about_one_client(&error) => {}
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    }

    fn admit(self: &Arc<Self>, stream: TcpStream, peer: IpAddr) {
        if self.shared.full() {
            self.shared.refused_total.fetch_add(1, Relaxed);
            return;
        }
        // The lock is held until the task is noted, so that the task cannot end before that.
        let mut pending = self.pending();
        let limits = &self.shared.limits;
        if let Some(oldest) = pending.make_room(peer, limits.handshakes, limits.handshakes_per_address) {
            self.shared.refused_total.fetch_add(1, Relaxed);
            self.shared.handshake_failed(oldest, "dropped for newer ones, too many handshakes are pending".to_owned());
        }
        let number = pending.next_number();
        let task = tokio::spawn(self.clone().shake_hands(stream, peer, number));
        pending.insert(peer, number, task.abort_handle());
    }

    async fn shake_hands(self: Arc<Self>, stream: TcpStream, peer: IpAddr, number: u64) {
        // Also when the handshake is dropped or panics.
        let _pending = Removal { gate: &self, peer, number };
        let (tls, generation) = {
            let terms = self.terms.read().unwrap_or_else(PoisonError::into_inner);
            (terms.tls.clone(), terms.generation)
        };
        let socket = Socket::new(stream, self.shared.clone(), tls.is_some());
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
        dropped.values().for_each(|(_, task)| task.abort());
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Errors of `accept` that are about the connection that was to be accepted; the next one may be well.
fn is_about_one_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, PermissionDenied, TimedOut};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted | PermissionDenied | TimedOut)
}

/// The handshakes that are not done yet, numbered by age.
#[derive(Default)]
struct Pending {
    last_number: u64,
    by_age: BTreeMap<u64, (IpAddr, AbortHandle)>,
    by_address: HashMap<IpAddr, BTreeSet<u64>>,
}

impl Pending {
    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    fn insert(&mut self, peer: IpAddr, number: u64, task: AbortHandle) {
        self.by_age.insert(number, (peer, task));
        self.by_address.entry(peer).or_default().insert(number);
    }

    fn remove(&mut self, peer: IpAddr, number: u64) -> Option<AbortHandle> {
        let (_, task) = self.by_age.remove(&number)?;
        if let Some(numbers) = self.by_address.get_mut(&peer) {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.by_address.remove(&peer);
            }
        }
        Some(task)
    }

    /// Makes room for one more of this peer: the oldest one, of the peer if it has too many, is dropped. A client that
    /// shakes hands without delay gets in, however many stay in the door.
    fn make_room(&mut self, peer: IpAddr, at_most: usize, at_most_of_peer: usize) -> Option<IpAddr> {
        let (number, address) = match self.by_address.get(&peer) {
            Some(numbers) if numbers.len() >= at_most_of_peer => (*numbers.first()?, peer),
            _ if self.by_age.len() >= at_most => {
                self.by_age.first_key_value().map(|(number, (address, _))| (*number, *address))?
            }
            _ => return None,
        };
        self.remove(address, number)?.abort();
        Some(address)
    }
}

/// Takes a handshake off the list when it ends, whichever way.
struct Removal<'a> {
    gate: &'a Gate,
    peer: IpAddr,
    number: u64,
}

impl Drop for Removal<'_> {
    fn drop(&mut self) {
        self.gate.pending().remove(self.peer, self.number);
    }
}
