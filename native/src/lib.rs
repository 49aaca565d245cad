//! The native part of Keswick: it moves bytes and decides nothing.
//!
//! A connection walks through `listener` (accept, header of a proxy by `proxy_protocol`, handshake by `tls`, bounds per
//! address), `socket` (from the handshake threads to the I/O thread), `http` (both versions, bodies), `bridge` (to
//! Python) and `reply` (back, streams).
//! `activity` ends what stands still, `limits` has every bound, `server` the threads and their life. `client` makes calls
//! to such servers. `certificate` and `trust` read and verify certificates, `issue` makes them, `seal` has the sealing
//! primitives, `process` hardens the process. No route, policy or key name is known here. The Python face is described
//! in `src/keswick/_native.pyi`.

mod activity;
mod bridge;
mod certificate;
mod client;
mod http;
mod issue;
mod limits;
mod listener;
mod process;
mod proxy_protocol;
mod reply;
mod seal;
mod server;
mod socket;
mod tls;
mod trust;

use pyo3::prelude::*;

#[pymodule]
fn _native(m: &Bound<'_, PyModule>) -> PyResult<()> {
    bridge::register(m)?;
    certificate::register(m)?;
    client::register(m)?;
    issue::register(m)?;
    limits::register(m)?;
    process::register(m)?;
    seal::register(m)?;
    server::register(m)?;
    tls::register(m)?;
    trust::register(m)?;
    Ok(())
}
