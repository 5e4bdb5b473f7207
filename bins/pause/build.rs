//! A release build starts at our own `_start`: no start files of the C library, no dynamic linker, a fixed address.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let release = std::env::var("PROFILE").is_ok_and(|p| p == "release");
    if release {
        for arg in ["-nostartfiles", "-nodefaultlibs", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,-z,norelro"] {
            println!("cargo:rustc-link-arg-bins={arg}");
        }
    }
}
