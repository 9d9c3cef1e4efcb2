//! agent-core, the program. See the library for what it does.

use std::process::ExitCode;

use agent_core::{App, BUILD, cli::Cli, config::Config};
use runtime::{
    cli::{Command, print_token, print_version, refuse_config},
    config::Env,
    telemetry::TelemetryConfig,
};

fn main() -> ExitCode {
    let cli = match Cli::parse(std::env::args_os(), Env::from_process()) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    match cli.command {
        Command::Token => print_token(&cli.operator_token()),
        Command::Version => print_version(BUILD),
        Command::CheckConfig => cli.check_config(),
        Command::Run => match cli.config() {
            Ok(config) => run(config),
            Err(problems) => refuse_config(&problems),
        },
    }
}

fn run(config: Config) -> ExitCode {
    let logging = TelemetryConfig {
        service: BUILD.name,
        filter: agent_core::cli::log_filter(&config.log_level),
        format: config.log_format,
        otlp_endpoint: config.otlp_endpoint.clone(),
    };
    let drain_timeout = config.drain_timeout;
    runtime::cli::run(&logging, drain_timeout, async |telemetry, supervisor| {
        App::bind(config, telemetry).await?.run(supervisor);
        Ok::<_, agent_core::Error>(())
    })
}
