use super::*;
use crate::double::{channel_message, data_message, open_message};
use proptest::prelude::*;
use std::collections::HashMap;

fn table(limits: impl FnOnce(&mut TableLimits)) -> Table {
    let mut sizes = TableLimits {
        initial_window: 2 << 20,
        max_window: 16 << 20,
        budget: 64 << 20,
        max_channels: 10_000,
        backlog: 128,
    };
    limits(&mut sizes);
    Table::new(sizes)
}

fn open(table: &mut Table, peer: u32) -> (u32, u32) {
    table
        .receive(&open_message(peer, 1 << 21, "x:1"), &mut |_, _| 0)
        .unwrap();
    let Some(ChannelEvent::Opened(open)) = table.next_event() else {
        panic!("no open")
    };
    let id = table.accept(&open);
    let confirmation = table.next_outgoing().unwrap();
    (id, u32::from_be_bytes(confirmation[9..13].try_into().unwrap()))
}

fn credits(table: &mut Table) -> u32 {
    std::iter::from_fn(|| table.next_outgoing())
        .map(|message| {
            assert_eq!(message[0], msg::CHANNEL_WINDOW_ADJUST);
            u32::from_be_bytes(message[5..].try_into().unwrap())
        })
        .sum()
}

#[test]
fn the_budget_bounds_the_windows_of_all_channels() {
    let mut table = table(|_| {});
    let windows: Vec<u32> = (0..1000).map(|peer| open(&mut table, peer).1).collect();
    assert_eq!(windows[0], 2 << 20);
    assert_eq!(windows[999], 64 << 10);
    assert!(windows.is_sorted_by(|a, b| a >= b));
    let total: u64 = windows.iter().map(|window| u64::from(*window)).sum();
    assert!(total <= (64 << 20) + 1000 * (64 << 10), "{total}");
    // What is given back can be given again.
    for id in 0..1000 {
        table.release(id);
        table
            .receive(&channel_message(msg::CHANNEL_CLOSE, id, &[]), &mut |_, _| 0)
            .unwrap();
    }
    assert_eq!((table.open_channels(), table.committed), (0, 0));
    while table.next_outgoing().is_some() {}
    while table.next_event().is_some() {}
    assert_eq!(open(&mut table, 1), (0, 2 << 20));
}

/// Many channels with the least window exceed the budget; then the larger windows shrink as their data is consumed, and nothing is lost on the way.
#[test]
fn above_the_budget_consumption_is_not_credited() {
    let mut table = table(|sizes| sizes.budget = 4 << 20);
    let (first, window) = open(&mut table, 0);
    assert_eq!(window, 256 << 10);
    for peer in 1..80 {
        open(&mut table, peer);
    }
    let over = table.committed - (4 << 20);
    assert!(over > 128 << 10, "{over}");
    let mut given = 0;
    for _ in 0..window / (32 << 10) {
        table
            .receive(&data_message(first, &vec![0; 32 << 10]), &mut |_, data| {
                data.len()
            })
            .unwrap();
        given += credits(&mut table);
    }
    assert_eq!(given, 64 << 10, "all but the least window is kept back");
    assert_eq!(table.committed, (4 << 20) + over - (192 << 10));
}

/// Data comes in messages as large as they may be; whether the consumer takes it at once. Returns the credit for it.
fn flow(table: &mut Table, id: u32, total: u32, taken: bool) -> u32 {
    let mut given = 0;
    for _ in 0..total / MAX_DATA {
        let message = data_message(id, &vec![0; MAX_DATA as usize]);
        table
            .receive(&message, &mut |_, data| if taken { data.len() } else { 0 })
            .unwrap();
        given += credits(table);
    }
    given
}

fn target(table: &mut Table, id: u32) -> u32 {
    table.slot(id).unwrap().target
}

/// One round trip in which `total` flows.
fn round_trip(table: &mut Table, id: u32, total: u32, taken: bool) {
    table.probe_start();
    flow(table, id, total, taken);
    table.probe_done();
}

#[test]
fn a_window_that_limits_is_full_grown_after_two_probes() {
    let mut table = table(|_| {});
    let (id, window) = open(&mut table, 1);
    assert_eq!(window, 2 << 20);
    // Half a window is enough to ask.
    flow(&mut table, id, window / 2 - MAX_DATA, true);
    assert!(!table.wants_probe());
    flow(&mut table, id, MAX_DATA, true);
    assert!(table.wants_probe());
    // All of the window flows in the round trip, then what of the old window is under way, then all of the new one.
    round_trip(&mut table, id, window, true);
    assert_eq!((target(&mut table, id), credits(&mut table)), (8 << 20, 6 << 20));
    flow(&mut table, id, window - MAX_DATA, true);
    assert!(!table.wants_probe());
    flow(&mut table, id, MAX_DATA, true);
    assert!(table.wants_probe());
    round_trip(&mut table, id, 8 << 20, true);
    assert_eq!((target(&mut table, id), table.committed), (16 << 20, 16 << 20));
    // That is the largest there may be, and nobody asks any more.
    credits(&mut table);
    flow(&mut table, id, 128 << 20, true);
    assert!(!table.wants_probe());
}

#[test]
fn a_window_that_does_not_limit_stays_and_is_asked_about_less_and_less() {
    let mut table = table(|_| {});
    let (id, window) = open(&mut table, 1);
    let mut asked = Vec::new();
    for n in 0..(512 << 20) / MAX_DATA {
        flow(&mut table, id, MAX_DATA, true);
        if table.wants_probe() {
            asked.push((n * MAX_DATA) >> 20);
            round_trip(&mut table, id, window / 2, true);
        }
    }
    assert_eq!(target(&mut table, id), window);
    assert!(asked.len() <= 14, "{asked:?}");
    // Another channel asks by itself, however seldom this one does.
    while table.next_event().is_some() {}
    let (other, _) = open(&mut table, 2);
    flow(&mut table, other, window / 2, true);
    assert!(table.wants_probe());
    round_trip(&mut table, other, window, true);
    assert_eq!(
        (target(&mut table, other), target(&mut table, id)),
        (8 << 20, window)
    );
}

#[test]
fn a_consumer_that_lags_is_no_reason_to_grow() {
    let mut table = table(|_| {});
    let (id, window) = open(&mut table, 1);
    flow(&mut table, id, window / 2, true);
    // All of it comes, and an eighth of it is not taken in the round trip.
    table.probe_start();
    flow(&mut table, id, window, false);
    let most = window as usize / 8 * 7;
    assert_eq!(table.read(id, &mut vec![0; most]), Read::Data(most));
    table.probe_done();
    assert_eq!(target(&mut table, id), window);
    // Once it keeps up, there is.
    while let Read::Data(_) = table.read(id, &mut vec![0; most]) {}
    credits(&mut table);
    flow(&mut table, id, window * 2, true);
    assert!(table.wants_probe());
    round_trip(&mut table, id, window, true);
    assert_eq!(target(&mut table, id), window * 4);
}

#[test]
fn windows_grow_into_half_of_what_the_budget_has_left() {
    let budget = 16 << 20;
    let mut table = table(|sizes| sizes.budget = budget);
    let ids: Vec<_> = (0..8)
        .map(|peer| {
            let (id, window) = open(&mut table, peer);
            while table.next_event().is_some() {}
            flow(&mut table, id, window / 2 + MAX_DATA, true);
            id
        })
        .collect();
    let before: Vec<_> = ids.iter().map(|id| target(&mut table, *id)).collect();
    let mut left = budget - table.committed;
    table.probe_start();
    for (id, window) in ids.iter().zip(&before) {
        flow(&mut table, *id, *window, true);
    }
    table.probe_done();
    let mut cut = 0;
    for (id, window) in ids.iter().zip(before) {
        let grown = target(&mut table, *id) - window;
        assert_eq!(grown as usize, (window as usize * 3).min(left / 2));
        cut += u32::from(grown < window * 3);
        left -= grown as usize;
    }
    assert!(
        cut > 0 && table.committed == budget - left,
        "{cut} got less than they wanted"
    );
    credits(&mut table);
    // A channel that is gone is asked no more.
    table.growth.probing.clone_from(&ids);
    for id in ids {
        table.release(id);
        table
            .receive(&channel_message(msg::CHANNEL_CLOSE, id, &[]), &mut |_, _| 0)
            .unwrap();
    }
    assert!(table.growth.probing.is_empty() && !table.wants_probe());
    assert_eq!(table.committed, 0);
}

/// What the other side does, or the consumer.
#[derive(Debug, Clone)]
enum Action {
    Open,
    Accept(bool),
    Receive(Vec<u8>),
    /// How much comes, and how much of it the consumer takes at once.
    Data(u32, u16, u16),
    Drain(u32, u16),
    Ask,
    Answer(u32, bool),
    PeerClose(u32),
    Read(u32, u16),
    Write(u32),
    Close(u32),
    Release(u32),
}

fn action() -> impl Strategy<Value = Action> {
    let id = 0..4_u32;
    prop_oneof![
        Just(Action::Open),
        any::<bool>().prop_map(Action::Accept),
        (
            93..100_u8,
            id.clone(),
            proptest::collection::vec(any::<u8>(), 0..12)
        )
            .prop_map(|(number, id, rest)| Action::Receive(channel_message(number, id, &rest))),
        (id.clone(), any::<u16>(), any::<u16>()).prop_map(|(id, size, taken)| Action::Data(id, size, taken)),
        (id.clone(), any::<u16>()).prop_map(|(id, size)| Action::Drain(id, size)),
        Just(Action::Ask),
        (id.clone(), any::<bool>()).prop_map(|(id, yes)| Action::Answer(id, yes)),
        id.clone().prop_map(Action::PeerClose),
        (id.clone(), any::<u16>()).prop_map(|(id, size)| Action::Read(id, size)),
        id.clone().prop_map(Action::Write),
        id.clone().prop_map(Action::Close),
        id.prop_map(Action::Release),
    ]
}

proptest! {
    /// Whatever happens: nothing for a channel after our CLOSE, one CLOSE each, never more queued than granted.
    #[test]
    fn the_rules_a_chisel_server_enforces(actions in proptest::collection::vec(action(), 0..120)) {
        let mut table = table(|sizes| {
            sizes.initial_window = 128 << 10;
            sizes.budget = 1 << 20;
        });
        let mut waiting = Vec::new();
        let mut next_peer = 0;
        // Peer number to whether our CLOSE was sent. Peer numbers are never used again here.
        let mut closed: HashMap<u32, bool> = HashMap::new();
        for action in actions {
            match action {
                Action::Open => {
                    table.receive(&open_message(next_peer, 1000, "x:1"), &mut |_, _| 0).unwrap();
                    next_peer += 1;
                }
                Action::Accept(true) => {
                    if let Some(open) = waiting.pop() {
                        table.accept(&open);
                    }
                }
                Action::Accept(false) => {
                    if let Some(open) = waiting.pop() {
                        table.reject(&open, RejectReason::ConnectFailed, "no");
                    }
                }
                Action::Receive(message) => drop(table.receive(&message, &mut |_, _| 0)),
                Action::Data(id, size, taken) => {
                    let message = data_message(id, &vec![0; usize::from(size) % (33 << 10)]);
                    drop(table.receive(&message, &mut |_, _| usize::from(taken)));
                }
                Action::Drain(id, size) => {
                    let mut left = usize::from(size);
                    let drained = table.drain(id, |data| {
                        let n = data.len().min(left);
                        left -= n;
                        if n == 7 { Err(()) } else { Ok(n) }
                    });
                    prop_assert!(drained != Ok(Drained::Blocked) || left == 0);
                }
                Action::Ask => drop(table.open("x:1")),
                Action::Answer(id, yes) => {
                    let asked = table.slot(id).is_some_and(|slot| slot.opening);
                    let answer = if yes {
                        let numbers = [next_peer, 1000, 32 << 10].map(u32::to_be_bytes).concat();
                        channel_message(msg::CHANNEL_OPEN_CONFIRMATION, id, &numbers)
                    } else {
                        channel_message(msg::CHANNEL_OPEN_FAILURE, id, &[0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0])
                    };
                    prop_assert_eq!(table.receive(&answer, &mut |_, _| 0).is_ok(), asked);
                    if asked && yes {
                        closed.insert(next_peer, false);
                        next_peer += 1;
                    }
                }
                Action::PeerClose(id) => {
                    drop(table.receive(&channel_message(msg::CHANNEL_CLOSE, id, &[]), &mut |_, _| 0));
                }
                Action::Read(id, size) => drop(table.read(id, &mut vec![0; usize::from(size)])),
                Action::Write(id) => {
                    if let Allowance::Bytes { peer, limit } = table.allowance(id) {
                        prop_assert!(limit > 0 && limit <= 32 << 10);
                        prop_assert_eq!(closed.get(&peer), Some(&false));
                        table.sent(id, limit);
                    }
                }
                Action::Close(id) => table.close(id),
                Action::Release(id) => table.release(id),
            }
            while let Some(event) = table.next_event() {
                if let ChannelEvent::Opened(open) = event {
                    waiting.push(open);
                }
            }
            while let Some(message) = table.next_outgoing() {
                let peer = u32::from_be_bytes(message[1..5].try_into().unwrap());
                if message[0] == msg::CHANNEL_OPEN {
                    continue;
                }
                match message[0] {
                    msg::CHANNEL_OPEN_CONFIRMATION => prop_assert_eq!(closed.insert(peer, false), None),
                    msg::CHANNEL_OPEN_FAILURE => prop_assert!(!closed.contains_key(&peer)),
                    msg::CHANNEL_CLOSE => prop_assert_eq!(closed.insert(peer, true), Some(false)),
                    _ => prop_assert_eq!(closed.get(&peer), Some(&false)),
                }
            }
            let mut queued = 0;
            for slot in table.slots.iter().flatten() {
                queued += slot.queue.len();
                let held = slot.queue.len() as u64 + u64::from(slot.granted) + u64::from(slot.uncredited);
                prop_assert!(held <= u64::from(slot.target));
                prop_assert!(!slot.released || slot.queue.is_empty());
            }
            prop_assert_eq!(queued, table.queued_bytes());
            prop_assert!(table.committed <= (1 << 20) + table.open_channels() * (64 << 10));
        }
    }

    #[test]
    fn any_message_never_panics(messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..10)) {
        let mut table = table(|_| {});
        open(&mut table, 1);
        for mut message in messages {
            drop(table.receive(&message, &mut |_, data| data.len()));
            if let Some(first) = message.first_mut() {
                *first = 90 + *first % 11;
            }
            drop(table.receive(&message, &mut |_, data| data.len()));
        }
    }
}
