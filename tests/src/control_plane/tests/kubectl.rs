//! The real kubectl, through the front, to the simulated Kubernetes API; between them a bridge that speaks frames.
//!
//! ```text
//!  kubectl ─ https ─► front ─ frames ─► bridge ─ https ─► simulated API
//! ```

use std::{collections::BTreeMap, process::Stdio};

use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    sync::mpsc,
};

use super::*;
use crate::{
    kubernetes::{Simulation, SimulationConfig},
    wait::eventually,
};

/// The smallest proxy there is: no policy, no resuming, the caller's frames one to one.
struct Bridge {
    tasks: JoinSet<()>,
}

impl Bridge {
    async fn start(url: &str, token: &str, simulation: &Simulation) -> Self {
        let ca = reqwest::Certificate::from_pem(simulation.ca_pem().as_bytes()).unwrap();
        let client = reqwest::Client::builder().tls_certs_only([ca]).build().unwrap();
        let (base, admin) = (simulation.url(), simulation.admin_token().to_owned());
        let peer = Peer::dial(url, token).await.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let (mut sink, mut stream) = peer.socket.split();
            let (frames, mut queue) = mpsc::channel::<Value>(256);
            let mut calls = JoinSet::new();
            let mut open = BTreeMap::new();
            loop {
                tokio::select! {
                    Some(frame) = queue.recv() => sink.send(Message::text(frame.to_string())).await.unwrap(),
                    Some(_) = calls.join_next() => {}
                    message = stream.next() => {
                        let Some(Ok(message)) = message else { return };
                        let Message::Text(text) = message else { continue };
                        let request: Value = serde_json::from_str(&text).unwrap();
                        let id = request["id"].as_str().unwrap().to_owned();
                        if request["method"] == "CANCEL" {
                            if let Some(call) = open.remove(&id) {
                                tokio::task::AbortHandle::abort(&call);
                            }
                            let end = json!({ "id": id, "stream": true, "done": true });
                            sink.send(Message::text(end.to_string())).await.unwrap();
                        } else {
                            let call = carry(client.clone(), base.clone(), admin.clone(), request, frames.clone());
                            open.insert(id, calls.spawn(call));
                        }
                    }
                }
            }
        });
        Self { tasks }
    }
}

async fn carry(
    client: reqwest::Client,
    base: String,
    token: String,
    request: Value,
    frames: mpsc::Sender<Value>,
) {
    use ::base64::{Engine, engine::general_purpose::STANDARD};
    let mut url = url::Url::parse(&format!("{base}{}", request["path"].as_str().unwrap())).unwrap();
    for (name, values) in request["query"].as_object().into_iter().flatten() {
        for value in values.as_array().unwrap() {
            url.query_pairs_mut().append_pair(name, value.as_str().unwrap());
        }
    }
    let mut call = client
        .request(request["method"].as_str().unwrap().parse().unwrap(), url)
        .bearer_auth(token);
    for (name, value) in request["headers"].as_object().into_iter().flatten() {
        call = call.header(name, value.as_str().unwrap());
    }
    let body = STANDARD
        .decode(request["body"].as_str().unwrap_or_default())
        .unwrap();
    let mut response = call.body(body).send().await.unwrap();
    let headers: BTreeMap<_, _> = response
        .headers()
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
        .collect();
    let stream = request["stream"] == true;
    let mut first = json!({
        "id": request["id"], "status_code": response.status().as_u16(), "headers": headers, "stream": stream,
    });
    if !stream {
        first["body"] = STANDARD.encode(response.bytes().await.unwrap()).into();
        frames.send(first).await.unwrap();
        return;
    }
    frames.send(first).await.unwrap();
    let error = loop {
        match response.chunk().await {
            Ok(Some(piece)) => {
                let body = STANDARD.encode(piece);
                frames
                    .send(json!({ "id": request["id"], "stream": true, "chunk": true, "body": body }))
                    .await
                    .unwrap();
            }
            Ok(None) => break String::new(),
            Err(error) => break error.to_string(),
        }
    };
    frames
        .send(json!({ "id": request["id"], "stream": true, "done": true, "error": error }))
        .await
        .unwrap();
}

struct Kubectl {
    dir: TempDir,
}

impl Kubectl {
    fn of(control_plane: &ControlPlane, cluster: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config"), control_plane.kubeconfig(cluster)).unwrap();
        Self { dir }
    }

    fn command(&self, args: &str) -> Command {
        let mut command = Command::new("kubectl");
        command
            .arg("--kubeconfig")
            .arg(self.dir.path().join("config"))
            .arg("--cache-dir")
            .arg(self.dir.path().join("cache"))
            .args(args.split(' '))
            .kill_on_drop(true);
        command
    }

    async fn run(&self, args: &str) -> String {
        let output = self.command(args).output().await.expect("kubectl in PATH");
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(output.status.success(), "kubectl {args}: {out}{err}");
        out.into_owned()
    }

    fn follow(&self, args: &str) -> (Child, Lines<BufReader<ChildStdout>>) {
        let mut child = self.command(args).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        (child, lines)
    }
}

/// The next line that holds `word`.
async fn line_with(lines: &mut Lines<BufReader<ChildStdout>>, word: &str) -> String {
    let find = async {
        loop {
            let line = lines.next_line().await.unwrap().expect("kubectl goes on");
            if line.contains(word) {
                return line;
            }
        }
    };
    tokio::time::timeout(patience(), find)
        .await
        .unwrap_or_else(|_| panic!("no line with {word}"))
}

#[tokio::test]
async fn kubectl_works_through_the_front_and_its_watch_lives_across_a_broken_link() {
    let simulation = Simulation::start(SimulationConfig::default()).await.unwrap();
    let control_plane = plain().await;
    let (id, url, token) = registered(&control_plane).await;
    let mut bridge = Bridge::start(&url, &token, &simulation).await;
    control_plane.wait_link(&id).await;
    let kubectl = Kubectl::of(&control_plane, &id);

    let nodes = kubectl.run("get nodes -o name").await;
    assert!(nodes.contains("node/"), "{nodes}");
    let manifest = kubectl.dir.path().join("map.json");
    let metadata = json!({ "name": "front", "namespace": "default" });
    let map =
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": { "a": "one" } });
    std::fs::write(&manifest, map.to_string()).unwrap();
    kubectl
        .run(&format!("apply --validate=false -f {}", manifest.display()))
        .await;
    kubectl
        .run("patch configmap front --type merge -p {\"data\":{\"a\":\"two\"}}")
        .await;
    assert_eq!(
        kubectl.run("get configmap front -o jsonpath={.data.a}").await,
        "two"
    );

    let (mut watching, mut lines) = kubectl.follow("get configmaps -n default -w -o name");
    line_with(&mut lines, "configmap/front").await;
    let watches = async || (simulation.requests().open_watches() > 0).then_some(());
    eventually("the watch to be open", watches).await;
    bridge.tasks.abort_all();
    eventually("the link to go", async || {
        control_plane.links(&id).is_empty().then_some(())
    })
    .await;
    let create = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "meanwhile"}});
    simulation.create("configmaps", "default", create).unwrap();
    bridge = Bridge::start(&url, &token, &simulation).await;
    line_with(&mut lines, "configmap/meanwhile").await;
    kubectl.run("delete configmap front").await;
    watching.kill().await.unwrap();

    let pod = kubectl
        .run("get pods -n shop -o jsonpath={.items[0].metadata.name}")
        .await;
    let (mut following, mut lines) = kubectl.follow(&format!("logs -n shop -f {pod}"));
    simulation.append_log("shop", &pod, "a word of its own");
    line_with(&mut lines, "a word of its own").await;
    following.kill().await.unwrap();
    drop(bridge);
}
