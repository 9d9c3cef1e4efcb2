//! What k8s-proxy is told: who may knock, where to dial, and which objects agent-core may touch.

use proto::v1::{AcceptedToken, CredentialMode, DialedDoor, DoorProtocol, ProxySpec};
use runtime::{
    dial::url_is_loopback,
    secret::{ExposeSecret as _, SecretString},
};
use url::Url;

use crate::config::{Config, Mode, Spoken};

/// Names that do not change while the process runs.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    pub(crate) namespace: String,
    pub(crate) state_secret: String,
    pub(crate) lease: String,
    pub(crate) pod_name: String,
}

impl Names {
    pub(crate) fn of(config: &Config) -> Self {
        Self {
            namespace: config.state.namespace.clone(),
            state_secret: config.state.secret_name.clone(),
            lease: config.proxy.lease.clone(),
            pod_name: config.pod.name.clone().unwrap_or_default(),
        }
    }
}

/// What registration returned, or state kept, for the dialled door.
#[derive(Clone, Debug, Default)]
pub(crate) struct Session {
    pub(crate) url: Option<String>,
    pub(crate) token: Option<SecretString>,
}

/// The specification. `token_digest` is that of the control-plane token: k8s-proxy never sees the token itself.
pub(crate) fn spec(
    config: &crate::config::ProxyConfig,
    names: &Names,
    control_plane_ca: Option<&[u8]>,
    token_digest: [u8; 32],
    session: &Session,
) -> ProxySpec {
    let mut reason = String::new();
    let mut accept = Vec::new();
    let mut dial = Vec::new();
    if config.enabled {
        accept.push(AcceptedToken {
            sha256: token_digest.to_vec().into(),
            name: "control-plane".to_owned(),
            mode: mode(config.control_plane_mode).into(),
            groups: Vec::new(),
        });
        match dialed(config, control_plane_ca, session) {
            Ok(door) => dial.extend(door),
            Err(why) => reason = why,
        }
    } else {
        reason = "proxy.enabled is false".to_owned();
    }
    for token in &config.door_tokens {
        if let Some(sha256) = token.sha256() {
            accept.push(AcceptedToken {
                sha256: sha256.into(),
                name: token.name.clone(),
                mode: mode(token.mode).into(),
                groups: token.groups.clone(),
            });
        }
    }
    ProxySpec {
        reason,
        accept,
        dial,
        namespace: names.namespace.clone(),
        state_secret: names.state_secret.clone(),
        lease: names.lease.clone(),
        pod_name: names.pod_name.clone(),
        ..ProxySpec::default()
    }
}

/// The door that the owner names beats the one that the registration returned.
fn dialed(
    config: &crate::config::ProxyConfig,
    control_plane_ca: Option<&[u8]>,
    session: &Session,
) -> Result<Option<DialedDoor>, String> {
    let door = |url: String, bearer: String, ca: Option<&[u8]>| DialedDoor {
        url,
        bearer,
        mode: mode(config.dial_mode).into(),
        name: "control-plane".to_owned(),
        allow_insecure: config.allow_insecure,
        ca_pem: ca.unwrap_or_default().to_vec().into(),
        protocol: protocol(config.dial_protocol).into(),
    };
    if let Some(dial) = &config.dial {
        let token = dial
            .token
            .read()
            .map_err(|reason| format!("proxy.dial_token_file: {reason}"))?;
        let ca = dial.ca_pem.as_deref().or(control_plane_ca);
        return Ok(Some(door(
            dial.url.to_string(),
            token.expose_secret().to_owned(),
            ca,
        )));
    }
    // Without a token of its own nothing is dialled: the control-plane token is never handed over.
    let (Some(text), Some(token)) = (&session.url, &session.token) else {
        return Ok(None);
    };
    let url =
        Url::parse(text).map_err(|error| format!("proxy_url of the registration is no URL: {error}"))?;
    match url.scheme() {
        "wss" => {}
        "ws" if url_is_loopback(&url) || config.allow_insecure => {}
        scheme => {
            return Err(format!(
                "proxy_url of the registration is {scheme}://{}: it must be wss, or set proxy.allow_insecure: true",
                url.host_str().unwrap_or_default()
            ));
        }
    }
    Ok(Some(door(
        text.clone(),
        token.expose_secret().to_owned(),
        control_plane_ca,
    )))
}

fn protocol(spoken: Spoken) -> DoorProtocol {
    match spoken {
        Spoken::Best => DoorProtocol::Unspecified,
        Spoken::Frames => DoorProtocol::Frames,
    }
}

fn mode(mode: Mode) -> CredentialMode {
    match mode {
        Mode::Agent => CredentialMode::Agent,
        Mode::Caller => CredentialMode::Caller,
        Mode::Impersonate => CredentialMode::Impersonate,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DoorToken, ProxyConfig};

    fn config() -> ProxyConfig {
        ProxyConfig {
            enabled: true,
            control_plane_mode: Mode::Agent,
            door_tokens: Vec::new(),
            dial: None,
            dial_mode: Mode::Agent,
            dial_protocol: Spoken::Best,
            allow_insecure: false,
            lease: "lease".to_owned(),
            limits: proto::v1::ProxyLimits::default(),
        }
    }

    fn names() -> Names {
        Names {
            namespace: "ns".to_owned(),
            state_secret: "state".to_owned(),
            lease: "lease".to_owned(),
            pod_name: "pod".to_owned(),
        }
    }

    fn session(url: &str) -> Session {
        Session {
            url: Some(url.to_owned()),
            token: Some(SecretString::from("session-token")),
        }
    }

    #[test]
    fn the_doors_know_digests_and_the_dialled_one_its_own_token() {
        let mut config = config();
        config.door_tokens.push(DoorToken {
            name: "ci".to_owned(),
            digest: crate::config::Digest::Given(vec![7; 32]),
            mode: Mode::Caller,
            groups: vec!["g".to_owned()],
        });
        let spec = spec(&config, &names(), None, [1; 32], &session("wss://cp/proxy"));
        let names: Vec<_> = spec.accept.iter().map(|token| token.name.as_str()).collect();
        assert_eq!(names, ["control-plane", "ci"]);
        assert_eq!(spec.accept[0].sha256.as_ref(), [1; 32]);
        assert_eq!(
            (spec.dial[0].url.as_str(), spec.dial[0].bearer.as_str()),
            ("wss://cp/proxy", "session-token")
        );
        assert_eq!(spec.state_secret, "state");
    }

    #[test]
    fn without_a_token_of_its_own_nothing_is_dialled() {
        let bare = Session {
            url: Some("wss://cp".to_owned()),
            token: None,
        };
        assert!(spec(&config(), &names(), None, [1; 32], &bare).dial.is_empty());
        assert!(
            spec(&config(), &names(), None, [1; 32], &Session::default())
                .dial
                .is_empty()
        );
    }

    #[test]
    fn a_url_in_clear_is_not_dialled() {
        let refused = spec(
            &config(),
            &names(),
            None,
            [1; 32],
            &session("ws://cp.example/proxy"),
        );
        assert!(refused.dial.is_empty() && refused.reason.contains("proxy.allow_insecure"));
        assert_eq!(
            spec(&config(), &names(), None, [1; 32], &session("ws://127.0.0.1:1/p"))
                .dial
                .len(),
            1
        );
        let config = ProxyConfig {
            enabled: false,
            ..config()
        };
        let off = spec(&config, &names(), None, [1; 32], &session("wss://cp"));
        assert!(off.dial.is_empty() && off.accept.is_empty() && !off.reason.is_empty());
    }
}
