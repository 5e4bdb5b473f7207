//! The table of Services: what it holds as far as is known, and the pass that makes it hold what it should.

use std::io;
use std::time::Duration;

use intent::{NodeIntent, ServiceChanges};
use kernel::{Changed, Monitor};
use kernel_api::Nft;
use plan::{Caps, Compiled, Converged, Kernel, KernelError, Next, Refused, commit_all};
use plane_nft::{NftPlane, Tracker};

/// Looks at what others committed while their last commit is not told yet. The kernel tells within the commit.
const CATCH_UP: (u32, Duration) = (20, Duration::from_millis(1));
/// A transaction of so many ops is not listened to: see [`Monitor::deaf`].
const LARGE: usize = 2048;

/// Who hears of commits to nf_tables.
pub trait Ears {
    /// See [`Monitor::hear`].
    fn hear(&mut self) -> io::Result<Changed>;
    /// See [`Monitor::deaf`].
    fn deaf(&mut self) -> io::Result<()>;
    /// See [`Monitor::listen`].
    fn listen(&mut self) -> io::Result<()>;
}

impl Ears for Monitor {
    fn hear(&mut self) -> io::Result<Changed> {
        Self::hear(self)
    }
    fn deaf(&mut self) -> io::Result<()> {
        Self::deaf(self)
    }
    fn listen(&mut self) -> io::Result<()> {
        Self::listen(self)
    }
}

/// The table, through its kernel `N`; `G` gives the generation, `M` hears of others.
pub struct Table<G, N, M> {
    /// For the generation id.
    pub generation: G,
    /// The plane's kernel.
    pub kernel: N,
    /// Hears what others commit.
    pub ears: M,
    /// What the table holds, Service by Service; so while nobody has committed to it since `have`.
    tracker: Tracker,
    /// The last generation that is known to hold just that.
    have: Option<u32>,
    deaf: bool,
}

/// How a pass over the table went.
pub struct Done {
    /// Ops committed, or what failed.
    pub result: Result<usize, KernelError>,
    /// What could not be expressed.
    pub refused: Vec<Refused>,
    /// Whether the whole table was compared, and not only what changed.
    pub full: bool,
}

fn failed(op: &str, e: impl std::error::Error + Send + Sync + 'static) -> KernelError {
    KernelError { op: op.into(), source: Box::new(e), next: Next::RetrySoon }
}

impl<G: Nft, N: Kernel<NftPlane>, M: Ears> Table<G, N, M> {
    /// Of which nothing is known yet.
    pub fn new(generation: G, kernel: N, ears: M) -> Self {
        Self { generation, kernel, ears, tracker: Tracker::default(), have: None, deaf: false }
    }

    /// Somebody else may have changed it.
    pub fn forget(&mut self) {
        self.have = None;
    }

    /// Others committed, the last time to this generation, and not to this table.
    pub fn others_went_to(&mut self, generation: u32) {
        // Numbers wrap around; and one of ours may be later.
        if self.have.is_some_and(|have| generation.wrapping_sub(have).cast_signed() > 0) {
            self.have = Some(generation);
        }
    }

    /// Whether it holds what it held after the last pass, or is so no longer known. Strict in one direction: a commit
    /// of which nothing was heard in time counts as one to this table.
    pub fn is_known(&mut self) -> Result<bool, KernelError> {
        if self.deaf {
            self.ears.listen().map_err(|e| failed("listen to nf_tables", e))?;
            self.deaf = false;
            self.have = None;
        }
        let Some(have) = self.have else { return Ok(false) };
        for _ in 0..CATCH_UP.0 {
            let now = self.now()?;
            if now == have {
                return Ok(true);
            }
            let heard = self.ears.hear().map_err(|e| failed("hear of nf_tables", e))?;
            if heard.table {
                return Ok(false);
            }
            if heard.generation == Some(now) {
                self.have = Some(now);
                return Ok(true);
            }
            std::thread::sleep(CATCH_UP.1);
        }
        Ok(false)
    }

    fn now(&mut self) -> Result<u32, KernelError> {
        self.generation.generation().map_err(|e| failed("read the nf_tables generation", e))
    }

    /// Makes it hold what the intent says. As long as it is known what it holds, a change of one Service costs neither a
    /// dump nor a comparison with the kernel, and a look at an unchanged table nothing.
    pub fn pass(&mut self, intent: &NodeIntent, caps: &Caps, services: &ServiceChanges) -> Done {
        let known = self.is_known();
        // Whatever fails from here on, the kernel may be between two images: all is looked at next time.
        let have = self.have.take();
        let known = match known {
            Ok(known) => known,
            Err(e) => return Done { result: Err(e), refused: Vec::new(), full: true },
        };
        let delta = match services {
            ServiceChanges::Some(changes) if known => self.tracker.follow(intent, caps, changes),
            _ => None,
        };
        if let Some(Compiled { image, refused }) = delta {
            let done = commit_all(&NftPlane, &mut self.kernel, &image.want, &image.have, &mut |_| {});
            let result = done.and_then(|done| self.settle(have, done));
            return Done { result, refused, full: false };
        }
        let observed = self.kernel.observe();
        let Compiled { image, refused } = self.tracker.full_over(intent, caps, observed.as_ref().ok());
        let result = observed.and_then(|observed| {
            // Not known what it holds: the last generation counts from here.
            let before = self.now()?;
            let Self { kernel, ears, deaf, .. } = self;
            let mut unheard = Ok(());
            let done = commit_all(&NftPlane, kernel, &image, &observed, &mut |ops| {
                if ops >= LARGE && !*deaf {
                    unheard = ears.deaf();
                    *deaf = unheard.is_ok();
                }
            });
            drop(observed);
            if let Err(e) = unheard {
                tracing::debug!("nf_tables cannot be left unheard, which is only slower: {e}");
            }
            if std::mem::take(&mut self.deaf) {
                self.ears.listen().inspect_err(|_| self.deaf = true).map_err(|e| failed("listen to nf_tables", e))?;
                let done = done?;
                let after = self.now()?;
                let ours = u32::try_from(done.batches).unwrap_or(u32::MAX);
                // Else another committed, who knows to what.
                self.have = (after.wrapping_sub(before) == ours).then_some(after);
                return Ok(done.ops);
            }
            done.and_then(|done| self.settle(None, done))
        });
        drop(image);
        // Whole images were held: a start, or a foreign commit. It would stay the agent's size for good.
        kernel::release_memory();
        Done { result, refused, full: true }
    }

    /// After all was committed. Another may have committed between ours and this reading; the monitor tells, and forgets.
    fn settle(&mut self, have: Option<u32>, done: Converged) -> Result<usize, KernelError> {
        self.have = match have.filter(|_| done.batches == 0) {
            Some(have) => Some(have),
            None => Some(self.now()?),
        };
        Ok(done.ops)
    }

    /// Whether the last pass did everything and it is yet not known what the table holds: another pass is to find out.
    pub fn is_uncertain(&self) -> bool {
        self.have.is_none()
    }
}

#[cfg(test)]
mod tests;
