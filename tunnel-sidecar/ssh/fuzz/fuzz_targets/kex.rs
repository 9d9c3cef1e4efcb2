#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| chisel_ssh::fuzzing::kex(data));
