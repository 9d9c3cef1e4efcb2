//! Forwards as the chisel server is asked for them.
//!
//! Reversed: the server listens and, for each connection, opens a channel that repeats the remote's address as we gave it. We
//! give the forward's *name* there: the answer then says which forward is meant even when two lead to the same
//! target, a target can change without a new session, and the server learns no address of the cluster. For the same
//! reason a reversed SOCKS is asked for as a plain remote: the server behaves the same, and each has a name.
//!
//! Local: we listen, and the server dials what the channel names.

use chisel_ssh::chisel::{Protocol, Remote};

use crate::spelling::{ANY_HOST, Dials, LOOPBACK, Spelling};

/// Longest name of a forward; it becomes a host name in the protocol and a label of metrics.
const MAX_NAME: usize = 63;

/// The listener of one forward.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Listen {
    /// Name of the forward.
    pub name: String,
    /// Listening host, IPv6 in brackets.
    pub host: String,
    /// Listening port.
    pub port: u16,
    /// Who listens, and for what.
    pub shape: Shape,
}

/// Who listens, and for what.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Shape {
    /// The server, for connections.
    #[default]
    Tcp,
    /// The server, for datagrams.
    Udp,
    /// The server, for users of a SOCKS5 server that runs here.
    Socks,
    /// We, for connections; the server dials.
    LocalTcp(Dials),
    /// We, for datagrams; the server sends them on.
    LocalUdp(Dials),
}

impl Shape {
    /// Whether the listener is ours and not the server's.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp | Self::Udp | Self::Socks => false,
            Self::LocalTcp(_) | Self::LocalUdp(_) => true,
        }
    }

    fn protocol(&self) -> Protocol {
        match self {
            Self::Tcp | Self::Socks | Self::LocalTcp(_) => Protocol::Tcp,
            Self::Udp | Self::LocalUdp(_) => Protocol::Udp,
        }
    }
}

/// Why a forward cannot be asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadForward {
    /// The name cannot be used.
    #[error("the name {0:?} is not usable: 1 to 63 letters, digits, '.', '_' and '-'")]
    Name(String),
    /// The name is used twice.
    #[error("the name {0:?} is used by an earlier forward")]
    NameTaken(String),
    /// Port 0.
    #[error("remote port 0 is refused: the server would pick a port and tell nobody which; name one")]
    PortZero,
    /// Above 65535.
    #[error("remote port {0} is not between 1 and 65535")]
    Port(u32),
    /// The host is not one.
    #[error("the listening address {0:?} is no host that could be bound")]
    Host(String),
    /// The protocol is unknown.
    #[error("the protocol {0:?} is unknown: tcp or udp, in lower case")]
    Protocol(String),
    /// One of this pod's own ports.
    #[error("port {0} belongs to the agent itself, so no forward can listen on it here")]
    OwnPort(u16),
    /// Another forward has the port.
    #[error("port {port} is taken by forward {by:?}")]
    PortTaken {
        /// The port.
        port: u16,
        /// The forward that comes first.
        by: String,
    },
}

impl Listen {
    /// Checks one forward on its own.
    ///
    /// # Errors
    /// Why it cannot be asked for.
    pub fn new(name: &str, host: &str, port: u32) -> Result<Self, BadForward> {
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(letter) {
            return Err(BadForward::Name(name.to_owned()));
        }
        let port = match u16::try_from(port) {
            Ok(0) => return Err(BadForward::PortZero),
            Ok(port) => port,
            Err(_) => return Err(BadForward::Port(port)),
        };
        let host = if host.is_empty() { ANY_HOST } else { host };
        let bare = host
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(host);
        if bare.parse::<std::net::Ipv6Addr>().is_ok() {
            return Ok(Self {
                name: name.to_owned(),
                host: format!("[{bare}]"),
                port,
                shape: Shape::Tcp,
            });
        }
        if bare.len() != host.len() || !host.bytes().all(letter) {
            return Err(BadForward::Host(host.to_owned()));
        }
        Ok(Self {
            name: name.to_owned(),
            host: host.to_owned(),
            port,
            shape: Shape::Tcp,
        })
    }

    /// The same listener for something else.
    #[must_use]
    pub fn with(self, shape: Shape) -> Self {
        Self { shape, ..self }
    }

    /// The listener of a remote that chisel's spelling describes.
    ///
    /// # Errors
    /// Why it cannot be asked for.
    pub fn spelled(spelling: &Spelling) -> Result<Self, BadForward> {
        let shape = match (spelling.reverse, spelling.protocol, &spelling.dials) {
            (true, Protocol::Udp, _) => Shape::Udp,
            (true, Protocol::Tcp, Dials::Socks) => Shape::Socks,
            (true, Protocol::Tcp, Dials::Address { .. }) => Shape::Tcp,
            (false, Protocol::Tcp, dials) => Shape::LocalTcp(dials.clone()),
            (false, Protocol::Udp, dials) => Shape::LocalUdp(dials.clone()),
        };
        let port = u32::from(spelling.listen_port);
        Ok(Self::new(&spelling.name(), &spelling.listen_host, port)?.with(shape))
    }

    /// Checks it against those before it: two listeners that overlap would drop the whole session (measured with
    /// chisel 1.11.3: the config is accepted, then the second bind ends the session).
    ///
    /// # Errors
    /// Which earlier forward is in the way.
    pub fn fits(&self, earlier: &[Self]) -> Result<(), BadForward> {
        if earlier.iter().any(|other| other.name == self.name) {
            return Err(BadForward::NameTaken(self.name.clone()));
        }
        match earlier.iter().find(|other| self.overlaps(other)) {
            Some(other) => Err(BadForward::PortTaken {
                port: self.port,
                by: other.name.clone(),
            }),
            None => Ok(()),
        }
    }

    /// Whether both cannot be bound at the same time.
    pub fn overlaps(&self, other: &Self) -> bool {
        let any = |host: &str| host == ANY_HOST || host == "[::]";
        let bare = |host: &str| if host == "localhost" { LOOPBACK } else { host }.to_owned();
        if self.shape.is_local() != other.shape.is_local() || self.shape.protocol() != other.shape.protocol()
        {
            return false;
        }
        self.port == other.port
            && (bare(&self.host) == bare(&other.host) || any(&self.host) || any(&other.host))
    }

    /// What stands in the session's config.
    pub fn remote(&self) -> Remote {
        let (remote_host, remote_port, socks) = match &self.shape {
            Shape::Tcp | Shape::Udp | Shape::Socks => (self.name.clone(), self.port, false),
            Shape::LocalTcp(dials) | Shape::LocalUdp(dials) => match dials {
                Dials::Address { host, port } => (host.clone(), *port, false),
                Dials::Socks => (String::new(), 0, true),
            },
        };
        Remote {
            local_host: self.host.clone(),
            local_port: self.port,
            remote_host,
            remote_port,
            protocol: self.shape.protocol(),
            socks,
            reverse: !self.shape.is_local(),
        }
    }

    /// What a channel of this forward names: the server's, or ours when we open it.
    pub fn channel_target(&self) -> String {
        match &self.shape {
            Shape::Tcp | Shape::Socks => format!("{}:{}", self.name, self.port),
            Shape::Udp => format!("{}:{}/udp", self.name, self.port),
            Shape::LocalTcp(dials) => dials.to_string(),
            Shape::LocalUdp(dials) => format!("{dials}/udp"),
        }
    }

    /// Whether a refusal of the server means this forward. The server writes `R:24921=>…` (leaving out the host
    /// when it is 0.0.0.0, and with `/udp` at the end) when it cannot listen, and `R:0.0.0.0:3921` when its rules
    /// deny it; for a forward that listens here it writes what it would have to dial.
    pub fn is_named_by(&self, remote: &str) -> bool {
        let local = match (&self.shape, remote.strip_prefix("R:")) {
            (Shape::LocalTcp(dials) | Shape::LocalUdp(dials), None) => {
                return match dials {
                    Dials::Address { .. } => remote == dials.to_string(),
                    Dials::Socks => remote == ":",
                };
            }
            (Shape::LocalTcp(_) | Shape::LocalUdp(_), Some(_)) => return false,
            (Shape::Tcp | Shape::Udp | Shape::Socks, stripped) => stripped.unwrap_or(remote),
        };
        let local = match local.split_once("=>") {
            Some((local, dials)) if dials.ends_with("/udp") == (self.shape == Shape::Udp) => local,
            Some(_) => return false,
            None => local,
        };
        match local.rsplit_once(':') {
            Some((host, port)) => port.parse() == Ok(self.port) && host == self.host,
            None => local.parse() == Ok(self.port) && self.host == ANY_HOST,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn listen(name: &str, host: &str, port: u32) -> Listen {
        Listen::new(name, host, port).unwrap()
    }

    #[test]
    fn the_config_is_what_the_go_client_would_send() {
        let json = chisel_ssh::chisel::config_json(&[listen("agent-http", "", 24910).remote()]);
        assert_eq!(
            String::from_utf8(json).unwrap(),
            "{\"Version\":\"1.11.3\",\"Remotes\":[{\"LocalHost\":\"0.0.0.0\",\"LocalPort\":\"24910\",\"LocalProto\":\"tcp\",\
             \"RemoteHost\":\"agent-http\",\"RemotePort\":\"24910\",\"RemoteProto\":\"tcp\",\"Socks\":false,\"Reverse\":true,\"Stdio\":false}]}"
        );
    }

    #[test]
    fn ports_that_cannot_be_used_are_refused_with_a_sentence() {
        assert_eq!(Listen::new("a", "", 0), Err(BadForward::PortZero));
        assert_eq!(Listen::new("a", "", 65536), Err(BadForward::Port(65536)));
        for name in ["", "a b", "a:1", "a\"", &"x".repeat(64)] {
            assert_eq!(Listen::new(name, "", 1), Err(BadForward::Name(name.to_owned())));
        }
        for host in ["a b", "::1:80x", "[::1", "a:b", "\"", "[name]"] {
            assert_eq!(Listen::new("a", host, 1), Err(BadForward::Host(host.to_owned())));
        }
    }

    #[test]
    fn overlapping_listeners_are_told_apart_by_host() {
        let first = [listen("a", "", 80), listen("b", "127.0.0.1", 81)];
        let by = |by: &str, port| {
            Err(BadForward::PortTaken {
                port,
                by: by.to_owned(),
            })
        };
        assert_eq!(listen("c", "10.0.0.1", 80).fits(&first), by("a", 80));
        assert_eq!(listen("c", "0.0.0.0", 81).fits(&first), by("b", 81));
        assert_eq!(listen("c", "10.0.0.1", 81).fits(&first), Ok(()));
        assert_eq!(
            listen("a", "", 90).fits(&first),
            Err(BadForward::NameTaken("a".to_owned()))
        );
    }

    #[test]
    fn refusals_of_the_server_find_their_forward() {
        assert!(listen("a", "", 24921).is_named_by("R:24921=>a:24921"));
        assert!(listen("a", "", 3921).is_named_by("R:0.0.0.0:3921"));
        assert!(listen("a", "127.0.0.1", 80).is_named_by("R:127.0.0.1:80=>a:80"));
        assert!(listen("a", "::", 80).is_named_by("R:[::]:80=>a:80"));
        assert!(!listen("a", "", 24921).is_named_by("R:24922=>24921"));
        assert!(!listen("a", "127.0.0.1", 80).is_named_by("R:80=>a:80"));
    }

    fn spelled(text: &str) -> Listen {
        Listen::spelled(&text.parse().unwrap()).unwrap()
    }

    #[test]
    fn every_shape_is_asked_for_as_chisel_does() {
        let json = |text: &str| {
            let json = chisel_ssh::chisel::config_json(&[spelled(text).remote()]);
            let config: serde_json::Value = serde_json::from_slice(&json).unwrap();
            let remote = &config["Remotes"][0];
            let text = |name: &str| remote[name].as_str().unwrap().to_owned();
            let flag = |name: &str| remote[name].as_bool().unwrap();
            (
                format!(
                    "{}:{}/{}",
                    text("LocalHost"),
                    text("LocalPort"),
                    text("LocalProto")
                ),
                format!(
                    "{}:{}/{}",
                    text("RemoteHost"),
                    text("RemotePort"),
                    text("RemoteProto")
                ),
                flag("Socks"),
                flag("Reverse"),
            )
        };
        let wanted =
            |local: &str, remote: &str, socks, reverse| (local.to_owned(), remote.to_owned(), socks, reverse);
        assert_eq!(
            json("R:80/udp"),
            wanted("0.0.0.0:80/udp", "remote-80-udp:80/udp", false, true)
        );
        assert_eq!(
            json("R:socks"),
            wanted("127.0.0.1:1080/tcp", "remote-1080:1080/tcp", false, true)
        );
        assert_eq!(
            json("3000:db:5432"),
            wanted("127.0.0.1:3000/tcp", "db:5432/tcp", false, false)
        );
        assert_eq!(
            json("3000:[::1]:53/udp"),
            wanted("127.0.0.1:3000/udp", "[::1]:53/udp", false, false)
        );
        assert_eq!(json("socks"), wanted("127.0.0.1:1080/tcp", ":/tcp", true, false));
        for (text, target) in [
            ("R:80/udp", "remote-80-udp:80/udp"),
            ("R:socks", "remote-1080:1080"),
            ("3000:db:5432", "db:5432"),
            ("53:[::1]:53/udp", "[::1]:53/udp"),
            ("socks", "socks"),
        ] {
            assert_eq!(spelled(text).channel_target(), target, "{text}");
        }
    }

    #[test]
    fn protocols_and_sides_do_not_get_in_each_others_way() {
        let first = [spelled("R:53:a:53"), spelled("5353:a:53")];
        assert_eq!(spelled("R:53/udp").fits(&first), Ok(()));
        assert_eq!(spelled("R:5353:b:1").fits(&first), Ok(()));
        assert!(spelled("localhost:5353:b:1").fits(&first).is_err());
        assert!(spelled("R:10.0.0.1:53:b:1").fits(&first).is_err());
    }

    #[test]
    fn refusals_find_forwards_of_every_shape() {
        assert!(spelled("R:53/udp").is_named_by("R:53=>remote-53-udp:53/udp"));
        assert!(spelled("R:53/udp").is_named_by("R:0.0.0.0:53"));
        assert!(!spelled("R:53:a:53").is_named_by("R:53=>remote-53-udp:53/udp"));
        assert!(spelled("3000:db:5432").is_named_by("db:5432"));
        assert!(!spelled("3000:db:5432").is_named_by("R:0.0.0.0:3000"));
        assert!(spelled("socks").is_named_by(":"));
        assert!(!spelled("R:3000:db:5432").is_named_by("db:5432"));
    }

    proptest! {
        #[test]
        fn a_forward_is_found_by_both_texts_of_the_server(port in 1_u32..=65535, host in prop_oneof!["", "127\\.0\\.0\\.1", "::1"]) {
            let listen = listen("name", &host, port);
            let local = format!("{}:{}", listen.host, listen.port);
            let short = local.strip_prefix("0.0.0.0:").unwrap_or(&local);
            let cannot_listen = format!("R:{short}=>name:{port}");
            let denied = format!("R:{local}");
            prop_assert!(listen.is_named_by(&cannot_listen));
            prop_assert!(listen.is_named_by(&denied));
        }

        #[test]
        fn any_text_of_the_server_is_read(text in ".*") {
            listen("a", "", 80).is_named_by(&text);
        }
    }
}
