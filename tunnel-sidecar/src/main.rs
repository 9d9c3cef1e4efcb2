//! See the library: parse, telemetry, bind, run, exit code.

use std::process::ExitCode;

use clap::Parser as _;
use runtime::{
    cli::{Command, print, print_token, print_version, refuse_config, run, usage},
    config::Env,
};
use tunnel_sidecar::{App, Args, BUILD, Config};

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
