//! Replays the fuzz corpora in every ordinary test run.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "test code: a panic is a failed test"
)]

use std::{fs, path::Path};

#[test]
fn every_kept_input_holds() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let mut replayed = 0;
    for target in fs::read_dir(root.join("fuzz_targets")).unwrap() {
        let target = target
            .unwrap()
            .path()
            .file_stem()
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        let mut found = 0;
        for input in fs::read_dir(root.join("corpus").join(&target)).unwrap() {
            let data = fs::read(input.unwrap().path()).unwrap();
            assert!(
                k8s_proxy::fuzzing::run(&target, &data),
                "{target} is no target of the library"
            );
            found += 1;
        }
        assert!(found >= 5, "{target} has {found} inputs");
        replayed += found;
    }
    assert!(replayed >= 30, "{replayed} inputs in all");
}
