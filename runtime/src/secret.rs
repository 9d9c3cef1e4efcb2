//! Secrets: a type, files that hold one, and comparisons that take the same time whatever they find.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use aws_lc_rs::{constant_time, digest};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
pub use secrecy::{ExposeSecret, SecretString};

/// Longest token file that is read; a token is far shorter, a wrong path may be far longer.
const MAX_TOKEN_BYTES: u64 = 64 * 1024;

/// A file that holds one token and is read anew each time, so that a rotated token is used at once.
#[derive(Clone, Debug)]
pub struct TokenFile {
    path: PathBuf,
}

impl TokenFile {
    /// The token file at `path`, which need not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a random 256-bit token with file mode `mode`, unless the file is there already, and returns what
    /// the file holds.
    ///
    /// The token is written to a name of its own and then linked into place: a reader sees all of it or nothing,
    /// and of two writers one wins.
    ///
    /// # Errors
    /// When the folder cannot be made or written.
    pub fn create_once(&self, mode: u32) -> io::Result<SecretString> {
        if let Some(token) = self.read()? {
            return Ok(token);
        }
        if let Some(dir) = self.path.parent() {
            fs::create_dir_all(dir)?;
        }
        let token = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>());
        let draft = self
            .path
            .with_extension(format!("new-{}", hex(&rand::random::<[u8; 6]>())));
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&draft)
            .and_then(|mut file| {
                // The mode given at creation is cut by the umask; siblings read through the group.
                file.set_permissions(fs::Permissions::from_mode(mode))?;
                file.write_all(token.as_bytes())?;
                file.sync_all()
            });
        let linked = written.and_then(|()| fs::hard_link(&draft, &self.path));
        fs::remove_file(&draft).ok();
        match linked {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => {}
        }
        self.read()?
            .ok_or_else(|| io::Error::other(format!("{} is empty", self.path.display())))
    }

    /// The token, without surrounding white space; `None` while the file is absent or empty.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn read(&self) -> io::Result<Option<SecretString>> {
        let text = match fs::metadata(&self.path) {
            Ok(meta) if meta.len() > MAX_TOKEN_BYTES => {
                return Err(io::Error::other(format!(
                    "{} is too large for a token",
                    self.path.display()
                )));
            }
            Ok(_) => fs::read_to_string(&self.path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let token = text.trim();
        Ok((!token.is_empty()).then(|| SecretString::from(token)))
    }
}

/// SHA-256 of `bytes`.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

/// Compares without telling by its duration where two values differ.
pub fn same(a: &[u8], b: &[u8]) -> bool {
    constant_time::verify_slices_are_equal(a, b).is_ok()
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            write!(text, "{byte:02x}").ok();
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let file = TokenFile::new(dir.path().join("edge/token"));
        assert!(file.read().unwrap().is_none());
        let first = file.create_once(0o640).unwrap();
        assert_eq!(first.expose_secret().len(), 43, "256 bits in base64url");
        assert_eq!(
            file.create_once(0o640).unwrap().expose_secret(),
            first.expose_secret()
        );
        assert_eq!(
            fs::metadata(file.path()).unwrap().permissions().mode() & 0o777,
            0o640
        );
        assert_eq!(
            fs::read_dir(dir.path().join("edge")).unwrap().count(),
            1,
            "no draft is left behind"
        );
    }

    #[test]
    fn white_space_around_a_token_is_not_part_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = TokenFile::new(dir.path().join("token"));
        fs::write(file.path(), " secret\n").unwrap();
        assert_eq!(file.read().unwrap().unwrap().expose_secret(), "secret");
        fs::write(file.path(), " \n").unwrap();
        assert!(file.read().unwrap().is_none());
    }

    #[test]
    fn digests_and_hex_are_the_standard_ones() {
        assert_eq!(
            hex(&sha256(b"abc")),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "FIPS 180-4 example"
        );
        assert!(same(b"a", b"a") && !same(b"a", b"b") && !same(b"a", b"ab"));
    }
}
