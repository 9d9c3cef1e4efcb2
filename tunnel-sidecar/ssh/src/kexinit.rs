//! KEXINIT: what each side offers, and what comes out of it (RFC 4253 section 7.1).

use crate::{
    cipher::Cipher,
    error::ProtocolError,
    exchange::Method,
    hostkey::HostKeyAlgorithm,
    msg,
    wire::{Put, Reader},
};

/// Announces strict key exchange, by the client and by the server.
pub(crate) const STRICT_CLIENT: &str = "kex-strict-c-v00@openssh.com";
pub(crate) const STRICT_SERVER: &str = "kex-strict-s-v00@openssh.com";
/// Announces that we can read EXT_INFO (RFC 8308).
const EXT_INFO_CLIENT: &str = "ext-info-c";

/// A KEXINIT message. The lists stand in the order of the RFC: key exchange, host key, then ciphers, MACs, compressions and languages in pairs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KexInit {
    pub(crate) cookie: [u8; 16],
    pub(crate) lists: [String; 10],
    pub(crate) first_packet_follows: bool,
}

/// Which list is which.
const KEX: usize = 0;
const HOST_KEY: usize = 1;
const CIPHER_OUT: usize = 2;
const CIPHER_IN: usize = 3;
const COMPRESSION_OUT: usize = 6;
const COMPRESSION_IN: usize = 7;

/// Which cipher a client prefers. AES-GCM is two to three times as fast as ChaCha20 where the processor has AES instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ciphers {
    /// AES-128-GCM, AES-256-GCM, then ChaCha20-Poly1305.
    #[default]
    AesFirst,
    /// ChaCha20-Poly1305 first.
    ChaChaFirst,
}

impl Ciphers {
    fn list(self) -> String {
        let order = match self {
            Self::AesFirst => [Cipher::Aes128Gcm, Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305],
            Self::ChaChaFirst => [Cipher::ChaCha20Poly1305, Cipher::Aes128Gcm, Cipher::Aes256Gcm],
        };
        order.map(Cipher::name).join(",")
    }
}

/// The algorithms both sides agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Agreement {
    pub(crate) method: Method,
    pub(crate) host_key: HostKeyAlgorithm,
    pub(crate) cipher_out: Cipher,
    pub(crate) cipher_in: Cipher,
    /// Both sides prefer the same key exchange and the same host key: a first packet that either sent with its KEXINIT counts.
    pub(crate) same_guess: bool,
    /// The server sent such a packet, and it does not count.
    pub(crate) ignore_guess: bool,
}

impl KexInit {
    /// A client's offer. The MAC list is never used with our ciphers, but an empty one is refused by some servers.
    pub(crate) fn client(methods: &[Method], ciphers: Ciphers, cookie: [u8; 16]) -> Self {
        let methods: Vec<_> = methods.iter().map(|method| method.name()).collect();
        let methods = methods.join(",");
        let macs = "hmac-sha2-256-etm@openssh.com,hmac-sha2-256";
        Self {
            cookie,
            lists: [
                format!("{methods},{EXT_INFO_CLIENT},{STRICT_CLIENT}"),
                HostKeyAlgorithm::ALL.map(HostKeyAlgorithm::name).join(","),
                ciphers.list(),
                ciphers.list(),
                macs.to_owned(),
                macs.to_owned(),
                "none".to_owned(),
                "none".to_owned(),
                String::new(),
                String::new(),
            ],
            first_packet_follows: false,
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![msg::KEXINIT];
        out.put_raw(&self.cookie);
        for list in &self.lists {
            out.put_string(list.as_bytes());
        }
        out.put_bool(self.first_packet_follows);
        out.put_u32(0);
        out
    }

    /// Reads the message, number included.
    pub(crate) fn parse(message: &[u8]) -> Result<Self, ProtocolError> {
        let mut reader = Reader::new(message);
        if reader.u8()? != msg::KEXINIT {
            return Err(ProtocolError::ShortMessage);
        }
        let cookie = reader.array()?;
        let mut lists: [String; 10] = Default::default();
        for list in &mut lists {
            reader.text()?.clone_into(list);
        }
        let first_packet_follows = reader.bool()?;
        reader.u32()?;
        reader.finish()?;
        Ok(Self {
            cookie,
            lists,
            first_packet_follows,
        })
    }

    fn list(&self, which: usize) -> impl Iterator<Item = &str> {
        self.lists.get(which).map_or("", String::as_str).split(',')
    }

    /// Whether a name stands in the key exchange list.
    pub(crate) fn announces(&self, name: &str) -> bool {
        self.list(KEX).any(|entry| entry == name)
    }

    /// What `self`, the client, and `server` agree on: the client's first choice that the server has, too.
    pub(crate) fn agree(&self, server: &Self) -> Result<Agreement, ProtocolError> {
        let pick = |which: usize, what: &'static str| {
            let known = |name: &&str| !name.is_empty() && server.list(which).any(|other| other == *name);
            self.list(which).find(known).ok_or(ProtocolError::NoCommon(what))
        };
        let method_name = pick(KEX, "key exchange")?;
        let host_key_name = pick(HOST_KEY, "host key")?;
        // RFC 4253 section 7: a guess is right when the first choices of both sides are the same.
        let same = |which| self.list(which).next() == server.list(which).next();
        let same_guess = same(KEX) && same(HOST_KEY);
        let agreement = Agreement {
            method: Method::from_name(method_name).ok_or(ProtocolError::NoCommon("key exchange"))?,
            host_key: HostKeyAlgorithm::ALL
                .into_iter()
                .find(|algorithm| algorithm.name() == host_key_name)
                .ok_or(ProtocolError::NoCommon("host key"))?,
            cipher_out: Cipher::from_name(pick(CIPHER_OUT, "cipher")?)
                .ok_or(ProtocolError::NoCommon("cipher"))?,
            cipher_in: Cipher::from_name(pick(CIPHER_IN, "cipher")?)
                .ok_or(ProtocolError::NoCommon("cipher"))?,
            same_guess,
            ignore_guess: server.first_packet_follows && !same_guess,
        };
        pick(COMPRESSION_OUT, "compression")?;
        pick(COMPRESSION_IN, "compression")?;
        Ok(agreement)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The offer of a chisel v1.11.3 server, as seen on the wire.
    pub(crate) fn server_offer() -> KexInit {
        let ciphers = "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com,aes128-ctr,aes192-ctr,aes256-ctr";
        let macs = "hmac-sha2-256-etm@openssh.com,hmac-sha2-512-etm@openssh.com,hmac-sha2-256,hmac-sha2-512,hmac-sha1,hmac-sha1-96";
        KexInit {
            cookie: [9; 16],
            lists: [
                format!(
                    "mlkem768x25519-sha256,curve25519-sha256,curve25519-sha256@libssh.org,ecdh-sha2-nistp256,{STRICT_SERVER}"
                ),
                "ecdsa-sha2-nistp256".to_owned(),
                ciphers.to_owned(),
                ciphers.to_owned(),
                macs.to_owned(),
                macs.to_owned(),
                "none".to_owned(),
                "none".to_owned(),
                String::new(),
                String::new(),
            ],
            first_packet_follows: false,
        }
    }

    #[test]
    fn agreement_with_a_chisel_server() {
        let ours = KexInit::client(&Method::ALL, Ciphers::AesFirst, [0; 16]);
        let agreement = ours.agree(&server_offer()).unwrap();
        assert_eq!(agreement.method, Method::MlKem768X25519);
        assert_eq!(agreement.host_key, HostKeyAlgorithm::EcdsaP256);
        assert_eq!(
            (agreement.cipher_out, agreement.cipher_in),
            (Cipher::Aes128Gcm, Cipher::Aes128Gcm)
        );
        let ours = KexInit::client(&Method::ALL, Ciphers::ChaChaFirst, [0; 16]);
        assert_eq!(
            ours.agree(&server_offer()).unwrap().cipher_in,
            Cipher::ChaCha20Poly1305
        );
    }

    #[test]
    fn nothing_in_common_is_named() {
        let ours = KexInit::client(&Method::ALL, Ciphers::AesFirst, [0; 16]);
        for (which, what) in [
            (0, "key exchange"),
            (1, "host key"),
            (2, "cipher"),
            (3, "cipher"),
            (6, "compression"),
            (7, "compression"),
        ] {
            for offer in ["", "unknown", ",", STRICT_SERVER] {
                let mut server = server_offer();
                server.lists[which] = offer.to_owned();
                assert_eq!(
                    ours.agree(&server),
                    Err(ProtocolError::NoCommon(what)),
                    "{which} {offer}"
                );
            }
        }
        // The markers are no algorithms, even if a server repeats them.
        let mut server = server_offer();
        server.lists[0] = format!("{STRICT_CLIENT},{EXT_INFO_CLIENT}");
        assert_eq!(ours.agree(&server), Err(ProtocolError::NoCommon("key exchange")));
    }

    #[test]
    fn a_wrong_guess_of_the_server_is_ignored_and_a_right_one_is_used() {
        let ours = KexInit::client(&Method::ALL, Ciphers::AesFirst, [0; 16]);
        let mut server = server_offer();
        server.first_packet_follows = true;
        assert!(!ours.agree(&server).unwrap().ignore_guess);
        server.lists[0] = "ecdh-sha2-nistp256,curve25519-sha256".to_owned();
        assert!(ours.agree(&server).unwrap().ignore_guess);
    }

    proptest! {
        #[test]
        fn offers_round_trip(cookie: [u8; 16], lists in proptest::array::uniform10("[a-z0-9@,-]{0,60}"), first_packet_follows: bool) {
            let offer = KexInit { cookie, lists, first_packet_follows };
            prop_assert_eq!(KexInit::parse(&offer.encode()), Ok(offer.clone()));
            let _ = KexInit::client(&Method::ALL, Ciphers::AesFirst, cookie).agree(&offer);
        }

        #[test]
        fn any_bytes_never_panic(tail: Vec<u8>, cut in 0..400_usize) {
            let mut message = server_offer().encode();
            message.truncate(cut);
            message.extend_from_slice(&tail);
            for data in [&tail, &message] {
                if let Ok(offer) = KexInit::parse(data) {
                    let _ = KexInit::client(&Method::ALL, Ciphers::AesFirst, [0; 16]).agree(&offer);
                }
            }
        }
    }
}
