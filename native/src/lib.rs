//! The native part of Keswick: it moves bytes and decides nothing.
//!
//! `tls` and `http` own sockets, handshakes and the two HTTP versions, `bridge` carries requests to Python and
//! replies back, `seal` has the sealing primitives. No route, policy or key name is known here. The Python face is
//! described in `src/keswick/_native.pyi`.

mod process;
mod seal;

use pyo3::prelude::*;

#[pymodule]
fn _native(m: &Bound<'_, PyModule>) -> PyResult<()> {
    process::register(m)?;
    seal::register(m)?;
    Ok(())
}
