//! What one connection is doing now, so that a sweep over all of them finds those that have to go.
//!
//! One sweep twice a second in place of timers for each connection and request: the way of a request sets a few
//! numbers, and no timer is armed or disarmed on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::Notify;

use crate::limits::{Shared, milliseconds};

/// A connection that was asked to end and has nothing to do is cut after so many milliseconds.
const LAST_CHANCE: u64 = 3_000;

/// A client that has just connected is about to send a request. It has so long for that, and for its handshake before,
/// when the server does not want it any more.
pub const NEWCOMER: Duration = Duration::from_secs(3);

/// Waiting bytes are counted by the period in which they last moved. A period is half of `write_seconds`; the oldest of
/// the three before the present one is the one that nothing should be left of.
const PERIODS: usize = 4;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Demand {
    GoOn,
    /// Answer one more request, saying that it is the last one, then close (HTTP/1.1).
    Last,
    /// Answer what is running, then close.
    End,
    /// Close at once.
    Cut,
}

pub struct Activity {
    pub shared: Arc<Shared>,
    pub http2: bool,
    /// One more than there should be: it is ended after its first request, which is answered "overload".
    pub excess: bool,
    /// Which of the successive TLS settings it was made under.
    pub generation: u64,
    demand: AtomicU8,
    demand_changed: Notify,
    demanded_at: AtomicU64,
    patient_until: AtomicU64,
    requests: AtomicU32,
    answered: AtomicBool,
    idle_since: AtomicU64,
    header_since: AtomicU64,
    blocked_since: AtomicU64,
    waiting: [AtomicU32; PERIODS],
}

impl Activity {
    pub fn new(shared: Arc<Shared>, http2: bool, excess: bool, generation: u64) -> Self {
        let now = shared.clock.now();
        Self {
            shared,
            http2,
            excess,
            generation,
            demand: AtomicU8::new(Demand::GoOn as u8),
            demand_changed: Notify::new(),
            demanded_at: AtomicU64::new(0),
            patient_until: AtomicU64::new(0),
            requests: AtomicU32::new(0),
            answered: AtomicBool::new(false),
            idle_since: AtomicU64::new(now),
            header_since: AtomicU64::new(0),
            blocked_since: AtomicU64::new(0),
            waiting: Default::default(),
        }
    }

    pub fn demand(&self) -> Demand {
        match self.demand.load(Relaxed) {
            0 => Demand::GoOn,
            1 => Demand::Last,
            2 => Demand::End,
            _ => Demand::Cut,
        }
    }

    pub fn ask(&self, demand: Demand) {
        if self.demand.fetch_max(demand as u8, Relaxed) < demand as u8 {
            self.demanded_at.store(self.shared.clock.now(), Relaxed);
            self.demand_changed.notify_one();
        }
    }

    /// Asks it to end without losing a request that is on its way.
    ///
    /// HTTP/2 says on both sides which one was the last. Over HTTP/1.1 only an answer says that, and a request that
    /// crosses the end of an idle connection is lost. So such a connection stays until then (milliseconds of the
    /// clock), for one more request.
    pub fn retire(&self, until: u64) {
        let is_new = self.requests.load(Relaxed) == 0 && !self.answered.load(Relaxed);
        let until = match (self.http2, is_new) {
            (true, _) => 0,
            (false, true) => until.max(self.idle_since.load(Relaxed) + milliseconds(NEWCOMER)),
            (false, false) => until,
        };
        if until > self.shared.clock.now() {
            self.patient_until.store(until, Relaxed);
            self.ask(Demand::Last);
        } else {
            self.ask(Demand::End);
        }
    }

    /// Whether a part of a request's header has come in, and not the whole.
    pub fn in_header(&self) -> bool {
        self.requests.load(Relaxed) == 0 && self.header_since.load(Relaxed) != 0
    }

    /// The next change of `demand`.
    pub async fn changed(&self) {
        self.demand_changed.notified().await;
    }

    /// Bytes came in. Between requests they begin the header of the next one.
    pub fn received(&self) {
        if self.requests.load(Relaxed) == 0 && self.header_since.load(Relaxed) == 0 {
            self.header_since.store(self.shared.clock.now(), Relaxed);
        }
    }

    /// The socket takes no bytes, or takes them again.
    pub fn blocked(&self, blocked: bool) {
        let since = self.blocked_since.load(Relaxed);
        if blocked && since == 0 {
            self.blocked_since.store(self.shared.clock.now(), Relaxed);
        } else if !blocked && since != 0 {
            self.blocked_since.store(0, Relaxed);
        }
    }

    fn period(&self) -> usize {
        let length = (milliseconds(self.shared.limits.write_seconds) / 2).max(1);
        (self.shared.clock.now() / length) as usize % PERIODS
    }

    /// Asks what the bounds of time demand. Called by the sweep.
    pub fn check(&self) {
        let limits = &self.shared.limits;
        // A moment is at most one sweep older than it was noted; nobody is cut too early for that.
        let blur = milliseconds(limits.sweep_interval());
        let now = self.shared.clock.now();
        let age = |since: u64| now.saturating_sub(since).saturating_sub(blur);
        let older = |since: &AtomicU64, bound| {
            let since = since.load(Relaxed);
            since != 0 && age(since) >= milliseconds(bound)
        };
        let oldest_period = (self.period() + 1) % PERIODS;
        if older(&self.blocked_since, limits.write_seconds) || self.waiting[oldest_period].load(Relaxed) > 0 {
            return self.ask(Demand::Cut);
        }
        if self.requests.load(Relaxed) > 0 {
            return;
        }
        if !self.http2 && older(&self.header_since, limits.header_seconds) {
            return self.ask(Demand::Cut);
        }
        let demand = self.demand();
        if demand == Demand::End {
            let since = self.demanded_at.load(Relaxed).max(self.idle_since.load(Relaxed));
            if age(since) >= LAST_CHANCE {
                self.ask(Demand::Cut);
            }
        } else if (demand == Demand::Last && now >= self.patient_until.load(Relaxed))
            || (self.excess && self.answered.load(Relaxed))
            || older(&self.idle_since, limits.idle_seconds)
        {
            self.ask(Demand::End);
        }
    }
}

/// A request in flight, from its header to the last byte of its answer.
pub struct Flight {
    activity: Arc<Activity>,
    /// One more than there should be at a time.
    pub excess: bool,
}

impl Flight {
    pub fn begin(activity: &Arc<Activity>) -> Self {
        activity.requests.fetch_add(1, Relaxed);
        activity.header_since.store(0, Relaxed);
        let before = activity.shared.requests.fetch_add(1, Relaxed);
        Self { activity: activity.clone(), excess: before >= activity.shared.limits.requests }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.activity.shared.requests.fetch_sub(1, Relaxed);
        self.activity.answered.store(true, Relaxed);
        self.activity.idle_since.store(self.activity.shared.clock.now(), Relaxed);
        self.activity.requests.fetch_sub(1, Relaxed);
    }
}

/// Something that waits for the client to read.
pub struct Waiting {
    activity: Arc<Activity>,
    period: usize,
}

impl Waiting {
    pub fn new(activity: &Arc<Activity>) -> Self {
        let period = activity.period();
        activity.waiting[period].fetch_add(1, Relaxed);
        Self { activity: activity.clone(), period }
    }

    /// Some of it went out.
    pub fn moved(&mut self) {
        let period = self.activity.period();
        if period != self.period {
            self.activity.waiting[self.period].fetch_sub(1, Relaxed);
            self.activity.waiting[period].fetch_add(1, Relaxed);
            self.period = period;
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.activity.waiting[self.period].fetch_sub(1, Relaxed);
    }
}
