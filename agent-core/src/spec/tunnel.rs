//! What tunnel-sidecar is told: the owner's forwards, matched with the ports the control plane gave out.

use std::time::Duration;

use proto::v1::{Forward, Header, TunnelSpec};
use runtime::{dial::url_is_loopback, secret::ExposeSecret as _};
use url::Url;

use crate::{
    config::{ForwardConfig, TunnelConfig},
    wire::tunnel::{Offer, Status, canonical_name},
};

/// The decision that follows from configuration alone, where there is one: off, or a server fixed by the owner.
pub(crate) fn fixed(config: &TunnelConfig) -> Option<TunnelSpec> {
    if !config.enabled {
        return Some(off(config, "tunnel.enabled is false".to_owned()));
    }
    let server = config.server.clone()?;
    let forwards = config.forwards.iter().filter(|forward| forward.remote_port != 0);
    let forwards: Vec<Forward> = forwards
        .map(|forward| message(forward, forward.remote_port))
        .collect();
    let credentials = match config.credentials.as_ref().map(crate::config::TokenSource::read) {
        None => String::new(),
        Some(Ok(credentials)) => credentials.expose_secret().to_owned(),
        Some(Err(reason)) => return Some(off(config, format!("tunnel.credentials_file: {reason}"))),
    };
    let base = match base(config) {
        Ok(base) => base,
        Err(reason) => return Some(off(config, reason)),
    };
    Some(TunnelSpec {
        enabled: true,
        reason: "tunnel.server is set by the owner".to_owned(),
        server,
        credentials,
        fingerprint: config.fingerprint.clone().unwrap_or_default(),
        forwards,
        ..base
    })
}

/// Who wants the tunnel, and since when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Demand {
    /// The control plane opens and closes the tunnel as it is needed.
    on_demand: bool,
    /// How often it asked for one that had closed because nothing moved.
    asked: u64,
}

impl Demand {
    /// Takes note of an answer. `asleep` says that the tunnel had closed for silence before the question was asked: a
    /// control plane that still wants it then asks anew. Seed 003's `ready` alone says that there is a tunnel and not
    /// that somebody needs it, so a control plane that never says another word has one that does not close.
    pub(crate) fn note(&mut self, status: &Status, asleep: bool) {
        match status {
            Status::Idle(_) => self.on_demand = true,
            Status::Wanted(wanted) => {
                self.on_demand |= wanted.on_demand;
                self.asked += u64::from(asleep);
            }
        }
    }
}

/// The decision that follows from an answer of the control plane, and what the log should know about it.
pub(crate) fn from_status(
    config: &TunnelConfig,
    status: &Status,
    demand: Demand,
) -> (TunnelSpec, Vec<String>) {
    let wanted = match status {
        Status::Idle(word) => {
            return (
                off(config, format!("the control plane wants no tunnel ({word})")),
                Vec::new(),
            );
        }
        Status::Wanted(wanted) => wanted,
    };
    if let Err(reason) = trusted(&wanted.server, config) {
        return (off(config, reason), Vec::new());
    }
    let base = match base(config) {
        Ok(base) => base,
        Err(reason) => return (off(config, reason), Vec::new()),
    };
    let (forwards, notes) = match_forwards(&config.forwards, &wanted.forwards);
    if forwards.is_empty() && base.remotes.is_empty() {
        return (
            off(
                config,
                "the control plane gave a port to none of tunnel.forwards".to_owned(),
            ),
            notes,
        );
    }
    let credentials = wanted
        .credentials
        .as_ref()
        .map(|pair| pair.expose_secret().to_owned());
    let spec = TunnelSpec {
        enabled: true,
        reason: "the control plane wants the tunnel".to_owned(),
        server: wanted.server.clone(),
        credentials: credentials.unwrap_or_default(),
        fingerprint: config
            .fingerprint
            .clone()
            .or_else(|| wanted.fingerprint.clone())
            .unwrap_or_default(),
        forwards,
        // Only a tunnel on demand closes by itself.
        inactivity_timeout_ms: if demand.on_demand {
            millis(config.inactivity_timeout)
        } else {
            0
        },
        demand: demand.asked,
        echo_remote_port: wanted.echo.map_or(0, u32::from),
        ..base
    };
    (spec, notes)
}

/// A tunnel that is off on purpose.
pub(crate) fn off(config: &TunnelConfig, reason: String) -> TunnelSpec {
    TunnelSpec {
        enabled: false,
        reason,
        ..plain(config)
    }
}

/// What does not depend on the control plane. Proxy and headers are read at this moment, like the credentials.
fn base(config: &TunnelConfig) -> Result<TunnelSpec, String> {
    let chisel = &config.chisel;
    let headers = chisel.headers()?.into_iter().map(|(name, value)| Header {
        name,
        value: value.expose_secret().to_owned(),
    });
    let proxy = chisel.proxy()?;
    Ok(TunnelSpec {
        remotes: chisel.remotes.clone(),
        socks_targets: chisel.socks_targets.clone(),
        hostname: chisel.hostname.clone().unwrap_or_default(),
        tls_server_name: chisel.tls_server_name.clone().unwrap_or_default(),
        tls_skip_verify_i_know_it_is_insecure: chisel.tls_skip_verify,
        proxy: proxy
            .map(|proxy| proxy.expose_secret().to_owned())
            .unwrap_or_default(),
        headers: headers.collect(),
        ..plain(config)
    })
}

/// What needs nothing to be read.
fn plain(config: &TunnelConfig) -> TunnelSpec {
    TunnelSpec {
        allowed_targets: config.allowed_targets.clone(),
        allow_insecure: config.allow_insecure,
        ca_pem: config.ca_pem.clone().unwrap_or_default().into(),
        ping_interval_ms: u32::try_from(millis(config.ping_interval)).unwrap_or(u32::MAX),
        ping_timeout_ms: u32::try_from(millis(config.ping_timeout)).unwrap_or(u32::MAX),
        in_cluster: config.in_cluster,
        raw_kubernetes_api: config.raw_kubernetes_api,
        kubelet_metrics: config.kubelet_metrics,
        sessions: config.sessions,
        ..TunnelSpec::default()
    }
}

/// A server that the control plane hands out gets our credentials only over verified TLS. An owner's fingerprint
/// proves the server over any link.
fn trusted(server: &str, config: &TunnelConfig) -> Result<(), String> {
    let full = if server.contains("://") {
        server.to_owned()
    } else {
        format!("https://{server}")
    };
    let url =
        Url::parse(&full).map_err(|error| format!("the tunnel server {server:?} is no URL: {error}"))?;
    if !url.has_host() {
        return Err(format!("the tunnel server {server:?} names no host"));
    }
    match url.scheme() {
        "wss" | "https" => Ok(()),
        "ws" | "http" if url_is_loopback(&url) || config.allow_insecure || config.fingerprint.is_some() => {
            Ok(())
        }
        "ws" | "http" => Err(format!(
            "the control plane hands out the tunnel server {}://{}, which would get the credentials in clear: it \
             must be wss, or set tunnel.fingerprint, or tunnel.allow_insecure: true if the network is trusted",
            url.scheme(),
            url.host_str().unwrap_or_default()
        )),
        scheme => Err(format!(
            "the tunnel server has the scheme {scheme}, which chisel does not speak"
        )),
    }
}

fn match_forwards(local: &[ForwardConfig], offers: &[Offer]) -> (Vec<Forward>, Vec<String>) {
    let mut forwards: Vec<Forward> = Vec::new();
    let mut notes = Vec::new();
    for offer in offers {
        let found = local
            .iter()
            .find(|forward| forward.name == offer.name)
            .or_else(|| {
                local
                    .iter()
                    .find(|forward| canonical_name(&forward.name) == canonical_name(&offer.name))
            });
        match found {
            Some(forward) if forwards.iter().any(|known| known.name == forward.name) => {}
            Some(forward) => forwards.push(message(forward, offer.remote_port)),
            None => notes.push(format!(
                "the control plane offers port {} for the forward {:?}, which tunnel.forwards does not have",
                offer.remote_port, offer.name
            )),
        }
    }
    // The order of the answer means nothing and must not look like a change.
    forwards.sort_by(|a, b| a.name.cmp(&b.name));
    (forwards, notes)
}

fn message(forward: &ForwardConfig, remote_port: u16) -> Forward {
    Forward {
        name: forward.name.clone(),
        remote_host: String::new(),
        remote_port: u32::from(remote_port),
        target: forward.target.clone(),
        protocol: forward.protocol.name().to_owned(),
        max_connections: forward.limits.max_connections,
        bytes_per_second_in: forward.limits.bandwidth_in,
        bytes_per_second_out: forward.limits.bandwidth_out,
        idle_timeout_ms: millis(forward.limits.idle_timeout),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{spec::Publisher, wire::tunnel::parse};

    pub(crate) fn config() -> TunnelConfig {
        let forward = |name: &str, target: &str| ForwardConfig {
            name: name.to_owned(),
            target: target.to_owned(),
            remote_port: 0,
            protocol: crate::config::Protocol::Tcp,
            limits: crate::config::ForwardLimits::default(),
        };
        TunnelConfig {
            enabled: true,
            poll_interval: Duration::from_secs(5),
            inactivity_timeout: Duration::from_secs(300),
            forwards: vec![
                forward("kubernetes-api", "localhost:6443"),
                forward("kubelet-metrics", "localhost:10250"),
                forward("agent-http", "localhost:8080"),
            ],
            server: None,
            credentials: None,
            fingerprint: None,
            ca_pem: None,
            allow_insecure: false,
            allowed_targets: Vec::new(),
            raw_kubernetes_api: false,
            kubelet_metrics: false,
            ping_interval: Duration::ZERO,
            ping_timeout: Duration::ZERO,
            in_cluster: true,
            chisel: crate::config::ChiselConfig::default(),
            sessions: 1,
        }
    }

    fn status(server: &str, forwards: &str) -> Status {
        let body = format!(r#"{{"status":"ready","tunnel_url":"{server}","forwards":{forwards}}}"#);
        parse(body.as_bytes()).unwrap().status
    }

    const OFFERS: &str = r#"[{"name":"agent-http","remote_port":8002},{"name":"k8s-api","remote_port":8000},
        {"name":"kubelet","remote_port":8001},{"name":"other","remote_port":1}]"#;

    #[test]
    fn forwards_are_matched_by_name_and_by_common_alias() {
        let (spec, notes) = from_status(&config(), &status("wss://t", OFFERS), Demand::default());
        let found: Vec<_> = spec
            .forwards
            .iter()
            .map(|f| (f.name.as_str(), f.remote_port, f.target.as_str()))
            .collect();
        assert_eq!(
            found,
            [
                ("agent-http", 8002, "localhost:8080"),
                ("kubelet-metrics", 8001, "localhost:10250"),
                ("kubernetes-api", 8000, "localhost:6443"),
            ]
        );
        assert!(spec.enabled && spec.in_cluster && spec.inactivity_timeout_ms == 0);
        assert_eq!(notes.len(), 1);
    }

    #[test]
    fn a_tunnel_on_demand_closes_after_silence_and_opens_when_it_is_asked_for() {
        let ready = status("wss://t", OFFERS);
        let older = parse(br#"{"status":"ACTIVE","tunnel_server_addr":"wss://t","forwards":[]}"#);
        let mut demand = Demand::default();
        let timeout = |demand| from_status(&config(), &ready, demand).0.inactivity_timeout_ms;
        demand.note(&ready, false);
        assert_eq!(timeout(demand), 0, "nobody closes and opens it");
        let mut other = demand;
        other.note(&Status::Idle("idle".to_owned()), false);
        assert_eq!(timeout(other), 300_000);
        demand.note(&older.unwrap().status, false);
        assert_eq!(timeout(demand), 300_000);
        let publisher = Publisher::new("e".to_owned());
        assert!(publisher.publish(from_status(&config(), &ready, demand).0));
        demand.note(&ready, false);
        assert!(!publisher.publish(from_status(&config(), &ready, demand).0));
        demand.note(&ready, true);
        assert!(
            publisher.publish(from_status(&config(), &ready, demand).0),
            "asked anew"
        );
        assert_eq!(publisher.current().unwrap().revision, 2);
    }

    #[test]
    fn limits_sessions_and_the_echo_door_reach_the_sidecar() {
        let mut config = TunnelConfig {
            sessions: 3,
            ..config()
        };
        config.forwards[2].limits = crate::config::ForwardLimits {
            max_connections: 7,
            bandwidth_in: 8,
            bandwidth_out: 9,
            idle_timeout: Duration::from_secs(1),
        };
        let offers =
            r#"[{"name":"agent-http","remote_port":8002},{"name":"pipeops-echo","remote_port":9000}]"#;
        let (spec, notes) = from_status(&config, &status("wss://t", offers), Demand::default());
        assert_eq!((spec.sessions, spec.echo_remote_port, notes.len()), (3, 9000, 0));
        let forward = &spec.forwards[0];
        assert_eq!(spec.forwards.len(), 1);
        assert_eq!(
            (
                forward.max_connections,
                forward.bytes_per_second_in,
                forward.bytes_per_second_out,
                forward.idle_timeout_ms
            ),
            (7, 8, 9, 1000)
        );
    }

    #[test]
    fn off_is_a_decision_with_a_reason() {
        let (spec, _) = from_status(&config(), &Status::Idle("IDLE".to_owned()), Demand::default());
        assert!(!spec.enabled && spec.reason.contains("IDLE") && spec.forwards.is_empty());
        let (spec, _) = from_status(&config(), &status("wss://t", "[]"), Demand::default());
        assert!(!spec.enabled && spec.reason.contains("tunnel.forwards"));
        let disabled = TunnelConfig {
            enabled: false,
            ..config()
        };
        assert_eq!(fixed(&disabled).unwrap().reason, "tunnel.enabled is false");
        assert!(
            fixed(&config()).is_none(),
            "nothing is known before the control plane answers"
        );
    }

    #[test]
    fn a_server_handed_out_gets_credentials_only_over_tls() {
        for server in [
            "wss://t",
            "https://t:443",
            "t.example:443",
            "ws://127.0.0.1:9",
            "ws://[::1]:9",
        ] {
            assert!(
                from_status(&config(), &status(server, OFFERS), Demand::default())
                    .0
                    .enabled,
                "{server}"
            );
        }
        for server in ["ws://t", "http://10.0.0.1", "ftp://t", "wss://", "::"] {
            let (spec, _) = from_status(&config(), &status(server, OFFERS), Demand::default());
            assert!(!spec.enabled && spec.credentials.is_empty(), "{server}");
        }
        let reason = from_status(&config(), &status("ws://t", OFFERS), Demand::default())
            .0
            .reason;
        assert!(reason.contains("tunnel.allow_insecure"), "{reason}");
        let allowed = TunnelConfig {
            allow_insecure: true,
            ..config()
        };
        assert!(
            from_status(&allowed, &status("ws://t", OFFERS), Demand::default())
                .0
                .enabled
        );
        let pinned = TunnelConfig {
            fingerprint: Some("f".to_owned()),
            ..config()
        };
        let (spec, _) = from_status(&pinned, &status("ws://t", OFFERS), Demand::default());
        assert!(spec.enabled && spec.fingerprint == "f");
    }

    #[test]
    fn a_fixed_server_needs_no_control_plane_and_never_closes_by_itself() {
        let mut fixed_config = TunnelConfig {
            server: Some("wss://t".to_owned()),
            ..config()
        };
        fixed_config.forwards[0].remote_port = 9000;
        let spec = fixed(&fixed_config).unwrap();
        assert_eq!((spec.forwards.len(), spec.inactivity_timeout_ms), (1, 0));
    }

    #[test]
    fn what_a_user_of_chisel_writes_reaches_the_sidecar() {
        let mut config = TunnelConfig {
            server: Some("wss://t".to_owned()),
            forwards: Vec::new(),
            ..config()
        };
        config.chisel.remotes = vec!["R:2222:localhost:22".to_owned()];
        config.chisel.proxy = Some(crate::config::TokenSource::Value("http://u:p@proxy:3128".into()));
        config.chisel.headers = vec![("X-A".to_owned(), "b".into())];
        let spec = fixed(&config).unwrap();
        assert!(spec.enabled);
        assert_eq!(
            (spec.remotes.len(), spec.proxy.as_str()),
            (1, "http://u:p@proxy:3128")
        );
        assert_eq!(
            (spec.headers[0].name.as_str(), spec.headers[0].value.as_str()),
            ("X-A", "b")
        );
        // They stand also when the control plane gives ports to none of the others.
        let (spec, _) = from_status(&config, &status("wss://t", "[]"), Demand::default());
        assert!(spec.enabled && spec.remotes.len() == 1);
        config.chisel.proxy = Some(crate::config::TokenSource::Value("ftp://canary@proxy".into()));
        let spec = fixed(&config).unwrap();
        assert!(
            !spec.enabled && spec.reason.contains("tunnel.proxy"),
            "{}",
            spec.reason
        );
        assert!(!spec.reason.contains("canary"));
    }

    #[test]
    fn the_revision_rises_only_with_the_content() {
        let publisher = Publisher::new("e".to_owned());
        assert!(publisher.current().is_none());
        assert!(publisher.publish(from_status(&config(), &status("wss://t", OFFERS), Demand::default()).0));
        let turned = r#"[{"name":"kubelet","remote_port":8001},{"name":"k8s-api","remote_port":8000},
            {"name":"agent-http","remote_port":8002}]"#;
        assert!(
            !publisher.publish(from_status(&config(), &status("wss://t", turned), Demand::default()).0),
            "equal content"
        );
        assert!(publisher.publish(off(&config(), "x".to_owned())));
        let spec = publisher.current().unwrap();
        assert_eq!((spec.epoch.as_str(), spec.revision), ("e", 2));
    }
}
