//! The transport layer as a state machine: version lines, key exchanges of both origins, packets in and out.
//!
//! ```text
//!   version lines → KEXINIT both ways → KEX_INIT/KEX_REPLY → NEWKEYS both ways → messages
//!                        ▲                                                        │
//!                        └────────── either side may start again ◄────────────────┘
//! ```
//! Between our KEXINIT and our NEWKEYS nothing above number 49 is sent: such messages are held back.

use crate::{
    cipher::Cipher,
    error::ProtocolError,
    exchange::{Direction, Exchange, Hash, KeySource, Method, Transcript},
    fault::{Fault, printable},
    fingerprint::Fingerprint,
    kexinit::{Agreement, Ciphers, KexInit, STRICT_SERVER},
    msg,
    packet::{HEAD, Opener, Sealer},
    websocket::{self, GAP},
    wire::{Put, Reader},
};
use std::ops::Range;

/// Our version line, without the line end, as it enters the exchange hash. A chisel server accepts any that begins with `SSH-`.
const CLIENT_VERSION: &[u8] = b"SSH-chisel-v3-client";
/// RFC 4253 section 4.2.
const MAX_VERSION_LINE: usize = 255;
/// What may wait for the end of a key exchange. Enough for the small messages of thousands of channels.
const MAX_HELD: usize = 1024 * 1024;

/// Whom to trust with the password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// Only the host key with this fingerprint.
    Pinned(Fingerprint),
    /// Any host key; the caller stores what was seen.
    FirstUse,
}

/// When to ask for new keys, counted per direction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RekeyLimits {
    pub(crate) bytes: u64,
    pub(crate) packets: u64,
}

/// What to offer in key exchanges.
#[derive(Debug, Clone)]
pub(crate) struct Offer {
    /// In the order of preference; never empty.
    pub(crate) methods: Vec<Method>,
    pub(crate) ciphers: Ciphers,
    /// Send the first packet of the preferred method with the first KEXINIT, which saves a round trip if the server prefers it, too.
    pub(crate) guess: bool,
}

impl Default for Offer {
    fn default() -> Self {
        Self {
            methods: Method::ALL.to_vec(),
            ciphers: Ciphers::default(),
            guess: true,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Transport {
    offer: Offer,
    trust: Trust,
    limits: RekeyLimits,
    sealer: Sealer,
    opener: Opener,
    server_version: Option<Vec<u8>>,
    stage: Stage,
    /// Agreed in the first key exchange: only key exchange messages before NEWKEYS, sequence numbers start again after it.
    strict: bool,
    session_id: Option<Hash>,
    host_key: Option<Vec<u8>>,
    agreement: Option<Agreement>,
    held: Vec<Vec<u8>>,
    held_bytes: usize,
    /// Key exchanges after the first.
    rekeys: u64,
}

/// Where a key exchange stands.
#[derive(Debug)]
enum Stage {
    /// None under way.
    Idle,
    /// Our KEXINIT is out, and perhaps the first packet of the method we prefer.
    Offered {
        ours: Box<KexInit>,
        guess: Option<Box<Exchange>>,
    },
    /// Both KEXINITs are known, our KEX_INIT is out.
    Exchanging {
        ours: Vec<u8>,
        theirs: Vec<u8>,
        agreement: Agreement,
        exchange: Box<Exchange>,
        skip_next: bool,
    },
    /// Our NEWKEYS is out, theirs is awaited.
    Switching {
        source: Box<KeySource>,
        cipher_in: Cipher,
    },
}

/// What the front of the buffer was.
#[derive(Debug)]
pub(crate) enum Input {
    /// Not complete yet.
    NeedMore,
    /// Dealt with here.
    Handled { consumed: usize },
    /// The first keys are in use for sending, and the host key is trusted.
    Secured { consumed: usize },
    /// A message for the layers above.
    Message { consumed: usize, payload: Range<usize> },
}

impl Transport {
    pub(crate) fn new(offer: Offer, trust: Trust, limits: RekeyLimits) -> Self {
        Self {
            offer,
            trust,
            limits,
            sealer: Sealer::new(),
            opener: Opener::new(),
            server_version: None,
            stage: Stage::Idle,
            strict: false,
            session_id: None,
            host_key: None,
            agreement: None,
            held: Vec::new(),
            held_bytes: 0,
            rekeys: 0,
        }
    }

    /// Writes our version line and our first KEXINIT; neither needs anything from the server.
    pub(crate) fn start(&mut self, out: &mut Vec<u8>) -> Result<(), ProtocolError> {
        websocket::append_packet::<ProtocolError>(out, CLIENT_VERSION.len() + 2, |out| {
            out.extend_from_slice(CLIENT_VERSION);
            out.extend_from_slice(b"\r\n");
            Ok(())
        })?;
        self.offer(out)
    }

    pub(crate) fn has_version(&self) -> bool {
        self.server_version.is_some()
    }

    pub(crate) fn agreement(&self) -> Option<Agreement> {
        self.agreement
    }

    pub(crate) fn host_key(&self) -> Option<&[u8]> {
        self.host_key.as_deref()
    }

    pub(crate) fn rekeys(&self) -> u64 {
        self.rekeys
    }

    /// A key exchange is under way.
    pub(crate) fn is_exchanging(&self) -> bool {
        !matches!(self.stage, Stage::Idle)
    }

    /// Messages above the transport layer must wait.
    pub(crate) fn is_holding(&self) -> bool {
        matches!(self.stage, Stage::Offered { .. } | Stage::Exchanging { .. })
    }

    /// Whether encrypted messages can be sent.
    pub(crate) fn is_secured(&self) -> bool {
        self.session_id.is_some()
    }

    /// Sends a message, all `parts` together, or holds it back until the key exchange allows it.
    pub(crate) fn send(&mut self, out: &mut Vec<u8>, parts: &[&[u8]]) -> Result<(), ProtocolError> {
        let number = parts
            .iter()
            .find_map(|part| part.first())
            .copied()
            .unwrap_or_default();
        if number > msg::LAST_TRANSPORT && self.is_holding() {
            let message = parts.concat();
            self.held_bytes += message.len();
            if self.held_bytes > MAX_HELD {
                return Err(ProtocolError::HeldBack);
            }
            self.held.push(message);
            return Ok(());
        }
        self.seal(out, parts)
    }

    fn seal(&mut self, out: &mut Vec<u8>, parts: &[&[u8]]) -> Result<(), ProtocolError> {
        let payload = parts.iter().map(|part| part.len()).sum();
        websocket::append_packet(out, self.sealer.wire_len(payload), |out| {
            self.sealer.seal(out, parts)
        })
    }

    /// Sends channel data that `fill` appends, straight at its place in the output. Returns what `fill` returned and how much it appended; nothing is sent
    /// of nothing. Only while nothing is held back.
    pub(crate) fn send_data<R>(
        &mut self,
        out: &mut Vec<u8>,
        peer: u32,
        fill: impl FnOnce(&mut Vec<u8>) -> R,
    ) -> Result<(R, usize), ProtocolError> {
        let start = out.len();
        out.extend_from_slice(&[0; GAP + HEAD]);
        out.push(msg::CHANNEL_DATA);
        out.put_u32(peer);
        let length_at = out.len();
        out.put_u32(0);
        let data_at = out.len();
        let filled = fill(out);
        let length = out.len().saturating_sub(data_at);
        if length == 0 {
            out.truncate(start);
            return Ok((filled, 0));
        }
        let field = out.get_mut(length_at..).and_then(|rest| rest.first_chunk_mut());
        *field.ok_or(ProtocolError::ShortMessage)? = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
        self.sealer.seal_in_place(out, start + GAP)?;
        websocket::frame_packet(out, start, GAP);
        Ok((filled, length))
    }

    /// Starts a key exchange when the current keys have done enough.
    pub(crate) fn rekey_if_due(&mut self, out: &mut Vec<u8>) -> Result<(), ProtocolError> {
        if !matches!(self.stage, Stage::Idle) || !self.is_secured() {
            return Ok(());
        }
        let due = [self.sealer.used(), self.opener.used()]
            .iter()
            .any(|used| used.bytes >= self.limits.bytes || used.packets >= self.limits.packets);
        if due { self.offer(out) } else { Ok(()) }
    }

    fn offer(&mut self, out: &mut Vec<u8>) -> Result<(), ProtocolError> {
        let Offer {
            methods,
            ciphers,
            guess,
        } = &self.offer;
        let mut ours = Box::new(KexInit::client(methods, *ciphers, rand::random()));
        let guess = match methods.first() {
            // A later exchange hurries nobody.
            Some(method) if *guess && self.session_id.is_none() => Some(Box::new(Exchange::start(*method)?)),
            _ => None,
        };
        ours.first_packet_follows = guess.is_some();
        self.seal(out, &[&ours.encode()])?;
        if let Some(exchange) = &guess {
            self.begin(exchange, out)?;
        }
        self.stage = Stage::Offered { ours, guess };
        Ok(())
    }

    /// Sends our value of an exchange.
    fn begin(&mut self, exchange: &Exchange, out: &mut Vec<u8>) -> Result<(), ProtocolError> {
        let mut message = vec![msg::KEX_INIT];
        message.put_string(&exchange.client_value);
        self.seal(out, &[&message])
    }

    /// Takes what stands at the front of the SSH stream.
    pub(crate) fn receive(&mut self, data: &mut [u8], out: &mut Vec<u8>) -> Result<Input, Fault> {
        if self.server_version.is_none() {
            return self.receive_version(data);
        }
        let Some(packet) = self.opener.open(data)? else {
            return Ok(Input::NeedMore);
        };
        let payload = data.get(packet.payload.clone()).unwrap_or_default();
        let number = payload.first().copied().unwrap_or_default();
        let consumed = packet.consumed;
        self.check_order(number)?;
        match number {
            msg::DISCONNECT => return Err(read_disconnect(payload)),
            msg::IGNORE | msg::DEBUG | msg::EXT_INFO => {}
            msg::KEXINIT => self.on_kexinit(payload, out)?,
            msg::KEX_INIT..=msg::LAST_TRANSPORT => {
                let first = self.session_id.is_none();
                if self.on_kex_reply(payload, out)? && first {
                    return Ok(Input::Secured { consumed });
                }
            }
            msg::NEWKEYS => self.on_newkeys(payload)?,
            0..=msg::SERVICE_REQUEST | 8..msg::KEXINIT | 22..msg::KEX_INIT => {
                return Err(self.unexpected(number).into());
            }
            _ => {
                return Ok(Input::Message {
                    consumed,
                    payload: packet.payload,
                });
            }
        }
        Ok(Input::Handled { consumed })
    }

    /// The server's version line; other lines may stand before it.
    fn receive_version(&mut self, data: &[u8]) -> Result<Input, Fault> {
        let searched = data.get(..data.len().min(MAX_VERSION_LINE)).unwrap_or_default();
        let Some(end) = searched.iter().position(|byte| *byte == b'\n') else {
            return if data.len() >= MAX_VERSION_LINE {
                Err(ProtocolError::Version.into())
            } else {
                Ok(Input::NeedMore)
            };
        };
        let line = searched.get(..end).unwrap_or_default();
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if !line.starts_with(b"SSH-") {
            return Err(ProtocolError::Version.into());
        }
        self.server_version = Some(line.to_vec());
        Ok(Input::Handled { consumed: end + 1 })
    }

    /// Refuses messages that may not come at this point of a key exchange.
    fn check_order(&self, number: u8) -> Result<(), ProtocolError> {
        if self.opener.is_plain() && !matches!(number, msg::DISCONNECT | msg::KEXINIT..=msg::LAST_TRANSPORT) {
            // Also without strict key exchange: an injected message here would shift the sequence numbers.
            return Err(self.unexpected(number));
        }
        let theirs_is_out = matches!(self.stage, Stage::Exchanging { .. } | Stage::Switching { .. });
        if theirs_is_out && number > msg::LAST_TRANSPORT {
            return Err(self.unexpected(number));
        }
        Ok(())
    }

    fn unexpected(&self, number: u8) -> ProtocolError {
        let during = if self.is_exchanging() {
            "a key exchange"
        } else {
            "the session"
        };
        ProtocolError::Unexpected { number, during }
    }

    fn on_kexinit(&mut self, payload: &[u8], out: &mut Vec<u8>) -> Result<(), ProtocolError> {
        if matches!(self.stage, Stage::Idle) {
            self.offer(out)?;
        }
        let stage = std::mem::replace(&mut self.stage, Stage::Idle);
        let Stage::Offered { ours, guess } = stage else {
            self.stage = stage;
            return Err(self.unexpected(msg::KEXINIT));
        };
        let theirs = KexInit::parse(payload)?;
        if self.session_id.is_none() {
            self.strict = theirs.announces(STRICT_SERVER);
        }
        let agreement = ours.agree(&theirs)?;
        let chacha = [agreement.cipher_in, agreement.cipher_out].contains(&Cipher::ChaCha20Poly1305);
        if chacha && !self.strict {
            return Err(ProtocolError::NotStrict);
        }
        let exchange = match guess {
            Some(guess) if agreement.same_guess => guess,
            // The server skips a wrong guess.
            _ => {
                let exchange = Box::new(Exchange::start(agreement.method)?);
                self.begin(&exchange, out)?;
                exchange
            }
        };
        self.stage = Stage::Exchanging {
            ours: ours.encode(),
            theirs: payload.to_vec(),
            agreement,
            exchange,
            skip_next: agreement.ignore_guess,
        };
        Ok(())
    }

    /// Returns whether it was the reply, and not a wrong guess to be ignored.
    fn on_kex_reply(&mut self, payload: &[u8], out: &mut Vec<u8>) -> Result<bool, Fault> {
        let number = payload.first().copied().unwrap_or_default();
        if let Stage::Exchanging {
            skip_next: skip @ true,
            ..
        } = &mut self.stage
        {
            *skip = false;
            return Ok(false);
        }
        let stage = std::mem::replace(&mut self.stage, Stage::Idle);
        let Stage::Exchanging {
            ours,
            theirs,
            agreement,
            exchange,
            ..
        } = stage
        else {
            self.stage = stage;
            return Err(self.unexpected(number).into());
        };
        if number != msg::KEX_REPLY {
            return Err(ProtocolError::Unexpected {
                number,
                during: "a key exchange",
            }
            .into());
        }
        let mut reader = Reader::new(payload.get(1..).unwrap_or_default());
        let (host_key, server_value, signature) = (reader.string()?, reader.string()?, reader.string()?);
        reader.finish()?;
        let client_value = exchange.client_value.clone();
        let secret = exchange.finish(server_value)?;
        let hash = Transcript {
            client_version: CLIENT_VERSION,
            server_version: self.server_version.as_deref().unwrap_or_default(),
            client_init: &ours,
            server_init: &theirs,
            host_key,
            client_value: &client_value,
            server_value,
        }
        .hash(&secret);
        agreement.host_key.verify(host_key, signature, &hash)?;
        self.check_trust(host_key)?;
        self.rekeys += u64::from(self.session_id.is_some());
        let session_id = *self.session_id.get_or_insert(hash);
        self.agreement = Some(agreement);
        let source = Box::new(KeySource::new(secret, hash, session_id));
        self.seal(out, &[&[msg::NEWKEYS]])?;
        let (sealer, strict) = (&mut self.sealer, self.strict);
        source.keys(Direction::ClientToServer, agreement.cipher_out, |keys| {
            sealer.change_keys(keys, strict)
        })?;
        self.stage = Stage::Switching {
            source,
            cipher_in: agreement.cipher_in,
        };
        self.held_bytes = 0;
        for message in std::mem::take(&mut self.held) {
            self.seal(out, &[&message])?;
        }
        Ok(true)
    }

    fn check_trust(&mut self, host_key: &[u8]) -> Result<(), Fault> {
        match &self.host_key {
            Some(known) if known != host_key => return Err(ProtocolError::HostKeyChanged.into()),
            Some(_) => return Ok(()),
            None => {}
        }
        if let Trust::Pinned(expected) = &self.trust
            && !expected.matches(host_key)
        {
            return Err(Fault::Fingerprint {
                expected: expected.clone(),
                seen: Fingerprint::of(host_key),
            });
        }
        self.host_key = Some(host_key.to_vec());
        Ok(())
    }

    fn on_newkeys(&mut self, payload: &[u8]) -> Result<(), ProtocolError> {
        let stage = std::mem::replace(&mut self.stage, Stage::Idle);
        let Stage::Switching { source, cipher_in } = stage else {
            self.stage = stage;
            return Err(self.unexpected(msg::NEWKEYS));
        };
        if payload.len() != 1 {
            return Err(ProtocolError::TrailingBytes);
        }
        let (opener, strict) = (&mut self.opener, self.strict);
        source.keys(Direction::ServerToClient, cipher_in, |keys| {
            opener.change_keys(keys, strict)
        })
    }
}

fn read_disconnect(payload: &[u8]) -> Fault {
    let mut reader = Reader::new(payload.get(1..).unwrap_or_default());
    let code = reader.u32().unwrap_or_default();
    let reason = reader.string().map(printable).unwrap_or_default();
    Fault::Disconnected { code, reason }
}

/// A DISCONNECT message.
pub(crate) fn disconnect_message(code: u32, reason: &str) -> Vec<u8> {
    let mut message = vec![msg::DISCONNECT];
    message.put_u32(code);
    message.put_string(reason.as_bytes());
    message.put_string(b"");
    message
}
