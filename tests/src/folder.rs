//! Folders for what a run leaves lying about: logs, tokens, state.

use std::{fs::Permissions, io, os::unix::fs::PermissionsExt as _};

use tempfile::{Builder, TempDir};

/// A new folder in the system's place for temporary ones, for its owner's eyes only whatever the umask is: tokens
/// lie in it.
///
/// # Errors
/// When it cannot be made.
pub fn private(prefix: &str) -> io::Result<TempDir> {
    Builder::new()
        .prefix(prefix)
        .permissions(Permissions::from_mode(0o700))
        .tempdir()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_else_may_look_into_it() {
        let dir = private("pipeops-test-").unwrap();
        let mode = dir.path().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }
}
