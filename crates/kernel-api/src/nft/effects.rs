//! What can be asked of nf_tables.

use super::{Element, ElementData, NftRequest, Set, Table, TableName, Verdict};
use crate::RequestError;

/// A piece of a table that is read element by element.
#[derive(Debug)]
pub enum Piece<'a> {
    /// All that was told is to be forgotten: the reading begins, or begins anew since it was interrupted.
    Begin,
    /// An element of a set, in no order.
    Element {
        /// Which set.
        set: &'a Set,
        /// As [`Element::key`].
        key: &'a [u8],
        /// As [`Element::key_end`].
        key_end: Option<&'a [u8]>,
        /// As [`Element::data`].
        data: Option<DataRef<'a>>,
    },
}

/// What an element maps to, where it lies.
#[derive(Debug)]
pub enum DataRef<'a> {
    /// As [`ElementData::Value`].
    Value(&'a [u8]),
    /// As [`ElementData::Verdict`].
    Verdict(Verdict),
}

impl<'a> From<&'a ElementData> for DataRef<'a> {
    fn from(d: &'a ElementData) -> Self {
        match d {
            ElementData::Value(v) => Self::Value(v),
            ElementData::Verdict(v) => Self::Verdict(v.clone()),
        }
    }
}

/// The nf_tables of one network namespace.
pub trait Nft {
    /// The generation id: changes with every commit by anybody (`NFT_MSG_GETGEN`). Cheap.
    ///
    /// # Errors
    /// When the kernel has no nf_tables.
    fn generation(&mut self) -> Result<u32, RequestError>;
    /// One table of ours whole, or `None` when it is not there.
    ///
    /// # Errors
    /// When a dump fails, after retrying those that a concurrent commit interrupted.
    fn table(&mut self, table: &TableName) -> Result<Option<Table>, RequestError>;
    /// The same without elements, and each element told to `each`: so that no copy of them is held that nobody needs.
    ///
    /// # Errors
    /// As [`Nft::table`].
    fn pieces(&mut self, table: &TableName, each: &mut dyn FnMut(Piece<'_>)) -> Result<Option<Table>, RequestError> {
        let Some(mut whole) = self.table(table)? else { return Ok(None) };
        each(Piece::Begin);
        for (name, elements) in &mut whole.elements {
            let Some(set) = whole.sets.iter().find(|s| s.name == *name) else { continue };
            for e in elements.drain(..) {
                let data = e.data.as_ref().map(DataRef::from);
                each(Piece::Element { set, key: &e.key, key_end: e.key_end.as_deref(), data });
            }
        }
        Ok(Some(whole))
    }
    /// The same without the elements of its sets: what that costs does not grow with them.
    ///
    /// # Errors
    /// As [`Nft::table`].
    fn frame(&mut self, table: &TableName) -> Result<Option<Table>, RequestError> {
        let whole = self.table(table)?;
        Ok(whole.map(|t| Table { elements: t.elements.into_iter().map(|(s, _)| (s, Vec::new())).collect(), ..t }))
    }
    /// The elements of one set, sorted by key: the way to those of a set with [`Set::dynamic`](super::Set::dynamic), which [`Nft::table`]
    /// leaves out, since packets change them at any time and there may be many. None when the set is not there.
    ///
    /// # Errors
    /// When the dump fails, after retrying when a concurrent change interrupted it.
    fn elements(&mut self, table: &TableName, set: &str) -> Result<Vec<Element>, RequestError>;
    /// The elements with these keys, as many as are there, of a set that keeps no ranges, without a look at the others.
    /// None when the set or the table is not there.
    ///
    /// # Errors
    /// When they cannot be asked for.
    fn find_elements(&mut self, table: &TableName, set: &str, keys: &[Vec<u8>]) -> Result<Vec<Element>, RequestError> {
        let all = self.elements(table, set)?;
        Ok(all.into_iter().filter(|e| keys.contains(&e.key)).collect())
    }
    /// Runs all requests as one transaction: all or nothing.
    ///
    /// # Errors
    /// The first refusal, with its index; then nothing has changed.
    fn commit(&mut self, requests: &[NftRequest]) -> Result<(), RequestError>;
    /// The same, if the generation still is `generation` (`NFNL_BATCH_GENID`): what was decided on a reading of the
    /// tables is done only to those very tables.
    ///
    /// # Errors
    /// ERESTART when somebody committed meanwhile: read again. Otherwise as [`Nft::commit`].
    fn commit_at(&mut self, generation: u32, requests: &[NftRequest]) -> Result<(), RequestError>;
}

impl<T: Nft + ?Sized> Nft for &mut T {
    fn generation(&mut self) -> Result<u32, RequestError> {
        (**self).generation()
    }
    fn table(&mut self, table: &TableName) -> Result<Option<Table>, RequestError> {
        (**self).table(table)
    }
    fn pieces(&mut self, table: &TableName, each: &mut dyn FnMut(Piece<'_>)) -> Result<Option<Table>, RequestError> {
        (**self).pieces(table, each)
    }
    fn elements(&mut self, table: &TableName, set: &str) -> Result<Vec<Element>, RequestError> {
        (**self).elements(table, set)
    }
    fn frame(&mut self, table: &TableName) -> Result<Option<Table>, RequestError> {
        (**self).frame(table)
    }
    fn find_elements(&mut self, table: &TableName, set: &str, keys: &[Vec<u8>]) -> Result<Vec<Element>, RequestError> {
        (**self).find_elements(table, set, keys)
    }
    fn commit(&mut self, requests: &[NftRequest]) -> Result<(), RequestError> {
        (**self).commit(requests)
    }
    fn commit_at(&mut self, generation: u32, requests: &[NftRequest]) -> Result<(), RequestError> {
        (**self).commit_at(generation, requests)
    }
}
