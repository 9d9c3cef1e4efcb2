//! The local gRPC API: who may call what, and the two services behind it.

pub(crate) mod core;
pub(crate) mod siblings;

use runtime::{
    local::{Access, Role},
    secret::TokenFile,
};

/// One token per edge, one list of methods per role.
pub(crate) fn access(operator: TokenFile, tunnel: TokenFile, proxy: TokenFile) -> Access {
    Access::new()
        .allow(
            Role::Tunnel,
            tunnel,
            &[
                "/pipeops.agent.v1.Siblings/WatchTunnelSpec",
                "/pipeops.agent.v1.Siblings/ReportTunnel",
            ],
        )
        .allow(
            Role::Proxy,
            proxy,
            &[
                "/pipeops.agent.v1.Siblings/WatchProxySpec",
                "/pipeops.agent.v1.Siblings/ReportProxy",
            ],
        )
        .allow(
            Role::Operator,
            operator,
            &["/pipeops.agent.v1.Core/*", "/pipeops.agent.v1.Process/*"],
        )
}
