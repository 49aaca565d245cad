//! What keeps the secrets of a running process off the disk, and its signals with those who heed them.

use pyo3::prelude::*;

#[cfg(target_os = "linux")]
#[pyfunction]
fn lock_memory(py: Python<'_>) -> bool {
    // Without the capability a limit goes on counting after the call, and would let later allocations fail.
    if !(has_lock_capability() || has_unlimited_lock()) {
        return false;
    }
    // SAFETY: the call takes flags only. It may walk all pages, so others run meanwhile.
    py.detach(|| unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) == 0 })
}

#[cfg(not(target_os = "linux"))]
#[pyfunction]
fn lock_memory() -> bool {
    false
}

#[cfg(target_os = "linux")]
fn has_lock_capability() -> bool {
    const CAP_IPC_LOCK: u32 = 14;
    std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| {
            let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
            u64::from_str_radix(effective.trim(), 16).ok()
        })
        .is_some_and(|effective| effective >> CAP_IPC_LOCK & 1 == 1)
}

#[cfg(target_os = "linux")]
fn has_unlimited_lock() -> bool {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live value of the type that the call fills.
    unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) == 0 && limit.rlim_cur == libc::RLIM_INFINITY }
}

#[pyfunction]
fn forbid_core_dumps() -> PyResult<()> {
    #[cfg(unix)]
    {
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the pointer is to a live value that the call reads.
        if unsafe { libc::setrlimit(libc::RLIMIT_CORE, &none) } != 0 {
            return Err(std::io::Error::last_os_error().into());
        }
    }
    // SAFETY: the call takes numbers only.
    #[cfg(target_os = "linux")]
    if unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0 as libc::c_ulong) } != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(())
}

/// Keeps signals from the calling thread and those that it starts, so that they wake a thread that can heed them.
pub fn leave_signals_to_others() {
    #[cfg(unix)]
    // SAFETY: the set is initialised by the first call, and all get pointers to live values.
    unsafe {
        let mut signals = std::mem::zeroed();
        libc::sigfillset(&mut signals);
        // These come from what the thread itself does.
        for own in [libc::SIGABRT, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGSEGV] {
            libc::sigdelset(&mut signals, own);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &signals, std::ptr::null_mut());
    }
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(lock_memory, m)?)?;
    m.add_function(wrap_pyfunction!(forbid_core_dumps, m)?)
}
