//! Which doors are open, for people, reports and readiness.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::SystemTime,
};

use proto::v1::DoorStatus;
use runtime::conditions::{Conditions, Status};

use crate::{
    shared::{DOORS, PEER_WINDOW},
    streams::lock,
};

#[derive(Clone, Debug)]
struct Door {
    address: String,
    open: bool,
    reason: String,
    since: SystemTime,
    connects: u64,
}

/// The doors by name; clones share them.
#[derive(Clone, Debug)]
pub struct Board {
    doors: Arc<Mutex<BTreeMap<String, Door>>>,
    /// Doors whose peers take no answer, and why.
    windows: Arc<Mutex<BTreeMap<String, &'static str>>>,
    conditions: Conditions,
}

impl Board {
    /// No doors yet.
    pub fn new(conditions: Conditions) -> Self {
        Self {
            doors: Arc::default(),
            windows: Arc::default(),
            conditions,
        }
    }

    /// Notes a door and whether it is open.
    pub fn set(&self, name: &str, address: &str, open: bool, reason: &str) {
        let mut doors = lock(&self.doors);
        let door = doors.entry(name.to_owned()).or_insert_with(|| Door {
            address: String::new(),
            open: !open,
            reason: String::new(),
            since: SystemTime::now(),
            connects: 0,
        });
        if door.open != open {
            door.open = open;
            door.since = SystemTime::now();
            door.connects += u64::from(open);
        }
        address.clone_into(&mut door.address);
        reason.clone_into(&mut door.reason);
        self.tell(&doors);
    }

    /// Forgets a door that is not wanted any more.
    pub fn remove(&self, name: &str) {
        let mut doors = lock(&self.doors);
        doors.remove(name);
        self.tell(&doors);
    }

    /// Notes whether the window of a door's peer is full, and why that is taken to be so.
    pub fn window(&self, name: &str, full: Option<&'static str>) {
        let mut windows = lock(&self.windows);
        let known = windows.contains_key(name);
        match full {
            Some(why) if !known => {
                windows.insert(name.to_owned(), why);
            }
            None if known => {
                windows.remove(name);
            }
            _ => return,
        }
        let full: Vec<String> = windows
            .iter()
            .map(|(name, why)| format!("{name}: {why}"))
            .collect();
        if full.is_empty() {
            self.conditions.set(
                PEER_WINDOW,
                Status::True,
                "every control plane takes answers again",
            );
        } else {
            self.conditions.set(PEER_WINDOW, Status::False, full.join("; "));
        }
    }

    /// All doors for a report.
    pub fn list(&self) -> Vec<DoorStatus> {
        let doors = lock(&self.doors);
        let status = |(name, door): (&String, &Door)| DoorStatus {
            name: name.clone(),
            address: door.address.clone(),
            open: door.open,
            reason: door.reason.clone(),
            since: Some(door.since.into()),
            connects_total: door.connects,
        };
        doors.iter().map(status).collect()
    }

    fn tell(&self, doors: &BTreeMap<String, Door>) {
        let shut: Vec<String> = doors
            .iter()
            .filter(|(_, door)| !door.open)
            .map(|(name, door)| format!("{name}: {}", door.reason))
            .collect();
        if shut.is_empty() {
            self.conditions.set(
                DOORS,
                Status::True,
                format!("{} of {} open", doors.len(), doors.len()),
            );
        } else {
            self.conditions.set(DOORS, Status::False, shut.join("; "));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_shut_door_is_named_in_the_condition() {
        let conditions = Conditions::new();
        let board = Board::new(conditions.clone());
        board.set("http", "127.0.0.1:1", true, "listening");
        board.set("dial:cp", "wss://cp", false, "refused: 401");
        assert!(!conditions.ready());
        assert_eq!(conditions.snapshot()[0].reason, "dial:cp: refused: 401");
        board.set("dial:cp", "wss://cp", true, "connected");
        assert!(conditions.ready());
        assert_eq!(board.list()[0].connects_total, 1);
        board.set("dial:cp", "wss://cp", false, "lost");
        board.remove("dial:cp");
        assert!(conditions.ready());
    }

    #[test]
    fn a_full_window_is_told_until_the_last_one_has_room() {
        let conditions = Conditions::new();
        let board = Board::new(conditions.clone());
        board.window("a", None);
        assert!(conditions.snapshot().is_empty());
        board.window("a", Some("full"));
        board.window("b", Some("full"));
        board.window("a", None);
        assert!(!conditions.ready());
        assert_eq!(conditions.snapshot()[0].reason, "b: full");
        board.window("b", None);
        assert!(conditions.ready());
    }
}
