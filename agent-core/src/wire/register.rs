//! Registration: `POST /api/v1/clusters/agent/register`.

use runtime::secret::SecretString;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::text;

/// Below the base URL.
pub(crate) const PATH: &str = "/api/v1/clusters/agent/register";

/// What the agent says of itself. Secrets are added by the writer only, so that this can be printed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Registration {
    pub(crate) agent_id: String,
    pub(crate) cluster_name: String,
    pub(crate) agent_name: String,
    pub(crate) agent_version: String,
    pub(crate) hostname: String,
    pub(crate) k8s_version: Option<String>,
    pub(crate) labels: Vec<(String, String)>,
    /// Known from an earlier registration: a hint that keeps the control plane from making a second cluster.
    pub(crate) cluster_id: Option<String>,
    pub(crate) server_ip: Option<String>,
    pub(crate) cluster_cert_data: Option<String>,
    pub(crate) in_cluster: bool,
    pub(crate) cpu_cores: usize,
    pub(crate) memory_gb: Option<u64>,
    pub(crate) timestamp: String,
}

#[derive(Serialize)]
struct Body<'a> {
    agent_id: &'a str,
    name: &'a str,
    cluster_name: &'a str,
    agent_version: &'a str,
    hostname: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    k8s_version: Option<&'a str>,
    status: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    server_ip: Option<&'a str>,
    labels: Value,
    server_specs: Value,
    tunnel_port_config: Value,
    features: Value,
    metadata: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    k8s_service_token: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster_cert_data: Option<&'a str>,
}

impl Registration {
    /// The body. `service_token` is there only when the owner configured one.
    pub(crate) fn to_body(&self, service_token: Option<&str>) -> Value {
        let mut labels: Map<String, Value> = self
            .labels
            .iter()
            .map(|(name, value)| (name.clone(), Value::from(value.as_str())))
            .collect();
        labels
            .entry("hostname")
            .or_insert_with(|| Value::from(self.hostname.as_str()));
        labels
            .entry("agent.pipeops.io/version")
            .or_insert_with(|| Value::from(self.agent_version.as_str()));
        let mut specs = json!({ "cpu_cores": self.cpu_cores, "os": std::env::consts::OS });
        if let (Some(memory), Some(map)) = (self.memory_gb, specs.as_object_mut()) {
            map.insert("memory_gb".to_owned(), memory.into());
        }
        let body = Body {
            agent_id: &self.agent_id,
            name: &self.cluster_name,
            cluster_name: &self.cluster_name,
            agent_version: &self.agent_version,
            hostname: &self.hostname,
            k8s_version: self.k8s_version.as_deref(),
            status: "active",
            server_ip: self.server_ip.as_deref(),
            labels: Value::Object(labels),
            server_specs: specs,
            tunnel_port_config: json!({ "kubernetes_api": 6443, "kubelet": 10250, "agent_http": 8080 }),
            features: json!({
                "supports_streaming": true,
                "supports_websocket_proxy": true,
                "supports_response_streaming": true,
                "supports_tunnel": true,
            }),
            metadata: json!({
                "agent_name": self.agent_name,
                "agent_mode": if self.in_cluster { "kubernetes" } else { "vm-agent" },
                "registration_mode": if self.cluster_id.is_some() { "resume" } else { "fresh" },
                "registration_timestamp": self.timestamp,
            }),
            cluster_id: self.cluster_id.as_deref(),
            k8s_service_token: service_token,
            cluster_cert_data: self.cluster_cert_data.as_deref(),
        };
        serde_json::to_value(body).unwrap_or_default()
    }
}

/// What a successful registration says.
#[derive(Clone, Debug)]
pub(crate) struct Registered {
    /// The UUID that all later calls use.
    pub(crate) cluster_id: String,
    pub(crate) name: Option<String>,
    pub(crate) workspace_id: Option<String>,
    /// Where k8s-proxy may dial, with its own token: an extension of ours.
    pub(crate) proxy_url: Option<String>,
    pub(crate) proxy_token: Option<SecretString>,
}

/// Reads the answer to a registration; `None` when it names no cluster.
///
/// `cluster_id` stands at the top; older control planes nest it in `data` or `cluster`.
pub(crate) fn parse(body: &[u8]) -> Option<Registered> {
    let value: Value = serde_json::from_slice(body).ok()?;
    let none = Value::Null;
    let cluster = value.get("cluster").unwrap_or(&none);
    let data = value.get("data").unwrap_or(&none);
    let cluster_id = text(&value, &["cluster_id", "cluster_uuid"])
        .or_else(|| text(data, &["cluster_id", "cluster_uuid"]))
        .or_else(|| text(cluster, &["uuid", "id"]))
        .filter(|id| is_path_segment(id))?;
    Some(Registered {
        cluster_id,
        name: text(&value, &["name"]).or_else(|| text(cluster, &["name"])),
        workspace_id: text(cluster, &["workspace_id"]).or_else(|| text(&value, &["workspace_id"])),
        proxy_url: text(&value, &["proxy_url"]).or_else(|| text(data, &["proxy_url"])),
        proxy_token: text(&value, &["proxy_token"])
            .or_else(|| text(data, &["proxy_token"]))
            .map(SecretString::from),
    })
}

/// The id becomes part of a path: it must not lead elsewhere.
fn is_path_segment(id: &str) -> bool {
    const LONGEST: usize = 128;
    id.len() <= LONGEST
        && !id.starts_with('.')
        && id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_documented_answers_are_read() {
        let flat = br#"{"cluster_id":"uuid-1","name":"prod","status":"active","proxy_url":"wss://p","proxy_token":"s"}"#;
        let answer = parse(flat).unwrap();
        assert_eq!(
            (answer.cluster_id.as_str(), answer.name.as_deref()),
            ("uuid-1", Some("prod"))
        );
        assert_eq!(answer.proxy_url.as_deref(), Some("wss://p"));
        assert!(!format!("{answer:?}").contains("\"s\""));
        let both = br#"{"cluster_id":"top","cluster":{"uuid":"nested","workspace_id":7},"data":{"cluster_id":"old"}}"#;
        let answer = parse(both).unwrap();
        assert_eq!(
            (answer.cluster_id.as_str(), answer.workspace_id.as_deref()),
            ("top", Some("7"))
        );
        assert_eq!(
            parse(br#"{"data":{"cluster_id":"old"}}"#).unwrap().cluster_id,
            "old"
        );
        assert_eq!(
            parse(br#"{"cluster":{"uuid":"nested"}}"#).unwrap().cluster_id,
            "nested"
        );
    }

    #[test]
    fn an_answer_without_a_usable_cluster_is_none() {
        for body in [
            &b""[..],
            b"[]",
            b"{}",
            b"<html>",
            br#"{"cluster_id":""}"#,
            br#"{"cluster_id":null}"#,
            br#"{"cluster_id":"../../admin"}"#,
            br#"{"cluster_id":"a/b"}"#,
            br#"{"cluster_id":".."}"#,
            br#"{"cluster_id":"a?b"}"#,
        ] {
            assert!(parse(body).is_none(), "{}", String::from_utf8_lossy(body));
        }
    }

    #[test]
    fn the_service_token_is_sent_only_when_given() {
        let registration = Registration {
            agent_id: "a".to_owned(),
            ..Registration::default()
        };
        let body = registration.to_body(None);
        assert!(body.get("k8s_service_token").is_none() && body.get("cluster_id").is_none());
        assert_eq!(body["metadata"]["registration_mode"], "fresh");
        let hinted = Registration {
            cluster_id: Some("u".to_owned()),
            ..registration
        };
        let body = hinted.to_body(Some("t"));
        assert_eq!(
            (&body["cluster_id"], &body["k8s_service_token"]),
            (&json!("u"), &json!("t"))
        );
        assert_eq!(body["metadata"]["registration_mode"], "resume");
    }

    proptest! {
        #[test]
        fn no_answer_makes_the_reader_panic(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            parse(&body);
            super::super::complaint(&body);
        }

        #[test]
        fn what_is_accepted_as_an_id_stays_one_path_segment(id in "\\PC{0,40}") {
            let body = json!({ "cluster_id": id }).to_string();
            if let Some(answer) = parse(body.as_bytes()) {
                let url = url::Url::parse("https://h/a/").unwrap().join(&format!("{}/beat", answer.cluster_id));
                if let Ok(url) = url {
                    prop_assert!(url.host_str() == Some("h") || answer.cluster_id.contains(':'));
                }
                prop_assert!(!answer.cluster_id.contains(['/', '?', '#', '%', '\\']));
            }
        }
    }
}
