//! SOCKS5 on a channel (`R:socks`): the user behind the server says where to, the owner's rules say whether.

pub mod rules;
pub mod wire;

use std::{io, time::Duration};

use chisel_ssh::Channel;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use self::{
    rules::{Rules, Verdict},
    wire::{BadClient, LONGEST, NO_METHOD, Reply, USE_NO_AUTH, greeting, request},
};
use crate::{
    address::HostPort,
    never::Never,
    reach::{Unreached, reach_where},
};

/// How long a user may take to say where to; programs do it at once.
const PATIENCE: Duration = Duration::from_secs(20);
/// The largest greeting and the largest request that may wait together.
const MOST: usize = 2 + 255 + LONGEST;

/// Why a user is not connected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotServed {
    /// The user went away, or was too slow.
    #[error("said no whole request")]
    Incomplete,
    /// The user speaks something else.
    #[error(transparent)]
    Client(#[from] BadClient),
    /// The owner's rules.
    #[error("asks for {0}, which is not in tunnel.socks_targets")]
    NotAllowed(HostPort),
    /// The target.
    #[error(transparent)]
    Unreached(#[from] Unreached),
}

/// What a user asked for.
pub(crate) struct Asked {
    /// Where to.
    pub(crate) target: HostPort,
    /// What was sent behind the request already.
    pub(crate) early: Vec<u8>,
}

/// Hears a user out, up to the request. `data` is what was read of it already.
pub(crate) async fn hear(channel: &mut Channel, mut data: Vec<u8>) -> Result<Asked, NotServed> {
    let heard = async {
        let used = read_until(channel, &mut data, greeting).await;
        if let Err(NotServed::Client(BadClient::Method)) = &used {
            channel.write_all(&NO_METHOD).await.ok();
        }
        data.drain(..used?);
        channel
            .write_all(&USE_NO_AUTH)
            .await
            .map_err(|_| NotServed::Incomplete)?;
        let mut target = None;
        let used = read_until(channel, &mut data, |data| {
            let found = request(data)?;
            Ok(found.map(|(asked, used)| {
                target = Some(asked);
                used
            }))
        })
        .await;
        if let Err(NotServed::Client(bad)) = &used
            && let Some(reply) = bad.reply()
        {
            channel.write_all(&reply.bytes()).await.ok();
        }
        data.drain(..used?);
        let target = target.ok_or(NotServed::Incomplete)?;
        Ok(Asked { target, early: data })
    };
    timeout(PATIENCE, heard)
        .await
        .unwrap_or(Err(NotServed::Incomplete))
}

async fn read_until(
    channel: &mut Channel,
    data: &mut Vec<u8>,
    mut whole: impl FnMut(&[u8]) -> Result<Option<usize>, BadClient>,
) -> Result<usize, NotServed> {
    loop {
        if let Some(used) = whole(data)? {
            return Ok(used);
        }
        let mut piece = [0; MOST];
        let size = channel.read(&mut piece).await.unwrap_or_default();
        if size == 0 || data.len() > MOST {
            return Err(NotServed::Incomplete);
        }
        data.extend_from_slice(piece.get(..size).unwrap_or_default());
    }
}

/// Connects to what was asked for, and tells the user what became of it.
pub(crate) async fn serve(
    channel: &mut Channel,
    asked: &Asked,
    rules: &Rules,
    never: &Never,
    patience: Duration,
) -> Result<TcpStream, NotServed> {
    let connected = connect(&asked.target, rules, never, patience).await;
    let reply = match &connected {
        Ok(_) => Reply::Succeeded,
        Err(why) => reply(why),
    };
    let told = channel.write_all(&reply.bytes()).await;
    let mut tcp = connected?;
    told.map_err(|_| NotServed::Incomplete)?;
    if !asked.early.is_empty() {
        tcp.write_all(&asked.early)
            .await
            .map_err(|source| Unreached::Connect {
                target: asked.target.clone(),
                source,
            })?;
    }
    Ok(tcp)
}

async fn connect(
    target: &HostPort,
    rules: &Rules,
    never: &Never,
    patience: Duration,
) -> Result<TcpStream, NotServed> {
    match rules.judge(target) {
        Verdict::Allowed => Ok(reach_where(target, never, patience, |_| true).await?),
        Verdict::ByAddress => {
            let allowed = |ip| rules.allows_address(ip, target.port());
            Ok(reach_where(target, never, patience, allowed).await?)
        }
        Verdict::Denied => Err(NotServed::NotAllowed(target.clone())),
    }
}

fn reply(why: &NotServed) -> Reply {
    match why {
        NotServed::NotAllowed(_) => Reply::NotAllowed,
        NotServed::Unreached(Unreached::Forbidden(_) | Unreached::NotAllowed(..)) => Reply::NotAllowed,
        NotServed::Unreached(Unreached::Resolve { .. } | Unreached::Timeout { .. }) => Reply::HostUnreachable,
        NotServed::Unreached(Unreached::Connect { source, .. })
            if source.kind() == io::ErrorKind::ConnectionRefused =>
        {
            Reply::Refused
        }
        NotServed::Unreached(Unreached::Connect { .. }) => Reply::HostUnreachable,
        NotServed::Unreached(Unreached::Exhausted { .. }) | NotServed::Incomplete | NotServed::Client(_) => {
            Reply::Failed
        }
    }
}
