//! A fake connection table.
