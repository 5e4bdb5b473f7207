//! What a person sees while something takes a moment: one living line on a terminal, plain lines otherwise.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// A display of steps. Goes to standard error: standard output is for answers.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    start: Instant,
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Progress {
    /// A display that begins now.
    #[must_use]
    pub fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner:.cyan} {msg} {elapsed:.dim}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(80));
            bar
        });
        Self { bar, start: Instant::now() }
    }

    /// A display of nothing.
    #[must_use]
    pub fn silent() -> Self {
        Self { bar: Some(ProgressBar::hidden()), start: Instant::now() }
    }

    /// How long it has been.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// What is being done now. Shown on a terminal only.
    pub fn doing(&self, what: impl Into<String>) {
        if let Some(b) = &self.bar {
            b.set_message(what.into());
        }
    }

    /// What was done: stays on the screen, with the time since the beginning.
    pub fn done(&self, what: &str) {
        let line = format!("{:>5.1} s  {what}", self.start.elapsed().as_secs_f32());
        match &self.bar {
            Some(b) => b.println(line),
            // Nobody may be listening any more; the work goes on.
            None => drop(writeln!(std::io::stderr(), "{line}")),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(b) = &self.bar {
            b.finish_and_clear();
        }
    }
}
