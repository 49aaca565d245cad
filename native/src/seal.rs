//! The sealing primitives: one message key and one AEAD per text. `docs/formats.md` has the layout.

use aws_lc_rs::aead::{AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::cipher::{AES_256, EncryptingKey, UnboundCipherKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::{hmac, rand};
use chacha20::{R20, hchacha};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use zeroize::{Zeroize, Zeroizing};

const KEY: usize = 32;
const IV: usize = 16;
const NONCE: usize = 12;
const TAG: usize = 16;
const OVERHEAD: usize = TAG + IV + NONCE;

/// From this many bytes on, the GIL is given back for the time of the work; below, taking it again would cost more.
const LARGE: usize = 64 * 1024;

type Secret = Zeroizing<[u8; KEY]>;

enum Cipher {
    /// With the HMAC key made ready once, because every text needs it.
    Aes256(Box<hmac::Key>),
    ChaCha20,
}

#[pyclass(frozen, module = "keswick._native")]
struct SealingKey {
    /// On the heap from the start, so that no move of the object leaves a copy behind.
    key: Box<Secret>,
    cipher: Cipher,
}

#[pymethods]
impl SealingKey {
    #[new]
    fn new(cipher: &str, key: &[u8]) -> PyResult<Self> {
        if key.len() != KEY {
            return Err(PyValueError::new_err(format!("a key has {KEY} bytes, not {}", key.len())));
        }
        let cipher = match cipher {
            "AES256" => Cipher::Aes256(Box::new(hmac::Key::new(hmac::HMAC_SHA256, key))),
            "ChaCha20" => Cipher::ChaCha20,
            _ => return Err(PyValueError::new_err("the cipher is neither AES256 nor ChaCha20")),
        };
        let mut owned = Box::new(Secret::default());
        owned.copy_from_slice(key);
        Ok(Self { key: owned, cipher })
    }

    #[getter]
    fn cipher(&self) -> &'static str {
        match self.cipher {
            Cipher::Aes256(_) => "AES256",
            Cipher::ChaCha20 => "ChaCha20",
        }
    }

    fn __repr__(&self) -> String {
        format!("SealingKey('{}')", self.cipher())
    }

    fn seal<'py>(&self, py: Python<'py>, plaintext: &[u8], associated_data: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
        PyBytes::new_with(py, plaintext.len() + OVERHEAD, |sealed| {
            unlocked(py, plaintext.len(), || {
                let mut random = [0; IV + NONCE];
                rand::fill(&mut random)?;
                self.seal_into(plaintext, associated_data, &random, sealed)
            })
            .map_err(|_| PyRuntimeError::new_err("the text cannot be sealed"))
        })
    }

    fn open<'py>(&self, py: Python<'py>, sealed: &[u8], associated_data: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
        open_with(py, sealed, associated_data, |iv| self.message_key(iv), self.aead())
    }

    fn generate<'py>(
        &self,
        py: Python<'py>,
        associated_data: &[u8],
    ) -> PyResult<(Bound<'py, PyBytes>, Bound<'py, PyBytes>)> {
        // Asking the generator costs as much as sealing: once is enough.
        let mut random = Zeroizing::new([0; KEY + IV + NONCE]);
        rand::fill(random.as_mut_slice()).map_err(|_| PyRuntimeError::new_err("no random bytes are to be had"))?;
        let (plaintext, random) = random.split_at(KEY);
        let sealed = PyBytes::new_with(py, KEY + OVERHEAD, |sealed| {
            self.seal_into(plaintext, associated_data, random, sealed)
                .map_err(|_| PyRuntimeError::new_err("the data key cannot be sealed"))
        })?;
        Ok((PyBytes::new(py, plaintext), sealed))
    }

    fn open_2019<'py>(&self, py: Python<'py>, sealed: &[u8], associated_data: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
        open_with(py, sealed, associated_data, |iv| self.message_key_2019(iv), &AES_256_GCM)
    }
}

impl SealingKey {
    fn aead(&self) -> &'static Algorithm {
        match self.cipher {
            Cipher::Aes256(_) => &AES_256_GCM,
            Cipher::ChaCha20 => &CHACHA20_POLY1305,
        }
    }

    fn message_key(&self, iv: &[u8; IV]) -> Result<Secret, Unspecified> {
        let mut message_key = Secret::default();
        match &self.cipher {
            Cipher::Aes256(key) => {
                hmac::sign_to_buffer(key, iv, message_key.as_mut_slice())?;
            }
            Cipher::ChaCha20 => {
                let mut sub_key = hchacha::<R20>((&**self.key).into(), iv.into());
                message_key.copy_from_slice(&sub_key);
                sub_key.as_mut_slice().zeroize();
            }
        }
        Ok(message_key)
    }

    /// Four blocks LE32(i) || IV[0..12) for even i, IV[4..16) for odd i, each encrypted with the key; the message key is
    /// (T0 xor T1) || (T2 xor T3).
    fn message_key_2019(&self, iv: &[u8; IV]) -> Result<Secret, Unspecified> {
        let mut blocks = Zeroizing::new([0; 4 * 16]);
        for (i, block) in blocks.chunks_exact_mut(16).enumerate() {
            let start = if i % 2 == 0 { 0 } else { 4 };
            block[..4].copy_from_slice(&(i as u32).to_le_bytes());
            block[4..].copy_from_slice(&iv[start..start + 12]);
        }
        EncryptingKey::ecb(UnboundCipherKey::new(&AES_256, self.key.as_slice())?)?.encrypt(blocks.as_mut_slice())?;
        let mut message_key = Secret::default();
        for (half, pair) in message_key.chunks_exact_mut(16).zip(blocks.chunks_exact(32)) {
            for (i, byte) in half.iter_mut().enumerate() {
                *byte = pair[i] ^ pair[16 + i];
            }
        }
        Ok(message_key)
    }

    /// Writes C || IV || N to `sealed`, which has room for exactly that. `random` is IV || N.
    fn seal_into(
        &self,
        plaintext: &[u8],
        associated_data: &[u8],
        random: &[u8],
        sealed: &mut [u8],
    ) -> Result<(), Unspecified> {
        let (text, rest) = sealed.split_at_mut(plaintext.len());
        let (tag, end) = rest.split_at_mut(TAG);
        end.copy_from_slice(random);
        let (iv, nonce) = random.split_first_chunk().ok_or(Unspecified)?;
        LessSafeKey::new(UnboundKey::new(self.aead(), self.message_key(iv)?.as_slice())?).seal_out_of_place_scatter(
            Nonce::try_assume_unique_for_key(nonce)?,
            Aad::from(associated_data),
            plaintext,
            text,
            &[],
            tag,
        )
    }
}

/// Opens C || IV || N under the message key that `derive` makes of the IV.
fn open_with<'py>(
    py: Python<'py>,
    sealed: &[u8],
    associated_data: &[u8],
    derive: impl FnOnce(&[u8; IV]) -> Result<Secret, Unspecified> + Send,
    algorithm: &'static Algorithm,
) -> PyResult<Bound<'py, PyBytes>> {
    let not_authentic = || PyValueError::new_err("the text is not authentic");
    let size = sealed.len().checked_sub(OVERHEAD).ok_or_else(not_authentic)?;
    PyBytes::new_with(py, size, |plaintext| {
        unlocked(py, size, || {
            let (text, rest) = sealed.split_at(size);
            let (tag, random) = rest.split_at(TAG);
            let (iv, nonce) = random.split_first_chunk().ok_or(Unspecified)?;
            LessSafeKey::new(UnboundKey::new(algorithm, derive(iv)?.as_slice())?).open_separate_gather(
                Nonce::try_assume_unique_for_key(nonce)?,
                Aad::from(associated_data),
                text,
                tag,
                plaintext,
            )
        })
        .map_err(|_: Unspecified| not_authentic())
    })
}

/// Does the work on `size` bytes, without the GIL when they are many.
fn unlocked<T: Send>(py: Python<'_>, size: usize, work: impl FnOnce() -> T + Send) -> T {
    if size < LARGE { work() } else { py.detach(work) }
}

#[pyfunction]
fn hmac_sha256<'py>(py: Python<'py>, key: &[u8], message: &[u8]) -> Bound<'py, PyBytes> {
    let tag = unlocked(py, message.len(), || hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message));
    PyBytes::new(py, tag.as_ref())
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<SealingKey>()?;
    m.add_function(wrap_pyfunction!(hmac_sha256, m)?)
}
