//! What is never dialled, whatever a spec, an owner or a server says.
//!
//! The control ports of this pod would let the far end of a tunnel steer the agent, and the metadata addresses of
//! cloud providers hand out the node's credentials. The check looks at addresses, so it is made a second time after
//! each DNS lookup: a name is only as good as what it resolves to at that moment.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use crate::address::HostPort;

/// gRPC of the three containers, and the HTTP ports of the siblings.
const CONTROL_PORTS: [u16; 5] = [7070, 7071, 7072, 8081, 8082];

/// Metadata service of AWS over IPv6; over IPv4 it lies in 169.254.0.0/16 like everybody else's.
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// Why an address is never dialled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Forbidden {
    /// A control port of this pod.
    #[error("{0} is a control port of this pod and is never dialled through a tunnel")]
    Control(SocketAddr),
    /// A cloud provider's metadata service.
    #[error("{0} is a link-local or metadata address and is never dialled through a tunnel")]
    Metadata(SocketAddr),
}

/// The never-list of this process.
#[derive(Clone, Debug)]
pub struct Never {
    ports: BTreeSet<u16>,
}

impl Never {
    /// The fixed control ports and `also`: what this process and agent-core really listen on.
    pub fn new(also: impl IntoIterator<Item = u16>) -> Self {
        Self {
            ports: CONTROL_PORTS.into_iter().chain(also).collect(),
        }
    }

    /// Whether a port is one of this pod's control ports, so that nothing else may listen on it here.
    pub fn is_control(&self, port: u16) -> bool {
        self.ports.contains(&port)
    }

    /// Checks an address that is about to be dialled. `ours` says whether it belongs to this machine; loopback and
    /// unspecified addresses always do.
    ///
    /// # Errors
    /// Why it must not be dialled.
    pub fn check(&self, address: SocketAddr, ours: impl FnOnce(IpAddr) -> bool) -> Result<(), Forbidden> {
        let ip = unwrapped(address.ip());
        if is_metadata(ip) {
            return Err(Forbidden::Metadata(address));
        }
        // Linux connects an unspecified address to this machine.
        let here = ip.is_loopback() || ip.is_unspecified();
        if self.ports.contains(&address.port()) && (here || ours(ip)) {
            return Err(Forbidden::Control(address));
        }
        Ok(())
    }

    /// Checks what can be told without DNS: addresses and the names that always mean this machine.
    ///
    /// # Errors
    /// Why it must not be dialled.
    pub fn check_unresolved(
        &self,
        target: &HostPort,
        ours: impl FnOnce(IpAddr) -> bool,
    ) -> Result<(), Forbidden> {
        let ip = target
            .ip()
            .or_else(|| is_localhost(target.host()).then_some(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        ip.map_or(Ok(()), |ip| self.check(SocketAddr::new(ip, target.port()), ours))
    }
}

/// Whether a name means this machine wherever it is looked up (RFC 6761, and what distributions write to /etc/hosts).
pub fn is_localhost(name: &str) -> bool {
    matches!(
        name,
        "localhost" | "localhost.localdomain" | "ip6-localhost" | "ip6-loopback"
    ) || name.ends_with(".localhost")
}

fn is_metadata(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip == METADATA_V6,
    }
}

/// The IPv4 address inside an IPv6 one: mapped, compatible (deprecated, still routed by some) and NAT64.
fn unwrapped(ip: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = ip else { return ip };
    let [a, b, c, d, e, f, g, h] = v6.segments();
    let embedded = || {
        let ([w, x], [y, z]) = (g.to_be_bytes(), h.to_be_bytes());
        IpAddr::V4(Ipv4Addr::new(w, x, y, z))
    };
    match [a, b, c, d, e, f] {
        [0, 0, 0, 0, 0, 0xffff] | [0x64, 0xff9b, 0, 0, 0, 0] => embedded(),
        [0, 0, 0, 0, 0, 0] if !v6.is_loopback() && !v6.is_unspecified() => embedded(),
        _ => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(text: &str) -> Result<(), Forbidden> {
        Never::new([4711]).check(text.parse().unwrap(), |ip| ip == IpAddr::from([10, 0, 0, 7]))
    }

    #[test]
    fn control_ports_are_forbidden_in_every_spelling_of_this_machine() {
        for host in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "[::1]",
            "[::]",
            "[::ffff:127.0.0.1]",
            "[::ffff:0.0.0.0]",
        ]
        .into_iter()
        .chain([
            "[::127.0.0.1]",
            "[64:ff9b::7f00:1]",
            "10.0.0.7",
            "[::ffff:10.0.0.7]",
        ]) {
            for port in [7070, 7071, 7072, 8081, 8082, 4711] {
                let address = format!("{host}:{port}");
                assert!(matches!(check(&address), Err(Forbidden::Control(_))), "{address}");
            }
            assert_eq!(check(&format!("{host}:8080")), Ok(()), "{host}");
        }
        assert_eq!(
            check("10.0.0.8:8081"),
            Ok(()),
            "another machine's port 8081 is not ours"
        );
    }

    #[test]
    fn metadata_is_forbidden_on_every_port() {
        for address in [
            "169.254.169.254:80",
            "169.254.0.1:1",
            "[::ffff:169.254.169.254]:80",
            "[64:ff9b::a9fe:a9fe]:80",
        ]
        .into_iter()
        .chain(["[::169.254.169.254]:80", "[fd00:ec2::254]:80"])
        {
            assert!(matches!(check(address), Err(Forbidden::Metadata(_))), "{address}");
        }
        assert_eq!(check("169.253.169.254:80"), Ok(()));
    }

    #[test]
    fn localhost_names_are_known_before_dns() {
        let never = Never::new([]);
        for name in ["localhost", "LOCALHOST.", "a.localhost", "ip6-loopback"] {
            let target: HostPort = format!("{name}:7071").parse().unwrap();
            assert!(never.check_unresolved(&target, |_| false).is_err(), "{name}");
        }
        let elsewhere: HostPort = "localhost.example.com:7071".parse().unwrap();
        assert_eq!(never.check_unresolved(&elsewhere, |_| false), Ok(()));
    }

    proptest! {
        #[test]
        fn mapping_an_address_into_ipv6_changes_no_verdict(ip: [u8; 4], port: u16, ours: bool) {
            let never = Never::new([]);
            let v4 = Ipv4Addr::from(ip);
            let plain = never.check(SocketAddr::from((v4, port)), |_| ours).is_ok();
            let mapped = never.check(SocketAddr::from((v4.to_ipv6_mapped(), port)), |_| ours).is_ok();
            prop_assert_eq!(plain, mapped);
        }

        #[test]
        fn nothing_link_local_and_no_control_port_of_ours_passes(third: u8, fourth: u8, port: u16) {
            let never = Never::new([]);
            prop_assert!(never.check(SocketAddr::from(([169, 254, third, fourth], port)), |_| false).is_err());
            for port in CONTROL_PORTS {
                prop_assert!(never.check(SocketAddr::from(([127, 0, third, fourth], port)), |_| false).is_err());
            }
        }
    }
}
