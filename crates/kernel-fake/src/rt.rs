//! A fake rtnetlink.
