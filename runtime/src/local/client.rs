//! The calling side: a lazy channel that shows its token at each call.

use std::time::Duration;

use secrecy::ExposeSecret as _;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

use super::{VERSION_KEY, WAITING};
use crate::{build::BuildInfo, secret::TokenFile, trace};

/// The peer is in the same pod: what takes longer is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A sibling whose event loop stands still is found within the sum of the two.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// A channel to a process of the same pod; works with every generated client.
pub type LocalChannel = InterceptedService<Channel, Credentials>;

/// Why a channel cannot be made. Being unreachable is not among them: channels connect lazily.
#[derive(Debug, thiserror::Error)]
#[error("{address:?} is not an http:// address of a process in this pod")]
pub struct LocalError {
    address: String,
    source: tonic::transport::Error,
}

/// Adds token, version and trace context to each call.
#[derive(Clone, Debug)]
pub struct Credentials {
    token: TokenFile,
    version: MetadataValue<Ascii>,
}

/// A channel to `address` (`http://127.0.0.1:7070`) that connects at its first call and again after each loss.
///
/// # Errors
/// When the address is not one.
pub fn channel(address: &str, token: TokenFile, build: BuildInfo) -> Result<LocalChannel, LocalError> {
    let endpoint = Endpoint::from_shared(address.to_owned())
        .map_err(|source| LocalError {
            address: address.to_owned(),
            source,
        })?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    let version = MetadataValue::from_static(build.version);
    Ok(InterceptedService::new(
        endpoint.connect_lazy(),
        Credentials { token, version },
    ))
}

impl Interceptor for Credentials {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let token = self
            .token
            .read()
            .map_err(|error| {
                Status::unavailable(format!("cannot read {}: {error}", self.token.path().display()))
            })?
            .ok_or_else(|| Status::unavailable(WAITING))?;
        let mut value = MetadataValue::try_from(format!("Bearer {}", token.expose_secret()))
            .map_err(|_| Status::unavailable("the token holds characters that no header may carry"))?;
        value.set_sensitive(true);
        let metadata = request.metadata_mut();
        metadata.insert("authorization", value);
        metadata.insert(VERSION_KEY, self.version.clone());
        trace::inject(&tracing::Span::current(), metadata.as_mut());
        Ok(request)
    }
}
