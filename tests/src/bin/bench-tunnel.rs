//! `make bench-tunnel`: the tunnel beside the Go client and rathole, measured in the same run. Printed beside goals, never judged.

use std::process::ExitCode;

use clap::Parser;
use harness::bench::tunnel::{self, Options};

#[derive(Parser)]
#[command(
    about = "tunnel-sidecar beside the Go chisel client, against the same Go server, and rathole as the ceiling without SSH"
)]
struct Arguments {
    /// Only these: idle, bulk, mixed, latency, connections, distance, connect, ceiling, instructions.
    parts: Vec<String>,
    /// Rounds of each interleaved measurement.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// An eighth of the bytes and of the connections: for a look, not for a record.
    #[arg(long)]
    quick: bool,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let options = Options {
        parts: arguments.parts,
        rounds: arguments.rounds.max(1),
        quick: arguments.quick,
    };
    match tunnel::run(options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-tunnel: {error:#}");
            ExitCode::FAILURE
        }
    }
}
