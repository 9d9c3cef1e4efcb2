//! One line of text for the page, with whatever looks like a secret masked.

use serde::Serialize;

/// Longer texts are cut: a reason is a sentence, and a peer's error page is not.
const MAX_CHARS: usize = 300;

/// What a masked part looks like.
const MASK: &str = "***";

/// Names whose `name=value` loses its value.
const SECRET_NAMES: [&str; 6] = [
    "token",
    "password",
    "secret",
    "bearer",
    "credential",
    "authorization",
];

/// One line of text: at most 300 characters, no control characters, `user:password@` in URLs, bearer values, JSON
/// web tokens and `token=…` parameters masked.
///
/// Reasons often quote what a peer sent or the URL that was dialled; masking here means that no caller has to
/// remember it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Line(String);

impl Line {
    /// The cleaned text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Line {
    fn from(text: &str) -> Self {
        let mut line = String::with_capacity(text.len().min(MAX_CHARS));
        let mut after_scheme = false;
        for word in text
            .split(|c: char| c.is_whitespace() || c.is_control())
            .filter(|word| !word.is_empty())
        {
            if !line.is_empty() {
                line.push(' ');
            }
            let names_scheme = is_auth_scheme(word);
            if after_scheme && !names_scheme {
                line.push_str(MASK);
            } else {
                line.push_str(&mask_word(word));
            }
            after_scheme = names_scheme;
        }
        if line.chars().count() > MAX_CHARS {
            line = line.chars().take(MAX_CHARS - 1).collect();
            line.push('…');
        }
        Self(line)
    }
}

impl From<String> for Line {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

fn is_auth_scheme(word: &str) -> bool {
    let word = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    word.eq_ignore_ascii_case("bearer") || word.eq_ignore_ascii_case("basic")
}

fn mask_word(word: &str) -> String {
    mask_parameters(&mask_jwt(&mask_userinfo(word)))
}

/// `scheme://user:password@host` becomes `scheme://***@host`.
fn mask_userinfo(word: &str) -> String {
    let Some((scheme, rest)) = word.split_once("://") else {
        return word.to_owned();
    };
    let end = rest.find(['/', '?', '#', '"', '\'']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    match authority.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://{MASK}@{host}{}", mask_userinfo(tail)),
        None => format!("{scheme}://{authority}{}", mask_userinfo(tail)),
    }
}

/// Three base64url parts of which the first opens a JSON object: `eyJ…`.
fn mask_jwt(word: &str) -> String {
    let Some(at) = word.find("eyJ") else {
        return word.to_owned();
    };
    let (before, rest) = word.split_at(at);
    let end = rest
        .find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '.' | '-' | '_' | '='))
        .unwrap_or(rest.len());
    let (token, after) = rest.split_at(end);
    if token.matches('.').count() == 2 {
        format!("{before}{MASK}{after}")
    } else {
        word.to_owned()
    }
}

/// `token=value` and its kin become `token=***`, up to the next separator.
fn mask_parameters(word: &str) -> String {
    let mut out = String::with_capacity(word.len());
    let mut rest = word;
    while let Some((name, after)) = rest.split_once('=') {
        out.push_str(name);
        out.push('=');
        let last = name
            .rsplit(['?', '&', ';', ','])
            .next()
            .unwrap_or(name)
            .to_ascii_lowercase();
        if SECRET_NAMES.iter().any(|secret| last.contains(secret)) {
            let end = after.find(['&', ';', ',', '#', '"', '\'']).unwrap_or(after.len());
            out.push_str(MASK);
            rest = after.split_at(end).1;
        } else {
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::Line;

    #[test]
    fn what_looks_like_a_secret_is_masked_and_the_rest_stays() {
        let cases = [
            (
                "dial wss://user:pass@host:1/x: refused",
                "dial wss://***@host:1/x: refused",
            ),
            ("Authorization: Bearer abc", "Authorization: Bearer ***"),
            (
                "GET /x?a=1&access_token=abc&b=2",
                "GET /x?a=1&access_token=***&b=2",
            ),
            ("got eyJhbGciOi.J9.sig, sorry", "got ***, sorry"),
            (
                "http://a.example/?next=http://u:p@b.example/",
                "http://a.example/?next=http://***@b.example/",
            ),
            ("two\nlines\tand \u{1b}[31mcolour", "two lines and [31mcolour"),
            ("resourceVersion=42", "resourceVersion=42"),
            ("waiting for token", "waiting for token"),
        ];
        for (text, expected) in cases {
            assert_eq!(Line::from(text).as_str(), expected);
        }
    }

    #[test]
    fn long_text_is_cut_at_a_character() {
        let line = Line::from("ü".repeat(1000));
        assert_eq!(line.as_str().chars().count(), 300);
        assert!(line.as_str().ends_with('…'));
    }
}
