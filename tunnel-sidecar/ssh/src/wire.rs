//! The data types of RFC 4251 section 5, read with every length checked and written by appending.

use crate::error::ProtocolError;

/// Reads SSH types from the front of a message.
#[derive(Debug, Clone)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    /// Takes exactly `n` bytes.
    pub(crate) fn take(&mut self, n: usize) -> Result<&'a [u8], ProtocolError> {
        let (head, rest) = self.rest.split_at_checked(n).ok_or(ProtocolError::ShortMessage)?;
        self.rest = rest;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], ProtocolError> {
        let (head, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(ProtocolError::ShortMessage)?;
        self.rest = rest;
        Ok(*head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, ProtocolError> {
        self.array::<1>().map(u8::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, ProtocolError> {
        self.array::<4>().map(u32::from_be_bytes)
    }

    /// Any byte but zero is true (RFC 4251 asks readers to accept that).
    pub(crate) fn bool(&mut self) -> Result<bool, ProtocolError> {
        Ok(self.u8()? != 0)
    }

    pub(crate) fn string(&mut self) -> Result<&'a [u8], ProtocolError> {
        let length = usize::try_from(self.u32()?).map_err(|_| ProtocolError::ShortMessage)?;
        self.take(length)
    }

    /// A string that must be UTF-8.
    pub(crate) fn text(&mut self) -> Result<&'a str, ProtocolError> {
        std::str::from_utf8(self.string()?).map_err(|_| ProtocolError::NotText)
    }

    /// A non-negative mpint as its big-endian bytes without leading zeros.
    pub(crate) fn mpint(&mut self) -> Result<&'a [u8], ProtocolError> {
        let bytes = self.string()?;
        match bytes {
            [first, ..] if *first >= 0x80 => Err(ProtocolError::NegativeNumber),
            [0, rest @ ..] => Ok(rest),
            other => Ok(other),
        }
    }

    /// Everything that is left.
    pub(crate) fn rest(self) -> &'a [u8] {
        self.rest
    }

    /// Fails when bytes are left over.
    pub(crate) fn finish(self) -> Result<(), ProtocolError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(ProtocolError::TrailingBytes)
        }
    }
}

/// Appends SSH types to a message under construction.
pub(crate) trait Put {
    fn put_raw(&mut self, bytes: &[u8]);

    fn put_u8(&mut self, value: u8) {
        self.put_raw(&[value]);
    }

    fn put_u32(&mut self, value: u32) {
        self.put_raw(&value.to_be_bytes());
    }

    fn put_bool(&mut self, value: bool) {
        self.put_u8(u8::from(value));
    }

    fn put_string(&mut self, bytes: &[u8]) {
        // Our own messages are far below 4 GiB; a longer one would be refused by the packet limit anyway.
        self.put_u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        self.put_raw(bytes);
    }

    /// Writes an unsigned big-endian number as mpint.
    fn put_mpint(&mut self, number: &[u8]) {
        let start = number.iter().take_while(|byte| **byte == 0).count();
        let digits = number.get(start..).unwrap_or_default();
        let high = digits.first().is_some_and(|byte| *byte >= 0x80);
        self.put_u32(u32::try_from(digits.len() + usize::from(high)).unwrap_or(u32::MAX));
        if high {
            self.put_u8(0);
        }
        self.put_raw(digits);
    }
}

impl Put for Vec<u8> {
    fn put_raw(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn mpint_examples_of_rfc4251() {
        let cases: [(&[u8], &[u8]); 3] = [
            (&[0], &[0, 0, 0, 0]),
            (
                &[0x09, 0xa3, 0x78, 0xf9, 0xb2, 0xe3, 0x32, 0xa7],
                &[0, 0, 0, 8, 0x09, 0xa3, 0x78, 0xf9, 0xb2, 0xe3, 0x32, 0xa7],
            ),
            (&[0x80], &[0, 0, 0, 2, 0, 0x80]),
        ];
        for (number, encoded) in cases {
            let mut out = Vec::new();
            out.put_mpint(number);
            assert_eq!(out, encoded);
        }
    }

    #[test]
    fn negative_mpint_is_refused() {
        let encoded = [0, 0, 0, 1, 0x80];
        assert!(matches!(
            Reader::new(&encoded).mpint(),
            Err(ProtocolError::NegativeNumber)
        ));
    }

    #[test]
    fn a_length_beyond_the_end_is_short() {
        let encoded = [0xff, 0xff, 0xff, 0xff, 1, 2];
        assert!(matches!(
            Reader::new(&encoded).string(),
            Err(ProtocolError::ShortMessage)
        ));
    }

    proptest! {
        #[test]
        fn round_trip(number: u32, flag: bool, bytes: Vec<u8>, text in ".*", big in proptest::collection::vec(any::<u8>(), 0..40)) {
            let mut out = Vec::new();
            out.put_u32(number);
            out.put_bool(flag);
            out.put_string(&bytes);
            out.put_string(text.as_bytes());
            out.put_mpint(&big);
            let mut reader = Reader::new(&out);
            prop_assert_eq!(reader.u32().unwrap(), number);
            prop_assert_eq!(reader.bool().unwrap(), flag);
            prop_assert_eq!(reader.string().unwrap(), &bytes[..]);
            prop_assert_eq!(reader.text().unwrap(), text);
            let start = big.iter().take_while(|byte| **byte == 0).count();
            prop_assert_eq!(reader.mpint().unwrap(), &big[start..]);
            reader.finish().unwrap();
        }

        #[test]
        fn any_bytes_never_panic(bytes: Vec<u8>) {
            let mut reader = Reader::new(&bytes);
            while reader.string().is_ok() {}
            let mut reader = Reader::new(&bytes);
            while reader.mpint().is_ok() {}
            let mut reader = Reader::new(&bytes);
            while reader.text().is_ok() {}
        }
    }
}
