//! Remotes as chisel's command line spells them: `[R:][listen-host:][listen-port:][host:]port[/udp]`, or `socks` at
//! the end.
//!
//! Read from the back, as chisel 1.11 does: the last port and host are those that are dialled, what stands before
//! them is listened on, and what is missing is taken from behind. Two differences on purpose: what chisel's reader
//! skips or overwrites in silence (empty parts, a third port) is refused, and a forward remote without a listening
//! host listens on the loopback, because here it would otherwise be open to the whole cluster.

use chisel_ssh::chisel::Protocol;

/// Where chisel's server listens when a reverse remote names no host.
pub const ANY_HOST: &str = "0.0.0.0";
/// Where SOCKS listens when nothing else is said, on either side; and where our own listeners do.
pub const LOOPBACK: &str = "127.0.0.1";
/// The port of SOCKS when none is named.
const SOCKS_PORT: u16 = 1080;
/// The longest spelling that is read: two names of 253 letters, two ports, and the signs between.
const LONGEST: usize = 600;

/// One remote, with everything that was left out filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spelling {
    /// The server listens (`R:`), not this process.
    pub reverse: bool,
    /// Host of the listener, IPv6 in brackets.
    pub listen_host: String,
    /// Port of the listener.
    pub listen_port: u16,
    /// Streams or datagrams.
    pub protocol: Protocol,
    /// What the other side dials.
    pub dials: Dials,
}

/// What is dialled for a connection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dials {
    /// An address; IPv6 in brackets.
    Address {
        /// Host.
        host: String,
        /// Port.
        port: u16,
    },
    /// Whatever the user asks a SOCKS5 server for.
    Socks,
}

/// Why a spelling is refused; the text goes behind the spelling itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSpelling {
    /// Nothing, or far too much.
    #[error("is no remote: write [R:][listen-host:][listen-port:][host:]port[/udp]")]
    Shape,
    /// `::` outside brackets, or a colon at an end.
    #[error("has an empty part: write each part, and IPv6 addresses in brackets, like R:2222:[::1]:22")]
    EmptyPart,
    /// A bracket that is not closed, or what is in it is no address.
    #[error("has {0:?}, which is no IPv6 address in brackets")]
    Brackets(String),
    /// More than four.
    #[error("has more than four parts; IPv6 addresses need brackets, like R:2222:[::1]:22")]
    TooManyParts,
    /// The port 0.
    #[error("names port 0: the server would pick a port and tell nobody which; name one")]
    PortZero,
    /// A number that is no port.
    #[error("has the number {0}, which is no port between 1 and 65535")]
    Port(String),
    /// The last part is no port.
    #[error("does not end in a port or in socks")]
    NoPort,
    /// A port, or a host, too many.
    #[error("names a {0} once too often: listen-host:listen-port:host:port is the longest form")]
    Twice(&'static str),
    /// A part that can be neither.
    #[error("has {0:?}, which is neither a host nor a port")]
    Host(String),
    /// `/TCP`.
    #[error("ends a part in {0:?}: protocols are written in lower case, /tcp or /udp")]
    UpperCase(String),
    /// Something else behind a slash.
    #[error("names the protocol {0:?}; there are only /tcp and /udp")]
    Protocol(String),
    /// TCP on one side, UDP on the other.
    #[error("listens with one protocol and dials with the other, which chisel cannot do")]
    CrossProtocol,
    /// SOCKS over UDP.
    #[error("asks for SOCKS over UDP; chisel has SOCKS over TCP only")]
    SocksUdp,
    /// `stdio`.
    #[error("uses stdio, which is for a person at a terminal and not for an agent")]
    Stdio,
}

impl std::str::FromStr for Spelling {
    type Err = BadSpelling;

    fn from_str(text: &str) -> Result<Self, BadSpelling> {
        let text = text.trim();
        let (reverse, rest) = match text.strip_prefix("R:") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        if rest.is_empty() || rest.len() > LONGEST {
            return Err(BadSpelling::Shape);
        }
        let parts = split(rest)?;
        Found::read(&parts)?.finish(reverse)
    }
}

/// What was read so far, from the back.
#[derive(Default)]
struct Found<'a> {
    socks: bool,
    dial_port: Option<u16>,
    listen_port: Option<u16>,
    dial_host: Option<&'a str>,
    listen_host: Option<&'a str>,
    dial_protocol: Option<Protocol>,
    listen_protocol: Option<Protocol>,
}

impl<'a> Found<'a> {
    fn read(parts: &[&'a str]) -> Result<Self, BadSpelling> {
        let mut found = Self::default();
        for (from_back, part) in parts.iter().rev().enumerate() {
            if from_back == 0 && *part == "socks" {
                found.socks = true;
                continue;
            }
            if *part == "stdio" {
                return Err(BadSpelling::Stdio);
            }
            let (head, protocol) = protocol(part)?;
            found.note_protocol(protocol)?;
            match port(head)? {
                Some(number) => found.note_port(number)?,
                None => found.note_host(host(head)?)?,
            }
        }
        Ok(found)
    }

    fn note_protocol(&mut self, protocol: Option<Protocol>) -> Result<(), BadSpelling> {
        let Some(protocol) = protocol else { return Ok(()) };
        let place = if self.dial_port.is_none() && self.dial_protocol.is_none() {
            &mut self.dial_protocol
        } else {
            &mut self.listen_protocol
        };
        match place.replace(protocol) {
            None => Ok(()),
            Some(_) => Err(BadSpelling::Twice("protocol")),
        }
    }

    fn note_port(&mut self, number: u16) -> Result<(), BadSpelling> {
        let place = if self.socks || self.dial_port.is_some() {
            &mut self.listen_port
        } else {
            &mut self.dial_port
        };
        match place.replace(number) {
            None => Ok(()),
            Some(_) => Err(BadSpelling::Twice("port")),
        }
    }

    fn note_host(&mut self, name: &'a str) -> Result<(), BadSpelling> {
        if !self.socks && self.dial_port.is_none() {
            return Err(BadSpelling::NoPort);
        }
        let place = if self.socks || self.dial_host.is_some() {
            &mut self.listen_host
        } else {
            &mut self.dial_host
        };
        match place.replace(name) {
            None => Ok(()),
            Some(_) => Err(BadSpelling::Twice("host")),
        }
    }

    fn finish(self, reverse: bool) -> Result<Spelling, BadSpelling> {
        let dial_protocol = self.dial_protocol.unwrap_or_default();
        if self.socks {
            if dial_protocol == Protocol::Udp {
                return Err(BadSpelling::SocksUdp);
            }
            return Ok(Spelling {
                reverse,
                listen_host: self.listen_host.unwrap_or(LOOPBACK).to_owned(),
                listen_port: self.listen_port.unwrap_or(SOCKS_PORT),
                protocol: Protocol::Tcp,
                dials: Dials::Socks,
            });
        }
        if self
            .listen_protocol
            .is_some_and(|protocol| protocol != dial_protocol)
        {
            return Err(BadSpelling::CrossProtocol);
        }
        let port = self.dial_port.ok_or(BadSpelling::NoPort)?;
        let default = if reverse { ANY_HOST } else { LOOPBACK };
        Ok(Spelling {
            reverse,
            listen_host: self.listen_host.unwrap_or(default).to_owned(),
            listen_port: self.listen_port.unwrap_or(port),
            protocol: dial_protocol,
            dials: Dials::Address {
                host: self.dial_host.unwrap_or(LOOPBACK).to_owned(),
                port,
            },
        })
    }
}

/// Splits at colons outside of brackets.
fn split(text: &str) -> Result<Vec<&str>, BadSpelling> {
    let mut parts = Vec::new();
    let mut rest = text;
    loop {
        let end = if rest.starts_with('[') {
            let close = rest
                .find(']')
                .ok_or_else(|| BadSpelling::Brackets(rest.to_owned()))?;
            rest.get(close..)
                .and_then(|tail| tail.find(':'))
                .map(|colon| close + colon)
        } else {
            rest.find(':')
        };
        let part = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
        if part.is_empty() {
            return Err(BadSpelling::EmptyPart);
        }
        parts.push(part);
        match end {
            Some(end) => rest = rest.get(end + 1..).unwrap_or_default(),
            None => break,
        }
    }
    if parts.len() > 4 {
        return Err(BadSpelling::TooManyParts);
    }
    Ok(parts)
}

/// Takes a protocol off the end of a part.
fn protocol(part: &str) -> Result<(&str, Option<Protocol>), BadSpelling> {
    let Some((head, word)) = part.rsplit_once('/') else {
        return Ok((part, None));
    };
    match word {
        "tcp" => Ok((head, Some(Protocol::Tcp))),
        "udp" => Ok((head, Some(Protocol::Udp))),
        _ if word.eq_ignore_ascii_case("tcp") || word.eq_ignore_ascii_case("udp") => {
            Err(BadSpelling::UpperCase(format!("/{word}")))
        }
        _ => Err(BadSpelling::Protocol(word.to_owned())),
    }
}

/// The port a part is; `None` when it is no number.
fn port(part: &str) -> Result<Option<u16>, BadSpelling> {
    if part.is_empty() || !part.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match part.parse::<u16>() {
        Ok(0) => Err(BadSpelling::PortZero),
        Ok(number) => Ok(Some(number)),
        Err(_) => Err(BadSpelling::Port(part.to_owned())),
    }
}

fn host(part: &str) -> Result<&str, BadSpelling> {
    if let Some(inner) = part.strip_prefix('[') {
        return match inner.strip_suffix(']').map(str::parse::<std::net::Ipv6Addr>) {
            Some(Ok(_)) => Ok(part),
            Some(Err(_)) | None => Err(BadSpelling::Brackets(part.to_owned())),
        };
    }
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if part.is_empty() || part.len() > 253 || !part.bytes().all(letter) {
        return Err(BadSpelling::Host(part.to_owned()));
    }
    Ok(part)
}

impl Spelling {
    /// A name for metrics, reports and the channel: the same for the same listener, whatever else is configured.
    pub fn name(&self) -> String {
        let side = if self.reverse { "remote" } else { "local" };
        let usual = match (&self.dials, self.reverse) {
            (Dials::Address { .. }, true) => ANY_HOST,
            (Dials::Socks, _) | (Dials::Address { .. }, false) => LOOPBACK,
        };
        let mut name = side.to_owned();
        if self.listen_host != usual {
            let host = self.listen_host.trim_matches(['[', ']']).replace(':', "_");
            name.push('-');
            // 63 letters are the limit of a name; what is cut off is caught as a name used twice.
            name.extend(host.chars().take(40));
        }
        name.push_str(&format!("-{}", self.listen_port));
        if self.protocol == Protocol::Udp {
            name.push_str("-udp");
        }
        name
    }
}

impl std::fmt::Display for Dials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address { host, port } => write!(f, "{host}:{port}"),
            Self::Socks => f.write_str("socks"),
        }
    }
}

#[cfg(test)]
mod tests;
