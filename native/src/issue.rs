//! Self-signed certificates: their DER (X.690), as RFC 5280 and, for Ed25519, RFC 8410 say.

use std::net::IpAddr;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use x509_parser::time::ASN1Time;

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const UTF8_STRING: u8 = 0x0c;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
const DNS_NAME: u8 = 0x82;
const IP_ADDRESS: u8 = 0x87;

/// Object identifiers, with their tag.
const COMMON_NAME: &[u8] = b"\x06\x03\x55\x04\x03";
const ED25519: &[u8] = b"\x06\x03\x2b\x65\x70";
const ECDSA_WITH_SHA256: &[u8] = b"\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02";
const KEY_USAGE: &[u8] = b"\x06\x03\x55\x1d\x0f";
const ALTERNATIVE_NAMES: &[u8] = b"\x06\x03\x55\x1d\x11";
const BASIC_CONSTRAINTS: &[u8] = b"\x06\x03\x55\x1d\x13";
const EXTENDED_KEY_USAGE: &[u8] = b"\x06\x03\x55\x1d\x25";
const SERVER_AUTH: &[u8] = b"\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x01";
const CLIENT_AUTH: &[u8] = b"\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x02";

const TRUE: &[u8] = b"\x01\x01\xff";
const VERSION_3: &[u8] = b"\x02\x01\x02";
const DIGITAL_SIGNATURE: &[u8] = b"\x03\x02\x07\x80";
/// CA:FALSE is the default, which DER leaves out.
const NO_AUTHORITY: &[u8] = b"\x30\x00";

const ED25519_SEED_LEN: usize = 32;
const MOST_SUBJECT: usize = 64;

/// One value, with its tag and length.
fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut der = vec![tag];
    if length < 0x80 {
        der.push(length as u8);
    } else {
        let bytes = length.to_be_bytes();
        let bytes = &bytes[(length.leading_zeros() / 8) as usize..];
        der.push(0x80 | bytes.len() as u8);
        der.extend_from_slice(bytes);
    }
    parts.iter().for_each(|part| der.extend_from_slice(part));
    der
}

/// A positive number, big-endian.
fn integer(bytes: &[u8]) -> Vec<u8> {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    let digits = &bytes[zeros..];
    let sign: &[u8] = if digits.first().is_none_or(|first| *first >= 0x80) { &[0] } else { &[] };
    tlv(INTEGER, &[sign, digits])
}

fn time(timestamp: i64) -> Result<Vec<u8>, String> {
    let beyond = || "a certificate's dates are from 1950 to 9999".to_owned();
    let date = ASN1Time::from_timestamp(timestamp).map_err(|_| beyond())?.to_datetime();
    let rest = format!(
        "{:02}{:02}{:02}{:02}{:02}Z",
        u8::from(date.month()),
        date.day(),
        date.hour(),
        date.minute(),
        date.second()
    );
    match date.year() {
        year @ 1950..2050 => Ok(tlv(UTC_TIME, &[format!("{:02}", year % 100).as_bytes(), rest.as_bytes()])),
        year @ 2050..=9999 => Ok(tlv(GENERALIZED_TIME, &[year.to_string().as_bytes(), rest.as_bytes()])),
        _ => Err(beyond()),
    }
}

fn extension(name: &[u8], critical: bool, value: &[u8]) -> Vec<u8> {
    let critical = if critical { TRUE } else { &[] };
    tlv(SEQUENCE, &[name, critical, &tlv(OCTET_STRING, &[value])])
}

enum Key {
    Ed25519(Ed25519KeyPair),
    P256(Box<EcdsaKeyPair>),
}

impl Key {
    fn new(seed: Option<&[u8]>) -> Result<Self, String> {
        match seed {
            Some(seed) => ed25519(seed).map(Self::Ed25519),
            None => match EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING) {
                Ok(key) => Ok(Self::P256(Box::new(key))),
                Err(_) => Err("no new key can be made".to_owned()),
            },
        }
    }

    /// The algorithm of its signatures.
    fn algorithm(&self) -> Vec<u8> {
        match self {
            Self::Ed25519(_) => tlv(SEQUENCE, &[ED25519]),
            Self::P256(_) => tlv(SEQUENCE, &[ECDSA_WITH_SHA256]),
        }
    }

    fn public_key(&self) -> Result<PublicKeyX509Der<'static>, String> {
        match self {
            Self::Ed25519(key) => key.public_key().as_der(),
            Self::P256(key) => key.public_key().as_der(),
        }
        .map_err(failed)
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, String> {
        match self {
            Self::Ed25519(key) => key.try_sign(message),
            Self::P256(key) => key.sign(&SystemRandom::new(), message),
        }
        .map(|signature| signature.as_ref().to_vec())
        .map_err(failed)
    }

    fn to_python<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyBytes>, String> {
        let document = match self {
            Self::Ed25519(key) => key.to_pkcs8v1(),
            Self::P256(key) => key.to_pkcs8v1(),
        }
        .map_err(failed)?;
        Ok(PyBytes::new(py, document.as_ref()))
    }
}

fn ed25519(seed: &[u8]) -> Result<Ed25519KeyPair, String> {
    if seed.len() != ED25519_SEED_LEN {
        return Err(format!("an Ed25519 key has {ED25519_SEED_LEN} bytes, not {}", seed.len()));
    }
    Ed25519KeyPair::from_seed_unchecked(seed).map_err(failed)
}

fn failed<E>(_: E) -> String {
    "the key cannot be used".to_owned()
}

/// What a certificate says besides its key.
struct Statement<'a> {
    subject: &'a str,
    not_before: i64,
    not_after: i64,
    dns: &'a [String],
    ips: &'a [String],
    client: bool,
    server: bool,
}

impl Statement<'_> {
    fn sign(&self, key: &Key) -> Result<Vec<u8>, String> {
        let algorithm = key.algorithm();
        let name = self.name()?;
        if self.not_after < self.not_before {
            return Err("the certificate would end before it begins".to_owned());
        }
        let validity = tlv(SEQUENCE, &[&time(self.not_before)?, &time(self.not_after)?]);
        let mut serial = [0; 16];
        aws_lc_rs::rand::fill(&mut serial).map_err(|_| "there are no random numbers".to_owned())?;
        let to_sign = tlv(
            SEQUENCE,
            &[
                &tlv(VERSION, &[VERSION_3]),
                &integer(&serial),
                &algorithm,
                &name,
                &validity,
                &name,
                key.public_key()?.as_ref(),
                &tlv(EXTENSIONS, &[&tlv(SEQUENCE, &[&self.extensions()?])]),
            ],
        );
        let signature = tlv(BIT_STRING, &[&[0], &key.sign(&to_sign)?]);
        Ok(tlv(SEQUENCE, &[&to_sign, &algorithm, &signature]))
    }

    fn name(&self) -> Result<Vec<u8>, String> {
        if !(1..=MOST_SUBJECT).contains(&self.subject.chars().count()) {
            return Err(format!("a certificate's subject has 1 to {MOST_SUBJECT} characters"));
        }
        let attribute = tlv(SEQUENCE, &[COMMON_NAME, &tlv(UTF8_STRING, &[self.subject.as_bytes()])]);
        Ok(tlv(SEQUENCE, &[&tlv(SET, &[&attribute])]))
    }

    fn extensions(&self) -> Result<Vec<u8>, String> {
        let mut extensions = extension(KEY_USAGE, true, DIGITAL_SIGNATURE);
        let client = if self.client { CLIENT_AUTH } else { &[] };
        let server = if self.server { SERVER_AUTH } else { &[] };
        if self.client || self.server {
            extensions.extend(extension(EXTENDED_KEY_USAGE, false, &tlv(SEQUENCE, &[client, server])));
        }
        extensions.extend(extension(BASIC_CONSTRAINTS, true, NO_AUTHORITY));
        let names = self.alternative_names()?;
        if !names.is_empty() {
            extensions.extend(extension(ALTERNATIVE_NAMES, false, &tlv(SEQUENCE, &[&names])));
        }
        Ok(extensions)
    }

    fn alternative_names(&self) -> Result<Vec<u8>, String> {
        let mut names = Vec::new();
        for name in self.dns {
            if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(format!("'{name}' is not a DNS name"));
            }
            names.extend(tlv(DNS_NAME, &[name.as_bytes()]));
        }
        for ip in self.ips {
            names.extend(match ip.parse() {
                Ok(IpAddr::V4(address)) => tlv(IP_ADDRESS, &[&address.octets()]),
                Ok(IpAddr::V6(address)) => tlv(IP_ADDRESS, &[&address.octets()]),
                Err(_) => return Err(format!("'{ip}' does not appear to be an IPv4 or IPv6 address")),
            });
        }
        Ok(names)
    }
}

type Issued<'py> = (Bound<'py, PyBytes>, Bound<'py, PyBytes>, Bound<'py, PyBytes>);

#[pyfunction]
#[pyo3(signature = (
    key, subject, *, not_before, not_after, dns = Vec::new(), ips = Vec::new(), client = false, server = false
))]
#[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
fn self_signed<'py>(
    py: Python<'py>,
    key: Option<&[u8]>,
    subject: &str,
    not_before: i64,
    not_after: i64,
    dns: Vec<String>,
    ips: Vec<String>,
    client: bool,
    server: bool,
) -> PyResult<Issued<'py>> {
    let statement = Statement { subject, not_before, not_after, dns: &dns, ips: &ips, client, server };
    let issue = || {
        let key = Key::new(key)?;
        let certificate = PyBytes::new(py, &statement.sign(&key)?);
        Ok((certificate, key.to_python(py)?, PyBytes::new(py, key.public_key()?.as_ref())))
    };
    issue().map_err(PyValueError::new_err::<String>)
}

#[pyfunction]
fn public_key_of<'py>(py: Python<'py>, seed: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
    let public_key = ed25519(seed).map(Key::Ed25519).and_then(|key| key.public_key());
    public_key.map(|public_key| PyBytes::new(py, public_key.as_ref())).map_err(PyValueError::new_err)
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(self_signed, m)?)?;
    m.add_function(wrap_pyfunction!(public_key_of, m)?)
}
