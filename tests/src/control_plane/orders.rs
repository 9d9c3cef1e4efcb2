//! What tests order a running control plane to do.

use std::sync::Arc;

use anyhow::Result;

use super::{
    ControlPlane, KeyChange,
    chisel::ChiselServer,
    config::TunnelWish,
    faults::{Answer, Effect, Route, Times},
    link::{LinkLimits, ProxyLink},
    links, steer,
};

impl ControlPlane {
    /// Refuses requests of agents.
    pub fn refuse(&self, route: Route, answer: Answer, times: Times) {
        self.state.faults.add(route, Effect::Refuse(answer), times);
    }

    /// Takes requests of agents and never answers, until the faults are cleared.
    pub fn hang(&self, route: Route, times: Times) {
        self.state.faults.add(route, Effect::Hang, times);
    }

    /// Takes all faults back.
    pub fn clear_faults(&self) {
        self.state.faults.clear();
    }

    /// Forgets a cluster: 404 for its heartbeats, its links end.
    ///
    /// # Errors
    /// When it is not known.
    pub fn forget(&self, id: &str) -> Result<()> {
        steer::forget(&self.state, id)
    }

    /// Takes the API listener away, with all its connections and all links.
    pub async fn down(&self) {
        self.state.links.cut(None, "the control plane went down");
        self.door.down().await;
    }

    /// Brings the API listener back, on the same port.
    ///
    /// # Errors
    /// When another program has taken the port.
    pub async fn up(&self) -> Result<()> {
        self.door.up().await
    }

    /// Cuts all connections and links; clusters stay, and the listener too.
    pub fn redeploy(&self) {
        steer::redeploy(&self.state);
    }

    /// Cuts the links of a cluster.
    pub fn close_links(&self, id: &str) {
        self.state.links.cut(Some(id), "closed by the control plane");
    }

    /// While on, nothing is read from the open links of a cluster.
    pub fn stall_links(&self, id: &str, on: bool) {
        self.state.links.of(id).iter().for_each(|link| link.stall(on));
    }

    /// Replaces the agents' token.
    pub fn set_token(&self, token: &str) {
        self.state.set_token(token.to_owned());
    }

    /// Says what a cluster's tunnel shall be.
    ///
    /// # Errors
    /// When there is no such cluster.
    pub fn set_tunnel(&self, id: &str, wish: TunnelWish) -> Result<()> {
        steer::set_tunnel(&self.state, id, wish)
    }

    /// Says what a cluster's k8s-proxy shall keep its callers to, as `proxy_limits` of the answers to its heartbeats.
    ///
    /// # Errors
    /// When there is no such cluster.
    pub fn set_limits(&self, id: &str, limits: Option<serde_json::Value>) -> Result<()> {
        steer::set_limits(&self.state, id, limits)
    }

    /// Gives every forward of a cluster another port.
    ///
    /// # Errors
    /// When there is no such cluster or no free port.
    pub fn change_ports(&self, id: &str) -> Result<()> {
        steer::change_ports(&self.state, id)
    }

    /// Says which forwards a cluster has; those that stay keep their ports.
    ///
    /// # Errors
    /// When there is no such cluster or no free port.
    pub fn set_forwards(&self, id: &str, names: &[&str]) -> Result<()> {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        steer::set_forwards(&self.state, id, &names)
    }

    /// `kill -9` for chisel, which stays dead until it is restarted.
    ///
    /// # Errors
    /// When there is no chisel.
    pub async fn chisel_kill(&self) -> Result<()> {
        steer::chisel(&self.state)?.kill().await
    }

    /// Restarts chisel on its port.
    ///
    /// # Errors
    /// When there is no chisel, or it does not start.
    pub async fn chisel_restart(&self, key: KeyChange) -> Result<()> {
        steer::chisel(&self.state)?.restart(key).await
    }

    /// Restarts chisel with another password.
    ///
    /// # Errors
    /// When there is no chisel, or it does not start.
    pub async fn chisel_password(&self) -> Result<()> {
        steer::chisel(&self.state)?.new_password().await
    }

    /// Chisel's process, while it runs.
    pub fn chisel_pid(&self) -> Option<u32> {
        self.state.chisel.as_ref()?.pid()
    }

    /// What chisel has logged.
    pub fn chisel_log(&self) -> String {
        self.state
            .chisel
            .as_ref()
            .map(ChiselServer::log)
            .unwrap_or_default()
    }

    /// `user:pass` for chisel.
    pub fn chisel_credentials(&self) -> Option<String> {
        self.state.chisel.as_ref().map(ChiselServer::credentials)
    }

    /// Dials a proxy's WebSocket.
    ///
    /// # Errors
    /// When the proxy does not answer or refuses.
    pub async fn dial(&self, id: &str, url: &str, bearer: &str) -> Result<Arc<ProxyLink>> {
        links::dial(&self.state.links, id, url, bearer, self.state.config.link).await
    }

    /// Dials a proxy's WebSocket and speaks frames on it, whatever other links speak.
    ///
    /// # Errors
    /// When the proxy does not answer or refuses.
    pub async fn dial_frames(&self, id: &str, url: &str, bearer: &str) -> Result<Arc<ProxyLink>> {
        let limits = LinkLimits {
            http2: false,
            ..self.state.config.link
        };
        links::dial(&self.state.links, id, url, bearer, limits).await
    }

    /// Dials a proxy's WebSocket through a forward, with the agents' token.
    ///
    /// # Errors
    /// When there is no such forward, or the proxy does not answer or refuses.
    pub async fn dial_forward(&self, id: &str, name: &str) -> Result<Arc<ProxyLink>> {
        super::dial_forward(&self.state, id, name).await
    }
}
