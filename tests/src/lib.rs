//! Across-crate tests.
