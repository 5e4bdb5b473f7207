//! The names of links by their indexes, each asked for when it is first needed.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use types::IfName;

use crate::sys;

/// Asks one by one, of a socket's namespace, and not for a dump of all links: that takes the kernel some ten microseconds
/// for each link and holds RTNL meanwhile, one name a tenth of that and no lock.
#[derive(Default)]
pub(crate) struct Names {
    socket: Option<OwnedFd>,
    known: RefCell<HashMap<u32, Option<IfName>>>,
}

impl Names {
    /// Of the links in the namespace of a socket.
    pub(crate) fn of(socket: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self { socket: Some(socket.try_clone_to_owned()?), known: RefCell::default() })
    }

    /// Nothing for a link that is not there, or whose name is none of ours to say.
    pub(crate) fn get(&self, index: u32) -> Option<IfName> {
        if let Some(known) = self.known.borrow().get(&index) {
            return known.clone();
        }
        let name = sys::link_name(self.socket.as_ref()?.as_fd(), index).ok()?;
        let name = String::from_utf8(name).ok().and_then(|n| n.parse::<IfName>().ok());
        self.known.borrow_mut().insert(index, name.clone());
        name
    }
}

/// These and no others.
impl FromIterator<(u32, IfName)> for Names {
    fn from_iter<T: IntoIterator<Item = (u32, IfName)>>(names: T) -> Self {
        let known = names.into_iter().map(|(i, n)| (i, Some(n))).collect();
        Self { socket: None, known: RefCell::new(known) }
    }
}
