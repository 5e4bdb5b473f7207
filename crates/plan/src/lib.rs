//! Owns: the seam. [`Dataplane`] (compile, plan, trace: pure), [`Kernel`] (observe, commit: effects), [`Plan`],
//! [`converge`], the one pass that every dataplane runs, [`diff`], and the [`Pacer`] that says when to run it.
//! Never does: I/O, clocks, logs; knows no kernel mechanism.
//! Tested by: unit tests here; the four properties of every plane (`fabric`, `plane-nft`) run through [`converge`].

mod diff;
mod pacer;
mod seam;

pub use diff::{Diff, diff};
pub use pacer::{Pacer, PacerInput, PacerState};
pub use seam::{
    Caps, Compiled, Converged, Dataplane, HostLink, Kernel, KernelError, Next, Plan, Refused, Uplink, commit_all,
    converge,
};
