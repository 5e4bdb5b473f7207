//! The effects: ops to nf_tables requests and conntrack deletions.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use intent::Endpoint;
use kernel_api::conntrack::{Among, Flow};
use kernel_api::nft::{self, Element, ElementData, NftRequest, Piece};
use kernel_api::{Conntrack, Nft, RequestError, errno};
use plan::{KernelError, Next};
use types::{Family, Proto};

use crate::elements::Pending;
use crate::image::{Data, Image, Key, Shape, table};
use crate::op::{Forget, Op};
use crate::{NftPlane, parse};

/// Elements of one request: an attribute holds 64 KiB, and the largest element (an IPv6 source range) takes under 128
/// bytes.
const ELEMENTS_PER_REQUEST: usize = 400;

/// [`plan::Kernel`] over nf_tables and conntrack of one network namespace.
#[derive(Debug)]
pub struct NftKernel<N, C> {
    nft: N,
    conntrack: C,
    forgotten: usize,
    walks: Vec<Walk>,
}

/// One walk over the connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Walk {
    /// Whose connections were looked at.
    pub family: Family,
    /// How many were stale.
    pub deleted: usize,
    /// How long it took.
    pub took: Duration,
}

/// The endpoints that flows to each address and port may stay with.
type Keep<'a> = BTreeMap<(IpAddr, u16), &'a BTreeSet<Endpoint>>;

impl<N: Nft, C: Conntrack> NftKernel<N, C> {
    /// Over these two, opened in the same namespace.
    pub fn new(nft: N, conntrack: C) -> Self {
        Self { nft, conntrack, forgotten: 0, walks: Vec::new() }
    }

    /// nf_tables, for the generation id that says whether anybody changed the ruleset.
    pub fn nft(&mut self) -> &mut N {
        &mut self.nft
    }

    /// The connection table.
    pub fn conntrack(&mut self) -> &mut C {
        &mut self.conntrack
    }

    /// The walks over the connections since the last call.
    pub fn take_walks(&mut self) -> Vec<Walk> {
        std::mem::take(&mut self.walks)
    }

    /// Puts into an image what the rules remember of clients, for [`crate::NftPlane`]'s trace to follow. It is no part of
    /// what is planned.
    ///
    /// # Errors
    /// When a dump fails.
    pub fn remembered(&mut self, image: &mut Image) -> Result<(), KernelError> {
        for (name, set) in image.sets.iter_mut().filter(|(_, s)| s.shape.dynamic.is_some()) {
            let list = self.nft.elements(&table(), name);
            let list = list.map_err(|e| failed(format!("list map inet seaway {name}"), e))?;
            set.elements = parse::elements(&list, &set.shape).collect();
        }
        Ok(())
    }

    /// Stale connections deleted since the start.
    #[must_use]
    pub fn forgotten(&self) -> usize {
        self.forgotten
    }

    /// One walk over the connections per protocol and family, however many fronts, and over no more of them than the
    /// kernel can tell apart.
    fn forget(&mut self, ops: &[&Forget]) -> Result<(), KernelError> {
        let mut kinds: BTreeMap<(Proto, Family), Keep<'_>> = BTreeMap::new();
        for f in ops {
            kinds.entry((f.proto, Family::of(f.to.0))).or_default().insert(f.to, &f.keep);
        }
        for ((proto, family), keep) in kinds {
            let among = Among::all(proto, family, keep.keys().map(|(addr, port)| (Some(*addr), *port)));
            let mut stale = |flow: &Flow| {
                let answers = Endpoint { addr: flow.reply.src, port: flow.reply.sport };
                keep.get(&(flow.original.dst, flow.original.dport)).is_some_and(|keep| !keep.contains(&answers))
            };
            let began = Instant::now();
            let deleted = self.conntrack.delete(&among, &mut stale);
            let deleted = deleted.map_err(|e| failed(format!("forget {proto} connections"), e))?;
            self.forgotten += deleted;
            self.walks.push(Walk { family, deleted, took: began.elapsed() });
        }
        Ok(())
    }
}

impl<N: Nft, C: Conntrack> plan::Kernel<NftPlane> for NftKernel<N, C> {
    fn observe(&mut self) -> Result<Image, KernelError> {
        let mut found: HashMap<String, Pending> = HashMap::new();
        let frame = self.nft.pieces(&table(), &mut |piece| match piece {
            Piece::Begin => found.clear(),
            Piece::Element { set, key, key_end, data } => {
                if !found.contains_key(&set.name) {
                    found.insert(set.name.clone(), Pending::default());
                }
                if let Some(into) = found.get_mut(&set.name) {
                    parse::put(into, set, key, key_end, data);
                }
            }
        });
        let frame = frame.map_err(|e| failed("list table inet seaway".into(), e))?;
        let mut image = parse(frame.as_ref());
        for (name, mut elements) in found {
            let Some(set) = image.sets.get_mut(&name) else { continue };
            elements.sort();
            set.elements = elements;
        }
        Ok(image)
    }

    fn commit(&mut self, batch: &[Op]) -> Result<(), KernelError> {
        // A batch forgets first and then takes the marks away, or does not forget at all.
        let forget: Vec<&Forget> =
            batch.iter().filter_map(|op| if let Op::Forget(f) = op { Some(f) } else { None }).collect();
        if !forget.is_empty() {
            self.forget(&forget)?;
        }
        let (requests, ops) = requests(batch);
        if requests.is_empty() {
            return Ok(());
        }
        self.nft.commit(&requests).map_err(|e| {
            let op = e.index.and_then(|i| ops.get(i)).and_then(|i| batch.get(*i));
            failed(op.map_or_else(|| "commit to table inet seaway".into(), ToString::to_string), e)
        })
    }
}

fn failed(op: String, e: RequestError) -> KernelError {
    let next = match e.errno {
        // What is there is not what the plan began with.
        errno::ENOENT | errno::EEXIST | errno::EBUSY | errno::EINVAL | errno::ERANGE => Next::Reobserve,
        errno::EPERM | errno::EACCES | errno::EOPNOTSUPP | errno::EAFNOSUPPORT => Next::FailClosed,
        _ => Next::RetrySoon,
    };
    KernelError { op, source: Box::new(e), next }
}

/// The requests of a batch, and for each the index of its first op. Neighbouring elements of one set share a request.
fn requests(batch: &[Op]) -> (Vec<NftRequest>, Vec<usize>) {
    let mut out: Vec<NftRequest> = Vec::new();
    let mut first = Vec::new();
    for (i, op) in batch.iter().enumerate() {
        let request = match op {
            Op::Forget(_) => continue,
            Op::TableAdd => NftRequest::TableAdd(table()),
            Op::TableDel => NftRequest::TableDel(table()),
            Op::ChainAdd(name, hook) => NftRequest::ChainAdd(table(), nft::Chain { name: name.clone(), hook: *hook }),
            Op::ChainFlush(name) => NftRequest::ChainFlush(table(), name.clone()),
            Op::ChainDel(name) => NftRequest::ChainDel(table(), name.clone()),
            Op::RuleAdd(chain, rule, _) => {
                let rule = nft::Rule {
                    chain: chain.clone(),
                    handle: 0,
                    exprs: rule.exprs.clone(),
                    comment: rule.comment.clone(),
                };
                NftRequest::RuleAdd(table(), rule)
            }
            Op::SetAdd(name, shape) => NftRequest::SetAdd(table(), set(name, shape)),
            Op::SetDel(name) => NftRequest::SetDel(table(), name.clone()),
            Op::ElementAdd(set, _, key, data) => match out.last_mut() {
                Some(NftRequest::ElementsAdd(_, s, es)) if **s == **set && es.len() < ELEMENTS_PER_REQUEST => {
                    es.push(element(key, Some(data)));
                    continue;
                }
                _ => NftRequest::ElementsAdd(table(), (**set).into(), vec![element(key, Some(data))]),
            },
            Op::ElementDel(set, _, key) => match out.last_mut() {
                Some(NftRequest::ElementsDel(_, s, es)) if **s == **set && es.len() < ELEMENTS_PER_REQUEST => {
                    es.push(element(key, None));
                    continue;
                }
                _ => NftRequest::ElementsDel(table(), (**set).into(), vec![element(key, None)]),
            },
        };
        out.push(request);
        first.push(i);
    }
    (out, first)
}

fn set(name: &str, shape: &Shape) -> nft::Set {
    nft::Set {
        name: name.into(),
        key: shape.key.clone(),
        data: shape.data.clone(),
        interval: shape.interval,
        constant: shape.constant,
        timeout: shape.timeout,
        dynamic: shape.dynamic,
    }
}

fn element(key: &Key, data: Option<&Data>) -> Element {
    Element {
        key: key.first.to_vec(),
        key_end: key.last.as_ref().map(|l| l.to_vec()),
        data: data.and_then(|d| match d {
            Data::Member => None,
            Data::Value(v) => Some(ElementData::Value(v.to_vec())),
            Data::Verdict(v) => Some(ElementData::Verdict(v.clone())),
        }),
        comment: None,
    }
}
