//! The server from outside: HTTP over real sockets, the real kubectl, and processes that are killed.
// The whole program is a test: what is not as expected ends it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod admission;
mod bad_input;
mod crash;
mod custom;
mod harness;
mod kubectl;
mod objects;
mod patches;
mod serving;
mod watches;
