//! The HTTP/1.1 request that turns a connection into a WebSocket, and its answer.
//!
//! Written by hand because a chisel server demands the subprotocol in the request but does not repeat it in the answer, which WebSocket libraries refuse.

use crate::error::{BadRequest, ProtocolError};
use aws_lc_rs::digest;
use base64::{Engine, engine::general_purpose::STANDARD};
use std::time::Duration;

/// The subprotocol a chisel server wants to see, exactly.
const SUBPROTOCOL: &str = "chisel-v3";
/// From RFC 6455 section 1.3.
const ACCEPT_GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// A head longer than this is refused; servers and proxies send well under 4 KiB.
pub(crate) const MAX_HEAD: usize = 16 * 1024;

/// What the upgrade request says.
#[derive(Debug)]
pub(crate) struct UpgradeRequest<'a> {
    pub(crate) host: &'a str,
    pub(crate) path_and_query: &'a str,
    pub(crate) headers: &'a [(String, String)],
    /// Random, fresh for each request.
    pub(crate) key: [u8; 16],
}

impl UpgradeRequest<'_> {
    /// The request's bytes.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, BadRequest> {
        let visible = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        let path = if self.path_and_query.is_empty() {
            "/"
        } else {
            self.path_and_query
        };
        if !visible(path) || !path.starts_with('/') {
            return Err(BadRequest::Path);
        }
        let mut host = self.host;
        let mut extra = String::new();
        for (name, value) in self.headers {
            check_header(name, value)?;
            if name.eq_ignore_ascii_case("host") {
                host = value;
            } else {
                extra.push_str(&format!("{name}: {value}\r\n"));
            }
        }
        if !visible(host) {
            return Err(BadRequest::Host);
        }
        let key = STANDARD.encode(self.key);
        Ok(format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n\
             Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\nSec-WebSocket-Version: 13\r\nUpgrade: websocket\r\n{extra}\r\n"
        )
        .into_bytes())
    }
}

fn check_header(name: &str, value: &str) -> Result<(), BadRequest> {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let lower = name.to_ascii_lowercase();
    if name.is_empty()
        || !name.bytes().all(token)
        || value
            .bytes()
            .any(|byte| byte < b' ' && byte != b'\t' || byte == 0x7f)
    {
        return Err(BadRequest::Header {
            name: name.to_owned(),
        });
    }
    if lower.starts_with("sec-websocket-")
        || ["upgrade", "connection", "content-length", "transfer-encoding"].contains(&lower.as_str())
    {
        return Err(BadRequest::ReservedHeader {
            name: name.to_owned(),
        });
    }
    Ok(())
}

/// The head of the server's answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
}

impl Response {
    /// Reads a response head. `None`: not complete yet. With it comes the number of bytes it takes.
    pub(crate) fn parse(data: &[u8]) -> Result<Option<(Self, usize)>, ProtocolError> {
        // Told early, so that a server speaking something else is named at once and not at the timeout.
        let start = data.get(..data.len().min(5)).unwrap_or_default();
        if !b"HTTP/".starts_with(start) {
            return Err(ProtocolError::Http);
        }
        let searched = data.get(..data.len().min(MAX_HEAD)).unwrap_or_default();
        let Some(end) = searched.windows(4).position(|four| four == b"\r\n\r\n") else {
            return if data.len() >= MAX_HEAD {
                Err(ProtocolError::HttpTooLong)
            } else {
                Ok(None)
            };
        };
        let head = searched.get(..end).unwrap_or_default();
        let head = std::str::from_utf8(head).map_err(|_| ProtocolError::Http)?;
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(parse_status).ok_or(ProtocolError::Http)?;
        let mut headers = Vec::new();
        for line in lines {
            let (name, value) = line.split_once(':').ok_or(ProtocolError::Http)?;
            headers.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
        Ok(Some((Self { status, headers }, end + 4)))
    }

    /// The first value of a header, by its lower case name.
    fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// Whether a 101 really answers the request with this key.
    pub(crate) fn check_upgrade(&self, key: [u8; 16]) -> Result<(), ProtocolError> {
        if !self
            .header("upgrade")
            .is_some_and(|value| value.eq_ignore_ascii_case("websocket"))
        {
            return Err(ProtocolError::Upgrade("Upgrade"));
        }
        let has_token = |value: &str| {
            value
                .split(',')
                .any(|token| token.trim().eq_ignore_ascii_case("upgrade"))
        };
        if !self.header("connection").is_some_and(has_token) {
            return Err(ProtocolError::Upgrade("Connection"));
        }
        if self.header("sec-websocket-accept") != Some(accept_value(key).as_str()) {
            return Err(ProtocolError::Upgrade("Sec-WebSocket-Accept"));
        }
        Ok(())
    }

    /// The wait the server asks for: seconds, or a date, which is compared with the answer's own `Date`.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        let value = self.header("retry-after")?;
        if let Ok(seconds) = value.parse::<u32>() {
            return Some(Duration::from_secs(u64::from(seconds)));
        }
        let then = parse_date(value)?;
        let now = parse_date(self.header("date")?)?;
        Some(Duration::from_secs(then.saturating_sub(now)))
    }
}

/// The answer to a WebSocket key (RFC 6455 section 4.2.2).
pub(crate) fn accept_value(key: [u8; 16]) -> String {
    let text = STANDARD.encode(key) + ACCEPT_GUID;
    STANDARD.encode(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()))
}

fn parse_status(line: &str) -> Option<u16> {
    let mut words = line.splitn(3, ' ');
    let version = words.next()?;
    let code = words.next()?;
    let known = version == "HTTP/1.1" || version == "HTTP/1.0";
    let three = code.len() == 3 && code.bytes().all(|byte| byte.is_ascii_digit());
    if known && three { code.parse().ok() } else { None }
}

/// Seconds since 1970 of a date like `Sun, 06 Nov 1994 08:49:37 GMT`.
fn parse_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let mut words = text.split_ascii_whitespace().skip(1);
    let day: u64 = words.next()?.parse().ok()?;
    let month = words.next()?;
    let month = u64::try_from(MONTHS.iter().position(|name| *name == month)?).ok()? + 1;
    let year: u64 = words.next()?.parse().ok()?;
    let mut clock = words.next()?.splitn(3, ':').map(str::parse::<u64>);
    let (hour, minute, second) = (clock.next()?.ok()?, clock.next()?.ok()?, clock.next()?.ok()?);
    if !(1970..=9999).contains(&year) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Days since 1970-01-01, counting years from March so that the leap day is the last.
    let (years, months) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = years * 365 + years / 4 - years / 100 + years / 400 + (months * 153 + 2) / 5 + day - 1;
    Some((days - 719_468) * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests;
