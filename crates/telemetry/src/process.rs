//! What this process costs, from procfs.

/// Memory of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Process {
    /// Resident set in bytes.
    pub resident: u64,
    /// Virtual size in bytes.
    pub virtual_size: u64,
}

impl Process {
    /// This process now; `None` where `/proc` is not mounted.
    #[must_use]
    pub fn own() -> Option<Self> {
        let page = page_size();
        parse_statm(&std::fs::read_to_string("/proc/self/statm").ok()?, page)
    }
}

/// Reads a `/proc/PID/statm` line (proc_pid_statm(5)): total and resident size in pages of `page` bytes.
#[must_use]
pub fn parse_statm(line: &str, page: u64) -> Option<Process> {
    let mut fields = line.split_ascii_whitespace().map(str::parse::<u64>);
    let virtual_size = fields.next()?.ok()?.checked_mul(page)?;
    let resident = fields.next()?.ok()?.checked_mul(page)?;
    Some(Process { resident, virtual_size })
}

/// The page size that statm counts in, from the auxiliary vector (AT_PAGESZ, `getauxval(3)`); 4096 when unreadable.
fn page_size() -> u64 {
    const AT_PAGESZ: u64 = 6;
    let word = |b: &[u8]| b.try_into().map(u64::from_ne_bytes).unwrap_or(0);
    std::fs::read("/proc/self/auxv")
        .ok()
        .and_then(|v| v.chunks_exact(16).find(|c| word(&c[..8]) == AT_PAGESZ).map(|c| word(&c[8..])))
        .filter(|n| n.is_power_of_two())
        .unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statm_is_pages() {
        let p = parse_statm("2103 512 400 80 0 300 0\n", 4096);
        assert_eq!(p, Some(Process { resident: 512 * 4096, virtual_size: 2103 * 4096 }));
        for bad in ["", "1", "x 1", "18446744073709551615 1"] {
            assert_eq!(parse_statm(bad, 4096), None, "{bad:?}");
        }
    }

    #[test]
    fn a_living_process_has_memory() {
        let p = Process::own().expect("/proc is mounted");
        assert!(p.resident > 100_000 && p.virtual_size >= p.resident, "{p:?}");
    }
}
