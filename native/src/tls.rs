//! What a TLS handshake needs: the server's certificate and key, and the demand on the client's certificate.

use std::io;
use std::sync::{Arc, LazyLock};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls13_signature_with_raw_key};
use rustls::server::ServerConfig;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, InvalidMessage, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, SubjectPublicKeyInfoDer, UnixTime};
use webpki::RawPublicKeyEntity;

use crate::certificate;
use crate::trust::{self, ClientUsage, Verifier};

pub static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(aws_lc_rs::default_provider()));

pub const HTTP2: &[u8] = b"h2";
pub const HTTP1: &[u8] = b"http/1.1";

#[pyclass(module = "keswick._native", frozen)]
pub struct Tls {
    pub config: Arc<ServerConfig>,
}

#[pymethods]
impl Tls {
    #[new]
    #[pyo3(signature = (*, certificates, key, client_auth = "require", verify = false, roots = Vec::new()))]
    fn new(
        certificates: Vec<Vec<u8>>,
        key: Vec<u8>,
        client_auth: &str,
        verify: bool,
        roots: Vec<Vec<u8>>,
    ) -> PyResult<Self> {
        let mandatory = match client_auth {
            "none" => None,
            "request" => Some(false),
            "require" => Some(true),
            other => {
                let message = format!("client_auth is \"none\", \"request\" or \"require\", not {other:?}");
                return Err(PyValueError::new_err(message));
            }
        };
        let certified = certified_key(certificates, key, "server").map_err(PyValueError::new_err)?;
        let roots = if verify { Some(Verifier::new(roots)?) } else { None };

        let builder = ServerConfig::builder_with_provider(PROVIDER.clone())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|error| PyValueError::new_err(error.to_string()))?;
        let builder = match mandatory {
            None => builder.with_no_client_auth(),
            Some(mandatory) => builder.with_client_cert_verifier(Arc::new(ClientCertificates { mandatory, roots })),
        };
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.alpn_protocols = vec![HTTP2.to_vec(), HTTP1.to_vec()];
        // Tickets carry the client's certificates, under keys that no other `Tls` has. Each costs a write of its own, so
        // that a client that says how many it wants (RFC 9149) gets no more: none, if it resumes no session.
        config.send_tls13_tickets = 1;
        config.max_tls13_tickets = 4;
        config.ticketer = aws_lc_rs::Ticketer::new().map_err(|error| PyValueError::new_err(error.to_string()))?;
        Ok(Self { config: Arc::new(config) })
    }
}

/// A chain and its key, checked; the key's DER is wiped. `owner` is "server" or "client", for the words of an error.
pub fn certified_key(certificates: Vec<Vec<u8>>, key: Vec<u8>, owner: &str) -> Result<CertifiedKey, String> {
    let chain: Vec<_> = certificates.into_iter().map(CertificateDer::from).collect();
    let Some(leaf) = chain.first() else {
        return Err(format!("there is no {owner} certificate"));
    };
    let public_key = certificate::public_key(leaf).map_err(|reason| format!("the {owner} certificate is {reason}"))?;
    for (index, issuer) in chain.iter().enumerate().skip(1) {
        certificate::parse(issuer)
            .map_err(|reason| format!("certificate number {} of the {owner}'s chain is {reason}", index + 1))?;
    }
    let key = PrivateKeyDer::try_from(key)
        .map_err(|_| "the private key is not an unencrypted PKCS#8, PKCS#1 or SEC1 key".to_owned())?;
    let key = PROVIDER.key_provider.load_private_key(key).map_err(|_| {
        "the private key cannot be used: it has to be Ed25519, ECDSA on P-256, P-384 or P-521, or RSA of 2048 to 8192 bits"
            .to_owned()
    })?;
    if key.public_key().is_some_and(|of_key| of_key != public_key) {
        return Err(format!("the private key does not belong to the {owner} certificate"));
    }
    Ok(CertifiedKey::new(chain, key))
}

/// The demand on the client's certificate.
///
/// Without `roots` any certificate passes: it stands for its public key and for nothing else, so that dates, issuer
/// and extensions mean nothing. What is always checked is that the client has the private key. The public key is taken
/// out of the certificate here, since webpki reads no X.509 version 1.
#[derive(Debug)]
struct ClientCertificates {
    mandatory: bool,
    roots: Option<Verifier>,
}

impl ClientCertVerifier for ClientCertificates {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // A client that sees no hints sends the certificate that it has.
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match &self.roots {
            None => {} // it is read when the handshake signature is checked, which comes next
            Some(roots) => roots.check(leaf, intermediates, now, ClientUsage::default())?,
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, leaf, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

pub fn algorithms() -> &'static WebPkiSupportedAlgorithms {
    &PROVIDER.signature_verification_algorithms
}

/// Whether the peer has the private key of the certificate that it shows, of any version.
pub fn verify_tls12_signature(
    message: &[u8],
    leaf: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let public_key = key_of(leaf)?;
    let public_key = RawPublicKeyEntity::try_from(&public_key).map_err(|_| CertificateError::BadEncoding)?;
    // In TLS 1.2 an ECDSA scheme names no curve, so that each of the scheme's algorithms may be the one.
    let schemes = algorithms().mapping;
    let candidates = schemes.iter().find(|(scheme, _)| *scheme == signed.scheme).map(|(_, algorithms)| *algorithms);
    for algorithm in candidates.unwrap_or_default() {
        match public_key.verify_signature(*algorithm, message, signed.signature()) {
            Ok(()) => return Ok(HandshakeSignatureValid::assertion()),
            Err(webpki::Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_)) => {}
            Err(_) => return Err(CertificateError::BadSignature.into()),
        }
    }
    Err(CertificateError::BadSignature.into())
}

/// The same in TLS 1.3.
pub fn verify_tls13_signature(
    message: &[u8],
    leaf: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    verify_tls13_signature_with_raw_key(message, &key_of(leaf)?, signed, algorithms())
}

fn key_of(leaf: &[u8]) -> Result<SubjectPublicKeyInfoDer<'static>, Error> {
    certificate::public_key(leaf).map_err(|_| CertificateError::BadEncoding.into())
}

/// Why a handshake failed, for people.
pub fn in_words(error: &io::Error) -> String {
    let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
        return match error.kind() {
            io::ErrorKind::UnexpectedEof => "the client closed the connection".to_owned(),
            _ => error.to_string(),
        };
    };
    match error {
        Error::AlertReceived(alert) => format!("remote alert: {}", spaced(&format!("{alert:?}"))),
        Error::NoCertificatesPresented => "no client certificate".to_owned(),
        Error::InvalidCertificate(CertificateError::BadSignature) => {
            "bad client certificate: a signature is not valid".to_owned()
        }
        Error::InvalidCertificate(error) => trust::in_words(error),
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "the first bytes are not a TLS handshake".to_owned()
        }
        Error::PeerIncompatible(reason) => format!("incompatible client: {}", spaced(&format!("{reason:?}"))),
        Error::PeerMisbehaved(reason) => format!("misbehaving client: {}", spaced(&format!("{reason:?}"))),
        other => other.to_string(),
    }
}

/// `BadCertificate` as `bad certificate`.
pub fn spaced(name: &str) -> String {
    let mut words = String::with_capacity(name.len() + 4);
    let mut previous_is_lower = false;
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && previous_is_lower {
            words.push(' ');
        }
        previous_is_lower = letter.is_ascii_lowercase();
        words.push(letter.to_ascii_lowercase());
    }
    words
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Tls>()
}
