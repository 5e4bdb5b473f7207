//! Files that may not be there.

use std::io;

/// For what is asked of a file that need not exist.
pub trait IfThere<T> {
    /// `None` where there was nothing of that name.
    ///
    /// # Errors
    /// Every other error.
    fn if_there(self) -> io::Result<Option<T>>;
}

impl<T> IfThere<T> for io::Result<T> {
    fn if_there(self) -> io::Result<Option<T>> {
        match self {
            Ok(t) => Ok(Some(t)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        assert_eq!(std::fs::read(&file).if_there().unwrap(), None);
        std::fs::write(&file, "x").unwrap();
        assert_eq!(std::fs::read(&file).if_there().unwrap(), Some(b"x".to_vec()));
        assert!(std::fs::read(file.join("under")).if_there().is_err(), "a file is no directory");
        assert!(std::fs::remove_file(&file).if_there().unwrap().is_some());
        assert!(std::fs::remove_file(&file).if_there().unwrap().is_none());
    }
}
