//! agent-core: who the agent is. Registration, heartbeat, state, desired state for the siblings, and the API and
//! page that people look at.
//!
//! # The way of the data
//!
//! ```text
//!  flags, env, file ─► config ─────────────────────────────┐
//!                                                          ▼
//!  Secret / file ◄──► state::keeper ─► identity ─► link ─► session (pure) ─► control_plane ─► HTTPS
//!                                        │          │                             ▲
//!                                        ▼          ▼                             │
//!                      publish ─► spec (pure)      hub ◄── reports (pure)        poll
//!                          │        ▲               │ ▲          ▲                │
//!                          └────────┴─ spec ◄───────┼─┼──────────┼────────────────┘
//!                               │                   │ │          │
//!                    WatchTunnelSpec, WatchProxySpec│ inventory  ReportTunnel, ReportProxy   (local, gRPC 7070)
//!                                                   ▼
//!                              http: probes, metrics, seeds' API, page, relay to k8s-proxy   (8080)
//! ```
//!
//! `session`, `spec`, `reports`, `wire` and `config` hold the decisions and know no sockets; `link`, `poll`,
//! `inventory`, `publish` and `events` are the tasks that feed them.
#![forbid(unsafe_code)]

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use proto::{process::ProcessService, v1};
use runtime::{
    admin::{self, BindError},
    build::{BuildInfo, build_info, instance_id},
    cli::write_addresses,
    conditions::Conditions,
    local,
    metrics::Metrics,
    secret::TokenFile,
    supervise::Supervisor,
    telemetry::Telemetry,
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tracing::info;

pub mod cli;
pub mod config;
mod control_plane;
mod events;
mod http;
mod hub;
mod inventory;
mod kubernetes;
mod link;
mod local_api;
mod metrics;
mod poll;
mod publish;
mod reports;
mod session;
mod spec;
mod state;
mod wire;

pub use crate::control_plane::ClientError;
use crate::{
    config::Config,
    control_plane::ControlPlane,
    events::Events,
    http::Web,
    hub::{Facts, Hub},
    kubernetes::{Door, DoorError},
    link::{COMMANDS, Link},
    local_api::{core::Commands, core::CoreService, siblings::SiblingsService},
    metrics::CoreMetrics,
    publish::ProxyPublisher,
    session::Session,
    spec::{Publisher, proxy::Names},
    state::keeper::Keeper,
    wire::register::Registration,
};

/// Edge tokens are read by the sibling's group.
const EDGE_MODE: u32 = 0o640;
const OPERATOR_MODE: u32 = 0o600;
/// Name of an edge token inside its folder.
const EDGE_TOKEN: &str = "token";

/// Why agent-core cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A listener.
    #[error("cannot listen")]
    Bind(#[from] BindError),
    /// A token file.
    #[error("cannot make the token {path}: check the folder and who may write in it")]
    Token {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The control plane's client.
    #[error("cannot prepare the link to the control plane")]
    Client(#[from] ClientError),
    /// The local door.
    #[error("cannot prepare the client of k8s-proxy's door: {0}")]
    Door(String),
    /// The file for the addresses.
    #[error("cannot write the addresses file {path}")]
    Addresses {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl From<DoorError> for Error {
    fn from(error: DoorError) -> Self {
        Self::Door(error.to_string())
    }
}

/// What this binary is.
pub const BUILD: BuildInfo = build_info("agent-core");

/// The application before it listens.
#[derive(Debug)]
pub struct App;

/// Bound listeners and everything that is known before the work begins.
#[derive(Debug)]
pub struct Bound {
    config: Config,
    telemetry: runtime::telemetry::LogFilter,
    http: TcpListener,
    grpc: TcpListener,
    http_address: SocketAddr,
    grpc_address: SocketAddr,
    tokens: Tokens,
    door: Door,
    control_plane: Arc<ControlPlane>,
    conditions: Conditions,
    metrics: Metrics,
    hub: Hub,
    /// Below which earlier agents' files and the host's marks are looked for; `/`.
    root: PathBuf,
}

#[derive(Clone, Debug)]
struct Tokens {
    operator: TokenFile,
    tunnel: TokenFile,
    proxy: TokenFile,
}

impl App {
    /// Binds the listeners and makes the tokens.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn bind(config: Config, telemetry: &Telemetry) -> Result<Bound, Error> {
        Self::bind_below(Path::new("/"), config, telemetry).await
    }

    /// Like [`App::bind`], with another root for the files of earlier agents and the marks of the host.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn bind_below(root: &Path, config: Config, telemetry: &Telemetry) -> Result<Bound, Error> {
        runtime::tls::install_provider();
        let http = admin::bind(
            "--http-listen (PIPEOPS_HTTP_LISTEN, agent.port)",
            config.http_listen,
        )
        .await?;
        let grpc = admin::bind("--grpc-listen (PIPEOPS_GRPC_LISTEN)", config.grpc_listen).await?;
        let http_address = http.local_addr().unwrap_or(config.http_listen);
        let grpc_address = grpc.local_addr().unwrap_or(config.grpc_listen);
        let tokens = Tokens {
            operator: TokenFile::new(config.private_dir.join(cli::OPERATOR_TOKEN)),
            tunnel: TokenFile::new(config.edge_tunnel_dir.join(EDGE_TOKEN)),
            proxy: TokenFile::new(config.edge_proxy_dir.join(EDGE_TOKEN)),
        };
        create(&tokens.operator, OPERATOR_MODE)?;
        create(&tokens.tunnel, EDGE_MODE)?;
        let edge = create(&tokens.proxy, EDGE_MODE)?;
        let conditions = Conditions::new();
        let metrics = Metrics::new(BUILD);
        let core_metrics = CoreMetrics::new(&metrics);
        let door = Door::new(
            &config.kubernetes.door,
            edge,
            core_metrics.kubernetes_calls.clone(),
        )?;
        let agent_version = config
            .identity
            .version
            .clone()
            .unwrap_or_else(|| BUILD.version.to_owned());
        let facts = Facts {
            build: BUILD,
            agent_name: config.identity.name.clone(),
            agent_version: agent_version.clone(),
            cluster_name: config.identity.cluster_name.clone(),
            control_plane: config.control_plane.url.to_string(),
            report_timeout: config.report_timeout,
        };
        let cluster_name = config.identity.cluster_name.clone();
        let control_plane = ControlPlane::new(&config.control_plane, &agent_version, cluster_name)?;
        let hub = Hub::new(facts, conditions.clone(), core_metrics);
        if let Some(path) = &config.addresses_file {
            write_addresses(path, &[("http", http_address), ("grpc", grpc_address)]).map_err(|source| {
                Error::Addresses {
                    path: path.clone(),
                    source,
                }
            })?;
        }
        Ok(Bound {
            config,
            telemetry: telemetry.log_filter(),
            http,
            grpc,
            http_address,
            grpc_address,
            tokens,
            door,
            control_plane: Arc::new(control_plane),
            conditions,
            metrics,
            hub,
            root: root.to_path_buf(),
        })
    }
}

fn create(file: &TokenFile, mode: u32) -> Result<runtime::secret::SecretString, Error> {
    file.create_once(mode).map_err(|source| Error::Token {
        path: file.path().to_path_buf(),
        source,
    })
}

impl Bound {
    /// Where HTTP is served.
    pub fn http_address(&self) -> SocketAddr {
        self.http_address
    }

    /// Where gRPC is served.
    pub fn grpc_address(&self) -> SocketAddr {
        self.grpc_address
    }

    /// Starts every task; they end with the supervisor.
    pub fn run(self, supervisor: &Supervisor) {
        let Self {
            config,
            hub,
            door,
            control_plane,
            conditions,
            ..
        } = self;
        for line in &config.effective {
            info!(
                name = line.name,
                value = line.value,
                source = line.source,
                "setting"
            );
        }
        for note in &config.notes {
            info!("{note}");
        }
        let leaving = CancellationToken::new();
        let epoch = instance_id();
        let tunnel_specs = Publisher::new(epoch.clone());
        let proxy_specs = Publisher::new(epoch);
        let names = Names::of(&config);
        let namespace = config.state.namespace.clone();
        let registration = registration(&config, &hub, &self.root);

        let (asked_limits, limits) = watch::channel(v1::ProxyLimits::default());
        let proxy_publisher = ProxyPublisher {
            config: config.proxy,
            names,
            ca_pem: config.control_plane.ca_pem,
            control_plane: Arc::clone(&control_plane),
            publisher: proxy_specs.clone(),
            asked_limits: limits,
        };
        proxy_publisher.publish(Keeper::peek(&config.state).as_ref());

        let (keeper, identity) = Keeper::new(
            config.state,
            config.identity.agent_id,
            config.pod.clone(),
            door.clone(),
            conditions.clone(),
            self.root,
        );
        let (commands, wishes) = mpsc::channel(COMMANDS);
        let commands = Commands(commands);
        let (events, event_queue) = Events::new();
        let link = Link {
            session: Session::new(
                config.control_plane.heartbeat_interval,
                config.control_plane.backoff,
                rand::random(),
            ),
            control_plane: Arc::clone(&control_plane),
            identity: identity.clone(),
            hub: hub.clone(),
            events: events.clone(),
            registration,
            service_token: config.kubernetes.service_token,
            commands: wishes,
            supervisor: supervisor.clone(),
            drain_timeout: config.drain_timeout,
            termination_log: config.termination_log,
            asked_limits,
            leaving: leaving.clone(),
        };

        let siblings = SiblingsService {
            hub: hub.clone(),
            tunnel: tunnel_specs.clone(),
            proxy: proxy_specs,
            leaving: leaving.clone(),
        };
        let core = CoreService {
            hub: hub.clone(),
            commands: commands.clone(),
            leaving: leaving.clone(),
        };
        let (filter, stop) = (self.telemetry, supervisor.clone());
        let process = ProcessService::new(
            hub::build(BUILD),
            move |directives| filter.set(directives),
            move |reason| stop.drain(reason),
        );
        let routes = Routes::new(v1::siblings_server::SiblingsServer::new(siblings))
            .add_service(v1::core_server::CoreServer::new(core))
            .add_service(v1::process_server::ProcessServer::new(process));
        let access = local_api::access(
            self.tokens.operator.clone(),
            self.tokens.tunnel.clone(),
            self.tokens.proxy.clone(),
        );
        supervisor.spawn_critical(
            "grpc",
            local::serve(
                self.grpc,
                BUILD,
                access,
                proto::FILE_DESCRIPTOR_SET,
                routes,
                supervisor.clone(),
            ),
        );

        let web = Web {
            hub: hub.clone(),
            commands,
            control_plane: Arc::clone(&control_plane),
            door: door.clone(),
            door_url: config.kubernetes.door,
            operator: self.tokens.operator,
            tunnel_grpc: config.tunnel_grpc.to_string(),
            tunnel_token: self.tokens.tunnel,
            proxy_grpc: config.proxy_grpc.to_string(),
            proxy_token: self.tokens.proxy,
            config: config.server,
            supervisor: supervisor.clone(),
            leaving,
        };
        let router = web.router(BUILD, conditions, self.metrics);
        supervisor.spawn_critical("http", admin::serve_http(self.http, router, supervisor.clone()));

        supervisor.spawn("state", keeper.run(supervisor.clone()));
        supervisor.spawn("proxy-spec", proxy_publisher.follow(identity, supervisor.clone()));
        supervisor.spawn(
            "inventory",
            inventory::refresh(hub.clone(), door.clone(), supervisor.clone()),
        );
        supervisor.spawn(
            "tunnel-poll",
            poll::poll(
                config.tunnel,
                control_plane,
                hub.clone(),
                tunnel_specs,
                supervisor.clone(),
            ),
        );
        supervisor.spawn(
            "events",
            events::send(event_queue, config.pod, namespace, door, supervisor.clone()),
        );
        supervisor.spawn(
            "events-watch",
            events::watch(hub.clone(), events, supervisor.clone()),
        );
        supervisor.spawn("reports-watch", expire(hub, supervisor.clone()));
        supervisor.spawn_critical("link", link.run());
        info!(http = %self.http_address, grpc = %self.grpc_address, "agent-core runs");
    }
}

/// Looks for siblings that fell silent; a second is fine enough for a limit of many.
async fn expire(hub: Hub, supervisor: Supervisor) {
    const LOOK: std::time::Duration = std::time::Duration::from_secs(1);
    let mut look = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            _ = look.tick() => hub.expire_reports(),
            () = supervisor.draining() => return,
        }
    }
}

fn registration(config: &Config, hub: &Hub, root: &Path) -> Registration {
    let memory = std::fs::read_to_string(root.join("proc/meminfo"))
        .ok()
        .and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
            let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
            Some(kib.div_ceil(1024 * 1024))
        });
    Registration {
        agent_id: String::new(),
        cluster_name: config.identity.cluster_name.clone(),
        agent_name: config.identity.name.clone(),
        agent_version: hub.facts().agent_version.clone(),
        hostname: config
            .pod
            .node_name
            .clone()
            .unwrap_or_else(|| state::identity::hostname(root)),
        k8s_version: None,
        labels: config.identity.labels.clone(),
        cluster_id: None,
        server_ip: config.pod.host_ip.map(|ip| ip.to_string()),
        cluster_cert_data: config.kubernetes.ca_cert_data.clone(),
        in_cluster: config.kubernetes.in_cluster,
        cpu_cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        memory_gb: memory,
        timestamp: String::new(),
    }
}
