//! What is really inside the pod: who holds which secret, as whom it runs, what it may, how people look at it.

use std::{collections::BTreeMap, process::Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use harness::{
    cluster::{NAMESPACE, RELEASE, RealCluster, STATE_SECRET},
    peers,
    pod::Part,
    wait::{eventually, patience},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

use super::{Installed, told};

const TOKEN_FOLDER: &str = "/run/secrets/kubernetes.io/serviceaccount";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_holds_what_it_needs_and_no_more() -> Result<()> {
    told(async {
        let (cluster, control_plane) = Installed::prepare().await?;
        // What a kubelet would make of this name: AGENT_PORT=tcp://… in every container.
        let service = json!({"ports": [{"port": 80}], "selector": {"app": "none"}});
        let metadata = json!({"name": "agent", "namespace": NAMESPACE});
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": service});
        cluster.apply(&service).await?;
        let installed = Installed::with(cluster, control_plane).await?;

        let processes = processes(&installed).await?;
        each_has_a_user_and_a_read_only_root(&installed, &processes).await?;
        one_secret_each(&installed, &processes).await?;
        rights(&installed.cluster).await?;
        let operator = people_look_inside(&installed).await?;
        logs_say_something_and_no_secret(&installed, &processes, &operator).await?;
        events_on_the_pod(&installed).await
    })
    .await
}

/// Process numbers of the containers' main processes, as the node counts them.
async fn processes(installed: &Installed) -> Result<BTreeMap<Part, String>> {
    let tasks = installed
        .cluster
        .inside(&["ctr", "-n", "k8s.io", "task", "ls"])
        .await?;
    let statuses = installed.pod["status"]["containerStatuses"]
        .as_array()
        .context("statuses")?;
    let mut found = BTreeMap::new();
    for part in Part::ALL {
        let status = statuses
            .iter()
            .find(|status| status["name"] == part.name())
            .context("a status")?;
        let id = status["containerID"]
            .as_str()
            .and_then(|id| id.strip_prefix("containerd://"))
            .context("an id")?;
        let line = tasks
            .lines()
            .find(|line| line.starts_with(id))
            .context("a task")?;
        found.insert(
            part,
            line.split_whitespace()
                .nth(1)
                .context("a process number")?
                .to_owned(),
        );
    }
    Ok(found)
}

async fn each_has_a_user_and_a_read_only_root(
    installed: &Installed,
    processes: &BTreeMap<Part, String>,
) -> Result<()> {
    for (part, user) in [
        (Part::Core, "65531"),
        (Part::Tunnel, "65532"),
        (Part::Proxy, "65533"),
    ] {
        let process = &processes[&part];
        let read = async |file: &str| {
            installed
                .cluster
                .inside(&["cat", &format!("/proc/{process}/{file}")])
                .await
        };
        let status = read("status").await?;
        let field = |name: &str| {
            let line = status
                .lines()
                .find(|line| line.starts_with(name))
                .unwrap_or_default();
            line.split_whitespace().skip(1).collect::<Vec<_>>()
        };
        ensure!(field("Uid:") == [user; 4], "{}: {:?}", part.name(), field("Uid:"));
        ensure!(
            field("CapEff:") == ["0000000000000000"],
            "{}: {:?}",
            part.name(),
            field("CapEff:")
        );
        ensure!(
            field("NoNewPrivs:") == ["1"] && field("Seccomp:") == ["2"],
            "{}: {status}",
            part.name()
        );
        let mounts = read("mountinfo").await?;
        let mut root = mounts.lines().filter(|line| line.split(' ').nth(4) == Some("/"));
        let options = root
            .next_back()
            .and_then(|line| line.split(' ').nth(5))
            .context("a root mount")?;
        ensure!(
            options.split(',').any(|option| option == "ro"),
            "{}: root is {options}",
            part.name()
        );
        let environment = read("environ").await?;
        ensure!(
            !environment.contains(harness::lab::TOKEN),
            "{}: the token is in its environment",
            part.name()
        );
        ensure!(
            !environment.contains("AGENT_PORT="),
            "{}: service links are on",
            part.name()
        );
    }
    Ok(())
}

/// The files that each container can see beside its image, under folders that were mounted into it.
async fn one_secret_each(installed: &Installed, processes: &BTreeMap<Part, String>) -> Result<()> {
    for part in Part::ALL {
        let root = format!("/proc/{}/root", processes[&part]);
        let find = [
            "find",
            &format!("{root}/run"),
            &format!("{root}/var"),
            &format!("{root}/etc/pipeops"),
            "-type",
            "f",
        ];
        let files = installed
            .cluster
            .inside(&["sh", "-c", &format!("{} 2>/dev/null; true", find.join(" "))])
            .await?;
        // What a projected volume shows are links into a folder with the time in its name.
        let files = files
            .lines()
            .filter_map(|file| file.strip_prefix(&root))
            .map(|file| {
                file.split('/')
                    .filter(|step| !step.starts_with(".."))
                    .collect::<Vec<_>>()
                    .join("/")
            });
        let mut files: Vec<String> = files.collect();
        files.sort();
        let mut expected: Vec<String> = match part {
            Part::Core => vec![
                "/etc/pipeops/config/ca.pem".to_owned(),
                "/etc/pipeops/config/config.yaml".to_owned(),
                "/etc/pipeops/secret/token".to_owned(),
                "/run/pipeops/edge-proxy/token".to_owned(),
                "/run/pipeops/edge-tunnel/token".to_owned(),
            ],
            Part::Tunnel => vec!["/run/pipeops/edge-tunnel/token".to_owned()],
            Part::Proxy => {
                let token = ["ca.crt", "namespace", "token"].map(|file| format!("/var{TOKEN_FOLDER}/{file}"));
                let mut files = token.to_vec();
                files.push("/etc/pipeops/policy/policy.yaml".to_owned());
                files.push("/run/pipeops/edge-proxy/token".to_owned());
                files
            }
        };
        // What a container writes for itself alone is its own affair.
        let own = "/run/pipeops/private/";
        ensure!(
            files
                .iter()
                .any(|file| file == "/run/pipeops/private/operator-token"),
            "{}: {files:?}",
            part.name()
        );
        files.retain(|file| !file.starts_with(own));
        expected.sort();
        ensure!(files == expected, "{} sees {files:?}", part.name());
    }
    Ok(())
}

/// RBAC of the pod's ServiceAccount, asked as itself.
async fn rights(cluster: &RealCluster) -> Result<()> {
    let account = format!("system:serviceaccount:{NAMESPACE}:{RELEASE}");
    let state = format!("secrets/{STATE_SECRET}");
    for (allowed, namespace, question) in [
        (true, NAMESPACE, ["get", &state].as_slice()),
        (true, NAMESPACE, &["update", &state]),
        (true, NAMESPACE, &["update", "leases/pipeops-agent"]),
        (true, NAMESPACE, &["create", "events"]),
        (true, "default", &["list", "nodes"]),
        (true, "default", &["watch", "pods"]),
        (false, NAMESPACE, &["create", "secrets"]),
        (false, NAMESPACE, &["list", "secrets"]),
        (false, NAMESPACE, &["delete", &state]),
        (false, NAMESPACE, &["get", "secrets/pipeops-agent-token"]),
        (false, "default", &["get", "secrets"]),
        (false, "default", &["create", "pods", "--subresource=exec"]),
        (false, "default", &["create", "pods", "--subresource=portforward"]),
        (
            false,
            "default",
            &["create", "serviceaccounts", "--subresource=token"],
        ),
        (false, "default", &["create", "clusterrolebindings"]),
        (false, "default", &["bind", "clusterroles"]),
        (false, "default", &["escalate", "clusterroles"]),
        (false, "default", &["impersonate", "users"]),
        (false, "default", &["impersonate", "groups"]),
        (false, "default", &["patch", "nodes"]),
        (false, "default", &["create", "nodes", "--subresource=proxy"]),
        (false, "default", &["*", "*"]),
    ] {
        let mut command = Command::new("kubectl");
        command
            .arg("--kubeconfig")
            .arg(cluster.kubeconfig()?)
            .args(["auth", "can-i", "--as", &account]);
        let output = command.args(["-n", namespace]).args(question).output().await?;
        let answer = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let expected = if allowed { "yes" } else { "no" };
        let asked = question.join(" ");
        ensure!(
            answer == expected || answer.starts_with("no ") && !allowed,
            "{asked} in {namespace}: {answer:?}"
        );
    }
    Ok(())
}

/// `kubectl exec … -- /agent-core token`, a port-forward to its gRPC, grpcurl; returns the operator's token.
async fn people_look_inside(installed: &Installed) -> Result<String> {
    let pod = installed.name();
    let mut tokens = Vec::new();
    for part in Part::ALL {
        let binary = format!("/{}", part.name());
        let token = installed
            .cluster
            .here(&["exec", pod, "-c", part.name(), "--", &binary, "token"])
            .await?;
        ensure!(token.trim().len() >= 32, "{}: {token:?}", part.name());
        tokens.push(token.trim().to_owned());
    }
    let [operator, tunnel, proxy] = tokens.as_slice() else {
        bail!("three tokens")
    };
    ensure!(
        operator != tunnel && tunnel != proxy && operator != proxy,
        "each has an operator token of its own"
    );
    let (address, _forward) = port_forward(&installed.cluster, pod, 7070).await?;
    let bearer = format!("authorization: Bearer {operator}");
    let listed = grpcurl(&["-plaintext", &address, "list"]).await?;
    ensure!(listed.contains("pipeops.agent.v1.Core"), "{listed}");
    let agent = grpcurl(&[
        "-plaintext",
        "-H",
        &bearer,
        &address,
        "pipeops.agent.v1.Core/GetAgent",
    ])
    .await?;
    ensure!(agent.contains(&installed.id), "{agent}");
    let refused = grpcurl(&["-plaintext", &address, "pipeops.agent.v1.Core/GetAgent"]).await;
    let refused = refused
        .err()
        .context("without a token it must be refused")?
        .to_string();
    ensure!(refused.contains("Unauthenticated"), "{refused}");
    Ok(operator.clone())
}

/// A port-forward; it ends when what is returned is dropped. kubectl must be able to go on writing.
async fn port_forward(
    cluster: &RealCluster,
    pod: &str,
    port: u16,
) -> Result<(String, (Child, Lines<BufReader<ChildStdout>>))> {
    let mut child = Command::new("kubectl")
        .arg("--kubeconfig")
        .arg(cluster.kubeconfig()?)
        .args([
            "-n",
            NAMESPACE,
            "port-forward",
            "--address",
            "127.0.0.1",
            pod,
            &format!(":{port}"),
        ])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("its output")?).lines();
    let line = tokio::time::timeout(patience(), lines.next_line())
        .await??
        .context("kubectl port-forward ended")?;
    let address = line
        .strip_prefix("Forwarding from ")
        .and_then(|rest| rest.split(' ').next())
        .context(line.clone())?;
    Ok((address.to_owned(), (child, lines)))
}

async fn grpcurl(args: &[&str]) -> Result<String> {
    let output = Command::new(peers::path("grpcurl")?).args(args).output().await?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

async fn logs_say_something_and_no_secret(
    installed: &Installed,
    processes: &BTreeMap<Part, String>,
    operator: &str,
) -> Result<()> {
    let mut secrets = vec![harness::lab::TOKEN.to_owned(), operator.to_owned()];
    secrets.extend(installed.control_plane.chisel_credentials());
    let core = format!("/proc/{}/root/run/pipeops", processes[&Part::Core]);
    let service_account = format!("/proc/{}/root/var{TOKEN_FOLDER}/token", processes[&Part::Proxy]);
    for file in [
        format!("{core}/edge-tunnel/token"),
        format!("{core}/edge-proxy/token"),
        service_account,
    ] {
        let secret = installed.cluster.inside(&["cat", &file]).await?;
        ensure!(!secret.trim().is_empty(), "{file} is empty");
        secrets.push(secret.trim().to_owned());
    }
    for part in Part::ALL {
        let log = installed
            .cluster
            .here(&["logs", installed.name(), "-c", part.name()])
            .await?;
        ensure!(log.lines().count() > 0, "{} says nothing", part.name());
        for line in log.lines() {
            ensure!(
                serde_json::from_str::<Value>(line).is_ok(),
                "{}: not JSON: {line}",
                part.name()
            );
        }
        for (number, secret) in secrets.iter().enumerate() {
            ensure!(
                !log.contains(secret),
                "secret number {number} is in the log of {}",
                part.name()
            );
        }
    }
    Ok(())
}

/// `kubectl describe pod` tells of the registration and the tunnel.
async fn events_on_the_pod(installed: &Installed) -> Result<()> {
    for reason in ["Registered", "TunnelUp"] {
        let selector = format!("reason={reason},involvedObject.name={}", installed.name());
        let args = [
            "get",
            "events",
            "--field-selector",
            selector.as_str(),
            "-o",
            "name",
        ];
        eventually(&format!("an Event {reason}"), || async {
            installed
                .cluster
                .here(&args)
                .await
                .ok()
                .filter(|events| !events.is_empty())
        })
        .await;
    }
    Ok(())
}
