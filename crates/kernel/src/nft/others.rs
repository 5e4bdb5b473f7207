//! Reading a table while others commit without pause: their commits to tables of their own do not spoil the reading.

use std::io;

use super::consts::*;
use super::{NETLINK_NETFILTER, decode, message_type};
use crate::monitor::{NFT_GROUP, join_group};
use crate::netlink::{Message, Messages, Refusal, Socket};

/// What others commit, message by message.
///
/// The kernel raises the generation, shows the new ruleset, then tells of each change and, last, of the generation
/// (`nf_tables_commit`). So once generation G was told, every change up to G was.
pub(super) struct Others(Socket);

impl Others {
    pub(super) fn open() -> io::Result<Self> {
        let socket = Socket::open(NETLINK_NETFILTER)?;
        join_group(socket.fd(), NFT_GROUP)?;
        Ok(Self(socket))
    }

    /// Forgets what was told until now.
    pub(super) fn forget(&mut self) -> Result<(), Refusal> {
        self.each(false, &mut |_| false).map(drop)
    }

    /// Whether anything in `table` changed in the generations told since [`Others::forget`], up to `generation`.
    /// Waits until it is told; what was told and lost counts as a change.
    pub(super) fn touched(&mut self, table: &str, generation: u32) -> Result<bool, Refusal> {
        let mut ours = false;
        let known = self.each(true, &mut |m| {
            if m.kind == message_type(NEWGEN) {
                // Numbers wrap around.
                return decode::generation(m).is_some_and(|g| g.wrapping_sub(generation).cast_signed() >= 0);
            }
            // In every object's message the first attribute is the name of its table.
            ours |= decode::is_of(m, TABLE_NAME, table);
            false
        })?;
        Ok(ours || !known)
    }

    /// Gives messages to `last` until it says true, or, unless `wait`, there are no more. False: some were lost.
    fn each(&mut self, wait: bool, last: &mut dyn FnMut(&Message<'_>) -> bool) -> Result<bool, Refusal> {
        loop {
            match self.0.receive(wait) {
                Ok(None) => return Ok(true),
                Ok(Some(b)) => {
                    if Messages(b).any(|m| last(&m)) {
                        return Ok(true);
                    }
                }
                Err(e) if matches!(e.raw_os_error(), Some(libc::ENOBUFS | libc::EMSGSIZE)) => return Ok(false),
                Err(e) => return Err(e.into()),
            }
        }
    }
}
