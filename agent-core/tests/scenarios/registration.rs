//! Registration and heartbeat against a control plane that behaves, and one that does not.

use runtime::supervise::Outcome;
use serde_json::{Value, json};

use crate::{
    agent::{Agent, eventually, state},
    control_plane::{ControlPlane, Say},
    door::{Cluster, Door},
};

fn error(status: u16, text: &str) -> Say {
    Say::Status(status, json!({ "error": text }))
}

#[tokio::test]
async fn it_registers_beats_and_says_goodbye() {
    let dir = tempfile::tempdir().unwrap();
    let (cp, door) = (ControlPlane::start().await, Door::start(Cluster::default()).await);
    let agent = Agent::start(dir.path(), &cp.url(), &[("PIPEOPS_KUBERNETES_DOOR", &door.url())]).await;
    let registration = cp.registration(1).await;
    assert_eq!(
        (&registration["name"], &registration["cluster_name"]),
        (&json!("lab"), &json!("lab"))
    );
    assert!(
        registration.get("k8s_service_token").is_none(),
        "the pod's own token is never sent"
    );

    let beat = cp
        .beat_with("a beat with counts", |beat| beat["metadata"]["k8s_pods"] == 42)
        .await;
    assert_eq!(
        (&beat["status"], &beat["cluster_id"]),
        (&json!("active"), &json!("uuid-1"))
    );
    assert_eq!(
        (&beat["metadata"]["k8s_nodes"], &beat["tunnel_status"]),
        (&json!(3), &json!("disconnected"))
    );
    assert_eq!(beat["metadata"]["k8s_version"], "v1.34.3");
    assert_eq!(beat["agent"]["containers"][1]["known"], false);
    assert!(beat.get("token").is_none());
    assert!(
        door.cluster().lists.iter().all(|list| list.contains("limit=1")),
        "never a full list"
    );
    agent.readyz(&["ready", "True          Heartbeat"]).await;

    assert_eq!(agent.stop().await, Outcome::Clean);
    let (_, last) = cp.script().beats.last().cloned().unwrap();
    assert_eq!(
        (&last["status"], &last["agent"]["draining"]),
        (&json!("disconnected"), &json!(true))
    );
}

#[tokio::test]
async fn unknown_counts_are_null_and_not_zero() {
    let dir = tempfile::tempdir().unwrap();
    let cp = ControlPlane::start().await;
    let agent = Agent::start(dir.path(), &cp.url(), &[]).await;
    let (_, beat) = cp.beats(3).await;
    assert_eq!(beat["metadata"]["k8s_nodes"], Value::Null);
    assert!(
        agent
            .get("/metrics")
            .await
            .1
            .contains("pipeops_cluster_nodes_total NaN")
    );
    agent.stop().await;
}

#[tokio::test]
async fn a_control_plane_that_is_down_at_the_start_is_found_when_it_comes() {
    let dir = tempfile::tempdir().unwrap();
    let gone = ControlPlane::start().await;
    let address = gone.address;
    gone.stop();
    eventually("the port is free", async || {
        tokio::net::TcpListener::bind(address).await.ok()
    })
    .await;
    let agent = Agent::start(dir.path(), &format!("http://{address}"), &[]).await;
    agent
        .readyz(&[
            "not ready",
            "False         Registered: no answer from the control plane",
        ])
        .await;
    let (live, _) = agent.get("/livez").await;
    assert_eq!(
        live, 200,
        "an outage of the control plane is no reason for a restart"
    );
    let cp = ControlPlane::start_at(address).await;
    cp.beats(2).await;
    agent.readyz(&["True          Registered"]).await;
    agent.stop().await;
}

#[tokio::test]
async fn trouble_is_retried_and_409_with_a_cluster_is_success() {
    let dir = tempfile::tempdir().unwrap();
    let cp = ControlPlane::start().await;
    cp.say_register([
        error(503, "later"),
        error(429, "slow down"),
        error(500, "oops"),
        error(404, "not here yet"),
        Say::Ok(json!({ "success": false })),
        Say::Status(409, json!({ "cluster_id": "uuid-9" })),
    ]);
    let agent = Agent::start(dir.path(), &cp.url(), &[]).await;
    let (cluster, _) = cp.beats(1).await;
    assert_eq!((cluster.as_str(), cp.script().registrations.len()), ("uuid-9", 6));
    agent.stop().await;
}

#[tokio::test]
async fn a_refused_first_registration_ends_the_process_with_a_sentence() {
    for (status, words) in [(401, "PIPEOPS_TOKEN"), (409, "PIPEOPS_CLUSTER_NAME")] {
        let dir = tempfile::tempdir().unwrap();
        let cp = ControlPlane::start().await;
        cp.say_register([error(status, "no")]);
        let agent = Agent::start(dir.path(), &cp.url(), &[]).await;
        assert_eq!(agent.supervisor.finish().await, Outcome::Failed);
        let sentence = std::fs::read_to_string(dir.path().join("termination-log")).unwrap();
        assert!(
            sentence.contains(words) && sentence.contains(&status.to_string()),
            "{sentence}"
        );
        assert_eq!(cp.script().registrations.len(), 1);
    }
}

#[tokio::test]
async fn a_forgotten_agent_registers_again_with_its_cluster_as_hint() {
    let dir = tempfile::tempdir().unwrap();
    let cp = ControlPlane::start().await;
    let agent = Agent::start(dir.path(), &cp.url(), &[]).await;
    cp.beats(2).await;
    cp.say_register([Say::Ok(json!({ "cluster_id": "uuid-2" }))]);
    cp.say_beat([error(404, "cluster not registered"), Say::Ok(json!({}))]);
    let again = cp.registration(2).await;
    assert_eq!(
        (&again["cluster_id"], &again["metadata"]["registration_mode"]),
        (&json!("uuid-1"), &json!("resume"))
    );
    eventually("beats of the new cluster", async || {
        cp.script()
            .beats
            .last()
            .filter(|(cluster, _)| cluster == "uuid-2")
            .map(drop)
    })
    .await;
    eventually("the new cluster is kept", async || {
        (state(dir.path()).get("cluster_id").map(String::as_str) == Some("uuid-2")).then_some(())
    })
    .await;
    assert_eq!(cp.script().registrations.len(), 2);
    agent.stop().await;
}

#[tokio::test]
async fn a_refused_agent_stays_up_and_takes_a_new_token_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let cp = ControlPlane::start().await;
    let agent = Agent::start(dir.path(), &cp.url(), &[]).await;
    cp.beats(2).await;
    cp.script().token = "rotated".to_owned();
    agent
        .readyz(&["not ready", "True          Refused: the control plane", "401"])
        .await;
    let refused = cp.script().registrations.len();
    assert_eq!(refused, 2, "one registration with the hint, then patience");
    assert_eq!(agent.get("/livez").await.0, 200);
    std::fs::write(dir.path().join("token"), "rotated").unwrap();
    agent.readyz(&["ready\n", "NotApplicable Refused"]).await;
    let (cluster, _) = cp.beats(1).await;
    assert_eq!(cluster, "uuid-1");
    agent.stop().await;
}

#[tokio::test]
async fn a_heartbeat_without_an_answer_does_not_hold_up_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let cp = ControlPlane::start().await;
    let agent = Agent::start(dir.path(), &cp.url(), &[]).await;
    cp.beats(1).await;
    cp.say_beat([Say::Hang, Say::Hang, Say::Ok(json!({}))]);
    cp.beats(6).await;
    agent.readyz(&["ready"]).await;
    agent.stop().await;
}

#[tokio::test]
async fn two_starts_are_one_agent() {
    let dir = tempfile::tempdir().unwrap();
    let cp = ControlPlane::start().await;
    let agent = Agent::start(dir.path(), &cp.url(), &[]).await;
    let (_, first) = cp.beats(1).await;
    eventually("the registration is kept", async || {
        state(dir.path()).contains_key("registration").then_some(())
    })
    .await;
    agent.stop().await;
    let agent = Agent::start(dir.path(), &cp.url(), &[]).await;
    let (_, second) = cp.beats(2).await;
    assert_eq!(
        (&first["agent_id"], &first["cluster_id"]),
        (&second["agent_id"], &second["cluster_id"])
    );
    assert_eq!(cp.script().registrations.len(), 1);
    agent.stop().await;
    // What the control plane was told has changed: it hears of it, as the same cluster.
    let agent = Agent::start(dir.path(), &cp.url(), &[("PIPEOPS_AGENT_LABELS", "zone=b")]).await;
    let news = cp.registration(2).await;
    assert_eq!(
        (&news["cluster_id"], &news["labels"]["zone"]),
        (&json!("uuid-1"), &json!("b"))
    );
    assert_eq!(news["agent_id"], first["agent_id"]);
    agent.stop().await;
}

#[tokio::test]
async fn the_owners_service_token_is_sent_and_asked_for_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let cp = ControlPlane::start().await;
    cp.say_register([error(400, "k8s_service_token is required")]);
    let agent = Agent::start(dir.path(), &cp.url(), &[]).await;
    assert_eq!(agent.supervisor.finish().await, Outcome::Failed);
    let sentence = std::fs::read_to_string(dir.path().join("termination-log")).unwrap();
    assert!(
        sentence.contains("PIPEOPS_KUBERNETES_SERVICE_TOKEN_FILE"),
        "{sentence}"
    );

    let dir = tempfile::tempdir().unwrap();
    let cp = ControlPlane::start().await;
    let agent = Agent::start(dir.path(), &cp.url(), &[("PIPEOPS_K8S_SERVICE_TOKEN", "owners")]).await;
    assert_eq!(cp.registration(1).await["k8s_service_token"], "owners");
    agent.stop().await;
}

const PORTAL: &str = "<!doctype html><title>Hotel</title><p>Please log in";

#[tokio::test]
async fn the_page_of_a_captive_portal_is_no_answer_of_the_control_plane() {
    let dir = tempfile::tempdir().unwrap();
    let cp = ControlPlane::start().await;
    cp.say_register([Say::Page(PORTAL), Say::Page(PORTAL), Say::Hang]);
    let agent = Agent::start(dir.path(), &cp.url(), &[]).await;
    cp.registration(3).await;
    agent
        .readyz(&["not ready", "Registered: ", "captive portal"])
        .await;
    assert!(!state(dir.path()).contains_key("cluster_id"));
    agent.stop().await;

    cp.say_register([Say::Ok(json!({ "cluster_id": "uuid-1" }))]);
    cp.say_beat([Say::Page(PORTAL)]);
    cp.script().tunnel_page = Some(PORTAL);
    let agent = Agent::start(dir.path(), &cp.url(), &[]).await;
    let text = agent
        .readyz(&["not ready", "Heartbeat: none accepted yet", "captive portal"])
        .await;
    assert!(!text.contains("Hotel"), "a page is not worth a line: {text}");
    let registrations = cp.script().registrations.len();
    cp.beats(3).await;
    assert_eq!(
        cp.script().registrations.len(),
        registrations,
        "nobody refused it"
    );
    // The portal lets it through; what answers now is short, but the control plane's own.
    cp.script().tunnel_page = None;
    cp.say_beat([Say::Bare(204), Say::Bare(200), Say::Ok(json!({}))]);
    agent.readyz(&["ready\n", "Heartbeat: accepted"]).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_control_plane_that_learns_late_of_a_registration_is_given_time() {
    let dir = tempfile::tempdir().unwrap();
    let cp = ControlPlane::start().await;
    let agent = Agent::start(dir.path(), &cp.url(), &[]).await;
    cp.beats(2).await;
    let unknown = || error(404, "cluster not registered");
    // Forgotten; registered again; and three more replicas have not heard of it.
    cp.say_beat([unknown(), unknown(), unknown(), unknown(), Say::Ok(json!({}))]);
    cp.registration(2).await;
    agent
        .readyz(&["ready\n", "Heartbeat: accepted", "NotApplicable Refused"])
        .await;
    cp.beats(5).await;
    agent.readyz(&["ready\n"]).await;
    assert_eq!(cp.script().registrations.len(), 2, "one registration was enough");
    agent.stop().await;
}
