//! Why a call brought no answer, as the kinds that Python finds words for.

use std::error::Error as StdError;
use std::io;

use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use rustls::{AlertDescription, CertificateError, Error as TlsError, InvalidMessage};

use super::link::Heard;
use crate::tls::spaced;
use crate::trust;

create_exception!(keswick._native, CallFailed, PyException);

#[derive(Clone, Debug)]
pub struct Failure {
    pub kind: &'static str,
    detail: String,
    /// Whether the server may have got the request nevertheless.
    pub sent: bool,
}

impl Failure {
    /// The server did not get the request.
    pub fn unsent(kind: &'static str, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), sent: false }
    }

    /// The server may have got the request.
    pub fn sent(kind: &'static str, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), sent: true }
    }

    /// From a handshake.
    pub fn of_handshake(error: &io::Error) -> Self {
        let Some(tls) = tls_error(error) else {
            let detail = match error.kind() {
                io::ErrorKind::UnexpectedEof => "the server closed the connection during the handshake".to_owned(),
                _ => system_words(error),
            };
            return Self::unsent("tls", detail);
        };
        match tls {
            TlsError::AlertReceived(alert) => Self::unsent("alert", alert_name(*alert)),
            TlsError::InvalidMessage(
                InvalidMessage::InvalidContentType
                | InvalidMessage::UnknownProtocolVersion
                | InvalidMessage::MessageTooLarge,
            ) => Self::unsent("no_tls", ""),
            TlsError::InvalidCertificate(error) => Self::of_certificate(error),
            TlsError::PeerIncompatible(reason) => Self::unsent("tls", spaced(&format!("{reason:?}"))),
            other => Self::unsent("tls", other.to_string()),
        }
    }

    fn of_certificate(error: &CertificateError) -> Self {
        match error {
            CertificateError::NotValidForNameContext { presented, .. } => Self::unsent("name", presented.join(", ")),
            CertificateError::NotValidForName => Self::unsent("name", ""),
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::unsent("expired", ""),
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Self::unsent("not_yet_valid", "")
            }
            other => Self::unsent("untrusted", trust::reason(other, "server")),
        }
    }

    /// From an established connection. `sent`: whether the request was handed over to it.
    pub fn of_exchange(error: &hyper::Error, heard: &Heard, sent: bool) -> Self {
        if let Some(alert) = heard.alert() {
            let name = alert_name(alert);
            // In TLS 1.3 the client is done before the server has seen its certificate, so that the server's refusal
            // comes later; but a server that has sent data has accepted the client, unless it says otherwise.
            if refuses_client(alert) || !heard.data() {
                return Self::unsent("alert", name);
            }
            return Self { kind: "closed", detail: name, sent };
        }
        let (kind, unprocessed) = kind_of(error);
        Self { kind, detail: innermost(error), sent: sent && !unprocessed }
    }

    pub fn into_exception(self) -> PyErr {
        CallFailed::new_err((self.kind, self.detail, self.sent))
    }
}

impl From<Failure> for PyErr {
    fn from(failure: Failure) -> Self {
        failure.into_exception()
    }
}

/// The kind of an error of HTTP, and whether the server says that it did nothing with the request.
fn kind_of(error: &hyper::Error) -> (&'static str, bool) {
    if error.is_parse() || error.is_parse_too_large() {
        return ("protocol", false);
    }
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(http2) = cause.downcast_ref::<h2::Error>() {
            let refused = http2.is_reset() && http2.reason() == Some(h2::Reason::REFUSED_STREAM);
            // A server that goes away names the last request that it answers; later ones fail so.
            let gone = http2.is_go_away() && http2.reason() == Some(h2::Reason::NO_ERROR);
            let broken = !(http2.is_io() || http2.is_remote());
            return (if broken { "protocol" } else { "closed" }, http2.is_remote() && (refused || gone));
        }
        if let Some(io) = cause.downcast_ref::<io::Error>() {
            let malformed = matches!(io.kind(), io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput);
            return (if malformed && tls_error(io).is_none() { "protocol" } else { "closed" }, false);
        }
        source = cause.source();
    }
    ("closed", false)
}

/// The cause of a cause of an error, in words.
fn innermost(error: &hyper::Error) -> String {
    let mut innermost: &dyn StdError = error;
    while let Some(cause) = innermost.source() {
        innermost = cause;
    }
    match innermost.downcast_ref::<io::Error>() {
        Some(io) if io.kind() == io::ErrorKind::UnexpectedEof => "the connection ended".to_owned(),
        Some(io) => system_words(io),
        None => innermost.to_string(),
    }
}

pub fn tls_error(error: &io::Error) -> Option<&TlsError> {
    error.get_ref()?.downcast_ref()
}

/// What the system says of an error, without its number.
pub fn system_words(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    text.strip_prefix("failed to lookup address information: ").unwrap_or(text).to_owned()
}

fn alert_name(alert: AlertDescription) -> String {
    spaced(&format!("{alert:?}"))
}

fn refuses_client(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::NoCertificate
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::CertificateRequired
    )
}
