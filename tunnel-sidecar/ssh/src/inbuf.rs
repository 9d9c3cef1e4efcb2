//! The receive buffer: raw bytes come in at the end, the WebSocket frames around them are taken off in place, and the SSH stream is read at the front.
//!
//! ```text
//!   [ consumed | plain: SSH bytes, contiguous | gap of old headers | raw: frames not looked at | room ]
//! ```
//! Where a payload follows an unfinished SSH packet, the shorter of the two moves over the frame header between them; otherwise nothing is copied.

use crate::{
    error::ProtocolError,
    websocket::{Header, MAX_CONTROL, Opcode},
};
use std::ops::Range;

/// Bytes read from the connection at once; more gains nothing measurable. Untouched, it costs no memory.
const INITIAL: usize = 128 * 1024;
/// A read gets at least this much room.
const LEAST_ROOM: usize = 16 * 1024;

/// A control frame of the peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Control {
    Ping(Vec<u8>),
    Close { code: Option<u16> },
}

#[derive(Debug)]
pub(crate) struct InBuf {
    buf: Vec<u8>,
    plain: Range<usize>,
    raw: Range<usize>,
    /// Bytes of the current data frame that are still to come.
    frame_left: u64,
    /// Inside a fragmented message.
    fragmented: bool,
}

impl InBuf {
    pub(crate) fn new() -> Self {
        Self {
            buf: vec![0; INITIAL],
            plain: 0..0,
            raw: 0..0,
            frame_left: 0,
            fragmented: false,
        }
    }

    /// Where the next read may put its bytes. Never empty.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        if self.plain.is_empty() && self.raw.is_empty() {
            self.plain = 0..0;
            self.raw = 0..0;
        } else if self.buf.len() - self.raw.end < LEAST_ROOM {
            self.compact();
            // Grows only while one SSH packet is larger than the buffer; packets have a limit.
            if self.buf.len() - self.raw.end < LEAST_ROOM {
                self.buf.resize(self.buf.len() * 2, 0);
            }
        }
        self.buf.get_mut(self.raw.end..).unwrap_or_default()
    }

    fn compact(&mut self) {
        let plain = self.plain.len();
        let raw = self.raw.len();
        self.buf.copy_within(self.plain.clone(), 0);
        self.buf.copy_within(self.raw.clone(), plain);
        self.plain = 0..plain;
        self.raw = plain..plain + raw;
    }

    /// `n` bytes were put into the room.
    pub(crate) fn filled(&mut self, n: usize) {
        self.raw.end = (self.raw.end + n).min(self.buf.len());
    }

    /// The bytes before any framing: the HTTP answer.
    pub(crate) fn raw(&self) -> &[u8] {
        self.buf.get(self.raw.clone()).unwrap_or_default()
    }

    pub(crate) fn consume_raw(&mut self, n: usize) {
        self.raw.start = (self.raw.start + n).min(self.raw.end);
        if self.plain.is_empty() {
            self.plain = self.raw.start..self.raw.start;
        }
    }

    /// The SSH bytes, in order, not yet consumed.
    pub(crate) fn plain(&mut self) -> &mut [u8] {
        self.buf.get_mut(self.plain.clone()).unwrap_or_default()
    }

    pub(crate) fn consume(&mut self, n: usize) {
        self.plain.start = (self.plain.start + n).min(self.plain.end);
    }

    /// Takes frames off until raw bytes run out or a control frame needs an answer.
    pub(crate) fn deframe(&mut self) -> Result<Option<Control>, ProtocolError> {
        loop {
            if self.frame_left > 0 {
                let available = self
                    .raw
                    .len()
                    .min(usize::try_from(self.frame_left).unwrap_or(usize::MAX));
                if available == 0 {
                    return Ok(None);
                }
                self.take_payload(available);
                self.frame_left -= available as u64;
                continue;
            }
            let Some((header, size)) = Header::parse(self.raw())? else {
                return Ok(None);
            };
            if header.key.is_some() {
                return Err(ProtocolError::Frame("the server masked a frame"));
            }
            if header.opcode.is_control() {
                let length = usize::try_from(header.length).unwrap_or(MAX_CONTROL);
                let Some(payload) = self.raw().get(size..size + length) else {
                    return Ok(None);
                };
                let control = read_control(header.opcode, payload)?;
                self.consume_raw(size + length);
                match control {
                    Some(control) => return Ok(Some(control)),
                    None => continue,
                }
            }
            if (header.opcode == Opcode::Continuation) != self.fragmented {
                return Err(ProtocolError::Frame("a fragmented message is out of order"));
            }
            self.fragmented = !header.last;
            self.frame_left = header.length;
            self.consume_raw(size);
        }
    }

    /// Moves the next `n` raw bytes to the end of the plain ones.
    fn take_payload(&mut self, n: usize) {
        let gap = self.raw.start - self.plain.end;
        if self.plain.len() < n {
            // The beginning of a packet follows its rest: the Go server sends 4096 bytes first.
            self.buf.copy_within(self.plain.clone(), self.plain.start + gap);
            self.plain = self.plain.start + gap..self.raw.start + n;
        } else {
            self.buf
                .copy_within(self.raw.start..self.raw.start + n, self.plain.end);
            self.plain.end += n;
        }
        self.raw.start += n;
    }
}

fn read_control(opcode: Opcode, payload: &[u8]) -> Result<Option<Control>, ProtocolError> {
    match opcode {
        Opcode::Ping => Ok(Some(Control::Ping(payload.to_vec()))),
        Opcode::Close => match payload.split_first_chunk::<2>() {
            Some((code, _)) => Ok(Some(Control::Close {
                code: Some(u16::from_be_bytes(*code)),
            })),
            None if payload.is_empty() => Ok(Some(Control::Close { code: None })),
            None => Err(ProtocolError::Frame("a close frame of one byte")),
        },
        Opcode::Pong | Opcode::Continuation | Opcode::Text | Opcode::Binary => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Reads everything from `input`, given in pieces, and returns the SSH bytes and the control frames.
    fn run(input: &[u8], pieces: &[usize], eat: usize) -> Result<(Vec<u8>, Vec<Control>), ProtocolError> {
        let mut buffer = InBuf::new();
        let (mut plain, mut controls) = (Vec::new(), Vec::new());
        let mut rest = input;
        let mut pieces = pieces.iter().copied().cycle();
        while !rest.is_empty() {
            let room = buffer.room();
            let n = pieces.next().unwrap_or(1).clamp(1, rest.len()).min(room.len());
            room[..n].copy_from_slice(&rest[..n]);
            buffer.filled(n);
            rest = &rest[n..];
            while let Some(control) = buffer.deframe()? {
                controls.push(control);
            }
            // Leave a part behind, as an unfinished packet would.
            let take = buffer.plain().len() - buffer.plain().len() % eat.max(1);
            plain.extend_from_slice(&buffer.plain()[..take]);
            buffer.consume(take);
        }
        plain.extend_from_slice(buffer.plain());
        Ok((plain, controls))
    }

    fn frame(out: &mut Vec<u8>, last: bool, opcode: Opcode, payload: &[u8]) {
        Header {
            last,
            opcode,
            length: payload.len() as u64,
            key: None,
        }
        .append(out);
        out.extend_from_slice(payload);
    }

    #[test]
    fn fragments_and_controls_between_them() {
        let mut input = Vec::new();
        frame(&mut input, false, Opcode::Text, b"ab");
        frame(&mut input, true, Opcode::Ping, b"?");
        frame(&mut input, false, Opcode::Continuation, b"");
        frame(&mut input, true, Opcode::Pong, b"!");
        frame(&mut input, true, Opcode::Continuation, b"cd");
        frame(&mut input, true, Opcode::Binary, &[7; 300]);
        frame(&mut input, true, Opcode::Close, &[0x03, 0xe8, b'b', b'y', b'e']);
        for piece in [1, 2, 3, 1000] {
            let (plain, controls) = run(&input, &[piece], 5).unwrap();
            assert_eq!(plain.len(), 304);
            assert_eq!(&plain[..4], b"abcd");
            assert_eq!(
                controls,
                [Control::Ping(b"?".to_vec()), Control::Close { code: Some(1000) }]
            );
        }
    }

    #[test]
    fn frames_that_may_not_be() {
        let cases: [&[u8]; 6] = [
            &[0x80, 1, 0],                // continuation of nothing
            &[0x02, 0, 0x82, 0],          // a new message inside a fragmented one
            &[0x82, 0x81, 0, 0, 0, 0, 0], // masked by the server
            &[0xc2, 0],                   // compressed
            &[0x09, 0],                   // fragmented ping
            &[0x83, 0],                   // unknown opcode
        ];
        for case in cases {
            assert!(
                matches!(run(case, &[1], 1), Err(ProtocolError::Frame(_))),
                "{case:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn payloads_come_out_in_order(
            messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..9_000), 0..6),
            pieces in proptest::collection::vec(1_usize..5_000, 1..8),
            eat in 1_usize..7_000,
        ) {
            let mut input = Vec::new();
            for message in &messages {
                frame(&mut input, true, Opcode::Binary, message);
            }
            let (plain, controls) = run(&input, &pieces, eat).unwrap();
            prop_assert!(controls.is_empty());
            prop_assert_eq!(plain, messages.concat());
        }

        #[test]
        fn any_bytes_never_panic(input: Vec<u8>, pieces in proptest::collection::vec(1_usize..20, 1..4)) {
            let _ = run(&input, &pieces, 3);
        }
    }
}
