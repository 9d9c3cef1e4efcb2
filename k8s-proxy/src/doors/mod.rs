//! The ways in. Each turns what arrives into an [`Ask`](crate::engine::Ask) for the one engine, and knows nothing
//! of the others.
//!
//! | door | who knocks | module |
//! |---|---|---|
//! | HTTP and HTTPS: `/api/k8s/*` and pass-through | curl, kubectl, agent-core | [`http`] |
//! | WebSocket served: `/ws/k8s`, `/ws/control-plane`, `/ws/runner` | the control plane, through the tunnel | [`served`] |
//! | WebSocket dialled out | nobody has to reach us | [`dial`] |
//! | over either WebSocket: frames, or HTTP/2 turned around | | [`frames`](crate::frames), [`v2`] |
//! | gRPC `Exchange` on the loopback | agent-core | [`exchange`] |

pub mod board;
pub mod body;
pub mod certificate;
pub mod dial;
pub mod exchange;
pub mod gate;
pub mod http;
pub mod served;
mod upgrade;
pub mod v2;
pub mod watchdog;
