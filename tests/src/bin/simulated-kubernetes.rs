//! A simulated Kubernetes API to try things against: prints its address and what to type, ends with Ctrl-C.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use clap::Parser;
use harness::kubernetes::{Simulation, SimulationConfig};
use tokio::signal::unix::{SignalKind, signal};

/// A simulated Kubernetes API with a living workload and faults on demand.
#[derive(Debug, Parser)]
#[command(name = "simulated-kubernetes", version)]
struct Args {
    /// Address to listen on; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Decides names, uids and the course of the workload.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write a kubeconfig with the administrator's token here.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// Write the certificate of the authority here.
    #[arg(long)]
    ca_file: Option<PathBuf>,
    /// Write the token of the agent's ServiceAccount here.
    #[arg(long)]
    agent_token_file: Option<PathBuf>,
    /// Time between two steps of the workload; 0s: only `POST /_sim/step` moves it.
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    tick: Duration,
    /// Nodes of the cluster.
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// Another name for the certificate; may be repeated.
    #[arg(long)]
    host_name: Vec<String>,
    /// Serve plain HTTP.
    #[arg(long)]
    plain_http: bool,
    /// Serve requests without a token too.
    #[arg(long)]
    anonymous: bool,
    /// Where to write the real address as JSON, for programs that start this one.
    #[arg(long, env = "PIPEOPS_ADDRESSES_FILE")]
    addresses_file: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("simulated-kubernetes: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn run(args: Args) -> Result<()> {
    // Listening to signals comes first: who sends one while we start is heard too.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let simulation = Simulation::start(SimulationConfig {
        seed: args.seed,
        listen: args.listen,
        tls: !args.plain_http,
        host_names: args.host_name.clone(),
        anonymous: args.anonymous,
        tick: Some(args.tick).filter(|tick| !tick.is_zero()),
        nodes: args.nodes,
        ..SimulationConfig::default()
    })
    .await?;
    write_files(&args, &simulation)?;
    print_help(&args, &simulation);
    tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
    Ok(())
}

fn write_files(args: &Args, simulation: &Simulation) -> Result<()> {
    let write = |path: &PathBuf, text: &str| {
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
    };
    if let Some(path) = &args.kubeconfig {
        simulation
            .kubeconfig(path)
            .with_context(|| format!("writing {}", path.display()))?;
    }
    if let Some(path) = &args.ca_file {
        write(path, simulation.ca_pem())?;
    }
    if let Some(path) = &args.agent_token_file {
        write(path, simulation.agent_token())?;
    }
    if let Some(path) = &args.addresses_file {
        // Renamed into place, so that nobody reads half of it.
        let half = path.with_extension("half");
        write(
            &half,
            &serde_json::json!({"api": simulation.address().to_string()}).to_string(),
        )?;
        std::fs::rename(&half, path)?;
    }
    Ok(())
}

fn print_help(args: &Args, simulation: &Simulation) {
    let url = simulation.url();
    println!("simulated Kubernetes at {url} (seed {})", args.seed);
    println!("  token of admin: {}", simulation.admin_token());
    if let Some(path) = &args.kubeconfig {
        println!("  kubectl --kubeconfig {} get pods -A -w", path.display());
    }
    println!(
        "  curl -k -H 'Authorization: Bearer {}' {url}/api/v1/namespaces",
        simulation.admin_token()
    );
    println!("  curl -k {url}/_sim/state");
    println!("  curl -k -X POST {url}/_sim/faults -d '{{\"kind\":\"cut\",\"verb\":\"watch\",\"times\":1}}'");
}
