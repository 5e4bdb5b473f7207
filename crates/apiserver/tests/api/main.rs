//! The server from outside: HTTP over real sockets, the real kubectl, and processes that are killed.

mod admission;
mod bad_input;
mod crash;
mod harness;
mod kubectl;
mod objects;
mod patches;
mod serving;
mod watches;
