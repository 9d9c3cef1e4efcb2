//! Bind, then run.

use std::{convert::Infallible, io, net::SocketAddr, path::PathBuf, sync::Arc};

use proto::{
    process::ProcessService,
    v1::{process_server::ProcessServer, siblings_client::SiblingsClient, tunnel_server::TunnelServer},
};
use runtime::{
    admin::{self, BindError},
    build::instance_id,
    cli::write_addresses,
    conditions::Conditions,
    local::{
        self, Access, LocalError, Role,
        streams::{Applied, Follow, Tell},
    },
    metrics::Metrics,
    supervise::Supervisor,
    telemetry::{LogFilter, Telemetry},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tracing::info;

use crate::{
    BUILD,
    carrier::Carrier,
    config::Config,
    connections::Connections,
    control::Control,
    core::{Reports, Specs},
    known::KnownServers,
    link::{Parts, link},
    metrics::TunnelMetrics,
    outbound::Outbound,
    report::{self, Reporter},
    status::Board,
};

/// Both roles may do the same here: agent-core on behalf of people, and people themselves.
const METHODS: [&str; 2] = ["/pipeops.agent.v1.Tunnel/*", "/pipeops.agent.v1.Process/*"];

/// Why the process cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A listener.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The private folder.
    #[error(
        "cannot use the private folder {path}: it must be writable and this container's own (--private-dir)"
    )]
    Private {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The addresses file.
    #[error("cannot write the addresses file {path} (--addresses-file)")]
    Addresses {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The channel to agent-core.
    #[error(transparent)]
    Core(#[from] LocalError),
}

/// The process before it has listeners.
#[derive(Debug)]
pub struct App;

/// The process with its listeners, ready to run.
#[derive(Debug)]
pub struct Bound {
    config: Config,
    log_filter: LogFilter,
    http: TcpListener,
    http_address: SocketAddr,
    grpc: TcpListener,
    grpc_address: SocketAddr,
    known: KnownServers,
}

impl App {
    /// Takes every address and folder that running needs.
    ///
    /// # Errors
    /// What could not be had.
    pub async fn bind(config: Config, telemetry: &Telemetry) -> Result<Bound, Error> {
        let private = |source| Error::Private {
            path: config.common.private_dir.clone(),
            source,
        };
        config
            .common
            .operator_token()
            .create_once(0o600)
            .map_err(private)?;
        let known = KnownServers::open(&config.common.private_dir).map_err(private)?;
        let http = admin::bind("--http-listen", config.common.http_listen).await?;
        let grpc = admin::bind("--grpc-listen", config.common.grpc_listen).await?;
        let http_address = http.local_addr().unwrap_or(config.common.http_listen);
        let grpc_address = grpc.local_addr().unwrap_or(config.common.grpc_listen);
        if let Some(path) = &config.common.addresses_file {
            write_addresses(path, &[("http", http_address), ("grpc", grpc_address)]).map_err(|source| {
                Error::Addresses {
                    path: path.clone(),
                    source,
                }
            })?;
        }
        let log_filter = telemetry.log_filter();
        Ok(Bound {
            config,
            log_filter,
            http,
            http_address,
            grpc,
            grpc_address,
            known,
        })
    }
}

impl Bound {
    /// Where probes and metrics are.
    pub fn http_address(&self) -> SocketAddr {
        self.http_address
    }

    /// Where the local gRPC is.
    pub fn grpc_address(&self) -> SocketAddr {
        self.grpc_address
    }

    /// Starts everything; it lives until the supervisor drains.
    ///
    /// # Errors
    /// When agent-core's address is none.
    pub fn run(self, supervisor: &Supervisor) -> Result<(), Error> {
        let config = self.config;
        let timing = config.timing;
        let instance = instance_id();
        let edge = || config.common.edge_token();
        let core = local::channel(config.common.core_address.as_str(), edge(), BUILD)?;

        let conditions = Conditions::new();
        let metrics = Metrics::new(BUILD);
        let board = Board::default();
        let connections = Connections::default();
        let never = config.never(&[self.http_address, self.grpc_address]);
        let carrier = Carrier::new(
            connections.clone(),
            config.max_connections,
            never.clone(),
            timing,
            supervisor.clone(),
        );
        let (handle, manager) = link(Parts {
            carrier,
            known: Arc::new(self.known),
            outbound: Arc::new(Outbound::new(config.identity.clone(), config.proxies.clone())),
            board: board.clone(),
            conditions: conditions.clone(),
            metrics: TunnelMetrics::new(&metrics),
            supervisor: supervisor.clone(),
            timing,
            max_connections: config.max_connections,
        });
        let applied = Applied::default();
        let reporter = Reporter::new(
            BUILD,
            &instance,
            conditions.clone(),
            board,
            applied.clone(),
            supervisor.clone(),
        );

        let control = Control {
            reporter: reporter.clone(),
            connections,
            link: handle.clone(),
            supervisor: supervisor.clone(),
            timing,
        };
        let (log_filter, drain) = (self.log_filter, supervisor.clone());
        let process = ProcessService::new(
            report::build(BUILD),
            move |filter| log_filter.set(filter),
            move |reason| drain.drain(reason),
        );
        let mut routes = Routes::builder();
        routes
            .add_service(TunnelServer::new(control))
            .add_service(ProcessServer::new(process));
        let access = Access::new().allow(Role::Core, edge(), &METHODS).allow(
            Role::Operator,
            config.common.operator_token(),
            &METHODS,
        );

        info!("starting: {}", config.describe());
        let http = admin::serve_http(
            self.http,
            admin::router(BUILD, conditions.clone(), metrics),
            supervisor.clone(),
        );
        supervisor.spawn_critical("http", http);
        let grpc = local::serve(
            self.grpc,
            BUILD,
            access,
            proto::FILE_DESCRIPTOR_SET,
            routes.routes(),
            supervisor.clone(),
        );
        supervisor.spawn_critical("grpc", grpc);
        let spec = Follow {
            desired: Specs {
                client: SiblingsClient::new(core.clone()),
                instance,
                places: config.places,
                never,
                link: handle,
            },
            peer: format!("agent-core at {}", config.common.core_address),
            applied,
            conditions,
            supervisor: supervisor.clone(),
            pace: timing.core,
        };
        supervisor.spawn_critical("spec stream", spec.run());
        // Reports go on while the link drains: the last ones say how far it is.
        let done = CancellationToken::new();
        let last = done.clone().drop_guard();
        let reports = Tell {
            observed: Reports::new(SiblingsClient::new(core), reporter, timing.coalesce),
            peer: "agent-core".to_owned(),
            done,
            supervisor: supervisor.clone(),
            pace: timing.core,
        };
        supervisor.spawn_critical("report stream", reports.run());
        supervisor.spawn_critical("link", async move {
            let ended: Result<(), Infallible> = manager.run().await;
            drop(last);
            ended
        });
        Ok(())
    }
}
