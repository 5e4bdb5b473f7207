//! The two ends of a command that runs for a client: what it is fed, what it says; by WebSocket or by SPDY.
//!
//! By WebSocket (KEP-4006, `v5.channel.k8s.io`) the first byte of a message is its channel: 0 to 2 the standard streams, 3
//! how it ended, 4 the size of the terminal, 255 the end of a channel. By SPDY each is a stream, named by a header.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::spdy;
use super::websocket::{self, Message};

/// How long a client may take to open its streams.
const OPENING: Duration = Duration::from_secs(30);
/// Pieces that wait for their reader.
const QUEUE: usize = 16;

/// The protocols over WebSocket, the best first.
pub const WEBSOCKET: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
/// Those over SPDY.
pub const SPDY: [&str; 1] = ["v4.channel.k8s.io"];

/// What a client sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum In {
    /// Standard input.
    Stdin(Bytes),
    /// Its end.
    StdinEnd,
    /// The terminal's columns and rows.
    Resize(u16, u16),
}

/// What it is sent.
#[derive(Debug, Clone, PartialEq)]
pub enum Out {
    /// Standard output.
    Stdout(Bytes),
    /// Standard error.
    Stderr(Bytes),
    /// How it ended, a `meta/v1` Status: the last thing.
    Status(Value),
    /// The answer to a WebSocket ping.
    Pong(Bytes),
}

/// Which streams a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wanted {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error, by itself: never with a terminal.
    pub stderr: bool,
    /// A terminal.
    pub tty: bool,
}

/// A client, however it speaks. `input` ends when it is gone.
#[derive(Debug)]
pub struct Session {
    /// From it.
    pub input: mpsc::Receiver<In>,
    /// To it.
    pub output: mpsc::Sender<Out>,
}

fn resize(data: &[u8]) -> Option<In> {
    let v: Value = serde_json::from_slice(data).ok()?;
    let side = |k: &str| u16::try_from(v[k].as_u64()?).ok();
    Some(In::Resize(side("Width")?, side("Height")?))
}

/// A client that speaks WebSocket.
pub fn websocket(io: impl AsyncRead + AsyncWrite + Send + 'static) -> Session {
    let (mut read, mut write) = tokio::io::split(io);
    let (input_tx, input) = mpsc::channel(QUEUE);
    let (output, mut said) = mpsc::channel(QUEUE);
    let pong = output.downgrade();
    tokio::spawn(async move {
        while let Some(out) = said.recv().await {
            let (bytes, last) = match &out {
                Out::Stdout(b) => (websocket::binary(&[&[1], b]), false),
                Out::Stderr(b) => (websocket::binary(&[&[2], b]), false),
                Out::Status(v) => (websocket::binary(&[&[3], v.to_string().as_bytes()]), true),
                Out::Pong(b) => (websocket::pong(b), false),
            };
            if write.write_all(&bytes).await.is_err() || last {
                break;
            }
        }
        let _ = write.write_all(&websocket::close(websocket::NORMAL)).await;
        let _ = write.shutdown().await;
    });
    tokio::spawn(async move {
        let mut decoder = websocket::Decoder::default();
        loop {
            let message = match decoder.next() {
                Ok(Some(m)) => m,
                Ok(None) => match read.read_buf(decoder.buffer()).await {
                    Ok(0) | Err(_) => return,
                    Ok(_) => continue,
                },
                Err(e) => return tracing::debug!("WebSocket ended: {e}"),
            };
            let said = match message {
                Message::Data(b) => match (b.first(), b.get(1)) {
                    (Some(0), _) => Some(In::Stdin(b.slice(1..))),
                    (Some(4), _) => resize(&b[1..]),
                    (Some(255), Some(0)) => Some(In::StdinEnd),
                    _ => None,
                },
                Message::Ping(b) => {
                    if let Some(out) = pong.upgrade() {
                        let _ = out.send(Out::Pong(b)).await;
                    }
                    None
                }
                Message::Pong => None,
                Message::Close => return,
            };
            if let Some(s) = said {
                // Nobody reads: a command that ended, or takes no input. The client is still listened to.
                let _ = input_tx.send(s).await;
            }
        }
    });
    Session { input, output }
}

/// A client that speaks SPDY; `None` when it does not open the streams that it asked for.
pub async fn spdy(io: impl AsyncRead + AsyncWrite + Send + 'static, wanted: Wanted) -> Option<Session> {
    let mut connection = spdy::Connection::new(io);
    let needed = [
        ("error", true),
        ("stdin", wanted.stdin),
        ("stdout", wanted.stdout),
        ("stderr", wanted.stderr && !wanted.tty),
        ("resize", wanted.tty),
    ];
    let needed: Vec<&str> = needed.into_iter().filter(|(_, n)| *n).map(|(k, _)| k).collect();
    let mut streams: HashMap<String, spdy::Stream> = HashMap::new();
    let opening = async {
        while !needed.iter().all(|k| streams.contains_key(*k)) {
            let s = connection.accept().await?;
            let kind = s.header("streamtype").unwrap_or_default().to_owned();
            streams.insert(kind, s);
        }
        Some(())
    };
    tokio::time::timeout(OPENING, opening).await.ok()??;

    let (input_tx, input) = mpsc::channel(QUEUE);
    let (output, mut said) = mpsc::channel(QUEUE);
    let mut take = |kind: &str| streams.remove(kind).map(spdy::Stream::split);
    if let Some((mut data, _)) = take("stdin") {
        let tx = input_tx.clone();
        tokio::spawn(async move {
            while let Some(b) = data.recv().await {
                if tx.send(In::Stdin(b)).await.is_err() {
                    return;
                }
            }
            let _ = tx.send(In::StdinEnd).await;
        });
    }
    if let Some((mut data, _)) = take("resize") {
        let tx = input_tx.clone();
        tokio::spawn(async move {
            let mut text = Vec::new();
            while let Some(b) = data.recv().await {
                // One JSON object after the other, each in one line.
                text.extend_from_slice(&b);
                if let Some(s) = resize(&text) {
                    let _ = tx.send(s).await;
                    text.clear();
                } else if text.len() > 1024 {
                    return;
                }
            }
        });
    }
    let sender = |s: Option<(mpsc::Receiver<Bytes>, spdy::Sender)>| s.map(|(_, say)| say);
    let (stdout, stderr, error) = (sender(take("stdout")), sender(take("stderr")), sender(take("error")));
    tokio::spawn(async move {
        loop {
            let out = tokio::select! {
                o = said.recv() => o,
                // No stream is opened any more: this is the client's end.
                s = connection.accept() => match s {
                    Some(_) => continue,
                    None => return drop(input_tx),
                },
            };
            let (to, data) = match out {
                Some(Out::Stdout(b)) => (&stdout, b),
                Some(Out::Stderr(b)) => (&stderr, b),
                Some(Out::Status(v)) => {
                    if let Some(s) = &error {
                        let _ = s.send(v.to_string().into()).await;
                    }
                    break;
                }
                Some(Out::Pong(_)) => continue,
                None => break,
            };
            if let Some(s) = to
                && s.send(data).await.is_err()
            {
                return;
            }
        }
        for s in [error, stdout, stderr].iter().flatten() {
            let _ = s.finish().await;
        }
    });
    Some(Session { input, output })
}

/// Bytes that a client sends inside WebSocket messages, as a stream of bytes (`SPDY/3.1+portforward.k8s.io`, KEP-4006).
pub fn tunnel(io: impl AsyncRead + AsyncWrite + Send + 'static) -> tokio::io::DuplexStream {
    let (mut read, mut write) = tokio::io::split(io);
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let (mut from_us, mut to_us) = tokio::io::split(theirs);
    let (pongs, mut to_pong) = mpsc::channel::<Bytes>(QUEUE);
    tokio::spawn(async move {
        let mut buf = bytes::BytesMut::new();
        loop {
            buf.clear();
            buf.reserve(32 << 10);
            let frame = tokio::select! {
                n = from_us.read_buf(&mut buf) => match n {
                    Ok(0) | Err(_) => break,
                    Ok(_) => websocket::binary(&[&buf]),
                },
                Some(p) = to_pong.recv() => websocket::pong(&p),
            };
            if write.write_all(&frame).await.is_err() {
                return;
            }
        }
        let _ = write.write_all(&websocket::close(websocket::NORMAL)).await;
        let _ = write.shutdown().await;
    });
    tokio::spawn(async move {
        let mut decoder = websocket::Decoder::default();
        loop {
            match decoder.next() {
                Ok(Some(Message::Data(b))) if to_us.write_all(&b).await.is_ok() => {}
                Ok(Some(Message::Ping(b))) => drop(pongs.send(b).await),
                Ok(Some(Message::Pong)) => {}
                Ok(None) => match read.read_buf(decoder.buffer()).await {
                    Ok(0) | Err(_) => break,
                    Ok(_) => {}
                },
                Ok(Some(Message::Data(_) | Message::Close)) | Err(_) => break,
            }
        }
        let _ = to_us.shutdown().await;
    });
    ours
}
