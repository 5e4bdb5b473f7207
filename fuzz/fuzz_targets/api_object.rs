#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::run("api_object", data));
