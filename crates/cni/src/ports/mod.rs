//! Ports of the node that lead into containers (`portMappings`, `hostPort`): one nf_tables table for all of them.
//!
//! ```text
//! prerouting, output --(to an address of the node)--> hostports: dnat to ... map @bound4 | @any4
//! postrouting --(translated)--> masquerading: saddr & mask . daddr . protocol . port  @near4_LENGTH  masquerade
//! ```
//!
//! A mapping is an element of a map; the number of chains and rules does not depend on the number of containers. Each
//! element says in its comment whose it is ([`Owner`]), so that a DEL that knows nothing else finds exactly its own, and
//! a commit is only done on the very state it was decided on ([`kernel_api::Nft::commit_at`]): no lock, no file.
//!
//! The chains hang just after `dstnat` (-95): where a Service's node port and a host port are the same, the node port
//! wins, whoever came first. nf_tables lets the first nat chain that translates a connection have it.
//!
//! A container that is reached by a host port from its own subnet would answer past the translation, and one that
//! reaches itself would answer itself; so such connections are masqueraded (`near4_24` and the like, one set per prefix
//! length in use; length 0 is `masqAll`; 127.0.0.0/8 is in `near4_8`). IPv6 has no counterpart of `route_localnet`:
//! connections to `::1` are left alone.

mod config;
mod image;
mod layout;
mod machine;
mod owner;
mod run;
mod want;
mod when;

pub use config::mappings;
pub use image::Image;
pub use layout::table;
pub use machine::{attach, collect, detach};
pub(crate) use machine::{attach_new, detach_these};
pub use owner::Owner;
pub use run::{check, claim, observe, release, sweep};
pub use want::{Clash, Masquerade, Ports};
pub use when::{Syntax, When};
