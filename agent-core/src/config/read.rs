//! Typed reading of single values; each fault is noted and a harmless stand-in returned, so that all faults show.

use std::{fmt::Display, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use runtime::{config::Problems, secret::SecretString};
use serde_json::Value;
use url::Url;

use super::{
    keys,
    raw::{Given, Raw, Source},
};

/// Reads the given values and collects what is wrong with them.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    pub(super) raw: &'a Raw,
    pub(super) problems: Problems,
    /// Name, value and source of everything that was read.
    pub(super) effective: Vec<Effective>,
}

/// One line of the effective configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    /// The key.
    pub name: &'static str,
    /// Its value; the word `(secret)` for secrets.
    pub value: String,
    /// Where it came from.
    pub source: String,
}

impl Reader<'_> {
    /// Notes a fault of `path` with its value, unless the key is secret.
    pub(super) fn fault(&mut self, path: &'static str, reason: impl Display) {
        let given = self.raw.get(path);
        let secret = keys::by_path(path).is_some_and(|key| key.secret);
        let value = given.filter(|_| !secret).map(|given| shown(&given.value));
        let source = given.map_or(Source::Default, |given| given.source.clone());
        self.problems.push(path, source, value.as_deref(), reason);
    }

    fn given(&mut self, path: &'static str) -> Option<Given> {
        let given = self.raw.get(path)?.clone();
        let secret = keys::by_path(path).is_some_and(|key| key.secret);
        let value = if secret {
            "(secret)".to_owned()
        } else {
            shown(&given.value)
        };
        self.effective.push(Effective {
            name: path,
            value,
            source: given.source.to_string(),
        });
        Some(given)
    }

    fn default<T>(&mut self, path: &'static str, value: T, text: impl Display) -> T {
        self.effective.push(Effective {
            name: path,
            value: text.to_string(),
            source: Source::Default.to_string(),
        });
        value
    }

    /// Text; numbers and booleans are taken as they are written.
    pub(super) fn text(&mut self, path: &'static str) -> Option<String> {
        match self.given(path)?.value {
            Value::String(text) => Some(text.trim().to_owned()),
            Value::Number(number) => Some(number.to_string()),
            Value::Bool(flag) => Some(flag.to_string()),
            Value::Null | Value::Array(_) | Value::Object(_) => {
                self.fault(path, "is not a single value");
                None
            }
        }
    }

    pub(super) fn text_or(&mut self, path: &'static str, default: &str) -> String {
        match self.text(path) {
            Some(text) => text,
            None => self.default(path, default.to_owned(), default),
        }
    }

    pub(super) fn secret(&mut self, path: &'static str) -> Option<SecretString> {
        self.text(path).map(SecretString::from)
    }

    pub(super) fn path(&mut self, path: &'static str) -> Option<PathBuf> {
        self.text(path).map(PathBuf::from)
    }

    pub(super) fn path_or(&mut self, path: &'static str, default: &str) -> PathBuf {
        PathBuf::from(self.text_or(path, default))
    }

    pub(super) fn switch(&mut self, path: &'static str) -> Option<bool> {
        let text = self.text(path)?;
        match text.to_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Some(true),
            "false" | "0" | "no" | "off" => Some(false),
            _ => {
                self.fault(path, "is neither true nor false");
                None
            }
        }
    }

    pub(super) fn switch_or(&mut self, path: &'static str, default: bool) -> bool {
        match self.switch(path) {
            Some(flag) => flag,
            None => self.default(path, default, default),
        }
    }

    /// A duration such as `30s` or `5m`; a bare number counts seconds. Zero is refused unless `zero` allows it.
    pub(super) fn duration_or(&mut self, path: &'static str, default: Duration, zero: bool) -> Duration {
        let Some(text) = self.text(path) else {
            return self.default(path, default, humantime::format_duration(default));
        };
        match parse_duration(&text) {
            Some(duration) if zero || !duration.is_zero() => duration,
            Some(_) => {
                self.fault(path, "must be longer than nothing");
                default
            }
            None => {
                self.fault(path, "is no duration such as 30s or 5m");
                default
            }
        }
    }

    pub(super) fn parsed<T: FromStr>(&mut self, path: &'static str, what: &str) -> Option<T> {
        let text = self.text(path)?;
        let parsed = text.parse().ok();
        if parsed.is_none() {
            self.fault(path, format_args!("is not {what}"));
        }
        parsed
    }

    pub(super) fn address_or(&mut self, path: &'static str, default: SocketAddr) -> SocketAddr {
        match self.raw.get(path) {
            Some(_) => self
                .parsed(path, "an address such as 127.0.0.1:8080")
                .unwrap_or(default),
            None => self.default(path, default, default),
        }
    }

    /// A URL with one of the given schemes and a host.
    pub(super) fn url(&mut self, path: &'static str, schemes: &[&str]) -> Option<Url> {
        let text = self.text(path)?;
        match Url::parse(&text) {
            Ok(url) if !schemes.contains(&url.scheme()) || !url.has_host() => {
                self.fault(
                    path,
                    format_args!("is no URL that begins with {}://", schemes.join(":// or ")),
                );
                None
            }
            Ok(url) if !url.username().is_empty() || url.password().is_some() => {
                // The value would show the password.
                let source = self
                    .raw
                    .get(path)
                    .map_or(Source::Default, |given| given.source.clone());
                self.problems
                    .push(path, source, None, "must not carry a user or password in the URL");
                self.effective.retain(|line| line.name != path);
                None
            }
            Ok(url) => Some(url),
            Err(error) => {
                self.fault(path, format_args!("is no URL: {error}"));
                None
            }
        }
    }

    /// A sequence, or its YAML or comma-separated text in a variable.
    pub(super) fn list(&mut self, path: &'static str) -> Option<Vec<Value>> {
        match self.given(path)?.value {
            Value::Array(items) => Some(items),
            Value::String(text) if text.trim_start().starts_with(['[', '-']) => {
                match serde_saphyr::from_str::<Vec<Value>>(&text) {
                    Ok(items) => Some(items),
                    Err(_) => {
                        self.fault(path, "is no list that can be read");
                        None
                    }
                }
            }
            Value::String(text) => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                Some(items.map(|item| Value::String(item.to_owned())).collect())
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => {
                self.fault(path, "is no list");
                None
            }
        }
    }

    /// A list of plain texts.
    pub(super) fn texts(&mut self, path: &'static str) -> Vec<String> {
        let items = self.list(path).unwrap_or_default();
        let texts: Vec<String> = items
            .iter()
            .filter_map(|item| item.as_str().map(str::to_owned))
            .collect();
        if texts.len() != items.len() {
            self.fault(path, "holds something that is no text");
        }
        texts
    }

    /// A mapping of texts, or `name=value,name=value` in a variable.
    pub(super) fn pairs(&mut self, path: &'static str) -> Vec<(String, String)> {
        let Some(given) = self.given(path) else {
            return Vec::new();
        };
        match given.value {
            Value::Object(map) => map
                .into_iter()
                .map(|(name, value)| (name, shown_plain(&value)))
                .collect(),
            Value::String(text) => {
                let mut pairs = Vec::new();
                for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
                    match item.split_once('=') {
                        Some((name, value)) => pairs.push((name.trim().to_owned(), value.trim().to_owned())),
                        None => self.fault(path, "is no list of name=value"),
                    }
                }
                pairs
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => {
                self.fault(path, "is no mapping of names to values");
                Vec::new()
            }
        }
    }
}

/// `30s`, `5m`, `1h30m` or a bare number of seconds.
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    humantime::parse_duration(text).ok()
}

fn shown_plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A value for a message: one line, and short.
fn shown(value: &Value) -> String {
    const LONGEST: usize = 120;
    let text = shown_plain(value);
    if text.chars().count() <= LONGEST {
        return text;
    }
    let mut short: String = text.chars().take(LONGEST).collect();
    short.push('…');
    short
}
