//! Whether a certificate chains to a trusted root, is in time, and is meant for what it is used for.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use rustls::CertificateError;
use rustls_pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use webpki::{
    EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter, KeyUsage, RequiredEkuNotFoundContext, VerifiedPath,
};
use x509_parser::certificate::X509Certificate;
use x509_parser::x509::X509Version;

use crate::certificate;

/// An authority of that name is trusted, but its key has not signed this. It looks so when an authority was made anew.
const NAMESAKE: &str = "it is not issued by a trusted authority, though one of the same name is trusted";

const SERVER_AUTH: &[usize] = KeyUsage::SERVER_AUTH_REPR;
const CLIENT_AUTH: &[usize] = KeyUsage::CLIENT_AUTH_REPR;
const ANY_USAGE: &[usize] = &[2, 5, 29, 37, 0];

/// A demand on a chain besides what `webpki` checks.
type PathCheck<'a> = dyn Fn(&VerifiedPath<'_>) -> Result<(), webpki::Error> + 'a;

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
        self.check_chain(leaf, intermediates, now, usage, None).map(drop)
    }

    /// Whether a chain, leaf first, may be trusted for a server of that name.
    ///
    /// A leaf that is itself one of the roots may be of any kind, so that any server's certificate can be trusted; but
    /// its dates and names count.
    pub fn check_server(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), CertificateError> {
        let parsed = certificate::parse(leaf).map_err(|_| CertificateError::BadEncoding)?;
        let fits = if self.roots.contains(leaf) {
            check_dates(&parsed, now)?;
            has_name(leaf, &parsed, name)
        } else {
            // One server's own certificate must not vouch for other servers.
            let issued = |path: &VerifiedPath<'_>| {
                if self.is_authority(path.anchor()) { Ok(()) } else { Err(webpki::Error::UnknownIssuer) }
            };
            let end_entity = self.check_chain(leaf, intermediates, now, ServerUsage, Some(&issued))?;
            end_entity.verify_is_valid_for_subject_name(name).is_ok()
        };
        if fits {
            return Ok(());
        }
        let presented = certificate::names(&parsed);
        Err(CertificateError::NotValidForNameContext { expected: name.to_owned(), presented })
    }

    fn check_chain<'a>(
        &self,
        leaf: &'a CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: impl ExtendedKeyUsageValidator,
        path: Option<&PathCheck<'_>>,
    ) -> Result<EndEntityCert<'a>, CertificateError> {
        let end_entity = EndEntityCert::try_from(leaf).map_err(refusal)?;
        let algorithms = webpki::ALL_VERIFICATION_ALGS;
        end_entity
            .verify_for_usage(algorithms, &self.anchors, intermediates, now, usage, None, path)
            .map_err(refusal)?;
        Ok(end_entity)
    }

    /// Whether a root may issue certificates. The extension that says so is younger than version 1.
    fn is_authority(&self, anchor: &TrustAnchor<'_>) -> bool {
        let may_issue = |root: &X509Certificate<'_>| root.is_ca() || root.version() == X509Version::V1;
        self.roots.iter().any(|root| {
            webpki::anchor_from_trusted_cert(root).is_ok_and(|of_root| of_root == *anchor)
                && certificate::parse(root).is_ok_and(|root| may_issue(&root))
        })
    }

    /// Passes over roots that cannot be used. None when none is left.
    pub fn of_usable(roots: Vec<Vec<u8>>) -> Option<Self> {
        let mut usable = Self { roots: Vec::with_capacity(roots.len()), anchors: Vec::with_capacity(roots.len()) };
        for root in roots.into_iter().map(CertificateDer::from) {
            let anchor = webpki::anchor_from_trusted_cert(&root).map(|anchor| anchor.to_owned()).ok();
            // What can issue nothing may be a server's own certificate still.
            if anchor.is_some() || certificate::parse(&root).is_ok() {
                usable.anchors.extend(anchor);
                usable.roots.push(root);
            }
        }
        if usable.roots.is_empty() { None } else { Some(usable) }
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
        let allowed: &[_] = if self.server_auth { &[CLIENT_AUTH, SERVER_AUTH] } else { &[CLIENT_AUTH] };
        one_of(allowed, KeyUsage::client_auth(), usages)
    }
}

/// Those of a server: none, any or serverAuth.
struct ServerUsage;

impl ExtendedKeyUsageValidator for ServerUsage {
    fn validate(&self, usages: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        one_of(&[SERVER_AUTH], KeyUsage::server_auth(), usages)
    }
}

fn one_of(allowed: &[&[usize]], required: KeyUsage, usages: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
    let mut present = Vec::new();
    for usage in usages {
        let usage = usage?.to_decoded_oid();
        if usage == ANY_USAGE || allowed.iter().any(|allowed| usage == *allowed) {
            return Ok(());
        }
        present.push(usage);
    }
    if present.is_empty() {
        return Ok(());
    }
    Err(webpki::Error::RequiredEkuNotFoundContext(RequiredEkuNotFoundContext { required, present }))
}

/// A leaf that is trusted by itself must still be in time and for clients.
fn check_trusted_leaf(leaf: &[u8], now: UnixTime, usage: ClientUsage) -> Result<(), CertificateError> {
    let leaf = certificate::parse(leaf).map_err(|_| CertificateError::BadEncoding)?;
    check_dates(&leaf, now)?;
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

fn check_dates(leaf: &X509Certificate<'_>, now: UnixTime) -> Result<(), CertificateError> {
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if now < leaf.validity().not_before.timestamp() {
        return Err(CertificateError::NotValidYet);
    }
    if now > leaf.validity().not_after.timestamp() {
        return Err(CertificateError::Expired);
    }
    Ok(())
}

/// Whether a certificate that is trusted by itself is for that name. One without alternative names, as those of version
/// 1 are, has its common name instead.
fn has_name(leaf: &CertificateDer<'_>, parsed: &X509Certificate<'_>, name: &ServerName<'_>) -> bool {
    if !matches!(parsed.subject_alternative_name(), Ok(None)) {
        return EndEntityCert::try_from(leaf).is_ok_and(|leaf| leaf.verify_is_valid_for_subject_name(name).is_ok());
    }
    certificate::common_name(parsed).is_some_and(|common_name| common_name.eq_ignore_ascii_case(&name.to_str()))
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
    format!("bad client certificate: {}", reason(error, "client"))
}

/// What is wrong with the certificate of a "client" or a "server".
pub fn reason(error: &CertificateError, owner: &str) -> String {
    let reason = match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "it has expired",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "it is not valid yet",
        CertificateError::UnknownIssuer => "it is not issued by a trusted authority",
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            return format!("its extended key usage does not allow {owner} authentication");
        }
        CertificateError::BadSignature => NAMESAKE,
        CertificateError::BadEncoding => "it is malformed",
        CertificateError::UnhandledCriticalExtension => "it has a critical extension that is not known",
        CertificateError::Other(other) if matches!(other.0.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity)) => {
            "it belongs to a certificate authority"
        }
        CertificateError::Other(other) => match other.0.downcast_ref() {
            Some(webpki::Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_)) => NAMESAKE,
            _ => return other.to_string(),
        },
        other => return other.to_string(),
    };
    reason.to_owned()
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Verifier>()
}
