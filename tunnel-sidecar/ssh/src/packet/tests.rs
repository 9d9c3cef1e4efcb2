use super::*;
use crate::cipher::Cipher;
use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use proptest::prelude::*;

const KEY: [u8; 64] = [0x42; 64];
const IV: [u8; 12] = [1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 254];

fn pair(cipher: Option<Cipher>) -> (Sealer, Opener) {
    let (mut sealer, mut opener) = (Sealer::new(), Opener::new());
    if let Some(cipher) = cipher {
        let keys = Keys {
            cipher,
            key: &KEY[..cipher.key_len()],
            iv: IV,
        };
        sealer.change_keys(&keys, true).unwrap();
        opener.change_keys(&keys, true).unwrap();
    }
    (sealer, opener)
}

const ALL: [Option<Cipher>; 4] = [
    None,
    Some(Cipher::Aes128Gcm),
    Some(Cipher::Aes256Gcm),
    Some(Cipher::ChaCha20Poly1305),
];

/// The GCM framing checked against the cipher used by hand: clear length as associated data, counter in the last eight bytes of the nonce.
#[test]
fn gcm_framing_opens_by_hand() {
    let (mut sealer, _) = pair(Some(Cipher::Aes128Gcm));
    let mut out = Vec::new();
    let payload = b"payload of a packet";
    for _ in 0..3 {
        sealer.seal(&mut out, &[&payload[..7], &payload[7..]]).unwrap();
    }
    // 1 + 19 + padding is the next multiple of 16 that leaves at least 4.
    let (length, wire) = (32, 4 + 32 + 16);
    assert_eq!(out.len(), wire * 3);
    let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &KEY[..16]).unwrap());
    for (packet, count) in out.chunks_mut(wire).zip([254, 255, 256_u64]) {
        assert_eq!(packet[..4], u32::to_be_bytes(length));
        let mut nonce = IV;
        nonce[4..].copy_from_slice(&count.to_be_bytes());
        let (head, body) = packet.split_at_mut(4);
        let plain = key
            .open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(&*head), body)
            .unwrap();
        assert_eq!(plain[0], 12);
        assert_eq!(&plain[1..20], payload);
        assert_eq!(plain.len(), 32);
    }
}

/// `chacha20-poly1305@openssh.com` with keys 00..3f, sequence number 7 and eleven bytes of padding aa, made with OpenSSL's ChaCha20 and Poly1305 by the
/// rules of OpenSSH's PROTOCOL.chacha20poly1305: the second half of the key hides the length, the first one the rest, the tag covers both.
#[test]
fn chacha_known_answer() {
    let unhex = |text: &str| -> Vec<u8> {
        (0..text.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
            .collect()
    };
    let packet =
        unhex("a39afcb2232d7b2c39ed0a3f021ecc95a52579869e189a9cd4499729b918d29532c9b316dd03edcc2a7fb91e");
    let key: Vec<u8> = (0..64).collect();
    let keys = Keys {
        cipher: Cipher::ChaCha20Poly1305,
        key: &key,
        iv: [0; 12],
    };
    let mut opener = Opener::new();
    opener.change_keys(&keys, true).unwrap();
    opener.sequence = 7;
    let mut opened = packet.clone();
    let found = opener.open(&mut opened).unwrap().unwrap();
    assert_eq!(
        (&opened[found.payload], found.consumed),
        (&b"known answer"[..], packet.len())
    );
    let mut sealed = [&[0, 0, 0, 24, 11][..], b"known answer", &[0xaa; 11]].concat();
    let tag = SealKey::new(&keys)
        .unwrap()
        .seal(7, &mut sealed)
        .unwrap()
        .unwrap();
    assert_eq!([&sealed[..], &tag].concat(), packet);
}

#[test]
fn changed_bytes_and_repeated_packets_are_noticed() {
    for cipher in ALL.into_iter().flatten() {
        let (mut sealer, _) = pair(Some(cipher));
        let mut packet = Vec::new();
        sealer.seal(&mut packet, &[b"data"]).unwrap();
        for at in 4..packet.len() {
            let (_, mut opener) = pair(Some(cipher));
            let mut changed = packet.clone();
            changed[at] ^= 1;
            assert_eq!(
                opener.open(&mut changed),
                Err(ProtocolError::Integrity),
                "{cipher:?} byte {at}"
            );
        }
        let (_, mut opener) = pair(Some(cipher));
        opener.open(&mut packet.clone()).unwrap().unwrap();
        assert!(opener.open(&mut packet.clone()).is_err(), "{cipher:?}: replay");
    }
}

#[test]
fn lengths_and_padding_have_limits() {
    let open = |bytes: &[u8]| pair(None).1.open(&mut bytes.to_vec());
    assert_eq!(open(&[0, 0, 0]), Ok(None));
    for length in [0_u32, 4, 5, 11, 13, 256 * 1024 + 4, u32::MAX] {
        assert_eq!(
            open(&length.to_be_bytes()),
            Err(ProtocolError::PacketLength(length)),
            "{length}"
        );
    }
    assert_eq!(open(&(256 * 1024 - 4_u32).to_be_bytes()), Ok(None));
    let with_padding = |padding: u8| {
        let mut bytes = vec![0; 16];
        bytes[3] = 12;
        bytes[4] = padding;
        open(&bytes)
    };
    for padding in [0, 3, 11, 12, 255] {
        assert_eq!(with_padding(padding), Err(ProtocolError::Padding), "{padding}");
    }
    assert_eq!(
        with_padding(10),
        Ok(Some(Opened {
            consumed: 16,
            payload: 5..6
        }))
    );
    let too_long = vec![0; MAX_LENGTH];
    assert!(matches!(
        pair(None).0.seal(&mut Vec::new(), &[&too_long]),
        Err(ProtocolError::PacketLength(_))
    ));
}

proptest! {
    #[test]
    fn packets_round_trip(payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..5000), 1..5), which in 0..4_usize) {
        let (mut sealer, mut opener) = pair(ALL[which]);
        let mut wire = Vec::new();
        for payload in &payloads {
            let before = wire.len();
            let said = sealer.wire_len(payload.len());
            sealer.seal(&mut wire, &[payload]).unwrap();
            prop_assert_eq!(wire.len() - before, said);
        }
        let mut rest = &mut wire[..];
        for payload in &payloads {
            let opened = opener.open(rest).unwrap().unwrap();
            prop_assert_eq!(&rest[opened.payload], &payload[..]);
            rest = &mut rest[opened.consumed..];
        }
        prop_assert!(rest.is_empty());
    }

    #[test]
    fn a_prefix_is_never_a_packet(payload in proptest::collection::vec(any::<u8>(), 1..200), which in 0..4_usize) {
        let (mut sealer, mut opener) = pair(ALL[which]);
        let mut wire = Vec::new();
        sealer.seal(&mut wire, &[&payload]).unwrap();
        for cut in 0..wire.len() {
            prop_assert_eq!(opener.open(&mut wire[..cut].to_vec()), Ok(None));
        }
    }

    #[test]
    fn any_bytes_never_panic(mut data: Vec<u8>, which in 0..4_usize) {
        let _ = pair(ALL[which]).1.open(&mut data);
    }
}
