//! The daemon: asks for leases on behalf of ADDs, keeps them while their interfaces live, gives them back on DEL. One
//! thread for each; it holds nothing of the container between renewals, so a container that goes without DEL goes.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use cni::{CniResult, Fields};
use serde_json::{Map, Value};
use types::{IfName, Mac};

use super::client::{Client, Lease, Output, Params};
use super::conf::Conf;
use super::kept::{Folder, Kept};
use super::lease;
use super::packet::{self, CLIENT_PORT, Message, SERVER_PORT, code};
use super::rpc::{Args, Call, Peer};

/// How often a lease's interface is looked for while nothing is to do.
const LOOK: Duration = Duration::from_secs(60);
/// How often a thread that waits for packets looks for commands.
const SLICE: Duration = Duration::from_millis(100);
/// A client that says nothing for so long has died.
const IDLE: Duration = Duration::from_secs(600);

/// What the daemon was started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Before every path of a namespace.
    pub host_prefix: String,
    /// Ask servers to broadcast their answers.
    pub broadcast: bool,
    /// Longest pause between two tries.
    pub resend_max: Duration,
    /// How long one ADD may ask for a lease.
    pub patience: Duration,
    /// Where leases are kept, to go on with them after a restart; nowhere when unset.
    pub state: Option<PathBuf>,
}

/// One interface inside a container, to speak DHCP on. It may hold sockets; it must not hold the namespace.
pub trait Wire: Send {
    /// Its hardware address.
    fn mac(&self) -> Mac;
    /// Sends an IPv4 packet to everybody on the link.
    ///
    /// # Errors
    /// When the link is down or gone.
    fn broadcast(&mut self, packet: &[u8]) -> io::Result<()>;
    /// Sends a datagram from the client's port of the interface's address to the server's port.
    ///
    /// # Errors
    /// When the address is not there, or no route.
    fn unicast(&mut self, from: Ipv4Addr, to: Ipv4Addr, payload: &[u8]) -> io::Result<()>;
    /// Calls `take` with the next IPv4 packet, if one comes within `timeout`.
    ///
    /// # Errors
    /// When the link is down or gone.
    fn receive(&mut self, timeout: Duration, take: &mut dyn FnMut(&[u8])) -> io::Result<()>;
}

/// Where interfaces are.
pub trait Wires: Clone + Send + 'static {
    /// An interface.
    type Wire: Wire;
    /// Opens one, bringing it up if it is down. The number tells its namespace from another at the same path.
    ///
    /// # Errors
    /// `NotFound` when namespace or interface are gone.
    fn open(&self, netns: &str, ifname: &IfName) -> io::Result<(Self::Wire, u64)>;
    /// The number of the namespace, if the interface is in it.
    fn there(&self, netns: &str, ifname: &IfName) -> Option<u64>;
    /// Takes the interface down.
    ///
    /// # Errors
    /// When it cannot.
    fn down(&self, netns: &str, ifname: &IfName) -> io::Result<()>;
    /// Sends a datagram from the node itself to the server's port: for an interface that is gone.
    ///
    /// # Errors
    /// When the node has no route.
    fn send_from_node(&self, to: Ipv4Addr, payload: &[u8]) -> io::Result<()>;
    /// Time since the machine started, sleep included.
    fn now(&self) -> Duration;
}

/// Which interface of which container.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Id {
    container: String,
    network: String,
    ifname: IfName,
}

impl fmt::Display for Id {
    /// Also the client identifier, as the reference's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.container, self.network, self.ifname)
    }
}

enum Order {
    /// Say what you have.
    Tell(Sender<(u64, Option<CniResult>)>),
    /// Give it back; the sender is dropped when that is done.
    Stop(Sender<()>),
}

/// The daemon.
#[derive(Clone)]
pub struct Daemon<W> {
    wires: W,
    settings: Settings,
    leases: Arc<Mutex<HashMap<Id, Sender<Order>>>>,
    /// Where leases are kept, and the machine's start.
    kept: Option<(Folder, String)>,
    say: fn(&str),
}

impl<W: Wires> Daemon<W> {
    /// A daemon that knows no lease before [`Daemon::resume`]; `say` takes lines for its log.
    pub fn new(wires: W, settings: Settings, say: fn(&str)) -> Self {
        let kept = settings.state.clone().and_then(|dir| match ipam::boot_id() {
            Ok(boot) => Some((Folder(dir), boot)),
            Err(e) => {
                say(&format!("leases are not kept over a restart: {e}"));
                None
            }
        });
        Self { wires, settings, leases: Arc::default(), kept, say }
    }

    /// Goes on with the leases of a daemon of before: those whose interface is there are renewed, the others given back.
    pub fn resume(&self) {
        let Some((folder, boot)) = &self.kept else { return };
        for k in folder.all(boot) {
            let (container, network, ifname) = k.id.clone();
            let id = Id { container, network, ifname: ifname.clone() };
            let (orders, inbox) = mpsc::channel();
            let (netns, inode) = k.netns.clone();
            let conf = Conf { socket: String::new(), options: k.options.clone(), priority: k.priority };
            let holder = Holder { daemon: self.clone(), id: id.clone(), netns, ifname, inode, mac: k.mac, bound: None };
            self.leases().insert(id, orders);
            let name = "dhcp-lease".to_owned();
            let started = thread::Builder::new().name(name).spawn(move || holder.go_on(&conf, k.lease, &inbox));
            if let Err(e) = started {
                (self.say)(&format!("start a thread: {e}"));
            }
        }
    }

    /// Serves for ever, a thread for each client.
    ///
    /// # Errors
    /// When the listener fails.
    pub fn serve(&self, listener: &UnixListener) -> io::Result<()> {
        loop {
            let (stream, _) = listener.accept()?;
            let me = self.clone();
            let name = "dhcp-client".to_owned();
            if let Err(e) = thread::Builder::new().name(name).spawn(move || me.client(stream)) {
                (self.say)(&format!("start a thread: {e}"));
            }
        }
    }

    fn client(&self, stream: UnixStream) {
        let timeouts = stream.set_read_timeout(Some(IDLE)).and_then(|()| stream.set_write_timeout(Some(IDLE)));
        let served = timeouts.and_then(|()| {
            let mut peer = Peer::accept(stream)?;
            while let Some(call) = peer.call()? {
                let answer = self.call(&call);
                if peer.answer(&call, &answer).is_err() {
                    // Nobody has heard of the lease.
                    if let (Ok(Some(_)), Ok((id, ..))) = (&answer, parse(&call.args)) {
                        self.release(&id);
                    }
                }
            }
            Ok(())
        });
        if let Err(e) = served {
            (self.say)(&format!("a client: {e}"));
        }
    }

    fn call(&self, call: &Call) -> Result<Option<CniResult>, String> {
        let (id, conf, ifname) = parse(&call.args)?;
        match call.method.as_str() {
            "DHCP.Allocate" => {
                let netns = format!("{}{}", self.settings.host_prefix, call.args.netns);
                self.allocate(&id, &conf()?, netns, ifname).map(Some)
            }
            "DHCP.Release" => {
                self.release(&id);
                Ok(None)
            }
            m => Err(format!("there is no method {m:?}: DHCP.Allocate or DHCP.Release")),
        }
    }

    fn leases(&self) -> MutexGuard<'_, HashMap<Id, Sender<Order>>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lease that the interface has, or a new one.
    fn allocate(&self, id: &Id, conf: &Conf, netns: String, ifname: IfName) -> Result<CniResult, String> {
        let known = self.leases().get(id).cloned();
        if let Some(orders) = known {
            let (tell, told) = mpsc::channel();
            let living = self.wires.there(&netns, &ifname);
            let has = orders.send(Order::Tell(tell)).ok().and_then(|()| told.recv_timeout(SLICE * 20).ok());
            match has {
                Some((inode, has)) if living == Some(inode) => {
                    return has.ok_or_else(|| format!("a lease for {id} is being asked for already"));
                }
                // Of a container that was there before.
                _ => self.release(id),
            }
        }
        let (orders, inbox) = mpsc::channel();
        let (tell, told) = mpsc::channel();
        match self.leases().entry(id.clone()) {
            Entry::Occupied(_) => return Err(format!("a lease for {id} is being asked for already")),
            Entry::Vacant(e) => e.insert(orders),
        };
        let holder =
            Holder { daemon: self.clone(), id: id.clone(), netns, ifname, inode: 0, mac: Mac([0; 6]), bound: None };
        let conf = conf.clone();
        let started = thread::Builder::new().name("dhcp-lease".into()).spawn(move || holder.run(&conf, &tell, &inbox));
        started.map_err(|e| format!("start a thread: {e}"))?;
        let got = told.recv().unwrap_or_else(|_| Err("the lease's thread ended".into()));
        if got.is_err() {
            self.leases().remove(id);
        }
        got
    }

    fn release(&self, id: &Id) {
        let orders = self.leases().remove(id);
        let Some(orders) = orders else { return };
        let (done, wait) = mpsc::channel();
        if orders.send(Order::Stop(done)).is_ok() {
            // Ends when the thread drops its end.
            let _ = wait.recv_timeout(Duration::from_secs(5));
        }
    }
}

type LateConf = Box<dyn FnOnce() -> Result<Conf, String>>;

/// Whose call it is, and its configuration, which only an ADD needs to be right.
fn parse(args: &Args) -> Result<(Id, LateConf, IfName), String> {
    let object: Map<String, Value> =
        serde_json::from_slice(&args.stdin).map_err(|e| format!("the configuration is no JSON object: {e}"))?;
    let network = object.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let ifname: IfName = args.ifname.parse().map_err(|e| format!("IfName: {e}"))?;
    let cni_args = args.args.clone();
    let conf = move || Conf::read(&Fields::new(&object, ""), &cni_args).map_err(|e| e.to_string());
    let id = Id { container: args.container.clone(), network, ifname: ifname.clone() };
    Ok((id, Box::new(conf), ifname))
}

/// One lease's thread.
struct Holder<W: Wires> {
    daemon: Daemon<W>,
    id: Id,
    netns: String,
    ifname: IfName,
    inode: u64,
    mac: Mac,
    bound: Option<CniResult>,
}

impl<W: Wires> Holder<W> {
    fn say(&self, what: &str) {
        (self.daemon.say)(&format!("{}: {what}", self.id));
    }

    /// `tell` learns the first outcome.
    fn run(mut self, conf: &Conf, tell: &Sender<Result<CniResult, String>>, inbox: &Receiver<Order>) {
        let (wire, inode) = match self.open() {
            Ok(w) => w,
            Err(e) => return drop(tell.send(Err(e))),
        };
        (self.inode, self.mac) = (inode, wire.mac());
        let began = self.daemon.wires.now();
        let (client, first) = Client::new(self.params(conf), self.seed(began), began);
        self.keep(client, Some(wire), first, conf, tell, inbox);
    }

    /// Goes on with a lease of a daemon of before.
    fn go_on(mut self, conf: &Conf, lease: Lease, inbox: &Receiver<Order>) {
        let now = self.daemon.wires.now();
        let mut client = Client::resume(self.params(conf), lease.clone(), self.seed(now), now);
        if self.there() != Some(self.inode) {
            self.say("the interface went while no daemon ran");
            self.give_back(&mut client);
            self.daemon.leases().remove(&self.id);
            return;
        }
        self.say(&format!("goes on with {} from {}", lease.addr, lease.server));
        let (nobody, _) = mpsc::channel();
        match self.dressed(&lease, conf) {
            Ok(r) => self.bound = Some(r),
            Err(e) => return self.say(&e),
        }
        self.keep(client, None, Vec::new(), conf, &nobody, inbox);
    }

    fn params(&self, conf: &Conf) -> Params {
        let mut options = vec![(code::CLIENT_ID, [&[0], self.id.to_string().as_bytes()].concat())];
        for (c, v) in &conf.options {
            options.retain(|(o, _)| o != c);
            options.push((*c, v.clone()));
        }
        let s = &self.daemon.settings;
        Params { mac: self.mac, options, broadcast: s.broadcast, resend_max: s.resend_max }
    }

    #[allow(clippy::cast_possible_truncation)] // any bits do
    fn seed(&self, now: Duration) -> u64 {
        now.as_nanos() as u64 ^ u64::from_be_bytes([0, 0, 0, 0, 0, 0, self.mac.0[4], self.mac.0[5]])
    }

    /// Tells the server, from the node since the interface is gone, that the address is free.
    fn give_back(&self, client: &mut Client) {
        for o in client.release() {
            let Output::Unicast(m, server) = o else { continue };
            match self.daemon.wires.send_from_node(server, &m.encode()) {
                Ok(()) => self.say("released from the node"),
                Err(e) => self.say(&format!("{server} is not told that the address is free: {e}")),
            }
        }
        self.forget();
    }

    fn forget(&self) {
        if let Some((folder, _)) = &self.daemon.kept {
            folder.forget(&self.id.to_string());
        }
    }

    fn dressed(&self, l: &Lease, conf: &Conf) -> Result<CniResult, String> {
        let mut result = lease::result(&l.ack).map_err(|e| e.to_string())?;
        for r in &mut result.routes {
            r.priority = conf.priority;
        }
        Ok(result)
    }

    /// Keeps the lease while the interface lives, once there is one.
    fn keep(
        mut self,
        mut client: Client,
        mut wire: Option<W::Wire>,
        first: Vec<Output>,
        conf: &Conf,
        tell: &Sender<Result<CniResult, String>>,
        inbox: &Receiver<Order>,
    ) {
        let began = self.daemon.wires.now();
        let mut todo = first;
        loop {
            if let Some(end) = self.act(&mut wire, std::mem::take(&mut todo), conf, tell) {
                if self.bound.is_none() {
                    let _ = tell.send(Err(end.clone()));
                }
                self.say(&end);
                break;
            }
            let now = self.daemon.wires.now();
            if self.bound.is_none() && now >= began + self.daemon.settings.patience {
                let waited = self.daemon.settings.patience.as_secs();
                let _ = tell.send(Err(format!("no DHCP server gave {} an address within {waited} s", self.ifname)));
                break;
            }
            let until = client.deadline().map_or(LOOK, |d| d.saturating_sub(now));
            let order = if client.listens() {
                match self.hear(&mut wire, until.min(SLICE), &mut client) {
                    Ok(out) => todo = out,
                    Err(e) => {
                        // Perhaps it is only down for a moment.
                        self.say(&format!("listen on {}: {e}", self.ifname));
                        wire = None;
                        thread::sleep(SLICE);
                    }
                }
                match inbox.try_recv() {
                    Ok(o) => Some(o),
                    Err(mpsc::TryRecvError::Empty) => None,
                    Err(mpsc::TryRecvError::Disconnected) => break,
                }
            } else {
                wire = None;
                match inbox.recv_timeout(until.min(LOOK)) {
                    Ok(o) => Some(o),
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => break,
                }
            };
            match order {
                Some(Order::Tell(to)) => {
                    let _ = to.send((self.inode, self.bound.clone()));
                }
                Some(Order::Stop(_done)) => {
                    let last = client.release();
                    self.act(&mut wire, last, conf, tell);
                    self.forget();
                    self.say("released");
                    return;
                }
                None => {}
            }
            if self.bound.is_some() && wire.is_none() && self.there() != Some(self.inode) {
                self.say("the interface is gone");
                self.give_back(&mut client);
                break;
            }
            todo.extend(client.tick(self.daemon.wires.now()));
        }
        // Unless somebody has done so, and perhaps another is in our place: then the inbox has no sender left.
        let mut leases = self.daemon.leases();
        if !matches!(inbox.try_recv(), Err(mpsc::TryRecvError::Disconnected)) {
            leases.remove(&self.id);
            self.forget();
        }
    }

    fn there(&self) -> Option<u64> {
        self.daemon.wires.there(&self.netns, &self.ifname)
    }

    fn open(&self) -> Result<(W::Wire, u64), String> {
        let opened = self.daemon.wires.open(&self.netns, &self.ifname);
        opened.map_err(|e| format!("open {} in {}: {e}", self.ifname, self.netns))
    }

    /// Does what the client wants. The end of the lease, with the reason, when it is over.
    fn act(
        &mut self,
        wire: &mut Option<W::Wire>,
        todo: Vec<Output>,
        conf: &Conf,
        tell: &Sender<Result<CniResult, String>>,
    ) -> Option<String> {
        for o in todo {
            match o {
                Output::Broadcast(m) => self.send(wire, |w| {
                    let to = (Ipv4Addr::BROADCAST, SERVER_PORT);
                    w.broadcast(&packet::datagram((m.ciaddr, CLIENT_PORT), to, &m.encode()))
                }),
                Output::Unicast(m, server) => self.send(wire, |w| w.unicast(m.ciaddr, server, &m.encode())),
                Output::Bound(l) => {
                    let result = match self.dressed(&l, conf) {
                        Ok(r) => r,
                        Err(e) => return Some(e),
                    };
                    self.write_down(&l, conf);
                    if self.bound.is_none() {
                        self.say(&format!("has {} from {}", l.addr, l.server));
                        let _ = tell.send(Ok(result.clone()));
                    }
                    self.bound = Some(result);
                }
                Output::Lost(why) => {
                    // Somebody else may be given the address any moment.
                    if let Err(e) = self.daemon.wires.down(&self.netns, &self.ifname) {
                        self.say(&format!("take {} down: {e}", self.ifname));
                    }
                    return Some(format!("{why}; {} is taken down", self.ifname));
                }
            }
        }
        None
    }

    fn write_down(&self, lease: &Lease, conf: &Conf) {
        let Some((folder, boot)) = &self.daemon.kept else { return };
        let kept = Kept {
            boot: boot.clone(),
            id: (self.id.container.clone(), self.id.network.clone(), self.ifname.clone()),
            netns: (self.netns.clone(), self.inode),
            mac: self.mac,
            options: conf.options.clone(),
            priority: conf.priority,
            lease: lease.clone(),
        };
        if let Err(e) = folder.keep(&self.id.to_string(), &kept) {
            self.say(&format!("the lease is not kept over a restart: {}: {e}", folder.0.display()));
        }
    }

    /// What cannot be sent now is sent again when the client's time has come.
    fn send(&self, wire: &mut Option<W::Wire>, send: impl FnOnce(&mut W::Wire) -> io::Result<()>) {
        let result = self.wired(wire).and_then(send);
        if let Err(e) = result {
            self.say(&format!("send on {}: {e}", self.ifname));
        }
    }

    fn wired<'a>(&self, wire: &'a mut Option<W::Wire>) -> io::Result<&'a mut W::Wire> {
        if wire.is_none() {
            let (w, inode) = self.daemon.wires.open(&self.netns, &self.ifname)?;
            if inode != self.inode {
                return Err(io::Error::new(io::ErrorKind::NotFound, "the namespace is another one now"));
            }
            *wire = Some(w);
        }
        wire.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn hear(&self, wire: &mut Option<W::Wire>, timeout: Duration, client: &mut Client) -> io::Result<Vec<Output>> {
        let mut heard = None;
        self.wired(wire)?.receive(timeout, &mut |p| heard = packet::payload(p).and_then(Message::decode))?;
        Ok(heard.map(|m| client.receive(&m, self.daemon.wires.now())).unwrap_or_default())
    }
}
