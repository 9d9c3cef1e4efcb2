//! The key exchanges: `mlkem768x25519-sha256` (ML-KEM-768 joined with X25519), `curve25519-sha256` (RFC 8731) and `ecdh-sha2-nistp256` (RFC 5656); the
//! exchange hash; the keys made from it.

use crate::{
    cipher::{Cipher, IV, Keys},
    error::ProtocolError,
    wire::Put,
};
use aws_lc_rs::{
    agreement::{self, ECDH_P256, PrivateKey, UnparsedPublicKey, X25519, agree},
    digest::{self, SHA256},
    kem::{Ciphertext, DecapsulationKey, ML_KEM_768},
};
use std::fmt;

/// A key exchange method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    MlKem768X25519,
    Curve25519,
    /// The same under its older name.
    Curve25519Libssh,
    EcdhP256,
}

/// A key exchange method to insist on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kex {
    /// `mlkem768x25519-sha256`.
    MlKem768X25519,
    /// `curve25519-sha256`, also under its older name.
    Curve25519,
    /// `ecdh-sha2-nistp256`.
    EcdhP256,
}

/// FIPS 203, table 3.
pub(crate) const MLKEM_CIPHERTEXT: usize = 1088;
const X25519_KEY: usize = 32;
/// An uncompressed point; RFC 5656 section 3.1 allows nothing else that matters.
const P256_POINT: usize = 65;

impl Method {
    /// In the order of preference.
    pub(crate) const ALL: [Self; 4] = [
        Self::MlKem768X25519,
        Self::Curve25519,
        Self::Curve25519Libssh,
        Self::EcdhP256,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::MlKem768X25519 => "mlkem768x25519-sha256",
            Self::Curve25519 => "curve25519-sha256",
            Self::Curve25519Libssh => "curve25519-sha256@libssh.org",
            Self::EcdhP256 => "ecdh-sha2-nistp256",
        }
    }

    pub(crate) fn is(self, kex: Kex) -> bool {
        match self {
            Self::MlKem768X25519 => kex == Kex::MlKem768X25519,
            Self::Curve25519 | Self::Curve25519Libssh => kex == Kex::Curve25519,
            Self::EcdhP256 => kex == Kex::EcdhP256,
        }
    }

    /// The curve, and the size of a point on it.
    fn curve(self) -> (&'static agreement::Algorithm, usize) {
        match self {
            Self::MlKem768X25519 | Self::Curve25519 | Self::Curve25519Libssh => (&X25519, X25519_KEY),
            Self::EcdhP256 => (&ECDH_P256, P256_POINT),
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.name() == name)
    }
}

/// Our half of an exchange under way.
pub(crate) struct Exchange {
    pub(crate) method: Method,
    curve: PrivateKey,
    mlkem: Option<DecapsulationKey>,
    /// What was sent to the server.
    pub(crate) client_value: Vec<u8>,
}

/// The shared secret K, as it stands in the exchange hash: an mpint, or a string for the hybrid method.
pub(crate) struct SharedSecret(Vec<u8>);

impl SharedSecret {
    pub(crate) fn from_curve(secret: &[u8]) -> Self {
        let mut encoded = Vec::new();
        encoded.put_mpint(secret);
        Self(encoded)
    }

    pub(crate) fn from_hybrid(mlkem: &[u8], x25519: &[u8]) -> Self {
        let mut context = digest::Context::new(&SHA256);
        context.update(mlkem);
        context.update(x25519);
        let mut encoded = Vec::new();
        encoded.put_string(context.finish().as_ref());
        Self(encoded)
    }
}

impl Exchange {
    pub(crate) fn start(method: Method) -> Result<Self, ProtocolError> {
        let keys = |_| ProtocolError::Keys;
        let curve = PrivateKey::generate(method.curve().0).map_err(keys)?;
        let public = curve.compute_public_key().map_err(keys)?;
        let mut client_value = Vec::new();
        let mlkem = match method {
            Method::MlKem768X25519 => {
                let key = DecapsulationKey::generate(&ML_KEM_768).map_err(keys)?;
                let encapsulation = key.encapsulation_key().map_err(keys)?;
                client_value.extend_from_slice(encapsulation.key_bytes().map_err(keys)?.as_ref());
                Some(key)
            }
            Method::Curve25519 | Method::Curve25519Libssh | Method::EcdhP256 => None,
        };
        client_value.extend_from_slice(public.as_ref());
        Ok(Self {
            method,
            curve,
            mlkem,
            client_value,
        })
    }

    /// Joins the server's value with ours. The library refuses an all-zero X25519 result and a point that is not on the curve.
    pub(crate) fn finish(self, server_value: &[u8]) -> Result<SharedSecret, ProtocolError> {
        let invalid = ProtocolError::KeyExchange;
        let prefix = if self.mlkem.is_some() { MLKEM_CIPHERTEXT } else { 0 };
        let (ciphertext, public) = server_value
            .split_at_checked(prefix)
            .ok_or_else(|| invalid.clone())?;
        let (curve, size) = self.method.curve();
        if public.len() != size {
            return Err(invalid);
        }
        let mlkem = match &self.mlkem {
            Some(key) => Some(
                key.decapsulate(Ciphertext::from(ciphertext))
                    .map_err(|_| invalid.clone())?,
            ),
            None => None,
        };
        agree(
            &self.curve,
            UnparsedPublicKey::new(curve, public),
            invalid,
            |shared| {
                Ok(match &mlkem {
                    Some(mlkem) => SharedSecret::from_hybrid(mlkem.as_ref(), shared),
                    None => SharedSecret::from_curve(shared),
                })
            },
        )
    }
}

/// Everything both sides hash to prove that they saw the same exchange.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Transcript<'a> {
    pub(crate) client_version: &'a [u8],
    pub(crate) server_version: &'a [u8],
    pub(crate) client_init: &'a [u8],
    pub(crate) server_init: &'a [u8],
    pub(crate) host_key: &'a [u8],
    pub(crate) client_value: &'a [u8],
    pub(crate) server_value: &'a [u8],
}

impl Transcript<'_> {
    /// The exchange hash H.
    pub(crate) fn hash(&self, secret: &SharedSecret) -> Hash {
        let mut text = Vec::new();
        for part in [
            self.client_version,
            self.server_version,
            self.client_init,
            self.server_init,
            self.host_key,
            self.client_value,
            self.server_value,
        ] {
            text.put_string(part);
        }
        text.put_raw(&secret.0);
        sha256(&[&text])
    }
}

/// A SHA-256 value.
pub(crate) type Hash = [u8; 32];

fn sha256(parts: &[&[u8]]) -> Hash {
    let mut context = digest::Context::new(&SHA256);
    for part in parts {
        context.update(part);
    }
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

/// Makes the keys of both directions (RFC 4253 section 7.2).
#[derive(Debug)]
pub(crate) struct KeySource {
    secret: SharedSecret,
    hash: Hash,
    session_id: Hash,
}

/// A direction, with the letters the RFC gives its IV and its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    ClientToServer,
    ServerToClient,
}

impl KeySource {
    pub(crate) fn new(secret: SharedSecret, hash: Hash, session_id: Hash) -> Self {
        Self {
            secret,
            hash,
            session_id,
        }
    }

    /// Calls `with` with the keys of a direction.
    pub(crate) fn keys<R>(
        &self,
        direction: Direction,
        cipher: Cipher,
        with: impl FnOnce(&Keys<'_>) -> R,
    ) -> R {
        let (iv_letter, key_letter) = match direction {
            Direction::ClientToServer => (b'A', b'C'),
            Direction::ServerToClient => (b'B', b'D'),
        };
        let mut iv = [0; IV];
        for (place, byte) in iv.iter_mut().zip(self.derive(iv_letter, IV)) {
            *place = byte;
        }
        let key = self.derive(key_letter, cipher.key_len());
        with(&Keys {
            cipher,
            key: &key,
            iv,
        })
    }

    fn derive(&self, letter: u8, length: usize) -> Vec<u8> {
        let mut out = sha256(&[&self.secret.0, &self.hash, &[letter], &self.session_id]).to_vec();
        while out.len() < length {
            let more = sha256(&[&self.secret.0, &self.hash, &out]);
            out.extend_from_slice(&more);
        }
        out.truncate(length);
        out
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Exchange(..)")
    }
}

impl fmt::Debug for SharedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedSecret(..)")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use aws_lc_rs::kem::EncapsulationKey;

    /// The server's half, for the double.
    pub(crate) fn answer(method: Method, client_value: &[u8]) -> (Vec<u8>, SharedSecret) {
        let (curve, size) = method.curve();
        let private = PrivateKey::generate(curve).unwrap();
        let public = private.compute_public_key().unwrap();
        let split = client_value.len() - size;
        let theirs = UnparsedPublicKey::new(curve, &client_value[split..]);
        let shared = agree(&private, theirs, (), |secret| Ok(secret.to_vec())).unwrap();
        if method == Method::MlKem768X25519 {
            let key = EncapsulationKey::new(&ML_KEM_768, &client_value[..split]).unwrap();
            let (ciphertext, mlkem) = key.encapsulate().unwrap();
            let value = [ciphertext.as_ref(), public.as_ref()].concat();
            (value, SharedSecret::from_hybrid(mlkem.as_ref(), &shared))
        } else {
            (public.as_ref().to_vec(), SharedSecret::from_curve(&shared))
        }
    }

    #[test]
    fn both_sides_find_the_same_secret_and_values_have_their_sizes() {
        for (method, client, server) in [
            (Method::MlKem768X25519, 1184 + 32, 1088 + 32),
            (Method::Curve25519, 32, 32),
            (Method::Curve25519Libssh, 32, 32),
            (Method::EcdhP256, 65, 65),
        ] {
            let exchange = Exchange::start(method).unwrap();
            assert_eq!(exchange.client_value.len(), client);
            let (value, secret) = answer(method, &exchange.client_value);
            assert_eq!(value.len(), server);
            assert_eq!(exchange.finish(&value).unwrap().0, secret.0);
        }
    }

    #[test]
    fn unusable_server_values_are_refused() {
        for method in Method::ALL {
            let finish = |value: &[u8]| Exchange::start(method).unwrap().finish(value).err();
            let size = match method {
                Method::MlKem768X25519 => MLKEM_CIPHERTEXT + 32,
                Method::Curve25519 | Method::Curve25519Libssh => 32,
                Method::EcdhP256 => 65,
            };
            for length in [0, 1, 31, 33, size - 1, size + 1] {
                if length != size {
                    assert_eq!(
                        finish(&vec![9; length]),
                        Some(ProtocolError::KeyExchange),
                        "{method:?} {length}"
                    );
                }
            }
            // A point of low order makes the shared value zero; of P-256 this is no point at all.
            assert_eq!(
                finish(&vec![0; size]),
                Some(ProtocolError::KeyExchange),
                "{method:?}"
            );
        }
    }

    fn unhex(text: &str) -> Vec<u8> {
        (0..text.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
            .collect()
    }

    /// Section 6.1 of RFC 7748.
    #[test]
    fn x25519_known_answer() {
        let bob = unhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb");
        let alice = unhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a");
        let shared = unhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742");
        let exchange = Exchange {
            method: Method::Curve25519,
            curve: PrivateKey::from_private_key(&X25519, &bob).unwrap(),
            mlkem: None,
            client_value: Vec::new(),
        };
        assert_eq!(
            exchange.finish(&alice).unwrap().0,
            SharedSecret::from_curve(&shared).0
        );
    }

    /// Section 8.1 of RFC 5903, in the shape of RFC 5656: the secret is the x coordinate alone, points are written whole.
    #[test]
    fn p256_known_answer() {
        let ours = unhex("c88f01f510d9ac3f70a292daa2316de544e9aab8afe84049c62a9c57862d1433");
        let theirs = unhex(
            "04d12dfb5289c8d4f81208b70270398c342296970a0bccb74c736fc7554494bf6356fbf3ca366cc23e8157854c13c58d6aac23f046ada30f8353e74f33039872ab",
        );
        let shared = unhex("d6840f6b42f6edafd13116e0e12565202fef8e9ece7dce03812464d04b9442de");
        let exchange = |curve| Exchange {
            method: Method::EcdhP256,
            curve,
            mlkem: None,
            client_value: Vec::new(),
        };
        let private = || PrivateKey::from_private_key(&ECDH_P256, &ours).unwrap();
        let public = private().compute_public_key().unwrap();
        assert_eq!(
            public.as_ref(),
            unhex(
                "04dad0b65394221cf9b051e1feca5787d098dfe637fc90b9ef945d0c37725811805271a0461cdb8252d61f1c456fa3e59ab1f45b33accf5f58389e0577b8990bb3"
            )
        );
        assert_eq!(
            exchange(private()).finish(&theirs).unwrap().0,
            SharedSecret::from_curve(&shared).0
        );
        // Off the curve, and the compressed form.
        let mut off = theirs.clone();
        off[64] ^= 1;
        for wrong in [&off[..], &[&[3], &theirs[1..33]].concat()] {
            assert_eq!(
                exchange(private()).finish(wrong).err(),
                Some(ProtocolError::KeyExchange)
            );
        }
    }

    /// The hybrid secret is a string, the other an mpint, whose leading zeros are dropped.
    #[test]
    fn encodings_of_the_secret() {
        assert_eq!(
            SharedSecret::from_hybrid(&[1; 32], &[2; 32]).0[..4],
            [0, 0, 0, 32]
        );
        assert_eq!(
            SharedSecret::from_curve(&[0, 0, 0x80, 1]).0,
            [0, 0, 0, 3, 0, 0x80, 1]
        );
    }

    #[test]
    fn directions_and_lengths_of_keys() {
        let source = KeySource::new(SharedSecret::from_curve(&[7; 32]), [1; 32], [2; 32]);
        let get = |direction, cipher| source.keys(direction, cipher, |keys| (keys.key.to_vec(), keys.iv));
        let (short, iv) = get(Direction::ClientToServer, Cipher::Aes128Gcm);
        let (long, _) = get(Direction::ClientToServer, Cipher::ChaCha20Poly1305);
        let (other, other_iv) = get(Direction::ServerToClient, Cipher::Aes128Gcm);
        assert_eq!((short.len(), long.len()), (16, 64));
        assert_eq!(long[..16], short);
        assert!(short != other && iv != other_iv);
        assert_eq!(
            source.derive(b'C', 64)[32..],
            sha256(&[&source.secret.0, &[1; 32], &long[..32]])
        );
    }
}
