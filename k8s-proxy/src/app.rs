//! Bind, then run.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use proto::{
    process::ProcessService,
    v1::{
        gateway_server::GatewayServer, process_server::ProcessServer, proxy_server::ProxyServer,
        siblings_client::SiblingsClient,
    },
};
use runtime::{
    admin::{self, BindError},
    build::{BuildInfo, build_info, instance_id},
    cli::write_addresses,
    conditions::{Conditions, Status},
    local::{
        self, Access, LocalError, Role,
        streams::{Applied, Follow, Pace, Tell},
    },
    metrics::Metrics,
    supervise::Supervisor,
    telemetry::{LogFilter, Telemetry},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tracing::{info, warn};

use crate::{
    audit::Audit,
    config::Config,
    control::ProxyService,
    doors::{
        board::Board,
        certificate::{self, CertificateError, OwnCertificate},
        dial::{Dialler, Environment},
        exchange::GatewayService,
        gate::Gate,
        http::{self, Door},
    },
    engine::{Engine, EngineSettings},
    link::{Reports, Specs},
    metrics::ProxyMetrics,
    policy::{Policy, file::PolicyError, reload},
    report::{self, Reporter},
    shared::{POLICY, Shared},
    streams::{Budget, CancelReason, StreamTable},
    upstream::{SettingsError, Upstream},
};

/// Name, version and origin of this binary.
pub const BUILD: BuildInfo = build_info("k8s-proxy");

/// What agent-core may ask.
const CORE_METHODS: &[&str] = &[
    "/pipeops.agent.v1.Proxy/*",
    "/pipeops.agent.v1.Gateway/Exchange",
    "/pipeops.agent.v1.Process/GetBuild",
    "/pipeops.agent.v1.Process/Drain",
];
/// What a person may ask.
const OPERATOR_METHODS: &[&str] = &["/pipeops.agent.v1.Proxy/*", "/pipeops.agent.v1.Process/*"];

/// While the apiserver does not answer, it is asked so often; while it does, calls tell.
const PROBE_DOWN: Duration = Duration::from_secs(2);
const PROBE_AGAIN: Duration = Duration::from_millis(250);
const PROBE_UP: Duration = Duration::from_secs(30);
/// How often a draining process looks whether the calls that end by themselves have ended.
const DRAIN_POLL: Duration = Duration::from_millis(20);

/// Why the process cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address is not to be had.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A file cannot be written, or an address not be told.
    #[error("{what}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// No certificate for the HTTPS door.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The rules we ship do not read.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The apiserver's address cannot be used.
    #[error(transparent)]
    Upstream(#[from] SettingsError),
    /// agent-core's address cannot be used.
    #[error(transparent)]
    Local(#[from] LocalError),
}

/// The process, before its listeners are there.
#[derive(Debug)]
pub struct App;

/// The process with all its listeners, before it serves.
#[derive(Debug)]
pub struct Bound {
    config: Config,
    log_filter: LogFilter,
    certificate: OwnCertificate,
    admin: TcpListener,
    grpc: TcpListener,
    door_http: TcpListener,
    door_https: TcpListener,
    addresses: Addresses,
}

/// Addresses that were really bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Probes and metrics.
    pub http: SocketAddr,
    /// Local gRPC.
    pub grpc: SocketAddr,
    /// Plain HTTP door.
    pub door_http: SocketAddr,
    /// HTTPS door.
    pub door_https: SocketAddr,
}

impl App {
    /// Binds every listener and makes the operator's token.
    ///
    /// # Errors
    /// What is in the way.
    pub async fn bind(config: Config, telemetry: &Telemetry) -> Result<Bound, Error> {
        let admin = admin::bind("--http-listen", config.common.http_listen).await?;
        let grpc = admin::bind("--grpc-listen", config.common.grpc_listen).await?;
        let door_http = admin::bind("--door-http", config.door_http).await?;
        let door_https = admin::bind("--door-https", config.door_https).await?;
        let address = |listener: &TcpListener| {
            listener.local_addr().map_err(|source| Error::Io {
                what: "a listener has no address".to_owned(),
                source,
            })
        };
        let addresses = Addresses {
            http: address(&admin)?,
            grpc: address(&grpc)?,
            door_http: address(&door_http)?,
            door_https: address(&door_https)?,
        };
        let operator = config.common.operator_token();
        operator.create_once(0o600).map_err(|source| Error::Io {
            what: format!(
                "cannot make {}: is --private-dir writable?",
                operator.path().display()
            ),
            source,
        })?;
        if let Some(file) = &config.common.addresses_file {
            let pairs = [
                ("http", addresses.http),
                ("grpc", addresses.grpc),
                ("door_http", addresses.door_http),
                ("door_https", addresses.door_https),
            ];
            write_addresses(file, &pairs).map_err(|source| Error::Io {
                what: format!("cannot write {}", file.display()),
                source,
            })?;
        }
        let (log_filter, certificate) = (telemetry.log_filter(), certificate::make()?);
        Ok(Bound {
            config,
            log_filter,
            certificate,
            admin,
            grpc,
            door_http,
            door_https,
            addresses,
        })
    }
}

impl Bound {
    /// Where it listens.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// The HTTPS door's certificate as PEM, for callers that trust it by file.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate.pem
    }

    /// Starts all tasks. They end with the supervisor's drain.
    ///
    /// # Errors
    /// What a setting says that cannot be carried out.
    pub fn run(self, supervisor: &Supervisor) -> Result<(), Error> {
        let config = &self.config;
        info!(
            settings = config.describe(),
            certificate_sha256 = self.certificate.sha256,
            "starting"
        );
        let (conditions, metrics, instance_id) = (Conditions::new(), Metrics::new(BUILD), instance_id());
        let shared = Shared::new(conditions.clone(), Policy::builtin()?, config.scope.clone());
        let audit = if config.audit {
            Audit::stdout(&instance_id).map_err(|source| Error::Io {
                what: "cannot start the audit thread".to_owned(),
                source,
            })?
        } else {
            Audit::off()
        };
        let figures = ProxyMetrics::new(&metrics);
        let upstream = Upstream::new(
            config.upstream.clone(),
            supervisor.clone(),
            figures.upstream_connections.clone(),
        )?;
        let address = upstream.address().to_owned();
        let engine = Engine::new(
            StreamTable::new(
                config.max_streams,
                Budget::new(config.max_waiting_bytes, figures.queue_bytes.clone()),
            ),
            upstream,
            figures,
            audit,
            shared.clone(),
            EngineSettings {
                head_timeout: config.response_timeout,
                spans: config.common.otlp_endpoint.is_some(),
            },
        );
        let (board, applied) = (Board::new(conditions.clone()), Applied::default());
        let reporter = Reporter {
            build: BUILD,
            instance_id: instance_id.clone(),
            engine: engine.clone(),
            shared: shared.clone(),
            board: board.clone(),
            applied: applied.clone(),
            certificate_sha256: self.certificate.sha256.clone(),
            upstream: address,
            supervisor: supervisor.clone(),
            sequence: Arc::default(),
        };
        start_policy(config, &shared, supervisor);
        supervisor.spawn(
            "upstream probe",
            probe(engine.clone(), shared.clone(), supervisor.clone()),
        );
        supervisor.spawn("stalls", engine.clone().watch_stalls(supervisor.clone()));
        supervisor.spawn(
            "recheck",
            recheck(engine.clone(), shared.clone(), supervisor.clone()),
        );
        // Reports go on while open calls drain: the last ones say how far that is.
        let done = CancellationToken::new();
        let last = done.clone().drop_guard();
        let drain = end_calls(engine.clone(), supervisor.clone());
        supervisor.spawn("drain", async move {
            drain.await;
            drop(last);
        });

        let channel = local::channel(
            config.common.core_address.as_str(),
            config.common.edge_token(),
            BUILD,
        )?;
        let environment = Environment {
            engine: engine.clone(),
            supervisor: supervisor.clone(),
            shared: shared.clone(),
            board: board.clone(),
        };
        let spec = Follow {
            desired: Specs {
                client: SiblingsClient::new(channel.clone()),
                instance: instance_id,
                shared: shared.clone(),
                dialler: Dialler::new(environment),
            },
            peer: format!("agent-core at {}", config.common.core_address),
            applied,
            conditions: conditions.clone(),
            supervisor: supervisor.clone(),
            pace: Pace::default(),
        };
        supervisor.spawn_critical("spec stream", spec.run());
        let reports = Tell {
            observed: Reports::new(SiblingsClient::new(channel), reporter.clone()),
            peer: "agent-core".to_owned(),
            done,
            supervisor: supervisor.clone(),
            pace: Pace::default(),
        };
        supervisor.spawn_critical("report stream", reports.run());

        let routes = Routes::new(ProxyServer::new(ProxyService::new(
            engine.clone(),
            reporter,
            supervisor.clone(),
        )))
        .add_service(GatewayServer::new(GatewayService::new(engine.clone())))
        .add_service(ProcessServer::new(process(self.log_filter, supervisor.clone())));
        let access = Access::new()
            .allow(Role::Core, config.common.edge_token(), CORE_METHODS)
            .allow(Role::Operator, config.common.operator_token(), OPERATOR_METHODS);
        let served = local::serve(
            self.grpc,
            BUILD,
            access,
            proto::FILE_DESCRIPTOR_SET,
            routes,
            supervisor.clone(),
        );
        supervisor.spawn_critical("grpc", served);
        let router = admin::router(BUILD, conditions, metrics);
        supervisor.spawn_critical("admin", admin::serve_http(self.admin, router, supervisor.clone()));

        let http = Door {
            name: "http".into(),
            engine,
            gate: Gate::new(shared.clone(), config.common.edge_token()),
            shared,
            board: board.clone(),
            supervisor: supervisor.clone(),
            tls: None,
        };
        let https = Door {
            name: "https".into(),
            tls: Some(self.certificate.config),
            ..http.clone()
        };
        board.set("http", &self.addresses.door_http.to_string(), true, "listening");
        board.set("https", &self.addresses.door_https.to_string(), true, "listening");
        supervisor.spawn_critical("door http", http::serve(self.door_http, http));
        supervisor.spawn_critical("door https", http::serve(self.door_https, https));
        Ok(())
    }
}

fn start_policy(config: &Config, shared: &Shared, supervisor: &Supervisor) {
    match &config.policy_file {
        None => shared
            .conditions()
            .set(POLICY, Status::True, reload::describe(&shared.policy())),
        Some(file) => {
            // The first look comes before the doors open: no call is decided by rules the owner did not write.
            let mut last = None;
            reload::look(file, shared, &mut last);
            supervisor.spawn(
                "policy",
                reload::follow(file.clone(), last, shared.clone(), supervisor.clone()),
            );
        }
    }
}

fn process(log_filter: LogFilter, supervisor: Supervisor) -> ProcessService {
    ProcessService::new(
        report::build(BUILD),
        move |filter| log_filter.set(filter),
        move |reason| supervisor.drain(reason),
    )
}

/// Asks the apiserver for its version: often while it does not answer, seldom while it does.
async fn probe(engine: Engine, shared: Shared, supervisor: Supervisor) {
    let work = async {
        loop {
            let pause = match engine.probe().await {
                Ok(()) => PROBE_UP,
                Err(why) => {
                    warn!(why, "the apiserver cannot be reached");
                    shared.upstream_failed(&why);
                    PROBE_DOWN
                }
            };
            // One call that found no answer is asked about at once, not only at the next turn.
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = shared.upstream_lost() => tokio::time::sleep(PROBE_AGAIN).await,
            }
        }
    };
    tokio::select! { () = work => {}, () = supervisor.draining() => {} }
}

/// What is open when the owner changes the rules ends if the new ones do not allow it: `readOnly` stops a running
/// exec or upload too.
async fn recheck(engine: Engine, shared: Shared, supervisor: Supervisor) {
    let work = async {
        loop {
            shared.policy_changed().await;
            let ended = engine.recheck();
            if ended > 0 {
                info!(
                    ended,
                    "open calls were ended: the policy does not allow them any more"
                );
            }
        }
    };
    tokio::select! { () = work => {}, () = supervisor.draining() => {} }
}

/// A watch never ends by itself: once only such calls are left they are told to go, so that the process does not
/// sit out its deadline for nothing. Resolves when no call is left.
async fn end_calls(engine: Engine, supervisor: Supervisor) {
    supervisor.draining().await;
    engine.audit().hurry();
    while engine.streams().counts().finite > 0 && !supervisor.is_cut() {
        tokio::time::sleep(DRAIN_POLL).await;
    }
    engine.streams().cancel_endless(CancelReason::Draining);
    while engine.streams().counts().open > 0 && !supervisor.is_cut() {
        tokio::time::sleep(DRAIN_POLL).await;
    }
}
