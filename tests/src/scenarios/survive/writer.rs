//! Changes that are surely made: each has its resourceVersion, also when the answer to it was lost.

use anyhow::{Context as _, Result};
use http::Method;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::Instant;

use super::{NAMESPACE, PATH, verdict::Change};
use crate::{kubernetes::Simulation, lab::Cluster, wire::Target};

/// Between two changes.
const PACE: Duration = Duration::from_millis(30);
/// Between two attempts at one.
const PAUSE: Duration = Duration::from_millis(100);
/// Objects that are changed in turn.
const OBJECTS: u64 = 3;

/// Who makes the changes, past every proxy.
pub struct Writer<'a> {
    way: Way<'a>,
    prefix: String,
    count: u64,
    /// What was done so far.
    pub changes: Vec<Change>,
}

enum Way<'a> {
    Simulated(&'a Simulation),
    Real(Box<Target>),
}

impl<'a> Writer<'a> {
    /// Changes objects whose names begin with `prefix`.
    ///
    /// # Errors
    /// When the kubeconfig of a real cluster is not readable.
    pub fn new(cluster: &'a Cluster, prefix: &str) -> Result<Self> {
        let way = match cluster {
            Cluster::Simulated(simulation) => Way::Simulated(simulation),
            Cluster::Real(kubeconfig) => Way::Real(Box::new(Target::kubeconfig(kubeconfig)?)),
        };
        Ok(Self {
            way,
            prefix: prefix.to_owned(),
            count: 0,
            changes: Vec::new(),
        })
    }

    /// Makes changes for ever.
    pub async fn run(&mut self) -> Result<std::convert::Infallible> {
        loop {
            self.change().await?;
            tokio::time::sleep(PACE).await;
        }
    }

    /// Makes one change.
    ///
    /// # Errors
    /// When the simulation refuses it.
    pub async fn change(&mut self) -> Result<()> {
        let (number, name) = (self.count, format!("{}-{}", self.prefix, self.count % OBJECTS));
        self.count += 1;
        let data = json!({"number": number.to_string()});
        let object = match &self.way {
            Way::Simulated(simulation) => {
                let made = if number < OBJECTS {
                    let object = json!({"metadata": {"name": name}, "data": data});
                    simulation.create("configmaps", NAMESPACE, object)
                } else {
                    simulation.merge("configmaps", NAMESPACE, &name, &json!({"data": data}))
                };
                made.map_err(|status| anyhow::anyhow!("{name}: {status:?}"))?
            }
            Way::Real(target) => loop {
                if let Ok(object) = real(target, &name, &data).await {
                    break object;
                }
                tokio::time::sleep(PAUSE).await;
            },
        };
        let version = object["metadata"]["resourceVersion"]
            .as_str()
            .context("a resourceVersion")?;
        self.changes.push(Change {
            name,
            version: version.parse()?,
            at: Instant::now(),
        });
        Ok(())
    }
}

/// Makes a change once, whatever became of earlier attempts.
async fn real(target: &Target, name: &str, data: &Value) -> Result<Value> {
    let path = format!("{PATH}/{name}");
    let answer = target.get(&path, &[]).await?;
    let send = async |method, path: &str, media, body: Value| {
        let headers = [("content-type", media)];
        let mut connection = target.http1().await?;
        let body = body.to_string().into_bytes().into();
        connection.send(method, path, &headers, body).await?.good().await
    };
    let body = if answer.status() == 404 {
        let object =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data});
        send(Method::POST, PATH, "application/json", object).await?
    } else {
        let now = answer.good().await?;
        let object: Value = serde_json::from_slice(&now)?;
        if object["data"] == *data {
            return Ok(object);
        }
        send(
            Method::PATCH,
            &path,
            "application/merge-patch+json",
            json!({"data": data}),
        )
        .await?
    };
    Ok(serde_json::from_slice(&body)?)
}
