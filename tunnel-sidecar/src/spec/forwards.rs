//! One forward of a spec, named or in chisel's spelling: what to ask the server for, what to dial, or why not.

use std::net::IpAddr;

use super::{ECHO, Forward, Goal, Way, milliseconds};
use crate::{
    address::HostPort,
    limits::Limits,
    never::Never,
    remotes::{BadForward, Listen, Shape},
    socks::rules::Rules,
    spelling::{Dials, Spelling},
    targets::{Permits, Places, resolve},
};

/// How the target of a named forward says that its users choose.
const SOCKS: &str = "socks";

/// What every forward is read with.
pub(super) struct Reader<'a> {
    pub(super) places: &'a Places,
    pub(super) never: &'a Never,
    pub(super) permits: Permits,
    pub(super) socks: Rules,
    pub(super) ours: &'a dyn Fn(IpAddr) -> bool,
}

impl Reader<'_> {
    /// A forward by name, port and target; the server listens.
    pub(super) fn named(&self, wanted: &proto::v1::Forward) -> Forward {
        let way = || {
            if wanted.name == ECHO {
                return Err(BadForward::NameTaken(ECHO.to_owned()));
            }
            let listen = Listen::new(&wanted.name, &wanted.remote_host, wanted.remote_port)?;
            let listen = match wanted.protocol.as_str() {
                "" | "tcp" if wanted.target.trim() == SOCKS => listen.with(Shape::Socks),
                "" | "tcp" => listen,
                "udp" => listen.with(Shape::Udp),
                other => return Err(BadForward::Protocol(other.to_owned())),
            };
            Ok(listen)
        };
        let way = way()
            .map_err(|bad| bad.to_string())
            .and_then(|listen| self.way(listen, &wanted.target, &self.permits));
        Forward {
            name: wanted.name.clone(),
            port: wanted.remote_port,
            target: wanted.target.clone(),
            way,
            limits: limits(wanted),
        }
    }

    /// A forward in chisel's spelling. The owner wrote it, so its target needs no second permission.
    pub(super) fn spelled(&self, text: &str) -> Forward {
        let refused = |name: String, why: String| Forward {
            name,
            port: 0,
            target: text.to_owned(),
            way: Err(why),
            limits: Limits::default(),
        };
        let spelling: Spelling = match text.parse() {
            Ok(spelling) => spelling,
            Err(bad) => return refused(text.to_owned(), format!("tunnel.remotes: {text:?} {bad}")),
        };
        let listen = match Listen::spelled(&spelling) {
            Ok(listen) => listen,
            Err(bad) => return refused(spelling.name(), format!("tunnel.remotes: {text:?}: {bad}")),
        };
        let mut permits = self.permits.clone();
        let dials = spelling.dials.to_string();
        if let Dials::Address { host, port } = &spelling.dials {
            permits.allowed.extend(HostPort::new(host, *port));
        }
        let (name, port) = (listen.name.clone(), u32::from(listen.port));
        let way = self.way(listen, &dials, &permits);
        Forward {
            name,
            port,
            target: text.to_owned(),
            way,
            limits: Limits::default(),
        }
    }

    fn way(&self, listen: Listen, target: &str, permits: &Permits) -> Result<Way, String> {
        let goal = match listen.shape {
            Shape::Tcp | Shape::Udp => {
                let found = resolve(target, self.places, permits, self.never, |ip| (self.ours)(ip));
                Goal::Target(found.map_err(|refusal| refusal.to_string())?)
            }
            Shape::Socks if self.socks.is_empty() => {
                return Err(
                    "SOCKS is off: list where its users may go in tunnel.socks_targets, for example *.svc.cluster.local:443"
                        .to_owned(),
                );
            }
            Shape::Socks => Goal::Socks(self.socks.clone()),
            Shape::LocalTcp(_) | Shape::LocalUdp(_) => {
                let Places {
                    kubernetes_api,
                    k8s_proxy,
                    agent_http,
                    ..
                } = self.places;
                let doors = [kubernetes_api, k8s_proxy, agent_http];
                if self.never.is_control(listen.port) || doors.iter().any(|door| door.port() == listen.port) {
                    return Err(BadForward::OwnPort(listen.port).to_string());
                }
                Goal::Server
            }
        };
        Ok(Way { listen, goal })
    }
}

fn limits(wanted: &proto::v1::Forward) -> Limits {
    let some = |count: u64| (count > 0).then_some(count);
    Limits {
        connections: some(wanted.max_connections.into()).and_then(|count| usize::try_from(count).ok()),
        bytes_in: some(wanted.bytes_per_second_in),
        bytes_out: some(wanted.bytes_per_second_out),
        idle: milliseconds(wanted.idle_timeout_ms),
    }
}
