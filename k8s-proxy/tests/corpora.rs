//! Replays the fuzz corpora in every ordinary test run, and tries inputs made from them. The fuzz targets look for
//! more with a nightly compiler; `PIPEOPS_TEST_FUZZ_INPUTS` says how many are made for each target here.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: a panic is a failed test"
)]

use std::{fs, path::Path};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

/// What parsers stumble over.
const WORDS: [&[u8]; 24] = [
    b"%2e%2e",
    b"%2F",
    b"//",
    b"..",
    b"\r\n",
    b"\0",
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b"\\u0000",
    b":",
    b"?",
    b"&",
    b"*",
    b"impersonate-",
    b"system:",
    b"Connection: ",
    b"watch=true",
    b"k8s\0",
    b"\xff\xff\xff\xff",
    b"- ",
    b"\n",
];

/// Each target with its kept inputs.
fn corpora() -> Vec<(String, Vec<Vec<u8>>)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let targets = fs::read_dir(root.join("fuzz_targets")).unwrap();
    targets
        .map(|target| {
            let path = target.unwrap().path();
            let target = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let inputs = fs::read_dir(root.join("corpus").join(&target)).unwrap();
            let inputs = inputs.map(|input| fs::read(input.unwrap().path()).unwrap());
            (target, inputs.collect())
        })
        .collect()
}

fn run(target: &str, data: &[u8]) {
    assert!(
        k8s_proxy::fuzzing::run(target, data),
        "{target} is no target of the library"
    );
}

#[test]
fn every_kept_input_holds() {
    let mut replayed = 0;
    for (target, inputs) in corpora() {
        inputs.iter().for_each(|input| run(&target, input));
        assert!(inputs.len() >= 5, "{target} has {} inputs", inputs.len());
        replayed += inputs.len();
    }
    assert!(replayed >= 45, "{replayed} inputs in all");
}

#[test]
fn inputs_made_from_them_hold_too() {
    let wanted = std::env::var("PIPEOPS_TEST_FUZZ_INPUTS").map_or(3_000, |text| {
        text.parse().expect("PIPEOPS_TEST_FUZZ_INPUTS is a number")
    });
    // The same inputs in every run, so that a failure can be looked into.
    let mut random = StdRng::seed_from_u64(7);
    for (target, inputs) in corpora() {
        for _ in 0..wanted {
            let input = mutated(&inputs, &mut random);
            let held = std::panic::catch_unwind(|| run(&target, &input));
            assert!(held.is_ok(), "{target}: {:?}", String::from_utf8_lossy(&input));
        }
        println!("{target}: {wanted} made inputs held");
    }
}

fn mutated(inputs: &[Vec<u8>], random: &mut StdRng) -> Vec<u8> {
    let mut input = inputs.choose(random).unwrap().clone();
    for _ in 0..random.random_range(1..6) {
        let at = random.random_range(0..=input.len());
        let end = random.random_range(at..=input.len().min(at + 16));
        match random.random_range(0..6) {
            0 if at < input.len() => input[at] = random.random(),
            1 => drop(input.splice(at..at, WORDS.choose(random).unwrap().iter().copied())),
            2 => drop(input.drain(at..end)),
            3 => {
                let piece = input[at..end].to_vec();
                drop(input.splice(at..at, piece));
            }
            4 => {
                let other = inputs.choose(random).unwrap();
                let from = random.random_range(0..=other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            _ => input.truncate(at.max(1)),
        }
    }
    input
}
