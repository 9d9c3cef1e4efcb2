//! agent-core, the program. See the library for what it does.

use std::process::ExitCode;

use agent_core::{App, BUILD, cli::Cli, config::Config};
use runtime::{
    cli::{CONFIG_EXIT, Command, print_token, print_version, refuse, refuse_config},
    config::Env,
    supervise::{Supervisor, chain},
    telemetry::{self, TelemetryConfig},
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
            Ok(config) => match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime.block_on(run(config)),
                Err(error) => refuse(&format!("cannot start the event loop: {error}")),
            },
            Err(problems) => refuse_config(&problems),
        },
    }
}

async fn run(config: Config) -> ExitCode {
    let telemetry = match telemetry::init(&TelemetryConfig {
        service: BUILD.name,
        filter: config.log_level.clone(),
        format: config.log_format,
        otlp_endpoint: config.otlp_endpoint.clone(),
    }) {
        Ok(telemetry) => telemetry,
        // Only settings can be at fault here: the filter or the endpoint.
        Err(error) => {
            refuse(&chain(&error));
            return ExitCode::from(CONFIG_EXIT);
        }
    };
    let supervisor = Supervisor::new(config.drain_timeout);
    let code = match (supervisor.watch_signals(), App::bind(config, &telemetry).await) {
        (Ok(()), Ok(bound)) => {
            bound.run(&supervisor);
            supervisor.finish().await.exit_code()
        }
        (Err(error), _) => refuse(&format!("cannot listen for signals: {error}")),
        (_, Err(error)) => refuse(&chain(&error)),
    };
    telemetry.shutdown().await;
    code
}
