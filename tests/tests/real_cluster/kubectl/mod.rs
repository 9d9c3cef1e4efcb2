//! kubectl cannot tell the difference: every line of the table, straight and through the front, compared.

mod table;

use std::{collections::BTreeMap, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use harness::{
    cluster::RealCluster,
    control_plane::ControlPlaneConfig,
    lab::{Cluster, Lab, TOKEN},
    pod::Part,
};

use self::table::{Compare, Kind, LINES, Line};

/// Longest that one line may take, seconds; nothing is proved by it.
const LIMIT: &str = "180";

/// One way to the apiserver.
struct Way<'a> {
    namespace: &'static str,
    kubeconfig: &'a Path,
    dir: &'a Path,
}

#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Way<'_> {
    fn run(&self, line: &Line, websocket: bool) -> Result<Outcome> {
        let (namespace, dir) = (self.namespace, self.dir.display());
        let k = format!(
            "kubectl --kubeconfig {} -n {namespace}",
            self.kubeconfig.display()
        );
        let script = line.script.replace("$K", &k);
        let on = if websocket { "true" } else { "false" };
        let output = Command::new("timeout")
            .args([LIMIT, "bash", "-c", &script])
            .env("NS", namespace)
            .env("D", self.dir)
            .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", on)
            .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", on)
            .env("KUBECACHEDIR", self.dir.join("cache"))
            .output()
            .with_context(|| line.name)?;
        let text = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes)
                .replace(namespace, "NAMESPACE")
                .replace(&dir.to_string(), "FOLDER");
            same_at_any_time(&text)
        };
        Ok(Outcome {
            code: output.status.code(),
            out: text(&output.stdout),
            err: text(&output.stderr),
        })
    }
}

/// Lines that say when or where, and nothing about what was asked.
const MOMENTS: [&str; 16] = [
    "uid:",
    "resourceVersion:",
    "creationTimestamp:",
    "Start Time:",
    "Started:",
    "Container ID:",
    "Image ID:",
    "IP:",
    "IPs:",
    "Node:",
    "Restart Count:",
    "Ready ",
    "PodReadyToStartContainers",
    "kube-api-access",
    "Initialized ",
    "ContainersReady ",
];

/// The text without what differs from moment to moment: ages, addresses, times, generated names, events.
fn same_at_any_time(text: &str) -> String {
    let mut lines = Vec::new();
    for line in text.lines() {
        let line = line.trim_end();
        if line.starts_with("Events:") {
            break;
        }
        if MOMENTS.iter().any(|moment| line.contains(moment)) {
            continue;
        }
        let words: Vec<String> = line.split_whitespace().map(word).collect();
        lines.push(words.join(" "));
    }
    lines.join("\n")
}

fn word(word: &str) -> String {
    let age = word.len() > 1
        && word.ends_with(['s', 'm', 'h', 'd'])
        && word.starts_with(|c: char| c.is_ascii_digit())
        && word
            .bytes()
            .all(|byte| byte.is_ascii_digit() || b"smhd".contains(&byte));
    if age {
        "AGE".to_owned()
    } else if word.parse::<std::net::IpAddr>().is_ok() {
        "ADDRESS".to_owned()
    } else if is_container_id(word.trim_matches(['"', ':'])) {
        "CONTAINER".to_owned()
    } else if word.starts_with("dbg-") {
        "dbg".to_owned()
    } else {
        word.to_owned()
    }
}

fn is_container_id(word: &str) -> bool {
    word.len() == 64 && word.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn prepare(dir: &Path, namespace: &str) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    let write = |name: &str, text: &str| std::fs::write(dir.join(name), text.replace("$NS", namespace));
    write("objects.yaml", include_str!("objects.yaml"))?;
    write("server-side.yaml", &configmap("applied", "word: one"))?;
    write("conflict.yaml", &configmap("applied", "word: two"))?;
    write("editor", "#!/bin/sh\nsed -i s/before/after/ \"$1\"\n")?;
    std::fs::write(
        dir.join("file"),
        (0..300_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>(),
    )?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.join("editor"), mode)?;
    Ok(())
}

fn configmap(name: &str, data: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: $NS}}\ndata: {{{data}}}\n")
}

/// Runs every line both ways; returns what differed.
fn compare(straight: &Way<'_>, through: &Way<'_>) -> Result<BTreeMap<String, String>> {
    let mut differences = BTreeMap::new();
    let mut ran = 0;
    for line in LINES {
        let protocols: &[bool] = if line.kind == Kind::Upgrade {
            &[true, false]
        } else {
            &[true]
        };
        for websocket in protocols {
            let protocol = match (line.kind, websocket) {
                (Kind::Plain, _) => "",
                (Kind::Upgrade, true) => " (WebSocket)",
                (Kind::Upgrade, false) => " (SPDY)",
            };
            let (mut direct, mut front) = (straight.run(line, *websocket)?, through.run(line, *websocket)?);
            if line.compare == Compare::Exit {
                for outcome in [&mut direct, &mut front] {
                    outcome.out.clear();
                    outcome.err.clear();
                }
            }
            ran += 1;
            let name = format!("{}{protocol}", line.name);
            let verdict = if direct == front { "same" } else { "DIFFERENT" };
            println!("{verdict}: {name} (exit {:?})", direct.code);
            if direct != front {
                let told = format!("straight {direct:?}\nthrough {front:?}");
                let told = told.chars().take(4000).collect();
                differences.insert(name, told);
            } else if direct.code == Some(124) {
                differences.insert(name, "took longer than the limit both ways".to_owned());
            }
        }
    }
    ensure!(ran > LINES.len(), "the table has upgrades, and each runs twice");
    Ok(differences)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_line_does_the_same_straight_and_through_the_front() -> Result<()> {
    let cluster = RealCluster::running().await?;
    let admin = cluster.kubeconfig()?;
    let policy = tempfile::NamedTempFile::new()?;
    std::fs::write(policy.path(), "rules: [{name: everything, effect: allow}]\n")?;
    let config = ControlPlaneConfig::new(TOKEN);
    let mut lab = Lab::with(Cluster::Real(admin.clone()), config, |pod| {
        let path = policy.path().display().to_string();
        pod.env(Part::Proxy, "PIPEOPS_POLICY_FILE", path)
    })
    .await?;
    let id = lab.start().await?;
    ensure!(
        lab.control_plane.wait_link(&id).await.is_http2(),
        "the proxy's link speaks HTTP/2"
    );
    for namespace in ["kubectl-straight", "kubectl-through"] {
        let gone = [
            "delete",
            "namespace",
            namespace,
            "--ignore-not-found",
            "--wait=true",
        ];
        cluster.kubectl(&gone).await?;
    }
    let front = lab.front_kubeconfig(&id)?;
    let dir = lab.dir().to_owned();
    let compared = tokio::task::spawn_blocking(move || {
        let (straight_dir, through_dir) = (dir.join("straight"), dir.join("through"));
        prepare(&straight_dir, "kubectl-straight")?;
        prepare(&through_dir, "kubectl-through")?;
        let straight = Way {
            namespace: "kubectl-straight",
            kubeconfig: &admin,
            dir: &straight_dir,
        };
        let through = Way {
            namespace: "kubectl-through",
            kubeconfig: &front,
            dir: &through_dir,
        };
        compare(&straight, &through)
    })
    .await??;
    for (name, difference) in &compared {
        println!("--- {name}\n{difference}");
    }
    ensure!(
        compared.is_empty(),
        "kubectl can tell the difference: {:?}",
        compared.keys()
    );
    Ok(())
}
