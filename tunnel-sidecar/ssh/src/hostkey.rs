//! The server's host key: its blob, and the signature that proves the server holds it.

use crate::{error::ProtocolError, wire::Reader};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ED25519, UnparsedPublicKey};

/// A host key algorithm both sides know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HostKeyAlgorithm {
    /// What a chisel server generates.
    EcdsaP256,
    Ed25519,
}

const CURVE: &[u8] = b"nistp256";
/// An uncompressed P-256 point.
const POINT: usize = 65;
const SCALAR: usize = 32;

impl HostKeyAlgorithm {
    pub(crate) const ALL: [Self; 2] = [Self::EcdsaP256, Self::Ed25519];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::EcdsaP256 => "ecdsa-sha2-nistp256",
            Self::Ed25519 => "ssh-ed25519",
        }
    }

    /// Verifies that `signature` is the key's signature of `hash`. Both blobs must be of this algorithm.
    pub(crate) fn verify(self, key: &[u8], signature: &[u8], hash: &[u8]) -> Result<(), ProtocolError> {
        let public = self.public_key(key)?;
        let raw = self.raw_signature(signature)?;
        let verified = match self {
            Self::EcdsaP256 => UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, public).verify(hash, &raw),
            Self::Ed25519 => UnparsedPublicKey::new(&ED25519, public).verify(hash, &raw),
        };
        verified.map_err(|_| ProtocolError::Signature)
    }

    fn public_key(self, blob: &[u8]) -> Result<&[u8], ProtocolError> {
        let mut reader = Reader::new(blob);
        self.expect_name(&mut reader)?;
        let length = match self {
            Self::EcdsaP256 => {
                if reader.string()? != CURVE {
                    return Err(ProtocolError::HostKey);
                }
                POINT
            }
            Self::Ed25519 => 32,
        };
        let public = reader.string()?;
        reader.finish()?;
        if public.len() == length {
            Ok(public)
        } else {
            Err(ProtocolError::HostKey)
        }
    }

    /// The signature as the library wants it: fixed size, numbers side by side.
    fn raw_signature(self, blob: &[u8]) -> Result<Vec<u8>, ProtocolError> {
        let mut reader = Reader::new(blob);
        self.expect_name(&mut reader)?;
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
            Self::Ed25519 => Ok(inner.to_vec()),
        }
    }

    fn expect_name(self, reader: &mut Reader<'_>) -> Result<(), ProtocolError> {
        if reader.string()? == self.name().as_bytes() {
            Ok(())
        } else {
            Err(ProtocolError::HostKey)
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::wire::Put;
    use aws_lc_rs::{
        rand::SystemRandom,
        signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair},
    };
    use proptest::prelude::*;

    /// A host key of the server double.
    #[derive(Debug)]
    pub(crate) enum TestKey {
        Ecdsa(EcdsaKeyPair),
        Ed25519(Ed25519KeyPair),
    }

    impl TestKey {
        pub(crate) fn generate(algorithm: HostKeyAlgorithm) -> Self {
            match algorithm {
                HostKeyAlgorithm::EcdsaP256 => {
                    Self::Ecdsa(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
                }
                HostKeyAlgorithm::Ed25519 => Self::Ed25519(Ed25519KeyPair::generate().unwrap()),
            }
        }

        pub(crate) fn algorithm(&self) -> HostKeyAlgorithm {
            match self {
                Self::Ecdsa(_) => HostKeyAlgorithm::EcdsaP256,
                Self::Ed25519(_) => HostKeyAlgorithm::Ed25519,
            }
        }

        pub(crate) fn blob(&self) -> Vec<u8> {
            let mut blob = Vec::new();
            blob.put_string(self.algorithm().name().as_bytes());
            match self {
                Self::Ecdsa(pair) => {
                    blob.put_string(CURVE);
                    blob.put_string(pair.public_key().as_ref());
                }
                Self::Ed25519(pair) => blob.put_string(pair.public_key().as_ref()),
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
            for round in 0..300_u32 {
                let hash = round.to_be_bytes();
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
