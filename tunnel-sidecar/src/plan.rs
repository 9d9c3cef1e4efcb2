//! What has to change so that the sessions carry the desired forwards, with the least disturbance.
//!
//! chisel fixes the remotes of a session when it opens, so a session cannot gain or lose a listener. Forwards
//! therefore ride in *lanes*, each one session, normally a single one for all, by setting several side by side over
//! which the forwards are spread in turn (a listener belongs to one session, so one forward cannot use two):
//!
//! ```text
//!   a forward is added    ► its own lane beside the others, nothing is disturbed
//!   a forward is removed  ► its channels are refused at once; its lane opens anew without it as soon as that
//!                           disturbs no open connection of another forward
//!   a target changes      ► nothing: the session does not know targets
//!   the server refuses a port ► that forward waits in a lane of its own, the rest goes on
//!   a session is lost     ► lanes that are down come back as one, or as many as the setting says
//! ```
//!
//! Pure: no clock, no socket.

use std::collections::BTreeSet;

use crate::remotes::Listen;

/// More lanes than this are folded into one at the next addition: each is a TCP connection with keys of its own.
pub const MAX_LANES: usize = 4;

/// Names a lane for as long as it exists.
pub type LaneId = u64;

/// Why a lane exists apart from the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// For no reason of its own.
    Common,
    /// The server could not listen on these ports.
    PortTaken,
    /// The server's rules deny these ports.
    Denied,
}

/// A lane as the plan sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Which.
    pub id: LaneId,
    /// Why it is apart.
    pub kind: Kind,
    /// Whether its session is open.
    pub connected: bool,
    /// What it listens on, or will.
    pub listens: Vec<Listen>,
    /// Names of its forwards with open connections.
    pub busy: BTreeSet<String>,
}

/// A step towards the desired forwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Open a new lane.
    Start(Vec<Listen>),
    /// End a lane.
    Stop(LaneId),
    /// End a lane's session and open it anew with these.
    Reopen(LaneId, Vec<Listen>),
}

/// The steps from the lanes there are to the desired forwards. None when nothing has to change.
pub fn plan(lanes: &[View], desired: &[Listen], sessions: usize) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut added: Vec<Listen> = desired
        .iter()
        .filter(|listen| !lanes.iter().any(|lane| lane.listens.contains(listen)))
        .cloned()
        .collect();
    let mut left = 0;
    for lane in lanes {
        let (kept, gone): (Vec<_>, Vec<_>) = lane
            .listens
            .iter()
            .cloned()
            .partition(|listen| desired.contains(listen));
        // A port that a new forward wants has to be freed now; else what the lane carries for others comes first: its
        // own forwards that stay, and channels to the server, which ride on any session.
        let in_the_way = gone
            .iter()
            .any(|listen| added.iter().any(|new| new.overlaps(listen)));
        let rides = |listen: &&Listen| listen.shape.is_local() && !lane.listens.contains(listen);
        let mut carried = kept.iter().chain(desired.iter().filter(rides));
        let disturbs = lane.connected && carried.any(|listen| lane.busy.contains(&listen.name));
        if kept.is_empty() {
            if in_the_way || !disturbs {
                steps.push(Step::Stop(lane.id));
            }
            continue;
        }
        left += 1;
        if !gone.is_empty() && (in_the_way || !disturbs) {
            steps.push(Step::Reopen(lane.id, kept));
        }
    }
    if added.is_empty() {
        return steps;
    }
    // A lane that opens anyway takes the new ones along.
    for step in &mut steps {
        if let Step::Reopen(_, listens) = step {
            listens.append(&mut added);
            return steps;
        }
    }
    let stopped: BTreeSet<LaneId> = steps
        .iter()
        .filter_map(|step| {
            if let Step::Stop(id) = step {
                Some(*id)
            } else {
                None
            }
        })
        .collect();
    let staying = || lanes.iter().filter(|lane| !stopped.contains(&lane.id));
    let down = staying().find(|lane| !lane.connected && lane.kind == Kind::Common);
    let quietest = || {
        staying()
            .filter(|lane| lane.kind == Kind::Common)
            .min_by_key(|lane| lane.busy.len())
    };
    let room = sessions.saturating_sub(staying().filter(|lane| lane.kind == Kind::Common).count());
    let taking = if room > 0 {
        None
    } else {
        down.or_else(|| {
            if left < MAX_LANES.max(sessions) {
                None
            } else {
                quietest()
            }
        })
    };
    match taking {
        Some(lane) => {
            let kept = lane
                .listens
                .iter()
                .filter(|listen| desired.contains(listen))
                .cloned();
            steps.push(Step::Reopen(lane.id, kept.chain(added).collect()));
        }
        None => steps.extend(spread(added, room.max(1)).into_iter().map(Step::Start)),
    }
    steps
}

/// Deals forwards out to at most so many lanes, in turn.
fn spread(listens: Vec<Listen>, lanes: usize) -> Vec<Vec<Listen>> {
    let mut dealt = vec![Vec::new(); lanes.min(listens.len())];
    for (turn, listen) in listens.into_iter().enumerate() {
        let place = turn % dealt.len().max(1);
        if let Some(lane) = dealt.get_mut(place) {
            lane.push(listen);
        }
    }
    dealt
}

/// Lanes whose forwards a lane takes along when it opens after a loss: those that are down anyway. What the server's
/// rules deny stays apart, because it would slow the others down. `sessions` lanes stay side by side.
pub fn absorbed(lanes: &[View], opening: LaneId, sessions: usize) -> Vec<LaneId> {
    let common = lanes.iter().filter(|lane| lane.kind == Kind::Common).count();
    let mut surplus = common.saturating_sub(sessions.max(1));
    let mut taken = Vec::new();
    for lane in lanes.iter().filter(|lane| lane.id != opening && !lane.connected) {
        match lane.kind {
            Kind::Denied => {}
            Kind::PortTaken => taken.push(lane.id),
            Kind::Common if surplus > 0 => {
                surplus -= 1;
                taken.push(lane.id);
            }
            Kind::Common => {}
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn listen(name: &str, port: u32) -> Listen {
        Listen::new(name, "", port).unwrap()
    }

    fn lane(id: LaneId, connected: bool, listens: &[Listen], busy: &[&str]) -> View {
        let busy = busy.iter().map(|name| (*name).to_owned()).collect();
        View {
            id,
            kind: Kind::Common,
            connected,
            listens: listens.to_vec(),
            busy,
        }
    }

    #[test]
    fn equal_content_changes_nothing() {
        let all = [listen("a", 1), listen("b", 2)];
        assert_eq!(plan(&[lane(1, true, &all, &["a"])], &all, 1), []);
        assert_eq!(plan(&[], &[], 1), []);
    }

    #[test]
    fn an_added_forward_disturbs_nobody() {
        let (a, b) = (listen("a", 1), listen("b", 2));
        assert_eq!(
            plan(&[], std::slice::from_ref(&a), 1),
            [Step::Start(vec![a.clone()])]
        );
        let up = lane(1, true, std::slice::from_ref(&a), &["a"]);
        assert_eq!(
            plan(&[up], &[a.clone(), b.clone()], 1),
            [Step::Start(vec![b.clone()])]
        );
        let down = lane(1, false, std::slice::from_ref(&a), &[]);
        assert_eq!(
            plan(&[down], &[a.clone(), b.clone()], 1),
            [Step::Reopen(1, vec![a, b])]
        );
    }

    #[test]
    fn a_removed_forward_waits_for_the_connections_of_the_others() {
        let (a, b) = (listen("a", 1), listen("b", 2));
        let both = [a.clone(), b.clone()];
        assert_eq!(
            plan(&[lane(1, true, &both, &["a"])], std::slice::from_ref(&a), 1),
            []
        );
        let step = [Step::Reopen(1, vec![a.clone()])];
        assert_eq!(
            plan(&[lane(1, true, &both, &["b"])], std::slice::from_ref(&a), 1),
            step
        );
        assert_eq!(plan(&[lane(1, true, &both, &[])], &[], 1), [Step::Stop(1)]);
    }

    #[test]
    fn a_lane_that_carries_channels_to_the_server_waits_for_them() {
        let (a, b) = (listen("a", 1), listen("b", 2));
        let dials = crate::spelling::Dials::Socks;
        let local = listen("ours", 3).with(crate::remotes::Shape::LocalTcp(dials));
        let of_local = lane(1, true, std::slice::from_ref(&local), &[]);
        let desired = [local.clone(), b.clone()];
        for (busy, steps) in [(&["ours"][..], vec![]), (&[], vec![Step::Stop(2)])] {
            let of_a = lane(2, true, std::slice::from_ref(&a), busy);
            let of_b = lane(3, true, std::slice::from_ref(&b), &[]);
            assert_eq!(plan(&[of_local.clone(), of_a, of_b], &desired, 3), steps);
        }
        let both = lane(2, true, &[a, b.clone()], &["ours"]);
        assert_eq!(plan(&[of_local.clone(), both.clone()], &desired, 2), []);
        // Unless somebody wants the port.
        let renamed = listen("renamed", 1);
        assert_eq!(
            plan(&[of_local, both], &[local, b.clone(), renamed.clone()], 2),
            [Step::Reopen(2, vec![b, renamed])]
        );
    }

    #[test]
    fn a_port_that_changes_hands_is_freed_at_once() {
        let (a, b, renamed) = (listen("a", 1), listen("b", 2), listen("c", 2));
        let lanes = [lane(1, true, &[a.clone(), b], &["a"])];
        assert_eq!(
            plan(&lanes, &[a.clone(), renamed.clone()], 1),
            [Step::Reopen(1, vec![a, renamed])]
        );
    }

    #[test]
    fn too_many_lanes_are_folded() {
        let lanes: Vec<_> = (1..=4)
            .map(|id| {
                lane(
                    id.into(),
                    true,
                    &[listen(&format!("f{id}"), id)],
                    &["x"][..(id % 2) as usize],
                )
            })
            .collect();
        let mut desired: Vec<_> = (1..=4).map(|id| listen(&format!("f{id}"), id)).collect();
        desired.push(listen("new", 9));
        assert_eq!(
            plan(&lanes, &desired, 1),
            [Step::Reopen(2, vec![listen("f2", 2), listen("new", 9)])]
        );
    }

    #[test]
    fn lanes_that_are_down_come_back_as_one() {
        let denied = View {
            kind: Kind::Denied,
            ..lane(4, false, &[listen("d", 4)], &[])
        };
        let lanes = [
            lane(1, false, &[listen("a", 1)], &[]),
            lane(2, false, &[listen("b", 2)], &[]),
            lane(3, true, &[listen("c", 3)], &[]),
            denied,
        ];
        assert_eq!(absorbed(&lanes, 1, 1), [2]);
    }

    #[test]
    fn forwards_are_spread_over_as_many_sessions_as_the_setting_says() {
        let all: Vec<_> = (1..=5).map(|port| listen(&format!("f{port}"), port)).collect();
        let take = |ports: &[usize]| ports.iter().map(|port| all[port - 1].clone()).collect::<Vec<_>>();
        let three = [take(&[1, 4]), take(&[2, 5]), take(&[3])];
        assert_eq!(plan(&[], &all, 3), three.clone().map(Step::Start));
        assert_eq!(
            plan(&[], &take(&[1, 2]), 3).len(),
            2,
            "never more lanes than forwards"
        );
        let lanes: Vec<_> = (1..)
            .zip(&three)
            .map(|(id, some)| lane(id, true, some, &[]))
            .collect();
        assert_eq!(plan(&lanes, &all, 3), []);
        // All three are lost: each comes back by itself.
        let down: Vec<_> = (1..)
            .zip(&three)
            .map(|(id, some)| lane(id, false, some, &[]))
            .collect();
        assert!(absorbed(&down, 1, 3).is_empty());
        assert_eq!(absorbed(&down, 1, 2), [2]);
    }

    proptest! {
        /// Whatever there is, the steps lead to each desired forward in exactly one lane, and a lane whose forwards
        /// are all still wanted is touched only to take new ones along.
        #[test]
        fn the_steps_lead_to_the_desired_forwards(
            before in proptest::collection::vec((0_u64..5, any::<bool>()), 0..8),
            wanted in proptest::collection::btree_set(1_u32..9, 0..8),
            sessions in 1_usize..6,
        ) {
            let mut lanes: Vec<View> = Vec::new();
            for (port, (id, connected)) in (1_u32..).zip(before) {
                match lanes.iter_mut().find(|lane| lane.id == id) {
                    Some(lane) => lane.listens.push(listen(&format!("f{port}"), port)),
                    None => lanes.push(lane(id, connected, &[listen(&format!("f{port}"), port)], &[])),
                }
            }
            let desired: Vec<_> = wanted.iter().map(|port| listen(&format!("f{port}"), *port)).collect();
            let mut after: Vec<Vec<Listen>> = Vec::new();
            let steps = plan(&lanes, &desired, sessions);
            for lane in &lanes {
                let step = steps.iter().find(|step| matches!(step, Step::Stop(id) | Step::Reopen(id, _) if *id == lane.id));
                match step {
                    Some(Step::Reopen(_, listens)) => after.push(listens.clone()),
                    Some(Step::Stop(_) | Step::Start(_)) => {}
                    None => after.push(lane.listens.clone()),
                }
            }
            after.extend(steps.iter().filter_map(|step| if let Step::Start(listens) = step { Some(listens.clone()) } else { None }));
            let mut carried: Vec<_> = after.into_iter().flatten().collect();
            carried.sort();
            let mut expected = desired;
            expected.sort();
            prop_assert_eq!(carried, expected);
        }
    }
}
