//! Runs a built binary, keeps its log, learns its ports, ends it.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
};

use anyhow::{Context, Result, bail};
use tokio::process::{Child, Command};

use crate::wait::eventually;

/// One running process of ours, killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    addresses: PathBuf,
}

/// How to start a process.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Name of the binary, for example `agent-core`.
    pub binary: String,
    /// Arguments after the name.
    pub args: Vec<String>,
    /// The whole environment: nothing is inherited but `PATH`.
    pub env: BTreeMap<String, String>,
    /// Folder for its log and its addresses file.
    pub dir: PathBuf,
}

impl Launch {
    /// A launch with nothing but the folder, in which log and addresses are kept.
    pub fn new(binary: &str, dir: &Path) -> Self {
        Self {
            binary: binary.to_owned(),
            args: Vec::new(),
            env: BTreeMap::new(),
            dir: dir.to_owned(),
        }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Sets one variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.insert(name.to_owned(), value.into());
        self
    }

    /// Starts it; the log of an earlier run in the same folder is appended to.
    ///
    /// # Errors
    /// When the binary is not there or cannot be started.
    pub fn start(&self) -> Result<Process> {
        let binary = find_binary(&self.binary)?;
        std::fs::create_dir_all(&self.dir)?;
        let log = self.dir.join(format!("{}.log", self.binary));
        let addresses = self.dir.join(format!("{}.addresses.json", self.binary));
        let _ = std::fs::remove_file(&addresses);
        let out = File::options().create(true).append(true).open(&log)?;
        let child = Command::new(&binary)
            .args(&self.args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("PIPEOPS_ADDRESSES_FILE", &addresses)
            .envs(&self.env)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", binary.display()))?;
        Ok(Process {
            name: self.binary.clone(),
            child,
            log,
            addresses,
        })
    }
}

impl Process {
    /// Waits for the addresses file and returns one of its entries, for example `grpc`.
    ///
    /// # Errors
    /// When the process ended instead, with its log.
    pub async fn address(&mut self, key: &str) -> Result<String> {
        let (what, addresses) = (format!("{} to bind", self.name), self.addresses.clone());
        let mut ended = None;
        let child = &mut self.child;
        let (text, _) = eventually(&what, || {
            if let Ok(Some(status)) = child.try_wait() {
                ended = Some(status);
            }
            let text = std::fs::read_to_string(&addresses)
                .ok()
                .or_else(|| ended.map(|_| String::new()));
            async move { text }
        })
        .await;
        if text.is_empty() {
            bail!("{} ended with {:?}:\n{}", self.name, ended, self.log());
        }
        let all: BTreeMap<String, String> = serde_json::from_str(&text)?;
        all.get(key)
            .cloned()
            .with_context(|| format!("{} has no address `{key}` in {text}", self.name))
    }

    /// Everything it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The process id.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// `kill -9`, and waits for the end.
    ///
    /// # Errors
    /// When the process cannot be killed.
    pub async fn kill(&mut self) -> Result<()> {
        self.child
            .kill()
            .await
            .with_context(|| format!("killing {}", self.name))
    }

    /// SIGTERM by the `kill` program, and waits for the end.
    ///
    /// # Errors
    /// When it does not end within the patience of the tests.
    pub async fn terminate(&mut self) -> Result<ExitStatus> {
        if let Some(pid) = self.pid() {
            Command::new("kill")
                .args(["-TERM", &pid.to_string()])
                .status()
                .await?;
        }
        self.ended().await
    }

    /// Waits for it to end by itself.
    ///
    /// # Errors
    /// When it does not end within the patience of the tests.
    pub async fn ended(&mut self) -> Result<ExitStatus> {
        tokio::time::timeout(crate::wait::patience(), self.child.wait())
            .await
            .with_context(|| format!("{} did not end:\n{}", self.name, self.log()))?
            .map_err(Into::into)
    }
}

/// Where cargo put the binary: beside the running test or program.
///
/// # Errors
/// When it is not built yet.
pub fn find_binary(name: &str) -> Result<PathBuf> {
    let current = std::env::current_exe()?;
    let found = current
        .ancestors()
        .skip(1)
        .take(3)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file());
    found.with_context(|| format!("binary {name} is not built: run `cargo build --workspace --bins` first"))
}
