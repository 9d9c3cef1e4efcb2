//! Our three processes side by side, as they stand in one pod: same ports after a restart, edge tokens in folders
//! that exactly two of them know.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU16, Ordering},
};

use anyhow::{Context as _, Result};
use runtime::secret::{ExposeSecret as _, TokenFile};

use crate::process::{Launch, Process};

/// The three processes by the names of their containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// agent-core.
    Core,
    /// tunnel-sidecar.
    Tunnel,
    /// k8s-proxy.
    Proxy,
}

impl Part {
    /// All three.
    pub const ALL: [Self; 3] = [Self::Core, Self::Tunnel, Self::Proxy];

    /// Name of the container, which is the name of the binary.
    pub fn name(self) -> &'static str {
        match self {
            Self::Core => "agent-core",
            Self::Tunnel => "tunnel-sidecar",
            Self::Proxy => "k8s-proxy",
        }
    }
}

/// How k8s-proxy reaches the Kubernetes API.
#[derive(Clone, Debug)]
pub enum Kubernetes {
    /// A kubeconfig file.
    Kubeconfig(PathBuf),
}

/// What a pod is started with.
#[derive(Clone, Debug)]
pub struct PodConfig {
    /// The control plane's API.
    pub api_url: String,
    /// The agent's token.
    pub token: String,
    /// Name of the cluster.
    pub cluster_name: String,
    /// The Kubernetes API.
    pub kubernetes: Kubernetes,
    /// State in the Kubernetes Secret, as in a cluster, or in a file.
    pub state_in_secret: bool,
    /// More variables, by process.
    pub env: BTreeMap<Part, BTreeMap<String, String>>,
}

impl PodConfig {
    /// A pod for one control plane and one cluster, with its state in the cluster.
    pub fn new(api_url: impl Into<String>, token: impl Into<String>, kubernetes: Kubernetes) -> Self {
        Self {
            api_url: api_url.into(),
            token: token.into(),
            cluster_name: "lab".to_owned(),
            kubernetes,
            state_in_secret: true,
            env: BTreeMap::new(),
        }
    }

    /// Sets one variable of one process.
    #[must_use]
    pub fn env(mut self, part: Part, name: &str, value: impl Into<String>) -> Self {
        self.env
            .entry(part)
            .or_default()
            .insert(name.to_owned(), value.into());
        self
    }
}

/// Ports of one pod, fixed while it lives.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// agent-core: HTTP for probes and people.
    pub core_http: SocketAddr,
    /// agent-core: gRPC.
    pub core_grpc: SocketAddr,
    /// tunnel-sidecar: HTTP for probes.
    pub tunnel_http: SocketAddr,
    /// tunnel-sidecar: gRPC.
    pub tunnel_grpc: SocketAddr,
    /// k8s-proxy: HTTP for probes.
    pub proxy_http: SocketAddr,
    /// k8s-proxy: gRPC.
    pub proxy_grpc: SocketAddr,
    /// k8s-proxy: the plain door.
    pub door_http: SocketAddr,
    /// k8s-proxy: the TLS door.
    pub door_https: SocketAddr,
}

impl Ports {
    /// Eight free ports.
    pub fn free() -> Self {
        Self {
            core_http: free_port(),
            core_grpc: free_port(),
            tunnel_http: free_port(),
            tunnel_grpc: free_port(),
            proxy_http: free_port(),
            proxy_grpc: free_port(),
            door_http: free_port(),
            door_https: free_port(),
        }
    }

    /// HTTP and gRPC of one process.
    pub fn of(&self, part: Part) -> (SocketAddr, SocketAddr) {
        match part {
            Part::Core => (self.core_http, self.core_grpc),
            Part::Tunnel => (self.tunnel_http, self.tunnel_grpc),
            Part::Proxy => (self.proxy_http, self.proxy_grpc),
        }
    }
}

/// A port that is free, below the range from which the kernel takes source ports: one that a process gave up for
/// a restart is then not taken by an outgoing connection in between.
pub fn free_port() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const FIRST: u16 = 12_000;
    const COUNT: u16 = 18_000;
    let start = u16::try_from(std::process::id() % u32::from(COUNT)).unwrap_or_default();
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + (start.wrapping_mul(37).wrapping_add(step)) % COUNT;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

/// A running pod. What is not ended is killed when it is dropped.
#[derive(Debug)]
pub struct Pod {
    config: PodConfig,
    dir: PathBuf,
    /// Where its processes listen.
    pub ports: Ports,
    processes: BTreeMap<Part, Process>,
}

impl Pod {
    /// Prepares folders and token; nothing runs yet.
    ///
    /// # Errors
    /// When the folders cannot be made.
    pub fn prepare(config: PodConfig, dir: &Path) -> Result<Self> {
        for folder in [
            "edge-tunnel",
            "edge-proxy",
            "private-core",
            "private-tunnel",
            "private-proxy",
        ] {
            std::fs::create_dir_all(dir.join(folder))?;
        }
        std::fs::write(dir.join("token"), &config.token)?;
        Ok(Self {
            config,
            dir: dir.to_owned(),
            ports: Ports::free(),
            processes: BTreeMap::new(),
        })
    }

    /// Prepares and starts all three in the order of their names.
    ///
    /// # Errors
    /// When one cannot be started.
    pub fn start(config: PodConfig, dir: &Path) -> Result<Self> {
        let mut pod = Self::prepare(config, dir)?;
        for part in Part::ALL {
            pod.start_part(part)?;
        }
        Ok(pod)
    }

    /// Where logs, tokens and private folders are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What it was started with; changes take effect at the next start of a part.
    pub fn config_mut(&mut self) -> &mut PodConfig {
        &mut self.config
    }

    /// Writes another token into the agent's token file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_token(&self, token: &str) -> Result<()> {
        std::fs::write(self.dir.join("token"), token).context("writing the token file")
    }

    /// How one part is launched.
    pub fn launch(&self, part: Part) -> Launch {
        let ports = &self.ports;
        let path = |name: &str| self.dir.join(name).display().to_string();
        let (http, grpc) = ports.of(part);
        let mut launch = Launch::new(part.name(), &self.dir)
            .env("PIPEOPS_HTTP_LISTEN", http.to_string())
            .env("PIPEOPS_GRPC_LISTEN", grpc.to_string())
            .env(
                "PIPEOPS_LOG_LEVEL",
                "debug,h2=info,hyper=info,hyper_util=info,tower=info,rustls=info",
            )
            .env("PIPEOPS_DRAIN_TIMEOUT", "5s");
        let core = format!("http://{}", ports.core_grpc);
        launch = match part {
            Part::Core => launch
                .env("PIPEOPS_PRIVATE_DIR", path("private-core"))
                .env("PIPEOPS_EDGE_TUNNEL_DIR", path("edge-tunnel"))
                .env("PIPEOPS_EDGE_PROXY_DIR", path("edge-proxy"))
                .env("PIPEOPS_KUBERNETES_DOOR", format!("http://{}", ports.door_http))
                .env("PIPEOPS_API_URL", &self.config.api_url)
                .env("PIPEOPS_TOKEN_FILE", path("token"))
                .env("PIPEOPS_CLUSTER_NAME", &self.config.cluster_name)
                .env(
                    "PIPEOPS_STATE_BACKEND",
                    if self.config.state_in_secret {
                        "secret"
                    } else {
                        "file"
                    },
                )
                .env("PIPEOPS_STATE_FILE", path("agent-state.yaml"))
                .env("PIPEOPS_STATE_NAMESPACE", "pipeops-system")
                .env("PIPEOPS_POD_NAMESPACE", "pipeops-system")
                .env("PIPEOPS_POD_NAME", "pipeops-agent-0")
                .env("PIPEOPS_HEARTBEAT_INTERVAL", "500ms")
                .env("PIPEOPS_TUNNEL_POLL_INTERVAL", "500ms"),
            Part::Tunnel => launch
                .env("PIPEOPS_PRIVATE_DIR", path("private-tunnel"))
                .env("PIPEOPS_EDGE_DIR", path("edge-tunnel"))
                .env("PIPEOPS_CORE_ADDRESS", core)
                .env("PIPEOPS_TARGET_KUBERNETES_API", ports.door_https.to_string())
                .env("PIPEOPS_TARGET_K8S_PROXY", ports.door_http.to_string())
                .env("PIPEOPS_TARGET_AGENT_HTTP", ports.core_http.to_string()),
            Part::Proxy => {
                let Kubernetes::Kubeconfig(kubeconfig) = &self.config.kubernetes;
                launch
                    .env("PIPEOPS_PRIVATE_DIR", path("private-proxy"))
                    .env("PIPEOPS_EDGE_DIR", path("edge-proxy"))
                    .env("PIPEOPS_CORE_ADDRESS", core)
                    .env("PIPEOPS_DOOR_HTTP", ports.door_http.to_string())
                    .env("PIPEOPS_DOOR_HTTPS", ports.door_https.to_string())
                    .env("PIPEOPS_KUBECONFIG", kubeconfig.display().to_string())
            }
        };
        for (name, value) in self.config.env.get(&part).into_iter().flatten() {
            launch = launch.env(name, value);
        }
        launch
    }

    /// Starts one part.
    ///
    /// # Errors
    /// When its binary is not built.
    pub fn start_part(&mut self, part: Part) -> Result<()> {
        let process = self.launch(part).start()?;
        self.processes.insert(part, process);
        Ok(())
    }

    /// `kill -9` of one part; it stays down until [`Pod::start_part`].
    ///
    /// # Errors
    /// When it does not run.
    pub async fn kill(&mut self, part: Part) -> Result<()> {
        self.process(part)?.kill().await
    }

    /// SIGTERM to one part, and waits for its end.
    ///
    /// # Errors
    /// When it does not run, or does not end.
    pub async fn terminate(&mut self, part: Part) -> Result<std::process::ExitStatus> {
        self.process(part)?.terminate().await
    }

    /// One part's process.
    ///
    /// # Errors
    /// When it was never started.
    pub fn process(&mut self, part: Part) -> Result<&mut Process> {
        self.processes
            .get_mut(&part)
            .with_context(|| format!("{} was not started", part.name()))
    }

    /// What one part has logged over all its lives.
    pub fn log(&self, part: Part) -> String {
        std::fs::read_to_string(self.dir.join(format!("{}.log", part.name()))).unwrap_or_default()
    }

    /// All logs, for the message of a failed assertion.
    pub fn logs(&self) -> String {
        Part::ALL
            .iter()
            .map(|part| format!("--- {}\n{}", part.name(), self.log(*part)))
            .collect()
    }

    /// The operator token of one part.
    ///
    /// # Errors
    /// When it has not made one yet.
    pub fn operator_token(&self, part: Part) -> Result<String> {
        let folder = match part {
            Part::Core => "private-core",
            Part::Tunnel => "private-tunnel",
            Part::Proxy => "private-proxy",
        };
        let file = TokenFile::new(self.dir.join(folder).join("operator-token"));
        let token = file
            .read()?
            .with_context(|| format!("{} has no token yet", file.path().display()))?;
        Ok(token.expose_secret().to_owned())
    }
}
