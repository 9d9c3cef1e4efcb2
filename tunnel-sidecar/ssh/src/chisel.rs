//! What chisel says inside the SSH session: the list of remotes (chisel v1.11 `share/settings`).

/// The version our configuration claims; the server only logs a difference.
pub const VERSION: &str = "1.11.3";

/// The transport of a remote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Protocol {
    /// A byte stream per connection.
    #[default]
    Tcp,
    /// Datagrams, all through one channel.
    Udp,
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// One forward. "Local" is the listening side: the server, when reversed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Remote {
    /// Where to listen.
    pub local_host: String,
    /// The port to listen on.
    pub local_port: u16,
    /// The target's host, brackets of an IPv6 address kept. Empty for SOCKS.
    pub remote_host: String,
    /// The target's port; 0 for SOCKS, which has none.
    pub remote_port: u16,
    /// The transport at both ends.
    pub protocol: Protocol,
    /// The target is a SOCKS5 server inside the client.
    pub socks: bool,
    /// The server listens and the client dials.
    pub reverse: bool,
}

/// The JSON of the config request, field for field as the Go client writes it.
#[must_use]
pub fn config_json(remotes: &[Remote]) -> Vec<u8> {
    let mut out = format!("{{\"Version\":{},\"Remotes\":[", quoted(VERSION));
    for (n, remote) in remotes.iter().enumerate() {
        if n > 0 {
            out.push(',');
        }
        let protocol = quoted(remote.protocol.name());
        out.push_str(&format!(
            "{{\"LocalHost\":{},\"LocalPort\":{},\"LocalProto\":{protocol},\"RemoteHost\":{},\"RemotePort\":{},\
             \"RemoteProto\":{protocol},\"Socks\":{},\"Reverse\":{},\"Stdio\":false}}",
            quoted(&remote.local_host),
            port(remote.local_port),
            quoted(&remote.remote_host),
            port(remote.remote_port),
            remote.socks,
            remote.reverse,
        ));
    }
    out.push_str("]}");
    out.into_bytes()
}

/// Ports are strings; an absent one is empty.
fn port(number: u16) -> String {
    if number == 0 {
        quoted("")
    } else {
        quoted(&number.to_string())
    }
}

/// A JSON string.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for letter in text.chars() {
        match letter {
            '"' | '\\' => {
                out.push('\\');
                out.push(letter);
            }
            control if u32::from(control) < 0x20 => out.push_str(&format!("\\u{:04x}", u32::from(control))),
            other => out.push(other),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(local_port: u16, remote_port: u16) -> Remote {
        Remote {
            local_host: "0.0.0.0".to_owned(),
            local_port,
            remote_host: "127.0.0.1".to_owned(),
            remote_port,
            reverse: true,
            ..Remote::default()
        }
    }

    /// As the Go client was seen to send it.
    #[test]
    fn the_encoding_of_the_go_client() {
        let socks = Remote {
            local_host: "127.0.0.1".to_owned(),
            local_port: 1080,
            remote_host: String::new(),
            remote_port: 0,
            socks: true,
            protocol: Protocol::Udp,
            ..remote(0, 0)
        };
        let text = String::from_utf8(config_json(&[remote(24910, 24911), socks])).unwrap();
        assert_eq!(
            text,
            concat!(
                r#"{"Version":"1.11.3","Remotes":[{"LocalHost":"0.0.0.0","LocalPort":"24910","LocalProto":"tcp","#,
                r#""RemoteHost":"127.0.0.1","RemotePort":"24911","RemoteProto":"tcp","Socks":false,"Reverse":true,"Stdio":false},"#,
                r#"{"LocalHost":"127.0.0.1","LocalPort":"1080","LocalProto":"udp","RemoteHost":"","RemotePort":"","#,
                r#""RemoteProto":"udp","Socks":true,"Reverse":true,"Stdio":false}]}"#
            )
        );
        assert_eq!(config_json(&[]), br#"{"Version":"1.11.3","Remotes":[]}"#);
    }

    #[test]
    fn texts_are_escaped() {
        assert_eq!(quoted("a\"b\\c\n\u{1}é"), "\"a\\\"b\\\\c\\u000a\\u0001é\"");
    }
}
