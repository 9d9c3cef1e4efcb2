//! TCP to a target, or a socket for its datagrams: resolved anew each time, each address checked against the never-list, then dialled as checked.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use runtime::dial::first_to_answer;
use tokio::net::{TcpStream, lookup_host};

use crate::{
    address::HostPort,
    never::{Forbidden, Never},
};

/// Why a target was not reached. The text goes to the peer as the reason of the refused channel.
#[derive(Debug, thiserror::Error)]
pub enum Unreached {
    /// It leads where nothing may lead.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// The owner's rules do not let it.
    #[error("{0} leads to {1}, which is not in tunnel.socks_targets")]
    NotAllowed(HostPort, IpAddr),
    /// DNS does not know it.
    #[error("cannot resolve {target}: {source}")]
    Resolve {
        /// The target.
        target: HostPort,
        /// What the resolver said.
        source: io::Error,
    },
    /// Nobody answers there.
    #[error("cannot connect to {target}: {source}")]
    Connect {
        /// The target.
        target: HostPort,
        /// What the last address said.
        source: io::Error,
    },
    /// The system has no socket left for us.
    #[error("cannot connect to {target}: this process has no file descriptor left ({source})")]
    Exhausted {
        /// The target.
        target: HostPort,
        /// What the system said.
        source: io::Error,
    },
    /// It took too long.
    #[error("{target} did not answer within {after:?}")]
    Timeout {
        /// The target.
        target: HostPort,
        /// How long was waited.
        after: Duration,
    },
}

/// Connects to `target` within `timeout`.
///
/// One forbidden address among several refuses the whole: a name that sometimes leads to a metadata service is not
/// a target, and skipping the address would hide that.
///
/// # Errors
/// See [`Unreached`].
pub async fn reach(target: &HostPort, never: &Never, timeout: Duration) -> Result<TcpStream, Unreached> {
    reach_where(target, never, timeout, |_| true).await
}

/// The same where each address needs a permission of its own, too.
///
/// # Errors
/// See [`Unreached`].
pub async fn reach_where(
    target: &HostPort,
    never: &Never,
    timeout: Duration,
    allowed: impl Fn(IpAddr) -> bool,
) -> Result<TcpStream, Unreached> {
    let work = async {
        let addresses = resolve(target, never).await?;
        if let Some(address) = addresses.iter().find(|address| !allowed(address.ip())) {
            return Err(Unreached::NotAllowed(target.clone(), address.ip()));
        }
        connected(addresses).await.map_err(|source| {
            let target = target.clone();
            if is_exhausted(&source) {
                Unreached::Exhausted { target, source }
            } else {
                Unreached::Connect { target, source }
            }
        })
    };
    tokio::time::timeout(timeout, work).await.unwrap_or_else(|_| {
        Err(Unreached::Timeout {
            target: target.clone(),
            after: timeout,
        })
    })
}

/// The common case is one address, and no other to race it against.
async fn connected(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let [only] = addresses.as_slice() else {
        return first_to_answer(addresses).await;
    };
    let stream = TcpStream::connect(only).await?;
    stream.set_nodelay(true).ok();
    Ok(stream)
}

/// A socket that exchanges datagrams with `target` and with nobody else.
///
/// # Errors
/// See [`Unreached`].
pub async fn reach_datagrams(
    target: &HostPort,
    never: &Never,
    timeout: Duration,
) -> Result<tokio::net::UdpSocket, Unreached> {
    let work = async {
        let addresses = resolve(target, never).await?;
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in addresses {
            let own: SocketAddr = if address.is_ipv4() {
                (Ipv4Addr::UNSPECIFIED, 0).into()
            } else {
                (Ipv6Addr::UNSPECIFIED, 0).into()
            };
            let connected = async {
                let socket = tokio::net::UdpSocket::bind(own).await?;
                socket.connect(address).await.map(|()| socket)
            };
            match connected.await {
                Ok(socket) => return Ok(socket),
                Err(error) => last = error,
            }
        }
        Err(Unreached::Connect {
            target: target.clone(),
            source: last,
        })
    };
    tokio::time::timeout(timeout, work).await.unwrap_or_else(|_| {
        Err(Unreached::Timeout {
            target: target.clone(),
            after: timeout,
        })
    })
}

/// All addresses of `target`, none of them forbidden.
async fn resolve(target: &HostPort, never: &Never) -> Result<Vec<SocketAddr>, Unreached> {
    let addresses: Vec<SocketAddr> = match target.ip() {
        Some(ip) => vec![(ip, target.port()).into()],
        None => {
            let found = lookup_host((target.host(), target.port()));
            let found = found.await.map_err(|source| Unreached::Resolve {
                target: target.clone(),
                source,
            })?;
            found.collect()
        }
    };
    for address in &addresses {
        never.check(*address, is_ours)?;
    }
    Ok(addresses)
}

/// Whether an address belongs to this machine: only then can a socket be bound to it. When that cannot be told
/// because no socket is left, it is taken for ours, which refuses more and not less.
pub fn is_ours(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).map_or_else(|error| is_exhausted(&error), |_| true)
}

/// `EMFILE` (this process) and `ENFILE` (the machine), which the standard library has no kind for.
fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(23 | 24))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    const PATIENCE: Duration = Duration::from_secs(20);

    async fn dial(host: &str, port: u16, never: &Never) -> Result<TcpStream, Unreached> {
        reach(&HostPort::new(host, port).unwrap(), never, PATIENCE).await
    }

    #[tokio::test]
    async fn a_control_port_is_refused_however_its_host_is_written() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        dial("127.0.0.1", port, &Never::new([])).await.unwrap();
        let never = Never::new([port]);
        // The last ones are read as addresses by the resolver only.
        for host in [
            "127.0.0.1",
            "localhost",
            "0.0.0.0",
            "[::]",
            "[::ffff:127.0.0.1]",
            "127.1",
            "2130706433",
        ] {
            let refused = dial(host, port, &never).await.unwrap_err();
            assert!(
                matches!(refused, Unreached::Forbidden(Forbidden::Control(_))),
                "{host}: {refused}"
            );
        }
    }

    #[tokio::test]
    async fn metadata_is_refused_without_a_packet() {
        for host in [
            "169.254.169.254",
            "[::ffff:169.254.169.254]",
            "[fd00:ec2::254]",
            "2852039166",
        ] {
            let refused = dial(host, 80, &Never::new([])).await.unwrap_err();
            assert!(
                matches!(refused, Unreached::Forbidden(Forbidden::Metadata(_))),
                "{host}: {refused}"
            );
        }
    }

    #[tokio::test]
    async fn who_does_not_answer_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let error = dial("127.0.0.1", port, &Never::new([])).await.unwrap_err();
        assert!(
            matches!(error, Unreached::Connect { .. }) && error.to_string().contains("127.0.0.1"),
            "{error}"
        );
    }

    #[test]
    fn this_machine_knows_its_own_addresses() {
        assert!(is_ours([127, 0, 0, 1].into()));
        assert!(
            !is_ours([192, 0, 2, 1].into()),
            "192.0.2.0/24 is for documentation and nobody's"
        );
    }
}
