//! Moves messages between the socket and the queues of a link, and notices when it is dead.

use std::sync::{Arc, PoisonError, atomic::Ordering};

use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval_at, timeout},
};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

use super::{LinkError, LinkLimits, Shared};
use crate::control_plane::frames::{self, Frame, Incoming};

/// Serves the socket to its end, then ends every open call.
pub(super) async fn run<S>(
    socket: WebSocketStream<S>,
    queue: mpsc::Receiver<Message>,
    shared: Arc<Shared>,
    limits: LinkLimits,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sink, stream) = socket.split();
    let reason = tokio::select! {
        reason = read(stream, &shared, &limits) => reason,
        reason = write(sink, queue, &limits) => reason,
        () = shared.close.cancelled() => "cut by the control plane".to_owned(),
    };
    shared.end(&reason);
    shared.close.cancel();
    let LinkError::Lost(reason) = shared.lost() else {
        return;
    };
    tracing::debug!(%reason, "link ended");
    shared.table.close(&LinkError::Lost(reason));
    shared.taps.lock().unwrap_or_else(PoisonError::into_inner).clear();
    shared.ended.cancel();
}

async fn read<S>(
    mut stream: SplitStream<WebSocketStream<S>>,
    shared: &Arc<Shared>,
    limits: &LinkLimits,
) -> String
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut stalled = shared.stall.subscribe();
    loop {
        if stalled.wait_for(|on| !on).await.is_err() {
            return "stopped".to_owned();
        }
        let message = tokio::select! {
            message = timeout(limits.silence, stream.next()) => message,
            _ = stalled.changed() => continue,
        };
        match message {
            Err(_) => return format!("nothing was heard for {:?}", limits.silence),
            Ok(None) => return "the proxy closed the connection".to_owned(),
            Ok(Some(Err(error))) => return error.to_string(),
            Ok(Some(Ok(Message::Close(frame)))) => {
                let frame =
                    frame.map_or_else(String::new, |frame| format!(" {}: {}", frame.code, frame.reason));
                return format!("the proxy closed the link{frame}");
            }
            Ok(Some(Ok(Message::Text(text)))) => take(&text, shared),
            Ok(Some(Ok(Message::Binary(_)))) => {
                shared.bad_in.fetch_add(1, Ordering::Relaxed);
            }
            Ok(Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)))) => {}
        }
    }
}

fn take(text: &str, shared: &Arc<Shared>) {
    shared.frames_in.fetch_add(1, Ordering::Relaxed);
    shared
        .taps
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .retain(|tap| match tap.queue.try_send(text.to_owned()) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Closed(_)) => false,
            Err(mpsc::error::TrySendError::Full(_)) => {
                tap.lost.fetch_add(1, Ordering::Relaxed);
                true
            }
        });
    match frames::decode(text) {
        Ok(Incoming::Frame(answer)) => {
            if let Some(ids) = shared.table.dispatch(*answer) {
                shared.cancel_later(ids);
            }
        }
        Ok(Incoming::Pong) => shared.pong.notify_waiters(),
        Ok(Incoming::Ping) => {
            let _ = shared.out.try_send(Message::text(r#"{"type":"pong"}"#));
        }
        Err(error) => {
            tracing::warn!(%error, "bad frame from the proxy");
            shared.bad_in.fetch_add(1, Ordering::Relaxed);
            if let frames::FrameError::Base64 { id } | frames::FrameError::Encoding { id, .. } = &error {
                // A piece that cannot be read is a hole in the stream, so the stream ends here.
                let (id, error) = (id.clone(), error.to_string());
                shared.table.dispatch(Frame {
                    id,
                    error,
                    status: 502,
                    done: true,
                    ..Frame::default()
                });
            }
        }
    }
}

async fn write<S>(
    mut sink: SplitSink<WebSocketStream<S>, Message>,
    mut queue: mpsc::Receiver<Message>,
    limits: &LinkLimits,
) -> String
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut pings = interval_at(Instant::now() + limits.ping_interval, limits.ping_interval);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let message = tokio::select! {
            message = queue.recv() => message,
            _ = pings.tick() => Some(Message::Ping(Default::default())),
        };
        let Some(message) = message else {
            return "stopped".to_owned();
        };
        let closing = matches!(message, Message::Close(_));
        match timeout(limits.silence, sink.send(message)).await {
            Ok(Ok(())) if closing => return "closed by the control plane".to_owned(),
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error.to_string(),
            Err(_) => return format!("the proxy took no byte for {:?}", limits.silence),
        }
    }
}
