//! Watches across faults: a recorder behind every door compares each event with the truth.
//!
//! ```text
//!  writer ─────────────────────────► apiserver ◄── relay ◄── k8s-proxy ◄─┬── HTTP door ◄── recorders
//!    │ what was done, with versions                                      └── link ◄── front ◄── recorders
//!    └──► verdict: each change once and in order, or one honest 410 ◄──────────────────────────────┘
//! ```

pub mod recorder;
pub mod verdict;
pub mod writer;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;
use url::Url;

use self::{
    recorder::{Notes, Recorder},
    verdict::{Verdict, judge},
    writer::Writer,
};
use crate::{
    cluster::RealCluster,
    control_plane::{Answer, ControlPlaneConfig, ProxyLink, Route, Times},
    events::Encoding,
    kubernetes::{Fault as Trouble, FaultKind},
    lab::{Cluster, Lab, TOKEN},
    pod::{Kubernetes, Part},
    relay::Relay,
    wait::eventually,
    wire::Target,
};

const NAMESPACE: &str = "default";
const PATH: &str = "/api/v1/namespaces/default/configmaps";
/// How long an apiserver of the simulation stays away.
const AWAY: Duration = Duration::from_secs(1);
/// Connections that are cut one after the other in one fault.
const CUTS: u32 = 3;

/// What goes wrong while the changes go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: what the recorders see then is what they must see with a fault.
    None,
    /// The apiserver is killed and comes back.
    ApiserverRestart,
    /// It comes back and has forgotten every earlier position.
    ApiserverForgets,
    /// Connections to the apiserver break, in the simulation also in the middle of an event.
    ConnectionCut,
    /// The apiserver ends every watch in good order.
    WatchesEnd,
    /// The control plane's link breaks and cannot be dialled again for so long.
    LinkCut(Duration),
    /// `kill -9` of k8s-proxy.
    ProxyKilled,
    /// SIGTERM to k8s-proxy, and a new one.
    ProxyStopped,
}

impl Fault {
    /// For people.
    pub fn name(self) -> String {
        match self {
            Self::None => "none".to_owned(),
            Self::ApiserverRestart => "apiserver restart".to_owned(),
            Self::ApiserverForgets => "apiserver restart, positions forgotten".to_owned(),
            Self::ConnectionCut => format!("apiserver connection cut {CUTS} times"),
            Self::WatchesEnd => "apiserver ends the watches".to_owned(),
            Self::LinkCut(time) => format!("control-plane link cut {time:?}"),
            Self::ProxyKilled => "k8s-proxy killed (-9)".to_owned(),
            Self::ProxyStopped => "k8s-proxy stopped (SIGTERM)".to_owned(),
        }
    }

    /// What is tried on the simulation: with short times, and with what only it can do.
    pub const SIMULATED: [Self; 9] = [
        Self::None,
        Self::ApiserverRestart,
        Self::ApiserverForgets,
        Self::ConnectionCut,
        Self::WatchesEnd,
        Self::LinkCut(Duration::from_secs(1)),
        Self::LinkCut(Duration::from_secs(5)),
        Self::ProxyKilled,
        Self::ProxyStopped,
    ];
    /// What is tried on a real cluster.
    pub const REAL: [Self; 7] = [
        Self::None,
        Self::ApiserverRestart,
        Self::ConnectionCut,
        Self::LinkCut(Duration::from_secs(1)),
        Self::LinkCut(Duration::from_secs(30)),
        Self::ProxyKilled,
        Self::ProxyStopped,
    ];

    /// Whether a door is on its way.
    fn strikes(self, door: &str) -> bool {
        !matches!(self, Self::LinkCut(_)) || door != HTTP
    }
}

const HTTP: &str = "http";

/// A lab whose k8s-proxy reaches the apiserver through a relay.
struct Bench {
    lab: Lab,
    id: String,
    relay: Relay,
    link: &'static str,
    /// Of the kubeconfig, which k8s-proxy reads at each start.
    _dir: TempDir,
}

/// Every fault after the other, with recorders behind the HTTP door and behind the front, in both encodings; over a
/// link that speaks HTTP/2 (v2) or frames (v1). Prints the table.
///
/// # Errors
/// When a recorder missed a change, saw one twice or out of order, was told 410 more than once for a fault, or got a
/// bookmark that it did not ask for.
pub async fn matrix(cluster: Cluster, faults: &[Fault], http2: bool) -> Result<()> {
    let mut bench = Bench::start(cluster, http2).await?;
    let mut rows = Vec::new();
    for (number, fault) in faults.iter().enumerate() {
        rows.extend(bench.one(*fault, &format!("survive-{number}")).await?);
    }
    finish(&rows)
}

/// How the rows of a link are called.
pub fn link_name(link: &ProxyLink) -> &'static str {
    if link.is_http2() { "v2" } else { "v1" }
}

/// One line of the table.
#[derive(Debug)]
pub struct Row {
    fault: String,
    encoding: &'static str,
    door: &'static str,
    verdict: Verdict,
    notes: Notes,
    unasked_bookmarks: bool,
    allowed_gone: u32,
}

/// Prints the table and says what is wrong in it.
///
/// # Errors
/// As [`matrix`].
pub fn finish(rows: &[Row]) -> Result<()> {
    println!(
        "{:<42} {:<9} {:<5} {:>7} {:>7} {:>10} {:>7} {:>9} {:>4} {:>6} {:>6} {:>9}",
        "fault",
        "encoding",
        "door",
        "changes",
        "events",
        "duplicates",
        "missing",
        "unordered",
        "410s",
        "ended",
        "broken",
        "silence s"
    );
    let mut wrong = Vec::new();
    for row in rows {
        let (verdict, notes) = (&row.verdict, &row.notes);
        let line = format!(
            "{:<42} {:<9} {:<5} {:>7} {:>7} {:>10} {:>7} {:>9} {:>4} {:>6} {:>6} {:>9.3}",
            row.fault,
            row.encoding,
            row.door,
            verdict.changes,
            verdict.seen,
            verdict.duplicates,
            verdict.missing,
            verdict.unordered,
            notes.gone,
            notes.ended,
            notes.broken,
            verdict.silence
        );
        println!("{line}");
        let fine = verdict.duplicates + verdict.missing + verdict.unordered == 0
            && notes.gone <= row.allowed_gone
            && notes.halves == 0
            && notes.failed.is_empty()
            && !row.unasked_bookmarks
            && verdict.changes > 0;
        if !fine {
            wrong.push(format!(
                "{line} {} {}",
                notes.failed,
                if notes.halves > 0 { "half events" } else { "" }
            ));
        }
    }
    ensure!(
        wrong.is_empty(),
        "not each change once, or one honest 410:\n{}",
        wrong.join("\n")
    );
    Ok(())
}

impl Bench {
    async fn start(cluster: Cluster, http2: bool) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let direct = match &cluster {
            Cluster::Real(path) => path.clone(),
            Cluster::Simulated(simulation) => {
                let path = dir.path().join("direct.kubeconfig");
                simulation.kubeconfig(&path)?;
                path
            }
        };
        let (relay, text) = relayed(&direct).await?;
        let relayed: PathBuf = dir.path().join("relayed.kubeconfig");
        std::fs::write(&relayed, text)?;
        let mut config = ControlPlaneConfig::new(TOKEN);
        config.link.http2 = http2;
        let mut lab = Lab::with(cluster, config, |mut pod| {
            pod.kubernetes = Kubernetes::Kubeconfig(relayed);
            pod
        })
        .await?;
        let id = lab.start().await?;
        let link = link_name(lab.control_plane.wait_link(&id).await.as_ref());
        ensure!((link == "v2") == http2, "the link speaks {link}");
        Ok(Self {
            lab,
            id,
            relay,
            link,
            _dir: dir,
        })
    }

    async fn recorders(&self) -> Result<Vec<Recorder>> {
        let doors = [
            (HTTP, Target::plain(self.lab.pod.ports.door_http, Some(TOKEN))?),
            (self.link, Target::front(&self.lab.control_plane, &self.id)?),
        ];
        recorders(&doors).await
    }

    /// One fault, with fresh recorders.
    async fn one(&mut self, fault: Fault, prefix: &str) -> Result<Vec<Row>> {
        let mut recorders = self.recorders().await?;
        recorders.retain(|recorder| fault.strikes(recorder.door));
        let Self { lab, id, relay, .. } = self;
        let Lab {
            control_plane,
            cluster,
            pod,
            ..
        } = lab;
        let cluster = &*cluster;
        let strike = async {
            match fault {
                Fault::None => tokio::time::sleep(AWAY).await,
                Fault::ApiserverRestart | Fault::ApiserverForgets => match cluster {
                    Cluster::Simulated(simulation) => {
                        simulation.down().await;
                        tokio::time::sleep(AWAY).await;
                        if fault == Fault::ApiserverForgets {
                            simulation.compact();
                        }
                        simulation.up().await?;
                    }
                    Cluster::Real(_) => {
                        let real = RealCluster::running().await?;
                        real.restart_apiserver(&["--signal", "KILL"]).await?;
                    }
                },
                Fault::ConnectionCut => {
                    for _ in 0..CUTS {
                        tokio::time::sleep(AWAY / 2).await;
                        if let Cluster::Simulated(simulation) = cluster {
                            let cut = Trouble::new(FaultKind::Cut).verb("watch").times(1);
                            simulation.faults().add(cut);
                        }
                        tokio::time::sleep(AWAY / 2).await;
                        relay.cut();
                    }
                }
                Fault::WatchesEnd => cluster.simulation()?.end_watches(),
                Fault::LinkCut(time) => {
                    control_plane.refuse(Route::ProxyDial, Answer::status(503), Times::Always);
                    control_plane.wait_link(id).await.cut("the test cut it");
                    tokio::time::sleep(time).await;
                    control_plane.clear_faults();
                }
                Fault::ProxyKilled => {
                    pod.kill(Part::Proxy).await?;
                    pod.start_part(Part::Proxy)?;
                }
                Fault::ProxyStopped => {
                    pod.terminate(Part::Proxy).await?;
                    pod.start_part(Part::Proxy)?;
                }
            }
            anyhow::Ok(())
        };
        let gone = u32::from(matches!(fault, Fault::ApiserverRestart | Fault::ApiserverForgets));
        across(cluster, recorders, &fault.name(), gone, prefix, strike).await
    }
}

/// Makes changes while `strike` happens, and compares what the recorders saw; each may be told 410 so often.
///
/// # Errors
/// When a change cannot be made, or `strike` fails.
pub async fn across(
    cluster: &Cluster,
    recorders: Vec<Recorder>,
    fault: &str,
    allowed_gone: u32,
    prefix: &str,
    strike: impl Future<Output = Result<()>>,
) -> Result<Vec<Row>> {
    let mut writer = Writer::new(cluster, prefix)?;
    writer.change().await?;
    all_know(&recorders, &writer).await;
    // Changes go on while it happens.
    tokio::select! {
        struck = strike => struck.with_context(|| fault.to_owned())?,
        failed = writer.run() => match failed? {},
    }
    // Twice, because what comes twice comes late.
    for _ in 0..2 {
        writer.change().await?;
        all_know(&recorders, &writer).await;
    }
    let row = |recorder: Recorder| {
        let notes = recorder.notes();
        Row {
            fault: fault.to_owned(),
            encoding: recorder.encoding.name(),
            door: recorder.door,
            verdict: judge(&writer.changes, &notes),
            unasked_bookmarks: notes.bookmarks > 0 && !recorder.wants_bookmarks,
            notes,
            allowed_gone,
        }
    };
    Ok(recorders.into_iter().map(row).collect())
}

/// A recorder for each door and encoding.
///
/// # Errors
/// When a first list does not come.
pub async fn recorders(doors: &[(&'static str, Target)]) -> Result<Vec<Recorder>> {
    let mut recorders = Vec::new();
    for (door, target) in doors {
        for encoding in [Encoding::Json, Encoding::Protobuf] {
            recorders.push(Recorder::start(door, target.clone(), PATH, encoding).await?);
        }
    }
    Ok(recorders)
}

/// Waits until every recorder knows the newest change.
async fn all_know(recorders: &[Recorder], writer: &Writer<'_>) {
    let Some(last) = writer.changes.last() else { return };
    let version = last.version.to_string();
    for recorder in recorders {
        let what = format!(
            "{} in {} to see {}",
            recorder.door,
            recorder.encoding.name(),
            last.name
        );
        eventually(&what, || async {
            let failed = recorder.notes().failed;
            assert!(failed.is_empty(), "the recorder gave up: {failed}");
            recorder.knows(&last.name, &version).then_some(())
        })
        .await;
    }
}

/// A relay to the server of a kubeconfig, and the kubeconfig that goes through it.
async fn relayed(kubeconfig: &std::path::Path) -> Result<(Relay, String)> {
    let text = std::fs::read_to_string(kubeconfig)?;
    let config: serde_json::Value = serde_saphyr::from_str(&text)?;
    let server = config["clusters"][0]["cluster"]["server"]
        .as_str()
        .context("a server")?;
    let url: Url = server.parse()?;
    let target = url
        .socket_addrs(|| None)?
        .first()
        .copied()
        .context("an address")?;
    let relay = Relay::start(target).await?;
    let text = text.replace(server, &format!("https://{}", relay.address()));
    Ok((relay, text))
}
