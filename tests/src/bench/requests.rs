//! Small GETs: directly, through `kubectl proxy`, through our HTTP door, through v1 frames; interleaved rounds.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use tokio::{task::JoinSet, time::Instant};

use super::{
    figures::{Figures, median, quantile},
    kubectl,
    sample::cpu_ms,
};
use crate::{
    control_plane::{Call, ProxyLink},
    lab::TOKEN,
    pod::Part,
};

const CONCURRENCY: usize = 16;
const REQUESTS: usize = 4_000;
const PATH: &str = "/api/v1/namespaces/default";

#[derive(Clone)]
enum Way {
    Http {
        client: reqwest::Client,
        url: String,
        token: String,
    },
    Frames(Arc<ProxyLink>),
}

#[derive(Default)]
struct Runs {
    per_second: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
    cpu: Vec<f64>,
}

pub(super) async fn measure(figures: &mut Figures, rounds: usize) -> Result<()> {
    let (mut lab, id) = super::installed().await?;
    let link = lab.control_plane.wait_link(&id).await;
    let simulation = lab.cluster.simulation()?;
    let ca = reqwest::Certificate::from_pem(simulation.ca_pem().as_bytes())?;
    let http = |url: String, token: &str| -> Result<Way> {
        let client = reqwest::Client::builder()
            .tls_certs_only([ca.clone()])
            .http1_only()
            .build()?;
        Ok(Way::Http {
            client,
            url,
            token: token.to_owned(),
        })
    };
    let direct = http(format!("{}{PATH}", simulation.url()), simulation.admin_token())?;
    let (mut kubectl, port) = kubectl::proxy(&lab).await?;
    let peer = http(format!("http://127.0.0.1:{port}{PATH}"), "")?;
    let door = http(format!("http://{}{PATH}", lab.pod.ports.door_http), TOKEN)?;
    let kubectl_pid = kubectl.id().context("kubectl proxy runs")?;
    let proxy_pid = lab.pod.process(Part::Proxy)?.pid().context("k8s-proxy runs")?;
    let ways = [
        ("direct", direct, None),
        ("kubectl proxy", peer, Some(kubectl_pid)),
        ("http door", door, Some(proxy_pid)),
        ("v1 frames", Way::Frames(link), Some(proxy_pid)),
    ];
    let mut all: BTreeMap<&str, Runs> = BTreeMap::new();
    for round in 0..=rounds {
        for (name, way, pid) in &ways {
            let before = pid.map(cpu_ms).transpose()?;
            let (seconds, mut latencies) = load(way).await?;
            // The first round warms up pools and caches.
            if round == 0 {
                continue;
            }
            let runs = all.entry(name).or_default();
            runs.per_second.push(REQUESTS as f64 / seconds);
            runs.p50.push(quantile(&mut latencies, 0.5));
            runs.p99.push(quantile(&mut latencies, 0.99));
            if let (Some(pid), Some(before)) = (pid, before) {
                runs.cpu
                    .push((cpu_ms(*pid)? - before) / (REQUESTS as f64 / 1000.0));
            }
        }
    }
    kubectl.kill().await.ok();
    for name in ["http door", "v1 frames"] {
        let ours = all.get(name).context("measured")?;
        for (peer_name, peer) in [
            ("kubectl proxy", all.get("kubectl proxy")),
            ("direct", all.get("direct")),
        ] {
            let peer = peer.context("measured")?;
            figures.beside(
                format!("{name}: small GETs, {CONCURRENCY} at once"),
                "1/s",
                &ours.per_second,
                peer_name,
                &peer.per_second,
            );
            figures.beside(format!("{name}: p50"), "ms", &ours.p50, peer_name, &peer.p50);
            figures.beside(format!("{name}: p99"), "ms", &ours.p99, peer_name, &peer.p99);
            if median(&peer.cpu) > 0.0 {
                figures.beside(
                    format!("{name}: processor time for 1,000 GETs"),
                    "ms",
                    &ours.cpu,
                    peer_name,
                    &peer.cpu,
                );
            }
        }
    }
    Ok(())
}

async fn load(way: &Way) -> Result<(f64, Vec<f64>)> {
    let start = Instant::now();
    let mut workers = JoinSet::new();
    for _ in 0..CONCURRENCY {
        let way = way.clone();
        workers.spawn(async move {
            let mut latencies = Vec::with_capacity(REQUESTS / CONCURRENCY);
            for _ in 0..REQUESTS / CONCURRENCY {
                let begun = Instant::now();
                one(&way).await?;
                latencies.push(begun.elapsed().as_secs_f64() * 1000.0);
            }
            anyhow::Ok(latencies)
        });
    }
    let mut latencies = Vec::with_capacity(REQUESTS);
    for worker in workers.join_all().await {
        latencies.extend(worker?);
    }
    Ok((start.elapsed().as_secs_f64(), latencies))
}

async fn one(way: &Way) -> Result<()> {
    match way {
        Way::Http { client, url, token } => {
            let request = client.get(url);
            let request = if token.is_empty() {
                request
            } else {
                request.bearer_auth(token)
            };
            request.send().await?.error_for_status()?.bytes().await?;
        }
        Way::Frames(link) => {
            let response = link.request(&Call::get(PATH)).await?;
            ensure!(response.status == 200, "{response:?}");
        }
    }
    Ok(())
}
