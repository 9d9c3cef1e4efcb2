//! One entry for each parser, for the fuzz targets and for the replay of their corpora.

use crate::{
    channel::{Table, TableLimits},
    cipher::{Cipher, Keys},
    client::Client,
    config::ClientConfig,
    exchange::{Exchange, Method},
    hostkey::HostKeyAlgorithm,
    http::Response,
    inbuf::InBuf,
    kexinit::{Ciphers, KexInit},
    packet::Opener,
    requests::Requests,
    transport::{Input, Offer, RekeyLimits, Transport, Trust},
    wire::Reader,
};

/// What a fuzzer calls.
pub type Target = fn(&[u8]);

/// All targets, by the name of their corpus folder.
pub const TARGETS: [(&str, Target); 7] = [
    ("http", http),
    ("frames", frames),
    ("packet", packet),
    ("kexinit", kexinit),
    ("kex", kex),
    ("channel", channel),
    ("session", session),
];

/// The answer to the upgrade request.
pub fn http(data: &[u8]) {
    if let Ok(Some((response, used))) = Response::parse(data) {
        assert!(used <= data.len());
        let _ = (response.check_upgrade([0; 16]), response.retry_after());
    }
}

/// WebSocket frames, arriving in pieces whose size the first byte says.
pub fn frames(data: &[u8]) {
    let Some((first, data)) = data.split_first() else {
        return;
    };
    let mut buffer = InBuf::new();
    for piece in data.chunks(usize::from(*first).max(1)) {
        if feed(&mut buffer, piece).is_none() {
            return;
        }
        let ready = buffer.plain().len();
        buffer.consume(ready / 2);
    }
}

/// Packets under each cipher, and under none.
pub fn packet(data: &[u8]) {
    let ciphers = [
        None,
        Some(Cipher::Aes128Gcm),
        Some(Cipher::Aes256Gcm),
        Some(Cipher::ChaCha20Poly1305),
    ];
    for cipher in ciphers {
        let mut opener = Opener::new();
        if let Some(cipher) = cipher {
            let key = vec![0; cipher.key_len()];
            let _ = opener.change_keys(
                &Keys {
                    cipher,
                    key: &key,
                    iv: [0; 12],
                },
                true,
            );
        }
        let mut data = data.to_vec();
        let mut rest = data.as_mut_slice();
        while let Ok(Some(opened)) = opener.open(rest) {
            assert!(
                rest.get(opened.payload)
                    .is_some_and(|payload| !payload.is_empty())
            );
            rest = rest.get_mut(opened.consumed..).unwrap_or_default();
        }
    }
}

/// An offer of algorithms.
pub fn kexinit(data: &[u8]) {
    if let Ok(offer) = KexInit::parse(data) {
        assert!(KexInit::parse(&offer.encode()).as_ref() == Ok(&offer));
        let _ = KexInit::client(&Method::ALL, Ciphers::AesFirst, [0; 16]).agree(&offer);
    }
}

/// The answer in a key exchange: which method, then the server's value; and the same bytes as host key and signature.
pub fn kex(data: &[u8]) {
    let Some((which, value)) = data.split_first() else {
        return;
    };
    let method = Method::ALL.into_iter().cycle().nth(usize::from(*which));
    if let Some(Ok(exchange)) = method.map(Exchange::start) {
        let _ = exchange.finish(value);
    }
    let mut reader = Reader::new(value);
    let key = reader.string().unwrap_or_default();
    for algorithm in HostKeyAlgorithm::ALL {
        // Nobody signs an unknown hash by chance.
        assert!(algorithm.verify(key, reader.clone().rest(), &[7; 32]).is_err());
    }
}

/// Messages of an open session, each with a length byte in front.
pub fn channel(data: &[u8]) {
    let mut table = Table::new(TableLimits {
        initial_window: 100_000,
        max_window: 200_000,
        budget: 1 << 20,
        max_channels: 8,
        backlog: 4,
    });
    // Two opens of ours wait for their answers.
    let _ = (table.open("a:1"), table.open("socks"));
    let mut rest = data;
    while let Some((length, tail)) = rest.split_first() {
        let (message, tail) = tail.split_at_checked(usize::from(*length)).unwrap_or((tail, &[]));
        rest = tail;
        let _ = Requests::answer(message);
        let mut appetite = message.len() / 2;
        let mut deliver = |_, data: &[u8]| std::mem::take(&mut appetite).min(data.len());
        if table.receive(message, &mut deliver).is_err() {
            return;
        }
        while let Some(event) = table.next_event() {
            if let crate::channel::ChannelEvent::Opened(open) = event {
                table.accept(&open);
            }
        }
        for id in 0..4 {
            table.read(id, &mut [0; 64]);
            let _ = table.drain(id, |data| Ok::<_, ()>(data.len() / 3));
        }
        while table.next_outgoing().is_some() {}
    }
}

/// Everything after the upgrade: version line and packets without keys; and the same with the upgrade in front.
pub fn session(data: &[u8]) {
    let limits = RekeyLimits {
        bytes: 1 << 20,
        packets: 100,
    };
    let mut transport = Transport::new(Offer::default(), Trust::FirstUse, limits);
    let mut out = Vec::new();
    let mut data_copy = data.to_vec();
    let mut rest = data_copy.as_mut_slice();
    if transport.start(&mut out).is_ok() {
        while let Ok(
            Input::Handled { consumed } | Input::Message { consumed, .. } | Input::Secured { consumed },
        ) = transport.receive(rest, &mut out)
        {
            rest = rest.get_mut(consumed..).unwrap_or_default();
        }
    }
    if let Ok(mut client) = Client::new(ClientConfig::new("a:1", "/")) {
        let mut buffer = InBuf::new();
        for piece in data.chunks(4096) {
            for (place, byte) in buffer.room().iter_mut().zip(piece) {
                *place = *byte;
            }
            buffer.filled(piece.len());
            if client
                .receive(&mut buffer, &mut |_, data| data.len() / 2)
                .is_err()
            {
                return;
            }
        }
    }
}

fn feed(buffer: &mut InBuf, piece: &[u8]) -> Option<()> {
    for (place, byte) in buffer.room().iter_mut().zip(piece) {
        *place = *byte;
    }
    buffer.filled(piece.len());
    while buffer.deframe().ok()?.is_some() {}
    Some(())
}

#[cfg(test)]
mod tests {
    use super::TARGETS;
    use std::{fs, path::Path};

    /// Every input that was ever interesting stays harmless.
    #[test]
    fn corpora_are_replayed() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        for (name, target) in TARGETS {
            let files: Vec<_> = fs::read_dir(corpus.join(name))
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .collect();
            assert!(files.len() >= 3, "the corpus of {name} is missing");
            for file in files {
                target(&fs::read(file).unwrap());
            }
        }
    }
}
