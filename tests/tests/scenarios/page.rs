//! The page in a real browser: no console error, a killed container shows and comes back.

use std::{path::Path, process::Stdio};

use anyhow::{Context as _, Result, ensure};
use harness::{
    lab::{Cluster, Lab},
    pod::Part,
    wait::patience,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

struct Browser {
    child: Child,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
}

impl Browser {
    fn open(url: &str, token: &str) -> Result<Self> {
        let web = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("the workspace")?
            .join("dashboard/web");
        let mut child = Command::new("node")
            .arg("browser-test.mjs")
            .args(["--url", url, "--token", token])
            .current_dir(web)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("node is not in PATH")?;
        let stdin = child.stdin.take().context("stdin")?;
        let stdout = BufReader::new(child.stdout.take().context("stdout")?).lines();
        Ok(Self { child, stdin, stdout })
    }

    async fn expect(&mut self, answer: &str) -> Result<()> {
        loop {
            let line = tokio::time::timeout(patience(), self.stdout.next_line())
                .await
                .context(answer.to_owned())??;
            let line = line.with_context(|| format!("the browser ended before it said {answer}"))?;
            println!("browser: {line}");
            if line.trim() == answer {
                return Ok(());
            }
        }
    }

    async fn ask(&mut self, command: &str) -> Result<()> {
        self.stdin.write_all(format!("{command}\n").as_bytes()).await?;
        self.stdin.flush().await?;
        if command == "quit" {
            Ok(())
        } else {
            self.expect("OK").await
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_container_shows_and_comes_back() -> Result<()> {
    let (mut lab, _) = Lab::running(Cluster::simulated().await?).await?;
    let url = format!("http://{}/dashboard", lab.pod.ports.core_http);
    let mut browser = Browser::open(&url, &lab.pod.operator_token(Part::Core)?)?;
    browser.expect("READY").await?;
    for part in [Part::Tunnel, Part::Proxy] {
        lab.pod.kill(part).await?;
        browser.ask(&format!("expect-unknown {}", part.name())).await?;
        lab.pod.start_part(part)?;
        browser.ask(&format!("expect-known {}", part.name())).await?;
    }
    browser.ask("quit").await?;
    let status = tokio::time::timeout(patience(), browser.child.wait()).await??;
    ensure!(status.success(), "the browser saw an error: {status}");
    Ok(())
}
