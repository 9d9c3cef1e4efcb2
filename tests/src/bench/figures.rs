//! Figures: medians with their spread, as a table and as JSON lines.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result};
use serde::Serialize;

/// One figure as it is written.
#[derive(Debug, Serialize)]
struct Figure {
    name: String,
    unit: &'static str,
    ours: f64,
    peer: Option<f64>,
    peer_name: Option<&'static str>,
    ratio: Option<f64>,
    runs: usize,
    /// Largest minus smallest of our runs.
    spread: f64,
    #[serde(skip)]
    goal: Option<Goal>,
}

/// What a figure shall be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Goal {
    /// Ours, at most.
    AtMost(f64),
    /// Ours, at least.
    AtLeast(f64),
    /// Ours by the peer's, at most.
    RatioAtMost(f64),
    /// Ours by the peer's, at least.
    RatioAtLeast(f64),
}

impl Goal {
    fn reached(self, figure: &Figure) -> bool {
        let ratio = figure.ratio.unwrap_or(f64::NAN);
        match self {
            Self::AtMost(limit) => figure.ours <= limit,
            Self::AtLeast(limit) => figure.ours >= limit,
            Self::RatioAtMost(limit) => ratio <= limit,
            Self::RatioAtLeast(limit) => ratio >= limit,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtMost(limit) => format!("<= {limit}"),
            Self::AtLeast(limit) => format!(">= {limit}"),
            Self::RatioAtMost(limit) => format!("ratio <= {limit}"),
            Self::RatioAtLeast(limit) => format!("ratio >= {limit}"),
        }
    }
}

/// All figures of one bench.
#[derive(Debug, Default)]
pub(super) struct Figures {
    list: Vec<Figure>,
}

impl Figures {
    /// A figure of ours alone.
    pub(super) fn ours(&mut self, name: impl Into<String>, unit: &'static str, runs: &[f64]) {
        self.add(name.into(), unit, runs, None);
    }

    /// A figure of ours beside that of a peer.
    pub(super) fn beside(
        &mut self,
        name: impl Into<String>,
        unit: &'static str,
        runs: &[f64],
        peer_name: &'static str,
        peer: &[f64],
    ) {
        self.add(name.into(), unit, runs, Some((peer_name, median(peer))));
    }

    fn add(&mut self, name: String, unit: &'static str, runs: &[f64], peer: Option<(&'static str, f64)>) {
        let ours = median(runs);
        let (low, high) = runs.iter().fold((f64::MAX, f64::MIN), |(low, high), run| {
            (low.min(*run), high.max(*run))
        });
        let figure = Figure {
            name,
            unit,
            ours,
            peer: peer.map(|(_, figure)| figure),
            peer_name: peer.map(|(name, _)| name),
            ratio: peer
                .map(|(_, figure)| ours / figure)
                .filter(|ratio| ratio.is_finite()),
            runs: runs.len(),
            spread: if runs.is_empty() { 0.0 } else { high - low },
            goal: None,
        };
        println!("{}", line(&figure));
        self.list.push(figure);
    }

    /// Says what the figure that came last shall be.
    pub(super) fn goal(&mut self, goal: Goal) {
        if let Some(figure) = self.list.last_mut() {
            println!("    goal {}: {}", goal.text(), reached(goal.reached(figure)));
            figure.goal = Some(goal);
        }
    }

    /// Prints the table and writes `target/bench/<bench>.jsonl`.
    pub(super) fn finish(self, bench: &str) -> Result<()> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("the workspace")?
            .join("target/bench");
        fs::create_dir_all(&dir)?;
        let mut lines = String::new();
        println!(
            "\n{:<58} {:>12} {:>12} {:>7}  unit",
            "figure", "ours", "peer", "ratio"
        );
        for figure in &self.list {
            println!("{}", line(figure));
            writeln!(lines, "{}", serde_json::to_string(figure)?)?;
        }
        let goals = self.list.iter().filter_map(|figure| Some((figure, figure.goal?)));
        let missed: Vec<_> = goals
            .clone()
            .filter(|(figure, goal)| !goal.reached(figure))
            .collect();
        if goals.clone().count() > 0 {
            println!(
                "\n{} of {} goals reached",
                goals.clone().count() - missed.len(),
                goals.count()
            );
            for (figure, goal) in missed {
                println!("MISSED {}: {}", goal.text(), line(figure));
            }
        }
        let path = dir.join(format!("{bench}.jsonl"));
        fs::write(&path, lines)?;
        println!("\nwritten to {}", path.display());
        Ok(())
    }
}

fn line(figure: &Figure) -> String {
    let peer = figure
        .peer
        .map_or_else(|| "-".to_owned(), |peer| format!("{peer:.3}"));
    let ratio = figure
        .ratio
        .map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
    let against = figure
        .peer_name
        .map(|name| format!(" (peer: {name})"))
        .unwrap_or_default();
    let goal = figure.goal.map_or_else(String::new, |goal| {
        format!("  [goal {}: {}]", goal.text(), reached(goal.reached(figure)))
    });
    format!(
        "{:<58} {:>12.3} {peer:>12} {ratio:>7}  {}{against}, median of {}, spread {:.3}{goal}",
        figure.name, figure.ours, figure.unit, figure.runs, figure.spread
    )
}

fn reached(yes: bool) -> &'static str {
    if yes { "reached" } else { "MISSED" }
}

/// The median; 0 of nothing.
pub(super) fn median(runs: &[f64]) -> f64 {
    let mut sorted = runs.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// The value below which `share` of the sorted values lie.
pub(super) fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index from a share of a length"
    )]
    let index = (values.len() as f64 * share) as usize;
    values
        .get(index.min(values.len().saturating_sub(1)))
        .copied()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_quantiles() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[]), 0.0);
        let mut values: Vec<f64> = (0..100).map(f64::from).collect();
        assert_eq!(quantile(&mut values, 0.99), 99.0);
        assert_eq!(quantile(&mut values, 0.5), 50.0);
    }
}
