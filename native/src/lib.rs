//! The native part of Keswick: it moves bytes and decides nothing.
//!
//! `tls` and `http` own sockets, handshakes and the two HTTP versions, `bridge` carries requests to Python and
//! replies back, `seal` has the sealing primitives. No route, policy or key name is known here. The Python face is
//! described in `src/keswick/_native.pyi`.

mod activity;
mod bridge;
mod certificate;
mod http;
mod limits;
mod listener;
mod process;
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
    limits::register(m)?;
    process::register(m)?;
    seal::register(m)?;
    server::register(m)?;
    tls::register(m)?;
    trust::register(m)?;
    Ok(())
}
