//! What the command lines of all binaries share.

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
    net::SocketAddr,
    path::Path,
    process::ExitCode,
    time::Duration,
};

use clap::Subcommand;
use secrecy::ExposeSecret as _;

use crate::{
    build::BuildInfo,
    config::Problems,
    secret::TokenFile,
    supervise::{Supervisor, chain},
    telemetry::{self, Telemetry, TelemetryConfig},
    tls,
};

/// Exit code for bad configuration (`EX_USAGE` of sysexits.h).
pub const CONFIG_EXIT: u8 = 64;

/// What a binary is asked to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Do the work (the default).
    #[default]
    Run,
    /// Print the operator token of the process running in this container.
    Token,
    /// Read the configuration, print what it means, and exit.
    CheckConfig,
    /// Print the version and exit.
    Version,
}

/// What a command line that cannot be read comes to: 64; help that was asked for is 0.
pub fn usage(error: &clap::Error) -> ExitCode {
    error.print().ok();
    if error.use_stderr() {
        ExitCode::from(CONFIG_EXIT)
    } else {
        ExitCode::SUCCESS
    }
}

/// The life of a process on one thread: telemetry, signals, `start` (bind, then spawn what runs), and the drain.
///
/// Exit code 64 when telemetry cannot be set up as configured, 1 when `start` or a task fails, 0 otherwise.
pub fn run<E: std::error::Error + 'static>(
    logging: &TelemetryConfig,
    drain_timeout: Duration,
    start: impl AsyncFnOnce(&Telemetry, &Supervisor) -> Result<(), E>,
) -> ExitCode {
    tls::install_provider();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return refuse(&format!("cannot start the event loop: {error}")),
    };
    runtime.block_on(async {
        let telemetry = match telemetry::init(logging) {
            Ok(telemetry) => telemetry,
            Err(error) => {
                refuse(&chain(&error));
                return ExitCode::from(CONFIG_EXIT);
            }
        };
        let supervisor = Supervisor::new(drain_timeout);
        let code = match supervisor.watch_signals() {
            Err(error) => refuse(&format!("cannot listen for signals: {error}")),
            Ok(()) => match start(&telemetry, &supervisor).await {
                Ok(()) => supervisor.finish().await.exit_code(),
                Err(error) => refuse(&chain(&error)),
            },
        };
        telemetry.shutdown().await;
        code
    })
}

/// Prints the token in `file`, for `grpcurl -H "authorization: Bearer $(… token)"`.
pub fn print_token(file: &TokenFile) -> ExitCode {
    match file.read() {
        Ok(Some(token)) => print(token.expose_secret()),
        Ok(None) => refuse(&format!(
            "no token at {}: is the process running?",
            file.path().display()
        )),
        Err(error) => refuse(&format!("cannot read {}: {error}", file.path().display())),
    }
}

/// Prints name, version and commit.
pub fn print_version(build: BuildInfo) -> ExitCode {
    print(&format!(
        "{} {} ({})",
        build.name, build.version, build.git_commit
    ))
}

/// Prints a line or more to standard output.
pub fn print(text: &str) -> ExitCode {
    match writeln!(io::stdout().lock(), "{text}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Prints why the process cannot go on; exit code 1.
pub fn refuse(text: &str) -> ExitCode {
    writeln!(io::stderr().lock(), "error: {text}").ok();
    ExitCode::FAILURE
}

/// Prints every fault of the configuration, one a line; exit code 64.
pub fn refuse_config(problems: &Problems) -> ExitCode {
    let mut stderr = io::stderr().lock();
    for problem in problems.iter() {
        writeln!(stderr, "configuration: {problem}").ok();
    }
    ExitCode::from(CONFIG_EXIT)
}

/// Writes the addresses that were really bound as a JSON object, atomically: who finds the file finds all of it.
///
/// # Errors
/// When the file cannot be written.
pub fn write_addresses(file: &Path, addresses: &[(&str, SocketAddr)]) -> io::Result<()> {
    let object: BTreeMap<_, _> = addresses
        .iter()
        .map(|(name, address)| (name, address.to_string()))
        .collect();
    let draft = file.with_extension("new");
    std::fs::write(&draft, serde_json::to_vec(&object)?)?;
    std::fs::rename(&draft, file)
}
