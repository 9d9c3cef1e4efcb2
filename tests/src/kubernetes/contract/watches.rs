//! Watches: order, positions, bookmarks, ends.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::client::{ContractClient, revision};

const MERGE: &str = "application/merge-patch+json";

async fn make(client: &ContractClient, name: &str, sort: &str) -> Result<Value> {
    let body = json!({"metadata": {"name": name, "labels": {"sort": sort}}, "data": {"n": "0"}});
    client.post(&client.core("configmaps"), &body).await?.expect(201)
}

async fn set(client: &ContractClient, name: &str, patch: &Value) -> Result<Value> {
    client
        .patch(&client.core(&format!("configmaps/{name}")), MERGE, patch)
        .await?
        .expect(200)
}

async fn position(client: &ContractClient) -> Result<u64> {
    revision(&client.get(&client.core("configmaps")).await?.expect(200)?)
}

pub(super) async fn events_in_order(client: &ContractClient) -> Result<()> {
    let from = position(client).await?;
    let mut watch = client
        .open(&client.core(&format!("configmaps?watch=true&resourceVersion={from}")))
        .await?;
    let made = make(client, "ordered", "o").await?;
    for n in 1..=5 {
        set(client, "ordered", &json!({"data": {"n": n.to_string()}})).await?;
    }
    client
        .delete(&client.core("configmaps/ordered"))
        .await?
        .expect(200)?;
    let added = watch.expect("ADDED", "ordered").await?;
    ensure!(added == made, "{added} is not {made}");
    let mut last = revision(&added)?;
    for n in 1..=5 {
        let modified = watch.expect("MODIFIED", "ordered").await?;
        ensure!(modified["data"]["n"] == json!(n.to_string()), "{modified}");
        ensure!(revision(&modified)? > last, "{modified}");
        last = revision(&modified)?;
    }
    let deleted = watch.expect("DELETED", "ordered").await?;
    ensure!(
        deleted["data"]["n"] == "5" && revision(&deleted)? > last,
        "{deleted}"
    );
    Ok(())
}

pub(super) async fn a_selector_turns_changes_into_comings_and_goings(client: &ContractClient) -> Result<()> {
    let from = position(client).await?;
    let path = client.core(&format!(
        "configmaps?watch=1&labelSelector=sort%3Dseen&resourceVersion={from}"
    ));
    let mut watch = client.open(&path).await?;
    let label = |sort: &str| json!({"metadata": {"labels": {"sort": sort}}});
    make(client, "shy", "hidden").await?;
    set(client, "shy", &label("seen")).await?;
    set(client, "shy", &json!({"data": {"n": "1"}})).await?;
    set(client, "shy", &label("hidden")).await?;
    set(client, "shy", &label("seen")).await?;
    client.delete(&client.core("configmaps/shy")).await?.expect(200)?;
    for kind in ["ADDED", "MODIFIED", "DELETED", "ADDED", "DELETED"] {
        watch.expect(kind, "shy").await?;
    }
    Ok(())
}

pub(super) async fn from_a_position_nothing_is_repeated(client: &ContractClient) -> Result<()> {
    let made = make(client, "resumed", "r").await?;
    set(client, "resumed", &json!({"data": {"n": "1"}})).await?;
    let select = "fieldSelector=metadata.name%3Dresumed";
    let path = client.core(&format!(
        "configmaps?watch=true&{select}&resourceVersion={}",
        revision(&made)?
    ));
    let mut watch = client.open(&path).await?;
    let first = watch.expect("MODIFIED", "resumed").await?;
    ensure!(first["data"]["n"] == "1", "{first}");
    drop(watch);
    set(client, "resumed", &json!({"data": {"n": "2"}})).await?;
    let path = client.core(&format!(
        "configmaps?watch=true&{select}&resourceVersion={}",
        revision(&first)?
    ));
    let second = client.open(&path).await?.expect("MODIFIED", "resumed").await?;
    ensure!(second["data"]["n"] == "2", "{second}");
    // Without a position the present comes first, as if it had just been made.
    let present = client
        .open(&client.core(&format!("configmaps?watch=true&{select}")))
        .await?
        .expect("ADDED", "resumed")
        .await?;
    ensure!(present["data"]["n"] == "2", "{present}");
    Ok(())
}

pub(super) async fn initial_events_end_with_a_bookmark(client: &ContractClient) -> Result<()> {
    make(client, "initial-a", "initial").await?;
    make(client, "initial-b", "initial").await?;
    let path = client.core(
        "configmaps?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&labelSelector=sort%3Dinitial",
    );
    let mut watch = client.open(&path).await?;
    watch.expect("ADDED", "initial-a").await?;
    let last = watch.expect("ADDED", "initial-b").await?;
    let bookmark = watch.event().await?.context("the watch ended")?;
    ensure!(bookmark["type"] == "BOOKMARK", "{bookmark}");
    let object = &bookmark["object"];
    ensure!(
        object["kind"] == "ConfigMap" && object["apiVersion"] == "v1",
        "{bookmark}"
    );
    ensure!(
        object["metadata"]["annotations"]["k8s.io/initial-events-end"] == "true",
        "{bookmark}"
    );
    ensure!(revision(object)? >= revision(&last)?, "{bookmark}");
    make(client, "initial-c", "initial").await?;
    watch.expect("ADDED", "initial-c").await?;
    Ok(())
}

pub(super) async fn bookmarks_and_a_clean_end(client: &ContractClient) -> Result<()> {
    let from = position(client).await?;
    let query = format!("watch=true&allowWatchBookmarks=true&timeoutSeconds=4&resourceVersion={from}");
    let mut watch = client
        .open(&client.core(&format!("configmaps?{query}&labelSelector=sort%3Dnone")))
        .await?;
    make(client, "unseen", "other").await?;
    let mut last = None;
    while let Some(event) = watch.event().await? {
        ensure!(event["type"] == "BOOKMARK", "{event}");
        last = Some(revision(&event["object"])?);
    }
    let last = last.context("no bookmark before the end")?;
    ensure!(last >= from, "a bookmark went back from {from} to {last}");
    let query =
        format!("configmaps?watch=true&timeoutSeconds=1&resourceVersion={from}&labelSelector=sort%3Dnone");
    let mut watch = client.open(&client.core(&query)).await?;
    ensure!(
        watch.event().await?.is_none(),
        "bookmarks come only to those who ask"
    );
    Ok(())
}

/// A real server that was started with its store still knows everything since revision 1; one that was restarted does not.
pub(super) async fn an_old_position_is_gone(client: &ContractClient) -> Result<()> {
    let mut watch = client
        .open(&client.core("configmaps?watch=true&resourceVersion=1"))
        .await?;
    let event = watch.event().await?.context("the watch ended without a word")?;
    ensure!(
        event["type"] == "ERROR",
        "revision 1 is still known (restart a fresh server first): {event}"
    );
    let status = &event["object"];
    ensure!(
        status["kind"] == "Status" && status["code"] == 410 && status["reason"] == "Expired",
        "{event}"
    );
    ensure!(
        status["message"]
            .as_str()
            .is_some_and(|text| text.starts_with("too old resource version: 1 (")),
        "{event}"
    );
    ensure!(watch.event().await?.is_none(), "it goes on after the error");
    Ok(())
}

pub(super) async fn options_that_contradict(client: &ContractClient) -> Result<()> {
    for query in [
        "sendInitialEvents=true",
        "resourceVersionMatch=NotOlderThan&resourceVersion=0",
    ] {
        let status = client
            .get(&client.core(&format!("configmaps?watch=true&{query}")))
            .await?
            .refused(422, "Invalid")?;
        ensure!(
            status["details"]["causes"][0]["field"] == "resourceVersionMatch",
            "{status}"
        );
    }
    Ok(())
}
