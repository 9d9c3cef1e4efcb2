//! Lists: pages, selectors, positions.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::client::{ContractClient, revision};

async fn make(client: &ContractClient, prefix: &str, count: usize) -> Result<()> {
    for number in 0..count {
        let labels = json!({"set": prefix, "parity": if number % 2 == 0 { "even" } else { "odd" }});
        let body = json!({"metadata": {"name": format!("{prefix}-{number}"), "labels": labels}});
        client
            .post(&client.core("serviceaccounts"), &body)
            .await?
            .expect(201)?;
    }
    Ok(())
}

fn names(list: &Value) -> Result<Vec<String>> {
    let items = list["items"]
        .as_array()
        .with_context(|| format!("no items in {list}"))?;
    Ok(items
        .iter()
        .filter_map(|item| item["metadata"]["name"].as_str().map(str::to_owned))
        .collect())
}

fn token(list: &Value) -> String {
    list["metadata"]["continue"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

pub(super) async fn pages_with_remaining_count(client: &ContractClient) -> Result<()> {
    let path = client.core("secrets");
    for number in 0..7 {
        let secret = json!({"metadata": {"name": format!("page-{number}"), "labels": {"page": "yes"}}});
        client.post(&path, &secret).await?.expect(201)?;
    }
    let whole = client.get(&path).await?.expect(200)?;
    ensure!(
        whole["kind"] == "SecretList" && whole["apiVersion"] == "v1",
        "{whole}"
    );
    ensure!(whole["metadata"].get("continue").is_none(), "{whole}");
    ensure!(
        whole["items"][0].get("kind").is_none(),
        "items of a typed list carry no kind: {whole}"
    );
    let all = names(&whole)?;
    let (mut seen, mut next, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let page = client
            .get(&format!("{path}?limit=3&continue={next}"))
            .await?
            .expect(200)?;
        seen.extend(names(&page)?);
        pages += 1;
        let remaining = page["metadata"]["remainingItemCount"].as_u64();
        next = token(&page);
        if next.is_empty() {
            ensure!(remaining.is_none(), "{page}");
            break;
        }
        ensure!(
            remaining == Some((all.len() - seen.len()) as u64),
            "{remaining:?} after {} of {}",
            seen.len(),
            all.len()
        );
    }
    ensure!(
        seen == all && pages == all.len().div_ceil(3),
        "{seen:?} in {pages} pages is not {all:?}"
    );
    let counted = client.get(&format!("{path}?limit=1")).await?.expect(200)?;
    ensure!(
        counted["metadata"]["remainingItemCount"] == all.len() - 1,
        "{counted}"
    );
    let selected = client
        .get(&format!("{path}?limit=2&labelSelector=page%3Dyes"))
        .await?
        .expect(200)?;
    ensure!(
        !token(&selected).is_empty() && selected["metadata"].get("remainingItemCount").is_none(),
        "{selected}"
    );
    Ok(())
}

pub(super) async fn pages_show_one_moment(client: &ContractClient) -> Result<()> {
    make(client, "moment", 4).await?;
    let path = client.core("serviceaccounts?labelSelector=set%3Dmoment&limit=2");
    let first = client.get(&path).await?.expect(200)?;
    let extra = json!({"metadata": {"name": "moment-4", "labels": {"set": "moment"}}});
    client
        .post(&client.core("serviceaccounts"), &extra)
        .await?
        .expect(201)?;
    client
        .delete(&client.core("serviceaccounts/moment-3"))
        .await?
        .expect(200)?;
    let second = client
        .get(&format!("{path}&continue={}", token(&first)))
        .await?
        .expect(200)?;
    ensure!(
        names(&second)? == ["moment-2", "moment-3"],
        "the second page is of the moment of the first: {second}"
    );
    ensure!(revision(&second)? == revision(&first)?, "{second}");
    ensure!(token(&second).is_empty(), "{second}");
    Ok(())
}

pub(super) async fn selectors(client: &ContractClient) -> Result<()> {
    make(client, "sel", 5).await?;
    let ask = async |query: &str| -> Result<Vec<String>> {
        names(
            &client
                .get(&client.core(&format!("serviceaccounts?{query}")))
                .await?
                .expect(200)?,
        )
    };
    for (query, expected) in [
        ("labelSelector=set%3Dsel%2Cparity%3Dodd", &["sel-1", "sel-3"][..]),
        (
            "labelSelector=set%3D%3Dsel%2Cparity%21%3Dodd",
            &["sel-0", "sel-2", "sel-4"],
        ),
        (
            "labelSelector=set+in+%28sel%2Cother%29%2Cparity+notin+%28even%29",
            &["sel-1", "sel-3"],
        ),
        ("labelSelector=set%3Dsel%2C%21parity", &[]),
        (
            "labelSelector=set%3Dsel%2Cparity&fieldSelector=metadata.name%3Dsel-2",
            &["sel-2"],
        ),
    ] {
        let found = ask(query).await?;
        ensure!(found == expected, "{query}: {found:?}");
    }
    for bad in ["labelSelector=%3D%3D%3D", "fieldSelector=spec.nonsense%3Dx"] {
        client
            .get(&client.core(&format!("serviceaccounts?{bad}")))
            .await?
            .refused(400, "BadRequest")?;
    }
    Ok(())
}

pub(super) async fn positions_too_old_and_too_new(client: &ContractClient) -> Result<()> {
    let path = client.core("configmaps");
    let now = revision(&client.get(&path).await?.expect(200)?)?;
    client
        .get(&format!(
            "{path}?resourceVersion={now}&resourceVersionMatch=NotOlderThan"
        ))
        .await?
        .expect(200)?;
    let exact = client
        .get(&format!(
            "{path}?resourceVersion={now}&resourceVersionMatch=Exact"
        ))
        .await?
        .expect(200)?;
    ensure!(revision(&exact)? == now, "{exact}");
    let status = client
        .get(&format!("{path}?resourceVersion={}", now + 1_000_000))
        .await?
        .refused(504, "Timeout")?;
    ensure!(
        status["details"]["causes"][0]["reason"] == "ResourceVersionTooLarge",
        "{status}"
    );
    client
        .get(&format!("{path}?resourceVersionMatch=Exact"))
        .await?
        .refused(422, "Invalid")?;
    client
        .get(&format!("{path}?continue=nonsense"))
        .await?
        .refused(400, "BadRequest")?;
    Ok(())
}
