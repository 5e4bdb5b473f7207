//! The decoders of the kernel's bytes take any bytes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

use kernel::fuzz::{ct_message, nft_message, rt_message};
use proptest::collection::vec;
use proptest::prelude::*;

fn attr(kind: u16, data: &[u8]) -> Vec<u8> {
    let mut b = u16::try_from(4 + data.len()).unwrap_or(u16::MAX).to_ne_bytes().to_vec();
    b.extend(kind.to_ne_bytes());
    b.extend(data);
    b.resize(b.len().next_multiple_of(4), 0);
    b
}

/// Attributes as the kernel nests them, with types and lengths that decoders look for.
fn attrs() -> impl Strategy<Value = Vec<u8>> {
    let data = prop_oneof![
        vec(any::<u8>(), 0..20),
        Just(vec![0, 0, 0, 1]),
        Just(vec![1, 0, 0, 0]),
        Just(vec![0xff; 4]),
        Just(vec![0xff, 0xff, 0xff, 0xfd]),
        Just(b"veth\0".to_vec()),
        Just(b"vxlan\0".to_vec()),
        prop_oneof![
            Just("macvlan"),
            Just("ipvlan"),
            Just("vlan"),
            Just("vrf"),
            Just("tun"),
            Just("bridge"),
            Just("tbf"),
            Just("clsact"),
            Just("bpf"),
            Just("u32"),
            Just("mirred"),
        ]
        .prop_map(|s| format!("{s}\0").into_bytes()),
        prop_oneof![
            Just("meta"),
            Just("payload"),
            Just("cmp"),
            Just("bitwise"),
            Just("lookup"),
            Just("immediate"),
            Just("numgen"),
            Just("fib"),
            Just("ct"),
            Just("nat"),
            Just("masq"),
            Just("reject"),
            Just("counter"),
        ]
        .prop_map(|s| format!("{s}\0").into_bytes()),
    ];
    let leaf = (0u16..54, data).prop_map(|(k, d)| attr(k, &d));
    leaf.prop_recursive(5, 64, 6, |inner| (0u16..32, vec(inner, 0..6)).prop_map(|(k, d)| attr(k, &d.concat())))
        .prop_flat_map(|first| vec(Just(first), 1..4))
        .prop_map(|all| all.concat())
}

fn message() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![2u16..4, 16u16..47, 0x0100u16..0x0103, 0x0a00u16..0x0a11];
    let header = prop_oneof![Just(4usize), Just(8), Just(12), Just(16), Just(20)];
    (kind, any::<u16>(), header.prop_flat_map(|n| vec(any::<u8>(), n)), vec(attrs(), 0..6)).prop_map(
        |(kind, flags, header, attrs)| {
            let body = [header, attrs.concat()].concat();
            let mut b = u32::try_from(16 + body.len()).unwrap_or(u32::MAX).to_ne_bytes().to_vec();
            b.extend(kind.to_ne_bytes());
            b.extend(flags.to_ne_bytes());
            b.extend([1, 0, 0, 0, 0, 0, 0, 0]);
            b.extend(body);
            b
        },
    )
}

fn all(data: &[u8]) {
    rt_message(data);
    nft_message(data);
    ct_message(data);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_bytes(data in vec(any::<u8>(), 0..300)) {
        all(&data);
    }

    #[test]
    fn well_formed_nonsense(messages in vec(message(), 1..4)) {
        all(&messages.concat());
    }

    #[test]
    fn cut_and_flipped(mut data in message(), cut in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), with in any::<u8>()) {
        let i = at.index(data.len());
        data[i] ^= with;
        data.truncate(cut.index(data.len()));
        all(&data);
    }
}
