//! The settings of this process: flags over variables over defaults, every fault told at once.
//!
//! Where the apiserver is comes from a kubeconfig, else from `--kube-api`, else from what the kubelet gives every
//! container. Who may knock and where to dial comes as spec over gRPC.

mod siblings;

use std::{fmt::Display, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use runtime::{
    cli::Command,
    config::{Env, Problems, nearest},
    secret::TokenFile,
    telemetry::LogFormat,
};
use url::Url;

use crate::{
    policy::Scope,
    upstream::{Parts, Settings, TokenSource, kubeconfig},
};

/// The command line.
#[derive(Clone, Debug, Default, clap::Parser)]
#[command(
    name = "k8s-proxy",
    about = "The Kubernetes API over WebSocket and HTTP, watches included",
    disable_version_flag = true
)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Settings.
    #[command(flatten)]
    pub flags: Flags,
}

/// Settings as they were written.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Flags {
    /// What is logged, for example info,k8s_proxy=debug [env: PIPEOPS_LOG_LEVEL, default: info].
    #[arg(long, global = true)]
    log_level: Option<String>,
    /// text or json [env: PIPEOPS_LOG_FORMAT, default: text].
    #[arg(long, global = true)]
    log_format: Option<String>,
    /// Where traces go (OTLP over gRPC) [env: OTEL_EXPORTER_OTLP_ENDPOINT, default: nowhere].
    #[arg(long, global = true)]
    otlp_endpoint: Option<String>,
    /// Probes and metrics [env: PIPEOPS_HTTP_LISTEN, default: 0.0.0.0:8082].
    #[arg(long, global = true)]
    http_listen: Option<String>,
    /// Local gRPC, on the loopback [env: PIPEOPS_GRPC_LISTEN, default: 127.0.0.1:7072].
    #[arg(long, global = true)]
    grpc_listen: Option<String>,
    /// Plain HTTP door, on the loopback [env: PIPEOPS_DOOR_HTTP, default: 127.0.0.1:8001].
    #[arg(long, global = true)]
    door_http: Option<String>,
    /// HTTPS door [env: PIPEOPS_DOOR_HTTPS, default: 127.0.0.1:8443].
    #[arg(long, global = true)]
    door_https: Option<String>,
    /// Folder of this container alone [env: PIPEOPS_PRIVATE_DIR, default: /run/pipeops/private].
    #[arg(long, global = true)]
    private_dir: Option<String>,
    /// Folder with the token shared with agent-core [env: PIPEOPS_EDGE_DIR, default: /run/pipeops/edge-proxy].
    #[arg(long, global = true)]
    edge_dir: Option<String>,
    /// agent-core [env: PIPEOPS_CORE_ADDRESS, default: http://127.0.0.1:7070].
    #[arg(long, global = true)]
    core_address: Option<String>,
    /// How long open calls may finish [env: PIPEOPS_DRAIN_TIMEOUT, default: 25s].
    #[arg(long, global = true)]
    drain_timeout: Option<String>,
    /// File that receives the bound addresses as JSON [env: PIPEOPS_ADDRESSES_FILE, default: none].
    #[arg(long, global = true)]
    addresses_file: Option<String>,
    /// A kubeconfig, outside of a cluster [env: PIPEOPS_KUBECONFIG, default: none].
    #[arg(long, global = true)]
    kubeconfig: Option<String>,
    /// The apiserver's URL, with PIPEOPS_KUBE_TOKEN_FILE and PIPEOPS_KUBE_CA_FILE [env: PIPEOPS_KUBE_API].
    #[arg(long, global = true)]
    kube_api: Option<String>,
    /// Rules of the cluster's owner; see k8s-proxy/src/policy/default.yaml [env: PIPEOPS_POLICY_FILE, default: none].
    #[arg(long, global = true)]
    policy_file: Option<String>,
    /// stdout or off [env: PIPEOPS_AUDIT, default: stdout].
    #[arg(long, global = true)]
    audit: Option<String>,
    /// How long the head of an ordinary answer may take [env: PIPEOPS_RESPONSE_TIMEOUT, default: 65s].
    #[arg(long, global = true)]
    response_timeout: Option<String>,
    /// Open calls at a time [env: PIPEOPS_MAX_STREAMS, default: 20000].
    #[arg(long, global = true)]
    max_streams: Option<String>,
    /// Bytes that may wait for their readers, in all [env: PIPEOPS_MAX_WAITING_BYTES, default: 64Mi].
    #[arg(long, global = true)]
    max_waiting_bytes: Option<String>,
}

/// The settings, read.
#[derive(Clone, Debug)]
pub struct Config {
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
    /// Plain HTTP door.
    pub door_http: SocketAddr,
    /// HTTPS door.
    pub door_https: SocketAddr,
    /// Folder of this container alone.
    pub private_dir: PathBuf,
    /// Folder with the token shared with agent-core.
    pub edge_dir: PathBuf,
    /// agent-core.
    pub core_address: Url,
    /// How long open calls may finish.
    pub drain_timeout: Duration,
    /// File that receives the bound addresses.
    pub addresses_file: Option<PathBuf>,
    /// The apiserver.
    pub upstream: Settings,
    /// Rules of the cluster's owner.
    pub policy_file: Option<PathBuf>,
    /// Whether audit lines are written.
    pub audit: bool,
    /// How long the head of an ordinary answer may take.
    pub response_timeout: Duration,
    /// Open calls at a time.
    pub max_streams: usize,
    /// Bytes that may wait for their readers, in all.
    pub max_waiting_bytes: usize,
    /// The pod's own objects as far as they are known without agent-core.
    pub scope: Scope,
}

/// Variables without a flag.
const ONLY_VARIABLES: [&str; 9] = [
    "PIPEOPS_KUBE_TOKEN_FILE",
    "PIPEOPS_KUBE_CA_FILE",
    "PIPEOPS_KUBE_INSECURE",
    "PIPEOPS_SERVICE_ACCOUNT_DIR",
    "PIPEOPS_STATE_SECRET_NAME",
    "PIPEOPS_STATE_NAMESPACE",
    "PIPEOPS_LEASE_NAME",
    "PIPEOPS_POD_NAMESPACE",
    "PIPEOPS_POD_NAME",
];

/// Each flag with its variable and its default.
const SETTINGS: [(&str, &str, Option<&str>); 19] = [
    ("--log-level", "PIPEOPS_LOG_LEVEL", Some("info")),
    ("--log-format", "PIPEOPS_LOG_FORMAT", Some("text")),
    ("--otlp-endpoint", "OTEL_EXPORTER_OTLP_ENDPOINT", None),
    ("--http-listen", "PIPEOPS_HTTP_LISTEN", Some("0.0.0.0:8082")),
    ("--grpc-listen", "PIPEOPS_GRPC_LISTEN", Some("127.0.0.1:7072")),
    ("--door-http", "PIPEOPS_DOOR_HTTP", Some("127.0.0.1:8001")),
    ("--door-https", "PIPEOPS_DOOR_HTTPS", Some("127.0.0.1:8443")),
    (
        "--private-dir",
        "PIPEOPS_PRIVATE_DIR",
        Some("/run/pipeops/private"),
    ),
    ("--edge-dir", "PIPEOPS_EDGE_DIR", Some("/run/pipeops/edge-proxy")),
    (
        "--core-address",
        "PIPEOPS_CORE_ADDRESS",
        Some("http://127.0.0.1:7070"),
    ),
    ("--drain-timeout", "PIPEOPS_DRAIN_TIMEOUT", Some("25s")),
    ("--addresses-file", "PIPEOPS_ADDRESSES_FILE", None),
    ("--kubeconfig", "PIPEOPS_KUBECONFIG", None),
    ("--kube-api", "PIPEOPS_KUBE_API", None),
    ("--policy-file", "PIPEOPS_POLICY_FILE", None),
    ("--audit", "PIPEOPS_AUDIT", Some("stdout")),
    ("--response-timeout", "PIPEOPS_RESPONSE_TIMEOUT", Some("65s")),
    ("--max-streams", "PIPEOPS_MAX_STREAMS", Some("20000")),
    // A stalled reader counts with up to 130 KiB, so this bears four hundred of them before any is ended.
    ("--max-waiting-bytes", "PIPEOPS_MAX_WAITING_BYTES", Some("64Mi")),
];

/// What the kubelet mounts into a container that may use the Kubernetes API.
const SERVICE_ACCOUNT_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

impl Config {
    /// Reads flags and variables.
    ///
    /// # Errors
    /// Everything that is wrong, one line each.
    pub fn read(flags: &Flags, env: &Env) -> Result<Self, Problems> {
        let mut reader = Reader {
            env,
            problems: Problems::new(),
        };
        reader.unknown_variables();
        let log_level = reader.read("--log-level", flags.log_level.as_deref(), String::from_str);
        let log_format = reader.read("--log-format", flags.log_format.as_deref(), LogFormat::from_str);
        let otlp_endpoint = reader.read(
            "--otlp-endpoint",
            flags.otlp_endpoint.as_deref(),
            String::from_str,
        );
        let http_listen = reader.read("--http-listen", flags.http_listen.as_deref(), listener);
        let grpc_listen = reader.read("--grpc-listen", flags.grpc_listen.as_deref(), local_listener);
        let door_http = reader.read("--door-http", flags.door_http.as_deref(), local_listener);
        let door_https = reader.read("--door-https", flags.door_https.as_deref(), listener);
        let private_dir = reader.read("--private-dir", flags.private_dir.as_deref(), PathBuf::from_str);
        let edge_dir = reader.read("--edge-dir", flags.edge_dir.as_deref(), PathBuf::from_str);
        let core_address = reader.read("--core-address", flags.core_address.as_deref(), core);
        let drain_timeout = reader.read("--drain-timeout", flags.drain_timeout.as_deref(), duration);
        let addresses_file = reader.read(
            "--addresses-file",
            flags.addresses_file.as_deref(),
            PathBuf::from_str,
        );
        let policy_file = reader.read("--policy-file", flags.policy_file.as_deref(), PathBuf::from_str);
        let audit = reader.read("--audit", flags.audit.as_deref(), audit);
        let response_timeout = reader.read("--response-timeout", flags.response_timeout.as_deref(), duration);
        let max_streams = reader.read("--max-streams", flags.max_streams.as_deref(), positive);
        let max_waiting_bytes = reader.read(
            "--max-waiting-bytes",
            flags.max_waiting_bytes.as_deref(),
            quantity,
        );
        let upstream = reader.upstream(flags);
        let scope = reader.scope();
        let problems = reader.problems;
        // Every `None` below has left a problem, so nobody runs with half a configuration.
        let (
            (Some(log_level), Some(log_format), Some(http_listen), Some(grpc_listen)),
            (Some(door_http), Some(door_https), Some(private_dir), Some(edge_dir)),
            (Some(core_address), Some(drain_timeout), Some(audit), Some(response_timeout)),
            (Some(max_streams), Some(max_waiting_bytes), Some(upstream)),
        ) = (
            (log_level, log_format, http_listen, grpc_listen),
            (door_http, door_https, private_dir, edge_dir),
            (core_address, drain_timeout, audit, response_timeout),
            (max_streams, max_waiting_bytes, upstream),
        )
        else {
            return Err(problems);
        };
        problems.into_result(Self {
            log_level,
            log_format,
            otlp_endpoint,
            http_listen,
            grpc_listen,
            door_http,
            door_https,
            private_dir,
            edge_dir,
            core_address,
            drain_timeout,
            addresses_file,
            upstream,
            policy_file,
            audit,
            response_timeout,
            max_streams,
            max_waiting_bytes,
            scope,
        })
    }

    /// One line for the log and for `check-config`; there is no secret among the settings.
    pub fn describe(&self) -> String {
        let policy = self
            .policy_file
            .as_ref()
            .map_or_else(|| "built-in rules".to_owned(), |file| file.display().to_string());
        format!(
            "apiserver {}, doors http {} and https {}, admin {}, grpc {}, agent-core {}, edge token in {}, private folder {}, \
             policy {policy}, audit {}, answers within {:?}, at most {} calls and {} bytes waiting, drain {:?}",
            self.upstream.address(),
            self.door_http,
            self.door_https,
            self.http_listen,
            self.grpc_listen,
            self.core_address,
            self.edge_dir.display(),
            self.private_dir.display(),
            if self.audit { "stdout" } else { "off" },
            self.response_timeout,
            self.max_streams,
            self.max_waiting_bytes,
            self.drain_timeout,
        )
    }

    /// The token of the operator of this container.
    pub fn operator_token(&self) -> TokenFile {
        TokenFile::new(self.private_dir.join("operator-token"))
    }

    /// The token shared with agent-core.
    pub fn edge_token(&self) -> TokenFile {
        TokenFile::new(self.edge_dir.join("token"))
    }
}

/// Reads settings one after the other and keeps what is wrong with them.
struct Reader<'a> {
    env: &'a Env,
    problems: Problems,
}

impl Reader<'_> {
    /// The written value of a setting and where it came from.
    fn written(&self, name: &str, flag: Option<&str>) -> Option<(String, String)> {
        let (_, variable, default) = SETTINGS.iter().find(|(known, _, _)| *known == name)?;
        if let Some(value) = flag {
            return Some((value.to_owned(), format!("from flag {name}")));
        }
        if let Some(value) = self.env.get(variable) {
            return Some((value.to_owned(), format!("from env {variable}")));
        }
        default.map(|value| (value.to_owned(), "default".to_owned()))
    }

    fn read<T, E: Display>(
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

    fn upstream(&mut self, flags: &Flags) -> Option<Settings> {
        let insecure = match self.env.get("PIPEOPS_KUBE_INSECURE") {
            None | Some("false") => false,
            Some("true") => true,
            Some(other) => {
                let source = "from env PIPEOPS_KUBE_INSECURE";
                self.problems.push(
                    "PIPEOPS_KUBE_INSECURE",
                    source,
                    Some(other),
                    "is neither true nor false",
                );
                return None;
            }
        };
        let kubeconfig = self.written("--kubeconfig", flags.kubeconfig.as_deref());
        let kube_api = self.written("--kube-api", flags.kube_api.as_deref());
        let (name, source, value, parts) = match (kubeconfig, kube_api) {
            (Some((path, source)), _) => {
                let parts = kubeconfig::read(path.as_ref(), insecure);
                ("--kubeconfig", source, path, parts)
            }
            (None, Some((url, source))) => {
                let parts = self.by_url(&url, insecure);
                ("--kube-api", source, url, parts)
            }
            (None, None) => {
                let source = "from env KUBERNETES_SERVICE_HOST".to_owned();
                ("kubernetes", source, String::new(), self.in_cluster())
            }
        };
        let value = (!value.is_empty()).then_some(value);
        let settings = parts.and_then(|parts| Settings::new(parts).map_err(|error| error.to_string()));
        settings
            .map_err(|reason| self.problems.push(name, source, value.as_deref(), reason))
            .ok()
    }

    fn by_url(&self, url: &str, insecure: bool) -> Result<Parts, String> {
        let url = Url::parse(url).map_err(|error| format!("is no URL: {error}"))?;
        let ca = self.env.get("PIPEOPS_KUBE_CA_FILE").map(read_file).transpose()?;
        let token = self.env.get("PIPEOPS_KUBE_TOKEN_FILE");
        Ok(Parts {
            url,
            ca,
            insecure,
            server_name: None,
            certificate: None,
            token: token.map_or(TokenSource::None, |path| TokenSource::File(TokenFile::new(path))),
        })
    }

    fn in_cluster(&self) -> Result<Parts, String> {
        let place = (
            self.env.get("KUBERNETES_SERVICE_HOST"),
            self.env.get("KUBERNETES_SERVICE_PORT"),
        );
        let (Some(host), Some(port)) = place else {
            return Err("no apiserver is named: set --kubeconfig or --kube-api, or run in a pod".to_owned());
        };
        let host = if host.contains(':') {
            format!("[{host}]")
        } else {
            host.to_owned()
        };
        let url =
            Url::parse(&format!("https://{host}:{port}")).map_err(|error| format!("is no host: {error}"))?;
        let dir = self.service_account_dir();
        let ca = read_file(&dir.join("ca.crt").display().to_string())?;
        Ok(Parts {
            url,
            ca: Some(ca),
            insecure: false,
            server_name: None,
            certificate: None,
            token: TokenSource::File(TokenFile::new(dir.join("token"))),
        })
    }

    fn service_account_dir(&self) -> PathBuf {
        PathBuf::from(
            self.env
                .get("PIPEOPS_SERVICE_ACCOUNT_DIR")
                .unwrap_or(SERVICE_ACCOUNT_DIR),
        )
    }

    /// agent-core reads its state through us before it can tell us its names, so what the chart or the kubelet
    /// tells about the pod has to be enough.
    fn scope(&self) -> Scope {
        let text = |name: &str| self.env.get(name).map(str::to_owned);
        let mounted = || std::fs::read_to_string(self.service_account_dir().join("namespace")).ok();
        let namespace = text("PIPEOPS_STATE_NAMESPACE")
            .or_else(|| text("PIPEOPS_POD_NAMESPACE"))
            .or_else(mounted);
        Scope {
            namespace: namespace
                .map(|namespace| namespace.trim().to_owned())
                .unwrap_or_default(),
            state_secret: text("PIPEOPS_STATE_SECRET_NAME").unwrap_or_default(),
            lease: text("PIPEOPS_LEASE_NAME").unwrap_or_default(),
            pod_name: text("PIPEOPS_POD_NAME").unwrap_or_default(),
        }
    }

    /// A variable of ours that nobody knows is a slip of somebody's keyboard.
    fn unknown_variables(&mut self) {
        let known = || {
            SETTINGS
                .iter()
                .map(|(_, variable, _)| *variable)
                .chain(ONLY_VARIABLES)
        };
        for (name, value) in self.env.iter().filter(|(name, _)| name.starts_with("PIPEOPS_")) {
            if known().any(|own| own == name)
                || siblings::knows(name)
                || siblings::is_service_link(name, value)
            {
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

fn read_file(path: &str) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{path} cannot be read: {error}"))
}

fn listener(value: &str) -> Result<SocketAddr, &'static str> {
    value
        .parse()
        .map_err(|_| "is not address:port, for example 127.0.0.1:8001")
}

fn local_listener(value: &str) -> Result<SocketAddr, &'static str> {
    let address = listener(value)?;
    let reason = "must be a loopback address: tokens cross it in clear";
    if address.ip().is_loopback() {
        Ok(address)
    } else {
        Err(reason)
    }
}

fn core(value: &str) -> Result<Url, &'static str> {
    let reason = "is not http://host:port of agent-core in this pod";
    let url = Url::parse(value).map_err(|_| reason)?;
    if url.scheme() == "http" && runtime::dial::url_is_loopback(&url) {
        Ok(url)
    } else {
        Err(reason)
    }
}

fn duration(value: &str) -> Result<Duration, &'static str> {
    let duration = humantime::parse_duration(value).map_err(|_| "is not a duration, for example 25s")?;
    if duration >= Duration::from_secs(1) {
        Ok(duration)
    } else {
        Err("is below 1s")
    }
}

fn audit(value: &str) -> Result<bool, &'static str> {
    match value {
        "stdout" => Ok(true),
        "off" => Ok(false),
        _ => Err("is neither stdout nor off"),
    }
}

fn positive(value: &str) -> Result<usize, &'static str> {
    value
        .parse()
        .ok()
        .filter(|number| *number > 0)
        .ok_or("is not a number above 0")
}

/// Bytes, plain or with one of the suffixes that Kubernetes writes.
fn quantity(value: &str) -> Result<usize, &'static str> {
    const WRONG: &str = "is not a number of bytes, such as 64Mi";
    let (digits, shift) = match value {
        _ if value.ends_with("Gi") => (value.trim_end_matches("Gi"), 30),
        _ if value.ends_with("Mi") => (value.trim_end_matches("Mi"), 20),
        _ if value.ends_with("Ki") => (value.trim_end_matches("Ki"), 10),
        _ => (value, 0),
    };
    let number = positive(digits).map_err(|_| WRONG)?;
    number.checked_mul(1 << shift).ok_or("is more than there can be")
}

#[cfg(test)]
mod tests;
