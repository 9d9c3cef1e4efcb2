//! The demo: everything a lab has, shown to a person.
//!
//! ```text
//!  stage (local processes | helm on a real cluster) ─► show: registered, heartbeats, forwards, watch ─► commands
//! ```

mod local;
pub(crate) mod real;
mod show;

use std::time::Duration;

use anyhow::{Result, bail};

use self::show::Show;
use crate::control_plane::ControlPlane;

/// How the demo runs.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Stop by itself; without it, Ctrl-C does.
    pub stop_after: Option<Duration>,
    /// On the real cluster, with helm.
    pub real: bool,
}

/// What a stage offers to the show.
#[derive(Debug)]
pub(crate) struct Commands {
    /// Lines to type next, with a word before each.
    pub(crate) lines: Vec<(&'static str, String)>,
}

/// Runs the demo to its end.
///
/// # Errors
/// When something could not be started, or was not seen.
pub async fn run(options: Options) -> Result<()> {
    runtime::tls::install_provider();
    if options.real {
        let stage = real::Stage::start().await?;
        let commands = stage.commands().await?;
        let shown = shown(options, &stage.control_plane, &commands).await;
        stage.end().await?;
        shown
    } else {
        let mut stage = local::Stage::start().await?;
        let id = stage.registered().await;
        let commands = stage.commands(&id)?;
        let shown = shown(options, &stage.control_plane, &commands).await;
        stage.end().await;
        shown
    }
}

async fn shown(options: Options, control_plane: &ControlPlane, commands: &Commands) -> Result<()> {
    let mut show = Show::new(control_plane);
    let everything = async {
        show.everything().await?;
        show.next(commands);
        show.go_on().await
    };
    let stop = async {
        match options.stop_after {
            Some(after) => tokio::time::sleep(after).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        result = everything => result?,
        () = stop => {}
        _ = tokio::signal::ctrl_c() => println!("\nstopping"),
    }
    let missing = show.missing();
    if options.stop_after.is_some() && !missing.is_empty() {
        bail!("not seen: {}", missing.join(", "));
    }
    println!(
        "{}",
        if missing.is_empty() {
            "everything was seen"
        } else {
            "stopped before everything was seen"
        }
    );
    Ok(())
}
