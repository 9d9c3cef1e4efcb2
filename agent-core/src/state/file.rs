//! One file with the state: read whole, replaced atomically, readable by its owner only.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use runtime::secret::hex;
use serde_json::Value;

use super::Stored;

const MODE: u32 = 0o600;
const MAX_BYTES: u64 = 1024 * 1024;

/// What the file holds; `None` only when there is no such file.
pub(crate) fn read(path: &Path) -> io::Result<Option<Stored>> {
    let text = match fs::metadata(path) {
        Ok(meta) if meta.len() > MAX_BYTES => return Err(io::Error::other("is too large for a state file")),
        Ok(_) => fs::read_to_string(path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    parse(&text).map(Some).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "is no YAML mapping of names to texts; mend or remove it",
        )
    })
}

/// The mapping in the text. An empty text is refused: our writer never leaves one, so it is a loss, not a fresh
/// install.
pub(crate) fn parse(text: &str) -> Option<Stored> {
    match serde_saphyr::from_str::<Value>(text).ok()? {
        Value::Object(map) => Some(
            map.into_iter()
                .filter_map(|(name, value)| match value {
                    Value::String(text) => Some((name, text)),
                    Value::Number(number) => Some((name, number.to_string())),
                    Value::Bool(flag) => Some((name, flag.to_string())),
                    Value::Null | Value::Array(_) | Value::Object(_) => None,
                })
                .collect(),
        ),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => None,
    }
}

/// Replaces the file: whoever reads sees the old content or the new one, also after a power cut.
pub(crate) fn write(path: &Path, stored: &Stored) -> io::Result<()> {
    let dir = path
        .parent()
        .filter(|dir| !dir.as_os_str().is_empty())
        .unwrap_or_else(|| Path::new("."));
    fs::create_dir_all(dir)?;
    let draft = path.with_extension(format!("new-{}", hex(&rand::random::<[u8; 6]>())));
    let written = write_new(&draft, &render(stored)).and_then(|()| fs::rename(&draft, path));
    if let Err(error) = written {
        fs::remove_file(&draft).ok();
        return Err(error);
    }
    File::open(dir)?.sync_all()
}

fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(MODE)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn render(stored: &Stored) -> String {
    stored
        .iter()
        .map(|(name, value)| format!("{}: {}\n", quoted(name), quoted(value)))
        .collect()
}

/// YAML's double quotes; whatever is not plain ASCII is escaped, because YAML forbids some of it unescaped.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match u32::from(c) {
            0x20..0x7f if c != '"' && c != '\\' => out.push(c),
            code if code <= 0xffff => out.push_str(&format!("\\u{code:04x}")),
            code => out.push_str(&format!("\\U{code:08x}")),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn what_is_written_is_read_and_only_the_owner_may() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/agent-state.yaml");
        assert_eq!(read(&path).unwrap(), None);
        let stored = Stored::default()
            .with("agent_id", "a")
            .with("cluster_token", "x: \"y\"\n# z");
        write(&path, &stored).unwrap();
        write(&path, &stored).unwrap();
        assert_eq!(read(&path).unwrap(), Some(stored));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(
            fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1,
            "no draft is left"
        );
    }

    #[test]
    fn the_file_of_the_go_agent_is_read() {
        let text = "agent_id: agent-abc\ncluster_id: 550e8400-e29b\ncluster_token: \"\"\n";
        let stored = parse(text).unwrap();
        assert_eq!(
            (stored.get("agent_id"), stored.get("cluster_token")),
            (Some("agent-abc"), None)
        );
    }

    #[test]
    fn a_broken_file_is_an_error_and_not_a_fresh_install() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        for text in ["", "- a", "text", "{", "\0"] {
            fs::write(&path, text).unwrap();
            assert!(read(&path).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_survives_the_file(value in "[^\\s\\x00](.{0,40}[^\\s\\x00])?") {
            let stored = Stored::default().with("agent_id", &value);
            prop_assert_eq!(parse(&render(&stored)), Some(stored));
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in "\\PC{0,100}") {
            parse(&text);
        }
    }
}
