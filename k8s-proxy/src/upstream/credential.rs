//! Our own token. The kubelet writes a new one before the old one ends; nobody tells us.

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::HeaderValue;
use runtime::secret::{ExposeSecret as _, SecretString, TokenFile};
use tokio::time::Instant;
use tracing::warn;

use crate::{headers, streams::lock};

/// How old a token we read may be. A rotated token overlaps with the old one for minutes.
const MAX_AGE: Duration = Duration::from_secs(10);

/// Where our token comes from.
#[derive(Clone, Debug)]
pub enum TokenSource {
    /// There is none: a client certificate, or an open apiserver.
    None,
    /// It never changes.
    Static(SecretString),
    /// A file that is read again.
    File(TokenFile),
}

/// Our token, ready for use; clones share it.
#[derive(Clone)]
pub struct Credential {
    source: TokenSource,
    cached: Arc<Mutex<Option<(HeaderValue, Instant)>>>,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

impl Credential {
    /// Nothing is read yet.
    pub fn new(source: TokenSource) -> Self {
        Self {
            source,
            cached: Arc::default(),
        }
    }

    /// The `Authorization` to send, `None` when there is none to send.
    ///
    /// # Errors
    /// When there ought to be a token and there is none.
    pub fn value(&self) -> Result<Option<HeaderValue>, String> {
        if let Some((value, read)) = lock(&self.cached).as_ref()
            && read.elapsed() < MAX_AGE
        {
            return Ok(Some(value.clone()));
        }
        self.read()
    }

    /// The apiserver refused `used`: reads the token again and returns it if it is another one.
    pub fn after_refusal(&self, used: Option<&HeaderValue>) -> Option<HeaderValue> {
        match self.read() {
            Ok(value) => value.filter(|value| Some(value) != used),
            Err(error) => {
                warn!(%error, "cannot read the token again");
                None
            }
        }
    }

    fn read(&self) -> Result<Option<HeaderValue>, String> {
        let token = match &self.source {
            TokenSource::None => return Ok(None),
            TokenSource::Static(token) => token.clone(),
            TokenSource::File(file) => match file.read() {
                Ok(Some(token)) => token,
                Ok(None) => return Err(format!("no Kubernetes token in {}", file.path().display())),
                Err(error) => return Err(format!("cannot read {}: {error}", file.path().display())),
            },
        };
        let value = headers::bearer_value(token.expose_secret())
            .ok_or_else(|| "the Kubernetes token holds characters that no header may carry".to_owned())?;
        *lock(&self.cached) = Some((value.clone(), Instant::now()));
        Ok(Some(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_rotated_token_is_used_without_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let credential = Credential::new(TokenSource::File(TokenFile::new(&path)));
        assert!(credential.value().unwrap_err().contains("no Kubernetes token"));
        std::fs::write(&path, "one\n").unwrap();
        let first = credential.value().unwrap().unwrap();
        assert_eq!(first, "Bearer one");
        assert_eq!(
            credential.after_refusal(Some(&first)),
            None,
            "the same token is not tried twice"
        );
        std::fs::write(&path, "two").unwrap();
        assert_eq!(credential.value().unwrap().unwrap(), "Bearer one");
        assert_eq!(credential.after_refusal(Some(&first)).unwrap(), "Bearer two");
        std::fs::write(&path, "three").unwrap();
        tokio::time::advance(MAX_AGE).await;
        assert_eq!(credential.value().unwrap().unwrap(), "Bearer three");
        assert!(!format!("{credential:?}").contains("three"));
    }
}
