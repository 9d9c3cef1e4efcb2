//! Instructions of tunnel-sidecar for 64 MiB each way and for a connection, counted by callgrind: they do not depend on what else the
//! machine does.

use std::{fs, path::Path, process::Stdio};

use anyhow::{Context as _, Result, ensure};
use tokio::process::Command;

use super::{
    ends::{Client, Kind, Server},
    load::{Service, Way, bulk, connections, works},
};
use crate::bench::figures::Figures;

const SIZE: u64 = 64 << 20;
/// As many at a time as where they are measured by the clock.
const AT_A_TIME: usize = 8;
const CONNECTIONS: usize = 400;

pub(super) async fn measure(figures: &mut Figures, dir: &Path) -> Result<()> {
    let service = Service::start().await?;
    let server = Server::start(dir).await?;
    let out = dir.join("callgrind.out");
    let front = [
        "valgrind".to_owned(),
        "--tool=callgrind".to_owned(),
        format!("--callgrind-out-file={}", out.display()),
    ];
    let ours = Client::launch(Kind::Ours, dir, server.address, service.address, &front).await?;
    works(ours.port).await?;
    let pid = ours.process.pid()?;
    for (way, name) in [(Way::In, "inbound"), (Way::Out, "outbound")] {
        control(&["--zero", &pid.to_string()]).await?;
        bulk(ours.port, way, SIZE).await?;
        let counted = dump(dir, pid, name).await?;
        figures.ours(
            format!("instructions for 64 MiB {name}, in user space"),
            "10^6",
            &[counted / 1e6],
        );
    }
    // The first ones make what the later ones find made.
    connections(ours.port, CONNECTIONS, AT_A_TIME).await?;
    control(&["--zero", &pid.to_string()]).await?;
    connections(ours.port, CONNECTIONS, AT_A_TIME).await?;
    let counted = dump(dir, pid, "connections").await?;
    figures.ours(
        "instructions for a connection, in user space",
        "10^3",
        &[counted / CONNECTIONS as f64 / 1e3],
    );
    Ok(())
}

async fn control(args: &[&str]) -> Result<()> {
    let status = Command::new("callgrind_control")
        .args(args)
        .stdout(Stdio::null())
        .status()
        .await
        .context("callgrind_control, of the package valgrind")?;
    ensure!(status.success(), "callgrind_control {args:?}: {status}");
    Ok(())
}

/// The instructions since the counters were set to zero.
async fn dump(dir: &Path, pid: u32, name: &str) -> Result<f64> {
    control(&[&format!("--dump={name}"), &pid.to_string()]).await?;
    counted(dir, name)
}

/// The total of the dump with this name.
fn counted(dir: &Path, name: &str) -> Result<f64> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let is_dump = path
            .file_name()
            .is_some_and(|file| file.to_string_lossy().starts_with("callgrind.out."));
        if !is_dump {
            continue;
        }
        let text = fs::read_to_string(&path)?;
        if !text.lines().any(|line| {
            line.contains(&format!("Trigger: Client Request: {name}"))
                || line.contains(name) && line.starts_with("desc:")
        }) {
            continue;
        }
        let total = text.lines().find_map(|line| {
            line.strip_prefix("totals: ")
                .or_else(|| line.strip_prefix("summary: "))
        });
        return Ok(total.context("no totals in the dump")?.trim().parse()?);
    }
    anyhow::bail!("callgrind wrote no dump named {name}")
}
