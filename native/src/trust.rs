//! Whether a client's certificate chains to a trusted root, is in time, and is meant for clients.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use rustls::CertificateError;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter, KeyUsage, RequiredEkuNotFoundContext};

use crate::certificate;

const SERVER_AUTH: &[usize] = KeyUsage::SERVER_AUTH_REPR;
const CLIENT_AUTH: &[usize] = KeyUsage::CLIENT_AUTH_REPR;
const ANY_USAGE: &[usize] = &[2, 5, 29, 37, 0];

/// A set of root certificates.
#[pyclass(module = "keswick._native", frozen)]
#[derive(Debug)]
pub struct Verifier {
    roots: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
}

impl Verifier {
    /// Whether a chain, leaf first, may be trusted for client authentication at that time.
    ///
    /// A leaf that is itself one of the roots needs no issuer; so a single self-signed certificate can be trusted.
    pub fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: ClientUsage,
    ) -> Result<(), CertificateError> {
        certificate::parse(leaf).map_err(|_| CertificateError::BadEncoding)?;
        if self.roots.contains(leaf) {
            return check_trusted_leaf(leaf, now, usage);
        }
        EndEntityCert::try_from(leaf)
            .and_then(|end_entity| {
                let algorithms = webpki::ALL_VERIFICATION_ALGS;
                let path =
                    end_entity.verify_for_usage(algorithms, &self.anchors, intermediates, now, usage, None, None);
                path.map(drop)
            })
            .map_err(refusal)
    }
}

#[pymethods]
impl Verifier {
    #[new]
    pub fn new(roots: Vec<Vec<u8>>) -> PyResult<Self> {
        let roots: Vec<_> = roots.into_iter().map(CertificateDer::from).collect();
        let anchor = |(index, root)| match webpki::anchor_from_trusted_cert(root) {
            Ok(anchor) => Ok(anchor.to_owned()),
            Err(error) => {
                let message = format!("root certificate number {} cannot be used: {error}", index + 1);
                Err(PyValueError::new_err(message))
            }
        };
        let anchors = roots.iter().enumerate().map(anchor).collect::<PyResult<_>>()?;
        Ok(Self { roots, anchors })
    }

    #[pyo3(signature = (certificates, *, server_auth = false))]
    fn verify(&self, certificates: Vec<Vec<u8>>, server_auth: bool) -> PyResult<()> {
        let chain: Vec<_> = certificates.into_iter().map(CertificateDer::from).collect();
        let Some((leaf, intermediates)) = chain.split_first() else {
            return Err(PyValueError::new_err("there is no certificate"));
        };
        self.check(leaf, intermediates, UnixTime::now(), ClientUsage { server_auth })
            .map_err(|error| PyValueError::new_err(in_words(&error)))
    }
}

/// The extended key usages that a client's certificate may have: none, any or clientAuth; serverAuth when asked for.
#[derive(Clone, Copy, Default)]
pub struct ClientUsage {
    pub server_auth: bool,
}

impl ExtendedKeyUsageValidator for ClientUsage {
    fn validate(&self, usages: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        let mut present = Vec::new();
        for usage in usages {
            let usage = usage?.to_decoded_oid();
            if usage == CLIENT_AUTH || usage == ANY_USAGE || (self.server_auth && usage == SERVER_AUTH) {
                return Ok(());
            }
            present.push(usage);
        }
        if present.is_empty() {
            return Ok(());
        }
        let required = KeyUsage::client_auth();
        Err(webpki::Error::RequiredEkuNotFoundContext(RequiredEkuNotFoundContext { required, present }))
    }
}

/// A leaf that is trusted by itself must still be in time and for clients.
fn check_trusted_leaf(leaf: &[u8], now: UnixTime, usage: ClientUsage) -> Result<(), CertificateError> {
    let leaf = certificate::parse(leaf).map_err(|_| CertificateError::BadEncoding)?;
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if now < leaf.validity().not_before.timestamp() {
        return Err(CertificateError::NotValidYet);
    }
    if now > leaf.validity().not_after.timestamp() {
        return Err(CertificateError::Expired);
    }
    match leaf.extended_key_usage() {
        Ok(Some(usages)) => {
            let usages = usages.value;
            let fits = usages.any || usages.client_auth || (usage.server_auth && usages.server_auth);
            fits.then_some(()).ok_or(CertificateError::InvalidPurpose)
        }
        Ok(None) => Ok(()),
        Err(_) => Err(CertificateError::BadEncoding),
    }
}

/// What rustls turns into the fitting alert.
fn refusal(error: webpki::Error) -> CertificateError {
    use webpki::Error;
    match error {
        Error::CertExpired { .. } | Error::InvalidCertValidity => CertificateError::Expired,
        Error::CertNotValidYet { .. } => CertificateError::NotValidYet,
        Error::UnknownIssuer => CertificateError::UnknownIssuer,
        Error::RequiredEkuNotFoundContext(_) | Error::EmptyEkuExtension => CertificateError::InvalidPurpose,
        Error::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        Error::BadDer | Error::BadDerTime | Error::TrailingData(_) => CertificateError::BadEncoding,
        Error::UnsupportedCriticalExtension => CertificateError::UnhandledCriticalExtension,
        other => CertificateError::Other(rustls::OtherError(std::sync::Arc::new(other))),
    }
}

/// Why a client's certificate is refused, for people.
pub fn in_words(error: &CertificateError) -> String {
    let reason = match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "it has expired",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "it is not valid yet",
        CertificateError::UnknownIssuer => "it is not issued by a trusted authority",
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "its extended key usage does not allow client authentication"
        }
        CertificateError::BadSignature => "a signature is not valid",
        CertificateError::BadEncoding => "it is malformed",
        other => return format!("bad client certificate: {other}"),
    };
    format!("bad client certificate: {reason}")
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Verifier>()
}
