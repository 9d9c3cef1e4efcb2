//! What tests and people change while it runs.

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{chisel::ChiselServer, config::TunnelWish, state::State};

/// Forgets a cluster: its heartbeats are answered with 404, its links end.
pub(super) fn forget(state: &State, id: &str) -> Result<()> {
    if !state.book().forget(id) {
        bail!("no cluster {id} is known");
    }
    state.links.cut(Some(id), "the cluster is forgotten");
    Ok(())
}

/// Cuts every connection and link; clusters stay.
pub(super) fn redeploy(state: &State) {
    state.links.cut(None, "the control plane was redeployed");
    if let Ok(door) = state.door() {
        door.cut();
    }
}

/// Says what a cluster's tunnel shall be.
pub(super) fn set_tunnel(state: &State, id: &str, wish: TunnelWish) -> Result<()> {
    state
        .book()
        .cluster_mut(id)
        .with_context(|| format!("no cluster {id}"))?
        .wish = wish;
    Ok(())
}

/// Says what a cluster's k8s-proxy shall keep its callers to; the answers to its heartbeats carry it.
pub(super) fn set_limits(state: &State, id: &str, limits: Option<Value>) -> Result<()> {
    state
        .book()
        .cluster_mut(id)
        .with_context(|| format!("no cluster {id}"))?
        .limits = limits;
    Ok(())
}

/// Gives every forward of a cluster another port.
pub(super) fn change_ports(state: &State, id: &str) -> Result<()> {
    let mut book = state.book();
    let cluster = book.cluster(id).with_context(|| format!("no cluster {id}"))?;
    let names: Vec<String> = cluster.forwards.iter().map(|(name, _)| name.clone()).collect();
    state.allot(&mut book, id, &names, true)
}

/// Says which forwards a cluster has; those that stay keep their ports.
pub(super) fn set_forwards(state: &State, id: &str, names: &[String]) -> Result<()> {
    state.allot(&mut state.book(), id, names, false)
}

/// The chisel server, if there is one.
pub(super) fn chisel(state: &State) -> Result<&ChiselServer> {
    state
        .chisel
        .as_ref()
        .context("this control plane has no chisel server")
}
