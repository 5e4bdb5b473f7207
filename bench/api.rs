//! A narrow client of an API server behind a unix socket (kubectl proxy), or of etcd's JSON gateway, for the programs
//! beside it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

trait Wire: Read + Write + Send {}
impl<T: Read + Write + Send> Wire for T {}

/// One keep-alive connection to the API.
pub struct Api(Box<dyn Wire>);

impl Api {
    /// Connects: a unix socket's path, or address and port.
    pub fn open(to: &str) -> Self {
        let wire = if to.starts_with('/') {
            UnixStream::connect(to).map(|s| Box::new(s) as Box<dyn Wire>)
        } else {
            TcpStream::connect(to).map(|s| Box::new(s) as Box<dyn Wire>)
        };
        Self(wire.unwrap_or_else(|e| panic!("{to}: {e}")))
    }

    /// Sends one request and gives status and body.
    pub fn send(&mut self, method: &str, path: &str, kind: &str, body: &str) -> (u16, String) {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: api\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        self.0.write_all(&[head.as_bytes(), body.as_bytes()].concat()).expect("send");
        let mut buf = Vec::new();
        let mut part = [0; 16 << 10];
        let end = loop {
            if let Some(n) = buf.windows(4).position(|w| w == b"\r\n\r\n") {
                break n + 4;
            }
            let n = self.0.read(&mut part).expect("answer");
            assert!(n > 0, "the API closed the connection");
            buf.extend_from_slice(&part[..n]);
        };
        let head = String::from_utf8_lossy(&buf[..end]).to_lowercase();
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("status");
        let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")).and_then(|s| s.trim().parse().ok());
        let mut body = buf.split_off(end);
        match length {
            Some(len) => {
                let len: usize = len;
                while body.len() < len {
                    let n = self.0.read(&mut part).expect("answer");
                    body.extend_from_slice(&part[..n]);
                }
            }
            // Chunked: nothing here reads what it says.
            None => {
                while !body.ends_with(b"0\r\n\r\n") {
                    let n = self.0.read(&mut part).expect("answer");
                    body.extend_from_slice(&part[..n]);
                }
            }
        }
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    /// A request that must succeed, or be done already.
    pub fn must(&mut self, method: &str, path: &str, kind: &str, body: &str) {
        let (status, answer) = self.send(method, path, kind, body);
        assert!(status < 300 || status == 409, "{method} {path}: {status} {answer}");
    }
}

/// Bodies of requests.
pub const JSON: &str = "application/json";
/// Bodies of merge patches.
pub const MERGE: &str = "application/merge-patch+json";
