//! The echo door: how a server side that wants to know proves that bytes pass each forward.
//!
//! ```text
//!   server side ──► echo door     "probe NAME NONCE EVERY"      we expect the nonce on NAME from here on
//!               ◄── echo door     "armed"
//!   server side ──► NAME's port   NONCE                         the listener, session and channel of users
//!               ◄── NAME's port   NONCE OURS
//!   server side ──► NAME's port   OURS                          now both sides have seen bytes go there and back
//! ```
//!
//! The door is a remote of its own, reserved by name, on the loopback of the server. A channel that the server opens
//! says which forward it is for and nothing else, so while a probe is expected the first bytes tell it from a user:
//! such a channel is accepted before its target is dialled, and what is no probe goes on to the target with all its
//! bytes. The users' connection was accepted by the server long before, so they see no difference. A probe never
//! reaches a target and is no connection: it is not counted and keeps no idle tunnel open.
//!
//! Through a forward for datagrams each of the three is one datagram, of one peer. Through a reversed SOCKS the bytes
//! are the same as through a forward for connections: a nonce is no greeting.

use std::{
    collections::HashMap,
    fmt, io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chisel_ssh::Channel;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::watch,
    time::{Instant, timeout},
};
use tracing::debug;

/// Length of a nonce: 128 bits in hexadecimal.
pub const NONCE: usize = 32;
/// A line of the door; a name has at most 63 letters.
const LONGEST_LINE: usize = 160;
/// How long a probe may be under way. A user who says nothing waits so long at most for the target, and only when
/// the probe does not come.
const EXPECTED: Duration = Duration::from_secs(2);
/// A door connection without a word for so long is closed.
const DOOR_IDLE: Duration = Duration::from_secs(300);
/// Connections to the door at a time: one server side, and its next one while it restarts.
const DOORS: usize = 4;
/// Probes in a row that were announced and did not arrive before a forward is called broken: one may meet a reconnect.
pub const MISSED: u32 = 2;
/// A proof is fresh for so many of its own intervals.
const FRESH: u32 = 3;

/// Bytes that went there and back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// When.
    pub at: Instant,
    /// From us to the server side and back.
    pub round_trip: Duration,
    /// How often the server side does it.
    pub every: Duration,
}

impl Proof {
    /// Whether the next one is not overdue.
    pub fn fresh(&self) -> bool {
        self.at.elapsed() <= self.every.saturating_mul(FRESH)
    }
}

/// What the server side wants to send through a forward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// Name of the forward.
    pub forward: String,
    /// What arrives there.
    pub nonce: [u8; NONCE],
    /// How often it does this.
    pub every: Duration,
}

/// Why a line of the door is no announcement.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadAnnouncement {
    /// Not four words.
    #[error("write: probe FORWARD NONCE MILLISECONDS")]
    Words,
    /// Not a nonce.
    #[error("the nonce must be 32 hexadecimal digits")]
    Nonce,
    /// Not an interval.
    #[error("the interval must be 1 to 86400000 milliseconds")]
    Interval,
}

impl Announcement {
    /// Reads a line.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(line: &[u8]) -> Result<Self, BadAnnouncement> {
        let line = std::str::from_utf8(line).map_err(|_| BadAnnouncement::Words)?;
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let ["probe", forward, nonce, every] = words.as_slice() else {
            return Err(BadAnnouncement::Words);
        };
        let nonce: [u8; NONCE] = nonce.as_bytes().try_into().map_err(|_| BadAnnouncement::Nonce)?;
        if !nonce.iter().all(u8::is_ascii_hexdigit) {
            return Err(BadAnnouncement::Nonce);
        }
        let every = every
            .parse()
            .ok()
            .filter(|millis| (1..=86_400_000).contains(millis));
        Ok(Self {
            forward: (*forward).to_owned(),
            nonce,
            every: Duration::from_millis(every.ok_or(BadAnnouncement::Interval)?),
        })
    }
}

#[derive(Debug, Default)]
struct State {
    proofs: HashMap<String, Proof>,
    missed: HashMap<String, u32>,
    expected: HashMap<String, Expected>,
    doors: usize,
}

/// A probe that is under way.
#[derive(Clone)]
pub struct Expected {
    announced: Announcement,
    until: Instant,
    /// Set when it has arrived or is no longer waited for.
    over: Arc<watch::Sender<bool>>,
}

impl fmt::Debug for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Expected")
            .field("forward", &self.announced.forward)
            .finish_non_exhaustive()
    }
}

/// Whose channel it was.
#[derive(Debug)]
pub enum Told {
    /// The probe's, with the round trip if it came to its end.
    Probe(Option<Duration>),
    /// A user's, with what was read of it.
    User(Channel, Vec<u8>),
    /// Of somebody who left.
    Gone,
}

/// A probe in datagrams that is half way: the server side's nonce came, and ours is out.
#[derive(Debug)]
pub struct HalfWay {
    peer: String,
    announced: Announcement,
    ours: String,
    start: Instant,
}

/// What a datagram was.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// A user's.
    User,
    /// The first of a probe; this goes back.
    Answer(Vec<u8>),
    /// The last of a probe.
    Proven(Duration),
}

/// Everything proven so far; clones share it.
#[derive(Clone, Debug)]
pub struct Proofs {
    state: Arc<Mutex<State>>,
    changes: Arc<watch::Sender<u64>>,
}

impl Default for Proofs {
    fn default() -> Self {
        Self {
            state: Arc::default(),
            changes: Arc::new(watch::Sender::new(0)),
        }
    }
}

impl Proofs {
    /// The last proof of a forward.
    pub fn of(&self, forward: &str) -> Option<Proof> {
        self.lock().proofs.get(forward).copied()
    }

    /// Announced probes in a row that did not arrive.
    pub fn missed(&self, forward: &str) -> u32 {
        self.lock().missed.get(forward).copied().unwrap_or_default()
    }

    /// A counter that rises with each proof and each miss.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Forgets forwards that are gone.
    pub fn retain(&self, wanted: impl Fn(&str) -> bool) {
        let mut state = self.lock();
        state.proofs.retain(|name, _| wanted(name));
        state.missed.retain(|name, _| wanted(name));
    }

    /// The probe that is under way on a forward.
    pub fn expected(&self, forward: &str) -> Option<Expected> {
        let state = self.lock();
        let expected = state.expected.get(forward)?;
        (!*expected.over.borrow() && expected.until > Instant::now()).then(|| expected.clone())
    }

    /// Serves one connection to the door until it ends. `known` says which forwards there are.
    pub async fn serve(&self, mut door: impl AsyncRead + AsyncWrite + Unpin, known: impl Fn(&str) -> bool) {
        {
            let mut state = self.lock();
            if state.doors >= DOORS {
                return;
            }
            state.doors += 1;
        }
        if let Err(error) = self.talk(&mut door, known).await {
            debug!("echo door: {error}");
        }
        self.lock().doors -= 1;
    }

    async fn talk(
        &self,
        door: &mut (impl AsyncRead + AsyncWrite + Unpin),
        known: impl Fn(&str) -> bool,
    ) -> io::Result<()> {
        loop {
            let Some(line) = timeout(DOOR_IDLE, line(door)).await?? else {
                return Ok(());
            };
            let answer = match Announcement::parse(&line) {
                Err(bad) => format!("no: {bad}\n"),
                Ok(announced) if !known(&announced.forward) => "no: there is no such forward\n".to_owned(),
                Ok(announced) if self.expected(&announced.forward).is_some() => {
                    "no: a probe of this forward is under way\n".to_owned()
                }
                Ok(announced) => {
                    self.expect(announced);
                    "armed\n".to_owned()
                }
            };
            door.write_all(answer.as_bytes()).await?;
            door.flush().await?;
        }
    }

    fn expect(&self, announced: Announcement) {
        let expected = Expected {
            announced: announced.clone(),
            until: Instant::now() + EXPECTED,
            over: Arc::new(watch::Sender::new(false)),
        };
        let mut state = self.lock();
        // One that did not arrive is found out when the next one is announced, or by who looks.
        let before = state.expected.insert(announced.forward.clone(), expected);
        if before.is_some_and(|before| !*before.over.borrow()) {
            *state.missed.entry(announced.forward).or_default() += 1;
            drop(state);
            self.changes.send_modify(|count| *count += 1);
        }
    }

    /// Finds out whose channel this is, and answers the probe if it is the probe's.
    pub async fn tell(&self, expected: Expected, mut channel: Channel) -> Told {
        let mut first = Vec::with_capacity(NONCE);
        let nonce = expected.announced.nonce;
        let mut over = expected.over.subscribe();
        let reading = async {
            while first.len() < NONCE && nonce.starts_with(&first) {
                let mut space = [0; NONCE];
                let rest = space.get_mut(..NONCE - first.len()).unwrap_or_default();
                match channel.read(rest).await {
                    Ok(0) | Err(_) => return false,
                    Ok(length) => first.extend(rest.iter().take(length)),
                }
            }
            true
        };
        tokio::select! {
            read = reading => if !read && first.is_empty() { return Told::Gone },
            _ = over.wait_for(|over| *over) => {}
            () = tokio::time::sleep_until(expected.until) => {}
        }
        if first != nonce {
            return Told::User(channel, first);
        }
        expected.over.send_replace(true);
        let answered = timeout(EXPECTED, answer(&mut channel, &nonce)).await;
        let round_trip = match answered {
            Ok(Ok(round_trip)) => Some(round_trip),
            Ok(Err(error)) => {
                debug!("the server side did not finish its probe: {error}");
                None
            }
            Err(_) => None,
        };
        if let Some(round_trip) = round_trip {
            self.prove(&expected.announced, round_trip);
        }
        channel.shutdown().await.ok();
        Told::Probe(round_trip)
    }

    /// Finds out whether a datagram of `peer` belongs to a probe; `half` is what the forward's channel keeps between two of them.
    pub fn hear(&self, forward: &str, peer: &str, payload: &[u8], half: &mut Option<HalfWay>) -> Heard {
        if payload.len() != NONCE {
            return Heard::User;
        }
        if let Some(answered) = half.take_if(|half| half.peer == peer && half.ours.as_bytes() == payload) {
            let round_trip = answered.start.elapsed();
            self.prove(&answered.announced, round_trip);
            return Heard::Proven(round_trip);
        }
        match self.expected(forward) {
            Some(expected) if expected.announced.nonce == payload => {
                expected.over.send_replace(true);
                let ours = own_nonce();
                let both = [payload, ours.as_bytes()].concat();
                *half = Some(HalfWay {
                    peer: peer.to_owned(),
                    announced: expected.announced,
                    ours,
                    start: Instant::now(),
                });
                Heard::Answer(both)
            }
            _ => Heard::User,
        }
    }

    fn prove(&self, announced: &Announcement, round_trip: Duration) {
        let proof = Proof {
            at: Instant::now(),
            round_trip,
            every: announced.every,
        };
        let mut state = self.lock();
        state.proofs.insert(announced.forward.clone(), proof);
        state.missed.remove(&announced.forward);
        state.expected.remove(&announced.forward);
        drop(state);
        self.changes.send_modify(|count| *count += 1);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the nonce with one of ours, and waits for ours to come back.
async fn answer(channel: &mut (impl AsyncRead + AsyncWrite + Unpin), nonce: &[u8]) -> io::Result<Duration> {
    let ours = own_nonce();
    let mut both = nonce.to_vec();
    both.extend_from_slice(ours.as_bytes());
    let start = Instant::now();
    channel.write_all(&both).await?;
    channel.flush().await?;
    let mut back = [0; NONCE];
    channel.read_exact(&mut back).await?;
    if back == ours.as_bytes() {
        Ok(start.elapsed())
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "other bytes came back",
        ))
    }
}

fn own_nonce() -> String {
    runtime::secret::hex(&rand::random::<[u8; NONCE / 2]>())
}

/// One line without its end; `None` when there is no more.
async fn line(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    loop {
        match from.read_u8().await {
            Ok(b'\n') => return Ok(Some(line)),
            Ok(byte) if line.len() < LONGEST_LINE => line.push(byte),
            Ok(_) => return Err(io::Error::new(io::ErrorKind::InvalidData, "a line is too long")),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "00112233445566778899aabbccddeeff";

    #[test]
    fn what_is_no_announcement_is_said() {
        let good = Announcement::parse(format!("probe a {HEX} 15000").as_bytes()).unwrap();
        assert_eq!(
            (good.forward.as_str(), good.every),
            ("a", Duration::from_secs(15))
        );
        for (line, bad) in [
            ("", BadAnnouncement::Words),
            ("probe a", BadAnnouncement::Words),
            ("prove a n 1", BadAnnouncement::Words),
            ("probe a 0011 15000", BadAnnouncement::Nonce),
            (
                "probe a 0011223344556677889_aabbccddeeff 1",
                BadAnnouncement::Nonce,
            ),
            (
                "probe a 00112233445566778899aabbccddeeff 0",
                BadAnnouncement::Interval,
            ),
            (
                "probe a 00112233445566778899aabbccddeeff -1",
                BadAnnouncement::Interval,
            ),
        ] {
            assert_eq!(Announcement::parse(line.as_bytes()), Err(bad), "{line}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_door_expects_one_probe_of_a_forward_at_a_time_and_counts_what_does_not_arrive() {
        let proofs = Proofs::default();
        let (mut far, near) = tokio::io::duplex(1024);
        let served = proofs.serve(near, |name| name == "a");
        let asking = async {
            let mut ask = async |line: String| {
                far.write_all(line.as_bytes()).await.unwrap();
                String::from_utf8(super::line(&mut far).await.unwrap().unwrap()).unwrap()
            };
            let probe = format!("probe a {HEX} 1000\n");
            assert_eq!(ask(probe.clone()).await, "armed");
            assert!(ask(probe.clone()).await.contains("under way"));
            assert!(
                ask(format!("probe b {HEX} 1000\n"))
                    .await
                    .contains("no such forward")
            );
            assert!(proofs.expected("a").is_some());
            tokio::time::advance(EXPECTED).await;
            assert!(proofs.expected("a").is_none() && proofs.missed("a") == 0);
            assert_eq!(ask(probe).await, "armed");
            assert_eq!(proofs.missed("a"), 1);
            drop(far);
        };
        tokio::join!(served, asking);
        assert_eq!(proofs.lock().doors, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn datagrams_of_a_probe_are_told_from_those_of_users() {
        let (proofs, mut half) = (Proofs::default(), None);
        let user = |half: &mut Option<HalfWay>, peer: &str, payload: &[u8]| {
            assert_eq!(proofs.hear("a", peer, payload, half), Heard::User);
        };
        user(&mut half, "p:1", HEX.as_bytes());
        proofs.expect(Announcement::parse(format!("probe a {HEX} 1000").as_bytes()).unwrap());
        user(&mut half, "p:1", b"short");
        user(&mut half, "p:1", &[b'0'; NONCE]);
        assert_eq!(proofs.hear("b", "p:1", HEX.as_bytes(), &mut half), Heard::User);
        let Heard::Answer(both) = proofs.hear("a", "p:1", HEX.as_bytes(), &mut half) else {
            panic!("the nonce is not known");
        };
        let (theirs, ours) = both.split_at(NONCE);
        assert_eq!(theirs, HEX.as_bytes());
        // Once, from the same peer, and unchanged.
        user(&mut half, "p:1", HEX.as_bytes());
        user(&mut half, "p:2", ours);
        tokio::time::advance(Duration::from_millis(7)).await;
        let seven = Duration::from_millis(7);
        assert_eq!(proofs.hear("a", "p:1", ours, &mut half), Heard::Proven(seven));
        assert_eq!(proofs.of("a").map(|proof| proof.round_trip), Some(seven));
        user(&mut half, "p:1", ours);
    }

    #[tokio::test]
    async fn a_line_without_an_end_is_given_up() {
        let (mut far, mut near) = tokio::io::duplex(1024);
        far.write_all(&[b'x'; 500]).await.unwrap();
        assert!(line(&mut near).await.is_err());
    }

    proptest! {
        #[test]
        fn any_line_is_read_or_refused(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            Announcement::parse(&line).ok();
        }

        #[test]
        fn what_was_announced_is_what_is_expected(name in "[a-z0-9._-]{1,63}", nonce in "[0-9a-f]{32}", every in 1_u64..=86_400_000) {
            let read = Announcement::parse(format!("probe {name} {nonce} {every}").as_bytes()).unwrap();
            prop_assert_eq!(read.forward, name);
            prop_assert_eq!(&read.nonce[..], nonce.as_bytes());
            prop_assert_eq!(read.every, Duration::from_millis(every));
        }
    }
}
