//! TCP to a peer, by name.

use std::{io, net::IpAddr, time::Duration};

use tokio::net::{TcpStream, lookup_host};
use url::{Host, Url};

/// Why no connection came about. All of it is worth another try.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name has no address.
    #[error("cannot resolve {host}: check the name and the DNS it is asked of")]
    Resolve {
        /// What was asked for.
        host: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// Every address refused.
    #[error("cannot connect to {host}:{port}")]
    Connect {
        /// The peer's name.
        host: String,
        /// The peer's port.
        port: u16,
        /// What the last address said.
        source: io::Error,
    },
    /// Nothing came back in time.
    #[error(
        "no answer from {host}:{port} within {timeout:?}: a firewall or NetworkPolicy may drop the packets"
    )]
    Timeout {
        /// The peer's name.
        host: String,
        /// The peer's port.
        port: u16,
        /// How long was waited for all addresses together.
        timeout: Duration,
    },
}

/// Connects to `host`, trying each of its addresses within one total `timeout`. The name is resolved anew at each
/// call, so that a moved peer is found. `TCP_NODELAY` is set: what we carry waits for no acknowledgement.
///
/// # Errors
/// See [`DialError`].
pub async fn tcp(host: &str, port: u16, timeout: Duration) -> Result<TcpStream, DialError> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let work = async {
        let resolve = |source| DialError::Resolve {
            host: host.to_owned(),
            source,
        };
        let addresses = lookup_host((bare, port)).await.map_err(resolve)?;
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in addresses {
            match TcpStream::connect(address).await {
                Ok(stream) => {
                    stream.set_nodelay(true).ok();
                    return Ok(stream);
                }
                Err(error) => last = error,
            }
        }
        Err(DialError::Connect {
            host: host.to_owned(),
            port,
            source: last,
        })
    };
    tokio::time::timeout(timeout, work).await.unwrap_or_else(|_| {
        Err(DialError::Timeout {
            host: host.to_owned(),
            port,
            timeout,
        })
    })
}

/// Whether a URL names this host itself, so that what is sent to it does not leave the pod.
pub fn url_is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => IpAddr::V6(address).to_canonical().is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn connects_by_name_and_by_bracketed_address() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        for host in ["localhost", "127.0.0.1", "[::ffff:127.0.0.1]"] {
            tcp(host, port, Duration::from_secs(10)).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_refusal_names_the_peer() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let error = tcp("127.0.0.1", port, Duration::from_secs(10)).await.unwrap_err();
        assert!(
            matches!(error, DialError::Connect { .. }) && error.to_string().contains("127.0.0.1"),
            "{error}"
        );
    }

    #[test]
    fn loopback_is_known_in_every_spelling() {
        for (url, expected) in [
            ("http://localhost:1/", true),
            ("http://127.8.0.1/", true),
            ("ws://[::1]:9/", true),
            ("ws://[::ffff:127.0.0.1]:9/", true),
            ("http://api.localhost/", true),
            ("http://localhost.example.com/", false),
            ("http://10.0.0.1/", false),
        ] {
            assert_eq!(url_is_loopback(&Url::parse(url).unwrap()), expected, "{url}");
        }
    }
}
