//! The settings that the processes of one pod have in common, and the reader for those that they have not.
//!
//! Flags win over variables, variables over defaults; every fault is told at once. A process brings its own flags,
//! the rows of its own table, and the names that belong to the other processes of its pod.

use std::{fmt::Display, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use url::Url;

use crate::{
    build::BuildInfo,
    config::{Env, Problems, is_service_link, nearest},
    dial::url_is_loopback,
    secret::TokenFile,
    telemetry::{LogFormat, TelemetryConfig},
};

/// Name of the token of people and tools inside the private folder.
const OPERATOR_TOKEN: &str = "operator-token";
/// Name of the shared token inside the edge folder.
const EDGE_TOKEN: &str = "token";
/// The shortest time in which open work can be told to end.
const LEAST_DURATION: Duration = Duration::from_secs(1);

/// One setting: its flag (or its name, if it has none), its variable, and its default if one is needed.
pub type Row = (&'static str, &'static str, Option<&'static str>);

/// Defaults that differ from process to process.
#[derive(Clone, Copy, Debug)]
pub struct Defaults {
    /// Probes and metrics.
    pub http_listen: &'static str,
    /// Local gRPC.
    pub grpc_listen: &'static str,
    /// Folder of the token shared with agent-core.
    pub edge_dir: &'static str,
}

impl Defaults {
    /// The rows of the settings in common.
    pub const fn rows(&self) -> [Row; 10] {
        [
            ("--log-level", "PIPEOPS_LOG_LEVEL", Some("info")),
            ("--log-format", "PIPEOPS_LOG_FORMAT", Some("text")),
            ("--otlp-endpoint", "OTEL_EXPORTER_OTLP_ENDPOINT", None),
            ("--http-listen", "PIPEOPS_HTTP_LISTEN", Some(self.http_listen)),
            ("--grpc-listen", "PIPEOPS_GRPC_LISTEN", Some(self.grpc_listen)),
            (
                "--private-dir",
                "PIPEOPS_PRIVATE_DIR",
                Some("/run/pipeops/private"),
            ),
            ("--edge-dir", "PIPEOPS_EDGE_DIR", Some(self.edge_dir)),
            (
                "--core-address",
                "PIPEOPS_CORE_ADDRESS",
                Some("http://127.0.0.1:7070"),
            ),
            ("--drain-timeout", "PIPEOPS_DRAIN_TIMEOUT", Some("25s")),
            ("--addresses-file", "PIPEOPS_ADDRESSES_FILE", None),
        ]
    }
}

/// The flags in common, as they were written.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct CommonFlags {
    /// What is logged, for example info or info,h2=debug [env: PIPEOPS_LOG_LEVEL, default: info].
    #[arg(long, global = true)]
    log_level: Option<String>,
    /// text or json [env: PIPEOPS_LOG_FORMAT, default: text].
    #[arg(long, global = true)]
    log_format: Option<String>,
    /// Where traces go (OTLP over gRPC) [env: OTEL_EXPORTER_OTLP_ENDPOINT, default: nowhere].
    #[arg(long, global = true)]
    otlp_endpoint: Option<String>,
    /// Probes and metrics, address:port [env: PIPEOPS_HTTP_LISTEN].
    #[arg(long, global = true)]
    http_listen: Option<String>,
    /// Local gRPC, address:port on the loopback [env: PIPEOPS_GRPC_LISTEN].
    #[arg(long, global = true)]
    grpc_listen: Option<String>,
    /// Folder of this container alone [env: PIPEOPS_PRIVATE_DIR, default: /run/pipeops/private].
    #[arg(long, global = true)]
    private_dir: Option<String>,
    /// Folder with the token shared with agent-core [env: PIPEOPS_EDGE_DIR].
    #[arg(long, global = true)]
    edge_dir: Option<String>,
    /// agent-core [env: PIPEOPS_CORE_ADDRESS, default: http://127.0.0.1:7070].
    #[arg(long, global = true)]
    core_address: Option<String>,
    /// How long what is open may finish [env: PIPEOPS_DRAIN_TIMEOUT, default: 25s].
    #[arg(long, global = true)]
    drain_timeout: Option<String>,
    /// File that receives the bound addresses as JSON [env: PIPEOPS_ADDRESSES_FILE, default: none].
    #[arg(long, global = true)]
    addresses_file: Option<String>,
}

/// The settings in common, read.
#[derive(Clone, Debug)]
pub struct Common {
    /// What is logged.
    pub log_level: String,
    /// How it looks.
    pub log_format: LogFormat,
    /// Where traces go.
    pub otlp_endpoint: Option<String>,
    /// Probes and metrics.
    pub http_listen: SocketAddr,
    /// Local gRPC.
    pub grpc_listen: SocketAddr,
    /// Folder of this container alone.
    pub private_dir: PathBuf,
    /// Folder with the token shared with agent-core.
    pub edge_dir: PathBuf,
    /// agent-core.
    pub core_address: Url,
    /// How long what is open may finish.
    pub drain_timeout: Duration,
    /// File that receives the bound addresses.
    pub addresses_file: Option<PathBuf>,
}

impl Common {
    /// Reads the settings in common; `None` has left a problem in `reader`.
    pub fn read(reader: &mut Reader<'_>, flags: &CommonFlags) -> Option<Self> {
        let log_level = reader.read("--log-level", flags.log_level.as_deref(), String::from_str);
        let log_format = reader.read("--log-format", flags.log_format.as_deref(), LogFormat::from_str);
        let otlp_endpoint = reader.read(
            "--otlp-endpoint",
            flags.otlp_endpoint.as_deref(),
            String::from_str,
        );
        let http_listen = reader.read("--http-listen", flags.http_listen.as_deref(), listener);
        let grpc_listen = reader.read("--grpc-listen", flags.grpc_listen.as_deref(), local_listener);
        let private_dir = reader.read("--private-dir", flags.private_dir.as_deref(), PathBuf::from_str);
        let edge_dir = reader.read("--edge-dir", flags.edge_dir.as_deref(), PathBuf::from_str);
        let core_address = reader.read("--core-address", flags.core_address.as_deref(), core);
        let drain_timeout = reader.read("--drain-timeout", flags.drain_timeout.as_deref(), duration);
        let addresses_file = reader.read(
            "--addresses-file",
            flags.addresses_file.as_deref(),
            PathBuf::from_str,
        );
        Some(Self {
            log_level: log_level?,
            log_format: log_format?,
            otlp_endpoint,
            http_listen: http_listen?,
            grpc_listen: grpc_listen?,
            private_dir: private_dir?,
            edge_dir: edge_dir?,
            core_address: core_address?,
            drain_timeout: drain_timeout?,
            addresses_file,
        })
    }

    /// The token of people and tools, made by this container for itself.
    pub fn operator_token(&self) -> TokenFile {
        TokenFile::new(self.private_dir.join(OPERATOR_TOKEN))
    }

    /// The token shared with agent-core.
    pub fn edge_token(&self) -> TokenFile {
        TokenFile::new(self.edge_dir.join(EDGE_TOKEN))
    }

    /// What logs and traces need.
    pub fn telemetry(&self, build: BuildInfo) -> TelemetryConfig {
        TelemetryConfig {
            service: build.name,
            filter: self.log_level.clone(),
            format: self.log_format,
            otlp_endpoint: self.otlp_endpoint.clone(),
        }
    }
}

/// Reads settings one after the other and keeps what is wrong with them.
#[derive(Debug)]
pub struct Reader<'a> {
    /// The variables.
    pub env: &'a Env,
    /// What is wrong so far.
    pub problems: Problems,
    rows: Vec<Row>,
}

impl<'a> Reader<'a> {
    /// `own` are the rows of this process beside those in common.
    pub fn new(env: &'a Env, defaults: &Defaults, own: &[Row]) -> Self {
        Self {
            env,
            problems: Problems::new(),
            rows: [defaults.rows().as_slice(), own].concat(),
        }
    }

    /// The written value of a setting and where it came from. A name without a row has no value.
    pub fn written(&self, name: &str, flag: Option<&str>) -> Option<(String, String)> {
        let (_, variable, default) = self.rows.iter().find(|(known, _, _)| *known == name)?;
        if let Some(value) = flag {
            return Some((value.to_owned(), format!("from flag {name}")));
        }
        if let Some(value) = self.env.get(variable) {
            return Some((value.to_owned(), format!("from env {variable}")));
        }
        default.map(|value| (value.to_owned(), "default".to_owned()))
    }

    /// One setting; `None` when it is absent or has left a problem.
    pub fn read<T, E: Display>(
        &mut self,
        name: &str,
        flag: Option<&str>,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let (value, source) = self.written(name, flag)?;
        parse(&value)
            .map_err(|reason| self.problems.push(name, source, Some(&value), reason))
            .ok()
    }

    /// A variable of ours that nobody knows is a slip of somebody's keyboard. `only_variables` are settings of this
    /// process without a row; `others` knows the names of the other processes, for one environment may serve all.
    pub fn unknown_variables(&mut self, only_variables: &[&str], others: impl Fn(&str) -> bool) {
        for (name, value) in self.env.iter().filter(|(name, _)| name.starts_with("PIPEOPS_")) {
            let known = || {
                let rows = self.rows.iter().map(|(_, variable, _)| *variable);
                rows.chain(only_variables.iter().copied())
            };
            if known().any(|own| own == name) || others(name) || is_service_link(name, value) {
                continue;
            }
            let reason = match nearest(name, known()) {
                Some(near) => format!("is not a setting; did you mean {near}?"),
                None => "is not a setting of any container".to_owned(),
            };
            // The value stays out: what was meant may be a secret.
            self.problems.push(name, format!("from env {name}"), None, reason);
        }
    }
}

/// `address:port`.
///
/// # Errors
/// What is wrong with it.
pub fn listener(value: &str) -> Result<SocketAddr, &'static str> {
    value
        .parse()
        .map_err(|_| "is not address:port, for example 127.0.0.1:7071")
}

/// `address:port` of the loopback.
///
/// # Errors
/// What is wrong with it.
pub fn local_listener(value: &str) -> Result<SocketAddr, &'static str> {
    let address = listener(value)?;
    if address.ip().is_loopback() {
        Ok(address)
    } else {
        Err("must be a loopback address: tokens cross it in clear")
    }
}

/// A duration of a second or more.
///
/// # Errors
/// What is wrong with it.
pub fn duration(value: &str) -> Result<Duration, &'static str> {
    let duration = humantime::parse_duration(value).map_err(|_| "is not a duration, for example 25s")?;
    if duration >= LEAST_DURATION {
        Ok(duration)
    } else {
        Err("is below 1s")
    }
}

fn core(value: &str) -> Result<Url, &'static str> {
    let reason = "is not http://host:port of agent-core in this pod";
    let url = Url::parse(value).map_err(|_| reason)?;
    if url.scheme() == "http" && url_is_loopback(&url) {
        Ok(url)
    } else {
        Err(reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULTS: Defaults = Defaults {
        http_listen: "0.0.0.0:1",
        grpc_listen: "127.0.0.1:2",
        edge_dir: "/edge",
    };

    fn read(pairs: &[(&str, &str)], flags: &CommonFlags) -> Result<Common, Problems> {
        let env = Env::from_pairs(pairs.iter().copied());
        let mut reader = Reader::new(&env, &DEFAULTS, &[("--own", "PIPEOPS_OWN", None)]);
        reader.unknown_variables(&["PIPEOPS_ALONE"], |name| name == "PIPEOPS_SIBLING");
        let common = Common::read(&mut reader, flags);
        match (common, reader.problems.is_empty()) {
            (Some(common), true) => Ok(common),
            _ => Err(reader.problems),
        }
    }

    #[test]
    fn a_flag_wins_over_a_variable_and_a_variable_over_the_default() {
        let flags = CommonFlags {
            grpc_listen: Some("127.0.0.1:9".to_owned()),
            ..CommonFlags::default()
        };
        let env = [
            ("PIPEOPS_GRPC_LISTEN", "127.0.0.1:8"),
            ("PIPEOPS_DRAIN_TIMEOUT", "3s"),
            ("PIPEOPS_ALONE", "x"),
            ("PIPEOPS_OWN", "x"),
            ("PIPEOPS_SIBLING", "x"),
            ("PIPEOPS_PORT_80_TCP", "tcp://10.0.0.1:80"),
        ];
        let common = read(&env, &flags).unwrap();
        assert_eq!(common.grpc_listen.port(), 9);
        assert_eq!(common.drain_timeout, Duration::from_secs(3));
        assert_eq!(common.http_listen.port(), 1);
        assert_eq!(common.edge_token().path(), std::path::Path::new("/edge/token"));
    }

    #[test]
    fn every_fault_is_a_line_and_no_unknown_value_is_shown() {
        let env = [
            ("PIPEOPS_GRPC_LISTEN", "0.0.0.0:7"),
            ("PIPEOPS_DRAIN_TIMEOUT", "10ms"),
            ("PIPEOPS_CORE_ADDRESS", "https://127.0.0.1:7"),
            ("PIPEOPS_ALONG", "canary"),
        ];
        let text = read(&env, &CommonFlags::default()).unwrap_err().to_string();
        assert_eq!(text.lines().count(), 4, "{text}");
        for words in [
            "did you mean PIPEOPS_ALONE?",
            "loopback",
            "below 1s",
            "is not http://",
        ] {
            assert!(text.contains(words), "{words} is missing in\n{text}");
        }
        assert!(!text.contains("canary"), "{text}");
    }
}
