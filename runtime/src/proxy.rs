//! TCP to a peer through a proxy: HTTP CONNECT or SOCKS5, named by a setting or by the usual variables.
//!
//! ```text
//!   setting ─┐                             ┌─► CONNECT host:port ─┐
//!   HTTPS_PROXY, NO_PROXY … ─► which one? ─┼─► SOCKS5 host port ──┼─► the peer's TCP; TLS runs inside
//!                                          └─► none ──────────────┘
//! ```

mod env;
mod handshake;

use std::{fmt, io, time::Duration};

use secrecy::SecretString;
use tokio::net::TcpStream;
use url::{Host, Url};

use crate::dial::{self, DialError, url_is_loopback};

pub use env::ProxyEnv;

/// Ports of proxies whose URL names none (RFC 9110 for http, RFC 1928 for SOCKS).
const HTTP_PORT: u16 = 80;
const SOCKS_PORT: u16 = 1080;

/// How a proxy is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// `http://`: the CONNECT method.
    Http,
    /// `socks://` and `socks5h://`: SOCKS5, and the proxy resolves names.
    Socks,
    /// `socks5://`: SOCKS5, and names are resolved here.
    SocksLocalNames,
}

/// A proxy.
#[derive(Clone)]
pub struct Proxy {
    scheme: Scheme,
    host: String,
    port: u16,
    loopback: bool,
    user: Option<(String, SecretString)>,
}

/// Why a text names no proxy. The text itself is left out, because it may hold a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadProxy {
    /// No URL.
    #[error("the proxy is no URL ({0}): write http://[user:password@]host:port or socks5h://…")]
    Url(String),
    /// A scheme we do not speak.
    #[error("the proxy's scheme {0:?} is not spoken: use http (CONNECT), socks5h or socks5")]
    Scheme(String),
    /// No host.
    #[error("the proxy's URL names no host")]
    Host,
    /// The user's name or password does not fit.
    #[error("the proxy's user or password is not text, or too long for SOCKS5 (255 bytes each)")]
    User,
}

/// Why no connection came about through a proxy.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The proxy, or the peer when there is no proxy, is not reached.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The connection to the proxy broke.
    #[error("the proxy {proxy} closed the connection before it had connected to {peer}")]
    Io {
        /// The proxy.
        proxy: String,
        /// Who was asked for.
        peer: String,
        /// What the system said.
        source: io::Error,
    },
    /// It took too long.
    #[error("the proxy {proxy} did not connect to {peer} within {timeout:?}")]
    Timeout {
        /// The proxy.
        proxy: String,
        /// Who was asked for.
        peer: String,
        /// How long was waited.
        timeout: Duration,
    },
    /// It wants other credentials. Only a change of them helps.
    #[error("the proxy {proxy} refused our user and password{said}: check the proxy setting")]
    Credentials {
        /// The proxy.
        proxy: String,
        /// Its words, in parentheses.
        said: String,
    },
    /// It will or can not connect.
    #[error("the proxy {proxy} did not connect to {peer}: {said}")]
    Refused {
        /// The proxy.
        proxy: String,
        /// Who was asked for.
        peer: String,
        /// Its words.
        said: String,
    },
    /// It speaks something else.
    #[error("the proxy {proxy} does not speak {protocol}: {said}")]
    Protocol {
        /// The proxy.
        proxy: String,
        /// What was expected.
        protocol: &'static str,
        /// What came instead.
        said: String,
    },
}

impl Proxy {
    /// Reads a proxy's URL; `host:port` alone means `http://`.
    ///
    /// # Errors
    /// Why it is none.
    pub fn parse(text: &str) -> Result<Self, BadProxy> {
        let text = text.trim();
        let whole = if text.contains("://") {
            text.to_owned()
        } else {
            format!("http://{text}")
        };
        let url = Url::parse(&whole).map_err(|error| BadProxy::Url(error.to_string()))?;
        let (scheme, default_port) = match url.scheme() {
            "http" => (Scheme::Http, HTTP_PORT),
            "socks" | "socks5h" => (Scheme::Socks, SOCKS_PORT),
            "socks5" => (Scheme::SocksLocalNames, SOCKS_PORT),
            other => return Err(BadProxy::Scheme(other.to_owned())),
        };
        let host = match url.host() {
            Some(Host::Domain("")) | None => return Err(BadProxy::Host),
            Some(host) => host.to_string(),
        };
        let user = match (url.username(), url.password()) {
            ("", None) => None,
            (user, password) => {
                let user = decoded(user).ok_or(BadProxy::User)?;
                let password = decoded(password.unwrap_or_default()).ok_or(BadProxy::User)?;
                let too_long = user.len() > 255 || password.len() > 255;
                if scheme != Scheme::Http && too_long {
                    return Err(BadProxy::User);
                }
                Some((user, SecretString::from(password)))
            }
        };
        // The standard port of http is left out by the parser, and unknown to it for the others.
        let port = url.port().unwrap_or(default_port);
        // Not every scheme has its host read as an address.
        let loopback = url_is_loopback(&url)
            || host == "localhost"
            || host
                .trim_matches(['[', ']'])
                .parse::<std::net::IpAddr>()
                .is_ok_and(|ip| ip.to_canonical().is_loopback());
        Ok(Self {
            scheme,
            host,
            port,
            loopback,
            user,
        })
    }

    /// Whether the proxy is on this machine.
    pub fn is_loopback(&self) -> bool {
        self.loopback
    }

    fn user(&self) -> Option<(&str, &SecretString)> {
        self.user
            .as_ref()
            .map(|(user, password)| (user.as_str(), password))
    }
}

impl PartialEq for Proxy {
    fn eq(&self, other: &Self) -> bool {
        use secrecy::ExposeSecret as _;
        let user = |proxy: &Self| proxy.user.as_ref().map(|(user, _)| user.clone());
        let password = |proxy: &Self| {
            proxy
                .user
                .as_ref()
                .map(|(_, password)| password.expose_secret().as_bytes().to_vec())
        };
        let same_password = crate::secret::same(
            &password(self).unwrap_or_default(),
            &password(other).unwrap_or_default(),
        );
        (self.scheme, &self.host, self.port) == (other.scheme, &other.host, other.port)
            && user(self) == user(other)
            && same_password
    }
}

impl Eq for Proxy {}

/// Without user and password.
impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::Http => "http",
            Scheme::Socks => "socks5h",
            Scheme::SocksLocalNames => "socks5",
        };
        write!(f, "{scheme}://{}:{}", self.host, self.port)
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}

/// Undoes percent-encoding; `None` when the result is no text or holds control characters.
fn decoded(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        let hex = after.split_first_chunk::<2>().and_then(|(pair, after)| {
            Some((
                u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?,
                after,
            ))
        });
        match hex {
            Some((value, after)) if *byte == b'%' => {
                out.push(value);
                rest = after;
            }
            _ => out.push(*byte),
        }
    }
    let text = String::from_utf8(out).ok()?;
    (!text.contains(char::is_control)).then_some(text)
}

/// Connects to `host:port`, through `proxy` when there is one. `timeout` is for the connection and for the proxy's
/// answer, each.
///
/// # Errors
/// See [`ProxyError`].
pub async fn tcp(
    proxy: Option<&Proxy>,
    host: &str,
    port: u16,
    timeout: Duration,
) -> Result<TcpStream, ProxyError> {
    let Some(proxy) = proxy else {
        return Ok(dial::tcp(host, port, timeout).await?);
    };
    let mut stream = dial::tcp(&proxy.host, proxy.port, timeout).await?;
    let peer = format!("{host}:{port}");
    let shaking = handshake::shake(proxy, &mut stream, host, port);
    match tokio::time::timeout(timeout, shaking).await {
        Ok(Ok(())) => Ok(stream),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(ProxyError::Timeout {
            proxy: proxy.to_string(),
            peer,
            timeout,
        }),
    }
}

#[cfg(test)]
mod tests;
