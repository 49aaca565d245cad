//! Every bound on what a stranger can grow, and the count of what there is now.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use percent_encoding::percent_decode_str;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// How many handshake errors are kept for `take_handshake_errors`.
const REMEMBERED_ERRORS: usize = 64;

/// How many requests are kept for `take_own_answers`. The path of one is no longer than a header may be.
const REMEMBERED_ANSWERS: usize = 1_024;

/// How many connections over the bound are still told so.
const EXCESS_CONNECTIONS: usize = 256;

/// How many closed sockets may at a time wait for their clients to read the last answer.
const LINGERING_SOCKETS: usize = 512;

macro_rules! limits {
    ($($name:ident: $kind:ty = $default:literal,)*) => {
        /// The bounds, as the table of `DEFAULT_LIMITS` in the Python face describes them.
        #[derive(Clone)]
        pub struct Limits {
            $(pub $name: $kind,)*
        }

        impl Limits {
            pub fn defaults(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
                let defaults = PyDict::new(py);
                $(defaults.set_item(stringify!($name), $default)?;)*
                Ok(defaults)
            }

            pub fn from_python(given: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
                let mut limits = Self { $($name: <$kind>::from_number(f64::from($default)),)* };
                for (name, value) in given.into_iter().flatten() {
                    let name: String = name.extract()?;
                    let number = value.extract().ok().filter(|number: &f64| number.is_finite() && *number > 0.0);
                    let Some(number) = number else {
                        return Err(PyValueError::new_err(format!("the limit {name} has to be a number above zero")));
                    };
                    match name.as_str() {
                        $(stringify!($name) => limits.$name = <$kind>::from_number(number),)*
                        _ => return Err(PyValueError::new_err(format!("there is no limit of the name {name:?}"))),
                    }
                }
                Ok(limits)
            }
        }
    };
}

limits! {
    connections: usize = 10_000,
    handshakes: usize = 1_024,
    handshakes_per_address: usize = 128,
    handshake_grace_seconds: Duration = 1,
    handshake_seconds: Duration = 10,
    header_bytes: usize = 16_384,
    headers: usize = 100,
    header_seconds: Duration = 5,
    idle_seconds: Duration = 90,
    body_seconds: Duration = 15,
    write_seconds: Duration = 30,
    streams: usize = 250,
    requests: usize = 2_048,
    buffered_bytes: usize = 67_108_864,
    drained_bytes: usize = 67_108_864,
}

trait FromNumber {
    fn from_number(number: f64) -> Self;
}

impl FromNumber for usize {
    fn from_number(number: f64) -> Self {
        // A cast from a float saturates. A bound below one would shut everybody out.
        (number as usize).max(1)
    }
}

impl FromNumber for Duration {
    fn from_number(number: f64) -> Self {
        Duration::try_from_secs_f64(number).unwrap_or(Duration::MAX).min(Duration::from_secs(u32::MAX.into()))
    }
}

impl Limits {
    /// How often connections are looked at: often enough for the shortest bound, seldom enough to cost nothing.
    pub fn sweep_interval(&self) -> Duration {
        let shortest = self.header_seconds.min(self.idle_seconds).min(self.write_seconds);
        (shortest / 8).clamp(Duration::from_millis(10), Duration::from_millis(500))
    }
}

/// How much of a request's body is kept, by prefix of the decoded path.
pub struct BodyLimits(Vec<(String, usize)>);

impl BodyLimits {
    pub fn new(mut limits: Vec<(String, usize)>) -> Self {
        limits.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        Self(limits)
    }

    /// `path` is one as it was sent. It is decoded as the handler decodes it, so that both mean the same by it.
    pub fn of(&self, path: &str) -> usize {
        let path: Cow<'_, [u8]> = percent_decode_str(path).into();
        self.0.iter().find(|(prefix, _)| path.starts_with(prefix.as_bytes())).map_or(0, |(_, limit)| *limit)
    }
}

/// The newest ones of what is to be told, until somebody takes them.
pub struct Newest<T> {
    at_most: usize,
    items: Mutex<VecDeque<T>>,
}

impl<T> Newest<T> {
    fn new(at_most: usize) -> Self {
        Self { at_most, items: Mutex::default() }
    }

    pub fn push(&self, item: T) {
        let mut items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        if items.len() == self.at_most {
            items.pop_front();
        }
        items.push_back(item);
    }

    pub fn take(&self) -> VecDeque<T> {
        std::mem::take(&mut self.items.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A request that was answered without the handler.
pub struct OwnAnswer {
    pub peer: IpAddr,
    pub path: String,
    pub status: u16,
}

/// What all threads of one server share.
pub struct Shared {
    pub limits: Limits,
    pub body_limits: BodyLimits,
    pub clock: Clock,
    pub requests: AtomicUsize,
    pub handshakes_failed_total: AtomicU64,
    pub refused_total: AtomicU64,
    pub overload_total: AtomicU64,
    pub timeout_total: AtomicU64,
    pub too_large_total: AtomicU64,
    pub malformed_total: AtomicU64,
    pub own_answers: Newest<OwnAnswer>,
    pub handshake_errors: Newest<(IpAddr, String)>,
    buffered: AtomicUsize,
    connections: AtomicUsize,
    connections_total: AtomicU64,
    arriving: AtomicUsize,
    lingering: AtomicUsize,
    none_left: (Mutex<()>, Condvar),
}

impl Shared {
    pub fn new(limits: Limits, body_limits: BodyLimits) -> Self {
        Self {
            limits,
            body_limits,
            clock: Clock::new(),
            requests: AtomicUsize::new(0),
            handshakes_failed_total: AtomicU64::new(0),
            refused_total: AtomicU64::new(0),
            overload_total: AtomicU64::new(0),
            timeout_total: AtomicU64::new(0),
            too_large_total: AtomicU64::new(0),
            malformed_total: AtomicU64::new(0),
            own_answers: Newest::new(REMEMBERED_ANSWERS),
            handshake_errors: Newest::new(REMEMBERED_ERRORS),
            buffered: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            connections_total: AtomicU64::new(0),
            arriving: AtomicUsize::new(0),
            lingering: AtomicUsize::new(0),
            none_left: (Mutex::default(), Condvar::new()),
        }
    }

    pub fn handshake_failed(&self, peer: IpAddr, reason: String) {
        self.handshakes_failed_total.fetch_add(1, Relaxed);
        self.handshake_errors.push((peer, reason));
    }

    pub fn buffered(&self) -> usize {
        self.buffered.load(Relaxed)
    }

    pub fn over_budget(&self) -> bool {
        self.buffered() >= self.limits.buffered_bytes
    }

    /// Whether there is no room for one more connection, not even to be told so.
    pub fn full(&self) -> bool {
        self.connections.load(Relaxed) >= self.limits.connections.saturating_add(EXCESS_CONNECTIONS)
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Relaxed)
    }

    pub fn connections_total(&self) -> u64 {
        self.connections_total.load(Relaxed)
    }

    /// Waits until there is no connection and none to come, at most that long. Whether it is so.
    pub fn wait_until_none_left(&self, longest: Duration) -> bool {
        let some_left = || self.connections() > 0 || self.arriving.load(Relaxed) > 0;
        let (lock, condition) = &self.none_left;
        let guard = lock.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = condition.wait_timeout_while(guard, longest, |()| some_left());
        drop(waited);
        !some_left()
    }

    fn one_less(&self) {
        let (lock, condition) = &self.none_left;
        let _guard = lock.lock().unwrap_or_else(PoisonError::into_inner);
        condition.notify_all();
    }
}

/// Bytes that count against `buffered_bytes` for as long as this lives.
pub struct Charge {
    shared: Arc<Shared>,
    amount: usize,
}

impl Charge {
    pub fn new(shared: &Arc<Shared>, amount: usize) -> Self {
        shared.buffered.fetch_add(amount, Relaxed);
        Self { shared: shared.clone(), amount }
    }

    /// As many bytes more, if the budget has room for them.
    pub fn grow(&mut self, amount: usize) -> bool {
        let before = self.shared.buffered.fetch_add(amount, Relaxed);
        if before.saturating_add(amount) > self.shared.limits.buffered_bytes {
            self.shared.buffered.fetch_sub(amount, Relaxed);
            return false;
        }
        self.amount += amount;
        true
    }

    /// Hands so many of its bytes to another charge.
    pub fn split(&mut self, amount: usize) -> Self {
        let amount = amount.min(self.amount);
        self.amount -= amount;
        Self { shared: self.shared.clone(), amount }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.shared.buffered.fetch_sub(self.amount, Relaxed);
    }
}

/// The right to be a connection.
pub struct Slot {
    shared: Arc<Shared>,
    /// One more than there should be; it is told so and closed.
    pub excess: bool,
}

impl Slot {
    pub fn take(shared: &Arc<Shared>) -> Option<Self> {
        let before = shared.connections.fetch_add(1, Relaxed);
        let slot = Self { shared: shared.clone(), excess: before >= shared.limits.connections };
        if before >= shared.limits.connections.saturating_add(EXCESS_CONNECTIONS) {
            return None;
        }
        shared.connections_total.fetch_add(1, Relaxed);
        Some(slot)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.shared.connections.fetch_sub(1, Relaxed) == 1 {
            self.shared.one_less();
        }
    }
}

/// What may yet become a connection: whoever waits for the last one waits for this, too.
pub struct Arrival(Arc<Shared>);

impl Arrival {
    pub fn new(shared: &Arc<Shared>) -> Self {
        shared.arriving.fetch_add(1, Relaxed);
        Self(shared.clone())
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        if self.0.arriving.fetch_sub(1, Relaxed) == 1 {
            self.0.one_less();
        }
    }
}

/// The right to stay open for a moment after the last answer.
pub struct Lingerer(Arc<Shared>);

impl Lingerer {
    pub fn take(shared: &Arc<Shared>) -> Option<Self> {
        let before = shared.lingering.fetch_add(1, Relaxed);
        let lingerer = Self(shared.clone());
        (before < LINGERING_SOCKETS).then_some(lingerer)
    }
}

impl Drop for Lingerer {
    fn drop(&mut self) {
        self.0.lingering.fetch_sub(1, Relaxed);
    }
}

/// Milliseconds since the server was made, from 1 on, as of the last sweep: what bounds of seconds need, for nothing.
pub struct Clock {
    start: Instant,
    now: AtomicU64,
}

impl Clock {
    fn new() -> Self {
        Self { start: Instant::now(), now: AtomicU64::new(1) }
    }

    pub fn now(&self) -> u64 {
        self.now.load(Relaxed)
    }

    pub fn advance(&self) {
        self.now.store(milliseconds(self.start.elapsed()).saturating_add(1), Relaxed);
    }
}

pub fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add("DEFAULT_LIMITS", Limits::defaults(m.py())?)
}
