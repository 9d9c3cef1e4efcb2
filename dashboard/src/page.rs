//! What agent-core lends the page: the snapshots, the answer about tokens, and the actions.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use tokio::sync::Semaphore;

use crate::{Guard, Line, Sessions, Snapshots};

/// Pages open at once; one browser tab is one stream.
const MAX_STREAMS: usize = 32;

/// What a signed-in person may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send one heartbeat at once.
    Heartbeat,
    /// Register again with the known identity.
    Reregister,
    /// Open the tunnel's session anew.
    Reconnect,
}

impl Action {
    const ALL: [Self; 3] = [Self::Heartbeat, Self::Reregister, Self::Reconnect];

    /// The name in the path.
    pub fn name(self) -> &'static str {
        match self {
            Self::Heartbeat => "heartbeat",
            Self::Reregister => "reregister",
            Self::Reconnect => "reconnect",
        }
    }
}

type Outcome = Pin<Box<dyn Future<Output = Result<Line, Line>> + Send>>;

/// One action and the permit that keeps it from running twice at once.
pub(crate) struct Hook {
    pub(crate) run: Box<dyn Fn() -> Outcome + Send + Sync>,
    pub(crate) permit: Arc<Semaphore>,
}

/// Everything the routes need; built by agent-core, then given to [`crate::router`].
pub struct Page {
    pub(crate) snapshots: Snapshots,
    pub(crate) sessions: Sessions,
    pub(crate) guard: Guard,
    pub(crate) streams: Arc<Semaphore>,
    verify: Box<dyn Fn(&str) -> bool + Send + Sync>,
    hooks: [Option<Hook>; 3],
}

impl std::fmt::Debug for Page {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Page")
            .field("guard", &self.guard)
            .finish_non_exhaustive()
    }
}

impl Page {
    /// `verify` says whether a text is the operator token; it is asked at each sign-in and each bearer.
    pub fn new(snapshots: Snapshots, verify: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        Self {
            snapshots,
            sessions: Sessions::new(),
            guard: Guard::new([]),
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
            verify: Box::new(verify),
            hooks: [None, None, None],
        }
    }

    /// Host names, without port, that the page answers to beside loopback names and IP literals.
    #[must_use]
    pub fn allow_hosts(mut self, names: impl IntoIterator<Item = String>) -> Self {
        self.guard = Guard::new(names);
        self
    }

    /// Offers an action: `Ok` is one line for the person, `Err` says why not.
    #[must_use]
    pub fn action<F, R>(mut self, action: Action, run: F) -> Self
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Result<String, String>> + Send + 'static,
    {
        let run = move || -> Outcome {
            let outcome = run();
            Box::pin(async move { outcome.await.map(Line::from).map_err(Line::from) })
        };
        let hook = Hook {
            run: Box::new(run),
            permit: Arc::new(Semaphore::new(1)),
        };
        let [heartbeat, reregister, reconnect] = &mut self.hooks;
        *match action {
            Action::Heartbeat => heartbeat,
            Action::Reregister => reregister,
            Action::Reconnect => reconnect,
        } = Some(hook);
        self
    }

    /// The signed-in browsers, so that other routes can take the same cookie.
    pub fn sessions(&self) -> Sessions {
        self.sessions.clone()
    }

    /// The rules for `Host` and `Origin`, for other routes.
    pub fn guard(&self) -> Guard {
        self.guard.clone()
    }

    pub(crate) fn is_operator(&self, token: &str) -> bool {
        !token.is_empty() && (self.verify)(token)
    }

    /// Whether the request carries the operator token itself, as curl does. Wrong ones count as guesses.
    pub(crate) fn has_bearer(&self, headers: &HeaderMap) -> bool {
        let bearer = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let Some(token) = bearer.and_then(|value| value.strip_prefix("Bearer ")) else {
            return false;
        };
        if self.sessions.may_guess().is_err() {
            return false;
        }
        let right = self.is_operator(token);
        if !right {
            self.sessions.guessed_wrong();
        }
        right
    }

    pub(crate) fn hook(&self, name: &str) -> Option<&Hook> {
        let at = Action::ALL.iter().position(|action| action.name() == name)?;
        self.hooks.get(at)?.as_ref()
    }

    pub(crate) fn offered(&self) -> Vec<&'static str> {
        Action::ALL
            .into_iter()
            .map(Action::name)
            .filter(|name| self.hook(name).is_some())
            .collect()
    }
}
