//! Calls between plugin and daemon: Go's net/rpc over HTTP on a unix socket, as the reference's two halves do it, so
//! that either half may be the reference's.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use cni::{CniResult, Ip, IpNet, RouteConf};

use super::gob::{self, Decoder, Encoder, Value, id, object};

/// What a client says first, and the answer (net/rpc `DialHTTP`).
const HELLO: &str = "CONNECT /_goRPC_ HTTP/1.0\n\n";
const WELCOME: &str = "HTTP/1.0 200 Connected to Go RPC\n\n";
/// A message's length; the longest part of a call is the configuration.
const LONGEST: u64 = 8 << 20;
/// Bytes of the lines of HTTP.
const LONGEST_HELLO: usize = 4096;

/// What the daemon is asked with (skel.CmdArgs).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Args {
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_NETNS`.
    pub netns: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// `CNI_ARGS`.
    pub args: String,
    /// `CNI_PATH`.
    pub path: String,
    /// The configuration.
    pub stdin: Vec<u8>,
}

/// One call, as the daemon sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// `DHCP.Allocate` or `DHCP.Release`.
    pub method: String,
    seq: u64,
    /// With what.
    pub args: Args,
}

fn odd(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// One end of a connection.
pub struct Peer<S> {
    stream: S,
    decoder: Decoder,
    encoder: Encoder,
}

impl<S: Read + Write> Peer<S> {
    fn new(stream: S) -> Self {
        Self { stream, decoder: Decoder::default(), encoder: Encoder::default() }
    }

    /// The daemon's end of a fresh connection.
    ///
    /// # Errors
    /// When the other side is no client of this kind.
    pub fn accept(mut stream: S) -> io::Result<Self> {
        let head = head(&mut stream)?;
        if !head.starts_with("CONNECT /_goRPC_ ") {
            stream.write_all(b"HTTP/1.0 405 must CONNECT\r\n\r\n")?;
            return Err(odd("no CONNECT /_goRPC_"));
        }
        stream.write_all(WELCOME.as_bytes())?;
        Ok(Self::new(stream))
    }

    /// The next call; `None` when the client has hung up.
    ///
    /// # Errors
    /// When what comes is no call.
    pub fn call(&mut self) -> io::Result<Option<Call>> {
        let Some(header) = self.value(true)? else { return Ok(None) };
        let seq = match header.get("Seq") {
            Some(Value::Uint(n)) => *n,
            _ => 0,
        };
        let body = self.value(false)?.ok_or_else(|| odd("a call without arguments"))?;
        let text = |f: &str| body.text(f).to_owned();
        let args = Args {
            container: text("ContainerID"),
            netns: text("Netns"),
            ifname: text("IfName"),
            args: text("Args"),
            path: text("Path"),
            stdin: body.bytes("StdinData").to_vec(),
        };
        Ok(Some(Call { method: header.text("ServiceMethod").to_owned(), seq, args }))
    }

    /// Answers a call: a result, nothing (`Release`), or why not.
    ///
    /// # Errors
    /// When the client has gone.
    pub fn answer(&mut self, call: &Call, with: &Result<Option<CniResult>, String>) -> io::Result<()> {
        let mut header =
            vec![("ServiceMethod", Value::Bytes(call.method.clone().into_bytes())), ("Seq", Value::Uint(call.seq))];
        let (kind, body) = match with {
            Ok(Some(r)) => (id::RESULT, write(r)),
            Ok(None) => (id::NOTHING, object([])),
            Err(e) => {
                // Empty would mean success.
                let e = if e.is_empty() { "failed" } else { e };
                header.push(("Error", Value::Bytes(e.as_bytes().to_vec())));
                (id::NOTHING, object([]))
            }
        };
        let header = Value::Struct(header.into_iter().map(|(k, v)| (k.to_owned(), v)).collect());
        let bytes = [self.encoder.message(id::RESPONSE, &header), self.encoder.message(kind, &body)].concat();
        self.stream.write_all(&bytes)
    }

    /// The next value; `None` at the end of the stream, if that is where one may end.
    fn value(&mut self, end: bool) -> io::Result<Option<Value>> {
        loop {
            let mut start = Vec::new();
            let n = loop {
                match gob::uint(&start).map_err(odd)? {
                    Some((n, _)) => break n,
                    None => {
                        let mut b = [0];
                        if self.stream.read(&mut b)? == 0 {
                            return if end && start.is_empty() { Ok(None) } else { Err(odd("cut short")) };
                        }
                        start.extend(b);
                    }
                }
            };
            if n > LONGEST {
                return Err(odd("a message too long"));
            }
            let mut bytes = Vec::new();
            (&mut self.stream).take(n).read_to_end(&mut bytes)?;
            if bytes.len() as u64 != n {
                return Err(odd("cut short"));
            }
            if let Some(v) = self.decoder.message(&bytes).map_err(odd)? {
                return Ok(Some(v));
            }
        }
    }

    /// One call of a client.
    ///
    /// # Errors
    /// When the connection fails; what the daemon refuses is in the answer.
    fn ask(&mut self, method: &str, args: &Args) -> io::Result<Result<Value, String>> {
        let text = |t: &str| Value::Bytes(t.as_bytes().to_vec());
        let header = object([("ServiceMethod", text(method)), ("Seq", Value::Uint(0))]);
        let body = object([
            ("ContainerID", text(&args.container)),
            ("Netns", text(&args.netns)),
            ("IfName", text(&args.ifname)),
            ("Args", text(&args.args)),
            ("Path", text(&args.path)),
            ("StdinData", Value::Bytes(args.stdin.clone())),
        ]);
        let bytes = [self.encoder.message(id::REQUEST, &header), self.encoder.message(id::ARGS, &body)].concat();
        self.stream.write_all(&bytes)?;
        let header = self.value(false)?.ok_or_else(|| odd("no answer"))?;
        // There is one in any case.
        let body = self.value(false)?.ok_or_else(|| odd("no answer"))?;
        let error = header.text("Error");
        Ok(if error.is_empty() { Ok(body) } else { Err(error.to_owned()) })
    }
}

/// The lines of HTTP up to the empty one.
fn head(stream: &mut impl Read) -> io::Result<String> {
    let mut out = Vec::new();
    while !(out.ends_with(b"\n\n") || out.ends_with(b"\r\n\r\n")) {
        let mut b = [0];
        if stream.read(&mut b)? == 0 || out.len() > LONGEST_HELLO {
            return Err(odd("no HTTP"));
        }
        out.extend(b);
    }
    String::from_utf8(out).map_err(|_| odd("no HTTP"))
}

/// Calls the daemon at `socket`.
///
/// # Errors
/// When it cannot be reached; what it refuses is in the answer.
pub fn ask(socket: &str, method: &str, args: &Args, timeout: Duration) -> io::Result<Result<CniResult, String>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    stream.write_all(HELLO.as_bytes())?;
    if !head(&mut stream)?.contains("200 Connected to Go RPC") {
        return Err(odd("who listens there is no DHCP daemon"));
    }
    Ok(Peer::new(stream).ask(method, args)?.and_then(|v| read(&v).ok_or_else(|| "an answer that is no result".into())))
}

fn bytes(a: IpAddr) -> Value {
    Value::Bytes(match a {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    })
}

fn net(addr: IpAddr, len: u8) -> Value {
    let bits = if addr.is_ipv4() { 32 } else { 128 };
    let mask = (0..bits / 8).map(|i| {
        let ones = len.saturating_sub(i * 8).min(8);
        u8::try_from(0xff00u16 >> ones & 0xff).unwrap_or(0)
    });
    object([("IP", bytes(addr)), ("Mask", Value::Bytes(mask.collect()))])
}

fn write(r: &CniResult) -> Value {
    let ip = |i: &Ip| {
        let mut v = BTreeMap::from([("Address".to_owned(), net(i.address.addr, i.address.len))]);
        v.extend(i.gateway.map(|g| ("Gateway".to_owned(), bytes(g))));
        Value::Struct(v)
    };
    let route = |r: &RouteConf| {
        let mut v = BTreeMap::from([("Dst".to_owned(), net(r.dst.addr(), r.dst.len()))]);
        // A reference without scopes takes an unspecified router for none.
        let gw = r.gw.map(bytes);
        v.extend(gw.map(|g| ("GW".to_owned(), g)));
        v.extend(r.scope.map(|s| ("Scope".to_owned(), Value::Int(s.into()))));
        Value::Struct(v)
    };
    object([
        ("CNIVersion", Value::Bytes(b"1.0.0".to_vec())),
        ("IPs", Value::List(r.ips.iter().map(ip).collect())),
        ("Routes", Value::List(r.routes.iter().map(route).collect())),
    ])
}

fn address(b: &[u8]) -> Option<IpAddr> {
    match b.len() {
        4 => <[u8; 4]>::try_from(b).ok().map(IpAddr::from),
        // Go keeps IPv4 addresses in either form.
        16 => <[u8; 16]>::try_from(b).ok().map(|b| IpAddr::from(b).to_canonical()),
        _ => None,
    }
}

fn read_net(v: &Value) -> Option<IpNet> {
    let addr = address(v.bytes("IP"))?;
    let mask = v.bytes("Mask");
    let mask = if addr.is_ipv4() && mask.len() == 16 { mask.get(12..)? } else { mask };
    let len = mask.iter().map(|b| b.leading_ones()).sum::<u32>();
    let len = u8::try_from(len).ok()?;
    (len <= types::Family::of(addr).bits()).then_some(IpNet { addr, len })
}

/// A result of Go's; an empty one (of `Release`) is an empty result.
fn read(v: &Value) -> Option<CniResult> {
    let mut out = CniResult::default();
    for i in v.list("IPs") {
        let address = i.get("Address").and_then(read_net)?;
        out.ips.push(Ip { interface: None, address, gateway: self::address(i.bytes("Gateway")) });
    }
    for r in v.list("Routes") {
        let dst = r.get("Dst").and_then(read_net)?;
        let gw = address(r.bytes("GW"));
        let scope = match r.get("Scope") {
            Some(Value::Int(n)) => u8::try_from(*n).ok(),
            _ => None,
        };
        out.routes.push(RouteConf { scope, ..RouteConf::new(dst.network(), gw.filter(|g| !g.is_unspecified())) });
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_call_and_its_answer() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let args = Args { container: "c".into(), ifname: "eth0".into(), stdin: vec![b'x'; 300], ..Args::default() };
        let mut ours = Peer::new(ours);
        let result = CniResult {
            ips: vec![Ip {
                interface: None,
                address: "10.1.2.3/23".parse().unwrap(),
                gateway: "10.1.2.1".parse().ok(),
            }],
            routes: vec![
                RouteConf::new("0.0.0.0/0".parse().unwrap(), "10.1.2.1".parse().ok()),
                RouteConf { scope: Some(253), ..RouteConf::new("10.9.0.0/16".parse().unwrap(), None) },
            ],
            ..CniResult::default()
        };
        for answer in [Ok(Some(result.clone())), Ok(None), Err("no".to_owned()), Err(String::new())] {
            std::thread::scope(|s| {
                s.spawn(|| {
                    let mut peer = Peer::new(theirs.try_clone().unwrap());
                    let call = peer.call().unwrap().unwrap();
                    assert_eq!((&*call.method, &call.args), ("DHCP.Allocate", &args));
                    peer.answer(&call, &answer).unwrap();
                });
                // Types are told once a stream; the other end is new each time.
                ours.encoder = Encoder::default();
                ours.decoder = Decoder::default();
                let said = ours.ask("DHCP.Allocate", &args).unwrap().map(|v| read(&v).unwrap());
                match &answer {
                    Ok(r) => assert_eq!(said.unwrap(), r.clone().unwrap_or_default()),
                    Err(_) => assert!(!said.unwrap_err().is_empty()),
                }
            });
        }
    }
}
