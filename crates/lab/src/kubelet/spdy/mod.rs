//! SPDY/3.1, the protocol inside which clients forward ports, and run commands when they do not use WebSocket.
//!
//! There is no flow control, as there is none on the other side (moby/spdystream): a stream whose reader is slow holds up
//! the connection it is in.

mod frame;
mod headers;

use std::collections::HashMap;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, watch};

use frame::{CANCEL, Decoder, Frame, REFUSED, Say, encode};
use headers::{Headers, Packer};

/// Streams of a connection at a time; more are refused.
const MAX_STREAMS: usize = 1024;
/// Pieces of data that wait for the reader of a stream.
const QUEUE: usize = 32;
/// The largest piece of data sent in one frame.
const PIECE: usize = 32 << 10;

/// What a client may not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadSpdy {
    /// A frame that is none of SPDY/3.
    #[error("a frame is not of SPDY/3")]
    Frame,
    /// A header block that cannot be unpacked.
    #[error("a header block cannot be unpacked")]
    Compression,
    /// Longer than is taken here.
    #[error("a frame or header block is too long")]
    TooLong,
}

/// A stream that a client opened.
#[derive(Debug)]
pub struct Stream {
    id: u32,
    headers: Headers,
    data: mpsc::Receiver<Bytes>,
    say: Sender,
}

/// The server's side of a stream.
#[derive(Debug, Clone)]
pub struct Sender {
    id: u32,
    out: mpsc::Sender<Say>,
}

/// The connection is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Over;

impl Sender {
    async fn say(&self, say: Say) -> Result<(), Over> {
        self.out.send(say).await.map_err(|_| Over)
    }

    /// Sends data.
    ///
    /// # Errors
    /// [`Over`].
    pub async fn send(&self, mut data: Bytes) -> Result<(), Over> {
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(PIECE));
            self.say(Say::Data(self.id, piece, false)).await?;
        }
        Ok(())
    }

    /// Says that nothing more comes.
    ///
    /// # Errors
    /// [`Over`].
    pub async fn finish(&self) -> Result<(), Over> {
        self.say(Say::Data(self.id, Bytes::new(), true)).await
    }

    /// Ends the stream in both directions, in the middle.
    ///
    /// # Errors
    /// [`Over`].
    pub async fn reset(&self) -> Result<(), Over> {
        self.say(Say::Reset(self.id, CANCEL)).await
    }
}

impl Stream {
    /// Its number: odd, growing.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }
    /// A header, by its name in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }
    /// What the client sends, to its end, and what sends to it.
    #[must_use]
    pub fn split(self) -> (mpsc::Receiver<Bytes>, Sender) {
        (self.data, self.say)
    }
}

/// A connection; it ends when this is dropped and every stream of it is.
#[derive(Debug)]
pub struct Connection {
    streams: mpsc::Receiver<Stream>,
    _open: watch::Sender<()>,
}

impl Connection {
    /// Serves a client behind `io`.
    pub fn new(io: impl AsyncRead + AsyncWrite + Send + 'static) -> Self {
        let (read, write) = tokio::io::split(io);
        let (out, say) = mpsc::channel(QUEUE);
        let (new, streams) = mpsc::channel(QUEUE);
        let (open, closed) = watch::channel(());
        tokio::spawn(writer(write, say));
        tokio::spawn(async move {
            let mut closed = closed;
            let reader = Reader { decoder: Decoder::default(), out, new, streams: HashMap::new() };
            tokio::select! {
                r = reader.run(read) => if let Err(e) = r {
                    tracing::debug!("SPDY connection ended: {e}");
                },
                // The other end is dropped: nothing is ever sent.
                _ = closed.changed() => {}
            }
        });
        Self { streams, _open: open }
    }

    /// The next stream; `None` when the client is gone.
    pub async fn accept(&mut self) -> Option<Stream> {
        self.streams.recv().await
    }
}

async fn writer(mut io: impl AsyncWrite + Unpin, mut say: mpsc::Receiver<Say>) {
    let mut packer = Packer::default();
    while let Some(s) = say.recv().await {
        if io.write_all(&encode(&mut packer, &s)).await.is_err() || say.is_empty() && io.flush().await.is_err() {
            return;
        }
    }
    let _ = io.write_all(&encode(&mut packer, &Say::Away)).await;
    let _ = io.shutdown().await;
}

struct Reader {
    decoder: Decoder,
    out: mpsc::Sender<Say>,
    new: mpsc::Sender<Stream>,
    /// Those whose client has more to say.
    streams: HashMap<u32, mpsc::Sender<Bytes>>,
}

impl Reader {
    async fn run(mut self, mut io: impl AsyncRead + Unpin) -> Result<(), BadSpdy> {
        loop {
            while let Some(f) = self.decoder.next()? {
                if self.take(f).await.is_none() {
                    return Ok(());
                }
            }
            match io.read_buf(self.decoder.buffer()).await {
                Ok(0) | Err(_) => return Ok(()),
                Ok(_) => {}
            }
        }
    }

    /// Acts on a frame; `None` ends the connection.
    async fn take(&mut self, f: Frame) -> Option<()> {
        match f {
            Frame::Open(id, headers, fin) => {
                self.streams.retain(|_, s| !s.is_closed());
                if self.streams.len() >= MAX_STREAMS || self.streams.contains_key(&id) {
                    return self.out.send(Say::Reset(id, REFUSED)).await.ok();
                }
                self.out.send(Say::Take(id)).await.ok()?;
                let (tx, data) = mpsc::channel(QUEUE);
                if !fin {
                    self.streams.insert(id, tx);
                }
                let say = Sender { id, out: self.out.clone() };
                self.new.send(Stream { id, headers, data, say }).await.ok()
            }
            Frame::Data(id, data, fin) => {
                if let Some(s) = self.streams.get(&id)
                    && !data.is_empty()
                {
                    // Nobody reads: what comes is dropped, as after a shutdown of reading.
                    let _ = s.send(data).await;
                }
                if fin {
                    self.streams.remove(&id);
                }
                Some(())
            }
            Frame::Reset(id) => {
                self.streams.remove(&id);
                Some(())
            }
            Frame::Ping(id) => self.out.send(Say::Pong(id)).await.ok(),
            Frame::Away => None,
            Frame::Other => Some(()),
        }
    }
}
