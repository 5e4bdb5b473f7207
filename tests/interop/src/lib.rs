//! Owns: what tests with real container runtimes need: a node of its own namespaces, the runtimes' programs, an image.
//! Never does: anything that other tests or programs use; the cases are in tests/.
//! Tested by: the cases, and unit tests here.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

pub mod cluster;
pub mod cnitool;
pub mod cri;
pub mod image;
pub mod node;
pub mod page;
pub mod tools;
pub mod traffic;

pub use node::Node;
