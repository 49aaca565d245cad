//! What a client trusts and shows.

use std::sync::{Arc, Mutex, PoisonError};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, Resumption};
use rustls::sign::SingleCertAndKey;
use rustls::{ConfigBuilder, DigitallySignedStruct, Error, SignatureScheme, WantsVerifier};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::tls::{self, HTTP1, HTTP2};
use crate::trust::Verifier;

/// For how many servers a client keeps what resumes a session.
const SESSIONS: usize = 64;

#[pyclass(module = "keswick._native", frozen)]
pub struct ClientTls {
    config: ClientConfig,
}

#[pymethods]
impl ClientTls {
    #[new]
    #[pyo3(signature = (*, roots, certificates = Vec::new(), key = Vec::new()))]
    fn new(roots: Option<Vec<Vec<u8>>>, certificates: Vec<Vec<u8>>, key: Vec<u8>) -> PyResult<Self> {
        let roots = match roots {
            None => None,
            Some(roots) => Some(Verifier::of_usable(roots).ok_or_else(|| {
                PyValueError::new_err("there is no root certificate that can be used, so that no server can be trusted")
            })?),
        };
        let builder = builder().map_err(value_error)?.dangerous();
        let builder = builder.with_custom_certificate_verifier(Arc::new(ServerCertificates { roots }));
        let config = if certificates.is_empty() && key.is_empty() {
            builder.with_no_client_auth()
        } else {
            let certified = tls::certified_key(certificates, key, "client").map_err(PyValueError::new_err)?;
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified)))
        };
        Ok(Self { config })
    }
}

impl ClientTls {
    /// With sessions of its own.
    pub fn config(&self, http2: bool) -> Arc<ClientConfig> {
        let mut config = self.config.clone();
        config.resumption = Resumption::in_memory_sessions(SESSIONS);
        config.alpn_protocols = protocols(http2);
        Arc::new(config)
    }
}

fn builder() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, Error> {
    ClientConfig::builder_with_provider(tls::PROVIDER.clone())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
}

fn protocols(http2: bool) -> Vec<Vec<u8>> {
    if http2 { vec![HTTP2.to_vec(), HTTP1.to_vec()] } else { vec![HTTP1.to_vec()] }
}

fn value_error(error: Error) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// The demand on the server's certificate; without `roots` any passes.
///
/// What is always checked is that the server has the private key.
#[derive(Debug)]
struct ServerCertificates {
    roots: Option<Verifier>,
}

impl ServerCertVerifier for ServerCertificates {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(roots) = &self.roots {
            roots.check_server(leaf, intermediates, server_name, now)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls::verify_tls12_signature(message, leaf, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls::verify_tls13_signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        tls::algorithms().supported_schemes()
    }
}

/// Takes any server, and notes what it shows.
#[derive(Debug, Default)]
pub struct Witness(Mutex<Vec<Vec<u8>>>);

impl Witness {
    pub fn config(self: &Arc<Self>) -> Result<Arc<ClientConfig>, Error> {
        let builder = builder()?.dangerous().with_custom_certificate_verifier(self.clone());
        let mut config = builder.with_no_client_auth();
        config.resumption = Resumption::disabled();
        config.alpn_protocols = protocols(true);
        Ok(Arc::new(config))
    }

    /// DER, the leaf first; empty before the server has shown anything.
    pub fn take(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain = std::iter::once(leaf).chain(intermediates).map(|certificate| certificate.to_vec()).collect();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = chain;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        tls::algorithms().supported_schemes()
    }
}
