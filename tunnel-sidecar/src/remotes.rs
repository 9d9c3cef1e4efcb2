//! Forwards as the chisel server is asked for them.
//!
//! The server listens and, for each connection, opens a channel that repeats the remote's address as we gave it. We
//! give the forward's *name* there: the answer then says which forward is meant even when two lead to the same
//! target, a target can change without a new session, and the server learns no address of the cluster.

use chisel_ssh::chisel::{Protocol, Remote};

/// Where chisel listens when a remote names no host.
const ANY_HOST: &str = "0.0.0.0";
/// Longest name of a forward; it becomes a host name in the protocol and a label of metrics.
const MAX_NAME: usize = 63;

/// What the server is asked to listen on for one forward.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Listen {
    /// Name of the forward.
    pub name: String,
    /// Listening host on the server.
    pub host: String,
    /// Listening port on the server.
    pub port: u16,
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
    #[error("the listening address {0:?} is no host the server could bind")]
    Host(String),
    /// Another forward has the port.
    #[error("remote port {port} is taken by forward {by:?}")]
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
            });
        }
        if bare.len() != host.len() || !host.bytes().all(letter) {
            return Err(BadForward::Host(host.to_owned()));
        }
        Ok(Self {
            name: name.to_owned(),
            host: host.to_owned(),
            port,
        })
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
        self.port == other.port && (self.host == other.host || any(&self.host) || any(&other.host))
    }

    /// What stands in the session's config.
    pub fn remote(&self) -> Remote {
        Remote {
            local_host: self.host.clone(),
            local_port: self.port,
            remote_host: self.name.clone(),
            remote_port: self.port,
            protocol: Protocol::Tcp,
            socks: false,
            reverse: true,
        }
    }

    /// What the server names when it opens a channel for this forward.
    pub fn channel_target(&self) -> String {
        format!("{}:{}", self.name, self.port)
    }

    /// Whether a refusal of the server means this forward. The server writes `R:24921=>…` (leaving out the host
    /// when it is 0.0.0.0) when it cannot listen, and `R:0.0.0.0:3921` when its rules deny it.
    pub fn is_named_by(&self, remote: &str) -> bool {
        let local = remote.strip_prefix("R:").unwrap_or(remote);
        let local = local.split_once("=>").map_or(local, |(local, _)| local);
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
