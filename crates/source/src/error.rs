//! What can go wrong between us and an API server.

use std::path::PathBuf;

/// Why a connection or request failed.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The kubeconfig cannot be used.
    #[error("kubeconfig {path}: {why}: give a file that `kubectl --kubeconfig` accepts", path = path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Not in a pod of a cluster.
    #[error(
        "no cluster found from inside a pod ({0}): run as a pod with a service account, or give --kubeconfig or --api-socket"
    )]
    InCluster(String),
    /// A target's text is none.
    #[error("{0:?} is no API server: write unix:/path/to/socket, in-cluster, or the path of a kubeconfig")]
    Target(String),
    /// The client could not be made.
    #[error("cannot make a client: {0}")]
    Client(String),
    /// The server refused.
    #[error("{doing}: the API server says {code} {reason}: {message}")]
    Api {
        /// What was asked.
        doing: String,
        /// HTTP status.
        code: u16,
        /// Machine-readable reason: `NotFound`, `Conflict`, `AlreadyExists`, `Invalid`.
        reason: String,
        /// For a person.
        message: String,
    },
    /// A right is missing.
    #[error("{doing}: {denied}")]
    Denied {
        /// What was asked.
        doing: String,
        /// The rule that would let it through.
        denied: Box<crate::Denied>,
    },
    /// The server could not be reached, or the connection broke.
    #[error("{doing}: {why}: is the API server running?")]
    Transport {
        /// What was asked.
        doing: String,
        /// What failed.
        why: String,
    },
    /// The request cannot be put into words.
    #[error("{doing}: {why}")]
    Request {
        /// What was asked.
        doing: String,
        /// What is wrong with it.
        why: String,
    },
}

impl SourceError {
    pub(crate) fn of(doing: impl Into<String>, e: kube::Error) -> Self {
        let doing = doing.into();
        match e {
            kube::Error::Api(s) => {
                Self::Api { doing, code: s.code, reason: s.reason.clone(), message: s.message.clone() }
            }
            other => Self::Transport { doing, why: chain(&other) },
        }
    }

    /// The object is not there (404).
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Api { code: 404, .. })
    }

    /// Somebody else was first (409): the same pass again, on the newer object.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Api { code: 409, .. })
    }

    /// The server could not be asked: try again later.
    #[must_use]
    pub fn is_transport(&self) -> bool {
        matches!(self, Self::Transport { .. })
    }
}

/// An error and its causes in one line, each said once: libraries often print the cause and also return it.
pub(crate) fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut next = e.source();
    while let Some(e) = next {
        let cause = e.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        next = e.source();
    }
    text
}
