//! `make demo`: watch a cluster that nothing can reach being managed from outside.

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use harness::demo::{self, Options};

#[derive(Parser)]
#[command(about = "Starts control plane, tunnel server, cluster and agent, and shows them at work")]
struct Arguments {
    /// Stop by itself after so many seconds; exit 0 only if everything was really seen.
    #[arg(long)]
    seconds: Option<u64>,
    /// Install the chart with helm on the real cluster of `make cluster-up`.
    #[arg(long)]
    real: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let options = Options {
        stop_after: arguments.seconds.map(Duration::from_secs),
        real: arguments.real,
    };
    match demo::run(options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}
