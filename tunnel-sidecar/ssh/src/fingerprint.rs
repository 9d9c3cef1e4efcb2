//! Which host key the server may show.

use crate::md5::md5;
use aws_lc_rs::{constant_time, digest};
use base64::{Engine, engine::general_purpose::STANDARD};
use std::{fmt, str::FromStr};

/// The fingerprint of a server's host key, in one of the two forms chisel knows.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Fingerprint {
    /// SHA-256 of the host key blob. Written as 44 characters of padded base64.
    Sha256([u8; 32]),
    /// Legacy: the first bytes of the MD5 of the blob, lower case hex separated by colons. A prefix matches.
    Md5Prefix(String),
}

/// A text that is neither form of a fingerprint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a host key fingerprint: expected 44 characters of base64 (SHA-256), as the chisel server prints at its start, or colon-separated hex (MD5)"
)]
pub struct BadFingerprint;

impl Fingerprint {
    /// The SHA-256 fingerprint of a host key blob.
    pub(crate) fn of(blob: &[u8]) -> Self {
        let mut sum = [0; 32];
        sum.copy_from_slice(digest::digest(&digest::SHA256, blob).as_ref());
        Self::Sha256(sum)
    }

    /// Whether the host key blob is the one meant.
    pub(crate) fn matches(&self, blob: &[u8]) -> bool {
        match self {
            Self::Sha256(wanted) => {
                let seen = digest::digest(&digest::SHA256, blob);
                constant_time::verify_slices_are_equal(wanted, seen.as_ref()).is_ok()
            }
            Self::Md5Prefix(wanted) => {
                let hex: Vec<String> = md5(blob).iter().map(|byte| format!("{byte:02x}")).collect();
                hex.join(":").starts_with(wanted)
            }
        }
    }
}

impl FromStr for Fingerprint {
    type Err = BadFingerprint;

    fn from_str(text: &str) -> Result<Self, BadFingerprint> {
        let text = text.trim();
        if let Ok(bytes) = STANDARD.decode(text)
            && let Ok(sum) = <[u8; 32]>::try_from(bytes)
        {
            return Ok(Self::Sha256(sum));
        }
        // An empty or very short prefix would match nearly every key: four bytes are the least we take.
        let pairs: Vec<&str> = text.split(':').collect();
        let hex = |pair: &&str| pair.len() == 2 && pair.bytes().all(|digit| digit.is_ascii_hexdigit());
        if (MD5_LEAST_BYTES..=16).contains(&pairs.len()) && pairs.iter().all(hex) {
            return Ok(Self::Md5Prefix(text.to_ascii_lowercase()));
        }
        Err(BadFingerprint)
    }
}

/// The shortest MD5 prefix that is accepted; chisel itself takes any.
const MD5_LEAST_BYTES: usize = 4;

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256(sum) => f.write_str(&STANDARD.encode(sum)),
            Self::Md5Prefix(prefix) => f.write_str(prefix),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_forms_are_read_and_compared() {
        let blob = b"a host key blob";
        let seen = Fingerprint::of(blob);
        assert_eq!(seen.to_string().len(), 44);
        assert!(seen.to_string().parse::<Fingerprint>().unwrap().matches(blob));
        assert!(!seen.matches(b"another"));

        let hex: Vec<String> = md5(blob).iter().map(|byte| format!("{byte:02X}")).collect();
        for length in [4, 5, 16] {
            let prefix: Fingerprint = hex[..length].join(":").parse().unwrap();
            assert!(prefix.matches(blob));
            assert!(!prefix.matches(b"another"));
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "ab",
            "ab:cd:ef",
            "SHA256:abc",
            "zz:zz:zz:zz",
            "AAAA",
            &"ab:".repeat(16),
            &"a".repeat(44),
        ] {
            assert_eq!(text.parse::<Fingerprint>(), Err(BadFingerprint), "{text}");
        }
    }

    #[test]
    fn surrounding_space_of_a_secret_file_is_ignored() {
        let text = "CcGApgqyR4vWWQZ+XfQp9aUjOPWfbhwLl1nGOD2MONU=\n";
        assert_eq!(text.parse::<Fingerprint>().unwrap().to_string(), text.trim());
    }

    proptest! {
        #[test]
        fn any_text_never_panics(text in ".*") {
            if let Ok(fingerprint) = text.parse::<Fingerprint>() {
                prop_assert_eq!(fingerprint.to_string().parse::<Fingerprint>(), Ok(fingerprint));
            }
        }
    }
}
