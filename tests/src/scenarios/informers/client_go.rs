//! An informer of client-go behind the front.

use std::{
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    task::JoinSet,
    time::Instant,
};

use crate::{
    lab::{Cluster, Lab},
    peers,
    scenarios::survive::{recorder::Notes, verdict::judge, writer::Writer},
    wait::eventually,
};

/// Of the objects that are changed.
const PREFIX: &str = "client-go";
/// Changes before and after the link is cut.
const CHANGES: usize = 20;

#[derive(Deserialize)]
struct Line {
    event: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    version: String,
    #[serde(default)]
    message: String,
}

#[derive(Default)]
struct Told {
    synced: bool,
    notes: Notes,
    errors: Vec<String>,
}

struct Informer {
    told: Arc<Mutex<Told>>,
    _child: Child,
    _reader: JoinSet<()>,
}

/// How client-go is set.
const MODES: [(&str, &str, bool); 4] = [
    ("JSON", "application/json", false),
    ("protobuf", "application/vnd.kubernetes.protobuf", false),
    (
        "protobuf, streaming list",
        "application/vnd.kubernetes.protobuf",
        true,
    ),
    ("CBOR, JSON where there is none", "application/cbor", false),
];

/// Every mode of client-go's informer through the front, across a cut of the control plane's link: each change once.
///
/// # Errors
/// When a change is missing, comes twice or out of order, or the informer had to be told an error.
pub async fn client_go(cluster: Cluster) -> Result<()> {
    let (lab, id) = Lab::running(cluster).await?;
    let kubeconfig = lab.front_kubeconfig(&id)?.display().to_string();
    let mut informers = Vec::new();
    for (mode, media, streaming) in MODES {
        let informer = Informer::start(&kubeconfig, media, streaming)?;
        eventually(&format!("the informer ({mode}) to be in sync"), || async {
            informer.with(|told| told.synced).then_some(())
        })
        .await;
        informers.push((mode, informer));
    }
    let mut writer = Writer::new(&lab.cluster, PREFIX)?;
    for number in 0..2 * CHANGES {
        if number == CHANGES {
            lab.control_plane.wait_link(&id).await.cut("the test cut it");
        }
        writer.change().await?;
    }
    let last = writer.changes.last().context("changes")?.clone();
    for (mode, informer) in &informers {
        eventually(&format!("the informer ({mode}) to see {}", last.name), || async {
            let version = last.version.to_string();
            informer
                .with(|told| told.notes.events.iter().any(|event| event.1 == version))
                .then_some(())
        })
        .await;
    }
    for (mode, informer) in &informers {
        let verdict = informer.with(|told| judge(&writer.changes, &told.notes));
        let errors = informer.with(|told| told.errors.clone());
        println!(
            "client-go, {mode}: {} changes across a cut of the link, {} seen, {} twice, {} missing, {} out of order; {} errors told",
            verdict.changes,
            verdict.seen,
            verdict.duplicates,
            verdict.missing,
            verdict.unordered,
            errors.len()
        );
        let bad = verdict.duplicates + verdict.missing + verdict.unordered;
        ensure!(
            bad == 0 && verdict.seen == 2 * CHANGES,
            "client-go, {mode}: {verdict:?}, {errors:?}"
        );
    }
    Ok(())
}

impl Informer {
    fn start(kubeconfig: &str, media: &str, streaming: bool) -> Result<Self> {
        let mut command = Command::new(peers::path("informer")?);
        command.args(["-kubeconfig", kubeconfig, "-content-type", media]);
        command.env("KUBE_FEATURE_WatchListClient", streaming.to_string());
        if media.ends_with("cbor") {
            command.env("KUBE_FEATURE_ClientsAllowCBOR", "true");
            command.env("KUBE_FEATURE_ClientsPreferCBOR", "true");
        }
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("starting the informer")?;
        let mut lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
        let (told, mut reader) = (Arc::<Mutex<Told>>::default(), JoinSet::new());
        let noted = Arc::clone(&told);
        reader.spawn(async move {
            while let Ok(Some(text)) = lines.next_line().await {
                let Ok(line) = serde_json::from_str::<Line>(&text) else {
                    continue;
                };
                let mut told = noted.lock().unwrap_or_else(PoisonError::into_inner);
                match line.event.as_str() {
                    "SYNCED" => told.synced = true,
                    "ERROR" | "FAILED" => told.errors.push(line.message),
                    // What was there before was listed, in any order.
                    _ if !line.name.starts_with(PREFIX) => {}
                    _ => told.notes.events.push((line.name, line.version, Instant::now())),
                }
            }
        });
        Ok(Self {
            told,
            _child: child,
            _reader: reader,
        })
    }

    fn with<T>(&self, look: impl FnOnce(&Told) -> T) -> T {
        look(&self.told.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
