//! Doors for fuzzing: the files beside the journal, on any bytes. They must not panic, hang or hold much memory.

use std::net::IpAddr;

use crate::alloc::Pool;
use crate::frame::crc;
use crate::{IpamError, Pools, index};

/// The agent's list of what may be given out of pools: what is given out of it lies in it.
pub fn pools(data: &[u8]) {
    let Ok(pools) = Pools::parse(data) else { return };
    if let Ok(text) = serde_json::to_vec(&pools) {
        assert_eq!(Pools::parse(&text).as_ref(), Ok(&pools), "what is written is read");
    }
    let ranges: Vec<_> = pools.pools.values().flat_map(|p| p.ranges.clone()).collect();
    let names: Vec<Box<str>> = pools.pools.keys().take(4).cloned().collect();
    let except = pools.except.clone();
    let wanted: Vec<IpAddr> = ranges.first().map(|r| r.addr()).into_iter().collect();
    let nobody = |_| Err(IpamError::NoPools { file: "x".into() });
    for (names, requested) in [(&names[..], &[][..]), (&[], &[]), (&names, &wanted)] {
        let Ok(given) = Pool::default().choose(&pools.clone().space(names), requested, nobody) else { continue };
        for a in given {
            assert!(ranges.iter().any(|r| r.contains(a)) && !except.iter().any(|e| e.contains(a)), "{a} is nobody's");
            let _ = pools.underlay(a);
        }
    }
}

/// The journal's index; random bytes never have a right checksum, so it is mended.
pub fn index(data: &[u8]) {
    assert!(data.len() < 8 || index::read(data, "boot").is_none() || data[..4] == sum(&data[4..]));
    let mended = [&sum(data)[..], data].concat();
    if let Some((again, witness)) = index::read(&mended, "boot") {
        let once = index::read(&again, "boot");
        assert_eq!(once.map(|(_, w)| w), Some(witness), "what is written is read");
    }
}

fn sum(rest: &[u8]) -> [u8; 4] {
    crc(index::KIND, rest).to_le_bytes()
}
