//! Errors as the specification has them.

use ipam::IpamError;
use kernel_api::RequestError;
use serde_json::json;

use crate::Version;

/// Error codes (CNI specification 1.1.0, section 5 "Error"); below 100 the specification's, from 100 on ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Code {
    /// The configuration's version is not spoken.
    IncompatibleVersion = 1,
    /// A field of the configuration is not known; the message names field and value.
    UnsupportedField = 2,
    /// There is no such container: nothing needs to be cleaned up.
    UnknownContainer = 3,
    /// An environment variable is missing or wrong; the message names it.
    InvalidEnvironment = 4,
    /// Input or output failed.
    Io = 5,
    /// The configuration is no JSON.
    Decode = 6,
    /// The configuration is wrong.
    InvalidConfig = 7,
    /// A later try may succeed.
    TryAgainLater = 11,
    /// STATUS: ADD cannot be served.
    NotAvailable = 50,
    /// STATUS: ADD cannot be served, and containers may have lost connectivity.
    LimitedConnectivity = 51,
    /// The kernel refused a request.
    Kernel = 100,
    /// CHECK found the machine to differ from the record.
    Differs = 101,
    /// A requested address cannot be given.
    Address = 102,
    /// Another plugin that was run failed in a way of its own.
    Delegate = 103,
    /// Another container has a port that was asked for.
    PortTaken = 104,
}

impl Code {
    /// The code that another plugin gave.
    #[must_use]
    pub fn of(number: u32) -> Self {
        match number {
            1 => Self::IncompatibleVersion,
            2 => Self::UnsupportedField,
            3 => Self::UnknownContainer,
            4 => Self::InvalidEnvironment,
            5 => Self::Io,
            6 => Self::Decode,
            7 => Self::InvalidConfig,
            11 => Self::TryAgainLater,
            50 => Self::NotAvailable,
            51 => Self::LimitedConnectivity,
            _ => Self::Delegate,
        }
    }
}

/// What goes wrong in a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// Its code.
    pub code: Code,
    /// One line: the object, the field, the fix.
    pub msg: String,
    /// More, when there is more.
    pub details: String,
}

impl Error {
    /// An error without details.
    pub fn new(code: Code, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    /// With details.
    #[must_use]
    pub fn with(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// The object on standard output.
    #[must_use]
    pub fn to_json(&self, version: Version) -> String {
        let mut v = json!({"cniVersion": version.as_str(), "code": self.code as u32, "msg": self.msg});
        if !self.details.is_empty() {
            v["details"] = self.details.as_str().into();
        }
        v.to_string()
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.msg)?;
        if self.details.is_empty() { Ok(()) } else { write!(f, ": {}", self.details) }
    }
}

impl std::error::Error for Error {}

impl From<IpamError> for Error {
    fn from(e: IpamError) -> Self {
        let code = match &e {
            IpamError::Io { .. } | IpamError::Corrupt { .. } | IpamError::TooLarge { .. } | IpamError::Pools { .. } => {
                Code::Io
            }
            IpamError::Exhausted { .. } | IpamError::NotYet { .. } | IpamError::NoPools { .. } => Code::TryAgainLater,
            IpamError::TwoRanges { .. } => Code::InvalidConfig,
            IpamError::OutOfRange { .. }
            | IpamError::Reserved { .. }
            | IpamError::Taken { .. }
            | IpamError::TwoRequested { .. }
            | IpamError::LinkClash { .. } => Code::Address,
        };
        Self::new(code, e.to_string())
    }
}

impl From<RequestError> for Error {
    fn from(e: RequestError) -> Self {
        Self::new(Code::Kernel, e.to_string())
    }
}
