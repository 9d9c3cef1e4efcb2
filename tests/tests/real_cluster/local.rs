//! Our processes on this machine, the admin's kubeconfig, the real apiserver.

use anyhow::{Result, ensure};
use harness::{
    cluster::RealCluster,
    control_plane::ControlPlaneConfig,
    lab::{Cluster, Lab, TOKEN},
    pod::Part,
    scenarios::{identity, informers, kill, managing, start, survive, watches},
};

macro_rules! scenarios {
    ($($name:ident: $scenario:expr;)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() -> Result<()> {
            let scenario = $scenario;
            scenario(Cluster::Real(RealCluster::running().await?.kubeconfig()?)).await
        }
    )*};
}

scenarios! {
    managing_from_far_away: managing::from_far_away;
    kill_agent_core: |cluster| kill::one(cluster, Part::Core);
    kill_tunnel_sidecar: |cluster| kill::one(cluster, Part::Tunnel);
    kill_k8s_proxy: |cluster| kill::one(cluster, Part::Proxy);
    two_hundred_watches: watches::two_hundred;
    bad_frames: watches::bad_frames;
    bytes_are_the_apiservers: informers::bytes_are_the_apiservers;
    client_go_sees_each_change_once: informers::client_go;
    watches_survive_over_http2: |cluster| survive::matrix(cluster, &survive::Fault::REAL, true);
    watches_survive_over_frames: |cluster| survive::matrix(cluster, &survive::Fault::REAL, false);
    restarts_keep_one_identity: identity::restarts_keep_one_identity;
    restarts_from_its_copy: identity::restarts_from_its_copy;
    registers_nothing_without_knowing_who_it_is: identity::registers_nothing_without_knowing_who_it_is;
    outlives_outages_of_the_control_plane: identity::outlives_outages_of_the_control_plane;
    first_refusal_ends_the_process: identity::first_refusal_ends_the_process;
    is_known_again_after_it_was_forgotten: identity::is_known_again_after_it_was_forgotten;
    a_refused_agent_stays_and_comes_back: identity::a_refused_agent_stays_and_comes_back;
    a_clean_stop_says_goodbye: identity::a_clean_stop_says_goodbye;
    start_core_first: |cluster| start::in_order(cluster, start::ORDERS[0]);
    start_core_last: |cluster| start::in_order(cluster, start::ORDERS[5]);
    service_links_do_not_hurt: service_links;
}

/// What a kubelet puts into the environment for Services named `agent` and `pipeops-agent` in the pod's namespace.
async fn service_links(cluster: Cluster) -> Result<()> {
    let mut lab = Lab::with(cluster, ControlPlaneConfig::new(TOKEN), |mut pod| {
        for part in Part::ALL {
            for service in ["AGENT", "PIPEOPS_AGENT"] {
                for (name, value) in [
                    ("PORT", "tcp://10.92.0.7:8080"),
                    ("PORT_8080_TCP", "tcp://10.92.0.7:8080"),
                    ("PORT_8080_TCP_ADDR", "10.92.0.7"),
                    ("PORT_8080_TCP_PORT", "8080"),
                    ("PORT_8080_TCP_PROTO", "tcp"),
                    ("SERVICE_HOST", "10.92.0.7"),
                    ("SERVICE_PORT", "8080"),
                    ("SERVICE_PORT_HTTP", "8080"),
                ] {
                    pod = pod.env(part, &format!("{service}_{name}"), value);
                }
            }
        }
        pod
    })
    .await?;
    let id = lab.start().await?;
    ensure!(
        lab.kubectl(&id, &["get", "namespaces", "-o", "name"])
            .await?
            .contains("namespace/default")
    );
    Ok(())
}
