//! With the real Go server and, as its client, the same Go program.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
};

use super::*;
use crate::control_plane::chisel::find;
use crate::wait::eventually;

async fn with_chisel(change: impl FnOnce(&mut ControlPlaneConfig)) -> ControlPlane {
    start(|config| {
        config.chisel = Chisel::Find;
        change(config);
    })
    .await
}

async fn status(control_plane: &ControlPlane) -> Value {
    let (status, answer) = get(control_plane, "/api/agents/a/tunnel/status").await;
    assert_eq!(status, 200, "{answer}");
    answer
}

/// The Go client, told by the control plane's answer; every forward leads to `target`.
fn client_of(control_plane: &ControlPlane, status: &Value, target: SocketAddr) -> Child {
    use ::base64::{Engine, engine::general_purpose::STANDARD};
    let credentials = STANDARD.decode(status["credentials"].as_str().unwrap()).unwrap();
    let url = status["tunnel_server_addr"].as_str().unwrap();
    let mut command = Command::new(find(&Chisel::Find).unwrap().unwrap());
    command
        .args([
            "client",
            "--fingerprint",
            status["server_fingerprint"].as_str().unwrap(),
            "--max-retry-count",
            "0",
        ])
        .env_clear()
        .env("AUTH", String::from_utf8(credentials).unwrap())
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true);
    if url.starts_with("wss") {
        command.arg("--tls-ca").arg(control_plane.ca_file());
    }
    // The Go client knows http and https only.
    command.arg(url.replacen("ws", "http", 1));
    for forward in status["forwards"].as_array().unwrap() {
        command.arg(format!("R:127.0.0.1:{}:{target}", forward["remote_port"]));
    }
    command.spawn().unwrap()
}

/// A target that says one word.
async fn target() -> (SocketAddr, JoinSet<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, mut tasks) = (listener.local_addr().unwrap(), JoinSet::new());
    tasks.spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let _ = tcp.write_all(b"hello").await;
        }
    });
    (address, tasks)
}

#[tokio::test]
async fn the_go_client_is_let_in_by_what_the_agent_is_told_and_bytes_cross() {
    for (key, tls) in [
        (HostKey::Ecdsa, false),
        (HostKey::Ed25519, false),
        (HostKey::Ecdsa, true),
    ] {
        let control_plane = with_chisel(|config| {
            config.host_key = key;
            config.chisel_tls = tls;
        })
        .await;
        let (id, ..) = registered(&control_plane).await;
        let told = status(&control_plane).await;
        assert_eq!(
            (&told["status"], told["forwards"].as_array().unwrap().len()),
            (&json!("REQUIRED"), 3)
        );
        let (target, _tasks) = target().await;
        let mut client = client_of(&control_plane, &told, target);
        for name in ["kubernetes-api", "k8s-proxy", "agent-http"] {
            let address = control_plane.wait_forward(&id, name).await;
            let mut word = String::new();
            TcpStream::connect(address)
                .await
                .unwrap()
                .read_to_string(&mut word)
                .await
                .unwrap();
            assert_eq!(word, "hello", "{name} {key:?} tls={tls}");
        }
        assert_eq!(status(&control_plane).await["status"], "ACTIVE");
        assert!(
            control_plane
                .tunnel(&id)
                .unwrap()
                .forwards
                .iter()
                .all(|forward| forward.listening)
        );
        client.kill().await.unwrap();
    }
}

#[tokio::test]
async fn each_path_has_its_words() {
    let control_plane = with_chisel(|_| {}).await;
    registered(&control_plane).await;
    let (_, seeds) = get(&control_plane, "/api/v1/tunnel/status?agent_id=a").await;
    let older = status(&control_plane).await;
    assert_eq!(
        (&seeds["status"], &older["status"]),
        (&json!("ready"), &json!("REQUIRED"))
    );
    assert_eq!(
        (&seeds["tunnel_url"], &seeds["forwards"]),
        (&older["tunnel_server_addr"], &older["forwards"])
    );
    assert_eq!(older["tunnel_url"], Value::Null);
}

#[tokio::test]
async fn it_can_be_killed_restarted_and_given_another_key_and_password() {
    let control_plane = with_chisel(|_| {}).await;
    registered(&control_plane).await;
    let first = status(&control_plane).await;
    let address = control_plane.chisel_address().unwrap();
    let pid = control_plane.chisel_pid().unwrap();
    control_plane.chisel_kill().await.unwrap();
    assert!(TcpStream::connect(address).await.is_err());
    assert_eq!(control_plane.chisel_pid(), None);
    control_plane.chisel_restart(KeyChange::Same).await.unwrap();
    assert_ne!(control_plane.chisel_pid(), Some(pid));
    assert_eq!(status(&control_plane).await, first, "same port, key and password");
    control_plane.chisel_restart(KeyChange::New).await.unwrap();
    let second = status(&control_plane).await;
    assert_ne!(second["server_fingerprint"], first["server_fingerprint"]);
    control_plane.chisel_password().await.unwrap();
    let third = status(&control_plane).await;
    assert_eq!(third["server_fingerprint"], second["server_fingerprint"]);
    assert_ne!(third["credentials"], second["credentials"]);
    assert_eq!(control_plane.chisel_address(), Some(address));
}

#[tokio::test]
async fn forwards_and_ports_change_on_demand() {
    let control_plane = with_chisel(|_| {}).await;
    let (id, ..) = registered(&control_plane).await;
    let ports = |view: TunnelView| {
        view.forwards
            .into_iter()
            .map(|forward| forward.port)
            .collect::<Vec<_>>()
    };
    let first = ports(control_plane.tunnel(&id).unwrap());
    control_plane.change_ports(&id).unwrap();
    let second = ports(control_plane.tunnel(&id).unwrap());
    assert!(
        first.iter().all(|port| !second.contains(port)),
        "{first:?} {second:?}"
    );
    control_plane.set_forwards(&id, &["k8s-proxy", "extra"]).unwrap();
    let third = ports(control_plane.tunnel(&id).unwrap());
    assert_eq!((third[0], third.len()), (second[1], 2));
    control_plane.set_tunnel(&id, TunnelWish::Idle).unwrap();
    assert_eq!(status(&control_plane).await["status"], "IDLE");
}

#[tokio::test]
async fn its_process_ends_with_the_control_plane() {
    let control_plane = with_chisel(|_| {}).await;
    let address = control_plane.chisel_address().unwrap();
    drop(control_plane);
    eventually("chisel to end", async || TcpStream::connect(address).await.err()).await;
}

#[tokio::test]
async fn it_keeps_dialling_a_served_proxy_through_its_forward() {
    let control_plane = with_chisel(|config| config.dial_forward = Some("k8s-proxy".to_owned())).await;
    let (id, ..) = registered(&control_plane).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap();
    let mut client = client_of(&control_plane, &status(&control_plane).await, target);
    let mut last = 0;
    for _ in 0..2 {
        let (tcp, _) = tokio::time::timeout(patience(), listener.accept())
            .await
            .unwrap()
            .unwrap();
        let _socket = tokio_tungstenite::accept_async(tcp).await.unwrap();
        let link = control_plane.wait_link(&id).await;
        assert_eq!((link.direction(), link.id() > last), (Direction::ToProxy, true));
        last = link.id();
        control_plane.close_links(&id);
    }
    client.kill().await.unwrap();
}
