//! See the library: parse, telemetry, bind, run, exit code.

use std::process::ExitCode;

use clap::Parser as _;
use k8s_proxy::{App, Args, BUILD, Config};
use runtime::{
    cli::{Command, print, print_token, print_version, refuse_config, run, usage},
    config::Env,
};

/// Thousands of watches come and go, and glibc keeps what they leave behind (measured); this allocator gives it back.
/// Its settings are in `.cargo/config.toml`: one arena for the one thread that matters, and unused pages go at once,
/// for with a delay they go only while something else is allocated.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return usage(&error),
    };
    let command = args.command.unwrap_or_default();
    if command == Command::Version {
        return print_version(BUILD);
    }
    let config = match Config::read(&args.flags, &Env::from_process()) {
        Ok(config) => config,
        Err(problems) => return refuse_config(&problems),
    };
    let logging = config.common.telemetry(BUILD);
    match command {
        Command::Token => print_token(&config.common.operator_token()),
        Command::CheckConfig => print(&config.describe()),
        Command::Run | Command::Version => run(
            &logging,
            config.common.drain_timeout,
            async |telemetry, supervisor| App::bind(config, telemetry).await?.run(supervisor),
        ),
    }
}
