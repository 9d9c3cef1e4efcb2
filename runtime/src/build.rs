//! What was built, and which process of it this is.

/// Name, version and origin of a binary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuildInfo {
    /// Name of the binary.
    pub name: &'static str,
    /// Version of the workspace.
    pub version: &'static str,
    /// Commit it was built from, `unknown` when the build was not told.
    pub git_commit: &'static str,
    /// Lowest compiler version it builds with.
    pub rustc: &'static str,
}

/// The build information of the binary called `name`.
///
/// The commit comes from the variable `PIPEOPS_GIT_COMMIT` at build time.
pub const fn build_info(name: &'static str) -> BuildInfo {
    BuildInfo {
        name,
        version: env!("CARGO_PKG_VERSION"),
        git_commit: match option_env!("PIPEOPS_GIT_COMMIT") {
            Some(commit) => commit,
            None => "unknown",
        },
        rustc: env!("CARGO_PKG_RUST_VERSION"),
    }
}

/// A random name for this run of the process: tells a restart from a reconnect.
pub fn instance_id() -> String {
    crate::secret::hex(&rand::random::<[u8; 8]>())
}
