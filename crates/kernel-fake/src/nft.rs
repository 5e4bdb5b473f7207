//! A fake nf_tables.
//!
//! Error numbers are those of Linux 6.18, found by running the same cases on it.

mod rules;
mod state;

use std::collections::BTreeMap;

use kernel_api::nft::{Element, NftRequest, Table, TableName};
use kernel_api::{Nft, RequestError, errno};

use crate::fault::{Faults, apply};
use state::State;

/// The nf_tables of one pretended network namespace. A transaction is one effect of [`Faults`].
#[derive(Debug, Clone, Default)]
pub struct FakeNft {
    /// The script of faults; the count goes up by one per transaction.
    pub faults: Faults,
    /// Tables of others, by family and name, as text: nothing here can name them, so they never change.
    pub foreign: BTreeMap<String, String>,
    tables: BTreeMap<TableName, State>,
    generation: u32,
    handles: u64,
    requests: usize,
}

impl FakeNft {
    /// No table of ours.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Changes a table behind everybody's back, as a person with `nft` would; `None` deletes it. What it leaves is not
    /// checked. What packets put into dynamic sets stays.
    pub fn tamper(&mut self, table: &TableName, change: impl FnOnce(Table) -> Option<Table>) {
        let Some(old) = self.tables.remove(table) else { return };
        if let Some(new) = change(old.dump()) {
            let mut new = State::load(new);
            new.keep_dynamic(old);
            self.tables.insert(table.clone(), new);
        }
        self.generation = self.generation.wrapping_add(1);
    }

    /// Requests that were part of committed transactions.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.requests
    }

    fn apply(&mut self, requests: &[NftRequest]) -> Result<(), RequestError> {
        // Only the tables that are named are copied: all or nothing without copying the rest.
        let mut next: BTreeMap<TableName, Option<State>> = BTreeMap::new();
        for (i, r) in requests.iter().enumerate() {
            let name = name_of(r);
            let slot = next.entry(name.clone()).or_insert_with(|| self.tables.get(name).cloned());
            self.handles += 1;
            state::apply(slot, r, self.handles).map_err(|e| refusal(r, i, e))?;
        }
        if next.values().flatten().any(|s| rules::validate(s).is_err()) {
            return Err(self.first_invalid(requests));
        }
        for (name, state) in next {
            match state {
                Some(s) => self.tables.insert(name, s),
                None => self.tables.remove(&name),
            };
        }
        self.generation = self.generation.wrapping_add(1);
        self.requests += requests.len();
        Ok(())
    }

    /// The kernel runs a batch again with a check after each request to find which one made it invalid
    /// (`NFT_VALIDATE_DO`).
    fn first_invalid(&self, requests: &[NftRequest]) -> RequestError {
        let mut next: BTreeMap<TableName, Option<State>> = BTreeMap::new();
        for (i, r) in requests.iter().enumerate() {
            let name = name_of(r);
            let slot = next.entry(name.clone()).or_insert_with(|| self.tables.get(name).cloned());
            let done = state::apply(slot, r, 0).and_then(|()| slot.as_ref().map_or(Ok(()), rules::validate));
            if let Err(e) = done {
                return refusal(r, i, e);
            }
        }
        RequestError::new("commit", errno::EINVAL)
    }
}

fn refusal(r: &NftRequest, index: usize, errno: i32) -> RequestError {
    RequestError { request: r.to_string(), errno, message: None, index: Some(index) }
}

fn name_of(r: &NftRequest) -> &TableName {
    match r {
        NftRequest::TableAdd(t)
        | NftRequest::TableDel(t)
        | NftRequest::ChainAdd(t, _)
        | NftRequest::ChainDel(t, _)
        | NftRequest::ChainFlush(t, _)
        | NftRequest::SetAdd(t, _)
        | NftRequest::SetDel(t, _)
        | NftRequest::ElementsAdd(t, _, _)
        | NftRequest::ElementsDel(t, _, _)
        | NftRequest::SetFlush(t, _)
        | NftRequest::RuleAdd(t, _)
        | NftRequest::RuleDel(t, _, _) => t,
    }
}

impl Nft for FakeNft {
    fn generation(&mut self) -> Result<u32, RequestError> {
        self.alive("generation")?;
        Ok(self.generation)
    }

    fn table(&mut self, table: &TableName) -> Result<Option<Table>, RequestError> {
        self.alive("list table")?;
        Ok(self.tables.get(table).map(State::dump))
    }

    fn elements(&mut self, table: &TableName, set: &str) -> Result<Vec<Element>, RequestError> {
        self.alive("list set")?;
        Ok(self.tables.get(table).map(|t| t.elements(set)).unwrap_or_default())
    }

    fn commit(&mut self, requests: &[NftRequest]) -> Result<(), RequestError> {
        let fault = self.faults.step();
        apply(fault, "commit", || self.apply(requests))
    }

    fn commit_at(&mut self, generation: u32, requests: &[NftRequest]) -> Result<(), RequestError> {
        if generation == self.generation {
            self.commit(requests)
        } else {
            Err(RequestError::new("commit", errno::ERESTART))
        }
    }
}

impl FakeNft {
    fn alive(&self, what: &str) -> Result<(), RequestError> {
        if self.faults.crashed() { Err(RequestError::new(what, errno::EIO)) } else { Ok(()) }
    }
}
