//! What it promises while nothing goes wrong.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;

use super::{super::*, *};
use crate::{kubernetes::contract, wait::eventually};

#[tokio::test]
async fn the_contract_holds_here() {
    let simulation = start(SimulationConfig::default()).await;
    simulation.step(5);
    let pod = simulation.running_pod("shop").unwrap();
    let client = admin(&simulation).with_log_pod("shop", &pod);
    let outcomes = contract::check(&client).await;
    assert_eq!(contract::failures(&outcomes), "");
    assert_eq!(outcomes.len(), 35, "every scenario ran");
}

fn fixed(seed: u64) -> SimulationConfig {
    SimulationConfig {
        seed,
        start: Some("2026-01-01T00:00:00Z".parse().unwrap()),
        ..SimulationConfig::default()
    }
}

fn everything(simulation: &Simulation) -> String {
    [
        "namespaces",
        "nodes",
        "pods",
        "deployments",
        "replicasets",
        "configmaps",
        "events",
        "leases",
        "services",
    ]
    .iter()
    .map(|plural| json!(simulation.list(plural, None)).to_string())
    .collect()
}

#[tokio::test]
async fn equal_seeds_live_equal_lives() {
    let (one, two, other) = (
        start(fixed(7)).await,
        start(fixed(7)).await,
        start(fixed(8)).await,
    );
    // Reading does not change the course of life.
    assert_eq!(get(&admin(&two), "/api/v1/pods").await.0, 200);
    for simulation in [&one, &two, &other] {
        simulation.step(200);
    }
    assert!(everything(&one) == everything(&two), "same seed, another life");
    assert!(
        everything(&one) != everything(&other),
        "another seed, the same life"
    );
    assert_eq!(one.revision(), two.revision());
}

#[tokio::test]
async fn the_workload_lives_and_stays_bounded() {
    let simulation = start(fixed(3)).await;
    let (mut sizes, mut generations) = (
        std::collections::BTreeSet::new(),
        std::collections::BTreeSet::new(),
    );
    for _ in 0..600 {
        simulation.step(1);
        sizes.insert(simulation.list("pods", Some("shop")).len());
        generations.insert(
            simulation.get("configmaps", "shop", "web-config").unwrap()["data"]["generation"].to_string(),
        );
    }
    assert!(sizes.len() > 2, "deployments are scaled: {sizes:?}");
    assert!(sizes.iter().all(|size| *size <= 20), "{sizes:?}");
    assert!(generations.len() > 10, "configmaps roll");
    let events = simulation.list("events", None);
    assert!(events.len() > 50 && events.len() <= 500, "{}", events.len());
    assert!(events.iter().any(|event| event["reason"] == "Unhealthy"));
}

#[tokio::test]
async fn the_ticker_ticks_and_can_be_paused() {
    let simulation = start(SimulationConfig {
        tick: Some(Duration::from_millis(1)),
        ..SimulationConfig::default()
    })
    .await;
    let before = simulation.revision();
    eventually("ticks", async || (simulation.revision() > before).then_some(())).await;
    simulation.pause();
    // The tick that may run while we pause is over before the next request is served on this thread.
    let paused = simulation.revision();
    for _ in 0..20 {
        get(&admin(&simulation), "/api/v1/nodes").await;
    }
    assert_eq!(simulation.revision(), paused);
    simulation.resume();
    eventually("ticks again", async || {
        (simulation.revision() > paused).then_some(())
    })
    .await;
}

#[tokio::test]
async fn applied_deployments_come_alive() {
    let simulation = start(SimulationConfig::default()).await;
    let deployment = json!({
        "metadata": {"name": "mine"},
        "spec": {
            "replicas": 2, "selector": {"matchLabels": {"app": "mine"}},
            "template": {"metadata": {"labels": {"app": "mine"}}, "spec": {"containers": [{"name": "a", "image": "x:1"}]}}
        }
    });
    simulation.create("deployments", "default", deployment).unwrap();
    simulation.step(4);
    let status = |name: &str| simulation.get("deployments", "default", name).unwrap()["status"].clone();
    assert_eq!(status("mine")["readyReplicas"], 2);
    let image = json!({"spec": {"template": {"spec": {"containers": [{"name": "a", "image": "x:2"}]}}}});
    simulation
        .merge("deployments", "default", "mine", &image)
        .unwrap();
    simulation.step(5);
    assert_eq!(
        (&status("mine")["readyReplicas"], &status("mine")["replicas"]),
        (&json!(2), &json!(2))
    );
    let pods = simulation.list("pods", Some("default"));
    assert!(
        pods.iter()
            .all(|pod| pod["spec"]["containers"][0]["image"] == "x:2"),
        "{pods:?}"
    );
    simulation.delete("deployments", "default", "mine").unwrap();
    assert!(
        simulation.list("pods", Some("default")).is_empty(),
        "what it owned went with it"
    );
    assert!(simulation.list("replicasets", Some("default")).is_empty());
}

#[tokio::test]
async fn requests_are_remembered_with_what_matters() {
    let simulation = start(SimulationConfig::default()).await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let request = admin(&simulation)
        .request(Method::GET, "/api/v1/namespaces/shop/pods?limit=1")
        .header("traceparent", trace)
        .header("Impersonate-User", "ida")
        .header("Impersonate-Group", "people");
    ContractClient::send(request).await.unwrap();
    let found = simulation
        .requests()
        .find(|request| request.path.ends_with("/pods"));
    let [request] = found.as_slice() else {
        panic!("{found:?}")
    };
    assert_eq!(request.header("traceparent"), Some(trace));
    assert_eq!(
        (request.user.as_str(), request.impersonator.as_deref()),
        ("ida", Some("admin"))
    );
    assert_eq!(request.groups, ["people", "system:authenticated"]);
    assert_eq!(
        (request.verb.as_str(), request.status, request.version.as_str()),
        ("list", 200, "HTTP/2.0")
    );
    assert_eq!(request.target(), "/api/v1/namespaces/shop/pods?limit=1");
    // People see the log without anybody's token.
    let shown = get(&admin(&simulation), "/_sim/requests").await.1.to_string();
    assert!(
        shown.contains("(hidden)") && !shown.contains(simulation.admin_token()),
        "{shown}"
    );
}

#[tokio::test]
async fn tokens_and_rules_decide() {
    let simulation = start(SimulationConfig::default()).await;
    let agent = client_of(&simulation, simulation.agent_token());
    let secrets = "/api/v1/namespaces/shop/secrets";
    assert_eq!(get(&agent, secrets).await.0, 200);
    simulation.auth().deny(Deny {
        resource: Some("secrets".into()),
        verb: Some("list".into()),
        ..Deny::default()
    });
    let (code, status) = get(&agent, secrets).await;
    assert_eq!((code, &status["reason"]), (403, &json!("Forbidden")));
    assert_eq!(
        status["message"],
        "secrets is forbidden: User \"system:serviceaccount:pipeops-system:pipeops-agent\" cannot list resource \"secrets\" in API group \"\" in the namespace \"shop\""
    );
    let review =
        json!({"spec": {"resourceAttributes": {"verb": "list", "resource": "secrets", "namespace": "shop"}}});
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    assert_eq!(
        agent.post(path, &review).await.unwrap().expect(201).unwrap()["status"]["allowed"],
        false
    );
    simulation.auth().allow_all();
    assert_eq!(get(&agent, secrets).await.0, 200);
    simulation.auth().revoke(simulation.agent_token());
    assert_eq!(get(&agent, secrets).await.0, 401);
    simulation.auth().add_user(User::new("rotated", "somebody"));
    assert_eq!(get(&client_of(&simulation, "rotated"), secrets).await.0, 200);
}

#[tokio::test]
async fn plain_http_works_too() {
    let simulation = start(SimulationConfig {
        tls: false,
        ..SimulationConfig::default()
    })
    .await;
    assert!(simulation.url().starts_with("http://"));
    assert_eq!(
        get(&admin(&simulation), "/api/v1/nodes").await.1["items"]
            .as_array()
            .unwrap()
            .len(),
        3
    );
}

#[tokio::test]
async fn followed_logs_go_on_and_end_with_the_pod() {
    let simulation = start(SimulationConfig::default()).await;
    let pod = simulation.running_pod("shop").unwrap();
    let path = format!("/api/v1/namespaces/shop/pods/{pod}/log?follow=true&tailLines=0");
    let mut log = admin(&simulation).open(&path).await.unwrap();
    simulation.append_log("shop", &pod, "one");
    assert_eq!(log.line().await.unwrap().as_deref(), Some("one"));
    simulation.append_log("shop", &pod, "two");
    assert_eq!(log.line().await.unwrap().as_deref(), Some("two"));
    simulation.delete("pods", "shop", &pod).unwrap();
    assert_eq!(log.line().await.unwrap(), None);
}

#[tokio::test]
async fn load_for_benches() {
    let simulation = start(SimulationConfig::default()).await;
    simulation.fill_configmaps("bench", 10, 10_000).unwrap();
    let client = admin(&simulation);
    let list = client.get("/api/v1/namespaces/bench/configmaps").await.unwrap();
    assert!(list.bytes.len() > 100_000);
    let mut watch = client
        .open("/api/v1/namespaces/bench/configmaps?watch=true&sim_rate=0&sim_size=2000&sim_count=50")
        .await
        .unwrap();
    let mut count = 0;
    while let Some(line) = watch.line().await.unwrap() {
        assert_eq!(line.len(), 1999);
        count += 1;
    }
    assert_eq!(count, 50);
    let mut flood = client
        .open("/api/v1/namespaces/bench/pods/flood/log?follow=true&sim_flood=true")
        .await
        .unwrap();
    for _ in 0..10_000 {
        assert!(flood.line().await.unwrap().is_some());
    }
    let mut flood = client.open("/_sim/flood").await.unwrap();
    assert!(flood.line().await.unwrap().is_some());
}
