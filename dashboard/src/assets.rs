//! The built page, embedded.

/// The one document.
pub(crate) const INDEX: &str = include_str!("../web/dist/index.html");

const ASSETS: [(&str, &str, &str); 7] = [
    ("style.css", CSS, include_str!("../web/dist/style.css")),
    ("icon.svg", SVG, include_str!("../web/dist/icon.svg")),
    ("main.js", JS, include_str!("../web/dist/main.js")),
    ("api.js", JS, include_str!("../web/dist/api.js")),
    ("dom.js", JS, include_str!("../web/dist/dom.js")),
    ("format.js", JS, include_str!("../web/dist/format.js")),
    ("render.js", JS, include_str!("../web/dist/render.js")),
];

const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// Content type and text of an asset.
pub(crate) fn find(name: &str) -> Option<(&'static str, &'static str)> {
    ASSETS
        .iter()
        .find(|(asset, ..)| *asset == name)
        .map(|(_, kind, text)| (*kind, *text))
}

#[cfg(test)]
mod tests {
    use super::{ASSETS, INDEX};

    #[test]
    fn every_built_file_is_embedded_and_nothing_else() {
        let dist = concat!(env!("CARGO_MANIFEST_DIR"), "/web/dist");
        let mut files: Vec<String> = std::fs::read_dir(dist)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        let mut embedded: Vec<&str> = ASSETS
            .iter()
            .map(|(name, ..)| *name)
            .chain(["index.html"])
            .collect();
        embedded.sort_unstable();
        assert_eq!(files, embedded);
    }

    #[test]
    fn nothing_inline_and_nothing_from_elsewhere() {
        for (name, text) in ASSETS
            .iter()
            .map(|(name, _, text)| (*name, *text))
            .chain([("index.html", INDEX)])
        {
            // The name of SVG's namespace is an identifier, not an address that is fetched.
            let text = text.replace("http://www.w3.org/2000/svg", "");
            for forbidden in [
                "http://",
                "https://",
                "innerHTML",
                "eval(",
                " style=\"",
                "onclick=",
                "<script>",
                "<style",
            ] {
                assert!(!text.contains(forbidden), "{name} contains {forbidden}");
            }
        }
    }
}
