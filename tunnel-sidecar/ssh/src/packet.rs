//! SSH binary packets (RFC 4253 section 6): `length | padding length | payload | padding | tag`.

use crate::{
    cipher::{Keys, LENGTH, OpenKey, SealKey, TAG},
    error::ProtocolError,
};
use std::ops::Range;

/// The largest length field we take. The Go server's own limit; it also bounds what one packet can make us hold.
pub(crate) const MAX_LENGTH: usize = 256 * 1024;
/// RFC 4253 asks for at least this much padding.
const LEAST_PADDING: usize = 4;
/// Length field and padding length.
pub(crate) const HEAD: usize = LENGTH + 1;

/// Makes packets of one direction.
#[derive(Debug)]
pub(crate) struct Sealer {
    key: SealKey,
    sequence: u32,
    used: Use,
}

/// How much the current keys have done.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Use {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

impl Use {
    fn add(&mut self, bytes: usize) {
        self.packets += 1;
        self.bytes += bytes as u64;
    }
}

impl Sealer {
    pub(crate) fn new() -> Self {
        Self {
            key: SealKey::Plain,
            sequence: 0,
            used: Use::default(),
        }
    }

    /// Takes new keys into use; strict key exchange resets the sequence number.
    pub(crate) fn change_keys(&mut self, keys: &Keys<'_>, reset_sequence: bool) -> Result<(), ProtocolError> {
        self.key = SealKey::new(keys)?;
        self.used = Use::default();
        if reset_sequence {
            self.sequence = 0;
        }
        Ok(())
    }

    pub(crate) fn used(&self) -> Use {
        self.used
    }

    /// The bytes on the wire for a payload of this size.
    pub(crate) fn wire_len(&self, payload: usize) -> usize {
        let tag = if matches!(self.key, SealKey::Plain) {
            0
        } else {
            TAG
        };
        HEAD + payload + self.padding(payload) + tag
    }

    fn padding(&self, payload: usize) -> usize {
        // The clear length field counts for the block size only without a cipher.
        let (block, counted) = match self.key {
            SealKey::Plain => (8, HEAD + payload),
            SealKey::Gcm { .. } => (16, 1 + payload),
            SealKey::ChaCha(_) => (8, 1 + payload),
        };
        let to_fill = block - counted % block;
        if to_fill < LEAST_PADDING {
            to_fill + block
        } else {
            to_fill
        }
    }

    /// Appends one packet whose payload is all `parts` together.
    pub(crate) fn seal(&mut self, out: &mut Vec<u8>, parts: &[&[u8]]) -> Result<(), ProtocolError> {
        let start = out.len();
        out.extend_from_slice(&[0; HEAD]);
        for part in parts {
            out.extend_from_slice(part);
        }
        self.seal_in_place(out, start)
    }

    /// Makes a packet of the payload at the end of `out`, which stands [`HEAD`] bytes behind `start`.
    pub(crate) fn seal_in_place(&mut self, out: &mut Vec<u8>, start: usize) -> Result<(), ProtocolError> {
        let payload = out.len().saturating_sub(start + HEAD);
        let padding = self.padding(payload);
        let length = u32::try_from(1 + payload + padding).unwrap_or(u32::MAX);
        if length as usize > MAX_LENGTH {
            return Err(ProtocolError::PacketLength(length));
        }
        let head = out
            .get_mut(start..)
            .and_then(|packet| packet.first_chunk_mut::<HEAD>());
        let [a, b, c, d] = length.to_be_bytes();
        let amount = u8::try_from(padding).map_err(|_| ProtocolError::Padding)?;
        *head.ok_or(ProtocolError::ShortMessage)? = [a, b, c, d, amount];
        let noise: [u8; 32] = rand::random();
        out.extend_from_slice(noise.get(..padding).ok_or(ProtocolError::Padding)?);
        let packet = out.get_mut(start..).unwrap_or_default();
        let tag = self.key.seal(self.sequence, packet)?;
        out.extend_from_slice(tag.as_ref().map_or(&[], |tag| tag.as_slice()));
        self.sequence = self.sequence.wrapping_add(1);
        self.used.add(out.len() - start);
        Ok(())
    }
}

/// Reads packets of one direction.
#[derive(Debug)]
pub(crate) struct Opener {
    key: OpenKey,
    sequence: u32,
    used: Use,
}

/// A packet at the front of the buffer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Opened {
    /// Bytes of the buffer that are done with.
    pub(crate) consumed: usize,
    /// Where in the buffer the payload stands. Never empty.
    pub(crate) payload: Range<usize>,
}

impl Opener {
    pub(crate) fn new() -> Self {
        Self {
            key: OpenKey::Plain,
            sequence: 0,
            used: Use::default(),
        }
    }

    pub(crate) fn change_keys(&mut self, keys: &Keys<'_>, reset_sequence: bool) -> Result<(), ProtocolError> {
        self.key = OpenKey::new(keys)?;
        self.used = Use::default();
        if reset_sequence {
            self.sequence = 0;
        }
        Ok(())
    }

    pub(crate) fn used(&self) -> Use {
        self.used
    }

    /// No keys are in use yet.
    pub(crate) fn is_plain(&self) -> bool {
        matches!(self.key, OpenKey::Plain)
    }

    /// Opens the packet at the front in place, or says `None` when it is not complete.
    pub(crate) fn open(&mut self, data: &mut [u8]) -> Result<Option<Opened>, ProtocolError> {
        let Some(field) = data.first_chunk::<LENGTH>() else {
            return Ok(None);
        };
        let length = self.key.length(self.sequence, *field);
        let refused = ProtocolError::PacketLength(length);
        let Ok(body) = usize::try_from(length) else {
            return Err(refused);
        };
        let (block, tag) = self.key.shape();
        let counted = if tag == 0 { LENGTH + body } else { body };
        if !(1 + 1 + LEAST_PADDING..=MAX_LENGTH).contains(&body) || !counted.is_multiple_of(block) {
            return Err(refused);
        }
        let total = LENGTH + body + tag;
        let Some(packet) = data.get_mut(..total) else {
            return Ok(None);
        };
        self.key.open(self.sequence, packet)?;
        let padding = usize::from(packet.get(LENGTH).copied().unwrap_or_default());
        if padding < LEAST_PADDING || padding + 2 > body {
            return Err(ProtocolError::Padding);
        }
        self.sequence = self.sequence.wrapping_add(1);
        self.used.add(total);
        Ok(Some(Opened {
            consumed: total,
            payload: HEAD..LENGTH + body - padding,
        }))
    }
}

#[cfg(test)]
mod tests;
