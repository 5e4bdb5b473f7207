//! What a kernel says when it refuses.

use std::fmt;

/// A request the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestError {
    /// The request and its object, as a person would type it: `route add 10.244.2.0/24 via 10.0.0.2`.
    pub request: String,
    /// The error number, positive (`include/uapi/asm-generic/errno-base.h`).
    pub errno: i32,
    /// The kernel's own words, when it gave some (extended ack, `NLMSGERR_ATTR_MSG`).
    pub message: Option<String>,
    /// In a batch, which request (from zero) this answers.
    pub index: Option<usize>,
}

/// The error numbers that code above the kernel decides on (Linux, all architectures we build for).
pub mod errno {
    /// Not permitted.
    pub const EPERM: i32 = 1;
    /// No such object.
    pub const ENOENT: i32 = 2;
    /// No such process or route.
    pub const ESRCH: i32 = 3;
    /// I/O error.
    pub const EIO: i32 = 5;
    /// Permission denied.
    pub const EACCES: i32 = 13;
    /// Busy.
    pub const EBUSY: i32 = 16;
    /// Exists already.
    pub const EEXIST: i32 = 17;
    /// No such device.
    pub const ENODEV: i32 = 19;
    /// Invalid argument.
    pub const EINVAL: i32 = 22;
    /// Out of range.
    pub const ERANGE: i32 = 34;
    /// What a decision was made on has changed.
    pub const ERESTART: i32 = 85;
    /// Not supported.
    pub const EOPNOTSUPP: i32 = 95;
    /// Protocol family not supported.
    pub const EAFNOSUPPORT: i32 = 97;
    /// Address in use.
    pub const EADDRINUSE: i32 = 98;
    /// Address not available.
    pub const EADDRNOTAVAIL: i32 = 99;
    /// Network unreachable.
    pub const ENETUNREACH: i32 = 101;
    /// No buffer space.
    pub const ENOBUFS: i32 = 105;
    /// Host unreachable.
    pub const EHOSTUNREACH: i32 = 113;
}

impl RequestError {
    /// A refusal of `request` with `errno`.
    #[must_use]
    pub fn new(request: impl Into<String>, errno: i32) -> Self {
        Self { request: request.into(), errno, message: None, index: None }
    }

    /// A refusal that an I/O error tells.
    #[must_use]
    pub fn io(request: impl Into<String>, e: &std::io::Error) -> Self {
        Self {
            request: request.into(),
            errno: e.raw_os_error().unwrap_or(errno::EIO),
            message: e.raw_os_error().is_none().then(|| e.to_string()),
            index: None,
        }
    }

    /// Whether the object was there already.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.errno == errno::EEXIST
    }

    /// Whether the object was not there.
    #[must_use]
    pub fn absent(&self) -> bool {
        matches!(self.errno, errno::ENOENT | errno::ESRCH | errno::ENODEV | errno::EADDRNOTAVAIL)
    }
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.request, std::io::Error::from_raw_os_error(self.errno))?;
        if let Some(m) = &self.message {
            write!(f, ": {m}")?;
        }
        Ok(())
    }
}

impl std::error::Error for RequestError {}
