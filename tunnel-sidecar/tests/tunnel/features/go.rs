//! The Go client beside ours.

use std::process::Stdio;

use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::Outcome;
use crate::world::{Chisel, chisel_binary, eventually};

/// One client; killed when dropped.
pub(crate) struct GoClient {
    dir: TempDir,
    _child: Child,
}

impl GoClient {
    /// Starts `chisel client FLAGS SERVER REMOTES…`.
    pub(crate) fn start(server: &str, flags: &[String], remotes: &[String]) -> Self {
        Self::start_with(server, flags, remotes, &[])
    }

    /// The same with variables.
    pub(crate) fn start_with(
        server: &str,
        flags: &[String],
        remotes: &[String],
        env: &[(&str, String)],
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let child = Command::new(chisel_binary().unwrap())
            .args([
                "client",
                "-v",
                "--auth",
                Chisel::CREDENTIALS,
                "--max-retry-interval",
                "1s",
            ])
            .args(flags)
            .arg(server)
            .args(remotes)
            .envs(env.iter().map(|(name, value)| (*name, value.as_str())))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self { dir, _child: child }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// Waits until it says so.
    pub(crate) async fn says(&self, text: &'static str) -> Outcome {
        eventually(text, || async { self.log().contains(text).then_some(()) }).await;
        Outcome::Says(text)
    }
}
