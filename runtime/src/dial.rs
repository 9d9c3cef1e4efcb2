//! TCP to a peer, by name.

use std::{
    future::pending,
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    net::{TcpStream, lookup_host},
    time::sleep,
};
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
        let connected = first_to_answer(addresses).await;
        connected.map_err(|source| DialError::Connect {
            host: host.to_owned(),
            port,
            source,
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

/// How long one address is waited for before the next one is tried beside it (RFC 8305, section 5).
const HEAD_START: Duration = Duration::from_millis(250);

/// Connects to the first of several addresses of one peer that answers, so that one that drops every packet does not
/// cost the whole timeout. `TCP_NODELAY` is set.
///
/// # Errors
/// What the last address said.
pub async fn first_to_answer(addresses: impl IntoIterator<Item = SocketAddr>) -> io::Result<TcpStream> {
    let mut rest = addresses.into_iter().fuse();
    let mut trying = FuturesUnordered::new();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        let next = rest.next();
        let more = next.is_some();
        trying.extend(next.map(TcpStream::connect));
        if trying.is_empty() {
            return Err(last);
        }
        let head_start = async {
            if more {
                sleep(HEAD_START).await;
            } else {
                pending::<()>().await;
            }
        };
        tokio::select! {
            tried = trying.next() => match tried {
                Some(Ok(stream)) => {
                    stream.set_nodelay(true).ok();
                    return Ok(stream);
                }
                Some(Err(error)) => last = error,
                None => {}
            },
            () = head_start => {}
        }
    }
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
    async fn an_address_that_drops_packets_does_not_hold_up_the_next() {
        let full = tokio::net::TcpSocket::new_v4().unwrap();
        full.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let full = full.listen(1).unwrap();
        let silent = full.local_addr().unwrap();
        // Nobody accepts: when the queue is full, the kernel drops what asks for more.
        let mut queued = Vec::new();
        while let Ok(Ok(tcp)) =
            tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(silent)).await
        {
            queued.push(tcp);
            assert!(queued.len() < 100, "the queue never fills");
        }
        let good = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let answers = good.local_addr().unwrap();
        let connected = tokio::time::timeout(Duration::from_secs(10), first_to_answer([silent, answers]));
        assert_eq!(connected.await.unwrap().unwrap().peer_addr().unwrap(), answers);
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
