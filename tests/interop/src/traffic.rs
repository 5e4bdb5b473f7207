//! Servers in pods, and clients that connect to them through a Service all the time.

use std::io::{Error, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kernel::Netns;
use types::Proto;

use crate::node::wait;

/// How long an exchange may take on a busy machine; a lost segment is sent again within it.
const PATIENCE: Duration = Duration::from_secs(10);
/// A datagram that is not answered by then is sent again, as a resolver would.
const AGAIN: Duration = Duration::from_secs(2);
/// Where the pods answer.
pub const PORT: u16 = 8080;
/// What a client sends; the answer has the number of the pod before it.
const QUESTION: usize = 8;

/// Answers TCP and UDP of both families with its number and what was sent, until it is dropped.
#[derive(Debug)]
pub struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// In a pod.
    #[must_use]
    pub fn start(pod: &Netns, number: u8) -> Self {
        let any = (Ipv6Addr::UNSPECIFIED, PORT);
        let bound = pod.run(|| (TcpListener::bind(any).unwrap(), UdpSocket::bind(any).unwrap()));
        let (tcp, udp) = bound.unwrap();
        tcp.set_nonblocking(true).unwrap();
        udp.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&stop);
        let connections = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                match tcp.accept() {
                    Ok((mut c, _)) => {
                        c.set_nonblocking(false).unwrap();
                        std::thread::spawn(move || {
                            let mut b = [number; 1 + QUESTION];
                            while c.read_exact(&mut b[1..]).is_ok() && c.write_all(&b).is_ok() {}
                        });
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(1)),
                }
            }
        });
        let ended = Arc::clone(&stop);
        let datagrams = std::thread::spawn(move || {
            let mut b = [number; 1 + QUESTION];
            while !ended.load(Ordering::Relaxed) {
                if let Ok((_, from)) = udp.recv_from(&mut b[1..]) {
                    // A client that has ended by now is told so by its own kernel, and we by the next call.
                    let _ = udp.send_to(&b, from);
                }
            }
        });
        Self { stop, threads: vec![connections, datagrams] }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for t in self.threads.drain(..) {
            let _ = t.join();
        }
    }
}

/// A connection, or what UDP has for one: a socket whose datagrams one conntrack entry leads.
enum Talk {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

impl Talk {
    /// From the calling thread's network namespace.
    fn open(proto: Proto, to: SocketAddr) -> std::io::Result<Self> {
        if proto == Proto::Tcp {
            let s = TcpStream::connect_timeout(&to, PATIENCE)?;
            s.set_read_timeout(Some(PATIENCE))?;
            s.set_nodelay(true)?;
            return Ok(Self::Tcp(s));
        }
        let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let s = UdpSocket::bind((any, 0))?;
        s.connect(to)?;
        s.set_read_timeout(Some(AGAIN))?;
        Ok(Self::Udp(s))
    }

    /// A question and its answer: which pod gave it, and how often it was asked.
    fn ask(&mut self, question: u64) -> std::io::Result<(u8, usize)> {
        let question = question.to_be_bytes();
        let mut answer = [0; 1 + QUESTION];
        match self {
            Self::Tcp(s) => {
                s.write_all(&question)?;
                s.read_exact(&mut answer)?;
                if answer[1..] == question { Ok((answer[0], 1)) } else { Err(Error::other("another answer")) }
            }
            Self::Udp(s) => {
                let began = Instant::now();
                for times in 1.. {
                    s.send(&question)?;
                    let sent = Instant::now();
                    while sent.elapsed() < AGAIN {
                        match s.recv(&mut answer) {
                            Ok(n) if n == answer.len() && answer[1..] == question => return Ok((answer[0], times)),
                            // Of what was asked twice.
                            Ok(_) => {}
                            Err(e) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&e.kind()) => break,
                            Err(e) => return Err(e),
                        }
                    }
                    if began.elapsed() > PATIENCE {
                        break;
                    }
                }
                Err(Error::new(ErrorKind::TimedOut, "no answer"))
            }
        }
    }
}

/// One exchange over a connection of its own.
///
/// # Errors
/// When there is no answer in time.
pub fn once(from: &Netns, proto: Proto, to: SocketAddr) -> std::io::Result<()> {
    from.run(|| Talk::open(proto, to)?.ask(1).map(drop))?
}

/// Clients that connect all the time, each with a connection beside that stays open.
#[derive(Debug)]
pub struct Traffic {
    stop: Arc<AtomicBool>,
    /// How often each connected.
    made: Vec<Arc<AtomicUsize>>,
    failures: Arc<Mutex<Vec<String>>>,
    /// Datagrams that were sent again.
    again: Arc<AtomicUsize>,
    dropped: u64,
    threads: Vec<JoinHandle<()>>,
}

impl Traffic {
    /// Of these: name, where from, protocol, where to.
    #[must_use]
    pub fn start(clients: impl IntoIterator<Item = (&'static str, Netns, Proto, SocketAddr)>) -> Self {
        let mut t = Self {
            stop: Arc::default(),
            made: Vec::new(),
            failures: Arc::default(),
            again: Arc::default(),
            dropped: dropped(),
            threads: Vec::new(),
        };
        for (who, ns, proto, to) in clients {
            let made = Arc::new(AtomicUsize::new(0));
            t.made.push(Arc::clone(&made));
            let (stop, failures, again) = (Arc::clone(&t.stop), Arc::clone(&t.failures), Arc::clone(&t.again));
            let client = move || {
                let tell = |what: &str, e: Error| {
                    failures.lock().unwrap().push(format!("{what} of {proto} from {who} to {to}: {e}"));
                };
                let (mut long, mut endpoint) = (Talk::open(proto, to).unwrap(), None);
                let mut n = 0;
                while !stop.load(Ordering::Relaxed) {
                    n += 1;
                    match Talk::open(proto, to).and_then(|mut s| s.ask(n)) {
                        Ok((_, times)) => drop(again.fetch_add(times - 1, Ordering::Relaxed)),
                        Err(e) => tell("a new connection", e),
                    }
                    match long.ask(n) {
                        Ok((pod, times)) => {
                            again.fetch_add(times - 1, Ordering::Relaxed);
                            // One that is answered by another pod was broken, whether its client notices or not.
                            let first = *endpoint.get_or_insert(pod);
                            if pod != first {
                                tell("the old connection", Error::other(format!("pod {pod} answers, not {first}")));
                                endpoint = Some(pod);
                            }
                        }
                        Err(e) => tell("the old connection", e),
                    }
                    made.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(5));
                }
            };
            t.threads.push(std::thread::spawn(move || ns.run(client).unwrap()));
        }
        t
    }

    /// Every one has connected some times more.
    pub fn goes_on(&self, when: &str) {
        for made in &self.made {
            let before = made.load(Ordering::Relaxed);
            wait(&format!("traffic {when}"), || made.load(Ordering::Relaxed) > before + 20);
        }
        assert_eq!(*self.failures.lock().unwrap(), [""; 0], "{when}");
        self.nothing_lost(when);
    }

    /// A datagram that had to be sent again was lost on the way, unless this machine was too busy to take it.
    fn nothing_lost(&self, when: &str) {
        let (again, dropped) = (self.again.load(Ordering::Relaxed), dropped() - self.dropped);
        assert!(again == 0 || dropped > 0, "{when}: {again} datagrams had to be sent again");
    }

    /// No connection failed.
    pub fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        let made: usize = self.made.iter().map(|m| m.load(Ordering::Relaxed)).sum();
        self.nothing_lost("at the end");
        self.threads.into_iter().for_each(|t| t.join().unwrap());
        assert_eq!(*self.failures.lock().unwrap(), [""; 0]);
        eprintln!("{made} connections made beside {} that stayed open", self.made.len());
    }
}

/// Packets that this machine lost between two devices because it was too busy (`/proc/net/softnet_stat`).
fn dropped() -> u64 {
    let text = std::fs::read_to_string("/proc/net/softnet_stat").unwrap();
    text.lines().filter_map(|l| u64::from_str_radix(l.split(' ').nth(1)?, 16).ok()).sum()
}
