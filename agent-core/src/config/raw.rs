//! From flags, variables and file to one value per key, with its source. Nothing is interpreted here.
//!
//! ```text
//!   flags ─┐
//!   env   ─┼─► Raw { key → Given { value, source } } ─► config::read ─► Config
//!   file  ─┘            └─ notes: `ignored: … because …`
//! ```

use std::{collections::BTreeMap, fmt};

use runtime::config::{Env, Problems, is_service_link, nearest};
use serde_json::Value;

use super::keys::{self, KEYS, Key, Meaning, Shape};

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Flag(&'static str),
    Env(String),
    File(String),
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) => write!(f, "from flag --{name}"),
            Self::Env(name) => write!(f, "from env {name}"),
            Self::File(path) => write!(f, "from file {path}"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// One value as it was given.
#[derive(Clone)]
pub(crate) struct Given {
    pub(crate) value: Value,
    pub(crate) source: Source,
}

impl fmt::Debug for Given {
    // The value may be a secret, and this type does not know.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Given")
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

/// Everything that was given, the strongest source per key.
#[derive(Debug, Default)]
pub(crate) struct Raw {
    given: BTreeMap<&'static str, Given>,
    /// One line for each thing that was accepted and has no effect.
    pub(crate) notes: Vec<String>,
}

impl Raw {
    pub(crate) fn get(&self, path: &str) -> Option<&Given> {
        self.given.get(path)
    }

    /// Takes a value unless a stronger source gave one. Empty text and null count as not given.
    fn put(&mut self, key: &'static Key, path: &str, value: Value, source: Source) {
        if value.is_null() || value.as_str().is_some_and(|text| text.trim().is_empty()) {
            return;
        }
        match key.meaning {
            Meaning::Ignored(reason) => self.note(format!("ignored: {path} ({source}) because {reason}")),
            Meaning::Read => {
                self.given.entry(key.path).or_insert(Given { value, source });
            }
        }
    }

    fn note(&mut self, line: String) {
        if !self.notes.contains(&line) {
            self.notes.push(line);
        }
    }

    /// Flags by the path of their key.
    pub(crate) fn flags(&mut self, flags: &BTreeMap<&'static str, String>) {
        for key in KEYS {
            if let (Some(flag), Some(text)) = (key.flag, flags.get(key.path)) {
                self.put(key, key.path, Value::String(text.clone()), Source::Flag(flag));
            }
        }
    }

    /// All variables. Service links of Kubernetes carry the names of our settings when a Service is called `agent`
    /// or `pipeops`; their form tells them apart.
    pub(crate) fn environment(&mut self, env: &Env, problems: &mut Problems) {
        for key in KEYS {
            for name in key.all_variables() {
                let Some(text) = env.get(&name) else { continue };
                if is_service_link(&name, text) {
                    self.note(format!(
                        "ignored: {name} because its value is a Kubernetes service link"
                    ));
                } else {
                    self.put(key, key.path, Value::String(text.to_owned()), Source::Env(name));
                }
            }
        }
        for (name, text) in env.iter().filter(|(name, _)| name.starts_with("PIPEOPS_")) {
            match keys::by_variable(name) {
                Some(key) if key.shape != Shape::Block => {}
                Some(key) => {
                    self.put(
                        key,
                        name,
                        Value::String(text.to_owned()),
                        Source::Env(name.to_owned()),
                    );
                }
                None if keys::is_of_sibling(name) => {}
                None if is_service_link(name, text) => {
                    self.note(format!(
                        "ignored: {name} because its value is a Kubernetes service link"
                    ));
                }
                None => {
                    let known: Vec<String> = KEYS.iter().flat_map(Key::all_variables).collect();
                    let hint = hint(name, known.iter().map(String::as_str));
                    // The value of a name that nobody knows may well be a secret.
                    problems.push(
                        name,
                        Source::Env(name.to_owned()),
                        None,
                        format!("is not a known variable{hint}"),
                    );
                }
            }
        }
    }

    /// The YAML text of a configuration file called `path`.
    pub(crate) fn file(&mut self, path: &str, text: &str, problems: &mut Problems) {
        let source = Source::File(path.to_owned());
        let value = if text.trim().is_empty() {
            Value::Null
        } else {
            match serde_saphyr::from_str::<Value>(text) {
                Ok(value) => value,
                Err(error) => {
                    // The parser's long form shows the lines around the fault, and one of them may be the token.
                    let at = error
                        .location()
                        .map(|at| format!(" at line {}, column {}", at.line(), at.column()))
                        .unwrap_or_default();
                    problems.push(
                        "config",
                        source,
                        None,
                        format!("is not YAML that can be read{at}"),
                    );
                    return;
                }
            }
        };
        match value {
            Value::Null => {}
            Value::Object(map) => {
                for (name, value) in map {
                    self.walk(&name, value, &source, problems);
                }
            }
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                problems.push("config", source, None, "is no mapping of settings");
            }
        }
    }

    fn walk(&mut self, path: &str, value: Value, source: &Source, problems: &mut Problems) {
        let exact = KEYS.iter().find(|key| key.path == path);
        match (exact, value) {
            (Some(key), value) if key.shape != Shape::Block => {
                self.put(key, path, value, source.clone());
            }
            (_, Value::Object(map)) if keys::is_block(path) => {
                for (name, value) in map {
                    self.walk(&format!("{path}.{name}"), value, source, problems);
                }
            }
            (_, Value::Null) if keys::is_block(path) => {}
            (_, value) => match keys::by_path(path) {
                Some(key) => self.put(key, path, value, source.clone()),
                None if keys::is_block(path) => {
                    problems.push(path, source, None, "is a block of settings, not a value");
                }
                None => {
                    let hint = hint(path, KEYS.iter().map(|key| key.path).chain(blocks()));
                    problems.push(path, source, None, format!("is not a known key{hint}"));
                }
            },
        }
    }
}

/// The names of blocks, for the hint about a mistyped one.
fn blocks() -> impl Iterator<Item = &'static str> {
    KEYS.iter()
        .filter_map(|key| key.path.split_once('.').map(|(block, _)| block))
}

fn hint<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    nearest(name, known).map_or_else(String::new, |near| format!("; did you mean {near}?"))
}
