//! What bench/services is made of: fills an API server with Services, serves every endpoint of the world from one
//! namespace, connects through Services, changes them and waits until the change is met, and draws the picture.
//! Plain std, compiled by the script with rustc alone.

mod api;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use api::{Api, JSON, MERGE};

/// Service number n has 10.96.1.0 + n; its endpoints are 10.128.0.0 + 4n and the three after it.
fn vip(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a60_0100 + n)
}

fn endpoint(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a80_0000 + n)
}

/// Those with one endpoint, which changes, begin here.
const SINGLE: u32 = 600_000;
/// One of them has a second port, that streams.
const FLOW: u32 = SINGLE + 50;
/// The one with ten thousand.
const LARGE: u32 = 700_000;

fn service(n: u32) -> String {
    let flow = if n == FLOW { r#",{"name":"flow","port":81,"targetPort":8081}"# } else { "" };
    format!(
        r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"s{n}"}},"spec":{{"clusterIP":"{}","ports":[{{"name":"http","port":80,"targetPort":8080}}{flow}]}}}}"#,
        vip(n)
    )
}

fn endpoints(list: impl Iterator<Item = Ipv4Addr>) -> String {
    let each: Vec<String> = list
        .map(|a| format!(r#"{{"addresses":["{a}"],"conditions":{{"ready":true}},"nodeName":"other"}}"#))
        .collect();
    each.join(",")
}

fn slice(n: u32, part: u32, list: impl Iterator<Item = Ipv4Addr>) -> String {
    let flow = if n == FLOW { r#",{"name":"flow","port":8081}"# } else { "" };
    format!(
        r#"{{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{{"name":"s{n}-{part}","labels":{{"kubernetes.io/service-name":"s{n}","endpointslice.kubernetes.io/managed-by":"bench"}}}},"addressType":"IPv4","ports":[{{"name":"http","port":8080}}{flow}],"endpoints":[{}]}}"#,
        endpoints(list)
    )
}

const SERVICES: &str = "/api/v1/namespaces/default/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";

fn make(api: &mut Api, n: u32, list: impl Iterator<Item = Ipv4Addr>) {
    api.must("POST", SERVICES, JSON, &service(n));
    let all: Vec<Ipv4Addr> = list.collect();
    for (part, some) in (0u32..).zip(all.chunks(100)) {
        api.must("POST", SLICES, JSON, &slice(n, part, some.iter().copied()));
    }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let all = three.iter().fold(0, |all, b| all << 8 | u32::from(*b)) << (8 * (3 - three.len()));
        for i in 0..4 {
            let digit = char::from(DIGITS[(all >> (18 - 6 * i) & 63) as usize]);
            text.push(if i <= three.len() { digit } else { '=' });
        }
    }
    text
}

/// An object as the API server stores it: with what it fills in on the way.
fn stored(object: &str, uid: u32) -> String {
    let made = format!(
        r#""metadata":{{"namespace":"default","uid":"00000000-0000-4000-8000-{uid:012x}","creationTimestamp":"2026-01-01T00:00:00Z","#
    );
    object.replacen(r#""metadata":{"#, &made, 1)
}

/// What is stored of Service `n`: itself, its slice and, as of Kubernetes 1.33, its address (KEP-1880).
fn records(n: u32) -> [(String, String); 3] {
    let service = stored(&service(n), 2 * n).replacen(
        r#""spec":{"#,
        &format!(
            r#""spec":{{"type":"ClusterIP","sessionAffinity":"None","internalTrafficPolicy":"Cluster","ipFamilyPolicy":"SingleStack","ipFamilies":["IPv4"],"clusterIPs":["{}"],"#,
            vip(n)
        ),
        1,
    );
    let slice = stored(&slice(n, 0, (0..4).map(|i| endpoint(4 * n + i))), 2 * n + 1);
    let address = format!(
        r#"{{"apiVersion":"networking.k8s.io/v1","kind":"IPAddress","metadata":{{"name":"{}","uid":"10000000-0000-4000-8000-{n:012x}","creationTimestamp":"2026-01-01T00:00:00Z","labels":{{"ipaddress.kubernetes.io/ip-family":"IPv4","ipaddress.kubernetes.io/managed-by":"ipallocator.k8s.io"}}}},"spec":{{"parentRef":{{"resource":"services","namespace":"default","name":"s{n}"}}}}}}"#,
        vip(n)
    );
    [
        (format!("/registry/ipaddresses/{}", vip(n)), address),
        (format!("/registry/endpointslices/default/s{n}-0"), slice),
        (format!("/registry/services/specs/default/s{n}"), service),
    ]
}

/// How many write at once.
const LOADERS: u32 = 8;

/// Services `from` to `to` with four endpoints each, written to etcd as a restored backup would be: the API server lists
/// every address it ever gave before it gives one, so 45,000 would take it a third of an hour. On the first call also
/// those that change.
fn load(api: &str, etcd: &str, from: u32, to: u32) {
    // A Service with what is its own is one transaction, as no two objects of a kind ever have one revision: a watch that is
    // taken up again after a revision would miss the rest of it.
    let put = |first: u32| {
        let mut store = Api::open(etcd);
        for n in (first..to).step_by(LOADERS as usize) {
            let puts = records(n).map(|(key, value)| {
                let (key, value) = (base64(key.as_bytes()), base64(value.as_bytes()));
                format!(r#"{{"requestPut":{{"key":"{key}","value":"{value}"}}}}"#)
            });
            store.must("POST", "/v3/kv/txn", JSON, &format!(r#"{{"success":[{}]}}"#, puts.join(",")));
        }
    };
    thread::scope(|s| (from..to.min(from + LOADERS)).for_each(|first| drop(s.spawn(move || put(first)))));
    let mut api = Api::open(api);
    if from == 0 {
        for n in 0..100 {
            make(&mut api, SINGLE + n, [endpoint(4 * SINGLE + n)].into_iter());
        }
    }
    // The API server serves the last of them.
    if to > from {
        for (list, name) in [(SERVICES, format!("s{}", to - 1)), (SLICES, format!("s{}-0", to - 1))] {
            let (status, answer) = api.send("GET", &format!("{list}/{name}"), JSON, "");
            assert!(status == 200, "{list}/{name}: {status} {answer}");
        }
    }
}

/// Answers every connection with the address it came to, or, at port 8081, with bytes without end.
fn serve() {
    let flow = TcpListener::bind("0.0.0.0:8081").expect("bind 8081");
    thread::spawn(move || {
        for s in flow.incoming().flatten() {
            thread::spawn(move || {
                let (mut s, zeros) = (s, vec![0; 256 << 10]);
                while s.write_all(&zeros).is_ok() {}
            });
        }
    });
    let l = TcpListener::bind("0.0.0.0:8080").expect("bind 8080");
    let workers: Vec<_> = (0..4)
        .map(|_| {
            let l = l.try_clone().expect("clone");
            thread::spawn(move || {
                for mut s in l.incoming().flatten() {
                    if let Ok(SocketAddr::V4(a)) = s.local_addr() {
                        let _ = s.write_all(&a.ip().octets());
                    }
                }
            })
        })
        .collect();
    workers.into_iter().for_each(|w| drop(w.join()));
}

/// Who answers at a Service, if anybody.
fn ask(to: Ipv4Addr, patience: Duration) -> Option<Ipv4Addr> {
    let at = SocketAddr::new(IpAddr::V4(to), 80);
    let mut s = TcpStream::connect_timeout(&at, patience).ok()?;
    s.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
    let mut who = [0; 4];
    s.read_exact(&mut who).ok()?;
    Some(who.into())
}

/// Milliseconds until each of these answers as it should.
fn until(began: Instant, mut waiting: Vec<(Ipv4Addr, Option<Ipv4Addr>)>) -> f64 {
    while !waiting.is_empty() {
        waiting.retain(|(to, want)| {
            // Short: before the Service is there nobody refuses.
            let who = ask(*to, Duration::from_millis(10));
            who.is_none() || want.is_some() && who != *want
        });
        if began.elapsed() > Duration::from_secs(1800) {
            return f64::NAN;
        }
        thread::sleep(Duration::from_micros(200));
    }
    began.elapsed().as_secs_f64() * 1e3
}

/// Puts `count` of those with one endpoint to another one, and waits for it. `turn` tells the endpoints apart.
fn change(api: &str, count: u32, turn: u32) -> f64 {
    let mut api = Api::open(api);
    let to = |n: u32| endpoint(4 * SINGLE + 1000 * turn + n);
    let began = Instant::now();
    for n in 0..count {
        let body = format!(r#"{{"endpoints":[{}]}}"#, endpoints([to(n)].into_iter()));
        api.must("PATCH", &format!("{SLICES}/s{}-0", SINGLE + n), MERGE, &body);
    }
    until(began, (0..count).map(|n| (vip(SINGLE + n), Some(to(n)))).collect())
}

fn percentile(sorted: &[f64], p: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * p) as usize]
}

fn latency(to: Ipv4Addr, seconds: u64) -> (f64, f64) {
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut all = Vec::new();
    while Instant::now() < until {
        let began = Instant::now();
        if ask(to, Duration::from_secs(1)).is_some() {
            all.push(began.elapsed().as_secs_f64() * 1e6);
        }
    }
    all.sort_by(f64::total_cmp);
    (percentile(&all, 0.5), percentile(&all, 0.99))
}

fn rate(to: Ipv4Addr, seconds: u64) -> f64 {
    let until = Instant::now() + Duration::from_secs(seconds);
    let began = Instant::now();
    let workers: Vec<_> = (0..8)
        .map(|_| {
            thread::spawn(move || {
                let mut n = 0u64;
                while Instant::now() < until {
                    n += u64::from(ask(to, Duration::from_secs(1)).is_some());
                }
                n
            })
        })
        .collect();
    let n: u64 = workers.into_iter().map(|w| w.join().expect("rate")).sum();
    n as f64 / began.elapsed().as_secs_f64()
}

fn flow(to: Ipv4Addr, seconds: u64) -> f64 {
    let mut s = TcpStream::connect((to, 81)).expect("connect");
    let (began, mut bytes, mut buf) = (Instant::now(), 0usize, vec![0; 256 << 10]);
    while began.elapsed() < Duration::from_secs(seconds) {
        bytes += s.read(&mut buf).expect("read");
    }
    bytes as f64 * 8.0 / began.elapsed().as_secs_f64() / 1e9
}

/// One panel for each measure: figures over the number of Services, a line for each peer, both axes logarithmic.
fn svg(csv: &str) -> String {
    let panels = [
        ("cold", "cold start to all reachable (ms)"),
        ("change1", "one endpoint changed (ms)"),
        ("change100", "100 endpoints changed (ms)"),
        ("added", "one Service added (ms)"),
        ("restart", "restart to a change being met (ms)"),
        ("rss", "memory at rest (MiB)"),
        ("cpu_cold", "CPU of the cold start (ms)"),
        ("cpu_changes", "CPU of 10 changes (ms)"),
        ("first_p99", "first packet p99, last Service (us)"),
        ("rate_last", "connections a second, last Service"),
    ];
    let mut data: BTreeMap<(&str, &str), Vec<(f64, f64)>> = BTreeMap::new();
    for line in csv.lines().skip(1) {
        let f: Vec<&str> = line.split(',').collect();
        if let [peer, count, measure, value, ..] = f[..]
            && let (Ok(x), Ok(y)) = (count.parse(), value.parse::<f64>())
            && y > 0.0
        {
            data.entry((measure, peer)).or_default().push((x, y));
        }
    }
    let peers = [("seaway", "#0b6"), ("kube-proxy nftables", "#36c"), ("kube-proxy iptables", "#c63")];
    let (w, h, columns) = (330.0, 220.0, 2);
    let rows = panels.len().div_ceil(columns);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\" font-family=\"sans-serif\" font-size=\"11\"><rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        w * columns as f64,
        h * rows as f64 + 30.0
    );
    for (i, (name, color)) in peers.iter().enumerate() {
        let x = 60.0 + 180.0 * i as f64;
        out += &format!("<line x1=\"{x}\" y1=\"14\" x2=\"{}\" y2=\"14\" stroke=\"{color}\" stroke-width=\"2\"/><text x=\"{}\" y=\"18\">{name}</text>\n", x + 24.0, x + 30.0);
    }
    for (i, (measure, title)) in panels.iter().enumerate() {
        let (x0, y0) = ((i % columns) as f64 * w + 60.0, (i / columns) as f64 * h + 55.0);
        let (pw, ph) = (w - 80.0, h - 65.0);
        let all: Vec<(f64, f64)> = peers.iter().filter_map(|(p, _)| data.get(&(*measure, *p))).flatten().copied().collect();
        if all.is_empty() {
            continue;
        }
        let log = |v: f64| v.max(1e-3).log10();
        let span = |v: Vec<f64>| {
            let (lo, hi) = (v.iter().copied().fold(f64::MAX, f64::min), v.iter().copied().fold(f64::MIN, f64::max));
            (lo.floor(), if hi.ceil() > lo.floor() { hi.ceil() } else { lo.floor() + 1.0 })
        };
        let (lo, hi) = span(all.iter().map(|(_, y)| log(*y)).collect());
        let (left, right) = span(all.iter().map(|(x, _)| log(*x)).collect());
        let px = |x: f64| x0 + (log(x) - left) / (right - left) * pw;
        let py = |y: f64| y0 + ph - (log(y) - lo) / (hi - lo) * ph;
        out += &format!("<text x=\"{x0}\" y=\"{}\" font-weight=\"bold\">{title}</text>\n", y0 - 8.0);
        out += &format!("<rect x=\"{x0}\" y=\"{y0}\" width=\"{pw}\" height=\"{ph}\" fill=\"none\" stroke=\"#999\"/>\n");
        for e in lo as i32..=hi as i32 {
            let y = py(10f64.powi(e));
            out += &format!("<line x1=\"{x0}\" y1=\"{y}\" x2=\"{}\" y2=\"{y}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\n", x0 + pw, x0 - 4.0, y + 4.0, 10f64.powi(e));
        }
        for e in left as i32..=right as i32 {
            let x = px(10f64.powi(e));
            out += &format!("<text x=\"{x}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n", y0 + ph + 13.0, 10f64.powi(e));
        }
        for (peer, color) in peers {
            let Some(points) = data.get(&(*measure, peer)) else { continue };
            let mut points = points.clone();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            let line: Vec<String> = points.iter().map(|(x, y)| format!("{:.1},{:.1}", px(*x), py(*y))).collect();
            out += &format!("<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/>\n", line.join(" "));
            for p in &points {
                out += &format!("<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{color}\"/>\n", px(p.0), py(p.1));
            }
        }
    }
    out + "</svg>\n"
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arg = |n: usize| args.get(n).map(String::as_str).unwrap_or_default();
    let num = |n: usize| arg(n).parse::<u32>().unwrap_or_else(|_| panic!("{:?} is no number", arg(n)));
    match arg(0) {
        "serve" => serve(),
        "load" => load(arg(1), arg(2), num(3), num(4)),
        "large" => {
            let mut api = Api::open(arg(1));
            make(&mut api, LARGE, (0..10_000).map(|n| endpoint(4 * LARGE + n)));
        }
        // Another of its endpoints, in its last slice.
        "change-large" => {
            let (mut api, turn) = (Api::open(arg(1)), num(2));
            let list = (9_900..10_000).map(|n| endpoint(4 * LARGE + if n == 9_999 { 20_000 + turn } else { n }));
            api.must("PATCH", &format!("{SLICES}/s{LARGE}-99"), MERGE, &format!(r#"{{"endpoints":[{}]}}"#, endpoints(list)));
        }
        // Service `n` and a sample of all are reachable; since the time given in milliseconds of the machine's clock.
        "ready" => {
            let count = num(1);
            let step = (count / 50).max(1);
            let all = (0..count).step_by(step as usize).chain([count - 1, SINGLE, SINGLE + 99]);
            println!("{:.1}", until(Instant::now(), all.map(|n| (vip(n), None)).collect()));
        }
        "change" => println!("{:.2}", change(arg(1), num(2), num(3))),
        // A patch that nobody waits for.
        "patch" => {
            let (mut api, turn) = (Api::open(arg(1)), num(2));
            let body = format!(r#"{{"endpoints":[{}]}}"#, endpoints([endpoint(4 * SINGLE + 1000 * turn)].into_iter()));
            api.must("PATCH", &format!("{SLICES}/s{SINGLE}-0"), MERGE, &body);
        }
        "met" => {
            let want = endpoint(4 * SINGLE + 1000 * num(1));
            println!("{:.1}", until(Instant::now(), vec![(vip(SINGLE), Some(want))]));
        }
        "add" => {
            let (mut api, n) = (Api::open(arg(1)), 650_000 + num(2));
            let began = Instant::now();
            make(&mut api, n, (0..4).map(|i| endpoint(4 * n + i)));
            println!("{:.2}", until(began, vec![(vip(n), None)]));
        }
        "latency" => {
            let (p50, p99) = latency(vip(num(1)), 3);
            println!("{p50:.0} {p99:.0}");
        }
        "rate" => println!("{:.0}", rate(vip(num(1)), 3)),
        "flow" => println!("{:.2}", flow(vip(FLOW), 3)),
        "svg" => print!("{}", svg(&std::fs::read_to_string(arg(1)).expect("csv"))),
        other => panic!("{other:?}: serve, load, large, change-large, ready, change, patch, met, add, latency, rate, flow or svg"),
    }
}
