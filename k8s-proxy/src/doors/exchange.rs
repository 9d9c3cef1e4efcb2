//! One Kubernetes call over local gRPC: how agent-core hands on what arrives on a socket of its own.
//!
//! The calls carry their own credential; ours never goes with them.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::Stream;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, header};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt as _, StreamBody};
use proto::v1::{ExchangeHeader, ExchangeRequest, ExchangeResponse, gateway_server::Gateway};
use tokio_stream::StreamExt as _;
use tonic::{Request, Status, Streaming};

use crate::{
    engine::{Ask, Engine, EngineBody},
    identity::{Caller, Mode},
    path,
    streams::Cancel,
    upstream::{BoxError, RequestBody},
};

/// Serves `Exchange`.
#[derive(Clone, Debug)]
pub struct GatewayService {
    engine: Engine,
    caller: Arc<Caller>,
}

impl GatewayService {
    /// Over the engine.
    pub fn new(engine: Engine) -> Self {
        Self {
            engine,
            caller: Arc::new(Caller::new("gateway", Vec::new(), Mode::Caller)),
        }
    }
}

#[tonic::async_trait]
impl Gateway for GatewayService {
    type ExchangeStream = Answer;

    async fn exchange(
        &self,
        request: Request<Streaming<ExchangeRequest>>,
    ) -> Result<tonic::Response<Answer>, Status> {
        let mut messages = request.into_inner();
        let first = messages
            .message()
            .await?
            .ok_or_else(|| Status::invalid_argument("the first message is missing"))?;
        let head = first
            .head
            .ok_or_else(|| Status::invalid_argument("the first message needs a head"))?;
        let method: Method = head
            .method
            .parse()
            .map_err(|_| Status::invalid_argument("the method is none"))?;
        let (path, query) = match head.path_and_query.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (head.path_and_query.as_str(), None),
        };
        let uri = path::join(path, query).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let mut headers = read_headers(&head.headers)?;
        let authorization = headers.remove(header::AUTHORIZATION);
        let body = if first.end {
            RequestBody::Full(first.body)
        } else {
            stream_body(first.body, messages)
        };
        let ask = Ask {
            door: "gateway".into(),
            caller: Arc::clone(&self.caller),
            request_id: String::new(),
            method,
            uri,
            headers,
            authorization,
            body,
            rewatch_clean_end: false,
            cancel: Cancel::default(),
        };
        Ok(tonic::Response::new(Answer::new(self.engine.call(ask).await)))
    }
}

fn read_headers(pairs: &[ExchangeHeader]) -> Result<HeaderMap, Status> {
    let mut headers = HeaderMap::new();
    for ExchangeHeader { name, value } in pairs {
        let wrong = || Status::invalid_argument(format!("header {name:?} is not allowed"));
        let parsed: HeaderName = name.parse().map_err(|_| wrong())?;
        headers.append(parsed, HeaderValue::from_str(value).map_err(|_| wrong())?);
    }
    Ok(headers)
}

fn stream_body(first: Bytes, messages: Streaming<ExchangeRequest>) -> RequestBody {
    let first = tokio_stream::once(Ok(Frame::data(first)));
    // The message that says `end` is the last one, even if its sender forgets to close the stream.
    let mut over = false;
    let rest = messages.take_while(move |message| {
        let before = over;
        over |= message.as_ref().map_or(true, |message| message.end);
        !before
    });
    let rest = rest.map(|message| {
        message
            .map(|message| Frame::data(message.body))
            .map_err(BoxError::from)
    });
    RequestBody::Stream(StreamBody::new(first.chain(rest)).boxed_unsync())
}

/// The answer as messages: first the head, then the body piece by piece. Dropping it cancels the call.
#[derive(Debug)]
pub struct Answer {
    head: Option<ExchangeResponse>,
    body: EngineBody,
}

impl Answer {
    fn new(response: Response<EngineBody>) -> Self {
        let (parts, body) = response.into_parts();
        let header = |(name, value): (&HeaderName, &HeaderValue)| ExchangeHeader {
            name: name.to_string(),
            value: String::from_utf8_lossy(value.as_bytes()).into_owned(),
        };
        let head = ExchangeResponse {
            status: parts.status.as_u16().into(),
            headers: parts.headers.iter().map(header).collect(),
            body: Bytes::new(),
        };
        Self {
            head: Some(head),
            body,
        }
    }
}

impl Stream for Answer {
    type Item = Result<ExchangeResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if let Some(head) = this.head.take() {
            return Poll::Ready(Some(Ok(head)));
        }
        loop {
            let frame = match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                None => return Poll::Ready(None),
                Some(Err(end)) => return Poll::Ready(Some(Err(Status::unavailable(end.to_string())))),
                Some(Ok(frame)) => frame,
            };
            if let Ok(data) = frame.into_data() {
                let piece = ExchangeResponse {
                    body: data,
                    ..ExchangeResponse::default()
                };
                return Poll::Ready(Some(Ok(piece)));
            }
        }
    }
}
