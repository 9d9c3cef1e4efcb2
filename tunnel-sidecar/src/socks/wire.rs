//! What a SOCKS5 client says and what it is answered (RFC 1928): no authentication, CONNECT. Pure.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::address::HostPort;

const VERSION: u8 = 5;
/// Method 0: no authentication.
const NO_AUTH: u8 = 0;
const CONNECT: u8 = 1;
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

/// The answer to a greeting that offers what we take.
pub const USE_NO_AUTH: [u8; 2] = [VERSION, NO_AUTH];
/// The answer to a greeting that does not.
pub const NO_METHOD: [u8; 2] = [VERSION, 0xff];

/// The longest request: four bytes, a name of 255 with its length, a port.
pub const LONGEST: usize = 4 + 1 + 255 + 2;

/// How a request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Connected.
    Succeeded,
    /// Something else went wrong.
    Failed,
    /// Our rules forbid it.
    NotAllowed,
    /// The name has no address, or nobody answers.
    HostUnreachable,
    /// The target refused.
    Refused,
    /// BIND or UDP ASSOCIATE.
    NoSuchCommand,
    /// An address type nobody knows.
    NoSuchAddress,
}

impl Reply {
    /// Its bytes. The bound address is left empty: it would tell the user about the cluster, and no client needs it.
    pub fn bytes(self) -> [u8; 10] {
        let code = match self {
            Self::Succeeded => 0,
            Self::Failed => 1,
            Self::NotAllowed => 2,
            Self::HostUnreachable => 4,
            Self::Refused => 5,
            Self::NoSuchCommand => 7,
            Self::NoSuchAddress => 8,
        };
        [VERSION, code, 0, IPV4, 0, 0, 0, 0, 0, 0]
    }
}

/// Why a client is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadClient {
    /// Another protocol, SOCKS4 for example.
    #[error("speaks version {0} and not SOCKS5")]
    Version(u8),
    /// The client insists on authentication.
    #[error("offers no way without authentication")]
    Method,
    /// Another command.
    #[error("asks for command {0}; only CONNECT is served")]
    Command(u8),
    /// An unknown address type.
    #[error("gives an address of type {0}")]
    AddressType(u8),
    /// The name or the port is none.
    #[error("gives no usable host and port")]
    Address,
}

impl BadClient {
    /// What the client is told.
    pub fn reply(self) -> Option<Reply> {
        match self {
            Self::Version(_) | Self::Method => None,
            Self::Command(_) => Some(Reply::NoSuchCommand),
            Self::AddressType(_) => Some(Reply::NoSuchAddress),
            Self::Address => Some(Reply::Failed),
        }
    }
}

/// Reads a greeting; `None` until it is whole, then its size.
///
/// # Errors
/// When the client cannot be served.
pub fn greeting(data: &[u8]) -> Result<Option<usize>, BadClient> {
    let Some((version, rest)) = data.split_first() else {
        return Ok(None);
    };
    if *version != VERSION {
        return Err(BadClient::Version(*version));
    }
    let Some((count, rest)) = rest.split_first() else {
        return Ok(None);
    };
    let Some(methods) = rest.get(..usize::from(*count)) else {
        return Ok(None);
    };
    if methods.contains(&NO_AUTH) {
        Ok(Some(2 + methods.len()))
    } else {
        Err(BadClient::Method)
    }
}

/// Reads a request; `None` until it is whole, then where to and its size.
///
/// # Errors
/// When it cannot be carried out.
pub fn request(data: &[u8]) -> Result<Option<(HostPort, usize)>, BadClient> {
    if let Some(version) = data.first()
        && *version != VERSION
    {
        return Err(BadClient::Version(*version));
    }
    let Some(([_, command, _, kind], rest)) = data.split_first_chunk::<4>() else {
        return Ok(None);
    };
    if *command != CONNECT {
        return Err(BadClient::Command(*command));
    }
    let (host, rest) = match *kind {
        IPV4 => match rest.split_first_chunk::<4>() {
            Some((address, rest)) => (Ipv4Addr::from(*address).to_string(), rest),
            None => return Ok(None),
        },
        IPV6 => match rest.split_first_chunk::<16>() {
            Some((address, rest)) => (format!("[{}]", Ipv6Addr::from(*address)), rest),
            None => return Ok(None),
        },
        NAME => {
            let Some((length, rest)) = rest.split_first() else {
                return Ok(None);
            };
            let Some((name, rest)) = rest.split_at_checked(usize::from(*length)) else {
                return Ok(None);
            };
            let name = std::str::from_utf8(name).map_err(|_| BadClient::Address)?;
            // Some clients put an IPv6 address here, without brackets.
            let host = if name.contains(':') {
                format!("[{name}]")
            } else {
                name.to_owned()
            };
            (host, rest)
        }
        other => return Err(BadClient::AddressType(other)),
    };
    let Some((port, rest)) = rest.split_first_chunk::<2>() else {
        return Ok(None);
    };
    let target = HostPort::new(&host, u16::from_be_bytes(*port)).map_err(|_| BadClient::Address)?;
    Ok(Some((target, data.len() - rest.len())))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_client_without_authentication_is_served() {
        assert_eq!(greeting(&[5, 2, 2, 0, 9]), Ok(Some(4)));
        assert_eq!(greeting(&[5, 2, 2]), Ok(None));
        assert_eq!(greeting(&[5, 1, 2]), Err(BadClient::Method));
        assert_eq!(greeting(&[4, 1, 0, 80]), Err(BadClient::Version(4)));
        assert_eq!(greeting(b"GET / "), Err(BadClient::Version(b'G')));
    }

    #[test]
    fn each_kind_of_address_is_read() {
        let read =
            |bytes: &[u8]| request(bytes).map(|found| found.map(|(target, used)| (target.to_string(), used)));
        assert_eq!(
            read(&[5, 1, 0, 1, 127, 0, 0, 1, 0, 80, 99]),
            Ok(Some(("127.0.0.1:80".to_owned(), 10)))
        );
        let mut name = vec![5, 1, 0, 3, 7];
        name.extend_from_slice(b"DB.shop\x15\x38");
        assert_eq!(read(&name), Ok(Some(("db.shop:5432".to_owned(), 14))));
        let mut v6 = vec![5, 1, 0, 4];
        v6.extend_from_slice(&[0; 15]);
        v6.extend_from_slice(&[1, 1, 187]);
        assert_eq!(read(&v6), Ok(Some(("[::1]:443".to_owned(), 22))));
        let mut literal = vec![5, 1, 0, 3, 3];
        literal.extend_from_slice(b"::1\x00\x50");
        assert_eq!(read(&literal), Ok(Some(("[::1]:80".to_owned(), 10))));
    }

    #[test]
    fn what_is_not_served_is_answered() {
        for (bytes, bad, reply) in [
            (
                &[5, 3, 0, 1, 0, 0, 0, 0, 0, 0][..],
                BadClient::Command(3),
                Some(Reply::NoSuchCommand),
            ),
            (&[5, 2, 0, 1], BadClient::Command(2), Some(Reply::NoSuchCommand)),
            (
                &[5, 1, 0, 9],
                BadClient::AddressType(9),
                Some(Reply::NoSuchAddress),
            ),
            (
                &[5, 1, 0, 1, 1, 1, 1, 1, 0, 0],
                BadClient::Address,
                Some(Reply::Failed),
            ),
            (
                &[5, 1, 0, 3, 1, b'/', 0, 80],
                BadClient::Address,
                Some(Reply::Failed),
            ),
            (&[6], BadClient::Version(6), None),
        ] {
            assert_eq!(request(bytes), Err(bad), "{bytes:?}");
            assert_eq!(bad.reply(), reply);
        }
        assert_eq!(Reply::NotAllowed.bytes(), [5, 2, 0, 1, 0, 0, 0, 0, 0, 0]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            for found in [greeting(&data), request(&data).map(|found| found.map(|(_, used)| used))].into_iter().flatten().flatten() {
                prop_assert!(found <= data.len() && found <= LONGEST);
            }
        }

        #[test]
        fn a_request_is_whole_only_at_its_end(name in "[a-z0-9]{1,60}", port in 1_u16..) {
            let mut bytes = vec![5, 1, 0, 3, u8::try_from(name.len()).unwrap()];
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(&port.to_be_bytes());
            for end in 0..bytes.len() {
                prop_assert_eq!(request(&bytes[..end]), Ok(None));
            }
            let (target, used) = request(&bytes).unwrap().unwrap();
            prop_assert_eq!((target.port(), used), (port, bytes.len()));
        }
    }
}
