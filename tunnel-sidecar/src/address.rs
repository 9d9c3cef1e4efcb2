//! A host and a port, in the one spelling that two spellings of the same thing have in common.

use std::{fmt, net::IpAddr, str::FromStr};

/// A host (name or address) and a port.
///
/// Names are lower case without a closing dot, addresses are in their shortest form, IPv6 without brackets, so that
/// equality means equality.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    host: String,
    port: u16,
}

/// Why a text is no `host:port`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadHostPort {
    /// There is no colon.
    #[error("has no port: write host:port")]
    NoPort,
    /// What follows the last colon is no port.
    #[error("has no port between 1 and 65535 after its last colon")]
    Port,
    /// The host is empty, has a space, or is an IPv6 address without brackets.
    #[error("has no valid host: write a name, an IPv4 address, or an IPv6 address in brackets")]
    Host,
}

impl HostPort {
    /// From its parts; brackets around an IPv6 address are allowed.
    ///
    /// # Errors
    /// When the host is not one or the port is 0.
    pub fn new(host: &str, port: u16) -> Result<Self, BadHostPort> {
        if port == 0 {
            return Err(BadHostPort::Port);
        }
        Ok(Self {
            host: canonical_host(host).ok_or(BadHostPort::Host)?,
            port,
        })
    }

    /// The host without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The host as an address, if it is one.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

/// One spelling for each host; `None` when it is none.
fn canonical_host(host: &str) -> Option<String> {
    if let Some(inner) = host.strip_prefix('[') {
        let address: std::net::Ipv6Addr = inner.strip_suffix(']')?.parse().ok()?;
        return Some(address.to_string());
    }
    if let Ok(address) = host.parse::<IpAddr>() {
        return Some(address.to_string());
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (!name.is_empty() && name.len() <= 253 && name.chars().all(allowed)).then(|| name.to_ascii_lowercase())
}

impl FromStr for HostPort {
    type Err = BadHostPort;

    fn from_str(text: &str) -> Result<Self, BadHostPort> {
        let (host, port) = text.trim().rsplit_once(':').ok_or(BadHostPort::NoPort)?;
        // An unbracketed IPv6 address would silently lose its last group to the port.
        if host.contains(':') && !host.starts_with('[') {
            return Err(BadHostPort::Host);
        }
        let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        let port = port.parse().ok().filter(|_| digits).ok_or(BadHostPort::Port)?;
        Self::new(host, port)
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<String, BadHostPort> {
        text.parse::<HostPort>().map(|address| address.to_string())
    }

    #[test]
    fn spellings_of_the_same_thing_are_equal() {
        assert_eq!(read("LocalHost.:8080").unwrap(), "localhost:8080");
        assert_eq!(read("[0:0::1]:8080").unwrap(), "[::1]:8080");
        assert_eq!(read(" 127.0.0.1:1 ").unwrap(), "127.0.0.1:1");
        assert_eq!(read("[::FFFF:7f00:1]:1").unwrap(), "[::ffff:127.0.0.1]:1");
    }

    #[test]
    fn what_is_no_address_is_said() {
        assert_eq!(read("localhost"), Err(BadHostPort::NoPort));
        for text in ["a:0", "a:65536", "a:", "a:+1", "a:-1", "a: 1"] {
            assert_eq!(read(text), Err(BadHostPort::Port), "{text}");
        }
        for text in [
            ":1",
            "::1:80",
            "[::1:80",
            "[a]:1",
            "a b:1",
            "a/b:1",
            "user@host:1",
            "[]:1",
        ] {
            assert_eq!(read(text), Err(BadHostPort::Host), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_and_what_is_shown_is_read_again(text in ".*") {
            if let Ok(address) = text.parse::<HostPort>() {
                prop_assert_eq!(address.to_string().parse::<HostPort>(), Ok(address));
            }
        }
    }
}
