//! WebSocket framing as a byte stream (RFC 6455): the payloads of all data messages, put together, are the SSH stream.
//!
//! Outgoing, each SSH packet is one binary message, or two when it is large: the Go server's reader takes 4096 bytes first and copies the rest of a
//! message once more at every read, so a message of 4096 bytes followed by one with the rest costs it least. Several packets in one message cost it
//! twice as much as one each; many messages in one write cost nothing.

use crate::error::ProtocolError;

/// Packets larger than this are split.
const SPLIT_ABOVE: usize = 8 * 1024;
/// Size of the first message of a split packet: the server's buffer.
const FIRST_PART: usize = 4096;
/// A control frame's payload limit (RFC 6455 section 5.5).
pub(crate) const MAX_CONTROL: usize = 125;
const FINAL: u8 = 0x80;
const MASKED: u8 = 0x80;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opcode {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

impl Opcode {
    fn from_bits(bits: u8) -> Result<Self, ProtocolError> {
        match bits {
            0 => Ok(Self::Continuation),
            1 => Ok(Self::Text),
            2 => Ok(Self::Binary),
            8 => Ok(Self::Close),
            9 => Ok(Self::Ping),
            10 => Ok(Self::Pong),
            _ => Err(ProtocolError::Frame("unknown opcode")),
        }
    }

    fn bits(self) -> u8 {
        match self {
            Self::Continuation => 0,
            Self::Text => 1,
            Self::Binary => 2,
            Self::Close => 8,
            Self::Ping => 9,
            Self::Pong => 10,
        }
    }

    pub(crate) fn is_control(self) -> bool {
        match self {
            Self::Close | Self::Ping | Self::Pong => true,
            Self::Continuation | Self::Text | Self::Binary => false,
        }
    }
}

/// The header of a frame. `key` is `None` in what a server sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) last: bool,
    pub(crate) opcode: Opcode,
    pub(crate) length: u64,
    pub(crate) key: Option<[u8; 4]>,
}

impl Header {
    /// Reads a header; `None` when more bytes are needed. With it comes its size.
    pub(crate) fn parse(data: &[u8]) -> Result<Option<(Self, usize)>, ProtocolError> {
        let Some(([first, second], rest)) = data.split_first_chunk::<2>() else {
            return Ok(None);
        };
        if first & 0x70 != 0 {
            return Err(ProtocolError::Frame("reserved bits are set"));
        }
        let opcode = Opcode::from_bits(first & 0x0f)?;
        let (length, rest) = match second & 0x7f {
            126 => match rest.split_first_chunk::<2>() {
                Some((bytes, rest)) => (u64::from(u16::from_be_bytes(*bytes)), rest),
                None => return Ok(None),
            },
            127 => match rest.split_first_chunk::<8>() {
                Some((bytes, rest)) => (u64::from_be_bytes(*bytes), rest),
                None => return Ok(None),
            },
            short => (u64::from(short), rest),
        };
        let last = first & FINAL != 0;
        if opcode.is_control() && (!last || length > MAX_CONTROL as u64) {
            return Err(ProtocolError::Frame("a control frame is fragmented or too long"));
        }
        if length > i64::MAX as u64 {
            return Err(ProtocolError::Frame("the length exceeds 63 bits"));
        }
        let (key, rest) = if second & MASKED == 0 {
            (None, rest)
        } else {
            match rest.split_first_chunk::<4>() {
                Some((key, rest)) => (Some(*key), rest),
                None => return Ok(None),
            }
        };
        Ok(Some((
            Self {
                last,
                opcode,
                length,
                key,
            },
            data.len() - rest.len(),
        )))
    }

    /// Writes the header into the front of `out` and returns its size. `out` must have room for it.
    fn write(self, out: &mut [u8]) -> usize {
        let mask_bit = if self.key.is_some() { MASKED } else { 0 };
        let mut bytes = [0; 14];
        let mut at = 0;
        let mut put = |byte: u8| {
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
                at += 1;
            }
        };
        put(if self.last { FINAL } else { 0 } | self.opcode.bits());
        match (u8::try_from(self.length), u16::try_from(self.length)) {
            (Ok(short), _) if short < 126 => put(mask_bit | short),
            (_, Ok(medium)) => {
                put(mask_bit | 126);
                medium.to_be_bytes().into_iter().for_each(&mut put);
            }
            _ => {
                put(mask_bit | 127);
                self.length.to_be_bytes().into_iter().for_each(&mut put);
            }
        }
        self.key.into_iter().flatten().for_each(&mut put);
        for (place, byte) in out.iter_mut().zip(bytes.iter().take(at)) {
            *place = *byte;
        }
        at
    }

    /// Bytes a masked header takes for a payload of this length.
    fn masked_size(length: usize) -> usize {
        match length {
            0..126 => 6,
            126..65_536 => 8,
            _ => 14,
        }
    }

    /// Appends the header.
    pub(crate) fn append(self, out: &mut Vec<u8>) {
        let mut bytes = [0; 14];
        let size = self.write(&mut bytes);
        out.extend_from_slice(bytes.get(..size).unwrap_or_default());
    }
}

/// Masks, or unmasks, in place.
pub(crate) fn mask(data: &mut [u8], key: [u8; 4]) {
    let [a, b, c, d] = key;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (blocks, tail) = data.as_chunks_mut::<8>();
    for block in blocks {
        *block = (u64::from_ne_bytes(*block) ^ wide).to_ne_bytes();
    }
    for (byte, key) in tail.iter_mut().zip(key.into_iter().cycle()) {
        *byte ^= key;
    }
}

fn random_key() -> [u8; 4] {
    rand::random()
}

/// Room for the headers of a packet whose size is not known yet, in which a packet of channel data needs no second move.
pub(crate) const GAP: usize = 2 * 8;

/// Appends one SSH packet of `length` bytes as masked binary messages. `fill` appends exactly that many bytes.
pub(crate) fn append_packet<E>(
    out: &mut Vec<u8>,
    length: usize,
    fill: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
) -> Result<(), E> {
    let start = out.len();
    let (_, first_header, second_header) = shape(length);
    let gap = first_header + second_header;
    out.resize(start + gap, 0);
    if let Err(error) = fill(out) {
        out.truncate(start);
        return Err(error);
    }
    frame_packet(out, start, gap);
    Ok(())
}

/// Turns the packet at the end of `out`, which stands `gap` bytes behind `start`, into masked binary messages that begin at `start`.
///
/// A packet must be contiguous while it is sealed, so it is written behind room for its headers; then the first part moves forward.
pub(crate) fn frame_packet(out: &mut Vec<u8>, start: usize, gap: usize) {
    let length = out.len().saturating_sub(start + gap);
    let (split, first_header, second_header) = shape(length);
    let rest = length - split;
    let headers = first_header + second_header;
    let region = out.get_mut(start..).unwrap_or_default();
    if gap != first_header {
        region.copy_within(gap..gap + split, first_header);
    }
    if rest > 0 && gap != headers {
        region.copy_within(gap + split.., headers + split);
    }
    let (first, second) = region.split_at_mut((first_header + split).min(region.len()));
    finish_message(first, split);
    if rest > 0 {
        finish_message(second.get_mut(..second_header + rest).unwrap_or_default(), rest);
    }
    out.truncate(start + headers + length);
}

/// The size of the first message of a packet, and of the headers of both; the second may not be.
fn shape(length: usize) -> (usize, usize, usize) {
    let split = if length > SPLIT_ABOVE { FIRST_PART } else { length };
    let second_header = match length - split {
        0 => 0,
        rest => Header::masked_size(rest),
    };
    (split, Header::masked_size(split), second_header)
}

/// Writes the header of a masked binary message in front of its payload and masks the payload.
fn finish_message(message: &mut [u8], length: usize) {
    let key = random_key();
    let header = Header {
        last: true,
        opcode: Opcode::Binary,
        length: length as u64,
        key: Some(key),
    };
    let size = header.write(message);
    mask(message.get_mut(size..size + length).unwrap_or_default(), key);
}

/// Appends a masked control frame; a payload beyond the limit is cut.
pub(crate) fn append_control(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    let payload = payload.get(..payload.len().min(MAX_CONTROL)).unwrap_or_default();
    let key = random_key();
    Header {
        last: true,
        opcode,
        length: payload.len() as u64,
        key: Some(key),
    }
    .append(out);
    let start = out.len();
    out.extend_from_slice(payload);
    mask(out.get_mut(start..).unwrap_or_default(), key);
}

#[cfg(test)]
mod tests;
