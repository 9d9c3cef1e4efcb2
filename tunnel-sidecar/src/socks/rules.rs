//! Where users of SOCKS may go: what the owner wrote in `tunnel.socks_targets`, and nowhere else.
//!
//! ```text
//!   db.shop:5432            that name
//!   *.svc.cluster.local:443 every name below it
//!   10.0.0.0/8:*            addresses, also of names that lead only there
//!   [fd00::/8]:8000-9000    the same for IPv6, with a range of ports
//!   *:443                   everything on that port
//! ```
//!
//! Pure. The never-list is checked beside it, whatever the rules say.

use std::{fmt, net::IpAddr, str::FromStr};

use crate::address::HostPort;

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    host: HostRule,
    first_port: u16,
    last_port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum HostRule {
    Any,
    Name(String),
    /// With its leading dot.
    Below(String),
    Net(IpAddr, u8),
}

/// Why an entry is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRule {
    /// No port.
    #[error("has no port: write host:port, host:8000-9000 or host:*")]
    NoPort,
    /// The port is none.
    #[error("has no port between 1 and 65535, no range of them and no * after its last colon")]
    Port,
    /// The host is none.
    #[error("has no name, no *.name, no network such as 10.0.0.0/8 and no * before its port")]
    Host,
}

impl FromStr for Rule {
    type Err = BadRule;

    fn from_str(text: &str) -> Result<Self, BadRule> {
        let text = text.trim();
        let (host, ports) = if text == "*" {
            ("*", "*")
        } else {
            text.rsplit_once(':').ok_or(BadRule::NoPort)?
        };
        let port = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            let number = text.parse().ok().filter(|number| digits && *number > 0);
            number.ok_or(BadRule::Port)
        };
        let (first_port, last_port) = match ports.split_once('-') {
            _ if ports == "*" => (1, u16::MAX),
            None => (port(ports)?, port(ports)?),
            Some((first, last)) => (port(first)?, port(last)?),
        };
        if first_port > last_port {
            return Err(BadRule::Port);
        }
        Ok(Self {
            host: host.parse()?,
            first_port,
            last_port,
        })
    }
}

impl FromStr for HostRule {
    type Err = BadRule;

    fn from_str(text: &str) -> Result<Self, BadRule> {
        if text == "*" {
            return Ok(Self::Any);
        }
        if text.contains(':') && !text.starts_with('[') {
            return Err(BadRule::Host);
        }
        let bare = match text.strip_prefix('[') {
            Some(inner) => inner.strip_suffix(']').ok_or(BadRule::Host)?,
            None => text,
        };
        let (address, bits) = match bare.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse::<u8>().map_err(|_| BadRule::Host)?)),
            None => (bare, None),
        };
        if let Ok(ip) = address.parse::<IpAddr>() {
            let all = if ip.is_ipv4() { 32 } else { 128 };
            let bits = bits.unwrap_or(all);
            return if bits <= all {
                Ok(Self::Net(ip, bits))
            } else {
                Err(BadRule::Host)
            };
        }
        let (name, below) = match bare.strip_prefix("*.") {
            Some(name) => (name, true),
            None => (bare, false),
        };
        let name = HostPort::new(name, 1).map_err(|_| BadRule::Host)?;
        Ok(if below {
            Self::Below(format!(".{}", name.host()))
        } else {
            Self::Name(name.host().to_owned())
        })
    }
}

/// What the rules say of a target before it is resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Allowed as it is asked for.
    Allowed,
    /// Allowed when every address of the name is; see [`Rules::allows_address`].
    ByAddress,
    /// Not allowed.
    Denied,
}

/// All entries; none means that SOCKS is off.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules(Vec<Rule>);

impl Rules {
    /// Reads entries; those that are none come back with the reason, and allow nothing.
    pub fn read(texts: &[String]) -> (Self, Vec<(String, BadRule)>) {
        let mut bad = Vec::new();
        let mut rules = Vec::new();
        for text in texts {
            match text.parse() {
                Ok(rule) => rules.push(rule),
                Err(reason) => bad.push((text.clone(), reason)),
            }
        }
        (Self(rules), bad)
    }

    /// Whether SOCKS is off.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What they say of `target`.
    pub fn judge(&self, target: &HostPort) -> Verdict {
        if let Some(ip) = target.ip() {
            return if self.allows_address(ip, target.port()) {
                Verdict::Allowed
            } else {
                Verdict::Denied
            };
        }
        let mut verdict = Verdict::Denied;
        for rule in self.0.iter().filter(|rule| rule.has_port(target.port())) {
            match &rule.host {
                HostRule::Any => return Verdict::Allowed,
                HostRule::Name(name) if name == target.host() => return Verdict::Allowed,
                HostRule::Below(end) if target.host().ends_with(end) => return Verdict::Allowed,
                HostRule::Net(..) => verdict = Verdict::ByAddress,
                HostRule::Name(_) | HostRule::Below(_) => {}
            }
        }
        verdict
    }

    /// Whether an address is allowed by a network, or everything is.
    pub fn allows_address(&self, ip: IpAddr, port: u16) -> bool {
        self.0
            .iter()
            .filter(|rule| rule.has_port(port))
            .any(|rule| match &rule.host {
                HostRule::Any => true,
                HostRule::Net(net, bits) => holds(*net, *bits, ip),
                HostRule::Name(_) | HostRule::Below(_) => false,
            })
    }
}

impl Rule {
    fn has_port(&self, port: u16) -> bool {
        (self.first_port..=self.last_port).contains(&port)
    }
}

/// Whether the first `bits` of both are the same. An IPv4 address within IPv6 is taken for what it is.
fn holds(net: IpAddr, bits: u8, ip: IpAddr) -> bool {
    let shift = |all: u32| all.saturating_sub(u32::from(bits));
    match (net.to_canonical(), ip.to_canonical()) {
        (IpAddr::V4(net), IpAddr::V4(ip)) => {
            let cut = |ip: u32| ip.checked_shr(shift(32)).unwrap_or_default();
            cut(net.to_bits()) == cut(ip.to_bits())
        }
        (IpAddr::V6(net), IpAddr::V6(ip)) => {
            let cut = |ip: u128| ip.checked_shr(shift(128)).unwrap_or_default();
            cut(net.to_bits()) == cut(ip.to_bits())
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            HostRule::Any => f.write_str("*")?,
            HostRule::Name(name) => f.write_str(name)?,
            HostRule::Below(end) => write!(f, "*{end}")?,
            HostRule::Net(ip @ IpAddr::V6(_), bits) => write!(f, "[{ip}/{bits}]")?,
            HostRule::Net(ip @ IpAddr::V4(_), bits) => write!(f, "{ip}/{bits}")?,
        }
        if self.first_port == self.last_port {
            write!(f, ":{}", self.first_port)
        } else {
            write!(f, ":{}-{}", self.first_port, self.last_port)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rules(texts: &[&str]) -> Rules {
        let texts: Vec<_> = texts.iter().map(|text| (*text).to_owned()).collect();
        let (rules, bad) = Rules::read(&texts);
        assert_eq!(bad, []);
        rules
    }

    #[test]
    fn targets_are_judged() {
        use Verdict::{Allowed, ByAddress, Denied};
        let only = rules;
        let rules = rules(&[
            "db.shop:5432",
            "*.svc.cluster.local:443",
            "10.0.0.0/8:*",
            "[fd00::/8]:8000-9000",
        ]);
        for (target, verdict) in [
            ("db.shop:5432", Allowed),
            ("DB.Shop.:5432", Allowed),
            ("db.shop:5433", ByAddress),
            ("a.svc.cluster.local:443", Allowed),
            ("svc.cluster.local:443", ByAddress),
            ("xsvc.cluster.local:1", ByAddress),
            ("10.9.9.9:1", Allowed),
            ("[::ffff:10.1.1.1]:65535", Allowed),
            ("11.0.0.1:1", Denied),
            ("[fd12::1]:8000", Allowed),
            ("[fd12::1]:9001", Denied),
            ("[fe80::1]:8000", Denied),
        ] {
            assert_eq!(rules.judge(&target.parse().unwrap()), verdict, "{target}");
        }
        assert!(Rules::default().is_empty());
        assert_eq!(Rules::default().judge(&"a:1".parse().unwrap()), Denied);
        assert_eq!(only(&["*:443"]).judge(&"a:443".parse().unwrap()), Allowed);
        assert_eq!(only(&["*"]).judge(&"1.2.3.4:1".parse().unwrap()), Allowed);
        assert_eq!(
            only(&["127.0.0.1:80"]).judge(&"[::ffff:127.0.0.1]:80".parse().unwrap()),
            Allowed
        );
    }

    #[test]
    fn entries_that_are_none_are_named_and_allow_nothing() {
        for (text, wanted) in [
            ("db.shop", BadRule::NoPort),
            ("db.shop:0", BadRule::Port),
            ("db.shop:9-1", BadRule::Port),
            ("db.shop:x", BadRule::Port),
            ("10.0.0.0/33:1", BadRule::Host),
            ("fd00::/8:1", BadRule::Host),
            ("*.:1", BadRule::Host),
            ("a*b:1", BadRule::Host),
        ] {
            let (rules, bad) = Rules::read(&[text.to_owned()]);
            assert!(rules.is_empty(), "{text}");
            assert_eq!(bad, [(text.to_owned(), wanted)]);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_and_what_is_shown_is_read_again(text in ".*|[a-z0-9.*:/\\[\\]-]{0,30}") {
            if let Ok(rule) = text.parse::<Rule>() {
                prop_assert_eq!(rule.to_string().parse::<Rule>(), Ok(rule));
            }
        }

        #[test]
        fn a_network_holds_what_begins_like_it(net: u32, bits in 0_u8..=32, ip: u32) {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            let address = |bits: u32| IpAddr::V4(bits.into());
            prop_assert_eq!(holds(address(net), bits, address(ip)), net & mask == ip & mask);
        }
    }
}
