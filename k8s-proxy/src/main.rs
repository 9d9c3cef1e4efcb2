//! See the library: parse, provider, telemetry, bind, run, exit code.

use std::process::ExitCode;

use clap::Parser as _;
use k8s_proxy::{App, Args, BUILD, Config};
use runtime::{
    cli::{CONFIG_EXIT, Command, print, print_token, print_version, refuse, refuse_config},
    config::Env,
    supervise::{Supervisor, chain},
    telemetry::{self, TelemetryConfig},
    tls,
};

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            error.print().ok();
            return if error.use_stderr() {
                ExitCode::from(CONFIG_EXIT)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    let command = args.command.unwrap_or_default();
    if command == Command::Version {
        return print_version(BUILD);
    }
    let config = match Config::read(&args.flags, &Env::from_process()) {
        Ok(config) => config,
        Err(problems) => return refuse_config(&problems),
    };
    match command {
        Command::Token => print_token(&config.operator_token()),
        Command::CheckConfig => print(&config.describe()),
        Command::Run | Command::Version => {
            match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime.block_on(run(config)),
                Err(error) => refuse(&format!("cannot start the event loop: {error}")),
            }
        }
    }
}

async fn run(config: Config) -> ExitCode {
    tls::install_provider();
    let (filter, otlp_endpoint) = (config.log_level.clone(), config.otlp_endpoint.clone());
    let logging = TelemetryConfig {
        service: BUILD.name,
        filter,
        format: config.log_format,
        otlp_endpoint,
    };
    let telemetry = match telemetry::init(&logging) {
        Ok(telemetry) => telemetry,
        Err(error) => return refuse(&chain(&error)),
    };
    let supervisor = Supervisor::new(config.drain_timeout);
    if let Err(error) = supervisor.watch_signals() {
        return refuse(&format!("cannot listen to signals: {error}"));
    }
    let started = match App::bind(config, &telemetry).await {
        Ok(bound) => bound.run(&supervisor),
        Err(error) => Err(error),
    };
    let code = match started {
        Ok(()) => supervisor.finish().await.exit_code(),
        Err(error) => refuse(&chain(&error)),
    };
    telemetry.shutdown().await;
    code
}
