//! What the machine tells the host over its second serial port: lines that begin with a word of their own, so that
//! nothing else on the line can be taken for a result. The first serial port is the kernel's console.
//!
//! ```text
//! seaway-vm ready 6.1.0-56-cloud-amd64
//! seaway-vm start links::vlan
//! seaway-vm result links::vlan passed 41 12      (milliseconds, then bytes of output that follow)
//! hello world
//! seaway-vm end
//! ```

/// The first word of every line.
const WORD: &str = "seaway-vm";
/// What a test may print; the end of it is kept.
pub const LONGEST_OUTPUT: usize = 256 * 1024;
/// A longer line is no line of ours.
const LONGEST_LINE: usize = 4096;

/// How a test ended inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Whether its process ended with success in time.
    pub passed: bool,
    /// How long it took.
    pub millis: u64,
    /// What it printed, the end of it.
    pub output: Vec<u8>,
}

impl Outcome {
    /// The output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.output).into_owned()
    }
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Up; tests come next.
    Ready {
        /// The kernel's release, `uname -r`.
        release: String,
    },
    /// A test begins.
    Started {
        /// Its name.
        name: String,
    },
    /// A test has ended.
    Result {
        /// Its name.
        name: String,
        /// How.
        outcome: Outcome,
    },
    /// The machine's first process cannot go on.
    Broken {
        /// Why.
        why: String,
    },
    /// All tests have ended.
    End,
}

impl Event {
    /// The bytes that say it. Names and reasons are put on one line.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let line = |s: &str| s.replace(['\n', '\r'], " ");
        match self {
            Self::Ready { release } => format!("{WORD} ready {}\n", line(release)).into_bytes(),
            Self::Started { name } => format!("{WORD} start {}\n", line(name)).into_bytes(),
            Self::Result { name, outcome } => {
                let output = &outcome.output[outcome.output.len().saturating_sub(LONGEST_OUTPUT)..];
                let how = if outcome.passed { "passed" } else { "failed" };
                let head = format!("{WORD} result {} {how} {} {}\n", line(name), outcome.millis, output.len());
                [head.as_bytes(), output, b"\n"].concat()
            }
            Self::Broken { why } => format!("{WORD} broken {}\n", line(why)).into_bytes(),
            Self::End => format!("{WORD} end\n").into_bytes(),
        }
    }
}

/// Puts a stream of bytes back together.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
}

impl Decoder {
    /// Takes bytes as they come, gives the messages they complete. Lines that are not ours are skipped.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Event> {
        self.bytes.extend_from_slice(bytes);
        let mut events = Vec::new();
        let mut from = 0;
        while let Some(len) = self.bytes[from..].iter().position(|b| *b == b'\n') {
            let line = String::from_utf8_lossy(&self.bytes[from..from + len]).into_owned();
            let mut next = from + len + 1;
            match parse(line.trim_end_matches('\r')) {
                Some(Line::Whole(event)) => events.push(event),
                Some(Line::Output { name, passed, millis, len }) => {
                    let Some(output) = self.bytes.get(next..next + len + 1) else { break };
                    let outcome = Outcome { passed, millis, output: output[..len].to_vec() };
                    events.push(Event::Result { name, outcome });
                    next += len + 1;
                }
                None => {}
            }
            from = next;
        }
        self.bytes.drain(..from);
        if self.bytes.len() > LONGEST_OUTPUT + 2 * LONGEST_LINE {
            // No message is as long: what waits here is none.
            self.bytes.clear();
        }
        events
    }
}

enum Line {
    Whole(Event),
    Output { name: String, passed: bool, millis: u64, len: usize },
}

fn parse(line: &str) -> Option<Line> {
    if line.len() > LONGEST_LINE {
        return None;
    }
    let rest = line.strip_prefix(WORD)?.strip_prefix(' ')?;
    let (verb, rest) = rest.split_once(' ').unwrap_or((rest, ""));
    Some(match verb {
        "ready" => Line::Whole(Event::Ready { release: rest.to_owned() }),
        "start" => Line::Whole(Event::Started { name: rest.to_owned() }),
        "broken" => Line::Whole(Event::Broken { why: rest.to_owned() }),
        "end" => Line::Whole(Event::End),
        "result" => {
            let mut words = rest.rsplitn(4, ' ');
            let len = words.next()?.parse().ok().filter(|l| *l <= LONGEST_OUTPUT)?;
            let millis = words.next()?.parse().ok()?;
            let passed = match words.next()? {
                "passed" => true,
                "failed" => false,
                _ => return None,
            };
            Line::Output { name: words.next()?.to_owned(), passed, millis, len }
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Event> {
        let result = |passed, output: &[u8]| Event::Result {
            name: "links::vlan".into(),
            outcome: Outcome { passed, millis: 41, output: output.to_vec() },
        };
        vec![
            Event::Ready { release: "6.1.0".into() },
            Event::Started { name: "links::vlan".into() },
            result(true, b""),
            result(false, b"seaway-vm end\nseaway-vm result x passed 1 0\n\n\xff\x00"),
            Event::Broken { why: "no /dev/ttyS1".into() },
            Event::End,
        ]
    }

    #[test]
    fn every_split_gives_the_same_messages_and_noise_gives_none() {
        let mut bytes = b"SeaBIOS\r\nseaway-vm what\nseaway-vm result x maybe 1 2\n".to_vec();
        for e in all() {
            bytes.extend(e.encode());
        }
        for at in 0..=bytes.len() {
            let mut d = Decoder::default();
            let mut events = d.push(&bytes[..at]);
            events.extend(d.push(&bytes[at..]));
            assert_eq!(events, all(), "split at {at}");
        }
        let mut d = Decoder::default();
        let one_by_one: Vec<Event> = bytes.iter().flat_map(|b| d.push(&[*b])).collect();
        assert_eq!(one_by_one, all());
    }

    #[test]
    fn memory_and_output_are_bounded() {
        let mut d = Decoder::default();
        for _ in 0..64 {
            assert_eq!(d.push(&[b'x'; 65536]), []);
            assert!(d.bytes.len() <= LONGEST_OUTPUT + 2 * LONGEST_LINE + 65536);
        }
        let outcome = Outcome { passed: true, millis: 0, output: vec![b'y'; LONGEST_OUTPUT + 5] };
        let bytes = Event::Result { name: "n".into(), outcome }.encode();
        let events = Decoder::default().push(&bytes);
        assert!(matches!(&events[..], [Event::Result { outcome, .. }] if outcome.output.len() == LONGEST_OUTPUT));
    }
}
