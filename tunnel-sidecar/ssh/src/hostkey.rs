//! The server's host key: its blob, and the signature that proves the server holds it.

use crate::{error::ProtocolError, wire::Reader};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA512,
    RsaPublicKeyComponents, UnparsedPublicKey,
};

/// A host key algorithm both sides know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HostKeyAlgorithm {
    /// What a chisel server generates.
    EcdsaP256,
    Ed25519,
    /// RFC 8332; of at least 2048 bits. The older `ssh-rsa` signs SHA-1 and is not offered.
    RsaSha512,
    RsaSha256,
}

const CURVE: &[u8] = b"nistp256";
/// An uncompressed P-256 point.
const POINT: usize = 65;
const SCALAR: usize = 32;
/// RFC 8032.
const ED25519_KEY: usize = 32;
/// 2048 bits: what is shorter is refused, as everywhere today.
const LEAST_RSA: usize = 256;

impl HostKeyAlgorithm {
    /// In the order of preference.
    pub(crate) const ALL: [Self; 4] = [Self::EcdsaP256, Self::Ed25519, Self::RsaSha512, Self::RsaSha256];

    /// The name of the algorithm, which a signature carries, too.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::EcdsaP256 => "ecdsa-sha2-nistp256",
            Self::Ed25519 => "ssh-ed25519",
            Self::RsaSha512 => "rsa-sha2-512",
            Self::RsaSha256 => "rsa-sha2-256",
        }
    }

    /// The name of the type of key, which its blob carries.
    fn key_type(self) -> &'static str {
        match self {
            Self::EcdsaP256 | Self::Ed25519 => self.name(),
            Self::RsaSha512 | Self::RsaSha256 => "ssh-rsa",
        }
    }

    /// Verifies that `signature` is the key's signature of `hash`. Both blobs must be of this algorithm.
    pub(crate) fn verify(self, key: &[u8], signature: &[u8], hash: &[u8]) -> Result<(), ProtocolError> {
        let mut reader = Reader::new(key);
        expect_name(&mut reader, self.key_type())?;
        let raw = self.raw_signature(signature)?;
        let verified = match self {
            Self::EcdsaP256 => {
                if reader.string()? != CURVE {
                    return Err(ProtocolError::HostKey);
                }
                let public = last_string(reader, POINT)?;
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, public).verify(hash, &raw)
            }
            Self::Ed25519 => {
                UnparsedPublicKey::new(&ED25519, last_string(reader, ED25519_KEY)?).verify(hash, &raw)
            }
            Self::RsaSha512 | Self::RsaSha256 => {
                let (e, n) = (reader.mpint()?, reader.mpint()?);
                reader.finish()?;
                if n.len() < LEAST_RSA {
                    return Err(ProtocolError::WeakHostKey(n.len() * 8));
                }
                let parameters = if self == Self::RsaSha512 {
                    &RSA_PKCS1_2048_8192_SHA512
                } else {
                    &RSA_PKCS1_2048_8192_SHA256
                };
                RsaPublicKeyComponents { n, e }.verify(parameters, hash, &raw)
            }
        };
        verified.map_err(|_| ProtocolError::Signature)
    }

    /// The signature as the library wants it: fixed size, numbers side by side.
    fn raw_signature(self, blob: &[u8]) -> Result<Vec<u8>, ProtocolError> {
        let mut reader = Reader::new(blob);
        expect_name(&mut reader, self.name())?;
        let inner = reader.string()?;
        reader.finish()?;
        match self {
            Self::EcdsaP256 => {
                let mut numbers = Reader::new(inner);
                let mut raw = Vec::with_capacity(2 * SCALAR);
                for _ in 0..2 {
                    let number = numbers.mpint()?;
                    let zeros = SCALAR.checked_sub(number.len()).ok_or(ProtocolError::Signature)?;
                    raw.extend(std::iter::repeat_n(0, zeros));
                    raw.extend_from_slice(number);
                }
                numbers.finish()?;
                Ok(raw)
            }
            Self::Ed25519 | Self::RsaSha512 | Self::RsaSha256 => Ok(inner.to_vec()),
        }
    }
}

fn expect_name(reader: &mut Reader<'_>, name: &str) -> Result<(), ProtocolError> {
    if reader.string()? == name.as_bytes() {
        Ok(())
    } else {
        Err(ProtocolError::HostKey)
    }
}

/// A string of this length with nothing behind it.
fn last_string(mut reader: Reader<'_>, length: usize) -> Result<&[u8], ProtocolError> {
    let public = reader.string()?;
    reader.finish()?;
    if public.len() == length {
        Ok(public)
    } else {
        Err(ProtocolError::HostKey)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::wire::Put;
    use aws_lc_rs::{
        rand::SystemRandom,
        rsa::KeySize,
        signature::{
            ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256,
            RSA_PKCS1_SHA512, RsaKeyPair,
        },
    };
    use proptest::prelude::*;

    /// A host key of the server double.
    #[derive(Debug)]
    pub(crate) enum TestKey {
        Ecdsa(EcdsaKeyPair),
        Ed25519(Ed25519KeyPair),
        Rsa(HostKeyAlgorithm, Box<RsaKeyPair>),
    }

    impl TestKey {
        pub(crate) fn generate(algorithm: HostKeyAlgorithm) -> Self {
            match algorithm {
                HostKeyAlgorithm::EcdsaP256 => {
                    Self::Ecdsa(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
                }
                HostKeyAlgorithm::Ed25519 => Self::Ed25519(Ed25519KeyPair::generate().unwrap()),
                HostKeyAlgorithm::RsaSha512 | HostKeyAlgorithm::RsaSha256 => Self::Rsa(
                    algorithm,
                    Box::new(RsaKeyPair::generate(KeySize::Rsa2048).unwrap()),
                ),
            }
        }

        pub(crate) fn algorithm(&self) -> HostKeyAlgorithm {
            match self {
                Self::Ecdsa(_) => HostKeyAlgorithm::EcdsaP256,
                Self::Ed25519(_) => HostKeyAlgorithm::Ed25519,
                Self::Rsa(algorithm, _) => *algorithm,
            }
        }

        pub(crate) fn blob(&self) -> Vec<u8> {
            let mut blob = Vec::new();
            blob.put_string(self.algorithm().key_type().as_bytes());
            match self {
                Self::Ecdsa(pair) => {
                    blob.put_string(CURVE);
                    blob.put_string(pair.public_key().as_ref());
                }
                Self::Ed25519(pair) => blob.put_string(pair.public_key().as_ref()),
                Self::Rsa(_, pair) => {
                    // RSAPublicKey of RFC 8017 with 2048 bits: the numbers stand at fixed places.
                    let der = pair.public_key().as_ref();
                    blob.put_mpint(&der[267..270]);
                    blob.put_mpint(&der[9..265]);
                }
            }
            blob
        }

        pub(crate) fn sign(&self, hash: &[u8]) -> Vec<u8> {
            let inner = match self {
                Self::Ecdsa(pair) => {
                    let raw = pair.sign(&SystemRandom::new(), hash).unwrap();
                    let (r, s) = raw.as_ref().split_at(SCALAR);
                    let mut inner = Vec::new();
                    inner.put_mpint(r);
                    inner.put_mpint(s);
                    inner
                }
                Self::Ed25519(pair) => pair.sign(hash).as_ref().to_vec(),
                Self::Rsa(algorithm, pair) => {
                    let encoding = if *algorithm == HostKeyAlgorithm::RsaSha512 {
                        &RSA_PKCS1_SHA512
                    } else {
                        &RSA_PKCS1_SHA256
                    };
                    let mut signature = vec![0; pair.public_modulus_len()];
                    pair.sign(encoding, &SystemRandom::new(), hash, &mut signature)
                        .unwrap();
                    signature
                }
            };
            let mut blob = Vec::new();
            blob.put_string(self.algorithm().name().as_bytes());
            blob.put_string(&inner);
            blob
        }
    }

    #[test]
    fn only_the_right_signature_of_the_right_key_verifies() {
        for algorithm in HostKeyAlgorithm::ALL {
            let key = TestKey::generate(algorithm);
            // Repeated, because one number in 256 of an ECDSA signature is shorter than its field.
            let rounds = if algorithm == HostKeyAlgorithm::EcdsaP256 {
                300
            } else {
                3
            };
            for round in 0..rounds {
                let hash = u32::to_be_bytes(round);
                algorithm.verify(&key.blob(), &key.sign(&hash), &hash).unwrap();
            }
            let other = TestKey::generate(algorithm);
            let signature = key.sign(b"hash");
            assert_eq!(
                algorithm.verify(&key.blob(), &signature, b"hasH"),
                Err(ProtocolError::Signature)
            );
            assert_eq!(
                algorithm.verify(&other.blob(), &signature, b"hash"),
                Err(ProtocolError::Signature)
            );
            for at in (0..signature.len()).rev().take(60) {
                let mut changed = signature.clone();
                changed[at] ^= 1;
                assert!(
                    algorithm.verify(&key.blob(), &changed, b"hash").is_err(),
                    "{algorithm:?} byte {at}"
                );
            }
        }
    }

    /// The same key may sign with either hash; what counts is what was agreed on.
    #[test]
    fn rsa_signatures_are_of_the_agreed_hash_and_keys_have_2048_bits() {
        let TestKey::Rsa(_, pair) = TestKey::generate(HostKeyAlgorithm::RsaSha512) else {
            panic!("no RSA key")
        };
        let key = TestKey::Rsa(HostKeyAlgorithm::RsaSha256, pair);
        let signature = key.sign(b"hash");
        HostKeyAlgorithm::RsaSha256
            .verify(&key.blob(), &signature, b"hash")
            .unwrap();
        assert_eq!(
            HostKeyAlgorithm::RsaSha512.verify(&key.blob(), &signature, b"hash"),
            Err(ProtocolError::HostKey)
        );
        let mut short = Vec::new();
        short.put_string(b"ssh-rsa");
        short.put_mpint(&[1, 0, 1]);
        short.put_mpint(&[0xc1; 128]);
        assert_eq!(
            HostKeyAlgorithm::RsaSha256.verify(&short, &signature, b"hash"),
            Err(ProtocolError::WeakHostKey(1024))
        );
    }

    #[test]
    fn a_key_of_another_type_is_refused() {
        let key = TestKey::generate(HostKeyAlgorithm::Ed25519);
        let verdict = HostKeyAlgorithm::EcdsaP256.verify(&key.blob(), &key.sign(b"h"), b"h");
        assert_eq!(verdict, Err(ProtocolError::HostKey));
    }

    /// Test 2 of RFC 8032 section 7.1.
    #[test]
    fn ed25519_known_answer() {
        let unhex = |text: &str| -> Vec<u8> {
            (0..text.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
                .collect()
        };
        let public = unhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c");
        let raw = unhex(
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        );
        let wrap = |inner: &[u8]| {
            let mut blob = Vec::new();
            blob.put_string(b"ssh-ed25519");
            blob.put_string(inner);
            blob
        };
        HostKeyAlgorithm::Ed25519
            .verify(&wrap(&public), &wrap(&raw), &[0x72])
            .unwrap();
    }

    proptest! {
        #[test]
        fn any_blobs_never_panic(key: Vec<u8>, signature: Vec<u8>, hash: [u8; 32]) {
            for algorithm in HostKeyAlgorithm::ALL {
                prop_assert!(algorithm.verify(&key, &signature, &hash).is_err());
                let mut named = Vec::new();
                named.put_string(algorithm.name().as_bytes());
                named.extend_from_slice(&signature);
                prop_assert!(algorithm.verify(&named, &named, &hash).is_err());
            }
        }
    }
}
