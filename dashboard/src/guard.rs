//! Which names this page answers to, and from which pages it takes requests.
//!
//! A hostile site can point its own name at 127.0.0.1 or at the pod (DNS rebinding); the browser then treats it as
//! the same origin. It cannot forge `Host`, so only names that are ours are answered. IP literals cannot be rebound.

use std::net::IpAddr;
use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use http::header::{HOST, ORIGIN};
use http::uri::Authority;
use http::{HeaderMap, StatusCode, Uri};

/// The rules for `Host` and `Origin`.
#[derive(Clone, Debug)]
pub struct Guard {
    names: Arc<[String]>,
}

/// Why a request was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuardError {
    /// There is no `Host`, or it is not a name of ours.
    Host,
    /// The request comes from a page of another origin.
    Origin,
}

impl std::fmt::Display for GuardError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Host => {
                "this host name is not one of the agent's; use localhost, an IP address or a configured name"
            }
            Self::Origin => "requests from pages of another origin are refused",
        })
    }
}

impl std::error::Error for GuardError {}

impl IntoResponse for GuardError {
    fn into_response(self) -> Response {
        let status = match self {
            Self::Host => StatusCode::MISDIRECTED_REQUEST,
            Self::Origin => StatusCode::FORBIDDEN,
        };
        (status, format!("{self}\n")).into_response()
    }
}

impl Guard {
    pub(crate) fn new(names: impl IntoIterator<Item = String>) -> Self {
        Self {
            names: names.into_iter().map(|name| name.to_ascii_lowercase()).collect(),
        }
    }

    /// Allows a request whose host is ours and whose origin, if it names one, is the same host and port.
    ///
    /// # Errors
    /// Says which of the two rules it broke.
    pub fn check(&self, headers: &HeaderMap, uri: &Uri) -> Result<(), GuardError> {
        let host = host(headers, uri).ok_or(GuardError::Host)?;
        if !self.is_ours(host.host()) {
            return Err(GuardError::Host);
        }
        match headers.get(ORIGIN) {
            None => Ok(()),
            Some(origin) => match origin.to_str().ok().and_then(|origin| origin.parse::<Uri>().ok()) {
                Some(origin) if same_origin(&origin, &host) => Ok(()),
                Some(_) | None => Err(GuardError::Origin),
            },
        }
    }

    fn is_ours(&self, host: &str) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let literal = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost"
            || host.ends_with(".localhost")
            || literal.parse::<IpAddr>().is_ok()
            || self.names.contains(&host)
    }
}

/// HTTP/2 names the host in the URI, HTTP/1 in the header.
fn host(headers: &HeaderMap, uri: &Uri) -> Option<Authority> {
    match uri.authority() {
        Some(authority) => Some(authority.clone()),
        None => headers.get(HOST)?.to_str().ok()?.parse().ok(),
    }
}

fn same_origin(origin: &Uri, host: &Authority) -> bool {
    // Something in front may have taken TLS off: the origin's scheme then tells which port a bare host means.
    let default = if origin.scheme_str() == Some("https") {
        443
    } else {
        80
    };
    origin.authority().is_some_and(|authority| {
        authority.host().eq_ignore_ascii_case(host.host())
            && authority.port_u16().unwrap_or(default) == host.port_u16().unwrap_or(default)
    })
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, Uri};

    use super::{Guard, GuardError};

    fn check(host: &str, origin: Option<&str>) -> Result<(), GuardError> {
        let guard = Guard::new(["Pipeops-Agent.pipeops-system.svc".to_owned()]);
        let mut headers = HeaderMap::new();
        headers.insert("host", HeaderValue::from_str(host).unwrap());
        if let Some(origin) = origin {
            headers.insert("origin", HeaderValue::from_str(origin).unwrap());
        }
        guard.check(&headers, &Uri::from_static("/dashboard"))
    }

    #[test]
    fn our_names_and_addresses_are_answered_others_are_not() {
        let ours = [
            "localhost:8080",
            "LOCALHOST",
            "a.localhost:1",
            "127.0.0.1:8080",
            "[::1]:8080",
            "10.1.2.3",
        ];
        for host in ours.into_iter().chain(["pipeops-agent.pipeops-system.svc:8080"]) {
            assert_eq!(check(host, None), Ok(()), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "",
            "notlocalhost",
        ] {
            assert_eq!(check(host, None), Err(GuardError::Host), "{host}");
        }
    }

    #[test]
    fn an_origin_must_be_the_same_host_and_port() {
        assert_eq!(check("localhost:8080", Some("http://localhost:8080")), Ok(()));
        assert_eq!(check("10.1.2.3", Some("https://10.1.2.3")), Ok(()));
        for origin in [
            "http://localhost:3000",
            "http://localhost",
            "null",
            "http://evil.example:8080",
            "",
        ] {
            assert_eq!(
                check("localhost:8080", Some(origin)),
                Err(GuardError::Origin),
                "{origin}"
            );
        }
    }

    #[test]
    fn a_request_without_a_host_is_refused() {
        let guard = Guard::new([]);
        assert_eq!(
            guard.check(&HeaderMap::new(), &Uri::from_static("/")),
            Err(GuardError::Host)
        );
        let h2 = Uri::from_static("http://localhost:8080/dashboard");
        assert_eq!(guard.check(&HeaderMap::new(), &h2), Ok(()));
    }
}
