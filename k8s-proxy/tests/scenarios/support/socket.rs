//! The other end of a frame connection.

use std::{collections::VecDeque, net::SocketAddr};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::{SinkExt as _, StreamExt as _};
use http::StatusCode;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Error, Message, client::IntoClientRequest as _},
};

use super::soon;

/// A frame from the proxy.
#[derive(Clone, Debug)]
pub(crate) struct Frame(pub Value);

impl Frame {
    pub(crate) fn id(&self) -> &str {
        self.0["id"].as_str().unwrap_or_default()
    }
    pub(crate) fn status(&self) -> u64 {
        self.0["status_code"].as_u64().unwrap()
    }
    pub(crate) fn error(&self) -> &str {
        self.0["error"].as_str().unwrap()
    }
    pub(crate) fn done(&self) -> bool {
        self.0["done"].as_bool().unwrap()
    }
    pub(crate) fn chunk(&self) -> bool {
        self.0["chunk"].as_bool().unwrap()
    }
    pub(crate) fn stream_id(&self) -> String {
        self.0["stream_id"].as_str().unwrap().to_owned()
    }
    pub(crate) fn bytes(&self) -> Vec<u8> {
        STANDARD.decode(self.0["body"].as_str().unwrap()).unwrap()
    }
    pub(crate) fn body(&self) -> String {
        String::from_utf8(self.bytes()).unwrap()
    }
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes()).unwrap()
    }
    /// resourceVersion of the one event in it.
    pub(crate) fn version(&self) -> String {
        self.json()["object"]["metadata"]["resourceVersion"]
            .as_str()
            .unwrap()
            .to_owned()
    }
}

pub(crate) struct Socket {
    inner: WebSocketStream<TcpStream>,
    /// Frames of other calls that came while one was waited for.
    kept: VecDeque<Frame>,
}

impl Socket {
    pub(crate) fn over(inner: WebSocketStream<TcpStream>) -> Self {
        Self {
            inner,
            kept: VecDeque::new(),
        }
    }

    pub(crate) async fn connect(address: SocketAddr, path: &str, token: &str) -> Self {
        Self::try_connect(address, path, token).await.unwrap()
    }

    pub(crate) async fn try_connect(
        address: SocketAddr,
        path: &str,
        token: &str,
    ) -> Result<Self, StatusCode> {
        let mut request = format!("ws://{address}{path}").into_client_request().unwrap();
        request
            .headers_mut()
            .insert("authorization", format!("Bearer {token}").parse().unwrap());
        let tcp = TcpStream::connect(address).await.unwrap();
        match client_async(request, tcp).await {
            Ok((inner, _)) => Ok(Self::over(inner)),
            Err(Error::Http(response)) => Err(response.status()),
            Err(error) => panic!("{error}"),
        }
    }

    pub(crate) async fn send(&mut self, frame: Value) {
        self.send_text(&frame.to_string()).await;
    }

    pub(crate) async fn send_text(&mut self, text: &str) {
        soon("a frame is taken", self.inner.send(Message::text(text)))
            .await
            .unwrap();
    }

    pub(crate) async fn get(&mut self, id: &str, path: &str) {
        self.send(json!({"id": id, "method": "GET", "path": path})).await;
    }

    pub(crate) async fn watch(&mut self, id: &str, query: Value) {
        let mut query = query;
        query["watch"] = json!(["true"]);
        self.send(json!({"id": id, "method": "GET", "path": "/api/v1/pods", "query": query, "stream": true}))
            .await;
    }

    /// The next frame of any call.
    pub(crate) async fn next(&mut self) -> Frame {
        if let Some(frame) = self.kept.pop_front() {
            return frame;
        }
        self.read().await
    }

    /// The next frame of one call.
    pub(crate) async fn next_of(&mut self, id: &str) -> Frame {
        if let Some(at) = self.kept.iter().position(|frame| frame.id() == id) {
            return self.kept.remove(at).unwrap();
        }
        loop {
            let frame = self.read().await;
            if frame.id() == id {
                return frame;
            }
            self.kept.push_back(frame);
        }
    }

    async fn read(&mut self) -> Frame {
        match self.message().await {
            Some(Message::Text(text)) => Frame(serde_json::from_str(&text).unwrap()),
            other => panic!("{other:?}"),
        }
    }

    /// The next message that is no ping; `None` at the end.
    pub(crate) async fn message(&mut self) -> Option<Message> {
        loop {
            match soon("a message", self.inner.next()).await {
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(message)) => return Some(message),
                Some(Err(_)) | None => return None,
            }
        }
    }

    /// The close code, everything before it left out.
    pub(crate) async fn close_code(&mut self) -> Option<u16> {
        loop {
            if let Message::Close(frame) = self.message().await? {
                return frame.map(|frame| frame.code.into());
            }
        }
    }

    /// Takes messages without answering, so that pongs are flushed only when somebody calls it.
    pub(crate) fn into_inner(self) -> WebSocketStream<TcpStream> {
        self.inner
    }
}
