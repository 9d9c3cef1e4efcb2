//! The stream of datagrams in a chisel UDP channel: Go's gob encoding of one type, `udpPacket { Src string; Payload
//! []byte }`. Pure: bytes in, datagrams out, and back.
//!
//! ```text
//!   message    = uint length, then so many bytes
//!   definition = int type id < 0, description          once, before the first value; only its id matters here
//!   value      = int type id, { uint field delta, uint length, bytes }, 0      a field of length zero is left out
//!   uint       = one byte below 128; else a byte 256-n, then n bytes, most significant first
//!   int        = uint whose lowest bit says that the rest is complemented
//! ```
//!
//! The byte forms are what chisel 1.11.3 was seen to send (Go's `encoding/gob` documents the encoding).

use bytes::{Buf as _, BytesMut};

/// The largest payload of a UDP datagram over IPv4.
pub const MAX_PAYLOAD: usize = 65_507;
/// The longest peer address that is read; `[v6%zone]:port` is far shorter.
const MAX_PEER: usize = 256;
/// The largest message: a datagram over IPv6 without extension headers, its peer, and what is around them.
const MAX_MESSAGE: usize = 65_535 + MAX_PEER + 64;

/// What a Go program writes before its first datagram: the description of the type, with id 64.
const DEFINITION: [u8; 43] = [
    0x2a, 0x7f, 0x03, 0x01, 0x01, 0x09, b'u', b'd', b'p', b'P', b'a', b'c', b'k', b'e', b't', 0x01, 0xff,
    0x80, 0x00, 0x01, 0x02, 0x01, 0x03, b'S', b'r', b'c', 0x01, 0x0c, 0x00, 0x01, 0x07, b'P', b'a', b'y',
    b'l', b'o', b'a', b'd', 0x01, 0x0a, 0x00, 0x00, 0x00,
];
/// The id of [`DEFINITION`] as an int.
const TYPE_ID: u64 = 64 << 1;

/// One datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Whom it comes from or goes to, at the side that listens, as that side wrote it.
    pub peer: String,
    /// Its bytes.
    pub payload: Vec<u8>,
}

/// Why a stream cannot be read on: from here on nothing in it can be told apart.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadStream {
    /// A number of more than eight bytes.
    #[error("a number of the datagram stream is longer than eight bytes")]
    Number,
    /// A message larger than any datagram.
    #[error("a message of {0} bytes in the datagram stream is larger than any datagram")]
    TooLong(u64),
    /// A message that ends too early or too late.
    #[error("a message of the datagram stream does not end where it should")]
    Length,
    /// A value of a type that was not described.
    #[error("the datagram stream has a value of type {0}, which it did not describe before")]
    UnknownType(u64),
    /// A field that is none of the two.
    #[error("a value of the datagram stream has a field {0}")]
    UnknownField(u64),
    /// The peer is no text.
    #[error("a datagram's peer is no address")]
    Peer,
}

/// Reads a stream, in pieces as they come.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
    /// The id of the described type, as an int.
    known: Option<u64>,
}

impl Decoder {
    /// Takes what arrived.
    pub fn push(&mut self, data: &[u8]) {
        self.buffer.extend_from_slice(data);
    }

    /// The next whole datagram; `None` until more arrives.
    ///
    /// # Errors
    /// When the stream is broken; it is not to be read on then.
    pub fn next_datagram(&mut self) -> Result<Option<Datagram>, BadStream> {
        loop {
            let Some((length, prefix)) = uint(&self.buffer)? else {
                return Ok(None);
            };
            let size = usize::try_from(length)
                .ok()
                .filter(|size| *size <= MAX_MESSAGE)
                .ok_or(BadStream::TooLong(length))?;
            let Some(message) = self.buffer.get(prefix..prefix + size) else {
                return Ok(None);
            };
            let read = message_of(message, &mut self.known)?;
            self.buffer.advance(prefix + size);
            if self.buffer.is_empty() {
                // A quiet stream holds no memory.
                self.buffer = BytesMut::new();
            }
            if let Some(datagram) = read {
                return Ok(Some(datagram));
            }
        }
    }
}

/// Reads one message: a datagram, or a description that only changes what is known.
fn message_of(message: &[u8], known: &mut Option<u64>) -> Result<Option<Datagram>, BadStream> {
    let mut rest = message;
    let id = take_uint(&mut rest)?;
    if id & 1 == 1 {
        // The id of a description is the complement of the type's, so as an int it is the type's with the bit set,
        // less one step.
        *known = Some((id >> 1).saturating_add(1) << 1);
        return Ok(None);
    }
    if *known != Some(id) {
        return Err(BadStream::UnknownType(id >> 1));
    }
    let mut datagram = Datagram {
        peer: String::new(),
        payload: Vec::new(),
    };
    let mut field = 0_u64;
    loop {
        let delta = take_uint(&mut rest)?;
        if delta == 0 {
            break;
        }
        field = field.saturating_add(delta);
        let length = take_uint(&mut rest)?;
        let size = usize::try_from(length).map_err(|_| BadStream::Length)?;
        let (bytes, after) = rest.split_at_checked(size).ok_or(BadStream::Length)?;
        rest = after;
        match field {
            1 if size <= MAX_PEER => {
                datagram.peer = String::from_utf8(bytes.to_vec()).map_err(|_| BadStream::Peer)?;
            }
            1 => return Err(BadStream::Peer),
            2 => datagram.payload = bytes.to_vec(),
            other => return Err(BadStream::UnknownField(other)),
        }
    }
    if rest.is_empty() {
        Ok(Some(datagram))
    } else {
        Err(BadStream::Length)
    }
}

/// A number at the front, and its size; `None` when it is not whole.
fn uint(data: &[u8]) -> Result<Option<(u64, usize)>, BadStream> {
    let Some((first, rest)) = data.split_first() else {
        return Ok(None);
    };
    if *first < 0x80 {
        return Ok(Some((u64::from(*first), 1)));
    }
    let size = usize::from(first.wrapping_neg());
    if size > 8 {
        return Err(BadStream::Number);
    }
    let Some(bytes) = rest.get(..size) else {
        return Ok(None);
    };
    let value = bytes
        .iter()
        .fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
    Ok(Some((value, 1 + size)))
}

fn take_uint(rest: &mut &[u8]) -> Result<u64, BadStream> {
    let (value, size) = uint(rest)?.ok_or(BadStream::Length)?;
    *rest = rest.get(size..).unwrap_or_default();
    Ok(value)
}

fn put_uint(out: &mut Vec<u8>, value: u64) {
    match u8::try_from(value) {
        Ok(small) if small < 0x80 => out.push(small),
        _ => {
            let bytes = value.to_be_bytes();
            let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
            let bytes = bytes.get(zeros..).unwrap_or_default();
            out.push(u8::try_from(bytes.len()).unwrap_or_default().wrapping_neg());
            out.extend_from_slice(bytes);
        }
    }
}

/// Writes a stream.
#[derive(Debug, Default)]
pub struct Encoder {
    described: bool,
}

impl Encoder {
    /// The bytes of one datagram; with the first one comes the description of the type.
    pub fn encode(&mut self, peer: &str, payload: &[u8]) -> Vec<u8> {
        let mut value = Vec::with_capacity(payload.len() + peer.len() + 16);
        put_uint(&mut value, TYPE_ID);
        let mut last = 0;
        for (field, bytes) in [(1, peer.as_bytes()), (2, payload)] {
            if !bytes.is_empty() {
                put_uint(&mut value, field - last);
                put_uint(&mut value, bytes.len() as u64);
                value.extend_from_slice(bytes);
                last = field;
            }
        }
        value.push(0);
        let mut out = Vec::with_capacity(value.len() + DEFINITION.len() + 4);
        if !std::mem::replace(&mut self.described, true) {
            out.extend_from_slice(&DEFINITION);
        }
        put_uint(&mut out, value.len() as u64);
        out.append(&mut value);
        out
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
            .collect()
    }

    const DESCRIBED: &str =
        "2a7f030101097564705061636b657401ff800001020103537263010c0001075061796c6f6164010a000000";

    fn all(decoder: &mut Decoder) -> Result<Vec<Datagram>, BadStream> {
        let mut found = Vec::new();
        while let Some(datagram) = decoder.next_datagram()? {
            found.push(datagram);
        }
        Ok(found)
    }

    /// As a chisel server was seen to send it, and as we send it.
    #[test]
    fn the_bytes_of_a_go_program() {
        let seen = format!("{DESCRIBED}1aff80010e3132372e302e302e313a35303030010568656c6c6f00");
        let mut encoder = Encoder::default();
        assert_eq!(encoder.encode("127.0.0.1:5000", b"hello"), bytes(&seen));
        // Nothing in it: the field is left out.
        let empty = format!("14ff80010f{}00", "3132372e302e302e313a3431373237");
        assert_eq!(encoder.encode("127.0.0.1:41727", b""), bytes(&empty));
        assert_eq!(encoder.encode("", b"a")[..5], bytes("06ff80020161")[..5]);

        let mut decoder = Decoder::default();
        decoder.push(&bytes(&seen));
        decoder.push(&bytes(&empty));
        let found = all(&mut decoder).unwrap();
        assert_eq!(
            (found[0].peer.as_str(), found[0].payload.as_slice()),
            ("127.0.0.1:5000", &b"hello"[..])
        );
        assert_eq!(
            (found[1].peer.as_str(), found[1].payload.as_slice()),
            ("127.0.0.1:41727", &b""[..])
        );
    }

    #[test]
    fn the_id_of_the_type_is_taken_from_the_stream() {
        // Another program may have described other types first; -65 is 0x81 as a number, 65 is 0x82.
        let mut decoder = Decoder::default();
        decoder.push(&bytes("04ff81000009ff8201036162630178"));
        assert_eq!(
            decoder.next_datagram(),
            Err(BadStream::Length),
            "a value needs its end"
        );
        let mut decoder = Decoder::default();
        decoder.push(&bytes("04ff81000009ff82010361626300"));
        decoder.push(&[]);
        assert_eq!(decoder.next_datagram().unwrap(), None);
        let mut decoder = Decoder::default();
        decoder.push(&bytes("04ff81000008ff82010361626300"));
        assert_eq!(decoder.next_datagram().unwrap().unwrap().peer, "abc");
    }

    #[test]
    fn broken_streams_are_named() {
        for (hex, wanted) in [
            ("08ff80010361626300", BadStream::UnknownType(64)),
            ("f7", BadStream::Number),
            ("fd7fffff", BadStream::TooLong(0x7f_ffff)),
            ("04ff81000008ff82030361626300", BadStream::UnknownField(3)),
            ("04ff81000008ff820103fffefd00", BadStream::Peer),
            ("04ff81000009ff8201036162630000", BadStream::Length),
        ] {
            let mut decoder = Decoder::default();
            decoder.push(&bytes(hex));
            assert_eq!(all(&mut decoder).unwrap_err(), wanted, "{hex}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused_and_never_pile_up(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..64), 0..40)) {
            let mut decoder = Decoder::default();
            for piece in pieces {
                decoder.push(&piece);
                match all(&mut decoder) {
                    Ok(_) => prop_assert!(decoder.buffer.len() <= MAX_MESSAGE + 9),
                    Err(_) => return Ok(()),
                }
            }
        }

        #[test]
        fn what_is_written_is_read_however_it_is_cut(
            sent in proptest::collection::vec(("[0-9a-f.:\\[\\]]{0,40}", proptest::collection::vec(any::<u8>(), 0..2000)), 0..12),
            cut in 1_usize..700,
        ) {
            let mut encoder = Encoder::default();
            let stream: Vec<u8> = sent.iter().flat_map(|(peer, payload)| encoder.encode(peer, payload)).collect();
            let mut decoder = Decoder::default();
            let mut found = Vec::new();
            for piece in stream.chunks(cut) {
                decoder.push(piece);
                found.append(&mut all(&mut decoder).unwrap());
            }
            let found: Vec<_> = found.into_iter().map(|datagram| (datagram.peer, datagram.payload)).collect();
            prop_assert_eq!(found, sent);
        }

        #[test]
        fn the_largest_datagram_passes(length in MAX_PAYLOAD - 2..=MAX_PAYLOAD) {
            let stream = Encoder::default().encode("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff%eth0]:65535", &vec![7; length]);
            let mut decoder = Decoder::default();
            decoder.push(&stream);
            prop_assert_eq!(decoder.next_datagram().unwrap().unwrap().payload.len(), length);
        }
    }
}
