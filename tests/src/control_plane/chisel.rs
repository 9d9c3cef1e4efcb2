//! The real, unmodified Go chisel server as a child process, with a host key that we made and therefore know.

use std::{
    fs::File,
    io::Write,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine, engine::general_purpose::STANDARD};
use rcgen::KeyPair;
use tokio::process::{Child, Command};

use super::{
    config::{Chisel, HostKey},
    ports::free_port,
    secrets::random_token,
    tls::{Authority, write_secret},
};

/// The version that the project is tested against; its folder in the cache is named after it.
const VERSION: &str = "1.11.3";
/// Time for the server to listen; it takes milliseconds.
const START: Duration = Duration::from_secs(20);
/// How often the log is looked at while it starts.
const LOOK: Duration = Duration::from_millis(10);
/// Another program may take a port between our look and chisel's bind.
const PORT_ATTEMPTS: u32 = 5;
/// The user in `user:pass`.
const USER: &str = "agent";

/// Which host key a restarted server has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyChange {
    /// The same one.
    Same,
    /// A fresh one, so the fingerprint changes.
    New,
}

/// What is fixed for the life of the server.
#[derive(Clone, Debug)]
pub(super) struct ChiselSettings {
    pub(super) binary: PathBuf,
    pub(super) dir: PathBuf,
    pub(super) host: IpAddr,
    pub(super) tls: Option<Authority>,
    pub(super) host_key: HostKey,
    pub(super) keepalive: Duration,
}

/// The server; killed when dropped.
#[derive(Debug)]
pub(super) struct ChiselServer {
    settings: ChiselSettings,
    child: tokio::sync::Mutex<Option<Child>>,
    known: Mutex<Known>,
}

#[derive(Clone, Debug)]
struct Known {
    port: u16,
    fingerprint: String,
    password: String,
    pid: Option<u32>,
}

/// Where the chisel server is, if there shall be one.
pub(super) fn find(chisel: &Chisel) -> Result<Option<PathBuf>> {
    let path = match chisel {
        Chisel::Off => return Ok(None),
        Chisel::Path(path) => path.clone(),
        Chisel::Find => match std::env::var_os("PIPEOPS_PEERS_CHISEL") {
            Some(path) => PathBuf::from(path),
            None => {
                let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
                let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
                let cache = cache
                    .or_else(home)
                    .context("neither XDG_CACHE_HOME nor HOME is set")?;
                cache.join(format!("pipeops-agent/peers/chisel-{VERSION}/chisel"))
            }
        },
    };
    if !path.is_file() {
        bail!(
            "no chisel server at {}: run `make peers`, or set PIPEOPS_PEERS_CHISEL",
            path.display()
        );
    }
    Ok(Some(path))
}

impl ChiselServer {
    /// Starts it on a free port.
    pub(super) async fn start(settings: ChiselSettings) -> Result<Self> {
        let key_file = settings.dir.join("chisel.key");
        let fingerprint = match std::fs::read_to_string(&key_file) {
            Ok(pem) => fingerprint(&KeyPair::from_pem(&pem).context("reading chisel.key")?)?,
            Err(_) => new_key(&settings)?,
        };
        let known = Known {
            port: 0,
            fingerprint,
            password: random_token(),
            pid: None,
        };
        let server = Self {
            settings,
            child: tokio::sync::Mutex::new(None),
            known: Mutex::new(known),
        };
        let mut attempt = 0;
        loop {
            attempt += 1;
            server.lock().port = free_port(|_| false)?;
            match server.run().await {
                Ok(()) => return Ok(server),
                Err(error) if attempt >= PORT_ATTEMPTS => return Err(error),
                Err(error) => tracing::info!(%error, "trying chisel on another port"),
            }
        }
    }

    /// Where clients connect.
    pub(super) fn address(&self) -> SocketAddr {
        SocketAddr::new(self.settings.host, self.lock().port)
    }

    /// The URL for a client, with `public_host` as its host.
    pub(super) fn url(&self, public_host: &str) -> String {
        let scheme = if self.settings.tls.is_some() { "wss" } else { "ws" };
        format!("{scheme}://{public_host}:{}", self.lock().port)
    }

    /// base64(SHA256(host key)), as chisel prints it.
    pub(super) fn fingerprint(&self) -> String {
        self.lock().fingerprint.clone()
    }

    /// `user:pass`.
    pub(super) fn credentials(&self) -> String {
        format!("{USER}:{}", self.lock().password)
    }

    /// The process, while it runs.
    pub(super) fn pid(&self) -> Option<u32> {
        self.lock().pid
    }

    /// Everything it has logged.
    pub(super) fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// `kill -9`; it stays dead until [`ChiselServer::restart`].
    pub(super) async fn kill(&self) -> Result<()> {
        self.lock().pid = None;
        if let Some(mut child) = self.child.lock().await.take() {
            child.kill().await.context("killing chisel")?;
        }
        Ok(())
    }

    /// Kills it if it runs and starts it on the same port.
    pub(super) async fn restart(&self, key: KeyChange) -> Result<()> {
        self.kill().await?;
        if key == KeyChange::New {
            let fingerprint = new_key(&self.settings)?;
            self.lock().fingerprint = fingerprint;
        }
        self.run().await
    }

    /// Restarts it with another password.
    pub(super) async fn new_password(&self) -> Result<()> {
        self.kill().await?;
        self.lock().password = random_token();
        self.run().await
    }

    async fn run(&self) -> Result<()> {
        let known = self.lock().clone();
        let mut log = File::options().create(true).append(true).open(self.log_file())?;
        let start = log.metadata()?.len();
        log.flush()?;
        let mut command = Command::new(&self.settings.binary);
        command
            .arg("server")
            .args([
                "--host",
                &self.settings.host.to_string(),
                "--port",
                &known.port.to_string(),
                "--reverse",
            ])
            .arg("--keyfile")
            .arg(self.settings.dir.join("chisel.key"))
            .args([
                "--keepalive",
                &format!("{}ms", self.settings.keepalive.as_millis()),
            ])
            .env_clear()
            // Not as an argument, where every user of the machine could read it.
            .env("AUTH", self.credentials())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true);
        if let Some(authority) = &self.settings.tls {
            command.arg("--tls-cert").arg(authority.cert_file());
            command.arg("--tls-key").arg(authority.key_file());
        }
        let mut child = command
            .spawn()
            .with_context(|| format!("starting {}", self.settings.binary.display()))?;
        let log = self.listening(&mut child, start).await?;
        if !log.contains(&known.fingerprint) {
            bail!("chisel has another host key than {}:\n{log}", known.fingerprint);
        }
        self.lock().pid = child.id();
        *self.child.lock().await = Some(child);
        Ok(())
    }

    /// Waits until it says that it listens; returns what it logged since its start.
    async fn listening(&self, child: &mut Child, start: u64) -> Result<String> {
        let deadline = tokio::time::Instant::now() + START;
        loop {
            let log = self.log().split_off(usize::try_from(start)?);
            if log.contains("Listening on") {
                return Ok(log);
            }
            if let Some(status) = child.try_wait()? {
                bail!("chisel ended with {status}:\n{log}");
            }
            if tokio::time::Instant::now() > deadline {
                bail!("chisel does not listen after {START:?}:\n{log}");
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn log_file(&self) -> PathBuf {
        self.settings.dir.join("chisel.log")
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn new_key(settings: &ChiselSettings) -> Result<String> {
    let algorithm = match settings.host_key {
        HostKey::Ecdsa => &rcgen::PKCS_ECDSA_P256_SHA256,
        HostKey::Ed25519 => &rcgen::PKCS_ED25519,
    };
    let key = KeyPair::generate_for(algorithm)?;
    write_secret(&settings.dir.join("chisel.key"), &key.serialize_pem())?;
    fingerprint(&key)
}

/// Standard base64, with padding, of the SHA-256 of the public key as SSH writes it.
fn fingerprint(key: &KeyPair) -> Result<String> {
    let point = key.public_key_raw();
    let parts: &[&[u8]] = if key.algorithm() == &rcgen::PKCS_ECDSA_P256_SHA256 {
        &[b"ecdsa-sha2-nistp256", b"nistp256", point]
    } else if key.algorithm() == &rcgen::PKCS_ED25519 {
        &[b"ssh-ed25519", point]
    } else {
        bail!("chisel.key is neither ECDSA P-256 nor Ed25519");
    };
    let mut blob = Vec::new();
    for part in parts {
        blob.extend_from_slice(&u32::try_from(part.len())?.to_be_bytes());
        blob.extend_from_slice(part);
    }
    Ok(STANDARD.encode(digest(&SHA256, &blob)))
}
