//! Global requests: ours, whose answers come in the order of asking, and the server's.

use crate::{
    error::ProtocolError,
    msg,
    wire::{Put, Reader},
};
use std::collections::VecDeque;

const PING: &[u8] = b"ping";
const PONG: &[u8] = b"pong";
/// Requests of ours that wait for an answer. The keepalive needs one, the config request another.
const MAX_WAITING: usize = 16;

/// A request of ours that waits for its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// The list of remotes.
    Config,
    /// A ping of the user of the session.
    Ping(u64),
    /// A ping of the window sizing.
    Probe,
}

#[derive(Debug, Default)]
pub(crate) struct Requests {
    waiting: VecDeque<Asked>,
}

impl Requests {
    /// The request message for `asked`; a config request carries its JSON bare, without a length.
    pub(crate) fn ask(&mut self, asked: Asked, config: &[u8]) -> Result<Vec<u8>, ProtocolError> {
        if self.waiting.len() >= MAX_WAITING {
            return Err(ProtocolError::Unanswered);
        }
        self.waiting.push_back(asked);
        let mut message = vec![msg::GLOBAL_REQUEST];
        message.put_string(if asked == Asked::Config { b"config" } else { PING });
        message.put_bool(true);
        message.put_raw(config);
        Ok(message)
    }

    /// An answer came: which request it belongs to.
    pub(crate) fn answered(&mut self) -> Result<Asked, ProtocolError> {
        self.waiting.pop_front().ok_or(ProtocolError::UnaskedReply)
    }

    /// The answer to a request of the server, if it wants one. An unwanted answer would lock up its multiplexer.
    pub(crate) fn answer(payload: &[u8]) -> Result<Option<Vec<u8>>, ProtocolError> {
        let mut reader = Reader::new(payload.get(1..).unwrap_or_default());
        let name = reader.string()?;
        if !reader.bool()? {
            return Ok(None);
        }
        if name == PING {
            let mut message = vec![msg::REQUEST_SUCCESS];
            message.put_raw(PONG);
            return Ok(Some(message));
        }
        Ok(Some(vec![msg::REQUEST_FAILURE]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn answers_belong_to_requests_in_order() {
        let mut requests = Requests::default();
        assert_eq!(requests.answered(), Err(ProtocolError::UnaskedReply));
        assert_eq!(
            requests.ask(Asked::Config, b"{}").unwrap(),
            b"\x50\0\0\0\x06config\x01{}"
        );
        assert_eq!(
            requests.ask(Asked::Ping(7), b"").unwrap(),
            b"\x50\0\0\0\x04ping\x01"
        );
        requests.ask(Asked::Probe, b"").unwrap();
        for asked in [Asked::Config, Asked::Ping(7), Asked::Probe] {
            assert_eq!(requests.answered(), Ok(asked));
        }
        assert_eq!(requests.answered(), Err(ProtocolError::UnaskedReply));
    }

    #[test]
    fn waiting_requests_are_bounded() {
        let mut requests = Requests::default();
        for n in 0..16 {
            requests.ask(Asked::Ping(n), b"").unwrap();
        }
        assert_eq!(requests.ask(Asked::Ping(16), b""), Err(ProtocolError::Unanswered));
    }

    #[test]
    fn server_requests() {
        assert_eq!(
            Requests::answer(b"\x50\0\0\0\x04ping\x01"),
            Ok(Some(b"\x51pong".to_vec()))
        );
        assert_eq!(Requests::answer(b"\x50\0\0\0\x04ping\x00"), Ok(None));
        assert_eq!(
            Requests::answer(b"\x50\0\0\0\x05other\x01data"),
            Ok(Some(vec![82]))
        );
        assert_eq!(Requests::answer(b"\x50\0\0\0\x05other\x00data"), Ok(None));
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(payload: Vec<u8>) {
            let _ = Requests::answer(&payload);
        }
    }
}
