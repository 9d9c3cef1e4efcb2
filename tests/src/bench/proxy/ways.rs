//! The doors that are compared, and one way to call through each of them.

use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use bytes::Bytes;

use crate::{
    control_plane::{Call, ProxyLink, ResponseStream},
    wire::{Answer, Connection, Target},
};

/// Streams on one HTTP/2 connection of ours; the door takes 250.
const STREAMS: usize = 200;

/// Through what a call goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Door {
    /// Nothing.
    Direct,
    /// `kubectl proxy`.
    Kubectl,
    /// Our HTTP door.
    Http,
    /// A WebSocket with HTTP/2 turned around.
    V2,
    /// A WebSocket with JSON frames.
    V1,
}

impl Door {
    /// All that are compared.
    pub(super) const ALL: [Self; 5] = [Self::Direct, Self::Kubectl, Self::Http, Self::V2, Self::V1];
    /// Ours.
    pub(super) const OURS: [Self; 3] = [Self::Http, Self::V2, Self::V1];

    /// Its name in figures.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Kubectl => "kubectl proxy",
            Self::Http => "http",
            Self::V2 => "v2",
            Self::V1 => "v1",
        }
    }
}

/// How to get there.
#[derive(Clone)]
pub(super) enum Way {
    /// HTTP.
    Target(Target),
    /// One WebSocket that all share.
    Link(Arc<ProxyLink>),
}

impl Way {
    /// For one call after the other.
    pub(super) async fn session(&self) -> Result<Session> {
        Ok(match self {
            Self::Target(target) => Session::Http(target.http1().await?),
            Self::Link(link) => Session::Link(Arc::clone(link)),
        })
    }

    /// For one stream; over HTTP it has a connection of its own.
    pub(super) async fn stream(&self, path: &str) -> Result<Reading> {
        self.session().await?.open(path).await
    }

    /// For many streams; over HTTP they share connections as far as `http2` allows.
    pub(super) async fn streams(&self, count: usize, path: &str, http2: bool) -> Result<Vec<Reading>> {
        let mut streams = Vec::with_capacity(count);
        let mut shared: Option<Connection> = None;
        while streams.len() < count {
            let reading = match self {
                Self::Target(target) if http2 => {
                    if streams.len() % STREAMS == 0 {
                        shared = None;
                    }
                    let connection = match &shared {
                        Some(connection) => connection.share()?,
                        None => {
                            let connection = target.http2().await?;
                            shared = Some(connection.share()?);
                            connection
                        }
                    };
                    Session::Http(connection).open(path).await?
                }
                _ => self.stream(path).await?,
            };
            streams.push(reading);
        }
        Ok(streams)
    }
}

/// One caller.
pub(super) enum Session {
    Http(Connection),
    Link(Arc<ProxyLink>),
}

impl Session {
    /// A whole answer; its bytes.
    pub(super) async fn get(&mut self, path: &str) -> Result<usize> {
        match self {
            Self::Http(connection) => {
                let mut answer = connection.get(path, &[]).await?;
                ensure!(answer.status() == 200, "{path}: {}", answer.status());
                let mut bytes = 0;
                while let Some(piece) = answer.piece().await? {
                    bytes += piece.len();
                }
                Ok(bytes)
            }
            Self::Link(link) => {
                let response = link.request(&call(path)).await?;
                ensure!(response.status == 200, "{path}: {response:?}");
                Ok(response.body.len())
            }
        }
    }

    /// An answer that goes on.
    pub(super) async fn open(mut self, path: &str) -> Result<Reading> {
        match &mut self {
            Self::Http(connection) => {
                let answer = connection.get(path, &[]).await?;
                ensure!(answer.status() == 200, "{path}: {}", answer.status());
                Ok(Reading::Http(Box::new(answer)))
            }
            Self::Link(link) => {
                let stream = link.stream(&call(path)).await?;
                if stream.status() != 200 {
                    bail!("{path}: {}", stream.status());
                }
                Ok(Reading::Link(stream))
            }
        }
    }
}

/// An answer that is being read; dropping it gives it up.
pub(super) enum Reading {
    /// It holds its connection open.
    Http(Box<Answer>),
    Link(ResponseStream),
}

impl Reading {
    /// The next piece; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>> {
        match self {
            Self::Http(answer) => answer.piece().await,
            Self::Link(stream) => Ok(stream.next().await.transpose()?),
        }
    }

    /// Bytes up to the end.
    pub(super) async fn count(mut self) -> Result<usize> {
        let mut bytes = 0;
        while let Some(piece) = self.next().await? {
            bytes += piece.len();
        }
        Ok(bytes)
    }
}

fn call(path: &str) -> Call {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    url::form_urlencoded::parse(query.as_bytes())
        .fold(Call::get(path), |call, (name, value)| call.query(&name, &value))
}
