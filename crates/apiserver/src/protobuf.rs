//! Bodies in the API's protobuf form, which kubectl sends for `create`: read by the same table of types as JSON. Answers
//! are always JSON; clients that send protobuf take both.

use base64::Engine;
use serde_json::{Map, Value};

use crate::error::{Result, Status};
use crate::resource::RESOURCES;
use crate::schema::{self, Numbered, Ty};
use crate::util::rfc3339;

/// Messages nest at most this deep.
const MAX_DEPTH: usize = 64;
const MAGIC: &[u8] = b"k8s\0";

fn bad(why: &str) -> Status {
    Status::bad_request(format!("the protobuf body cannot be read: {why}"))
}

/// A field of a message on the wire.
enum Wire<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    /// Of 4 or 8 bytes; no type here has such.
    Fixed,
}

/// The fields of a message, in order.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn varint(&mut self) -> Result<u64> {
        let mut v = 0u64;
        for i in 0..10 {
            let (b, rest) = self.0.split_first().ok_or_else(|| bad("it ends within a number"))?;
            self.0 = rest;
            v |= u64::from(b & 0x7f).checked_shl(7 * i).unwrap_or(0);
            if b & 0x80 == 0 {
                return Ok(v);
            }
        }
        Err(bad("a number is longer than ten bytes"))
    }

    fn take(&mut self, n: u64) -> Result<&'a [u8]> {
        let n = usize::try_from(n).map_err(|_| bad("a length is too large"))?;
        let (a, b) = self.0.split_at_checked(n).ok_or_else(|| bad("it ends within a field"))?;
        self.0 = b;
        Ok(a)
    }

    fn next(&mut self) -> Result<Option<(u32, Wire<'a>)>> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let tag = u32::try_from(key >> 3).map_err(|_| bad("a field number is too large"))?;
        let wire = match key & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => {
                self.take(8)?;
                Wire::Fixed
            }
            2 => {
                let n = self.varint()?;
                Wire::Bytes(self.take(n)?)
            }
            5 => {
                self.take(4)?;
                Wire::Fixed
            }
            _ => return Err(bad("it has a field of an unknown wire type")),
        };
        Ok(Some((tag, wire)))
    }
}

fn text(bytes: &[u8]) -> Result<String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| bad("a text is not UTF-8"))
}

fn bytes<'a>(w: &Wire<'a>) -> Result<&'a [u8]> {
    match w {
        Wire::Bytes(b) => Ok(b),
        _ => Err(bad("a field is a number that should be text or a message")),
    }
}

fn number(w: &Wire<'_>) -> Result<i64> {
    match w {
        // Negative numbers are sent as ten bytes of two's complement.
        Wire::Varint(v) => Ok(v.cast_signed()),
        _ => Err(bad("a field should be a number")),
    }
}

/// The first two scalar fields and the third of the small messages that stand for one value.
fn small(b: &[u8]) -> Result<(i64, i64, Option<String>)> {
    let (mut one, mut two, mut s) = (0, 0, None);
    let mut r = Reader(b);
    while let Some((tag, w)) = r.next()? {
        match (tag, &w) {
            (1, Wire::Varint(_)) => one = number(&w)?,
            (2, Wire::Varint(_)) => two = number(&w)?,
            (1 | 3, Wire::Bytes(b)) => s = Some(text(b)?),
            _ => {}
        }
    }
    Ok((one, two, s))
}

fn value(w: &Wire<'_>, ty: &Ty, depth: usize) -> Result<Value> {
    Ok(match ty {
        Ty::Str => text(bytes(w)?)?.into(),
        Ty::Int => number(w)?.into(),
        Ty::Bool => (number(w)? != 0).into(),
        Ty::Bytes => base64::engine::general_purpose::STANDARD.encode(bytes(w)?).into(),
        Ty::Quantity => small(bytes(w)?)?.2.unwrap_or_default().into(),
        Ty::Time => {
            let b = bytes(w)?;
            let (secs, nanos, _) = small(b)?;
            if b.is_empty() {
                return Ok(Value::Null);
            }
            let t = rfc3339(u64::try_from(secs).map_err(|_| bad("a time is before 1970"))?.min(253_402_300_799));
            if nanos == 0 {
                t.into()
            } else {
                format!("{}.{:06}Z", t.trim_end_matches('Z'), (nanos / 1000).clamp(0, 999_999)).into()
            }
        }
        Ty::IntOrStr => {
            let (is_text, n, s) = small(bytes(w)?)?;
            if is_text == 1 { s.unwrap_or_default().into() } else { n.into() }
        }
        Ty::Ref(name) => Value::Object(message(bytes(w)?, name, depth + 1)?),
        Ty::List(..) | Ty::Map(_) | Ty::Any | Ty::Num | Ty::OrBool(_) => {
            return Err(Status::unsupported_media(
                "application/vnd.kubernetes.protobuf with a field of free form",
                "application/json",
            ));
        }
    })
}

fn message(b: &[u8], ty: &str, depth: usize) -> Result<Map<String, Value>> {
    let all: Vec<(&[u32], &Numbered)> = schema::numbered(ty).iter().map(|f| (f.path.as_slice(), f)).collect();
    if all.is_empty() && !b.is_empty() {
        return Err(Status::unsupported_media(
            &format!("application/vnd.kubernetes.protobuf with a {ty}"),
            "application/json",
        ));
    }
    let mut out = Map::new();
    into(b, &all, &mut out, depth)?;
    Ok(out)
}

fn into(b: &[u8], fields: &[(&[u32], &Numbered)], out: &mut Map<String, Value>, depth: usize) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(bad("it nests too deep"));
    }
    let mut r = Reader(b);
    while let Some((tag, w)) = r.next()? {
        let here: Vec<(&[u32], &Numbered)> =
            fields.iter().filter(|(p, _)| p.first() == Some(&tag)).map(|(p, f)| (&p[1..], *f)).collect();
        match here.as_slice() {
            // A field that this table does not know, as a newer client may send.
            [] => {}
            [([], f)] => field(&w, f, out, depth)?,
            // Fields of this object inside a message of their own.
            inlined => into(bytes(&w)?, inlined, out, depth + 1)?,
        }
    }
    Ok(())
}

fn field(w: &Wire<'_>, f: &Numbered, out: &mut Map<String, Value>, depth: usize) -> Result<()> {
    match &f.ty {
        Ty::List(inner, _) => {
            let mut items = Vec::new();
            match (&**inner, w) {
                (Ty::Int, Wire::Bytes(b)) => {
                    let mut r = Reader(b);
                    while !r.0.is_empty() {
                        items.push(r.varint()?.cast_signed().into());
                    }
                }
                _ => items.push(value(w, inner, depth)?),
            }
            if let Value::Array(list) = out.entry(f.name).or_insert_with(|| Value::Array(Vec::new())) {
                list.append(&mut items);
            }
        }
        Ty::Map(inner) => {
            let (mut key, mut val) = (String::new(), None);
            let mut r = Reader(bytes(w)?);
            while let Some((tag, w)) = r.next()? {
                match tag {
                    1 => key = text(bytes(&w)?)?,
                    2 => val = Some(value(&w, inner, depth)?),
                    _ => {}
                }
            }
            if let Value::Object(m) = out.entry(f.name).or_insert_with(|| Value::Object(Map::new())) {
                m.insert(key, val.unwrap_or_else(|| Value::from("")));
            }
        }
        ty => {
            let v = value(w, ty, depth)?;
            let zero = match &v {
                Value::Null => true,
                Value::String(s) => s.is_empty(),
                Value::Number(n) => n.as_i64() == Some(0),
                Value::Bool(b) => !b,
                Value::Object(m) => m.is_empty(),
                Value::Array(a) => a.is_empty(),
            };
            if !v.is_null() && (f.pointer || !zero) {
                out.insert(f.name.to_owned(), v);
            }
        }
    }
    Ok(())
}

/// Reads a body: the magic, then `runtime.Unknown` around the object
/// (`k8s.io/apimachinery/pkg/runtime/generated.proto`).
pub(crate) fn decode(body: &[u8]) -> Result<Value> {
    let rest = body.strip_prefix(MAGIC).ok_or_else(|| bad("it does not begin with \"k8s\\0\""))?;
    let (mut api, mut kind, mut raw): (String, String, &[u8]) = (String::new(), String::new(), &[]);
    let mut r = Reader(rest);
    while let Some((tag, w)) = r.next()? {
        match tag {
            1 => {
                let mut t = Reader(bytes(&w)?);
                while let Some((tag, w)) = t.next()? {
                    match tag {
                        1 => api = text(bytes(&w)?)?,
                        2 => kind = text(bytes(&w)?)?,
                        _ => {}
                    }
                }
            }
            2 => raw = bytes(&w)?,
            _ => {}
        }
    }
    let ty = match kind.as_str() {
        "Binding" | "Eviction" | "Scale" | "DeleteOptions" => kind.clone(),
        _ => RESOURCES
            .iter()
            .find(|r| r.kind == kind && r.api_version() == api)
            .map(|r| r.schema.to_owned())
            .ok_or_else(|| Status::bad_request(format!("no kind {kind:?} is registered for version {api:?}")))?,
    };
    let mut m = message(raw, &ty, 0)?;
    m.insert("apiVersion".into(), api.into());
    m.insert("kind".into(), kind.into());
    Ok(Value::Object(m))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn put(out: &mut Vec<u8>, tag: u8, b: &[u8]) {
        out.extend([tag << 3 | 2, u8::try_from(b.len()).unwrap()]);
        out.extend(b);
    }

    #[test]
    fn a_body_as_client_go_makes_it() {
        let (mut meta, mut entry, mut cm, mut types, mut body) = (vec![], vec![], vec![], vec![], vec![]);
        put(&mut meta, 1, b"a");
        put(&mut meta, 2, b"");
        put(&mut meta, 8, b"");
        meta.extend([7 << 3, 0]);
        put(&mut entry, 1, b"k");
        put(&mut entry, 2, b"v");
        put(&mut cm, 1, &meta);
        put(&mut cm, 2, &entry);
        put(&mut types, 1, b"v1");
        put(&mut types, 2, b"ConfigMap");
        put(&mut body, 1, &types);
        put(&mut body, 2, &cm);
        let whole = [MAGIC, &body].concat();
        let want = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "v"}});
        assert_eq!(decode(&whole).unwrap(), want);
        // Cut at any place it is an error or a smaller object, never a panic.
        for n in 0..whole.len() {
            let _ = decode(&whole[..n]);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(b in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&[MAGIC, &b].concat());
            for ty in ["Pod", "Service", "ObjectMeta", "Event"] { let _ = message(&b, ty, 0); }
        }
    }
}
