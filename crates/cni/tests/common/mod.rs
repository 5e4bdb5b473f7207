//! A machine that remembers what was asked of it and refuses what it is told to.
#![allow(dead_code)] // each test file uses a part

use std::cell::RefCell;
use std::io;
use std::path::Path;
use std::rc::Rc;

use cni::{Env, Machine, Netns};
use ipam::{Key, Record};
use kernel_api::machine::{Exec, Output};
use kernel_api::rt::{
    Address, FdbEntry, Link, Neighbour, NetnsFd, NewTun, ObservedRoute, ObservedRule, PortVlan, RtRequest,
};
use kernel_api::tc::{Filter, Hook, Qdisc};
use kernel_api::{RequestError, Rtnetlink};
use kernel_fake::conntrack::FakeConntrack;
use kernel_fake::nft::FakeNft;
use kernel_fake::rt::FakeRt;
use types::OwnedName;

/// What was asked, in order: `host` or `pod`, and the request.
#[derive(Debug, Default)]
pub struct Log {
    pub done: Vec<(&'static str, RtRequest)>,
    /// Refuse the request with this number, counted from zero over both namespaces, with this errno.
    pub refuse: Option<(usize, i32)>,
    pub sysctls: Vec<String>,
    /// So many looks until IPv6 addresses are delivered.
    pub late: usize,
    pub looked: usize,
    /// Rtnetlink of the node cannot be opened.
    pub deaf: bool,
    asked: usize,
}

#[derive(Debug, Default, Clone)]
pub struct Mock(pub Rc<RefCell<Log>>);

pub struct MockNetns(Rc<RefCell<Log>>, u64, bool);
pub struct MockRt(Rc<RefCell<Log>>, &'static str);

/// A path that the mock takes for a namespace.
pub const POD: &str = "/mock/netns";

impl Machine for Mock {
    type Netns = MockNetns;
    type Nft = FakeNft;
    type Conntrack = FakeConntrack;
    type Sysctl = FakeRt;
    fn own(&mut self) -> io::Result<MockNetns> {
        self.open("/proc/self/ns/net")
    }
    fn nft(&mut self) -> io::Result<FakeNft> {
        Ok(FakeNft::new())
    }
    fn conntrack(&mut self) -> io::Result<FakeConntrack> {
        Ok(FakeConntrack::new())
    }
    fn sysctl(&mut self) -> io::Result<FakeRt> {
        Ok(FakeRt::new())
    }
    fn exec(&mut self, program: &Exec) -> io::Result<Output> {
        panic!("an attachment starts {}", program.program.display())
    }
    fn host(&mut self) -> io::Result<MockRt> {
        if self.0.borrow().deaf {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Ok(MockRt(Rc::clone(&self.0), "host"))
    }
    fn open(&mut self, path: &str) -> io::Result<MockNetns> {
        match path {
            POD => Ok(MockNetns(Rc::clone(&self.0), 7, false)),
            "/proc/self/ns/net" => Ok(MockNetns(Rc::clone(&self.0), 1, true)),
            _ if Path::new(path).exists() => {
                Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{path} is no network namespace")))
            }
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }
    fn lock(&mut self, _: &std::fs::File, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn discard(&mut self, links: &[OwnedName], _: Option<std::os::fd::BorrowedFd<'_>>) -> io::Result<()> {
        let requests: Vec<_> = links.iter().cloned().map(RtRequest::LinkDel).collect();
        self.host()?.run(&requests).map_err(|e| io::Error::from_raw_os_error(e.errno))
    }
}

impl Netns for MockNetns {
    type Rt = MockRt;
    fn fd(&self) -> NetnsFd {
        NetnsFd(5)
    }
    fn inode(&self) -> u64 {
        self.1
    }
    fn is_own(&self) -> io::Result<bool> {
        Ok(self.2)
    }
    fn rtnetlink(&self) -> io::Result<MockRt> {
        Ok(MockRt(Rc::clone(&self.0), "pod"))
    }
    fn set_sysctl(&self, path: &str, value: &str) -> Result<(), RequestError> {
        self.0.borrow_mut().sysctls.push(format!("{path} = {value}"));
        Ok(())
    }
    fn get_sysctl(&self, _: &str) -> Result<Option<String>, RequestError> {
        Ok(None)
    }
    fn delete_link(&self, name: &types::IfName) -> Result<(), RequestError> {
        panic!("an attachment deletes {name}")
    }
    fn delete_route(&self, r: &ObservedRoute) -> Result<(), RequestError> {
        panic!("an attachment deletes {r:?}")
    }
    fn delete_rule(&self, r: &ObservedRule) -> Result<(), RequestError> {
        panic!("an attachment deletes {r:?}")
    }
    fn add_tun(&self, t: &NewTun) -> Result<(), RequestError> {
        panic!("an attachment makes {t:?}")
    }
    fn announce(&self, link: &types::IfName, _: std::net::IpAddr) -> Result<(), RequestError> {
        panic!("an attachment announces on {link}")
    }
    fn delivers(&self, _: std::net::Ipv6Addr) -> io::Result<bool> {
        let mut log = self.0.borrow_mut();
        log.looked += 1;
        Ok(log.looked > log.late)
    }
}

impl Rtnetlink for MockRt {
    fn links(&mut self) -> Result<Vec<Link>, RequestError> {
        Ok(Vec::new())
    }
    fn addresses(&mut self) -> Result<Vec<Address>, RequestError> {
        Ok(Vec::new())
    }
    fn routes(&mut self) -> Result<Vec<ObservedRoute>, RequestError> {
        Ok(Vec::new())
    }
    fn link(&mut self, _: &types::IfName) -> Result<Option<Link>, RequestError> {
        Ok(None)
    }
    fn all_routes(&mut self) -> Result<Vec<ObservedRoute>, RequestError> {
        Ok(Vec::new())
    }
    fn rules(&mut self) -> Result<Vec<ObservedRule>, RequestError> {
        Ok(Vec::new())
    }
    fn port_vlans(&mut self) -> Result<Vec<PortVlan>, RequestError> {
        Ok(Vec::new())
    }
    fn qdiscs(&mut self) -> Result<Vec<Qdisc>, RequestError> {
        Ok(Vec::new())
    }
    fn filters(&mut self, _: &types::IfName, _: Hook) -> Result<Vec<Filter>, RequestError> {
        Ok(Vec::new())
    }
    fn neighbours(&mut self) -> Result<Vec<Neighbour>, RequestError> {
        Ok(Vec::new())
    }
    fn fdb(&mut self) -> Result<Vec<FdbEntry>, RequestError> {
        Ok(Vec::new())
    }
    fn run(&mut self, requests: &[RtRequest]) -> Result<(), RequestError> {
        let mut log = self.0.borrow_mut();
        let mut error = None;
        for (i, r) in requests.iter().enumerate() {
            let n = log.asked;
            log.asked += 1;
            match log.refuse {
                Some((at, errno)) if at == n => {
                    let e = RequestError { index: Some(i), ..RequestError::new(r.to_string(), errno) };
                    error = error.or(Some(e));
                }
                _ => log.done.push((self.1, r.clone())),
            }
        }
        error.map_or(Ok(()), Err)
    }
}

pub fn env(command: &str, container: &str, netns: &str, ifname: &str) -> Env {
    let var = |s: &str| (!s.is_empty()).then(|| s.into());
    Env {
        command: var(command),
        container_id: var(container),
        netns: var(netns),
        ifname: var(ifname),
        args: None,
        path: None,
    }
}

pub fn record(container: &str, addresses: &[&str]) -> Record {
    let key = Key { container: container.into(), ifname: "eth0".parse().unwrap() };
    Record {
        link: key.link(),
        key,
        network: "seaway".into(),
        netns: "/run/netns/c1".into(),
        inode: 4_026_532_000,
        pod: None,
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        mtu: 1450,
        time: 1_700_000_000,
        delegates: Vec::new(),
        ports: Vec::new(),
        limits: ipam::Limits::default(),
        mac: None,
        routes: Vec::new(),
        names: Vec::new(),
        path: "".into(),
    }
}

pub fn dual() -> Record {
    record("c1", &["10.244.1.2", "fd00:10:244:1::2"])
}

/// Compares with a file of tests/golden; `BLESS=1` writes it.
pub fn golden(name: &str, have: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, have).unwrap();
        return;
    }
    let want = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(want == have, "{} differs from what it should be; this is what is:\n{have}", path.display());
}

/// One call of seaway-cni with no other plugin at hand.
pub fn execute(m: &mut Mock, env: &Env, stdin: &mut dyn std::io::Read, now: u64) -> cni::Outcome {
    cni::serve(&cni::Seaway, |_| None, m, env, stdin, now)
}
