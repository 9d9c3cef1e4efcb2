//! The four kinds of patches, and scale.

use anyhow::{Result, ensure};
use serde_json::json;

use super::{
    client::{ContractClient, revision},
    objects::deployment,
};

pub(super) async fn merge_patch(client: &ContractClient) -> Result<()> {
    let one = client.core("configmaps/merged");
    let made = json!({"metadata": {"name": "merged", "labels": {"x": "1"}}, "data": {"a": "1", "b": "2"}});
    let made = client
        .post(&client.core("configmaps"), &made)
        .await?
        .expect(201)?;
    let media = "application/merge-patch+json";
    let patch = json!({"metadata": {"labels": null}, "data": {"a": null, "c": "3"}});
    let merged = client.patch(&one, media, &patch).await?.expect(200)?;
    ensure!(merged["data"] == json!({"b": "2", "c": "3"}), "{merged}");
    ensure!(
        merged["metadata"].get("labels").is_none() && revision(&merged)? > revision(&made)?,
        "{merged}"
    );
    let stale =
        json!({"metadata": {"resourceVersion": made["metadata"]["resourceVersion"]}, "data": {"c": "4"}});
    client
        .patch(&one, media, &stale)
        .await?
        .refused(409, "Conflict")?;
    client
        .patch(&one, "text/plain", &patch)
        .await?
        .refused(415, "UnsupportedMediaType")?;
    client
        .patch(&client.core("configmaps/absent"), media, &patch)
        .await?
        .refused(404, "NotFound")?;
    Ok(())
}

pub(super) async fn json_patch(client: &ContractClient) -> Result<()> {
    let one = client.core("configmaps/operated");
    let made = json!({"metadata": {"name": "operated"}, "data": {"a": "1"}});
    client
        .post(&client.core("configmaps"), &made)
        .await?
        .expect(201)?;
    let media = "application/json-patch+json";
    let patch = json!([
        {"op": "test", "path": "/data/a", "value": "1"},
        {"op": "add", "path": "/data/b~1c", "value": "2"},
        {"op": "remove", "path": "/data/a"}
    ]);
    // A slash may be written in a path, yet not stand in a key of a configmap.
    client.patch(&one, media, &patch).await?.refused(422, "Invalid")?;
    let patch = json!([
        {"op": "test", "path": "/data/a", "value": "1"},
        {"op": "add", "path": "/data/b", "value": "2"},
        {"op": "remove", "path": "/data/a"}
    ]);
    let patched = client.patch(&one, media, &patch).await?.expect(200)?;
    ensure!(patched["data"] == json!({"b": "2"}), "{patched}");
    client.patch(&one, media, &patch).await?.refused(422, "Invalid")?;
    client
        .patch(&one, media, &json!({"op": "add"}))
        .await?
        .refused(400, "BadRequest")?;
    Ok(())
}

pub(super) async fn strategic_merge_patch(client: &ContractClient) -> Result<()> {
    let all = client.group("apps", "deployments");
    client.post(&all, &deployment("strategic")).await?.expect(201)?;
    let patch = json!({"spec": {"template": {"spec": {
        "$setElementOrder/containers": [{"name": "a"}, {"name": "c"}],
        "containers": [
            {"name": "a", "image": "registry.example/a:2", "env": [{"name": "B", "value": "2"}]},
            {"name": "c", "image": "registry.example/c:1"},
            {"name": "b", "$patch": "delete"}
        ]
    }}}});
    let one = format!("{all}/strategic");
    let patched = client
        .patch(&one, "application/strategic-merge-patch+json", &patch)
        .await?
        .expect(200)?;
    let containers = patched["spec"]["template"]["spec"]["containers"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let names: Vec<_> = containers
        .iter()
        .filter_map(|container| container["name"].as_str())
        .collect();
    ensure!(names == ["a", "c"], "{containers:?}");
    ensure!(containers[0]["image"] == "registry.example/a:2", "{containers:?}");
    let mut variables: Vec<_> = containers[0]["env"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|e| e["name"].as_str())
        .collect();
    variables.sort_unstable();
    ensure!(variables == ["A", "B"], "{containers:?}");
    client.delete(&one).await?.expect(200)?;
    Ok(())
}

pub(super) async fn apply(client: &ContractClient) -> Result<()> {
    let one = client.core("configmaps/applied");
    let media = "application/apply-patch+yaml";
    let wanted = |text: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "applied"}, "data": {"a": text}});
    let path = format!("{one}?fieldManager=contract");
    let made = client.patch(&path, media, &wanted("1")).await?.expect(201)?;
    ensure!(made["data"]["a"] == "1", "{made}");
    let changed = client.patch(&path, media, &wanted("2")).await?.expect(200)?;
    ensure!(
        changed["data"]["a"] == "2" && changed["metadata"]["uid"] == made["metadata"]["uid"],
        "{changed}"
    );
    let refused = client.patch(&one, media, &wanted("3")).await?;
    ensure!(
        (400..=422).contains(&refused.code),
        "without a field manager: {} {}",
        refused.code,
        refused.value
    );
    Ok(())
}

pub(super) async fn scale(client: &ContractClient) -> Result<()> {
    let all = client.group("apps", "deployments");
    client.post(&all, &deployment("scaled")).await?.expect(201)?;
    let path = format!("{all}/scaled/scale");
    let scale = client.get(&path).await?.expect(200)?;
    ensure!(
        scale["kind"] == "Scale" && scale["apiVersion"] == "autoscaling/v1",
        "{scale}"
    );
    ensure!(scale["status"]["selector"] == "app=scaled", "{scale}");
    // Paused, so that nobody starts what nobody can pull.
    let pause = json!({"spec": {"paused": true}});
    client
        .patch(&format!("{all}/scaled"), "application/merge-patch+json", &pause)
        .await?
        .expect(200)?;
    let up = client
        .patch(
            &path,
            "application/merge-patch+json",
            &json!({"spec": {"replicas": 1}}),
        )
        .await?
        .expect(200)?;
    ensure!(up["spec"]["replicas"] == 1, "{up}");
    let deployment = client.get(&format!("{all}/scaled")).await?.expect(200)?;
    ensure!(deployment["spec"]["replicas"] == 1, "{deployment}");
    client.delete(&format!("{all}/scaled")).await?.expect(200)?;
    Ok(())
}
