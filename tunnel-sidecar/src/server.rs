//! Where the chisel server is, as its client reads an address: `ws://`, `wss://`, `http://`, `https://` or a bare
//! host, which means `http://`.

use std::fmt;

use runtime::dial::url_is_loopback;
use url::{Host, Url};

/// Ports that chisel adds when the address has none.
const HTTP_PORT: u16 = 80;
const HTTPS_PORT: u16 = 443;

/// A chisel server's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    tls: bool,
    loopback: bool,
    host: String,
    port: u16,
    path: String,
}

/// Why an address cannot be used. The address itself is left out where it may hold a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadServer {
    /// Nothing is set.
    #[error("the tunnel server is not set: give its address, for example wss://tunnel.example.com")]
    Empty,
    /// Not an address.
    #[error("the tunnel server's address is not a URL ({0}): write wss://host[:port][/path]")]
    Url(String),
    /// Another scheme.
    #[error(
        "the tunnel server's address has scheme {0:?}: use wss or https, or ws or http with a fingerprint"
    )]
    Scheme(String),
    /// A password in the address.
    #[error("the tunnel server's address holds a user or password: give them as credentials instead")]
    UserInfo,
}

impl Server {
    /// Reads an address.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn parse(text: &str) -> Result<Self, BadServer> {
        let text = text.trim();
        if text.is_empty() {
            return Err(BadServer::Empty);
        }
        // `host:8080` would be read as a URL with scheme `host`, so the scheme is looked for by its slashes.
        let whole = if text.contains("://") {
            text.to_owned()
        } else {
            format!("http://{text}")
        };
        let url = Url::parse(&whole).map_err(|error| BadServer::Url(error.to_string()))?;
        let tls = match url.scheme() {
            "https" | "wss" => true,
            "http" | "ws" => false,
            other => return Err(BadServer::Scheme(other.to_owned())),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(BadServer::UserInfo);
        }
        let host = match url.host() {
            Some(Host::Domain(name)) => name.to_owned(),
            Some(Host::Ipv4(address)) => address.to_string(),
            Some(Host::Ipv6(address)) => format!("[{address}]"),
            None => return Err(BadServer::Url("it has no host".to_owned())),
        };
        let port = url.port().unwrap_or(if tls { HTTPS_PORT } else { HTTP_PORT });
        let path = url.query().map_or_else(
            || url.path().to_owned(),
            |query| format!("{}?{query}", url.path()),
        );
        Ok(Self {
            tls,
            loopback: url_is_loopback(&url),
            host,
            port,
            path,
        })
    }

    /// Whether TLS is spoken.
    pub fn tls(&self) -> bool {
        self.tls
    }

    /// Whether it is this machine, so that nothing leaves the pod.
    pub fn loopback(&self) -> bool {
        self.loopback
    }

    /// The host, IPv6 in brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Path and query of the upgrade request.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// `host:port`, as the `Host` header of chisel always has it, and as a known server is stored.
    pub fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "wss" } else { "ws" };
        // The query may hold a secret of a proxy in front, so it is not shown.
        let path = self.path.split('?').next().unwrap_or_default();
        write!(
            f,
            "{scheme}://{}:{}{}",
            self.host,
            self.port,
            if path == "/" { "" } else { path }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn addresses_are_read_as_chisel_reads_them() {
        for (text, shown, authority, path) in [
            (
                "tunnel.example.com",
                "ws://tunnel.example.com:80",
                "tunnel.example.com:80",
                "/",
            ),
            (
                "tunnel.example.com:8080/sub",
                "ws://tunnel.example.com:8080/sub",
                "tunnel.example.com:8080",
                "/sub",
            ),
            (
                "https://Tunnel.example.com",
                "wss://tunnel.example.com:443",
                "tunnel.example.com:443",
                "/",
            ),
            (
                "wss://t.example.com:443/a?b=c",
                "wss://t.example.com:443/a",
                "t.example.com:443",
                "/a?b=c",
            ),
            (
                "ws://t.example.com:443",
                "ws://t.example.com:443",
                "t.example.com:443",
                "/",
            ),
            ("http://[::1]:1", "ws://[::1]:1", "[::1]:1", "/"),
        ] {
            let server = Server::parse(text).unwrap();
            assert_eq!(
                (
                    server.to_string().as_str(),
                    server.authority().as_str(),
                    server.path()
                ),
                (shown, authority, path)
            );
        }
    }

    #[test]
    fn loopback_is_known() {
        for (text, expected) in [
            ("127.0.0.1:80", true),
            ("localhost", true),
            ("ws://[::1]", true),
            ("10.0.0.1", false),
        ] {
            assert_eq!(Server::parse(text).unwrap().loopback(), expected, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_used_is_said_without_the_password() {
        assert_eq!(Server::parse(" "), Err(BadServer::Empty));
        assert_eq!(
            Server::parse("socks://a"),
            Err(BadServer::Scheme("socks".to_owned()))
        );
        for text in ["https://user:canary@host", "https://canary@host"] {
            let error = Server::parse(text).unwrap_err();
            assert_eq!(error, BadServer::UserInfo);
            assert!(!error.to_string().contains("canary"));
        }
        assert!(matches!(Server::parse("https://"), Err(BadServer::Url(_))));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".*") {
            if let Ok(server) = Server::parse(&text) {
                prop_assert!(!server.path().is_empty());
            }
        }
    }
}
