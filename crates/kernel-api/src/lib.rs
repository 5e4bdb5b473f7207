//! Owns: the narrow effect traits ([`Rtnetlink`], [`Nft`], [`Conntrack`], [`Sysctl`], [`Machine`]) and their request data, plain
//! values that both the kernel and its fake understand.
//! Never does: an effect; there is no implementation here.
//! Tested by: the same cases run against `kernel` and `kernel-fake` (tests/).

pub mod conntrack;
mod error;
pub mod foreign;
mod guard;
pub mod machine;
pub mod neighbours;
pub mod nft;
pub mod rt;
pub mod tc;

pub use conntrack::Conntrack;
pub use error::{RequestError, errno};
pub use machine::Machine;
pub use nft::Nft;
pub use rt::Rtnetlink;

/// Sysctls of the network namespace that the implementation was opened in.
pub trait Sysctl {
    /// Reads `path`, relative to /proc/sys with slashes (`net/ipv4/ip_forward`), without the final newline. `None` when
    /// the kernel has no such knob.
    ///
    /// # Errors
    /// When it exists but cannot be read.
    fn get(&mut self, path: &str) -> Result<Option<String>, RequestError>;

    /// Writes it.
    ///
    /// # Errors
    /// When it does not exist, or refuses the value.
    fn set(&mut self, path: &str, value: &str) -> Result<(), RequestError>;
}

impl<T: Sysctl + ?Sized> Sysctl for &mut T {
    fn get(&mut self, path: &str) -> Result<Option<String>, RequestError> {
        (**self).get(path)
    }
    fn set(&mut self, path: &str, value: &str) -> Result<(), RequestError> {
        (**self).set(path, value)
    }
}
