//! Invariants of the workspace that no compiler checks.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace")
        .to_owned()
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// `{proto, runtime} ← {agent-core, tunnel-sidecar, k8s-proxy}`, `dashboard ← agent-core`, and nothing else.
#[test]
fn crates_depend_in_one_direction() -> Result<()> {
    let output = std::process::Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()?;
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().expect("packages");
    let ours: BTreeSet<&str> = packages
        .iter()
        .filter_map(|package| package["name"].as_str())
        .collect();
    ensure!(ours.len() == 8, "the workspace has {ours:?}");
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let allowed: &[&str] = match name {
            "pipeops-proto" | "pipeops-runtime" | "dashboard" | "chisel-ssh" => &[],
            "agent-core" => &["pipeops-proto", "pipeops-runtime", "dashboard"],
            "tunnel-sidecar" => &["pipeops-proto", "pipeops-runtime", "chisel-ssh"],
            "k8s-proxy" => &["pipeops-proto", "pipeops-runtime"],
            "pipeops-tests" => continue,
            other => anyhow::bail!("package {other} has no place in the rule"),
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let dependency = dependency["name"].as_str().unwrap_or_default();
            ensure!(
                !ours.contains(dependency) || allowed.contains(&dependency),
                "{name} must not depend on {dependency}"
            );
        }
    }
    Ok(())
}

/// What every process is before its own work knows nothing of that work.
#[test]
fn the_runtime_holds_no_domain_noun() -> Result<()> {
    let files = sources(&root().join("runtime/src"));
    ensure!(files.len() > 10, "found {} files", files.len());
    for file in files {
        for (number, line) in fs::read_to_string(&file)?.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default().to_lowercase();
            for noun in [
                "heartbeat",
                "chisel",
                "kubernetes",
                "kube_",
                "forward",
                "registration",
            ] {
                ensure!(!code.contains(noun), "{}:{}: {noun}", file.display(), number + 1);
            }
        }
    }
    Ok(())
}

/// Each `main.rs` is a table of contents.
#[test]
fn main_is_a_table_of_contents() -> Result<()> {
    for binary in ["agent-core", "tunnel-sidecar", "k8s-proxy"] {
        let lines = fs::read_to_string(root().join(binary).join("src/main.rs"))?
            .lines()
            .count();
        ensure!(lines <= 60, "{binary}/src/main.rs has {lines} lines");
    }
    Ok(())
}

/// Tests bind port 0: a literal port of the loopback is somebody else's sooner or later.
#[test]
fn tests_use_no_literal_ports() -> Result<()> {
    let mut looked = 0;
    for folder in [
        "tests/tests",
        "agent-core/tests",
        "tunnel-sidecar/tests",
        "k8s-proxy/tests",
    ] {
        let dir = root().join(folder);
        if !dir.is_dir() {
            continue;
        }
        for file in sources(&dir) {
            looked += 1;
            for (number, line) in fs::read_to_string(&file)?.lines().enumerate() {
                let bound = line.contains("bind(\"127.0.0.1:") && !line.contains("bind(\"127.0.0.1:0\"");
                ensure!(!bound, "{}:{}: {line}", file.display(), number + 1);
            }
        }
    }
    ensure!(looked > 5, "looked at {looked} files");
    Ok(())
}
