//! What a container printed, as `kubectl logs` asks for it.
//!
//! A container writes straight into its file; beside it the shim notes how long the file was when ([`crate::shim::Stamp`]).
//! A line's time is that of the first note after its end.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use crate::shim::{RunFiles, Stamp};

/// How often a followed log is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Bytes read at a time; a longer line comes in pieces.
const PIECE: usize = 64 << 10;

/// What of a log is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Go on until the container ends.
    pub follow: bool,
    /// Of the run before.
    pub previous: bool,
    /// Each line after its time.
    pub timestamps: bool,
    /// Only so many lines.
    pub tail: Option<u64>,
    /// Only what was printed since (nanoseconds of the epoch).
    pub since: Option<i64>,
    /// Only so many bytes.
    pub limit: Option<u64>,
}

impl Options {
    /// From the parameters of a request; `now` in nanoseconds of the epoch.
    ///
    /// # Errors
    /// Which parameter is wrong.
    pub fn parse(get: impl Fn(&str) -> Option<String>, now: i64) -> Result<Self, String> {
        let number = |key: &str| match get(key).filter(|v| !v.is_empty()) {
            None => Ok(None),
            Some(v) => v.parse::<u64>().map(Some).map_err(|_| format!("{key}: {v:?} is no number of 0 or more")),
        };
        let flag = |key: &str| get(key).is_some_and(|v| matches!(v.as_str(), "" | "1" | "true"));
        let ago = number("sinceSeconds")?;
        let since = match (ago, get("sinceTime").filter(|v| !v.is_empty())) {
            (Some(_), Some(_)) => return Err("at most one of sinceTime and sinceSeconds may be given".into()),
            (Some(s), None) => {
                Some(now.saturating_sub(i64::try_from(s).unwrap_or(i64::MAX).saturating_mul(1_000_000_000)))
            }
            (None, Some(t)) => {
                let t: Timestamp = t.parse().map_err(|_| format!("sinceTime: {t:?} is no time of RFC 3339"))?;
                Some(i64::try_from(t.as_nanosecond()).unwrap_or(i64::MAX))
            }
            (None, None) => None,
        };
        Ok(Self {
            follow: flag("follow"),
            previous: flag("previous"),
            timestamps: flag("timestamps"),
            tail: number("tailLines")?,
            since,
            limit: number("limitBytes")?,
        })
    }
}

/// Where the line begins that the byte at `at` is in.
fn line_start(f: &File, at: u64) -> std::io::Result<u64> {
    let mut end = at;
    let mut buf = vec![0; PIECE];
    while end > 0 {
        let from = end.saturating_sub(PIECE as u64);
        let part = &mut buf[..usize::try_from(end - from).unwrap_or_default()];
        f.read_exact_at(part, from)?;
        if let Some(i) = part.iter().rposition(|b| *b == b'\n') {
            return Ok(from + i as u64 + 1);
        }
        end = from;
    }
    Ok(0)
}

/// Where the last `lines` lines of the first `len` bytes begin; an unfinished line is one.
fn tail_start(f: &File, len: u64, lines: u64) -> std::io::Result<u64> {
    let mut at = len;
    for _ in 0..lines {
        if at == 0 {
            break;
        }
        // The line that ends here: look for its beginning before its own newline.
        at = line_start(f, at - 1)?;
    }
    Ok(at)
}

/// The notes of a log, by position: found by halving, not read into memory.
struct Times {
    file: Option<File>,
    /// The note that the last answer was, and where the one before it stood.
    known: Option<(u64, Stamp)>,
}

impl Times {
    fn open(path: &Path) -> Self {
        Self { file: File::open(path).ok(), known: None }
    }

    fn note(&self, i: u64) -> Option<Stamp> {
        let mut b = [0; Stamp::SIZE];
        self.file.as_ref()?.read_exact_at(&mut b, i * Stamp::SIZE as u64).ok()?;
        Some(Stamp::from_bytes(b))
    }

    /// The first note of which `yes`, and the one before it; all before it are not.
    fn first(&self, yes: impl Fn(&Stamp) -> bool) -> (Option<Stamp>, Option<Stamp>) {
        let len = self.file.as_ref().and_then(|f| f.metadata().ok()).map_or(0, |m| m.len());
        let (mut low, mut high) = (0, len / Stamp::SIZE as u64);
        while low < high {
            let mid = low + (high - low) / 2;
            match self.note(mid) {
                Some(s) if !yes(&s) => low = mid + 1,
                _ => high = mid,
            }
        }
        (low.checked_sub(1).and_then(|i| self.note(i)), self.note(low))
    }

    /// When the bytes up to `end` were there; now, if no note says.
    fn at(&mut self, end: u64) -> i64 {
        if let Some((from, s)) = &self.known
            && *from < end
            && end <= s.len
        {
            return s.nanos;
        }
        let (before, note) = self.first(|s| s.len >= end);
        self.known = note.map(|n| (before.map_or(0, |b| b.len), n));
        note.map_or_else(now, |n| n.nanos)
    }
}

/// Nanoseconds of the epoch.
#[must_use]
pub fn now() -> i64 {
    let t = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(t.as_nanos()).unwrap_or(i64::MAX)
}

/// Where to begin.
fn start(f: &File, times: &Times, o: &Options) -> std::io::Result<u64> {
    let len = f.metadata()?.len();
    let mut from = match o.tail {
        Some(n) => tail_start(f, len, n)?,
        None => 0,
    };
    if let Some(since) = o.since {
        // What the last note before knew of is older; a line unfinished then is not.
        let known = match times.first(|s| s.nanos >= since) {
            (Some(before), _) => before.len.min(len),
            (None, _) => 0,
        };
        from = from.max(if known == len && !o.follow { len } else { line_start(f, known)? });
    }
    Ok(from)
}

/// Gives what is asked for, piece by piece, to `out`, until that says no; `over` says that nothing more is written.
///
/// # Errors
/// When the log cannot be read.
pub fn copy(
    files: &RunFiles,
    o: &Options,
    over: impl Fn() -> bool,
    mut out: impl FnMut(Option<Vec<u8>>) -> bool,
) -> std::io::Result<()> {
    let mut times = Times::open(&files.times());
    let file = File::open(files.log())?;
    let mut at = start(&file, &times, o)?;
    let mut reader = BufReader::with_capacity(PIECE, file);
    reader.seek(SeekFrom::Start(at))?;
    let mut left = o.limit.unwrap_or(u64::MAX);
    if left == 0 {
        return Ok(());
    }
    let (mut line, mut batch) = (Vec::new(), Vec::new());
    let mut fresh = true;
    loop {
        // Asked first, so that what is written until then is read below.
        let last = !o.follow || over();
        loop {
            let n = reader.by_ref().take((PIECE - line.len()) as u64).read_until(b'\n', &mut line)?;
            let whole = line.last() == Some(&b'\n') || line.len() == PIECE;
            // An unfinished line waits for its end, unless there is none.
            if line.is_empty() || !whole && !last && o.timestamps {
                break;
            }
            at += line.len() as u64;
            if o.timestamps && fresh {
                let t = Timestamp::from_nanosecond(times.at(at).into()).unwrap_or_default();
                batch.extend(format!("{t} ").bytes());
            }
            fresh = line.last() == Some(&b'\n');
            batch.append(&mut line);
            if batch.len() >= PIECE || batch.len() as u64 >= left {
                batch.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                left -= batch.len() as u64;
                if !out(Some(std::mem::take(&mut batch))) || left == 0 {
                    return Ok(());
                }
            }
            if n == 0 {
                break;
            }
        }
        left -= batch.len() as u64;
        if !batch.is_empty() && !out(Some(std::mem::take(&mut batch))) {
            return Ok(());
        }
        if last || !out(None) {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A log of these writes, each at its second.
    fn log(dir: &Path, writes: &[(i64, &str)]) -> RunFiles {
        let f = RunFiles::new(dir, 0);
        let (mut text, mut notes) = (String::new(), Vec::new());
        for (t, w) in writes {
            text.push_str(w);
            notes.extend(Stamp { len: text.len() as u64, nanos: t * 1_000_000_000 }.to_bytes());
        }
        std::fs::write(f.log(), text).unwrap();
        std::fs::write(f.times(), notes).unwrap();
        f
    }

    fn read(f: &RunFiles, o: &Options) -> String {
        let mut v = Vec::new();
        copy(
            f,
            o,
            || true,
            |p| {
                v.extend(p.unwrap_or_default());
                true
            },
        )
        .unwrap();
        String::from_utf8(v).unwrap()
    }

    #[test]
    fn what_is_asked_for_and_no_more() {
        let d = tempfile::tempdir().unwrap();
        let f = log(d.path(), &[(1, "a\nb\n"), (2, "c\nhalf "), (5, "line\n"), (9, "end")]);
        let all = Options::default();
        let since = |s: i64| Options { since: Some(s * 1_000_000_000), ..Options::default() };
        assert_eq!(read(&f, &all), "a\nb\nc\nhalf line\nend");
        assert_eq!(read(&f, &since(1)), "a\nb\nc\nhalf line\nend");
        assert_eq!(read(&f, &since(2)), "c\nhalf line\nend");
        assert_eq!(read(&f, &since(3)), "half line\nend", "a line is as old as its end");
        assert_eq!(read(&f, &since(6)), "end");
        assert_eq!(read(&f, &since(10)), "");
        for (n, want) in [(0, ""), (1, "end"), (2, "half line\nend"), (99, "a\nb\nc\nhalf line\nend")] {
            assert_eq!(read(&f, &Options { tail: Some(n), ..all.clone() }), want);
        }
        assert_eq!(read(&f, &Options { limit: Some(3), ..all.clone() }), "a\nb");
        assert_eq!(read(&f, &Options { tail: Some(3), ..since(3) }), "half line\nend");
        assert_eq!(
            read(&f, &Options { timestamps: true, tail: Some(3), ..all }),
            "1970-01-01T00:00:02Z c\n1970-01-01T00:00:05Z half line\n1970-01-01T00:00:09Z end"
        );
    }

    #[test]
    fn a_followed_log_goes_on_to_the_end_of_its_container() {
        use std::io::Write;
        let d = tempfile::tempdir().unwrap();
        let f = log(d.path(), &[(1, "a\n")]);
        let o = Options { follow: true, ..Options::default() };
        let turns = std::cell::Cell::new(0);
        let mut v = Vec::new();
        let over = || {
            let n = turns.replace(turns.get() + 1);
            let mut w = File::options().append(true).open(f.log()).unwrap();
            write!(w, "{n}").unwrap();
            n == 2
        };
        copy(&f, &o, over, |p| {
            v.extend(p.unwrap_or_default());
            true
        })
        .unwrap();
        assert_eq!(String::from_utf8(v).unwrap(), "a\n012");
    }

    #[test]
    fn parameters_are_checked() {
        let parse = |key: &'static str, v: &'static str| {
            Options::parse(move |k| (k == key).then(|| v.to_owned()), 100_000_000_000)
        };
        assert_eq!(parse("sinceSeconds", "10").unwrap().since, Some(90_000_000_000));
        assert_eq!(parse("sinceTime", "1970-01-01T00:00:01Z").unwrap().since, Some(1_000_000_000));
        assert!(parse("tailLines", "-1").unwrap_err().contains("tailLines"));
        assert!(parse("sinceTime", "yesterday").unwrap_err().contains("RFC 3339"));
        assert!(parse("follow", "true").unwrap().follow);
    }

    proptest! {
        #[test]
        fn the_tail_is_the_last_lines(text in "[a\n]{0,200}", n in 0u64..40) {
            let d = tempfile::tempdir().unwrap();
            let f = log(d.path(), &[(1, &text)]);
            let lines: Vec<&str> = text.split_inclusive('\n').collect();
            let want: String = lines[lines.len().saturating_sub(usize::try_from(n).unwrap())..].concat();
            prop_assert_eq!(read(&f, &Options { tail: Some(n), ..Options::default() }), want);
        }
    }
}
