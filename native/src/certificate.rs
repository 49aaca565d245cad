//! X.509 certificates, version 1 to 3: what they say.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use rustls_pki_types::SubjectPublicKeyInfoDer;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Reads one certificate. Whatever passes the handshake is read by this function first, so that a certificate that a
/// connection presents never fails to parse later.
pub fn parse(der: &[u8]) -> Result<X509Certificate<'_>, &'static str> {
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| "not an X.509 certificate")?;
    if !rest.is_empty() {
        return Err("bytes after the end of the certificate");
    }
    if certificate.version().0 > 2 {
        return Err("an X.509 certificate of an unknown version");
    }
    let malformed = |extension: &ParsedExtension| matches!(extension, ParsedExtension::ParseError { .. });
    if certificate.extensions().iter().any(|extension| malformed(extension.parsed_extension())) {
        return Err("a malformed certificate extension");
    }
    // These three refuse an extension that is there twice.
    certificate.basic_constraints().map_err(|_| "repeated basic constraints")?;
    certificate.subject_alternative_name().map_err(|_| "a repeated subject alternative name extension")?;
    certificate.extended_key_usage().map_err(|_| "a repeated extended key usage extension")?;
    Ok(certificate)
}

/// The public key of a certificate, as DER.
pub fn public_key(der: &[u8]) -> Result<SubjectPublicKeyInfoDer<'static>, &'static str> {
    parse(der).map(|certificate| certificate.public_key().raw.to_vec().into())
}

/// The alternative names, hosts and IP addresses.
fn alternative_names(certificate: &X509Certificate<'_>) -> (Vec<String>, Vec<String>) {
    let (mut dns_names, mut ip_addresses) = (Vec::new(), Vec::new());
    if let Ok(Some(names)) = certificate.subject_alternative_name() {
        for name in &names.value.general_names {
            match name {
                GeneralName::DNSName(name) => dns_names.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => ip_addresses.extend(ip_address(bytes)),
                _ => {}
            }
        }
    }
    (dns_names, ip_addresses)
}

/// What a server with that certificate may be called.
pub fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let (mut names, ip_addresses) = alternative_names(certificate);
    names.extend(ip_addresses);
    names.iter().map(|name| printable(name)).collect()
}

pub fn common_name<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a str> {
    certificate.subject().iter_common_name().next()?.as_str().ok()
}

#[pyclass(module = "keswick._native", frozen)]
pub struct Certificate {
    der: Py<PyBytes>,
    public_key: Vec<u8>,
    #[pyo3(get)]
    is_ca: bool,
    #[pyo3(get)]
    not_before: i64,
    #[pyo3(get)]
    not_after: i64,
    #[pyo3(get)]
    dns_names: Vec<String>,
    #[pyo3(get)]
    ip_addresses: Vec<String>,
    #[pyo3(get)]
    subject: String,
}

#[pymethods]
impl Certificate {
    #[new]
    fn new(der: Bound<'_, PyBytes>) -> PyResult<Self> {
        let certificate = parse(der.as_bytes()).map_err(PyValueError::new_err)?;
        let (dns_names, ip_addresses) = alternative_names(&certificate);
        Ok(Self {
            public_key: certificate.public_key().raw.to_vec(),
            is_ca: certificate.is_ca(),
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
            dns_names,
            ip_addresses,
            subject: printable(&certificate.subject().to_string()),
            der: der.unbind(),
        })
    }

    #[getter]
    fn der(&self, py: Python<'_>) -> Py<PyBytes> {
        self.der.clone_ref(py)
    }

    #[getter]
    fn public_key<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.public_key)
    }

    fn __repr__(&self) -> String {
        format!("<Certificate {}>", self.subject)
    }
}

/// The text comes from a stranger and goes to logs and terminals.
fn printable(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

fn ip_address(bytes: &[u8]) -> Option<String> {
    let address: IpAddr = match bytes.len() {
        4 => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into(),
        16 => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into(),
        _ => return None,
    };
    Some(address.to_string())
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Certificate>()
}
