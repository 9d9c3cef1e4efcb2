//! What a forward may lead to.
//!
//! ```text
//!   "localhost:6443" ── in a cluster ──► kubernetes-api ──► 127.0.0.1:8443 ──► never-list ──► dial
//!   "db.shop:5432"   ── literally ──► on the allow-list? ──► never-list ──► DNS ──► never-list ──► dial
//! ```
//!
//! Targets have names because in a pod `localhost:6443` and `localhost:10250` answer nobody.

use std::{collections::BTreeSet, net::IpAddr};

use crate::{
    address::{BadHostPort, HostPort},
    never::{Forbidden, Never, is_localhost},
};

/// The k8s-proxy's HTTPS door, or the raw apiserver when the owner says so.
pub const KUBERNETES_API: &str = "kubernetes-api";
/// The k8s-proxy's HTTP door.
pub const K8S_PROXY: &str = "k8s-proxy";
/// The kubelet of this node; off unless the owner allows it.
pub const KUBELET_METRICS: &str = "kubelet-metrics";
/// agent-core's HTTP port.
pub const AGENT_HTTP: &str = "agent-http";

/// Port of the apiserver as the seeds' configuration writes it.
const SEED_API_PORT: u16 = 6443;
/// Port of the kubelet.
const KUBELET_PORT: u16 = 10250;

/// Where the named targets are, from this process's own settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// What [`KUBERNETES_API`] leads to.
    pub kubernetes_api: HostPort,
    /// What [`K8S_PROXY`] leads to.
    pub k8s_proxy: HostPort,
    /// What [`AGENT_HTTP`] leads to.
    pub agent_http: HostPort,
    /// The node's address, from `HOST_IP`.
    pub host_ip: Option<IpAddr>,
    /// The apiserver itself, from `KUBERNETES_SERVICE_HOST` and `KUBERNETES_SERVICE_PORT`.
    pub apiserver: Option<HostPort>,
}

/// What the owner allows, from the spec.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Permits {
    /// `localhost:6443` and `localhost:10250` are read as names.
    pub in_cluster: bool,
    /// [`KUBERNETES_API`] leads to the apiserver itself.
    pub raw_kubernetes_api: bool,
    /// [`KUBELET_METRICS`] may be used.
    pub kubelet_metrics: bool,
    /// Addresses that may be dialled beside the names.
    pub allowed: BTreeSet<HostPort>,
}

/// A target that may be dialled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// What to dial.
    pub dials: HostPort,
    /// The name as which a seed's `localhost:…` was read, worth a line in the log.
    pub read_as: Option<&'static str>,
}

/// Why a target is not dialled, with what to change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Neither a name nor an address.
    #[error(
        "target {target:?} is no known name (kubernetes-api, k8s-proxy, kubelet-metrics, agent-http) and {why}"
    )]
    Unreadable {
        /// What was asked for.
        target: String,
        /// Why it is no address.
        why: BadHostPort,
    },
    /// The kubelet is off.
    #[error("kubelet-metrics is off: set tunnel.kubeletMetrics: true to open the kubelet's port")]
    KubeletOff,
    /// The node's address is not known.
    #[error("kubelet-metrics needs the node's address: set the variable HOST_IP (status.hostIP)")]
    NoHostIp,
    /// The raw apiserver is wanted and not known.
    #[error(
        "tunnel.rawKubernetesApi is on, but KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set"
    )]
    NoApiserver,
    /// Not on the allow-list.
    #[error("{0} is not on the allow-list: add it to tunnel.allowed_targets")]
    NotAllowed(HostPort),
    /// On the never-list.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
}

/// Finds what `target` leads to. `ours` says whether an address belongs to this machine.
///
/// # Errors
/// Why it must not be dialled.
pub fn resolve(
    target: &str,
    places: &Places,
    permits: &Permits,
    never: &Never,
    ours: impl FnOnce(IpAddr) -> bool,
) -> Result<Target, Refusal> {
    let target = match named(target.trim(), places, permits) {
        Some(dials) => Target {
            dials: dials?,
            read_as: None,
        },
        None => literal(target, places, permits)?,
    };
    never.check_unresolved(&target.dials, ours)?;
    Ok(target)
}

/// What a name leads to; `None` when it is no name.
fn named(name: &str, places: &Places, permits: &Permits) -> Option<Result<HostPort, Refusal>> {
    match name {
        KUBERNETES_API if permits.raw_kubernetes_api => {
            Some(places.apiserver.clone().ok_or(Refusal::NoApiserver))
        }
        KUBERNETES_API => Some(Ok(places.kubernetes_api.clone())),
        K8S_PROXY => Some(Ok(places.k8s_proxy.clone())),
        AGENT_HTTP => Some(Ok(places.agent_http.clone())),
        KUBELET_METRICS if !permits.kubelet_metrics => Some(Err(Refusal::KubeletOff)),
        KUBELET_METRICS => Some(kubelet(places)),
        _ => None,
    }
}

fn kubelet(places: &Places) -> Result<HostPort, Refusal> {
    let ip = places.host_ip.ok_or(Refusal::NoHostIp)?;
    HostPort::new(&ip.to_string(), KUBELET_PORT).map_err(|_| Refusal::NoHostIp)
}

fn literal(target: &str, places: &Places, permits: &Permits) -> Result<Target, Refusal> {
    let address: HostPort = target.parse().map_err(|why| Refusal::Unreadable {
        target: target.to_owned(),
        why,
    })?;
    let here = is_localhost(address.host()) || address.ip().is_some_and(|ip| ip.to_canonical().is_loopback());
    let name = match address.port() {
        SEED_API_PORT if permits.in_cluster && here => Some(KUBERNETES_API),
        KUBELET_PORT if permits.in_cluster && here => Some(KUBELET_METRICS),
        _ => None,
    };
    if let Some(name) = name
        && let Some(dials) = named(name, places, permits)
    {
        return Ok(Target {
            dials: dials?,
            read_as: Some(name),
        });
    }
    // A name's own address is as good as the name: the seeds write `localhost:8080` for agent-http.
    let same = |place: &HostPort| {
        place.port() == address.port()
            && (place.host() == address.host() || here && place.ip().is_some_and(|ip| ip.is_loopback()))
    };
    let of_name = [&places.kubernetes_api, &places.k8s_proxy, &places.agent_http]
        .into_iter()
        .find(|place| same(place));
    match of_name {
        Some(place) => Ok(Target {
            dials: place.clone(),
            read_as: None,
        }),
        None if permits.allowed.contains(&address) => Ok(Target {
            dials: address,
            read_as: None,
        }),
        None => Err(Refusal::NotAllowed(address)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn places() -> Places {
        Places {
            kubernetes_api: "127.0.0.1:8443".parse().unwrap(),
            k8s_proxy: "127.0.0.1:8001".parse().unwrap(),
            agent_http: "127.0.0.1:8080".parse().unwrap(),
            host_ip: Some([10, 1, 2, 3].into()),
            apiserver: Some("10.96.0.1:443".parse().unwrap()),
        }
    }

    fn look(target: &str, permits: &Permits) -> Result<String, Refusal> {
        resolve(target, &places(), permits, &Never::new([]), |_| false).map(|found| found.dials.to_string())
    }

    #[test]
    fn names_lead_to_the_doors() {
        let permits = Permits::default();
        assert_eq!(look("kubernetes-api", &permits).unwrap(), "127.0.0.1:8443");
        assert_eq!(look("k8s-proxy", &permits).unwrap(), "127.0.0.1:8001");
        assert_eq!(look("agent-http", &permits).unwrap(), "127.0.0.1:8080");
        assert_eq!(look("kubelet-metrics", &permits), Err(Refusal::KubeletOff));
    }

    #[test]
    fn the_owner_opens_the_kubelet_and_the_raw_apiserver() {
        let permits = Permits {
            kubelet_metrics: true,
            raw_kubernetes_api: true,
            ..Permits::default()
        };
        assert_eq!(look("kubelet-metrics", &permits).unwrap(), "10.1.2.3:10250");
        assert_eq!(look("kubernetes-api", &permits).unwrap(), "10.96.0.1:443");
        let bare = Places {
            host_ip: None,
            apiserver: None,
            ..places()
        };
        let refused = |target| resolve(target, &bare, &permits, &Never::new([]), |_| false).unwrap_err();
        assert_eq!(refused("kubelet-metrics"), Refusal::NoHostIp);
        assert_eq!(refused("kubernetes-api"), Refusal::NoApiserver);
    }

    #[test]
    fn in_a_cluster_the_seeds_addresses_are_read_as_names() {
        let permits = Permits {
            in_cluster: true,
            kubelet_metrics: true,
            ..Permits::default()
        };
        for host in ["localhost", "127.0.0.1", "[::1]"] {
            let found = |port: u16| {
                resolve(
                    &format!("{host}:{port}"),
                    &places(),
                    &permits,
                    &Never::new([]),
                    |_| false,
                )
                .unwrap()
            };
            assert_eq!(found(6443).dials.to_string(), "127.0.0.1:8443");
            assert_eq!(found(6443).read_as, Some(KUBERNETES_API));
            assert_eq!(found(10250).dials.to_string(), "10.1.2.3:10250");
            assert_eq!(
                found(8080),
                Target {
                    dials: "127.0.0.1:8080".parse().unwrap(),
                    read_as: None
                }
            );
        }
    }

    #[test]
    fn elsewhere_they_are_taken_literally() {
        let permits = Permits::default();
        assert!(matches!(
            look("localhost:6443", &permits),
            Err(Refusal::NotAllowed(_))
        ));
        let permits = Permits {
            allowed: ["localhost:6443".parse().unwrap()].into(),
            ..Permits::default()
        };
        assert_eq!(look("localhost:6443", &permits).unwrap(), "localhost:6443");
    }

    #[test]
    fn the_never_list_wins_over_the_allow_list_and_over_our_own_settings() {
        let metadata: HostPort = "169.254.169.254:80".parse().unwrap();
        let control: HostPort = "localhost:7070".parse().unwrap();
        let permits = Permits {
            allowed: [metadata, control.clone()].into(),
            ..Permits::default()
        };
        for target in ["169.254.169.254:80", "localhost:7070"] {
            assert!(
                matches!(look(target, &permits), Err(Refusal::Forbidden(_))),
                "{target}"
            );
        }
        let places = Places {
            agent_http: control,
            ..places()
        };
        let refused = resolve("agent-http", &places, &permits, &Never::new([]), |_| false);
        assert!(matches!(refused, Err(Refusal::Forbidden(_))));
    }

    #[test]
    fn a_refusal_says_what_to_change() {
        insta::assert_snapshot!(
            ["kubelet-metrics", "nonsense", "db.shop:5432", "db.shop:0"]
                .map(|target| look(target, &Permits::default()).unwrap_err().to_string())
                .join("\n"),
            @r#"
        kubelet-metrics is off: set tunnel.kubeletMetrics: true to open the kubelet's port
        target "nonsense" is no known name (kubernetes-api, k8s-proxy, kubelet-metrics, agent-http) and has no port: write host:port
        db.shop:5432 is not on the allow-list: add it to tunnel.allowed_targets
        target "db.shop:0" is no known name (kubernetes-api, k8s-proxy, kubelet-metrics, agent-http) and has no port between 1 and 65535 after its last colon
        "#
        );
    }

    proptest! {
        #[test]
        fn nothing_outside_the_names_and_the_allow_list_is_ever_dialled(target in "[a-z0-9.:\\[\\]-]{0,24}", in_cluster: bool) {
            let allowed: HostPort = "db.shop:5432".parse().unwrap();
            let permits = Permits { in_cluster, allowed: [allowed.clone()].into(), ..Permits::default() };
            if let Ok(found) = resolve(&target, &places(), &permits, &Never::new([]), |_| false) {
                let places = places();
                let known = [&allowed, &places.kubernetes_api, &places.k8s_proxy, &places.agent_http];
                prop_assert!(known.contains(&&found.dials), "{target} led to {}", found.dials);
            }
        }
    }
}
