//! One object at a time.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::client::{ContractClient, revision};
use crate::wait::eventually;

fn configmap(name: &str, text: &str) -> Value {
    json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name}, "data": {"text": text}})
}

pub(super) async fn create_read_delete(client: &ContractClient) -> Result<()> {
    let (all, one) = (client.core("configmaps"), client.core("configmaps/crud"));
    let made = client.post(&all, &configmap("crud", "a")).await?.expect(201)?;
    for key in ["uid", "creationTimestamp", "resourceVersion"] {
        ensure!(made["metadata"][key].is_string(), "no {key} in {made}");
    }
    ensure!(
        made["metadata"]["namespace"] == client.namespace() && made["data"]["text"] == "a",
        "{made}"
    );
    let read = client.get(&one).await?.expect(200)?;
    ensure!(read == made, "{read} is not {made}");
    let dry = client
        .post(&format!("{all}?dryRun=All"), &configmap("dry", "a"))
        .await?;
    dry.expect(201)?;
    client
        .get(&client.core("configmaps/dry"))
        .await?
        .refused(404, "NotFound")?;
    let generated = json!({"metadata": {"generateName": "crud-"}});
    let generated = client.post(&all, &generated).await?.expect(201)?;
    let name = generated["metadata"]["name"].as_str().context("no name")?;
    ensure!(name.len() == 10 && name.starts_with("crud-"), "{name}");
    let gone = client.delete(&one).await?.expect(200)?;
    ensure!(gone["kind"] == "Status" && gone["status"] == "Success", "{gone}");
    ensure!(
        gone["details"] == json!({"name": "crud", "kind": "configmaps", "uid": made["metadata"]["uid"]}),
        "{gone}"
    );
    client.get(&one).await?.refused(404, "NotFound")?;
    client.delete(&one).await?.refused(404, "NotFound")?;
    Ok(())
}

pub(super) async fn create_refuses_what_it_must(client: &ContractClient) -> Result<()> {
    let all = client.core("configmaps");
    client.post(&all, &configmap("twice", "a")).await?.expect(201)?;
    let status = client
        .post(&all, &configmap("twice", "b"))
        .await?
        .refused(409, "AlreadyExists")?;
    ensure!(
        status["message"] == "configmaps \"twice\" already exists",
        "{status}"
    );
    ensure!(
        status["details"] == json!({"name": "twice", "kind": "configmaps"}),
        "{status}"
    );

    let status = client
        .post(&all, &configmap("Not_A_Name", "a"))
        .await?
        .refused(422, "Invalid")?;
    ensure!(status["details"]["kind"] == "ConfigMap", "{status}");
    ensure!(
        status["details"]["causes"][0]["field"] == "metadata.name",
        "{status}"
    );
    ensure!(
        status["details"]["causes"][0]["reason"] == "FieldValueInvalid",
        "{status}"
    );
    client
        .post(&all, &json!({"metadata": {}}))
        .await?
        .refused(422, "Invalid")?;

    let mut elsewhere = configmap("elsewhere", "a");
    elsewhere["metadata"]["namespace"] = json!("default");
    client.post(&all, &elsewhere).await?.refused(400, "BadRequest")?;
    client
        .post(
            &all,
            &json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "x"}}),
        )
        .await?
        .refused(400, "BadRequest")?;
    client
        .post(&all, &json!({"metadata": {"name": "typed"}, "data": {"n": 1}}))
        .await?
        .refused(400, "BadRequest")?;
    let nowhere = "/api/v1/namespaces/no-such-namespace/configmaps";
    let status = client
        .post(nowhere, &configmap("x", "a"))
        .await?
        .refused(404, "NotFound")?;
    ensure!(
        status["message"] == "namespaces \"no-such-namespace\" not found",
        "{status}"
    );
    Ok(())
}

pub(super) async fn update_compares_the_version(client: &ContractClient) -> Result<()> {
    let (all, one) = (client.core("configmaps"), client.core("configmaps/versioned"));
    let first = client
        .post(&all, &configmap("versioned", "a"))
        .await?
        .expect(201)?;
    let mut second = first.clone();
    second["data"]["text"] = json!("b");
    let second = client.put(&one, &second).await?.expect(200)?;
    ensure!(revision(&second)? > revision(&first)?, "{second}");
    ensure!(second["metadata"]["uid"] == first["metadata"]["uid"], "{second}");
    let status = client.put(&one, &first).await?.refused(409, "Conflict")?;
    ensure!(
        status["message"]
            == "Operation cannot be fulfilled on configmaps \"versioned\": the object has been modified; please apply your changes to the latest version and try again",
        "{status}"
    );
    ensure!(
        status["details"] == json!({"name": "versioned", "kind": "configmaps"}),
        "{status}"
    );
    let third = client
        .put(&one, &configmap("versioned", "c"))
        .await?
        .expect(200)?;
    ensure!(
        third["data"]["text"] == "c",
        "without a version it is unconditional: {third}"
    );
    client
        .put(&one, &configmap("other", "c"))
        .await?
        .refused(400, "BadRequest")?;
    client
        .put(&client.core("configmaps/absent"), &configmap("absent", "c"))
        .await?
        .refused(404, "NotFound")?;
    Ok(())
}

pub(super) async fn a_write_that_changes_nothing_keeps_the_version(client: &ContractClient) -> Result<()> {
    let (all, one) = (client.core("configmaps"), client.core("configmaps/same"));
    let first = client.post(&all, &configmap("same", "a")).await?.expect(201)?;
    let again = client.put(&one, &first).await?.expect(200)?;
    ensure!(
        again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"],
        "{again}"
    );
    let patch = json!({"data": {"text": "a"}});
    let again = client
        .patch(&one, "application/merge-patch+json", &patch)
        .await?
        .expect(200)?;
    ensure!(
        again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"],
        "{again}"
    );
    Ok(())
}

pub(super) fn deployment(name: &str) -> Value {
    json!({
        "kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"name": name},
        "spec": {
            "replicas": 0, "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [
                    {"name": "a", "image": "registry.example/a:1", "env": [{"name": "A", "value": "1"}]},
                    {"name": "b", "image": "registry.example/b:1"}
                ]}
            }
        }
    })
}

pub(super) async fn status_is_apart(client: &ContractClient) -> Result<()> {
    let path = client.group("apps", "deployments");
    let made = client.post(&path, &deployment("apart")).await?.expect(201)?;
    ensure!(made["metadata"]["generation"] == 1, "{made}");
    let one = format!("{path}/apart");
    let both = json!({"spec": {"revisionHistoryLimit": 3}, "status": {"observedGeneration": 77}});
    let main = client
        .patch(&one, "application/merge-patch+json", &both)
        .await?
        .expect(200)?;
    ensure!(
        main["spec"]["revisionHistoryLimit"] == 3 && main["metadata"]["generation"] == 2,
        "{main}"
    );
    ensure!(main["status"]["observedGeneration"] != 77, "{main}");
    let both = json!({"spec": {"revisionHistoryLimit": 4}, "status": {"observedGeneration": 78}});
    let status = client
        .patch(&format!("{one}/status"), "application/merge-patch+json", &both)
        .await?
        .expect(200)?;
    ensure!(
        status["spec"]["revisionHistoryLimit"] == 3 && status["metadata"]["generation"] == 2,
        "{status}"
    );
    ensure!(status["status"]["observedGeneration"] == 78, "{status}");
    client.delete(&one).await?.expect(200)?;
    Ok(())
}

pub(super) async fn finalizers_hold_an_object(client: &ContractClient) -> Result<()> {
    let (all, one) = (client.core("configmaps"), client.core("configmaps/held"));
    let mut held = configmap("held", "a");
    held["metadata"]["finalizers"] = json!(["example.org/hold"]);
    client.post(&all, &held).await?.expect(201)?;
    let marked = client.delete(&one).await?.expect(200)?;
    ensure!(marked["metadata"]["deletionTimestamp"].is_string(), "{marked}");
    let still = client.get(&one).await?.expect(200)?;
    ensure!(still["metadata"]["deletionTimestamp"].is_string(), "{still}");
    let release = json!({"metadata": {"finalizers": null}});
    client
        .patch(&one, "application/merge-patch+json", &release)
        .await?
        .expect(200)?;
    client.get(&one).await?.refused(404, "NotFound")?;
    Ok(())
}

pub(super) async fn delete_honours_preconditions(client: &ContractClient) -> Result<()> {
    let (all, one) = (client.core("configmaps"), client.core("configmaps/precious"));
    let made = client
        .post(&all, &configmap("precious", "a"))
        .await?
        .expect(201)?;
    let with = |conditions: Value| {
        let body = json!({"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": conditions});
        client.request(reqwest::Method::DELETE, &one).json(&body)
    };
    let wrong = json!({"uid": "00000000-0000-0000-0000-000000000000"});
    ContractClient::send(with(wrong))
        .await?
        .refused(409, "Conflict")?;
    ContractClient::send(with(json!({"resourceVersion": "1"})))
        .await?
        .refused(409, "Conflict")?;
    ContractClient::send(with(json!({"uid": made["metadata"]["uid"]})))
        .await?
        .expect(200)?;
    Ok(())
}

pub(super) async fn leases_compare_and_set(client: &ContractClient) -> Result<()> {
    let all = client.group("coordination.k8s.io", "leases");
    let one = format!("{all}/leader");
    let lease = json!({
        "kind": "Lease", "apiVersion": "coordination.k8s.io/v1", "metadata": {"name": "leader"},
        "spec": {"holderIdentity": "a", "leaseDurationSeconds": 15}
    });
    let made = client.put(&one, &lease).await?.expect(201)?;
    let mut next = made.clone();
    next["spec"]["holderIdentity"] = json!("b");
    client.put(&one, &next).await?.expect(200)?;
    client.put(&one, &next).await?.refused(409, "Conflict")?;
    client.put(&one, &lease).await?.refused(422, "Invalid")?;
    Ok(())
}

pub(super) async fn deletecollection_by_label(client: &ContractClient) -> Result<()> {
    let all = client.core("secrets");
    for (name, sort) in [("s1", "x"), ("s2", "x"), ("s3", "y")] {
        let secret = json!({"metadata": {"name": name, "labels": {"sort": sort}}, "stringData": {"k": "v"}});
        let made = client.post(&all, &secret).await?.expect(201)?;
        ensure!(
            made["data"]["k"] == "dg==" && made["type"] == "Opaque" && made.get("stringData").is_none(),
            "{made}"
        );
    }
    client
        .delete(&format!("{all}?labelSelector=sort%3Dx"))
        .await?
        .expect(200)?;
    client
        .get(&client.core("secrets/s1"))
        .await?
        .refused(404, "NotFound")?;
    client.get(&client.core("secrets/s3")).await?.expect(200)?;
    Ok(())
}

pub(super) async fn remove_namespace(client: &ContractClient) -> Result<()> {
    let path = format!("/api/v1/namespaces/{}", client.namespace());
    let gone = client.delete(&path).await?.expect(200)?;
    ensure!(gone["kind"] == "Namespace", "{gone}");
    // A real one is emptied by a controller first.
    eventually("the namespace to be gone", async || {
        let answer = client.get(&path).await.ok()?;
        (answer.code == 404).then_some(())
    })
    .await;
    Ok(())
}
