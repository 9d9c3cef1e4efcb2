//! The real chisel server, or a failure: a test that did not run is not green.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Stdio,
};

use tempfile::TempDir;
use tokio::{
    net::TcpStream,
    process::{Child, Command},
};

use super::{eventually, free_port};

/// One server; killed when dropped.
pub(crate) struct Chisel {
    dir: TempDir,
    host: IpAddr,
    port: u16,
    /// What stands before the command: where it runs.
    prefix: Vec<String>,
    child: Child,
    extra: Vec<String>,
}

/// Where the server is; `None` only when somebody said that it may be missing.
pub(crate) fn binary() -> Option<PathBuf> {
    let path = std::env::var_os("PIPEOPS_PEERS_CHISEL")
        .map(PathBuf::from)
        .unwrap_or_else(|| {
            let cache = std::env::var_os("XDG_CACHE_HOME")
                .map(PathBuf::from)
                .unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache"));
            cache.join("pipeops-agent/peers/chisel-1.11.3/chisel")
        });
    if path.is_file() {
        return Some(path);
    }
    let allowed = std::env::var("ALLOW_MISSING_PEERS").is_ok_and(|value| value == "1");
    assert!(
        allowed,
        "no chisel server at {}: run `make peers`, or set ALLOW_MISSING_PEERS=1",
        path.display()
    );
    println!("SKIPPED: no chisel server at {}", path.display());
    None
}

impl Chisel {
    /// User and password of the server.
    pub(crate) const CREDENTIALS: &'static str = "agent:correct:horse";

    /// A server with a key file and one user who may everything. `None`: see [`binary`].
    pub(crate) async fn start() -> Option<Self> {
        Self::start_with(&[]).await
    }

    /// The same with further arguments.
    pub(crate) async fn start_with(extra: &[String]) -> Option<Self> {
        Self::start_at(Ipv4Addr::LOCALHOST.into(), Vec::new(), extra).await
    }

    /// The same at another address, by a command that `prefix` puts there.
    pub(crate) async fn start_at(host: IpAddr, prefix: Vec<String>, extra: &[String]) -> Option<Self> {
        let binary = binary()?;
        let dir = tempfile::tempdir().unwrap();
        let made = Command::new(&binary)
            .args(["server", "--keygen"])
            .arg(dir.path().join("key"))
            .status()
            .await;
        assert!(made.unwrap().success());
        write_users(dir.path(), Self::CREDENTIALS, ".*");
        let port = free_port().await;
        let child = launch(dir.path(), (host, port).into(), &prefix, extra).await;
        Some(Self {
            dir,
            host,
            port,
            prefix,
            child,
            extra: extra.to_vec(),
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        (self.host, self.port).into()
    }

    pub(crate) fn url(&self) -> String {
        format!("ws://{}", self.address())
    }

    /// The key's fingerprint as the server prints it.
    pub(crate) fn fingerprint(&self) -> String {
        let log = self.log();
        let line = log
            .lines()
            .rev()
            .find(|line| line.contains("Fingerprint "))
            .unwrap();
        line.rsplit(' ').next().unwrap().to_owned()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// Sessions that the server has opened so far.
    pub(crate) fn sessions(&self) -> usize {
        self.log().matches("SSH connected").count()
    }

    /// CPU time that the server has spent, user and system.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        /// Linux counts in hundredths for every program that asks (`USER_HZ`).
        const TICKS: f64 = 100.0;
        let id = self.child.id().unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks = |field: usize| fields[field].parse::<f64>().unwrap();
        (ticks(11) + ticks(12)) / TICKS
    }

    /// Waits until the server has given up a port that an earlier client wanted.
    pub(crate) async fn until_free(&self, port: u16) {
        eventually("the port to be free again", || async move {
            let tcp = tokio::net::TcpListener::bind(("0.0.0.0", port)).await.is_ok();
            let udp = tokio::net::UdpSocket::bind(("0.0.0.0", port)).await.is_ok();
            (tcp && udp).then_some(())
        })
        .await;
    }

    /// `kill -9`.
    pub(crate) async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    /// Starts again on the same port with the same key.
    pub(crate) async fn restart(&mut self) {
        self.kill().await;
        self.child = launch(self.dir.path(), self.address(), &self.prefix, &self.extra).await;
    }

    /// Goes to another address with its key and users.
    pub(crate) async fn move_to(&mut self, host: IpAddr) {
        self.host = host;
        self.restart().await;
    }

    /// The same with a new key.
    pub(crate) async fn restart_with_new_key(&mut self) {
        self.kill().await;
        let key = self.dir.path().join("key");
        std::fs::remove_file(&key).unwrap();
        let made = Command::new(binary().unwrap())
            .args(["server", "--keygen"])
            .arg(&key)
            .status()
            .await;
        assert!(made.unwrap().success());
        self.child = launch(self.dir.path(), self.address(), &self.prefix, &self.extra).await;
    }

    /// Another password or other rules, read by the server while it runs.
    pub(crate) async fn set_user(&self, credentials: &str, rule: &str) {
        let reloads = self
            .log()
            .matches("Users configuration successfully reloaded")
            .count();
        write_users(self.dir.path(), credentials, rule);
        eventually("the server to read its users again", || async {
            (self
                .log()
                .matches("Users configuration successfully reloaded")
                .count()
                > reloads)
                .then_some(())
        })
        .await;
    }
}

fn write_users(dir: &Path, credentials: &str, rule: &str) {
    let users = serde_json::json!({ credentials: [rule] });
    std::fs::write(dir.join("users.json"), users.to_string()).unwrap();
}

async fn launch(dir: &Path, address: SocketAddr, prefix: &[String], extra: &[String]) -> Child {
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(dir.join("log"))
        .unwrap();
    let binary = binary().unwrap().display().to_string();
    let mut words = prefix.iter().chain([&binary]);
    let child = Command::new(words.next().unwrap())
        .args(words)
        .args([
            "server",
            "-v",
            "--reverse",
            "--host",
            // The server joins host and port itself.
            &match address.ip() {
                IpAddr::V4(ip) => ip.to_string(),
                IpAddr::V6(ip) => format!("[{ip}]"),
            },
            "--port",
            &address.port().to_string(),
            "--keyfile",
        ])
        .arg(dir.join("key"))
        .arg("--authfile")
        .arg(dir.join("users.json"))
        .args(extra)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    eventually("the chisel server to listen", || async {
        TcpStream::connect(address).await.ok().map(|_| ())
    })
    .await;
    child
}
