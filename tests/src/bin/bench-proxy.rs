//! `make bench-proxy`: k8s-proxy door by door beside `kubectl proxy`, each figure beside its goal. Printed, never judged.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use harness::{
    bench::proxy::{self, Options, PARTS, Sizes},
    cluster::RealCluster,
};

#[derive(Parser)]
#[command(
    about = "k8s-proxy's processor time, memory, latency and isolation, beside kubectl proxy in the same run"
)]
struct Arguments {
    /// Only these parts.
    #[arg(value_parser = PARTS)]
    parts: Vec<String>,
    /// Interleaved rounds of each measurement; the median is told.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Small sizes: whether all of it works, not how well.
    #[arg(long)]
    quick: bool,
    /// Requests and lists on the real cluster of `make cluster-up` too.
    #[arg(long)]
    real: bool,
    /// The same on the cluster of this kubeconfig.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// Small GETs in a round.
    #[arg(long)]
    requests: Option<usize>,
    /// The larger number of idle watches.
    #[arg(long)]
    watches: Option<usize>,
    /// Events at full speed in a round.
    #[arg(long)]
    events: Option<usize>,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-proxy: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut sizes = if arguments.quick {
        Sizes::QUICK
    } else {
        Sizes::FULL
    };
    sizes.requests = arguments.requests.unwrap_or(sizes.requests);
    sizes.watches = arguments.watches.unwrap_or(sizes.watches);
    sizes.events = arguments.events.unwrap_or(sizes.events);
    let real = match arguments.kubeconfig {
        Some(path) => Some(path),
        None if arguments.real => Some(RealCluster::running().await?.kubeconfig()?),
        None => None,
    };
    proxy::run(Options {
        parts: arguments.parts,
        rounds: arguments.rounds.max(1),
        sizes,
        real,
    })
    .await
}
