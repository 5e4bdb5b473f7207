//! Go's gob encoding (pkg.go.dev/encoding/gob), as far as calls between the `dhcp` plugin and its daemon need it: the
//! reference's two halves speak it to each other, and ours to either.
//!
//! A stream is of messages, each a length and then a type id: a negative one defines a type, a positive one is a value.
//! Structs are pairs of a field's distance from the last one and its value; fields of zero value are left out.

use std::collections::BTreeMap;

/// A value as it was on the wire.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// bool and unsigned numbers.
    Uint(u64),
    /// Signed numbers.
    Int(i64),
    /// []byte and string.
    Bytes(Vec<u8>),
    /// Slices and arrays.
    List(Vec<Value>),
    /// Structs, by the name of the field; fields of zero value are not there.
    Struct(BTreeMap<String, Value>),
}

impl Value {
    /// A field of a struct.
    #[must_use]
    pub fn get(&self, field: &str) -> Option<&Value> {
        match self {
            Self::Struct(m) => m.get(field),
            _ => None,
        }
    }

    /// A field that is bytes; empty when it is not there.
    #[must_use]
    pub fn bytes(&self, field: &str) -> &[u8] {
        match self.get(field) {
            Some(Self::Bytes(b)) => b,
            _ => &[],
        }
    }

    /// A field that is text; empty when it is not there or is none.
    #[must_use]
    pub fn text(&self, field: &str) -> &str {
        std::str::from_utf8(self.bytes(field)).unwrap_or_default()
    }

    /// A field that is a list; empty when it is not there.
    #[must_use]
    pub fn list(&self, field: &str) -> &[Value] {
        match self.get(field) {
            Some(Self::List(l)) => l,
            _ => &[],
        }
    }
}

/// What a type of the stream is.
#[derive(Debug, Clone, PartialEq)]
enum Kind {
    List(i64),
    Array(i64),
    Map(i64, i64),
    Struct(Vec<(String, i64)>),
    /// Its own encoding, as bytes.
    Opaque,
}

const BOOL: i64 = 1;
const INT: i64 = 2;
const UINT: i64 = 3;
const FLOAT: i64 = 4;
const BYTES: i64 = 5;
const STRING: i64 = 6;
const COMPLEX: i64 = 7;
/// Values within values.
const DEEPEST: usize = 16;
/// Types of one stream.
const MOST_TYPES: usize = 256;

/// Reads messages of one stream.
#[derive(Debug, Default)]
pub struct Decoder {
    types: BTreeMap<i64, Kind>,
}

impl Decoder {
    /// Reads one message without its length; `None` in `Ok` when it defined a type.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn message(&mut self, bytes: &[u8]) -> Result<Option<Value>, &'static str> {
        let mut r = Reader { bytes, types: &self.types };
        let id = r.int()?;
        if id < 0 {
            let kind = r.definition()?;
            if self.types.len() >= MOST_TYPES {
                return Err("more types than a call has");
            }
            self.types.insert(-id, kind);
            return Ok(None);
        }
        if !matches!(self.types.get(&id), Some(Kind::Struct(_))) && r.uint()? != 0 {
            return Err("no zero before a value that is no struct");
        }
        r.value(id, 0).map(Some)
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    types: &'a BTreeMap<i64, Kind>,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], &'static str> {
        let (head, tail) = self.bytes.split_at_checked(n).ok_or("cut short")?;
        self.bytes = tail;
        Ok(head)
    }

    fn uint(&mut self) -> Result<u64, &'static str> {
        let (n, used) = uint(self.bytes)?.ok_or("cut short")?;
        self.take(used)?;
        Ok(n)
    }

    fn int(&mut self) -> Result<i64, &'static str> {
        let u = self.uint()?;
        #[allow(clippy::cast_possible_wrap)] // one bit shorter
        let n = (u >> 1) as i64;
        Ok(if u & 1 == 1 { !n } else { n })
    }

    fn bytes(&mut self) -> Result<Vec<u8>, &'static str> {
        let n = usize::try_from(self.uint()?).map_err(|_| "too long")?;
        Ok(self.take(n)?.to_vec())
    }

    fn string(&mut self) -> Result<String, &'static str> {
        String::from_utf8(self.bytes()?).map_err(|_| "a name that is no text")
    }

    /// Calls `field` with the number of each field that is there.
    fn fields(
        &mut self,
        mut field: impl FnMut(&mut Self, u64) -> Result<(), &'static str>,
    ) -> Result<(), &'static str> {
        let mut at = 0u64;
        loop {
            match self.uint()? {
                0 => return Ok(()),
                d => at = at.checked_add(d).ok_or("a field without a number")?,
            }
            field(self, at)?;
        }
    }

    /// `wireType`: one of its pointers is set.
    fn definition(&mut self) -> Result<Kind, &'static str> {
        let mut out = None;
        self.fields(|r, which| {
            let (mut ids, mut list) = ([0i64; 2], Vec::new());
            r.fields(|r, n| match (which, n) {
                // CommonType: name and id.
                (_, 1) => r.fields(|r, n| if n == 1 { r.string().map(drop) } else { r.int().map(drop) }),
                (3, 2) => {
                    for _ in 0..r.uint()?.min(4096) {
                        let (mut name, mut id) = (String::new(), 0);
                        r.fields(|r, n| {
                            if n == 1 {
                                name = r.string()?
                            } else {
                                id = r.int()?
                            }
                            Ok(())
                        })?;
                        list.push((name, id));
                    }
                    Ok(())
                }
                (_, 2) => r.int().map(|n| ids[0] = n),
                (_, 3) => r.int().map(|n| ids[1] = n),
                _ => Err("a type with more than there is"),
            })?;
            out = Some(match which {
                1 => Kind::Array(ids[0]),
                2 => Kind::List(ids[0]),
                3 => Kind::Struct(list),
                4 => Kind::Map(ids[0], ids[1]),
                5..8 => Kind::Opaque,
                _ => return Err("a type of no kind"),
            });
            Ok(())
        })?;
        out.ok_or("a type of no kind")
    }

    fn value(&mut self, id: i64, depth: usize) -> Result<Value, &'static str> {
        if depth > DEEPEST {
            return Err("too deep");
        }
        let types = self.types;
        Ok(match id {
            BOOL | UINT | FLOAT => Value::Uint(self.uint()?),
            INT => Value::Int(self.int()?),
            BYTES | STRING => Value::Bytes(self.bytes()?),
            COMPLEX => {
                self.uint()?;
                Value::Uint(self.uint()?)
            }
            id => match types.get(&id).ok_or("a value of an unknown type")? {
                Kind::List(of) | Kind::Array(of) => {
                    let n = self.uint()?;
                    let mut list = Vec::new();
                    for _ in 0..n {
                        if self.bytes.is_empty() {
                            return Err("cut short");
                        }
                        list.push(self.value(*of, depth + 1)?);
                    }
                    Value::List(list)
                }
                Kind::Map(key, of) => {
                    // Not in any call of ours: read past it.
                    for _ in 0..self.uint()? {
                        self.value(*key, depth + 1)?;
                        self.value(*of, depth + 1)?;
                    }
                    Value::List(Vec::new())
                }
                Kind::Opaque => Value::Bytes(self.bytes()?),
                Kind::Struct(of) => {
                    let mut out = BTreeMap::new();
                    self.fields(|r, n| {
                        let at = usize::try_from(n - 1).ok().and_then(|n| of.get(n));
                        let (name, id) = at.ok_or("a field that its type has not")?;
                        out.insert(name.clone(), r.value(*id, depth + 1)?);
                        Ok(())
                    })?;
                    Value::Struct(out)
                }
            },
        })
    }
}

/// An unsigned number and how many bytes it took; `None` when there is not all of it yet.
///
/// # Errors
/// When it is none.
pub fn uint(bytes: &[u8]) -> Result<Option<(u64, usize)>, &'static str> {
    let Some(&first) = bytes.first() else { return Ok(None) };
    if first < 128 {
        return Ok(Some((first.into(), 1)));
    }
    let n = usize::from(!first) + 1;
    if n > 8 {
        return Err("a number of more than eight bytes");
    }
    let Some(rest) = bytes.get(1..=n) else { return Ok(None) };
    Ok(Some((rest.iter().fold(0, |a, b| a << 8 | u64::from(*b)), n + 1)))
}

/// A type that is written.
#[derive(Debug, Clone, Copy)]
pub enum Type {
    /// A struct by name, with its fields and their type ids.
    Struct(&'static str, &'static [(&'static str, i64)]),
    /// A slice of that type.
    List(i64),
}

/// Type ids of what is written; [`TYPES`] has the user's own, from [`FIRST`] on.
pub mod id {
    #![allow(missing_docs)] // Go's own names
    pub const INT: i64 = super::INT;
    pub const UINT: i64 = super::UINT;
    pub const BYTES: i64 = super::BYTES;
    pub const STRING: i64 = super::STRING;
    pub const REQUEST: i64 = 65;
    pub const RESPONSE: i64 = 66;
    pub const ARGS: i64 = 67;
    pub const NOTHING: i64 = 68;
    pub const RESULT: i64 = 69;
    pub const IPS: i64 = 70;
    pub const IP: i64 = 71;
    pub const NET: i64 = 72;
    pub const ROUTES: i64 = 73;
    pub const ROUTE: i64 = 74;
}

/// `firstUserId`
const FIRST: i64 = 65;

/// What calls to the daemon and its answers are made of (net/rpc; skel.CmdArgs; types/100.Result).
const TYPES: &[Type] = &[
    Type::Struct("Request", &[("ServiceMethod", id::STRING), ("Seq", id::UINT)]),
    Type::Struct("Response", &[("ServiceMethod", id::STRING), ("Seq", id::UINT), ("Error", id::STRING)]),
    Type::Struct(
        "CmdArgs",
        &[
            ("ContainerID", id::STRING),
            ("Netns", id::STRING),
            ("IfName", id::STRING),
            ("Args", id::STRING),
            ("Path", id::STRING),
            ("StdinData", id::BYTES),
        ],
    ),
    Type::Struct("", &[]),
    Type::Struct("Result", &[("CNIVersion", id::STRING), ("IPs", id::IPS), ("Routes", id::ROUTES)]),
    Type::List(id::IP),
    Type::Struct("IPConfig", &[("Address", id::NET), ("Gateway", id::BYTES)]),
    Type::Struct("IPNet", &[("IP", id::BYTES), ("Mask", id::BYTES)]),
    Type::List(id::ROUTE),
    Type::Struct("Route", &[("Dst", id::NET), ("GW", id::BYTES), ("Scope", id::INT)]),
];

/// Writes messages of one stream.
#[derive(Debug, Default)]
pub struct Encoder {
    told: bool,
}

impl Encoder {
    /// One value of a struct type, with every type before the first.
    pub fn message(&mut self, id: i64, value: &Value) -> Vec<u8> {
        let mut out = Vec::new();
        if !self.told {
            self.told = true;
            for (t, id) in TYPES.iter().zip(FIRST..) {
                framed(&mut out, &definition(*t, id));
            }
        }
        let mut body = Vec::new();
        int(&mut body, id);
        write(&mut body, id, value);
        framed(&mut out, &body);
        out
    }
}

fn framed(out: &mut Vec<u8>, body: &[u8]) {
    put(out, body.len() as u64);
    out.extend(body);
}

/// An unsigned number: one byte, or the negated count of bytes and they.
fn put(out: &mut Vec<u8>, n: u64) {
    match u8::try_from(n) {
        Ok(b) if b < 128 => out.push(b),
        _ => {
            let bytes = n.to_be_bytes();
            let skip = (n.leading_zeros() / 8) as usize;
            out.push(!u8::try_from(7 - skip).unwrap_or(7));
            out.extend(bytes.iter().skip(skip));
        }
    }
}

fn int(out: &mut Vec<u8>, n: i64) {
    put(out, if n < 0 { (!n as u64) << 1 | 1 } else { (n as u64) << 1 });
}

fn text(out: &mut Vec<u8>, t: &[u8]) {
    put(out, t.len() as u64);
    out.extend(t);
}

fn definition(t: Type, id: i64) -> Vec<u8> {
    let mut b = Vec::new();
    int(&mut b, -id);
    let common = |b: &mut Vec<u8>, name: &str| {
        b.push(1);
        if !name.is_empty() {
            b.push(1);
            text(b, name.as_bytes());
        }
        b.push(if name.is_empty() { 2 } else { 1 });
        int(b, id);
        b.push(0);
    };
    match t {
        Type::List(of) => {
            b.push(2);
            common(&mut b, "");
            b.push(1);
            int(&mut b, of);
        }
        Type::Struct(name, fields) => {
            b.push(3);
            common(&mut b, name);
            if !fields.is_empty() {
                b.push(1);
                put(&mut b, fields.len() as u64);
                for (name, id) in fields {
                    b.push(1);
                    text(&mut b, name.as_bytes());
                    b.push(1);
                    int(&mut b, *id);
                    b.push(0);
                }
            }
        }
    }
    // The end of the kind's struct, and of wireType.
    b.extend([0, 0]);
    b
}

fn zero(v: &Value) -> bool {
    match v {
        Value::Uint(0) | Value::Int(0) => true,
        Value::Bytes(b) => b.is_empty(),
        Value::List(l) => l.is_empty(),
        _ => false,
    }
}

fn write(out: &mut Vec<u8>, id: i64, v: &Value) {
    let kind = usize::try_from(id - FIRST).ok().and_then(|i| TYPES.get(i));
    match (v, kind) {
        (Value::Struct(m), Some(Type::Struct(_, fields))) => {
            let mut last = 0;
            for (n, (name, id)) in (1u64..).zip(*fields) {
                if let Some(v) = m.get(*name).filter(|v| !zero(v)) {
                    put(out, n - last);
                    last = n;
                    write(out, *id, v);
                }
            }
            out.push(0);
        }
        (Value::List(l), Some(Type::List(of))) => {
            put(out, l.len() as u64);
            for v in l {
                write(out, *of, v);
            }
        }
        (Value::Uint(n), _) => put(out, *n),
        (Value::Int(n), _) => int(out, *n),
        (Value::Bytes(b), _) => text(out, b),
        // Not of its type: as if it were empty.
        _ => out.push(0),
    }
}

/// A struct of these fields.
#[must_use]
pub fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
    Value::Struct(fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    /// Splits a stream into messages and reads them.
    fn all(mut bytes: &[u8]) -> Result<Vec<Value>, &'static str> {
        let (mut d, mut out) = (Decoder::default(), Vec::new());
        while let Some((n, used)) = uint(bytes)? {
            let end = usize::try_from(n).ok().and_then(|n| n.checked_add(used)).ok_or("long")?;
            out.extend(d.message(bytes.get(used..end).ok_or("short")?)?);
            bytes = &bytes[end..];
        }
        Ok(out)
    }

    #[test]
    fn numbers_are_as_the_documentation_has_them() {
        let mut b = Vec::new();
        for n in [0, 7, 256] {
            put(&mut b, n);
        }
        int(&mut b, -129);
        assert_eq!(b, [0, 7, 0xfe, 1, 0, 0xfe, 1, 1]);
        assert_eq!(uint(&[0xfe, 1]), Ok(None));
        assert!(uint(&[0x80, 1, 2, 3, 4, 5, 6, 7, 8, 9]).is_err());
    }

    #[test]
    fn the_example_of_the_documentation_is_read() {
        // type P struct { X, Y int; Name string }... here its P{22, 33} of two ints.
        let bytes = [
            0x1f, 0xff, 0x81, 0x03, 0x01, 0x01, 0x05, 0x50, 0x6f, 0x69, 0x6e, 0x74, 0x01, 0xff, 0x82, 0x00, 0x01, 0x02,
            0x01, 0x01, 0x58, 0x01, 0x04, 0x00, 0x01, 0x01, 0x59, 0x01, 0x04, 0x00, 0x00, 0x00, 0x07, 0xff, 0x82, 0x01,
            0x2c, 0x01, 0x42, 0x00,
        ];
        let v = all(&bytes).unwrap();
        assert_eq!(v, [object([("X", Value::Int(22)), ("Y", Value::Int(33))])]);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(method in "[A-Z.]{0,9}", seq: u64, ip in prop::collection::vec(any::<u8>(), 0..300), scope: i64, n in 0usize..4) {
            let net = object([("IP", Value::Bytes(ip.clone())), ("Mask", Value::Bytes(vec![255]))]);
            let routes = vec![object([("Dst", net.clone()), ("Scope", Value::Int(scope))]); n];
            let header = object([("ServiceMethod", Value::Bytes(method.into_bytes())), ("Seq", Value::Uint(seq))]);
            let body = object([("Routes", Value::List(routes))]);
            let mut e = Encoder::default();
            let bytes = [e.message(id::RESPONSE, &header), e.message(id::RESULT, &body), e.message(id::NOTHING, &object([]))].concat();
            let read = all(&bytes).unwrap();
            prop_assert_eq!(read.len(), 3);
            prop_assert_eq!(read[0].bytes("ServiceMethod"), header.bytes("ServiceMethod"));
            prop_assert_eq!(read[1].list("Routes").len(), n);
            for r in read[1].list("Routes") {
                prop_assert_eq!(r.get("Dst").unwrap().bytes("IP"), &ip[..]);
            }
        }

        #[test]
        fn anything_is_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = all(&bytes);
        }
    }
}
