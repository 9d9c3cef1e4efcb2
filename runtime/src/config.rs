//! Where settings come from, and how all their faults are told at once.

use std::{collections::BTreeMap, fmt};

/// Variables as a value, so that tests never touch the process's own.
#[derive(Clone, Debug, Default)]
pub struct Env {
    variables: BTreeMap<String, String>,
}

impl Env {
    /// The variables of this process; those that are not UTF-8 are left out.
    pub fn from_process() -> Self {
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Self { variables }
    }

    /// The given variables and no others.
    pub fn from_pairs<N: Into<String>, V: Into<String>>(pairs: impl IntoIterator<Item = (N, V)>) -> Self {
        Self {
            variables: pairs
                .into_iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
        }
    }

    /// One variable; an empty one counts as not set.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.variables
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// All variables by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.variables
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

/// One fault of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The setting.
    pub name: String,
    /// Where its value came from, for example `from env PIPEOPS_TOKEN`.
    pub source: String,
    /// What was given; `None` when it is secret or absent.
    pub value: Option<String>,
    /// What is wrong and what to do.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} (", self.name, self.reason)?;
        if let Some(value) = &self.value {
            write!(f, "value {value:?}, ")?;
        }
        write!(f, "{})", self.source)
    }
}

/// All faults of a configuration; displayed one a line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// No faults yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes a fault. `value` is `None` for secrets.
    pub fn push(
        &mut self,
        name: impl Into<String>,
        source: impl fmt::Display,
        value: Option<&str>,
        reason: impl fmt::Display,
    ) {
        self.0.push(Problem {
            name: name.into(),
            source: source.to_string(),
            value: value.map(str::to_owned),
            reason: reason.to_string(),
        });
    }

    /// Takes in the faults of another part.
    pub fn append(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }

    /// `value`, if there is no fault.
    ///
    /// # Errors
    /// All the faults.
    pub fn into_result<T>(self, value: T) -> Result<T, Self> {
        if self.is_empty() { Ok(value) } else { Err(self) }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Whether a variable is one that the kubelet makes for a Service (`enableServiceLinks`). A Service called like us
/// gives it the name of a setting; its form tells the two apart.
pub fn is_service_link(name: &str, value: &str) -> bool {
    ["tcp://", "udp://", "sctp://"]
        .iter()
        .any(|scheme| value.starts_with(scheme))
        || name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || name.rsplit_once("_PORT_").is_some_and(|(_, rest)| {
            let number = rest.split('_').next().unwrap_or_default();
            !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
        })
        || [
            "_TCP_PROTO",
            "_TCP_PORT",
            "_TCP_ADDR",
            "_UDP_PROTO",
            "_UDP_PORT",
            "_UDP_ADDR",
        ]
        .iter()
        .any(|end| name.ends_with(end))
}

/// Names at most this far apart (in edits) are taken for a slip of the keyboard.
const NEAR: usize = 4;

/// The known name nearest to `name`, if one is near enough to be meant.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .min()
        .filter(|(distance, _)| *distance <= NEAR.min(name.len().div_ceil(2)))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_a_line_and_a_secret_has_no_value() {
        let mut problems = Problems::new();
        problems.push(
            "pipeops.token",
            "from env PIPEOPS_TOKEN",
            None,
            "is a placeholder",
        );
        problems.push(
            "agent.port",
            "from file a.yaml",
            Some("x"),
            "is not a port (1 to 65535)",
        );
        assert_eq!(
            problems.to_string(),
            "pipeops.token: is a placeholder (from env PIPEOPS_TOKEN)\n\
             agent.port: is not a port (1 to 65535) (value \"x\", from file a.yaml)"
        );
        assert_eq!(problems.clone().into_result(()).unwrap_err().len(), 2);
    }

    #[test]
    fn the_nearest_name_is_named_only_when_it_is_near() {
        let known = ["cluster_name", "token", "api_url"];
        assert_eq!(nearest("cluster_nmae", known), Some("cluster_name"));
        assert_eq!(nearest("tokn", known), Some("token"));
        assert_eq!(nearest("something_else", known), None);
    }

    #[test]
    fn an_empty_variable_is_not_set() {
        let env = Env::from_pairs([("A", ""), ("B", "x")]);
        assert_eq!((env.get("A"), env.get("B")), (None, Some("x")));
    }
}
