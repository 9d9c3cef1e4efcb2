//! Logs of a pod that runs and has written at least two lines; the follower reads what is there already.

use anyhow::{Context, Result, ensure};

use super::client::ContractClient;

fn path(client: &ContractClient, query: &str) -> Result<String> {
    let (namespace, pod) = client.log_pod().context("no pod to read from")?;
    Ok(format!("/api/v1/namespaces/{namespace}/pods/{pod}/log?{query}"))
}

pub(super) async fn tail_and_follow(client: &ContractClient) -> Result<()> {
    let answer = client.get(&path(client, "tailLines=2")?).await?;
    let media = answer
        .headers
        .get("content-type")
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    ensure!(
        answer.code == 200 && media.starts_with("text/plain"),
        "{} {media}",
        answer.code
    );
    let text = String::from_utf8(answer.bytes)?;
    ensure!(text.lines().count() == 2 && text.ends_with('\n'), "{text:?}");
    let mut follow = client
        .open(&path(client, "follow=true&tailLines=2&timestamps=true")?)
        .await?;
    for _ in 0..2 {
        let line = follow.line().await?.context("the log ended")?;
        let stamp = line.split(' ').next().unwrap_or_default();
        ensure!(
            stamp.parse::<jiff::Timestamp>().is_ok(),
            "no timestamp in {line:?}"
        );
    }
    Ok(())
}

pub(super) async fn refusals(client: &ContractClient) -> Result<()> {
    client
        .get(&client.core("pods/nothing/log"))
        .await?
        .refused(404, "NotFound")?;
    client
        .get(&path(client, "container=no-such-container")?)
        .await?
        .refused(400, "BadRequest")?;
    Ok(())
}
