//! The authenticated ciphers: `aes128-gcm@openssh.com`, `aes256-gcm@openssh.com`, `chacha20-poly1305@openssh.com`.

use crate::error::ProtocolError;
use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey, chacha20_poly1305_openssh,
};
use std::fmt;

/// All three have the same tag size.
pub(crate) const TAG: usize = 16;
/// Size of the length field in front of each packet.
pub(crate) const LENGTH: usize = 4;

/// A cipher both sides know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cipher {
    Aes128Gcm,
    Aes256Gcm,
    ChaCha20Poly1305,
}

impl Cipher {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Aes128Gcm => "aes128-gcm@openssh.com",
            Self::Aes256Gcm => "aes256-gcm@openssh.com",
            Self::ChaCha20Poly1305 => "chacha20-poly1305@openssh.com",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        [Self::Aes128Gcm, Self::Aes256Gcm, Self::ChaCha20Poly1305]
            .into_iter()
            .find(|cipher| cipher.name() == name)
    }

    pub(crate) fn key_len(self) -> usize {
        match self {
            Self::Aes128Gcm => 16,
            Self::Aes256Gcm => 32,
            Self::ChaCha20Poly1305 => chacha20_poly1305_openssh::KEY_LEN,
        }
    }

    /// What the packet without length field and tag is a multiple of.
    pub(crate) fn block(self) -> usize {
        match self {
            Self::Aes128Gcm | Self::Aes256Gcm => 16,
            Self::ChaCha20Poly1305 => 8,
        }
    }
}

/// Size of the initial vector derived for AES-GCM.
pub(crate) const IV: usize = 12;

/// The nonce of AES-GCM: four fixed bytes, then a counter of packets (RFC 5647 section 7.1).
struct Counter {
    fixed: [u8; 4],
    count: u64,
}

impl Counter {
    fn new(iv: [u8; IV]) -> Self {
        let [a, b, c, d, rest @ ..] = iv;
        Self {
            fixed: [a, b, c, d],
            count: u64::from_be_bytes(rest),
        }
    }

    fn next(&mut self) -> Nonce {
        let mut bytes = [0; IV];
        for (place, byte) in bytes
            .iter_mut()
            .zip(self.fixed.into_iter().chain(self.count.to_be_bytes()))
        {
            *place = byte;
        }
        self.count = self.count.wrapping_add(1);
        Nonce::assume_unique_for_key(bytes)
    }
}

fn gcm_key(cipher: Cipher, key: &[u8]) -> Result<LessSafeKey, ProtocolError> {
    let algorithm = if cipher == Cipher::Aes256Gcm {
        &AES_256_GCM
    } else {
        &AES_128_GCM
    };
    UnboundKey::new(algorithm, key)
        .map(LessSafeKey::new)
        .map_err(|_| ProtocolError::Keys)
}

/// Key material of one direction.
pub(crate) struct Keys<'a> {
    pub(crate) cipher: Cipher,
    /// [`Cipher::key_len`] bytes.
    pub(crate) key: &'a [u8],
    pub(crate) iv: [u8; IV],
}

/// Protects what is sent.
pub(crate) enum SealKey {
    Plain,
    Gcm { key: Box<LessSafeKey>, nonce: GcmNonce },
    ChaCha(Box<chacha20_poly1305_openssh::SealingKey>),
}

/// Keeps the counter out of reach.
pub(crate) struct GcmNonce(Counter);

impl SealKey {
    pub(crate) fn new(keys: &Keys<'_>) -> Result<Self, ProtocolError> {
        match keys.cipher {
            Cipher::Aes128Gcm | Cipher::Aes256Gcm => Ok(Self::Gcm {
                key: Box::new(gcm_key(keys.cipher, keys.key)?),
                nonce: GcmNonce(Counter::new(keys.iv)),
            }),
            Cipher::ChaCha20Poly1305 => {
                let key = keys.key.try_into().map_err(|_| ProtocolError::Keys)?;
                Ok(Self::ChaCha(Box::new(
                    chacha20_poly1305_openssh::SealingKey::new(key),
                )))
            }
        }
    }

    /// Protects `packet` (length field, then body) in place and returns the tag.
    pub(crate) fn seal(
        &mut self,
        sequence: u32,
        packet: &mut [u8],
    ) -> Result<Option<[u8; TAG]>, ProtocolError> {
        match self {
            Self::Plain => Ok(None),
            Self::Gcm { key, nonce } => {
                let (length, body) = packet
                    .split_first_chunk_mut::<LENGTH>()
                    .ok_or(ProtocolError::ShortMessage)?;
                let tag = key
                    .seal_in_place_separate_tag(nonce.0.next(), Aad::from(*length), body)
                    .map_err(|_| ProtocolError::Keys)?;
                tag.as_ref().try_into().map(Some).map_err(|_| ProtocolError::Keys)
            }
            Self::ChaCha(key) => {
                let mut tag = [0; TAG];
                key.seal_in_place(sequence, packet, &mut tag);
                Ok(Some(tag))
            }
        }
    }
}

/// Checks and reads what is received.
pub(crate) enum OpenKey {
    Plain,
    Gcm { key: Box<LessSafeKey>, nonce: GcmNonce },
    ChaCha(Box<chacha20_poly1305_openssh::OpeningKey>),
}

impl OpenKey {
    pub(crate) fn new(keys: &Keys<'_>) -> Result<Self, ProtocolError> {
        match keys.cipher {
            Cipher::Aes128Gcm | Cipher::Aes256Gcm => Ok(Self::Gcm {
                key: Box::new(gcm_key(keys.cipher, keys.key)?),
                nonce: GcmNonce(Counter::new(keys.iv)),
            }),
            Cipher::ChaCha20Poly1305 => {
                let key = keys.key.try_into().map_err(|_| ProtocolError::Keys)?;
                Ok(Self::ChaCha(Box::new(
                    chacha20_poly1305_openssh::OpeningKey::new(key),
                )))
            }
        }
    }

    /// The length field as meant by the sender.
    pub(crate) fn length(&self, sequence: u32, field: [u8; LENGTH]) -> u32 {
        match self {
            Self::Plain | Self::Gcm { .. } => u32::from_be_bytes(field),
            Self::ChaCha(key) => u32::from_be_bytes(key.decrypt_packet_length(sequence, field)),
        }
    }

    /// What the packet's length is a multiple of, and the bytes after the body.
    pub(crate) fn shape(&self) -> (usize, usize) {
        match self {
            Self::Plain => (8, 0),
            Self::Gcm { .. } => (Cipher::Aes128Gcm.block(), TAG),
            Self::ChaCha(_) => (Cipher::ChaCha20Poly1305.block(), TAG),
        }
    }

    /// Checks the tag (in constant time, by the library) and decrypts `packet` (length field, body, tag) in place.
    pub(crate) fn open(&mut self, sequence: u32, packet: &mut [u8]) -> Result<(), ProtocolError> {
        match self {
            Self::Plain => Ok(()),
            Self::Gcm { key, nonce } => {
                let (length, body) = packet
                    .split_first_chunk_mut::<LENGTH>()
                    .ok_or(ProtocolError::ShortMessage)?;
                key.open_in_place(nonce.0.next(), Aad::from(*length), body)
                    .map(|_| ())
                    .map_err(|_| ProtocolError::Integrity)
            }
            Self::ChaCha(key) => {
                let (packet, tag) = packet
                    .split_last_chunk_mut::<TAG>()
                    .ok_or(ProtocolError::ShortMessage)?;
                key.open_in_place(sequence, packet, tag)
                    .map(|_| ())
                    .map_err(|_| ProtocolError::Integrity)
            }
        }
    }
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealKey(..)")
    }
}

impl fmt::Debug for OpenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OpenKey(..)")
    }
}
