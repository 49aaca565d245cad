//! The way to a server: its addresses, a TCP connection to one of them, the TLS handshake.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::failure::{Failure, system_words};

/// How long one address is tried before the next one is tried as well (RFC 8305).
const HEAD_START: Duration = Duration::from_millis(250);

pub async fn dial(
    host: &str,
    port: u16,
    server_name: &str,
    tls: Arc<ClientConfig>,
    deadline: Instant,
) -> Result<TlsStream<TcpStream>, Failure> {
    let addresses = within(deadline, "looking up the host", resolve(host, port)).await?;
    let stream = within(deadline, "connecting", connect(addresses)).await?;
    within(deadline, "the TLS handshake", handshake(stream, server_name, tls)).await
}

pub async fn within<T>(
    deadline: Instant,
    what: &str,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    timeout_at(deadline, work).await.unwrap_or_else(|_| Err(Failure::unsent("connect_timeout", what)))
}

async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, Failure> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let addresses: Vec<_> = match lookup_host((host, port)).await {
        Ok(addresses) => addresses.collect(),
        Err(error) => return Err(Failure::unsent("resolve", system_words(&error))),
    };
    if addresses.is_empty() { Err(Failure::unsent("resolve", "the host has no address")) } else { Ok(addresses) }
}

/// The connection that stands first.
async fn connect(addresses: Vec<SocketAddr>) -> Result<TcpStream, Failure> {
    let mut addresses = addresses.into_iter();
    let mut attempts = JoinSet::new();
    let mut errors: Vec<io::Error> = Vec::new();
    loop {
        if let Some(address) = addresses.next() {
            attempts.spawn(TcpStream::connect(address));
        }
        tokio::select! {
            Some(attempt) = attempts.join_next() => match attempt.unwrap_or_else(|error| Err(io::Error::other(error))) {
                Ok(stream) => {
                    tune(&stream);
                    return Ok(stream);
                }
                Err(error) => errors.push(error),
            },
            () = sleep(HEAD_START), if addresses.len() > 0 => {}
            else => return Err(in_kinds(&errors)),
        }
    }
}

/// Small requests go out at once, and a server that vanished is noticed even where an answer may take for ever.
fn tune(stream: &TcpStream) {
    let keep_alive = TcpKeepalive::new().with_time(Duration::from_secs(30)).with_interval(Duration::from_secs(10));
    let _ = stream.set_nodelay(true);
    let _ = SockRef::from(stream).set_tcp_keepalive(&keep_alive);
}

fn in_kinds(errors: &[io::Error]) -> Failure {
    let of_kind = |kind| errors.iter().find(|error| error.kind() == kind);
    if let Some(error) = of_kind(io::ErrorKind::ConnectionRefused) {
        return Failure::unsent("refused", system_words(error));
    }
    if let Some(error) = of_kind(io::ErrorKind::TimedOut) {
        return Failure::unsent("connect_timeout", system_words(error));
    }
    Failure::unsent("connect", errors.first().map(system_words).unwrap_or_default())
}

async fn handshake(
    stream: TcpStream,
    server_name: &str,
    tls: Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>, Failure> {
    // The zone of a link-local address is no part of the name.
    let name = if server_name.contains(':') { server_name.split('%').next().unwrap_or_default() } else { server_name };
    let name = ServerName::try_from(name.to_owned())
        .map_err(|_| Failure::unsent("name", "no certificate can have such a name"))?;
    TlsConnector::from(tls).connect(name, stream).await.map_err(|error| Failure::of_handshake(&error))
}
