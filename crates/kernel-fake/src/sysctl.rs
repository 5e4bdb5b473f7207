//! A fake /proc/sys.
