//! Requests taken apart, responses put together.

use std::collections::HashMap;
use std::convert::Infallible;

use bytes::Bytes;
use futures::stream::{Stream, StreamExt};
use http::{HeaderMap, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use serde_json::Value;

use crate::error::{Result, Status};

/// The body of every response.
pub(crate) type Out = UnsyncBoxBody<Bytes, Infallible>;

/// No request body may be larger (the API's own limit).
pub(crate) const MAX_BODY: usize = 3 << 20;

fn unescape(s: &str) -> String {
    let mut out = Vec::with_capacity(s.len());
    let b = s.as_bytes();
    let mut i = 0;
    while i < b.len() {
        let hex = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
        match b[i] {
            b'+' => out.push(b' '),
            b'%' if i + 2 < b.len() && hex(b[i + 1]).is_some() && hex(b[i + 2]).is_some() => {
                out.push(hex(b[i + 1]).unwrap_or(0) << 4 | hex(b[i + 2]).unwrap_or(0));
                i += 2;
            }
            c => out.push(c),
        }
        i += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The parameters after the question mark.
#[derive(Debug, Default)]
pub(crate) struct Query(HashMap<String, String>);

impl Query {
    pub(crate) fn parse(text: Option<&str>) -> Self {
        let pairs = text.unwrap_or("").split('&').filter(|p| !p.is_empty());
        Self(
            pairs
                .take(64)
                .map(|p| {
                    let (k, v) = p.split_once('=').unwrap_or((p, ""));
                    (unescape(k), unescape(v))
                })
                .collect(),
        )
    }
    pub(crate) fn get(&self, key: &str) -> &str {
        self.0.get(key).map_or("", String::as_str)
    }
    /// Go's strconv.ParseBool; present without value is true.
    pub(crate) fn flag(&self, key: &str) -> bool {
        self.0.get(key).is_some_and(|v| matches!(v.as_str(), "" | "1" | "t" | "T" | "true" | "TRUE" | "True"))
    }
    pub(crate) fn number(&self, key: &str) -> Result<Option<u64>> {
        match self.get(key) {
            "" => Ok(None),
            v => {
                v.parse().map(Some).map_err(|_| Status::bad_request(format!("{key}: {v:?} is no number of 0 or more")))
            }
        }
    }
    /// Whether nothing is to be stored.
    pub(crate) fn dry_run(&self) -> Result<bool> {
        match self.get("dryRun") {
            "" => Ok(false),
            "All" => Ok(true),
            other => {
                Err(Status::bad_request(format!("dryRun: Unsupported value: {other:?}: supported values: \"All\"")))
            }
        }
    }
}

/// The segments of a path, unescaped.
pub(crate) fn segments(path: &str) -> Vec<String> {
    // A plus sign in a path is itself.
    path.split('/').filter(|s| !s.is_empty()).map(|s| unescape(&s.replace('+', "%2B"))).collect()
}

/// The media type of a body, without parameters.
pub(crate) fn content_type(headers: &HeaderMap) -> String {
    let v = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    v.split(';').next().unwrap_or("").trim().to_ascii_lowercase()
}

/// The whole body, at most [`MAX_BODY`].
pub(crate) async fn read_body<B>(body: B) -> Result<Bytes>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    if body.size_hint().lower() > MAX_BODY as u64 {
        return Err(Status::too_large(MAX_BODY));
    }
    match Limited::new(body, MAX_BODY).collect().await {
        Ok(all) => Ok(all.to_bytes()),
        Err(e) if e.is::<http_body_util::LengthLimitError>() => Err(Status::too_large(MAX_BODY)),
        Err(e) => Err(Status::bad_request(format!("the body could not be read: {e}"))),
    }
}

/// A body as a value, by its media type.
pub(crate) fn decode(content_type: &str, body: &[u8]) -> Result<Value> {
    match content_type {
        "" | "application/json" | "*/*" => serde_json::from_slice(body)
            .map_err(|e| Status::bad_request(format!("couldn't get version/kind; json parse error: {e}"))),
        "application/vnd.kubernetes.protobuf" => crate::protobuf::decode(body),
        "application/yaml" | "application/x-yaml" | "text/yaml" => yaml(body),
        other => Err(Status::unsupported_media(
            other,
            "application/json, application/yaml, application/vnd.kubernetes.protobuf",
        )),
    }
}

/// How deep brackets of a YAML body may nest: the parser's work grows with the square of it.
const MAX_YAML_BRACKETS: usize = 256;

pub(crate) fn yaml(body: &[u8]) -> Result<Value> {
    // What begins as JSON is read as JSON: faster, and what kubectl sends as an apply patch.
    if matches!(body.trim_ascii_start().first(), Some(b'{' | b'[')) {
        return serde_json::from_slice(body).map_err(|e| Status::bad_request(format!("json parse error: {e}")));
    }
    let mut open = 0usize;
    for b in body {
        match b {
            b'{' | b'[' => open += 1,
            b'}' | b']' => open = open.saturating_sub(1),
            _ => {}
        }
        if open > MAX_YAML_BRACKETS {
            return Err(Status::bad_request("the YAML body nests too deep: write it as JSON"));
        }
    }
    // Through the text form, so that keys that are no text become an error or text, as YAML to JSON has it.
    let v: serde_yaml::Value =
        serde_yaml::from_slice(body).map_err(|e| Status::bad_request(format!("the body is no valid YAML: {e}")))?;
    serde_json::to_value(v).map_err(|e| Status::bad_request(format!("the YAML body cannot be written as JSON: {e}")))
}

/// In which form the client wants objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum View {
    Full,
    Table,
    Metadata,
}

/// The first acceptable alternative of an Accept header.
pub(crate) fn negotiate(headers: &HeaderMap) -> Result<View> {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("");
    if accept.trim().is_empty() {
        return Ok(View::Full);
    }
    for alternative in accept.split(',') {
        let mut parts = alternative.split(';').map(str::trim);
        let media = parts.next().unwrap_or("").to_ascii_lowercase();
        let param = |key: &str| {
            alternative
                .split(';')
                .skip(1)
                .filter_map(|p| p.trim().split_once('='))
                .find(|(k, _)| *k == key)
                .map(|(_, v)| v)
        };
        if !matches!(media.as_str(), "application/json" | "application/*" | "*/*") {
            continue;
        }
        match (param("as"), param("v"), param("g")) {
            (None, _, _) => return Ok(View::Full),
            (Some("Table"), Some("v1"), Some("meta.k8s.io")) => return Ok(View::Table),
            (Some("PartialObjectMetadata" | "PartialObjectMetadataList"), Some("v1"), Some("meta.k8s.io")) => {
                return Ok(View::Metadata);
            }
            _ => {}
        }
    }
    Err(Status::not_acceptable())
}

/// Whether the client asks for aggregated discovery (KEP-3352).
pub(crate) fn wants_aggregated(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("");
    accept.split(',').any(|a| a.contains("as=APIGroupDiscoveryList") && a.contains("v=v2") && !a.contains("v=v2beta1"))
}

pub(crate) fn full(bytes: impl Into<Bytes>) -> Out {
    Full::new(bytes.into()).boxed_unsync()
}

pub(crate) fn empty() -> Out {
    full(Bytes::new())
}

/// The body of another server's response, passed on piece by piece; `held` is let go at its end. A body that breaks ends.
pub(crate) fn passed_on(body: Incoming, held: impl Send + 'static) -> Out {
    let whole = body.into_data_stream().take_while(|b| std::future::ready(b.is_ok()));
    let pieces = whole.map(move |b| {
        let _ = &held;
        Ok::<_, Infallible>(Frame::data(b.unwrap_or_default()))
    });
    StreamBody::new(pieces).boxed_unsync()
}

/// A response of JSON text.
pub(crate) fn json_bytes(code: u16, bytes: impl Into<Bytes>) -> Response<Out> {
    let mut r = Response::new(full(bytes));
    *r.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    r.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    r
}

pub(crate) fn json(code: u16, v: &Value) -> Response<Out> {
    json_bytes(code, v.to_string())
}

pub(crate) fn text(code: u16, s: &str) -> Response<Out> {
    let mut r = json_bytes(code, s.to_owned());
    r.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain; charset=utf-8"));
    r
}

/// A response that is made while it is sent.
pub(crate) fn stream(s: impl Stream<Item = Bytes> + Send + 'static) -> Response<Out> {
    let mut r = Response::new(StreamBody::new(s.map(|b| Ok::<_, Infallible>(Frame::data(b)))).boxed_unsync());
    r.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    r
}

/// Adds a warning that kubectl prints (RFC 7234 section 5.5, code 299).
pub(crate) fn warn(r: &mut Response<Out>, warnings: &[String]) {
    for w in warnings {
        let clean: String = w.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect();
        let quoted = clean.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(v) = header::HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            r.headers_mut().append(header::WARNING, v);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn queries_and_paths() {
        let q = Query::parse(Some("labelSelector=a%3Db%2Cc&watch&limit=5&x=a+b&bad=%zz&end=%4"));
        assert_eq!((q.get("labelSelector"), q.get("x"), q.get("bad"), q.get("end")), ("a=b,c", "a b", "%zz", "%4"));
        assert!(q.flag("watch") && !q.flag("none"));
        assert_eq!(q.number("limit").unwrap(), Some(5));
        assert!(q.number("x").is_err());
        assert_eq!(segments("/api/v1//pods/a%2Fb+c"), ["api", "v1", "pods", "a/b+c"]);
    }

    #[test]
    fn accept_headers() {
        let view = |s: &str| {
            let mut h = HeaderMap::new();
            h.insert(header::ACCEPT, s.parse().unwrap());
            negotiate(&h).map_err(|e| e.code)
        };
        assert_eq!(view("application/json;as=Table;v=v1;g=meta.k8s.io,application/json"), Ok(View::Table));
        assert_eq!(view("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"), Ok(View::Metadata));
        assert_eq!(view("application/vnd.kubernetes.protobuf, */*"), Ok(View::Full));
        assert_eq!(view("application/vnd.kubernetes.protobuf"), Err(406));
        assert_eq!(view("application/json;as=Nonsense;v=v1;g=meta.k8s.io"), Err(406));
    }

    proptest! {
        #[test]
        fn any_text_is_survived(s in "\\PC{0,60}") { let _ = (Query::parse(Some(&s)), segments(&s), yaml(s.as_bytes())); }
    }
}
