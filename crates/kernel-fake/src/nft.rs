//! A fake nf_tables.
