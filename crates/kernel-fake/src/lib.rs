//! Owns: stateful fakes of rtnetlink, nf_tables, conntrack and sysctl that refuse what the kernel refuses, a machine of
//! several namespaces made of them, and the scripted faults they share.
//! Never does: an effect outside its own memory; never ships (a dev-dependency).
//! Tested by: the same table of accepted and refused cases run against the kernel and against this (tests/).

pub mod conntrack;
pub mod fault;
pub mod machine;
pub mod nft;
pub mod rt;
pub mod sysctl;
