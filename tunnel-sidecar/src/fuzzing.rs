//! One entry for each parser of bytes from outside, for the fuzz targets and for the replay of their corpora.

use crate::{
    datagrams::gob::{Decoder, Encoder},
    echo::Announcement,
    socks::{rules::Rule, wire},
    spelling::Spelling,
};

/// What a fuzzer calls.
pub type Target = fn(&[u8]);

/// All targets, by the name of their corpus folder.
pub const TARGETS: [(&str, Target); 4] = [
    ("announcements", announcements),
    ("datagrams", datagrams),
    ("socks", socks),
    ("spellings", spellings),
];

/// A line at the echo door.
pub fn announcements(data: &[u8]) {
    if let Ok(read) = Announcement::parse(data) {
        assert!(!read.every.is_zero() && read.nonce.iter().all(u8::is_ascii_hexdigit));
        assert!(!read.forward.contains(char::is_whitespace));
    }
}

/// A stream of datagrams, arriving in pieces whose size the first byte says; what is read can be written and read.
pub fn datagrams(data: &[u8]) {
    let Some((first, data)) = data.split_first() else {
        return;
    };
    let mut decoder = Decoder::default();
    for piece in data.chunks(usize::from(*first).max(1)) {
        decoder.push(piece);
        loop {
            match decoder.next_datagram() {
                Ok(Some(datagram)) => {
                    let mut again = Decoder::default();
                    again.push(&Encoder::default().encode(&datagram.peer, &datagram.payload));
                    assert_eq!(again.next_datagram(), Ok(Some(datagram)));
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}

/// A SOCKS5 user.
pub fn socks(data: &[u8]) {
    if let Ok(Some(used)) = wire::greeting(data) {
        assert!(used <= data.len());
    }
    if let Ok(Some((target, used))) = wire::request(data) {
        assert!(used <= data.len() && target.port() > 0);
    }
}

/// Remotes as the owner spells them, and rules for SOCKS.
pub fn spellings(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(spelling) = text.parse::<Spelling>() {
        assert!(spelling.listen_port > 0 && spelling.name().len() <= 63);
    }
    if let Ok(rule) = text.parse::<Rule>() {
        assert_eq!(rule.to_string().parse(), Ok(rule));
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::TARGETS;

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
