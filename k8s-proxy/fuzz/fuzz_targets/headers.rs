#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| k8s_proxy::fuzzing::headers(data));
