//! Our three processes against the reference control plane, the real chisel server and the simulated cluster.

mod access;
mod configuration;
mod layout;
mod page;

use anyhow::Result;
use harness::{
    lab::Cluster,
    pod::Part,
    scenarios::{identity, informers, kill, leave, limits, managing, proof, start, survive, watches},
};

/// One test for each scenario: a fresh simulated cluster, a runtime with two threads.
macro_rules! scenarios {
    ($($name:ident: $scenario:expr;)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() -> Result<()> {
            let scenario = $scenario;
            scenario(Cluster::simulated().await?).await
        }
    )*};
}

scenarios! {
    managing_from_far_away: managing::from_far_away;
    one_trace: managing::one_trace;
    spans_of_the_tunnel: managing::spans_of_the_tunnel;
    kill_agent_core: |cluster| kill::one(cluster, Part::Core);
    kill_tunnel_sidecar: |cluster| kill::one(cluster, Part::Tunnel);
    kill_k8s_proxy: |cluster| kill::one(cluster, Part::Proxy);
    bytes_through_every_forward: proof::bytes_through_every_forward;
    silence_closes_and_the_next_answer_opens: proof::silence_closes_and_the_next_answer_opens;
    two_hundred_watches: watches::two_hundred;
    bad_frames: watches::bad_frames;
    bytes_are_the_apiservers: informers::bytes_are_the_apiservers;
    client_go_sees_each_change_once: informers::client_go;
    limits_are_lowered_and_never_raised: limits::lowered_and_never_raised;
    watches_survive_over_http2: |cluster| survive::matrix(cluster, &survive::Fault::SIMULATED, true);
    watches_survive_over_frames: |cluster| survive::matrix(cluster, &survive::Fault::SIMULATED, false);
    restarts_keep_one_identity: identity::restarts_keep_one_identity;
    restarts_from_its_copy: identity::restarts_from_its_copy;
    registers_nothing_without_knowing_who_it_is: identity::registers_nothing_without_knowing_who_it_is;
    outlives_outages_of_the_control_plane: identity::outlives_outages_of_the_control_plane;
    first_refusal_ends_the_process: identity::first_refusal_ends_the_process;
    is_known_again_after_it_was_forgotten: identity::is_known_again_after_it_was_forgotten;
    a_refused_agent_stays_and_comes_back: identity::a_refused_agent_stays_and_comes_back;
    a_clean_stop_says_goodbye: identity::a_clean_stop_says_goodbye;
    agent_core_leaves_last: leave::core_leaves_last;
    start_order_1: |cluster| start::in_order(cluster, start::ORDERS[0]);
    start_order_2: |cluster| start::in_order(cluster, start::ORDERS[1]);
    start_order_3: |cluster| start::in_order(cluster, start::ORDERS[2]);
    start_order_4: |cluster| start::in_order(cluster, start::ORDERS[3]);
    start_order_5: |cluster| start::in_order(cluster, start::ORDERS[4]);
    start_order_6: |cluster| start::in_order(cluster, start::ORDERS[5]);
}
