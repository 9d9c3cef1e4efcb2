//! What is said to a proxy until it has connected. Nothing is read beyond its answer: the peer speaks only after us.

use std::{io, net::IpAddr};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use secrecy::ExposeSecret as _;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::lookup_host,
};

use super::{Proxy, ProxyError, Scheme};
use crate::dial::DialError;

/// The longest answer to CONNECT; what proxies say in its head fits many times.
const MAX_HEAD: usize = 16 * 1024;
/// RFC 1928: the version, and the two methods we offer.
const SOCKS: u8 = 5;
const NO_AUTH: u8 = 0;
const USER_PASSWORD: u8 = 2;

pub(super) async fn shake(
    proxy: &Proxy,
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    host: &str,
    port: u16,
) -> Result<(), ProxyError> {
    let to = To { proxy, host, port };
    match proxy.scheme {
        Scheme::Http => connect(&to, stream).await,
        Scheme::Socks | Scheme::SocksLocalNames => socks(&to, stream).await,
    }
}

/// Who is asked for whom.
struct To<'a> {
    proxy: &'a Proxy,
    host: &'a str,
    port: u16,
}

impl To<'_> {
    fn io(&self, source: io::Error) -> ProxyError {
        ProxyError::Io {
            proxy: self.proxy.to_string(),
            peer: self.peer(),
            source,
        }
    }

    fn peer(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    fn refused(&self, said: impl Into<String>) -> ProxyError {
        ProxyError::Refused {
            proxy: self.proxy.to_string(),
            peer: self.peer(),
            said: said.into(),
        }
    }

    fn protocol(&self, said: impl Into<String>) -> ProxyError {
        ProxyError::Protocol {
            proxy: self.proxy.to_string(),
            protocol: match self.proxy.scheme {
                Scheme::Http => "HTTP CONNECT",
                Scheme::Socks | Scheme::SocksLocalNames => "SOCKS5",
            },
            said: said.into(),
        }
    }

    fn credentials(&self, said: &str) -> ProxyError {
        ProxyError::Credentials {
            proxy: self.proxy.to_string(),
            said: if said.is_empty() {
                String::new()
            } else {
                format!(" ({said})")
            },
        }
    }
}

async fn connect(to: &To<'_>, stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<(), ProxyError> {
    let peer = to.peer();
    let authorization = to.proxy.user().map_or_else(String::new, |(user, password)| {
        let pair = STANDARD.encode(format!("{user}:{}", password.expose_secret()));
        format!("Proxy-Authorization: Basic {pair}\r\n")
    });
    let request = format!("CONNECT {peer} HTTP/1.1\r\nHost: {peer}\r\n{authorization}\r\n");
    stream
        .write_all(request.as_bytes())
        .await
        .map_err(|error| to.io(error))?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= MAX_HEAD {
            return Err(to.protocol("the head of its answer does not end"));
        }
        // One byte at a time: what follows the head belongs to the peer.
        head.push(stream.read_u8().await.map_err(|error| to.io(error))?);
        if head.len() == 5 && head != b"HTTP/" {
            return Err(to.protocol("its answer is no HTTP"));
        }
    }
    let (status, reason) = status(&head).ok_or_else(|| to.protocol("its answer has no status"))?;
    match status {
        200..=299 => Ok(()),
        407 => Err(to.credentials(&format!("407 {reason}"))),
        _ => Err(to.refused(format!("{status} {reason}"))),
    }
}

/// Status and reason of an answer's head.
pub(super) fn status(head: &[u8]) -> Option<(u16, String)> {
    let line = head.split(|byte| *byte == b'\r').next()?;
    let line = String::from_utf8_lossy(line);
    let mut words = line.splitn(3, ' ');
    let (_version, code) = (words.next()?, words.next()?);
    let reason = words.next().unwrap_or_default().replace(char::is_control, " ");
    Some((code.parse().ok()?, reason.chars().take(120).collect()))
}

async fn socks(to: &To<'_>, stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<(), ProxyError> {
    let io = |error| to.io(error);
    let user = to.proxy.user();
    let greeting: &[u8] = match user {
        None => &[SOCKS, 1, NO_AUTH],
        Some(_) => &[SOCKS, 2, NO_AUTH, USER_PASSWORD],
    };
    stream.write_all(greeting).await.map_err(io)?;
    let mut chosen = [0; 2];
    stream.read_exact(&mut chosen).await.map_err(io)?;
    match (chosen, user) {
        ([SOCKS, NO_AUTH], _) => {}
        ([SOCKS, USER_PASSWORD], Some((user, password))) => {
            // RFC 1929.
            let mut message = vec![1];
            for text in [user, password.expose_secret()] {
                message.push(u8::try_from(text.len()).map_err(|_| to.credentials("too long"))?);
                message.extend_from_slice(text.as_bytes());
            }
            stream.write_all(&message).await.map_err(io)?;
            let mut answer = [0; 2];
            stream.read_exact(&mut answer).await.map_err(io)?;
            if answer != [1, 0] {
                return Err(to.credentials(""));
            }
        }
        ([SOCKS, 0xff], None) => {
            return Err(to.credentials("it wants a user and a password, and none are set"));
        }
        ([SOCKS, 0xff], Some(_)) => return Err(to.credentials("it takes no user and password")),
        ([version, method], _) => {
            return Err(to.protocol(format!("it answered version {version}, method {method}")));
        }
    }
    let mut request = vec![SOCKS, 1, 0];
    address(to, &mut request).await?;
    request.extend_from_slice(&to.port.to_be_bytes());
    stream.write_all(&request).await.map_err(io)?;
    let mut head = [0; 4];
    stream.read_exact(&mut head).await.map_err(io)?;
    let [version, code, _, kind] = head;
    if version != SOCKS {
        return Err(to.protocol(format!("it answered version {version}")));
    }
    if code != 0 {
        return Err(to.refused(meaning(code)));
    }
    let bound = match kind {
        1 => 4,
        4 => 16,
        3 => usize::from(stream.read_u8().await.map_err(io)?),
        other => return Err(to.protocol(format!("it is bound to an address of type {other}"))),
    };
    let mut rest = vec![0; bound + 2];
    stream.read_exact(&mut rest).await.map_err(io)?;
    Ok(())
}

/// Appends the peer's address: as a name for the proxy to resolve, unless the scheme says otherwise.
async fn address(to: &To<'_>, request: &mut Vec<u8>) -> Result<(), ProxyError> {
    let bare = to.host.trim_matches(['[', ']']);
    let mut ip = bare.parse::<IpAddr>().ok();
    if ip.is_none() && to.proxy.scheme == Scheme::SocksLocalNames {
        let resolve = |source| DialError::Resolve {
            host: bare.to_owned(),
            source,
        };
        let found = lookup_host((bare, to.port)).await.map_err(resolve)?.next();
        let none = || resolve(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
        ip = Some(found.ok_or_else(none)?.ip());
    }
    match ip {
        Some(IpAddr::V4(ip)) => {
            request.push(1);
            request.extend_from_slice(&ip.octets());
        }
        Some(IpAddr::V6(ip)) => {
            request.push(4);
            request.extend_from_slice(&ip.octets());
        }
        None => {
            let length =
                u8::try_from(bare.len()).map_err(|_| to.refused("the name is longer than 255 bytes"))?;
            request.extend_from_slice(&[3, length]);
            request.extend_from_slice(bare.as_bytes());
        }
    }
    Ok(())
}

/// RFC 1928 section 6.
fn meaning(code: u8) -> String {
    let words = match code {
        1 => "general failure",
        2 => "not allowed by its rules",
        3 => "network unreachable",
        4 => "host unreachable",
        5 => "connection refused",
        6 => "TTL expired",
        7 => "it does not know CONNECT",
        8 => "it does not know this type of address",
        _ => return format!("code {code}"),
    };
    words.to_owned()
}
