//! The unmodified Go chisel server as a child process on loopback, and a client of ours connected to it.

use chisel_ssh::{
    Channel, ClientConfig, ConnectError, Driver, Fingerprint, Password, Session, SessionEvents, Trust,
    chisel, connect,
};
use std::{path::PathBuf, process::Stdio, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, BufReader, copy, split},
    net::TcpStream,
    process::{Child, Command},
    time::{interval, timeout},
};

/// For anything that takes milliseconds on an idle machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The server's binary; a missing one fails the test unless that was allowed.
pub(crate) fn binary() -> Option<PathBuf> {
    let cache = || {
        let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
        let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or(home)?;
        Some(base.join("pipeops-agent/peers/chisel-1.11.3/chisel"))
    };
    let path = std::env::var_os("PIPEOPS_PEERS_CHISEL")
        .map(PathBuf::from)
        .or_else(cache);
    if let Some(path) = path.filter(|path| path.exists()) {
        return Some(path);
    }
    let allowed = std::env::var_os("ALLOW_MISSING_PEERS").is_some_and(|value| value == "1");
    assert!(
        allowed,
        "the chisel server v1.11.3 is missing: set PIPEOPS_PEERS_CHISEL to its path"
    );
    println!("skipped: the chisel server is missing");
    None
}

/// A port nobody uses at this moment. The server cannot tell which one it got, so it must be told.
pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// A running server; killed when dropped.
pub(crate) struct Server {
    _child: Child,
    pub(crate) port: u16,
    pub(crate) fingerprint: Fingerprint,
}

impl Server {
    /// Starts a server with these further arguments and waits until it listens.
    pub(crate) async fn start(binary: &PathBuf, arguments: &[&str]) -> Self {
        for _ in 0..5 {
            if let Some(server) = Self::try_start(binary, arguments).await {
                return server;
            }
        }
        panic!("the chisel server does not start");
    }

    async fn try_start(binary: &PathBuf, arguments: &[&str]) -> Option<Self> {
        let port = free_port();
        let mut child = Command::new(binary)
            .args(["server", "--host", "127.0.0.1", "--port", &port.to_string()])
            .args(arguments)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take()?).lines();
        let mut fingerprint = None;
        loop {
            let line = timeout(PATIENCE, lines.next_line()).await.ok()?.ok()??;
            if let Some((_, text)) = line.split_once("Fingerprint ") {
                fingerprint = text.trim().parse().ok();
            }
            if line.contains("Listening on") {
                break;
            }
        }
        // Read on, so that the server never waits for its log.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Some(Self {
            _child: child,
            port,
            fingerprint: fingerprint?,
        })
    }

    /// A configuration that this server accepts, for these remotes.
    pub(crate) fn config(&self, remotes: &[chisel::Remote]) -> ClientConfig {
        let mut config = ClientConfig::new(&format!("127.0.0.1:{}", self.port), "/");
        config.user = "user".to_owned();
        config.password = Password::new("pass:word".to_owned());
        config.trust = Trust::Pinned(self.fingerprint.clone());
        config.config_json = chisel::config_json(remotes);
        config
    }

    pub(crate) async fn connect(
        &self,
        config: ClientConfig,
    ) -> Result<(Session, SessionEvents, Driver<TcpStream>), ConnectError> {
        let io = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        io.set_nodelay(true).unwrap();
        connect(io, config).await
    }
}

/// A reversed remote from a free port of the server to a target that names it.
pub(crate) fn remote(target_port: u16) -> chisel::Remote {
    chisel::Remote {
        local_host: "127.0.0.1".to_owned(),
        local_port: free_port(),
        remote_host: "127.0.0.1".to_owned(),
        remote_port: target_port,
        reverse: true,
        ..chisel::Remote::default()
    }
}

/// Sends back what arrives.
pub(crate) async fn echo(channel: Channel) {
    let (mut from, mut to) = split(channel);
    let _ = copy(&mut from, &mut to).await;
}

/// A user's connection to a port of the server, which begins to listen a moment after it has accepted the remotes.
pub(crate) async fn user(port: u16) -> TcpStream {
    let mut again = interval(Duration::from_millis(5));
    let connecting = async {
        loop {
            again.tick().await;
            if let Ok(stream) = TcpStream::connect(("127.0.0.1", port)).await {
                return stream;
            }
        }
    };
    timeout(PATIENCE, connecting).await.unwrap()
}
