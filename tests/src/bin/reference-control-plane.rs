//! The reference control plane, by hand: prints where it listens and what to type.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use harness::control_plane::{
    Chisel, ControlPlane, ControlPlaneConfig,
    conformance::{self, Target},
};
use runtime::telemetry::{LogFormat, TelemetryConfig};
use tokio::signal::unix::{SignalKind, signal};
use url::Url;

/// The server side of the agent's contracts, for trying and testing it without anybody's service.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Address of the API.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Address of the HTTPS front for kubectl.
    #[arg(long, default_value = "127.0.0.1:0")]
    front_listen: SocketAddr,
    /// Token of the agents.
    #[arg(long, env = "REFERENCE_CONTROL_PLANE_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// File with the token of the agents.
    #[arg(long, conflicts_with = "token")]
    token_file: Option<PathBuf>,
    /// Token of the people who use the front; made up when absent.
    #[arg(long)]
    front_token: Option<String>,
    /// Token for questions and faults from elsewhere than the loopback; made up when absent.
    #[arg(long)]
    admin_token: Option<String>,
    /// Serve the API over TLS, with the self-made authority's certificate.
    #[arg(long)]
    tls: bool,
    /// The chisel server; `PIPEOPS_PEERS_CHISEL` or the user's cache folder when absent.
    #[arg(long, conflicts_with = "no_chisel")]
    chisel: Option<PathBuf>,
    /// Start no chisel server: tunnels stay idle.
    #[arg(long)]
    no_chisel: bool,
    /// Serve chisel over TLS, with the same certificate.
    #[arg(long)]
    chisel_tls: bool,
    /// Folder for keys, certificates and chisel's log; a temporary one when absent.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Host in the URLs that are handed out, and in the certificate.
    #[arg(long, default_value = "127.0.0.1")]
    public_host: String,
    /// Dial every cluster's proxy through this forward, for example `k8s-proxy`.
    #[arg(long)]
    dial_forward: Option<String>,
    /// Send bytes through every forward and back this often; 0s for never.
    #[arg(long, default_value = "15s", value_parser = humantime::parse_duration)]
    prove_every: Duration,
    /// Send spans there (OTLP over gRPC).
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    otlp_endpoint: Option<String>,
    /// What is logged.
    #[arg(long, default_value = "info")]
    log_level: String,
    /// Write the real addresses there, as JSON.
    #[arg(long, env = "PIPEOPS_ADDRESSES_FILE")]
    addresses_file: Option<PathBuf>,
    #[command(subcommand)]
    check: Option<Check>,
}

/// What can be asked of a control plane that runs, this one or another.
#[derive(Debug, Subcommand)]
enum Check {
    /// Check the window contract of HTTP/2 over the WebSocket: stalled readers hold up nobody else.
    CheckWindows {
        /// ws:// or wss:// URL that a proxy dials.
        #[arg(long)]
        dial: Url,
        /// File with the proxy's token.
        #[arg(long)]
        dial_token_file: PathBuf,
        /// URL under which callers find the Kubernetes API of that proxy.
        #[arg(long)]
        front: Url,
        /// File with the callers' token.
        #[arg(long)]
        front_token_file: PathBuf,
        /// PEM file of an authority for both; the system's when absent.
        #[arg(long)]
        ca_file: Option<PathBuf>,
        /// Readers that stall.
        #[arg(long, default_value_t = 100)]
        stalled: usize,
    },
}

impl Check {
    async fn run(self) -> Result<()> {
        runtime::tls::install_provider();
        let Self::CheckWindows {
            dial,
            dial_token_file,
            front,
            front_token_file,
            ca_file,
            stalled,
        } = self;
        let read = |path: &Path| {
            std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
        };
        let target = Target {
            dial,
            dial_token: read(&dial_token_file)?.trim().into(),
            front,
            front_token: read(&front_token_file)?.trim().into(),
            ca: ca_file
                .map(|path| read(&path))
                .transpose()?
                .map(String::into_bytes),
            stalled,
        };
        let seen = conformance::windows(&target).await?;
        println!(
            "{stalled} stalled readers hold {} bytes; p99 of a small call {:?} before, {:?} beside them",
            seen.held, seen.before, seen.beside
        );
        Ok(())
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let run = || -> Result<()> {
        let executor = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        executor.block_on(run(args))
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("reference-control-plane: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(mut args: Args) -> Result<()> {
    if let Some(check) = args.check.take() {
        return check.run().await;
    }
    // Both are taken before anything listens, so that no signal is lost.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let telemetry = runtime::telemetry::init(&TelemetryConfig {
        service: "reference-control-plane",
        filter: args.log_level.clone(),
        format: LogFormat::Text,
        otlp_endpoint: args.otlp_endpoint.clone(),
    })?;
    let addresses_file = args.addresses_file.clone();
    let control_plane = ControlPlane::start(config(args)?).await?;
    let tokens = Tokens::write(&control_plane)?;
    print(&control_plane, &tokens);
    if let Some(path) = addresses_file {
        write_addresses(&control_plane, &tokens, &path)?;
    }
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    control_plane.stop().await;
    telemetry.shutdown().await;
    Ok(())
}

fn config(args: Args) -> Result<ControlPlaneConfig> {
    let token = match (args.token, args.token_file) {
        (Some(token), _) => token,
        (None, Some(file)) => {
            std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?
        }
        (None, None) => bail!("--token or --token-file is needed: agents authenticate with it"),
    };
    let token = token.trim();
    if token.is_empty() {
        bail!("the token is empty");
    }
    let mut config = ControlPlaneConfig::new(token);
    config.listen = args.listen;
    config.front_listen = Some(args.front_listen);
    config.front_token = args.front_token;
    config.admin_token = args.admin_token;
    config.tls = args.tls;
    config.chisel = match (args.no_chisel, args.chisel) {
        (true, _) => Chisel::Off,
        (false, Some(path)) => Chisel::Path(path),
        (false, None) => Chisel::Find,
    };
    config.chisel_tls = args.chisel_tls;
    config.dir = args.dir;
    config.public_host = args.public_host;
    config.dial_forward = args.dial_forward;
    config.prove_every = Some(args.prove_every).filter(|every| !every.is_zero());
    Ok(config)
}

/// Files with the tokens that were made up or given, readable by their owner only.
struct Tokens {
    front: PathBuf,
    admin: PathBuf,
}

impl Tokens {
    fn write(control_plane: &ControlPlane) -> Result<Self> {
        let (front, admin) = (
            control_plane.dir().join("front-token"),
            control_plane.dir().join("admin-token"),
        );
        for (path, token) in [
            (&front, control_plane.front_token()),
            (&admin, control_plane.admin_token()),
        ] {
            write_secret(path, token).with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(Self { front, admin })
    }
}

fn write_secret(path: &Path, text: &str) -> std::io::Result<()> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let _ = std::fs::remove_file(path);
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())
}

fn write_addresses(control_plane: &ControlPlane, tokens: &Tokens, path: &Path) -> Result<()> {
    let text = serde_json::json!({
        "http": control_plane.api_address().to_string(),
        "api_url": control_plane.api_url(),
        "front": control_plane.front_address().map(|address| address.to_string()).unwrap_or_default(),
        "chisel": control_plane.chisel_address().map(|address| address.to_string()).unwrap_or_default(),
        "ca_file": control_plane.ca_file(),
        "front_token_file": tokens.front,
        "admin_token_file": tokens.admin,
    });
    let unfinished = path.with_extension("unfinished");
    std::fs::write(&unfinished, text.to_string())?;
    std::fs::rename(&unfinished, path).with_context(|| format!("writing {}", path.display()))
}

fn print(control_plane: &ControlPlane, tokens: &Tokens) {
    let api = control_plane.api_url();
    println!("API             {api}");
    println!("front           {}", control_plane.front_url("<cluster id>"));
    if let Some(chisel) = control_plane.chisel_address() {
        println!(
            "chisel          {chisel} (log: {})",
            control_plane.dir().join("chisel.log").display()
        );
    }
    println!("authority       {}", control_plane.ca_file().display());
    println!("front token in  {}", tokens.front.display());
    println!("admin token in  {}", tokens.admin.display());
    let curl = if api.starts_with("https") {
        format!("curl -s --cacert {} ", control_plane.ca_file().display())
    } else {
        "curl -s ".to_owned()
    };
    println!("\nask it:         {curl}{api}/clusters");
    println!("                {curl}{api}/clusters/<cluster id>/heartbeats?limit=3");
    println!("use kubectl:    {curl}{api}/clusters/<cluster id>/kubeconfig > kubeconfig");
    println!("                kubectl --kubeconfig kubeconfig get pods -A -w");
    println!(
        r#"make a fault:   {curl}-d '{{"refuse":{{"route":"heartbeat","status":503,"times":3}}}}' {api}/faults"#
    );
}
