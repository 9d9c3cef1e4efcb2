//! Sizes of binaries and images.

use std::fs;

use anyhow::Result;

use super::figures::Figures;
use crate::{pod::Part, process::find_binary};

pub(super) fn measure(figures: &mut Figures) -> Result<()> {
    let mut all = 0.0;
    for part in Part::ALL {
        let binary = find_binary(part.name())?;
        let megabytes = fs::metadata(&binary)?.len() as f64 / 1e6;
        all += megabytes;
        figures.ours(format!("binary {}", part.name()), "MB", &[megabytes]);
        let images = binary.ancestors().nth(3).map(|target| target.join("images"));
        let image = images.map(|dir| dir.join(format!("{}.tar", part.name())));
        if let Some(meta) = image.and_then(|path| fs::metadata(path).ok()) {
            figures.ours(format!("image {}", part.name()), "MB", &[meta.len() as f64 / 1e6]);
        }
    }
    figures.ours("binaries together", "MB", &[all]);
    Ok(())
}
