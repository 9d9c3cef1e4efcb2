//! Tunnel status: two paths and two vocabularies for one question.
//!
//! Seed 003 documents `GET /api/v1/tunnel/status?agent_id=`, `ready` and `tunnel_url`; the code of that era asked
//! `GET /api/agents/{agent_id}/tunnel/status` and spoke of `IDLE`, `REQUIRED`, `ACTIVE` and `tunnel_server_addr`.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use runtime::secret::SecretString;
use serde_json::Value;

use super::text;

/// The two paths, in the order in which they are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    Documented,
    Older,
}

impl Path {
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Documented => Self::Older,
            Self::Older => Self::Documented,
        }
    }

    /// Path and query for an agent id, which may hold any character.
    pub(crate) fn for_agent(self, agent_id: &str) -> String {
        let id: String = url::form_urlencoded::byte_serialize(agent_id.as_bytes()).collect();
        match self {
            Self::Documented => format!("/api/v1/tunnel/status?agent_id={id}"),
            Self::Older => format!("/api/agents/{}/tunnel/status", id.replace('+', "%20")),
        }
    }
}

/// What the control plane wants of the tunnel.
#[derive(Clone, Debug)]
pub(crate) enum Status {
    /// No tunnel; the word it used.
    Idle(String),
    /// A tunnel with these forwards.
    Wanted(Wanted),
}

#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) server: String,
    /// `user:pass`.
    pub(crate) credentials: Option<SecretString>,
    pub(crate) fingerprint: Option<String>,
    pub(crate) forwards: Vec<Offer>,
    /// Port of the echo door, for a control plane that proves the data path.
    pub(crate) echo: Option<u16>,
    /// The word is one of those that say that somebody needs the tunnel now.
    pub(crate) on_demand: bool,
}

/// Name under which the port of the echo door stands among the forwards. A client that does not know it has no forward
/// of this name.
const ECHO: &str = "pipeops-echo";

/// A port that the control plane gave to a forward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) name: String,
    pub(crate) remote_port: u16,
}

/// An answer: the status and how often to ask.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: Status,
    /// Seconds between polls, when the control plane said so.
    pub(crate) poll_frequency: Option<u64>,
}

/// Reads an answer, or says why it cannot be used.
pub(crate) fn parse(body: &[u8]) -> Result<Answer, String> {
    let value: Value = serde_json::from_slice(body).map_err(|_| "the answer is no JSON".to_owned())?;
    let value = value
        .get("data")
        .filter(|data| data.get("status").is_some())
        .unwrap_or(&value);
    let word = text(value, &["status"]).ok_or("the answer has no status")?;
    let poll_frequency = value
        .get("poll_frequency")
        .and_then(Value::as_u64)
        .filter(|seconds| *seconds > 0);
    let status = match word.to_ascii_uppercase().as_str() {
        "REQUIRED" | "ACTIVE" => Status::Wanted(wanted(value, true)?),
        "READY" | "CONNECTED" => Status::Wanted(wanted(value, false)?),
        "IDLE" | "PENDING" | "DISABLED" | "INACTIVE" | "DISCONNECTED" | "NOT_READY" => Status::Idle(word),
        _ => return Err(format!("the status {word:?} is not known")),
    };
    Ok(Answer {
        status,
        poll_frequency,
    })
}

fn wanted(value: &Value, on_demand: bool) -> Result<Wanted, String> {
    let server = text(value, &["tunnel_url", "tunnel_server_addr", "tunnel_server"])
        .ok_or("the answer names no tunnel server")?;
    let credentials = match text(value, &["credentials"]) {
        Some(encoded) => Some(decode(&encoded)?),
        None => None,
    };
    let mut forwards: Vec<Offer> = Vec::new();
    for item in value
        .get("forwards")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let name = text(item, &["name"]);
        let port = text(item, &["remote_port"]).and_then(|port| port.parse::<u16>().ok());
        // An entry that cannot be used must not take the good ones with it.
        if let (Some(name), Some(remote_port)) = (name, port)
            && remote_port != 0
            && !forwards.iter().any(|known| known.name == name)
        {
            forwards.push(Offer { name, remote_port });
        }
    }
    let fingerprint = text(value, &["server_fingerprint", "fingerprint"]);
    let echo = forwards.iter().find(|offer| offer.name == ECHO);
    let echo = echo.map(|offer| offer.remote_port);
    forwards.retain(|offer| offer.name != ECHO);
    Ok(Wanted {
        echo,
        on_demand,
        server,
        credentials,
        fingerprint,
        forwards,
    })
}

/// base64 of `user:pass`; a control plane that sends the pair as it is gets its way too.
fn decode(encoded: &str) -> Result<SecretString, String> {
    let decoded = STANDARD
        .decode(encoded)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok());
    match decoded.filter(|pair| pair.contains(':')) {
        Some(pair) => Ok(SecretString::from(pair)),
        None if encoded.contains(':') => Ok(SecretString::from(encoded)),
        None => Err("the credentials are not base64 of user:pass".to_owned()),
    }
}

/// Names under which the same target goes in different documents.
pub(crate) fn canonical_name(name: &str) -> String {
    let name = name.to_lowercase().replace('_', "-");
    match name.as_str() {
        "k8s-api" | "kube-api" | "kubernetes" | "k8s" => "kubernetes-api".to_owned(),
        "kubelet" => "kubelet-metrics".to_owned(),
        "agent" | "http" | "agent-api" => "agent-http".to_owned(),
        "kubernetes-proxy" | "proxy" => "k8s-proxy".to_owned(),
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use runtime::secret::ExposeSecret as _;

    #[test]
    fn both_vocabularies_are_read() {
        let seeds = br#"{"status":"ready","tunnel_url":"wss://t","forwards":[{"name":"k8s-api","remote_port":8000}]}"#;
        let Status::Wanted(wanted) = parse(seeds).unwrap().status else {
            panic!("wanted")
        };
        assert_eq!(wanted.server, "wss://t");
        assert_eq!(
            wanted.forwards,
            [Offer {
                name: "k8s-api".to_owned(),
                remote_port: 8000
            }]
        );
        let older = br#"{"status":"REQUIRED","forwards":[{"name":"kubernetes-api","remote_port":8000}],
            "credentials":"dXNlcjpwYXNz","poll_frequency":7,"tunnel_server_addr":"wss://t:443","server_fingerprint":"f="}"#;
        let answer = parse(older).unwrap();
        assert_eq!(answer.poll_frequency, Some(7));
        let Status::Wanted(wanted) = answer.status else {
            panic!("wanted")
        };
        assert_eq!(wanted.credentials.unwrap().expose_secret(), "user:pass");
        assert_eq!(wanted.fingerprint.as_deref(), Some("f="));
        assert!(matches!(
            parse(br#"{"status":"IDLE"}"#).unwrap().status,
            Status::Idle(_)
        ));
    }

    #[test]
    fn a_bad_forward_does_not_take_the_good_ones_with_it() {
        let body = br#"{"status":"ACTIVE","tunnel_url":"wss://t","forwards":[{"name":"a","remote_port":70000},
            {"remote_port":1},{"name":"b","remote_port":"9"},{"name":"b","remote_port":10},{"name":"c","remote_port":0},7]}"#;
        let Status::Wanted(wanted) = parse(body).unwrap().status else {
            panic!("wanted")
        };
        assert_eq!(
            wanted.forwards,
            [Offer {
                name: "b".to_owned(),
                remote_port: 9
            }]
        );
    }

    #[test]
    fn what_cannot_be_used_is_said() {
        for (body, reason) in [
            (&b"<html>"[..], "no JSON"),
            (b"{}", "no status"),
            (br#"{"status":"MAYBE"}"#, "not known"),
            (br#"{"status":"ready"}"#, "no tunnel server"),
            (
                br#"{"status":"ready","tunnel_url":"wss://t","credentials":"!!"}"#,
                "base64",
            ),
        ] {
            assert!(parse(body).unwrap_err().contains(reason));
        }
    }

    #[test]
    fn an_agent_id_cannot_change_the_path() {
        assert_eq!(
            Path::Older.for_agent("a/b c"),
            "/api/agents/a%2Fb%20c/tunnel/status"
        );
        assert_eq!(
            Path::Documented.for_agent("a&x=1"),
            "/api/v1/tunnel/status?agent_id=a%26x%3D1"
        );
    }

    proptest! {
        #[test]
        fn no_answer_makes_the_reader_panic(body in "\\PC{0,200}") {
            parse(body.as_bytes()).ok();
        }

        #[test]
        fn any_value_of_any_field_is_survived(
            status in "ready|IDLE|ACTIVE|x",
            server in proptest::option::of("\\PC{0,20}"),
            credentials in proptest::option::of("\\PC{0,20}"),
            port in any::<i64>(),
        ) {
            let body = serde_json::json!({ "status": status, "tunnel_url": server, "credentials": credentials,
                "forwards": [{ "name": "a", "remote_port": port }], "poll_frequency": port });
            parse(body.to_string().as_bytes()).ok();
        }
    }
}
