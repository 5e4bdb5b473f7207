//! Which of several equal processes works: the one that holds a Lease (coordination.k8s.io/v1), as the control plane's
//! own controllers do it. Clocks of machines are not compared: a Lease is over when it was not renewed for its time as
//! seen from here.

use std::time::{Duration, Instant};

use resolve::Kind;
use serde_json::{Value, json};
use types::ObjectName;

use crate::api::{Api, now_micros};
use crate::error::SourceError;

/// How long a Lease holds after its last renewal.
const HOLDS: Duration = Duration::from_secs(15);
/// Its holder stops working when it could not renew it for this long: well before another may begin.
const GIVES_UP: Duration = Duration::from_secs(10);
/// Between two looks.
const PAUSE: Duration = Duration::from_secs(2);

/// What to do about the Lease.
#[derive(Debug, PartialEq)]
enum Step {
    /// It is another's.
    Wait,
    /// There is none: make it.
    Create(Value),
    /// Take or renew it: this version of it, and no other.
    Replace(Value),
}

/// What is known of the Lease. Time is since any fixed moment.
#[derive(Debug)]
struct Election {
    me: String,
    /// What its holder wrote last, and when that was first seen here.
    seen: Option<(Value, Duration)>,
    /// When the request was sent that made or kept us the holder.
    renewed: Option<Duration>,
}

impl Election {
    fn new(me: String) -> Self {
        Self { me, seen: None, renewed: None }
    }

    /// `clock`: the time of day as the API writes it, for people.
    fn step(&mut self, lease: Option<&Value>, now: Duration, clock: &str) -> Step {
        let spec = |acquired: &Value, transitions: u64| {
            json!({"holderIdentity": self.me, "leaseDurationSeconds": HOLDS.as_secs(), "acquireTime": acquired,
                "renewTime": clock, "leaseTransitions": transitions})
        };
        let Some(lease) = lease else { return Step::Create(json!({"spec": spec(&clock.into(), 0)})) };
        let have = &lease["spec"];
        if self.seen.as_ref().is_none_or(|(s, _)| s != have) {
            self.seen = Some((have.clone(), now));
        }
        let since = self.seen.as_ref().map_or(now, |(_, at)| *at);
        let holder = have["holderIdentity"].as_str().unwrap_or_default();
        let holds = Duration::from_secs(have["leaseDurationSeconds"].as_u64().unwrap_or(HOLDS.as_secs()));
        let ours = holder == self.me;
        if !ours && !holder.is_empty() && now.saturating_sub(since) < holds {
            self.renewed = None;
            return Step::Wait;
        }
        let transitions = have["leaseTransitions"].as_u64().unwrap_or(0);
        let mut next = lease.clone();
        next["spec"] = if ours {
            spec(&have["acquireTime"], transitions)
        } else {
            spec(&clock.into(), transitions.saturating_add(1))
        };
        Step::Replace(next)
    }

    /// A write that was sent at `at` was taken.
    fn held(&mut self, at: Duration) {
        self.renewed = Some(at);
    }

    /// Whether we may work.
    fn leads(&self, now: Duration) -> bool {
        self.renewed.is_some_and(|r| now.saturating_sub(r) < GIVES_UP)
    }
}

/// That this process holds the Lease, as long as [`Leadership::lost`] is waited for.
#[derive(Debug)]
pub struct Leadership {
    api: Api,
    lease: ObjectName,
    election: Election,
    start: Instant,
}

/// Waits until this process holds the Lease. `me`: a name that no other process has, nor had.
pub async fn lead(api: &Api, lease: ObjectName, me: String) -> Leadership {
    let mut it = Leadership { api: api.clone(), lease, election: Election::new(me), start: Instant::now() };
    let mut told = String::new();
    loop {
        match it.turn().await {
            Ok(()) if it.election.leads(it.start.elapsed()) => return it,
            Ok(()) => {}
            // Somebody was faster.
            Err(e) if e.is_conflict() => {}
            Err(e) => {
                let why = e.to_string();
                if why != told {
                    tracing::warn!("Lease/{} could not be looked at, trying again: {why}", it.lease);
                    told = why;
                }
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

impl Leadership {
    async fn turn(&mut self) -> Result<(), SourceError> {
        let resource = Kind::Lease.into();
        let at = self.start.elapsed();
        let lease = self.api.get(&resource, &self.lease).await?;
        let clock = now_micros();
        match self.election.step(lease.as_ref(), self.start.elapsed(), &clock) {
            Step::Wait => return Ok(()),
            Step::Create(body) => drop(self.api.create(&resource, &self.lease, body).await?),
            Step::Replace(body) => drop(self.api.replace(&resource, &self.lease, body).await?),
        }
        self.election.held(at);
        Ok(())
    }

    /// Renews the Lease until another has it or it could not be renewed for too long; says which.
    pub async fn lost(&mut self) -> String {
        let mut why;
        loop {
            tokio::time::sleep(PAUSE).await;
            // A request that hangs must not keep us from giving up in time.
            match tokio::time::timeout(GIVES_UP / 2, self.turn()).await {
                Ok(Ok(())) => why = format!("Lease/{} is another's", self.lease),
                Ok(Err(e)) => why = e.to_string(),
                Err(_) => why = format!("Lease/{} was not renewed in time", self.lease),
            }
            if !self.election.leads(self.start.elapsed()) {
                return why;
            }
        }
    }

    /// Lets go, so that another begins at once. It is only a courtesy: what fails is left to time.
    pub async fn resign(self) {
        let resource = Kind::Lease.into();
        let letting_go = async {
            let mut lease = self.api.get(&resource, &self.lease).await.ok()??;
            if lease["spec"]["holderIdentity"] == *self.election.me {
                lease["spec"]["holderIdentity"] = "".into();
                lease["spec"]["leaseDurationSeconds"] = 1.into();
                self.api.replace(&resource, &self.lease, lease).await.ok()?;
            }
            Some(())
        };
        let _ = tokio::time::timeout(Duration::from_secs(2), letting_go).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    /// One store and its answers: a write holds for the version that was read.
    #[derive(Default)]
    struct Store(Option<Value>, u64);

    impl Store {
        fn write(&mut self, step: Step) -> bool {
            let body = match step {
                Step::Wait => return false,
                Step::Create(b) if self.0.is_none() => b,
                Step::Replace(b) if self.0.as_ref().is_some_and(|h| h["v"] == b["v"]) => b,
                _ => return false,
            };
            self.1 += 1;
            let mut body = body;
            body["v"] = self.1.into();
            self.0 = Some(body);
            true
        }

        fn turn(&mut self, e: &mut Election, now: Duration) {
            let step = e.step(self.0.clone().as_ref(), now, &format!("{now:?}"));
            if self.write(step) {
                e.held(now);
            }
        }
    }

    #[test]
    fn one_leads_and_the_other_follows_when_it_is_gone() {
        let (mut store, mut a, mut b) = (Store::default(), Election::new("a".into()), Election::new("b".into()));
        for t in (0..60).step_by(2) {
            store.turn(&mut a, s(t));
            store.turn(&mut b, s(t + 1));
            assert!(a.leads(s(t + 1)) && !b.leads(s(t + 1)), "{t}");
        }
        // a hangs: it gives up before b begins, whatever their clocks say.
        let mut began = None;
        for t in 60..90 {
            store.turn(&mut b, s(t));
            assert!(!(a.leads(s(t)) && b.leads(s(t))), "two at {t}");
            began = began.or(b.leads(s(t)).then_some(t));
        }
        assert!(began.is_some_and(|t| (73..=76).contains(&t)), "{began:?}");
        let spec = &store.0.as_ref().unwrap()["spec"];
        assert_eq!((&spec["holderIdentity"], &spec["leaseTransitions"]), (&json!("b"), &json!(1)));
        // a comes back and sees that it is another's.
        store.turn(&mut a, s(90));
        assert!(!a.leads(s(90)));
    }

    #[test]
    fn of_two_that_take_it_at_once_one_has_it() {
        let (mut store, mut a, mut b) = (Store::default(), Election::new("a".into()), Election::new("b".into()));
        let (one, two) = (a.step(None, s(0), "t"), b.step(None, s(0), "t"));
        assert!(store.write(one) && !store.write(two));
        let mut free = store.0.clone().unwrap();
        free["spec"]["holderIdentity"] = "".into();
        store.0 = Some(free.clone());
        let (one, two) = (a.step(Some(&free), s(1), "t"), b.step(Some(&free), s(1), "t"));
        assert!(store.write(two) && !store.write(one), "what was let go is taken at once, by one");
    }

    #[test]
    fn a_lease_of_another_kind_of_client_is_understood() {
        let mut e = Election::new("me".into());
        let lease = json!({"metadata": {"name": "x"}, "spec": {"holderIdentity": "other", "leaseDurationSeconds": 3}});
        assert_eq!(e.step(Some(&lease), s(100), "t"), Step::Wait, "seen for the first time");
        assert_eq!(e.step(Some(&lease), s(102), "t"), Step::Wait);
        assert!(matches!(e.step(Some(&lease), s(103), "t"), Step::Replace(_)), "not renewed for its three seconds");
        let mut e = Election::new("me".into());
        assert!(matches!(e.step(Some(&json!({"metadata": {}})), s(0), "t"), Step::Replace(_)), "nobody's");
    }
}
