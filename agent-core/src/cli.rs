//! The command line: a flag for each key that has one, and the four commands that all binaries share.

use std::{collections::BTreeMap, ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{Arg, ArgMatches, Command as Clap, FromArgMatches as _, Subcommand as _};
use runtime::{
    cli::{CONFIG_EXIT, Command, print, refuse_config},
    config::{Env, Problems},
    secret::TokenFile,
};

use crate::config::{
    self, Config,
    keys::{KEYS, Meaning, Shape},
};

/// File of the operator token inside the private folder.
pub(crate) const OPERATOR_TOKEN: &str = "operator-token";

/// The filter for a log level. The Kubernetes client logs each call that finds no door as an error; what follows
/// from it is told by ourselves, once. An owner's own word on that client comes later in the list and wins.
pub fn log_filter(level: &str) -> String {
    format!("kube_client=off,{level}")
}

/// What was asked for.
#[derive(Debug)]
pub struct Cli {
    /// The command; `run` when none is given.
    pub command: Command,
    flags: BTreeMap<&'static str, String>,
    file: Option<PathBuf>,
    env: Env,
}

impl Cli {
    /// Reads the arguments, program name first.
    ///
    /// # Errors
    /// The exit code, after the fault or the help text was printed.
    pub fn parse(
        args: impl IntoIterator<Item = impl Into<OsString> + Clone>,
        env: Env,
    ) -> Result<Self, ExitCode> {
        let matches = clap_command().try_get_matches_from(args).map_err(|error| {
            error.print().ok();
            if error.use_stderr() {
                ExitCode::from(CONFIG_EXIT)
            } else {
                ExitCode::SUCCESS
            }
        })?;
        let command = match matches.subcommand_name() {
            Some(_) => Command::from_arg_matches(&matches).unwrap_or_default(),
            None => Command::default(),
        };
        // A flag may stand before or after the command.
        let levels = [Some(&matches), matches.subcommand().map(|(_, inner)| inner)];
        let mut flags = BTreeMap::new();
        let mut file = None;
        for level in levels.into_iter().flatten() {
            for key in KEYS {
                if let Some(text) = key.flag.and_then(|flag| given(level, flag)) {
                    flags.insert(key.path, text);
                }
            }
            file = given(level, "config").map(PathBuf::from).or(file);
        }
        Ok(Self {
            command,
            flags,
            file,
            env,
        })
    }

    /// The whole configuration.
    ///
    /// # Errors
    /// Every fault of it.
    pub fn config(&self) -> Result<Config, Problems> {
        config::load(&self.flags, self.file.as_deref(), &self.env)
    }

    /// The operator token's file, which `token` prints without asking for a complete configuration.
    pub fn operator_token(&self) -> TokenFile {
        let dir = self.flags.get("process.private_dir").map(String::as_str);
        let dir = dir
            .or_else(|| self.env.get("PIPEOPS_PRIVATE_DIR"))
            .unwrap_or("/run/pipeops/private");
        TokenFile::new(PathBuf::from(dir).join(OPERATOR_TOKEN))
    }

    /// Prints what the configuration means, or every fault of it.
    pub fn check_config(&self) -> ExitCode {
        match self.config() {
            Ok(config) => {
                let lines = config
                    .effective
                    .iter()
                    .map(|line| format!("{} = {} ({})", line.name, line.value, line.source));
                let lines: Vec<String> = lines.chain(config.notes.iter().cloned()).collect();
                print(&format!("{}\nconfiguration: ok", lines.join("\n")))
            }
            Err(problems) => refuse_config(&problems),
        }
    }
}

fn given(matches: &ArgMatches, flag: &str) -> Option<String> {
    // Globals that were not given at this level have no value here.
    matches.try_get_one::<String>(flag).ok().flatten().cloned()
}

fn clap_command() -> Clap {
    let mut command = Clap::new("agent-core")
        .about("Who the agent is: registration, heartbeat, state, local API, page")
        .arg(
            Arg::new("config")
                .long("config")
                .value_name("FILE")
                .global(true)
                .help("YAML configuration file"),
        );
    for key in KEYS {
        let Some(flag) = key.flag else { continue };
        let mut arg = Arg::new(flag).long(flag).value_name("VALUE").global(true);
        arg = match key.meaning {
            Meaning::Read => arg.help(format!("{} ({})", key.path, key.all_variables().join(", "))),
            Meaning::Ignored(_) => arg.hide(true),
        };
        if key.shape == Shape::Switch {
            arg = arg
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true");
        }
        command = command.arg(arg);
    }
    Command::augment_subcommands(command)
}
