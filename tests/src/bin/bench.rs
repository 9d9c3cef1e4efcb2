//! `make bench`: figures beside those of the peers, measured in the same run. They are printed, never judged.

use std::process::ExitCode;

use clap::Parser;
use harness::bench::{self, Options};

#[derive(Parser)]
#[command(about = "Memory, processor time, start, requests and watches, beside peers in the same run")]
struct Arguments {
    /// Only these: sizes, start, idle, requests, watches.
    parts: Vec<String>,
    /// Rounds of each interleaved measurement.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of idling before and while memory and processor time are taken.
    #[arg(long, default_value_t = 60)]
    idle_seconds: u64,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let options = Options {
        parts: arguments.parts,
        rounds: arguments.rounds.max(1),
        idle_seconds: arguments.idle_seconds,
    };
    match bench::run(options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
