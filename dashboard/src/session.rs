//! Signed-in browsers: random cookies that live in memory, and the brake on guessing.
//!
//! Sessions end with the process, so a restart of agent-core asks for the token again; a stored session would be one
//! more secret on disk.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::HeaderMap;
use http::header::COOKIE;
use rand::RngCore;
use tokio::sync::watch;
use tokio::time::Instant;

/// A working day.
const LIFETIME: Duration = Duration::from_secs(8 * 60 * 60);

/// More browsers than one team has; the oldest goes when one more signs in.
const MAX_SESSIONS: usize = 64;

/// Wrong tokens accepted in a row before the brake holds.
const GUESSES: u32 = 10;

/// One more wrong token may be tried after so much time.
const GUESS_EVERY: Duration = Duration::from_secs(3);

/// The header that every change must carry. A page of another origin cannot send it without a CORS permission that
/// is never given.
pub const CSRF_HEADER: &str = "x-pipeops-csrf";

/// Whether the CSRF header is there, with any non-empty value.
pub fn has_csrf_header(headers: &HeaderMap) -> bool {
    headers.get(CSRF_HEADER).is_some_and(|value| !value.is_empty())
}

/// The signed-in browsers of this process.
#[derive(Clone, Debug)]
pub struct Sessions {
    inner: Arc<Mutex<Inner>>,
    /// Two agents behind two ports of one `localhost` share a cookie jar; each has its own cookie name in it.
    cookie_name: Arc<str>,
    /// Bumped when a session is ended by hand, so that its event streams end with it.
    ended: watch::Sender<u64>,
}

#[derive(Debug)]
struct Inner {
    /// Oldest first.
    open: Vec<Session>,
    guesses: Guesses,
}

#[derive(Clone)]
struct Session {
    id: String,
    ends: Instant,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("ends", &self.ends)
            .finish_non_exhaustive()
    }
}

impl Sessions {
    pub(crate) fn new() -> Self {
        Self {
            inner: Arc::new(Mutex::new(Inner {
                open: Vec::new(),
                guesses: Guesses::new(Instant::now()),
            })),
            cookie_name: format!("pipeops_session_{}", random_hex::<4>()).into(),
            ended: watch::channel(0).0,
        }
    }

    /// Whether the request comes from a signed-in browser. For methods that change something, ask
    /// [`has_csrf_header`] too.
    pub fn check(&self, headers: &HeaderMap) -> bool {
        self.ends(headers).is_some()
    }

    /// When the session of this request ends by itself; `None` without a session.
    pub(crate) fn ends(&self, headers: &HeaderMap) -> Option<Instant> {
        let now = Instant::now();
        let mut inner = self.lock();
        inner.open.retain(|session| session.ends > now);
        self.cookies(headers).find_map(|id| {
            inner
                .open
                .iter()
                .find(|session| same(session.id.as_bytes(), id.as_bytes()))
                .map(|s| s.ends)
        })
    }

    /// Opens a session and returns the `Set-Cookie` value.
    pub(crate) fn open(&self) -> String {
        let id = random_hex::<32>();
        let mut inner = self.lock();
        if inner.open.len() >= MAX_SESSIONS {
            inner.open.remove(0);
        }
        inner.open.push(Session {
            id: id.clone(),
            ends: Instant::now() + LIFETIME,
        });
        format!(
            "{}={id}; HttpOnly; SameSite=Strict; Path=/; Max-Age={}",
            self.cookie_name,
            LIFETIME.as_secs()
        )
    }

    /// Ends the session of this request and returns the `Set-Cookie` value that clears it.
    pub(crate) fn close(&self, headers: &HeaderMap) -> String {
        let ids: Vec<&str> = self.cookies(headers).collect();
        self.lock()
            .open
            .retain(|session| !ids.contains(&session.id.as_str()));
        self.ended.send_modify(|count| *count = count.wrapping_add(1));
        format!(
            "{}=; HttpOnly; SameSite=Strict; Path=/; Max-Age=0",
            self.cookie_name
        )
    }

    /// Resolves when some session was ended by hand.
    pub(crate) fn watch_ended(&self) -> watch::Receiver<u64> {
        self.ended.subscribe()
    }

    /// `Err` with the time to wait when too many wrong tokens came.
    pub(crate) fn may_guess(&self) -> Result<(), Duration> {
        self.lock().guesses.allowed(Instant::now())
    }

    /// Counts a wrong token.
    pub(crate) fn guessed_wrong(&self) {
        self.lock().guesses.spend();
    }

    fn cookies<'a>(&'a self, headers: &'a HeaderMap) -> impl Iterator<Item = &'a str> {
        headers
            .get_all(COOKIE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(';'))
            .filter_map(|pair| pair.trim().split_once('='))
            .filter(|(name, _)| *name == &*self.cookie_name)
            .map(|(_, id)| id)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A bucket of wrong guesses that refills with time.
#[derive(Debug)]
struct Guesses {
    left: u32,
    refilled: Instant,
}

impl Guesses {
    fn new(now: Instant) -> Self {
        Self {
            left: GUESSES,
            refilled: now,
        }
    }

    fn allowed(&mut self, now: Instant) -> Result<(), Duration> {
        while self.left < GUESSES && now >= self.refilled + GUESS_EVERY {
            self.left += 1;
            self.refilled += GUESS_EVERY;
        }
        if self.left == GUESSES {
            self.refilled = now;
        }
        if self.left > 0 {
            Ok(())
        } else {
            Err(self.refilled + GUESS_EVERY - now)
        }
    }

    fn spend(&mut self) {
        self.left = self.left.saturating_sub(1);
    }
}

fn random_hex<const BYTES: usize>() -> String {
    let mut bytes = [0_u8; BYTES];
    rand::rng().fill_bytes(&mut bytes);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Compares without stopping at the first difference.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (x, y)| difference | (x ^ y)) == 0
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{HeaderMap, HeaderValue, header::COOKIE};
    use tokio::time::{Instant, advance};

    use super::{GUESS_EVERY, GUESSES, Guesses, MAX_SESSIONS, Sessions};

    fn headers(set_cookie: &str) -> HeaderMap {
        let pair = set_cookie.split(';').next().unwrap();
        let value = HeaderValue::from_str(&format!("other=1; {pair}")).unwrap();
        HeaderMap::from_iter([(COOKIE, value)])
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_lives_eight_hours() {
        let sessions = Sessions::new();
        let cookie = headers(&sessions.open());
        advance(Duration::from_secs(8 * 3600 - 1)).await;
        assert!(sessions.check(&cookie));
        advance(Duration::from_secs(2)).await;
        assert!(!sessions.check(&cookie));
    }

    #[tokio::test]
    async fn signing_out_ends_one_session_only() {
        let sessions = Sessions::new();
        let (mine, other) = (headers(&sessions.open()), headers(&sessions.open()));
        assert!(sessions.close(&mine).contains("Max-Age=0"));
        assert!(!sessions.check(&mine));
        assert!(sessions.check(&other));
        assert!(!sessions.check(&HeaderMap::new()));
    }

    #[tokio::test]
    async fn the_number_of_sessions_is_bounded() {
        let sessions = Sessions::new();
        let first = headers(&sessions.open());
        for _ in 0..MAX_SESSIONS {
            sessions.open();
        }
        assert!(!sessions.check(&first));
        assert_eq!(sessions.lock().open.len(), MAX_SESSIONS);
    }

    #[tokio::test]
    async fn another_process_does_not_know_the_cookie() {
        let cookie = headers(&Sessions::new().open());
        assert!(!Sessions::new().check(&cookie));
    }

    #[test]
    fn debug_output_holds_no_cookie() {
        let sessions = Sessions::new();
        let cookie = sessions.open();
        let id = cookie.split(['=', ';']).nth(1).unwrap();
        assert_eq!(id.len(), 64);
        assert!(!format!("{sessions:?}").contains(id));
    }

    #[test]
    fn guessing_is_slowed_down_and_recovers() {
        let start = Instant::now();
        let mut guesses = Guesses::new(start);
        for _ in 0..GUESSES {
            assert!(guesses.allowed(start).is_ok());
            guesses.spend();
        }
        assert_eq!(guesses.allowed(start), Err(GUESS_EVERY));
        assert!(guesses.allowed(start + GUESS_EVERY).is_ok());
        guesses.spend();
        assert!(guesses.allowed(start + GUESS_EVERY).is_err());
        assert!(guesses.allowed(start + GUESS_EVERY * 100).is_ok());
        assert_eq!(guesses.left, GUESSES);
    }
}
