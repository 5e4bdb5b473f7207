//! The one error of this room: a sentence for a person, with what to do in it.

use std::fmt::Display;

/// Why something in a lab could not be done. The text names the object and the fix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LabError(String);

impl LabError {
    /// From a sentence.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

/// Says what was being done when a foreign error came.
pub trait Doing<T> {
    /// Puts `what: ` before the error.
    ///
    /// # Errors
    /// The error itself, as a [`LabError`].
    fn doing<D: Display>(self, what: impl FnOnce() -> D) -> Result<T, LabError>;
}

impl<T, E: Display> Doing<T> for Result<T, E> {
    fn doing<D: Display>(self, what: impl FnOnce() -> D) -> Result<T, LabError> {
        self.map_err(|e| LabError::new(format!("{}: {e}", what())))
    }
}
