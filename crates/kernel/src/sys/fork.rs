//! What happens between fork and exec.
