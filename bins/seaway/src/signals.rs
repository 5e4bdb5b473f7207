//! SIGTERM and SIGINT as a future.

use tokio::signal::unix::{SignalKind, signal};

/// Completes when the process is asked to end.
///
/// # Errors
/// When the handlers cannot be installed.
pub fn terminated() -> std::io::Result<impl Future<Output = ()> + Send + 'static> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    })
}
