//! Logs, commands and ports of pods: found here, done by the node's kubelet, bytes passed on as they are.
//!
//! A kubelet here is whoever serves the kubelet's own paths (`/containerLogs`, `/exec`, `/attach`, `/portForward`) on a
//! unix socket: in a lab the pod runner of a node. What is spoken after an upgrade, WebSocket (RFC 6455) or SPDY/3.1, is
//! between the client and the kubelet.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

use crate::api::Api;
use crate::error::{Result, Status};
use crate::http::{Out, empty, passed_on};
use crate::resource::core;
use crate::util::{list_at, str_at};

/// Upgraded connections and followed logs at a time; one more is refused.
pub(crate) const MAX_STREAMS: usize = 512;

/// The headers that a kubelet needs to agree on an upgrade (RFC 9110 section 7.8, RFC 6455 section 4.1).
const PASSED: [HeaderName; 6] = [
    header::CONNECTION,
    header::UPGRADE,
    header::SEC_WEBSOCKET_KEY,
    header::SEC_WEBSOCKET_VERSION,
    header::SEC_WEBSOCKET_PROTOCOL,
    HeaderName::from_static("x-stream-protocol-version"),
];

/// The subresources of a pod that its kubelet serves.
pub(crate) const SUBRESOURCES: [&str; 4] = ["attach", "exec", "log", "portforward"];

/// The container that is meant; pods of one container need not name it.
fn container(pod: &Value, name: &str, asked: &str) -> Result<String> {
    let lists = ["containers", "initContainers", "ephemeralContainers"];
    let names = |list: &str| -> Vec<String> {
        list_at(pod, &["spec", list]).iter().map(|c| str_at(c, &["name"]).to_owned()).collect()
    };
    if !asked.is_empty() {
        return match lists.iter().any(|l| names(l).iter().any(|n| n == asked)) {
            true => Ok(asked.to_owned()),
            false => Err(Status::bad_request(format!("container {asked} is not valid for pod {name}"))),
        };
    }
    let main = names("containers");
    match main.as_slice() {
        [only] => Ok(only.clone()),
        _ => {
            let mut why =
                format!("a container name must be specified for pod {name}, choose one of: [{}]", main.join(" "));
            let init = names("initContainers");
            if !init.is_empty() {
                why.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
            }
            Err(Status::bad_request(why))
        }
    }
}

/// The kubelet's path for a request; its query follows.
fn path(pod: &Value, ns: &str, name: &str, sub: &str, asked: &str) -> Result<String> {
    Ok(match sub {
        "portforward" => format!("/portForward/{ns}/{name}"),
        "log" => format!("/containerLogs/{ns}/{name}/{}", container(pod, name, asked)?),
        verb => format!("/{verb}/{ns}/{name}/{}", container(pod, name, asked)?),
    })
}

/// The kubelet's words for the parameters of `exec` and `attach`; others are the same on both sides.
fn query(raw: &str) -> String {
    let word = |pair: &str| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let key = match key {
            "stdin" => "input",
            "stdout" => "output",
            "stderr" => "error",
            "container" => return None,
            other => other,
        };
        Some(format!("{key}={value}"))
    };
    raw.split('&').filter(|p| !p.is_empty()).filter_map(word).collect::<Vec<_>>().join("&")
}

fn socket(api: &Api, node: &str) -> Result<PathBuf> {
    let Some(pattern) = &api.kubelet_sockets else {
        return Err(Status::unavailable(
            "this API server knows no kubelets, so it has no logs, commands and ports of pods: start it with --kubelet-socket PATH, with {node} in it",
        ));
    };
    // A node's name is a DNS name; a path it is not.
    if node.contains('/') || node.starts_with('.') {
        return Err(Status::bad_request(format!("spec.nodeName: {node:?} is no name of a node")));
    }
    Ok(PathBuf::from(pattern.to_string_lossy().replace("{node}", node)))
}

/// Answers a request for a pod's logs, commands or ports.
pub(crate) async fn serve<B>(
    api: &Arc<Api>,
    ns: &str,
    name: &str,
    sub: &str,
    asked: &str,
    mut req: Request<B>,
) -> Result<Response<Out>> {
    let pods = core("pods");
    let found = api.store.read().kind(pods).objects.get(pods.key(ns, name).as_str()).cloned();
    let pod = found.ok_or_else(|| Status::not_found(pods, name))?.value();
    let path = path(&pod, ns, name, sub, asked)?;
    let node = str_at(&pod, &["spec", "nodeName"]);
    if node.is_empty() {
        return Err(Status::bad_request(format!("pod {name} does not have a host assigned")));
    }
    let socket = socket(api, node)?;
    let permit = api.streams.clone().try_acquire_owned().map_err(|_| {
        Status::unavailable(format!("{MAX_STREAMS} logs, commands and ports are open already: close one"))
    })?;
    let away = |e: &dyn std::fmt::Display| {
        Status::unavailable(format!("the kubelet of node {node} does not answer at {}: {e}", socket.display()))
    };
    let stream = UnixStream::connect(&socket).await.map_err(|e| away(&e))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| away(&e))?;
    tokio::spawn(connection.with_upgrades());
    let mut ask = Request::builder()
        .method(req.method())
        .uri(format!("{path}?{}", query(req.uri().query().unwrap_or(""))))
        .header(header::HOST, "kubelet");
    for h in PASSED {
        for v in req.headers().get_all(&h) {
            ask = ask.header(&h, v);
        }
    }
    let ask = ask.body(Empty::<Bytes>::new()).map_err(|e| Status::bad_request(e.to_string()))?;
    let mut answer = sender.send_request(ask).await.map_err(|e| away(&e))?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return relay(answer, permit).await;
    }
    let (ours, theirs) = (hyper::upgrade::on(&mut req), hyper::upgrade::on(&mut answer));
    let mut stop = api.stop.clone();
    tokio::spawn(async move {
        let _permit = permit;
        let (Ok(a), Ok(b)) = tokio::join!(ours, theirs) else { return };
        let (mut a, mut b) = (TokioIo::new(a), TokioIo::new(b));
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut a, &mut b) => {}
            _ = stop.wait_for(|s| *s) => {}
        }
    });
    let (parts, _) = answer.into_parts();
    let mut out = Response::new(empty());
    *out.status_mut() = parts.status;
    *out.headers_mut() = parts.headers;
    Ok(out)
}

/// An answer that is no upgrade: a log, or a refusal in plain words.
async fn relay(answer: Response<Incoming>, permit: tokio::sync::OwnedSemaphorePermit) -> Result<Response<Out>> {
    let (parts, body) = answer.into_parts();
    if parts.status.is_success() {
        let mut out = Response::new(passed_on(body, permit));
        out.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain"));
        return Ok(out);
    }
    let bytes = http_body_util::Limited::new(body, 64 << 10).collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    let why = String::from_utf8_lossy(&bytes).trim().to_owned();
    Err(match parts.status.as_u16() {
        404 => Status { code: 404, reason: "NotFound", message: why, details: Value::Null },
        400..500 => Status::bad_request(why),
        _ => Status { code: 500, reason: "InternalError", message: why, details: Value::Null },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_container_is_the_only_one_or_the_one_named() {
        let pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]}});
        assert_eq!(container(&pod, "p", "i").unwrap(), "i");
        let e = container(&pod, "p", "").unwrap_err();
        assert_eq!(
            (e.code, e.message.as_str()),
            (
                400,
                "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]"
            )
        );
        assert_eq!(container(&pod, "p", "x").unwrap_err().message, "container x is not valid for pod p");
        assert_eq!(container(&json!({"spec": {"containers": [{"name": "a"}]}}), "p", "").unwrap(), "a");
    }

    #[test]
    fn the_query_is_in_the_kubelets_words() {
        assert_eq!(
            query("command=a%26b&command=c&container=x&stdin=true&stdout=true&stderr=true&tty=true"),
            "command=a%26b&command=c&input=true&output=true&error=true&tty=true"
        );
        assert_eq!(query("follow=true&tailLines=3"), "follow=true&tailLines=3");
    }
}
