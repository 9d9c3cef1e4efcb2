use super::*;
use proptest::prelude::*;

/// What a server makes of masked messages: the payload of each.
pub(crate) fn unmask_all(mut data: &[u8]) -> Vec<Vec<u8>> {
    let mut messages = Vec::new();
    while !data.is_empty() {
        let (header, size) = Header::parse(data).unwrap().unwrap();
        let end = size + usize::try_from(header.length).unwrap();
        let mut payload = data[size..end].to_vec();
        mask(&mut payload, header.key.expect("a client masks"));
        messages.push(payload);
        data = &data[end..];
    }
    messages
}

fn append(out: &mut Vec<u8>, packet: &[u8]) {
    append_packet::<()>(out, packet.len(), |out| {
        out.extend_from_slice(packet);
        Ok(())
    })
    .unwrap();
}

#[test]
fn large_packets_are_two_messages_and_small_ones_one() {
    for (length, parts) in [
        (0, vec![0]),
        (1, vec![1]),
        (125, vec![125]),
        (126, vec![126]),
        (8192, vec![8192]),
        (8193, vec![4096, 4097]),
        (32_800, vec![4096, 28_704]),
        (100_000, vec![4096, 95_904]),
    ] {
        let packet: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
        let mut out = b"before".to_vec();
        append(&mut out, &packet);
        let messages = unmask_all(&out[6..]);
        assert_eq!(messages.iter().map(Vec::len).collect::<Vec<_>>(), parts);
        assert_eq!(messages.concat(), packet);
    }
}

/// A packet whose size shows only when it is there has room for the largest headers, and for more.
#[test]
fn packets_of_unknown_size_are_framed_alike() {
    for length in [
        0,
        1,
        125,
        126,
        8192,
        8193,
        32_800,
        65_535 + 4096,
        65_536 + 4096,
        250_000,
    ] {
        for gap in [GAP, GAP + 6, 40] {
            let packet: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
            let (mut known, mut unknown) = (Vec::new(), b"before".to_vec());
            append(&mut known, &packet);
            unknown.resize(6 + gap, 0);
            unknown.extend_from_slice(&packet);
            if length > 65_535 + 4096 && gap == GAP {
                // Would need a larger header than there is room for; channel data never gets there.
                continue;
            }
            frame_packet(&mut unknown, 6, gap);
            assert_eq!((&unknown[..6], unknown.len()), (&b"before"[..], 6 + known.len()));
            assert_eq!(unmask_all(&unknown[6..]), unmask_all(&known), "{length} {gap}");
        }
    }
}

#[test]
fn a_failed_packet_leaves_nothing_behind() {
    let mut out = b"before".to_vec();
    let result = append_packet(&mut out, 10_000, |out| {
        out.push(1);
        Err("no")
    });
    assert_eq!(result, Err("no"));
    assert_eq!(out, b"before");
}

#[test]
fn each_message_has_its_own_key() {
    let mut out = Vec::new();
    for _ in 0..8 {
        append(&mut out, &[0; 200]);
    }
    let mut keys: Vec<[u8; 4]> = out
        .chunks(208)
        .map(|frame| Header::parse(frame).unwrap().unwrap().0.key.unwrap())
        .collect();
    keys.sort_unstable();
    keys.dedup();
    assert!(keys.len() > 6, "random keys repeat: {keys:?}");
}

#[test]
fn pong_carries_the_payload() {
    let mut out = Vec::new();
    append_control(&mut out, Opcode::Pong, b"abc");
    assert_eq!(out[0], 0x8a);
    assert_eq!(unmask_all(&out), [b"abc".to_vec()]);
    let mut out = Vec::new();
    append_control(&mut out, Opcode::Pong, &[1; 300]);
    assert_eq!(unmask_all(&out), [vec![1; 125]]);
}

/// The masked "Hello" of RFC 6455 section 5.7.
#[test]
fn masking_as_in_the_rfc() {
    let mut data = *b"Hello";
    mask(&mut data, [0x37, 0xfa, 0x21, 0x3d]);
    assert_eq!(data, [0x7f, 0x9f, 0x4d, 0x51, 0x58]);
}

proptest! {
    #[test]
    fn headers_round_trip(last: bool, length in 0..(i64::MAX as u64), key: Option<[u8; 4]>, tail: Vec<u8>) {
        let header = Header { last, opcode: Opcode::Binary, length, key };
        let mut out = Vec::new();
        header.append(&mut out);
        let size = out.len();
        for cut in 0..size {
            prop_assert_eq!(Header::parse(&out[..cut]), Ok(None));
        }
        out.extend_from_slice(&tail);
        prop_assert_eq!(Header::parse(&out), Ok(Some((header, size))));
    }

    #[test]
    fn masking_twice_is_nothing(data: Vec<u8>, key: [u8; 4]) {
        let mut changed = data.clone();
        mask(&mut changed, key);
        let slow: Vec<u8> = data.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key).collect();
        prop_assert_eq!(&changed, &slow);
        mask(&mut changed, key);
        prop_assert_eq!(changed, data);
    }
}
