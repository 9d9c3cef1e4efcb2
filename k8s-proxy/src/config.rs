//! The settings of this process: flags over variables over defaults, every fault told at once.
//!
//! Where the apiserver is comes from a kubeconfig, else from `--kube-api`, else from what the kubelet gives every
//! container. Who may knock and where to dial comes as spec over gRPC.

use std::{net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use proto::variables::{AGENT_CORE, SURROUNDINGS, TUNNEL_SIDECAR};
use runtime::{
    cli::Command,
    config::{Env, Problems},
    secret::TokenFile,
    settings::{Common, CommonFlags, Defaults, Reader, Row, duration, listener, local_listener},
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
    after_help = "Defaults: --http-listen 0.0.0.0:8082, --grpc-listen 127.0.0.1:7072, --edge-dir /run/pipeops/edge-proxy",
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
    /// What every process of the pod has.
    #[command(flatten)]
    common: CommonFlags,
    /// Plain HTTP door, on the loopback [env: PIPEOPS_DOOR_HTTP, default: 127.0.0.1:8001].
    #[arg(long, global = true)]
    door_http: Option<String>,
    /// HTTPS door [env: PIPEOPS_DOOR_HTTPS, default: 127.0.0.1:8443].
    #[arg(long, global = true)]
    door_https: Option<String>,
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
    /// What every process of the pod has.
    pub common: Common,
    /// Plain HTTP door.
    pub door_http: SocketAddr,
    /// HTTPS door.
    pub door_https: SocketAddr,
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

/// What differs from the other containers.
const DEFAULTS: Defaults = Defaults {
    http_listen: "0.0.0.0:8082",
    grpc_listen: "127.0.0.1:7072",
    edge_dir: "/run/pipeops/edge-proxy",
};

/// Flags of this process alone, each with its variable and its default.
const SETTINGS: [Row; 9] = [
    ("--door-http", "PIPEOPS_DOOR_HTTP", Some("127.0.0.1:8001")),
    ("--door-https", "PIPEOPS_DOOR_HTTPS", Some("127.0.0.1:8443")),
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
        let mut reader = Reader::new(env, &DEFAULTS, &SETTINGS);
        reader.unknown_variables(&ONLY_VARIABLES, |name| {
            [AGENT_CORE, TUNNEL_SIDECAR, SURROUNDINGS]
                .iter()
                .any(|others| others.know(name))
        });
        let common = Common::read(&mut reader, &flags.common);
        let door_http = reader.read("--door-http", flags.door_http.as_deref(), local_listener);
        let door_https = reader.read("--door-https", flags.door_https.as_deref(), listener);
        let policy_file = reader.read("--policy-file", flags.policy_file.as_deref(), PathBuf::from_str);
        let audit = reader.read("--audit", flags.audit.as_deref(), audit);
        let response_timeout = reader.read("--response-timeout", flags.response_timeout.as_deref(), duration);
        let max_streams = reader.read("--max-streams", flags.max_streams.as_deref(), positive);
        let max_waiting_bytes = reader.read(
            "--max-waiting-bytes",
            flags.max_waiting_bytes.as_deref(),
            quantity,
        );
        let upstream = upstream(&mut reader, flags);
        let scope = scope(env);
        let problems = reader.problems;
        // Every `None` below has left a problem, so nobody runs with half a configuration.
        let (
            (Some(common), Some(door_http), Some(door_https), Some(audit)),
            (Some(response_timeout), Some(max_streams), Some(max_waiting_bytes), Some(upstream)),
        ) = (
            (common, door_http, door_https, audit),
            (response_timeout, max_streams, max_waiting_bytes, upstream),
        )
        else {
            return Err(problems);
        };
        problems.into_result(Self {
            common,
            door_http,
            door_https,
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
            self.common.http_listen,
            self.common.grpc_listen,
            self.common.core_address,
            self.common.edge_dir.display(),
            self.common.private_dir.display(),
            if self.audit { "stdout" } else { "off" },
            self.response_timeout,
            self.max_streams,
            self.max_waiting_bytes,
            self.common.drain_timeout,
        )
    }
}

fn upstream(reader: &mut Reader<'_>, flags: &Flags) -> Option<Settings> {
    let insecure = match reader.env.get("PIPEOPS_KUBE_INSECURE") {
        None | Some("false") => false,
        Some("true") => true,
        Some(other) => {
            let source = "from env PIPEOPS_KUBE_INSECURE";
            reader.problems.push(
                "PIPEOPS_KUBE_INSECURE",
                source,
                Some(other),
                "is neither true nor false",
            );
            return None;
        }
    };
    let kubeconfig = reader.written("--kubeconfig", flags.kubeconfig.as_deref());
    let kube_api = reader.written("--kube-api", flags.kube_api.as_deref());
    let (name, source, value, parts) = match (kubeconfig, kube_api) {
        (Some((path, source)), _) => {
            let parts = kubeconfig::read(path.as_ref(), insecure);
            ("--kubeconfig", source, path, parts)
        }
        (None, Some((url, source))) => {
            let parts = by_url(reader.env, &url, insecure);
            ("--kube-api", source, url, parts)
        }
        (None, None) => {
            let source = "from env KUBERNETES_SERVICE_HOST".to_owned();
            ("kubernetes", source, String::new(), in_cluster(reader.env))
        }
    };
    let value = (!value.is_empty()).then_some(value);
    let settings = parts.and_then(|parts| Settings::new(parts).map_err(|error| error.to_string()));
    settings
        .map_err(|reason| reader.problems.push(name, source, value.as_deref(), reason))
        .ok()
}

fn by_url(env: &Env, url: &str, insecure: bool) -> Result<Parts, String> {
    let url = Url::parse(url).map_err(|error| format!("is no URL: {error}"))?;
    let ca = env.get("PIPEOPS_KUBE_CA_FILE").map(read_file).transpose()?;
    let token = env.get("PIPEOPS_KUBE_TOKEN_FILE");
    Ok(Parts {
        url,
        ca,
        insecure,
        server_name: None,
        certificate: None,
        token: token.map_or(TokenSource::None, |path| TokenSource::File(TokenFile::new(path))),
    })
}

fn in_cluster(env: &Env) -> Result<Parts, String> {
    let place = (
        env.get("KUBERNETES_SERVICE_HOST"),
        env.get("KUBERNETES_SERVICE_PORT"),
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
    let dir = service_account_dir(env);
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

fn service_account_dir(env: &Env) -> PathBuf {
    PathBuf::from(
        env.get("PIPEOPS_SERVICE_ACCOUNT_DIR")
            .unwrap_or(SERVICE_ACCOUNT_DIR),
    )
}

/// agent-core reads its state through us before it can tell us its names, so what the chart or the kubelet
/// tells about the pod has to be enough.
fn scope(env: &Env) -> Scope {
    let text = |name: &str| env.get(name).map(str::to_owned);
    let mounted = || std::fs::read_to_string(service_account_dir(env).join("namespace")).ok();
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

fn read_file(path: &str) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{path} cannot be read: {error}"))
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
