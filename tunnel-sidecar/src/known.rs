//! Trust on first use: which host key each server showed when it was first seen.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use chisel_ssh::Fingerprint;

/// Name of the file in the private folder.
const FILE: &str = "known-servers.json";

/// The servers seen so far, kept in the private folder.
#[derive(Debug)]
pub struct KnownServers {
    path: PathBuf,
    seen: Mutex<BTreeMap<String, String>>,
}

impl KnownServers {
    /// Reads what is stored in `dir`. A file that cannot be read is an error: trusting anew because of it would be
    /// what somebody in between wants.
    ///
    /// # Errors
    /// When the file is there and cannot be read as what it should be.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let path = dir.join(FILE);
        let seen = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        Ok(Self {
            path,
            seen: Mutex::new(seen),
        })
    }

    /// The key that `server` (`host:port`) showed first.
    pub fn get(&self, server: &str) -> Option<Fingerprint> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(server).and_then(|text| text.parse().ok())
    }

    /// Keeps the key of `server`, replacing what was there.
    ///
    /// # Errors
    /// When it cannot be written; it is remembered for the life of the process all the same.
    pub fn remember(&self, server: &str, key: &Fingerprint) -> io::Result<()> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let text = key.to_string();
        if seen.insert(server.to_owned(), text.clone()).as_ref() == Some(&text) {
            return Ok(());
        }
        let draft = self.path.with_extension("new");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)?;
        file.write_all(&serde_json::to_vec_pretty(&*seen)?)?;
        file.sync_all()?;
        fs::rename(&draft, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_kept_across_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let key: Fingerprint = "CcGApgqyR4vWWQZ+XfQp9aUjOPWfbhwLl1nGOD2MONU=".parse().unwrap();
        let known = KnownServers::open(dir.path()).unwrap();
        assert_eq!(known.get("t.example.com:443"), None);
        known.remember("t.example.com:443", &key).unwrap();
        let known = KnownServers::open(dir.path()).unwrap();
        assert_eq!(known.get("t.example.com:443"), Some(key));
        assert_eq!(known.get("t.example.com:444"), None);
    }

    #[test]
    fn a_broken_file_is_not_taken_for_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "{").unwrap();
        assert!(KnownServers::open(dir.path()).is_err());
    }
}
