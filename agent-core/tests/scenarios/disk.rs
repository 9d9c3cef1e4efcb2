//! Really full and really read-only file systems: small ones in a mount namespace that the test makes.

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::json;

use crate::{
    agent::{client, eventually},
    control_plane::{ControlPlane, Say},
};

/// A tmpfs at `dir/small`, seen by what is started in here and through `/proc`. It ends with its first process.
struct Small {
    /// Holds the namespace; ends when its standard input is closed.
    holder: Child,
    at: PathBuf,
}

impl Small {
    async fn mount(dir: &Path) -> Self {
        let at = dir.join("small");
        std::fs::create_dir(&at).unwrap();
        let mut command = Command::new("unshare");
        // Whoever is not root becomes it in a namespace of its own.
        if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
            command.arg("--map-root-user");
        }
        let script = "mount -t tmpfs -o size=32k,mode=0700 small \"$1\" && : > \"$1/mounted\" && read -r _";
        let holder = command
            .args(["--mount", "sh", "-c", script, "sh"])
            .arg(&at)
            .stdin(Stdio::piped())
            .spawn()
            .expect("unshare of util-linux");
        let small = Self { holder, at };
        eventually("the small file system", async || {
            std::fs::exists(small.seen("mounted")).ok()?.then_some(())
        })
        .await;
        small
    }

    /// Where a file of it is for us, who stand outside.
    fn seen(&self, name: &str) -> PathBuf {
        let root = format!("/proc/{}/root", self.holder.id());
        Path::new(&root)
            .join(self.at.strip_prefix("/").unwrap())
            .join(name)
    }

    /// Takes every byte that is left.
    fn fill(&self) {
        let error = std::fs::write(self.seen("filler"), vec![0; 1024 * 1024]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    }

    fn free(&self) {
        std::fs::remove_file(self.seen("filler")).unwrap();
    }

    fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg("--preserve-credentials")
            .arg(format!("--user=/proc/{}/ns/user", self.holder.id()))
            .arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id()))
            .arg(program);
        if std::fs::metadata("/proc/self").unwrap().uid() == 0 {
            command = Command::new("nsenter");
            command
                .arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id()))
                .arg(program);
        }
        command
    }

    fn read_only(&self) {
        let done = self
            .inside("mount")
            .args(["-o", "remount,ro"])
            .arg(&self.at)
            .status()
            .unwrap();
        assert!(done.success());
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        self.holder.wait().ok();
    }
}

/// The program in there, with its state on the small file system.
struct Running {
    child: Child,
    addresses: PathBuf,
}

impl Running {
    fn start(dir: &Path, small: &Small, cp: &ControlPlane) -> Self {
        let path = |name: &str| dir.join(name).display().to_string();
        let addresses = dir.join("addresses.json");
        std::fs::remove_file(&addresses).ok();
        let child = small
            .inside(env!("CARGO_BIN_EXE_agent-core"))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("PIPEOPS_API_URL", cp.url())
            .env("PIPEOPS_TOKEN", "cp-token")
            .env("PIPEOPS_CLUSTER_NAME", "lab")
            .env("PIPEOPS_PRIVATE_DIR", path("private"))
            .env("PIPEOPS_EDGE_TUNNEL_DIR", path("edge-tunnel"))
            .env("PIPEOPS_EDGE_PROXY_DIR", path("edge-proxy"))
            .env("PIPEOPS_STATE_BACKEND", "file")
            .env("PIPEOPS_STATE_FILE", path("small/state.yaml"))
            .env("PIPEOPS_ADDRESSES_FILE", &addresses)
            .env("PIPEOPS_HTTP_LISTEN", "127.0.0.1:0")
            .env("PIPEOPS_GRPC_LISTEN", "127.0.0.1:0")
            .env("PIPEOPS_HEARTBEAT_INTERVAL", "100ms")
            .env("PIPEOPS_REGISTRATION_BACKOFF_MIN", "20ms")
            .env("PIPEOPS_REGISTRATION_BACKOFF_MAX", "100ms")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nsenter of util-linux");
        Self { child, addresses }
    }

    async fn readyz(&self, words: &[&str]) -> String {
        eventually(&format!("{words:?} in /readyz"), async || {
            let text = std::fs::read_to_string(&self.addresses).ok()?;
            let addresses: serde_json::Value = serde_json::from_str(&text).ok()?;
            let url = format!("http://{}/readyz", addresses["http"].as_str()?);
            let text = client().get(url).send().await.ok()?.text().await.ok()?;
            words.iter().all(|word| text.contains(word)).then_some(text)
        })
        .await
    }

    async fn stop(mut self) {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()
                .unwrap()
                .success()
        );
        let status = tokio::task::spawn_blocking(move || self.child.wait().unwrap())
            .await
            .unwrap();
        assert!(status.success(), "{status}");
    }
}

#[tokio::test]
async fn what_a_full_disk_did_not_take_is_written_when_it_does_and_a_read_only_one_holds_up_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let small = Small::mount(dir.path()).await;
    let cp = ControlPlane::start().await;
    let state = || std::fs::read_to_string(small.seen("state.yaml")).unwrap_or_default();

    // A fresh install whose id cannot be kept tells nobody.
    small.fill();
    let agent = Running::start(dir.path(), &small, &cp);
    agent
        .readyz(&["not ready", "state.yaml cannot be written", "PIPEOPS_STATE_FILE"])
        .await;
    assert!(cp.script().registrations.is_empty());

    // Room for the id; the disk is full again when the registration comes back.
    cp.say_register([Say::Status(503, json!({ "error": "later" }))]);
    small.free();
    let first = cp.registration(1).await;
    small.fill();
    cp.say_register([Say::Ok(json!({ "cluster_id": "uuid-1" }))]);
    cp.beats(1).await;
    let text = agent
        .readyz(&["False         State: ", "cannot be written"])
        .await;
    assert!(text.contains("No space left on device"), "{text}");
    assert!(!state().contains("uuid-1"));

    // Nobody has to do anything once there is room.
    small.free();
    eventually("the registration is kept", async || {
        state().contains("uuid-1").then_some(())
    })
    .await;
    agent
        .readyz(&["ready\n", "True          State: kept in file"])
        .await;
    agent.stop().await;
    let registrations = cp.script().registrations.len();

    small.read_only();
    let agent = Running::start(dir.path(), &small, &cp);
    agent
        .readyz(&["ready\n", "True          State: kept in file"])
        .await;
    let (cluster, beat) = cp.beats(2).await;
    assert_eq!(cluster, "uuid-1");
    assert_eq!(beat["agent_id"], first["agent_id"]);
    assert_eq!(
        cp.script().registrations.len(),
        registrations,
        "it is the same agent"
    );
    agent.stop().await;
}
