//! Limits that the control plane asks for, from the answer to a heartbeat to the refusal of a call.
//!
//! ```text
//!  control plane ─ answer to a heartbeat ─► agent-core ─ spec ─► k8s-proxy ─ 429, Retry-After, counted ─► caller
//! ```

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::Instant};

use crate::{
    control_plane::ControlPlaneConfig,
    lab::{Cluster, Lab, TOKEN},
    pod::Part,
    wait::eventually,
    wire::{Answer, Target},
};

const WATCH: &str = "/api/v1/namespaces/default/configmaps?watch=true&timeoutSeconds=300";
const LIST: &str = "/api/v1/namespaces/default/configmaps";
const LARGE: &str = "/api/v1/namespaces/default/configmaps/limits-large";
/// What the owner of the cluster allows one caller.
const OWNER: u32 = 20;
/// Bytes of the object that is read against a limit of bytes a second, and that limit.
const BYTES: usize = 900_000;
const BYTES_PER_SECOND: usize = 300_000;
/// Before a refused call is made again.
const PAUSE: Duration = Duration::from_millis(100);

/// The control plane lowers each of the four limits, is heeded, and raises none.
///
/// # Errors
/// When a lowered limit is not kept, a refusal does not say when to come back or is not counted, or a raised limit
/// has an effect.
pub async fn lowered_and_never_raised(cluster: Cluster) -> Result<()> {
    let mut lab = Lab::with(cluster, ControlPlaneConfig::new(TOKEN), |pod| {
        pod.env(Part::Core, "PIPEOPS_PROXY_LIMITS_STREAMS", OWNER.to_string())
    })
    .await?;
    let id = lab.start().await?;
    fill(&lab).await?;
    let door = Target::plain(lab.pod.ports.door_http, Some(TOKEN))?;

    // Streams: lowered.
    ask(&lab, &id, json!({"streams": 3}))?;
    let open = refused_at(&door, 3).await?;
    counted(&lab, "limit_streams").await?;
    println!("streams lowered to 3: the call after them was refused with 429 and Retry-After, and counted");
    drop(open);

    // Streams: raised, which the owner's limit does not heed.
    ask(&lab, &id, json!({"streams": 5_000}))?;
    let open = refused_at(&door, OWNER as usize).await?;
    println!("streams raised to 5,000: the owner's {OWNER} hold");
    drop(open);

    // Requests a second.
    ask(&lab, &id, json!({"requests_per_second": 2}))?;
    eventually("a call above 2 a second to be refused", || async {
        for _ in 0..5 {
            let answer = door.get(LIST, &[]).await.ok()?;
            if answer.status() == 429 {
                return refused_for(answer, "calls a second").await;
            }
        }
        None
    })
    .await;
    counted(&lab, "limit_requests").await?;
    println!("requests lowered to 2/s: refused with 429 and Retry-After, and counted");

    // Calls in flight: slow ones, because their bytes are limited too.
    ask(
        &lab,
        &id,
        json!({"in_flight": 1, "bytes_per_second": BYTES_PER_SECOND}),
    )?;
    eventually("a second call in flight to be refused", || async {
        let mut calls = JoinSet::new();
        for _ in 0..4 {
            let door = door.clone();
            calls.spawn(async move {
                let answer = door.get(LARGE, &[]).await?;
                if answer.status() == 429 {
                    return anyhow::Ok(refused_for(answer, "calls in flight").await);
                }
                answer.bytes().await?;
                Ok(None)
            });
        }
        let answers = calls.join_all().await;
        answers.into_iter().find_map(|answer| answer.ok().flatten())
    })
    .await;
    counted(&lab, "limit_in_flight").await?;
    println!("in flight lowered to 1: refused with 429 and Retry-After, and counted");

    // Bytes a second: what is open takes its time, what is new is refused meanwhile.
    let start = Instant::now();
    let (mut bytes, mut refused) = (0, 0);
    while bytes < 2 * BYTES {
        let answer = door.get(LARGE, &[]).await?;
        if answer.status() == 429 {
            says_when(&answer)?;
            refused += 1;
            tokio::time::sleep(PAUSE).await;
        } else {
            bytes += answer.good().await?.len();
        }
    }
    ensure!(
        refused > 0,
        "no call was refused for the bytes of the one before it"
    );
    counted(&lab, "limit_bytes").await?;
    // One second's worth may be in hand.
    let least = Duration::from_secs_f64((bytes as f64 / BYTES_PER_SECOND as f64 - 1.0) * 0.8);
    let took = start.elapsed();
    println!(
        "bytes lowered to {BYTES_PER_SECOND}/s: {bytes} bytes took {took:?}, at least {least:?} expected"
    );
    ensure!(took >= least, "{bytes} bytes in {took:?}");

    // Nothing asked for: as the owner has it.
    ask(&lab, &id, Value::Null)?;
    eventually("the owner's limits to hold again", || async {
        let start = Instant::now();
        door.get(LARGE, &[]).await.ok()?.good().await.ok()?;
        (start.elapsed() < Duration::from_secs(1)).then_some(())
    })
    .await;
    Ok(())
}

fn ask(lab: &Lab, id: &str, limits: Value) -> Result<()> {
    lab.control_plane
        .set_limits(id, (!limits.is_null()).then_some(limits))
}

/// Opens watches until one is refused, again and again until that is after so many; they stay open.
async fn refused_at(door: &Target, streams: usize) -> Result<Vec<Answer>> {
    let (open, answer) = eventually(&format!("{streams} streams and no more"), || async {
        let mut open = Vec::new();
        loop {
            let answer = door.get(WATCH, &[]).await.ok()?;
            if answer.status() == 429 {
                return (open.len() == streams).then_some((open, answer));
            }
            open.push(answer);
            if open.len() > 10 * OWNER as usize {
                return None;
            }
        }
    })
    .await
    .0;
    says_when(&answer)?;
    Ok(open)
}

fn says_when(answer: &Answer) -> Result<()> {
    let after = answer.headers().get("retry-after");
    let seconds: u32 = after.context("429 without Retry-After")?.to_str()?.parse()?;
    ensure!(seconds > 0, "Retry-After: {seconds}");
    Ok(())
}

/// `Some` when a refusal names this bound: the one before it may still be in force.
async fn refused_for(answer: Answer, bound: &str) -> Option<()> {
    says_when(&answer).ok()?;
    let text = answer.bytes().await.ok()?;
    String::from_utf8_lossy(&text).contains(bound).then_some(())
}

async fn counted(lab: &Lab, cause: &str) -> Result<()> {
    let metrics = Target::plain(lab.pod.ports.proxy_http, None)?;
    let text = metrics.get("/metrics", &[]).await?.good().await?;
    let text = String::from_utf8_lossy(&text);
    let line = format!("pipeops_proxy_refused_total{{cause=\"{cause}\"}} ");
    let count = text.lines().find_map(|found| found.strip_prefix(&line));
    ensure!(
        count.is_some_and(|count| count != "0"),
        "{line} is not counted:\n{text}"
    );
    Ok(())
}

async fn fill(lab: &Lab) -> Result<()> {
    let object = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "limits-large"},
        "data": {"filling": "x".repeat(BYTES)}
    });
    let mut direct = Target::kubeconfig(&lab.kubeconfig)?.http1().await?;
    let headers = [("content-type", "application/json")];
    direct
        .send(http::Method::POST, LIST, &headers, object.to_string().into())
        .await?
        .good()
        .await?;
    Ok(())
}
