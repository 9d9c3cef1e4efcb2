//! The processes that are measured: the Go server, the Go client, tunnel-sidecar, rathole.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::Stdio,
};

use anyhow::{Context as _, Result};
use proto::v1::{Forward, TunnelSpec};
use tokio::{
    process::{Child, Command},
    time::Instant,
};

use super::{
    core::Core,
    load::{listens, works},
};
use crate::{peers, process::find_binary};

const CREDENTIALS: &str = "bench:tunnel-bench-password";
const EDGE_TOKEN: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// A port nobody uses at this moment.
pub(super) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A process, killed when dropped.
pub(super) struct Running {
    child: Child,
}

impl Running {
    fn start(program: &Path, args: &[String], env: &[(&str, String)], log: &Path) -> Result<Self> {
        let log = fs::File::create(log)?;
        let child = Command::new(program)
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .envs(env.iter().map(|(name, value)| (*name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        Ok(Self { child })
    }

    pub(super) fn pid(&self) -> Result<u32> {
        self.child.id().context("the process has ended")
    }
}

/// The Go chisel server.
pub(super) struct Server {
    pub(super) process: Running,
    pub(super) address: SocketAddr,
}

impl Server {
    pub(super) async fn start(dir: &Path) -> Result<Self> {
        let port = free_port()?;
        let args = [
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            &port.to_string(),
            "--reverse",
            "--auth",
            CREDENTIALS,
        ];
        let process = Running::start(
            &peers::path("chisel")?,
            &args.map(str::to_owned),
            &[],
            &dir.join("chisel-server.log"),
        )?;
        listens(port).await?;
        Ok(Self {
            process,
            address: ([127, 0, 0, 1], port).into(),
        })
    }
}

/// Which client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Ours,
    Go,
}

/// A client with forwards to the service.
pub(super) struct Client {
    pub(super) process: Running,
    /// Where the server listens for the forward, the first one if there are several.
    pub(super) port: u16,
    /// Where it listens for all of them.
    pub(super) ports: Vec<u16>,
    _core: Option<Core>,
}

impl Client {
    /// Starts a client of the server at `server`, and waits for its forward to work.
    pub(super) async fn start(
        kind: Kind,
        dir: &Path,
        server: SocketAddr,
        service: SocketAddr,
    ) -> Result<Self> {
        let client = Self::launch(kind, dir, server, service, &[]).await?;
        works(client.port).await?;
        Ok(client)
    }

    /// One of ours with a session for each of so many forwards.
    pub(super) async fn side_by_side(
        dir: &Path,
        server: SocketAddr,
        service: SocketAddr,
        sessions: u16,
    ) -> Result<Self> {
        let client = Self::launch_with(Kind::Ours, dir, server, service, &[], sessions).await?;
        for port in &client.ports {
            works(*port).await?;
        }
        Ok(client)
    }

    /// The same, without waiting, and with a program in front, such as valgrind.
    pub(super) async fn launch(
        kind: Kind,
        dir: &Path,
        server: SocketAddr,
        service: SocketAddr,
        front: &[String],
    ) -> Result<Self> {
        Self::launch_with(kind, dir, server, service, front, 1).await
    }

    async fn launch_with(
        kind: Kind,
        dir: &Path,
        server: SocketAddr,
        service: SocketAddr,
        front: &[String],
        sessions: u16,
    ) -> Result<Self> {
        let ports = (0..sessions).map(|_| free_port()).collect::<Result<Vec<_>>>()?;
        let port = ports.first().copied().context("no session")?;
        let log = dir.join(format!("{kind:?}-{port}.log"));
        let (program, args, env, core) = match kind {
            Kind::Go => {
                let remote = format!("R:127.0.0.1:{port}:{service}");
                let args = [
                    "client",
                    "--auth",
                    CREDENTIALS,
                    &format!("http://{server}"),
                    &remote,
                ];
                (
                    peers::path("chisel")?,
                    args.map(str::to_owned).to_vec(),
                    Vec::new(),
                    None,
                )
            }
            Kind::Ours => {
                let home = dir.join(format!("sidecar-{port}"));
                let edge = home.join("edge");
                fs::create_dir_all(&edge)?;
                fs::write(edge.join("token"), EDGE_TOKEN)?;
                let core = Core::start(spec(server, &ports, service)).await?;
                let env = vec![
                    ("PIPEOPS_HTTP_LISTEN", "127.0.0.1:0".to_owned()),
                    ("PIPEOPS_GRPC_LISTEN", "127.0.0.1:0".to_owned()),
                    ("PIPEOPS_PRIVATE_DIR", home.join("private").display().to_string()),
                    ("PIPEOPS_EDGE_DIR", edge.display().to_string()),
                    ("PIPEOPS_CORE_ADDRESS", format!("http://{}", core.address)),
                    ("PIPEOPS_LOG_LEVEL", "info".to_owned()),
                ];
                (find_binary("tunnel-sidecar")?, Vec::new(), env, Some(core))
            }
        };
        let process = match front.split_first() {
            None => Running::start(&program, &args, &env, &log)?,
            Some((tool, rest)) => {
                let mut all = rest.to_vec();
                all.push(program.display().to_string());
                all.extend(args);
                Running::start(Path::new(tool), &all, &env, &log)?
            }
        };
        Ok(Self {
            process,
            port,
            ports,
            _core: core,
        })
    }

    /// When the server began to listen for the forward.
    pub(super) async fn listening(&self) -> Result<Instant> {
        listens(self.port).await
    }
}

fn spec(server: SocketAddr, ports: &[u16], service: SocketAddr) -> TunnelSpec {
    TunnelSpec {
        epoch: "bench".to_owned(),
        revision: 1,
        enabled: true,
        server: format!("ws://{server}"),
        credentials: CREDENTIALS.to_owned(),
        forwards: ports
            .iter()
            .map(|port| Forward {
                name: format!("bench-{port}"),
                remote_host: "127.0.0.1".to_owned(),
                remote_port: (*port).into(),
                target: service.to_string(),
                ..Forward::default()
            })
            .collect(),
        sessions: u32::try_from(ports.len()).unwrap_or(u32::MAX),
        allowed_targets: vec![service.to_string()],
        ..TunnelSpec::default()
    }
}

/// rathole, server and client, over plain TCP.
pub(super) struct Rathole {
    _server: Running,
    pub(super) client: Running,
    pub(super) port: u16,
}

impl Rathole {
    pub(super) async fn start(dir: &Path, service: SocketAddr) -> Result<Self> {
        let program = peers::path("rathole")?;
        let (control, port) = (free_port()?, free_port()?);
        let server = format!(
            "[server]\nbind_addr = \"127.0.0.1:{control}\"\ndefault_token = \"bench\"\n[server.services.bench]\nbind_addr = \"127.0.0.1:{port}\"\n"
        );
        let client = format!(
            "[client]\nremote_addr = \"127.0.0.1:{control}\"\ndefault_token = \"bench\"\n[client.services.bench]\nlocal_addr = \"{service}\"\n"
        );
        let start = |name: &str, text: &str| -> Result<Running> {
            let file = dir.join(format!("rathole-{name}.toml"));
            fs::write(&file, text)?;
            let args = [format!("--{name}"), file.display().to_string()];
            Running::start(&program, &args, &[], &dir.join(format!("rathole-{name}.log")))
        };
        let server = start("server", &server)?;
        listens(control).await?;
        let client = start("client", &client)?;
        works(port).await?;
        Ok(Self {
            _server: server,
            client,
            port,
        })
    }
}
