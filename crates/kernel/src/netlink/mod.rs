//! Netlink(7): sockets, messages, acknowledgements, dumps.

mod socket;
mod wire;

pub(crate) use socket::{Refusal, Socket, parse_error, until_whole};
pub(crate) use wire::{Attrs, Builder, Message, Messages, be16, be32, cstr, ne16, ne32, ne64};

/// `NLMSG_ERROR`
pub(crate) const NLMSG_ERROR: u16 = 2;
/// `NLMSG_DONE`
pub(crate) const NLMSG_DONE: u16 = 3;

/// `NLM_F_REQUEST`
pub(crate) const REQUEST: u16 = 0x1;
/// `NLM_F_ACK`
pub(crate) const ACK: u16 = 0x4;
/// `NLM_F_ECHO`
pub(crate) const ECHO: u16 = 0x8;
/// `NLM_F_DUMP_INTR`
pub(crate) const DUMP_INTR: u16 = 0x10;
/// `NLM_F_CAPPED`
pub(crate) const CAPPED: u16 = 0x100;
/// `NLM_F_ACK_TLVS`
pub(crate) const ACK_TLVS: u16 = 0x200;
/// `NLM_F_DUMP`
pub(crate) const DUMP: u16 = 0x300;
/// `NLM_F_REPLACE`
pub(crate) const REPLACE: u16 = 0x100;
/// `NLM_F_EXCL`
pub(crate) const EXCL: u16 = 0x200;
/// `NLM_F_CREATE`
pub(crate) const CREATE: u16 = 0x400;
/// `NLM_F_APPEND`
pub(crate) const APPEND: u16 = 0x800;
