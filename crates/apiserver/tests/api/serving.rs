//! Sockets, TLS, discovery, start and stop.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use apiserver::{Config, ServeError, Server, TlsConfig};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};

use crate::harness::*;

#[tokio::test]
async fn discovery_names_every_resource_in_both_forms() {
    let h = Host::new().await;
    assert_eq!(h.get("/api").await["versions"], json!(["v1"]));
    let groups: Vec<String> = h.get("/apis").await["groups"]
        .as_array()
        .unwrap()
        .iter()
        .map(|g| g["name"].as_str().unwrap().to_owned())
        .collect();
    for g in ["apps", "discovery.k8s.io", "networking.k8s.io", "coordination.k8s.io", "events.k8s.io"] {
        assert!(groups.iter().any(|x| x == g), "{g}");
        assert_eq!(h.get(&format!("/apis/{g}")).await["preferredVersion"]["version"], "v1");
    }
    let core = h.get("/api/v1").await;
    let rows = core["resources"].as_array().unwrap();
    let find = |n: &str| rows.iter().find(|r| r["name"] == n).unwrap_or_else(|| panic!("{n} is missing"));
    assert_eq!((&find("pods")["shortNames"], &find("nodes")["namespaced"]), (&json!(["po"]), &json!(false)));
    assert_eq!(find("pods/binding")["kind"], "Binding");
    for n in
        ["namespaces", "services", "services/status", "endpoints", "configmaps", "secrets", "serviceaccounts", "events"]
    {
        find(n);
    }
    let agg = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let (_, v) = h.raw("GET", "/apis", &[("accept", agg)], "").await;
    assert_eq!(v["kind"], "APIGroupDiscoveryList");
    let apps = v["items"].as_array().unwrap().iter().find(|g| g["metadata"]["name"] == "apps").unwrap();
    let deploy =
        apps["versions"][0]["resources"].as_array().unwrap().iter().find(|r| r["resource"] == "deployments").unwrap();
    assert_eq!((&deploy["scope"], &deploy["responseKind"]["kind"]), (&json!("Namespaced"), &json!("Deployment")));
    assert_eq!(h.get("/version").await["major"], "1");
    for p in ["/healthz", "/livez", "/readyz"] {
        let r = h.send("GET", p, &[], "").await;
        assert_eq!(r.into_body().collect().await.unwrap().to_bytes(), "ok");
    }
    let _w = h.watch(&format!("{CMS}?watch=1")).await;
    let m = h.send("GET", "/metrics", &[], "").await.into_body().collect().await.unwrap().to_bytes();
    let m = String::from_utf8(m.to_vec()).unwrap();
    for line in [
        "seaway_apiserver_objects{resource=\"services\"} 1",
        "seaway_apiserver_requests_total{method=\"GET\",code=\"2xx\"}",
    ] {
        assert!(m.contains(line), "{line} is not in\n{m}");
    }
    let index = h.get("/openapi/v3").await;
    for (_, p) in index["paths"].as_object().unwrap() {
        let doc = h.get(p["serverRelativeURL"].as_str().unwrap()).await;
        assert!(doc["components"]["schemas"].as_object().unwrap().len() > 2);
    }
    assert!(h.get("/openapi/v2").await["definitions"]["Pod"].is_object());
}

#[tokio::test]
async fn files_are_for_the_owner_only() {
    let h = Host::tls().await;
    let mode = |p: &str| std::fs::metadata(h.dir.path().join(p)).unwrap().permissions().mode() & 0o777;
    for p in ["api.redb", "api.sock", "api.pki/ca.key", "api.pki/server.key", "api.pki/admin.key"] {
        assert_eq!(mode(p), 0o600, "{p}");
    }
    assert_eq!(mode("api.pki"), 0o700);
}

fn tls_client(dir: &std::path::Path, with_cert: bool) -> rustls::ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let read = |n: &str| std::fs::read(dir.join("api.pki").join(n)).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    for c in rustls_pemfile::certs(&mut read("ca.crt").as_slice()) {
        roots.add(c.unwrap()).unwrap();
    }
    let b = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    if with_cert {
        let certs = rustls_pemfile::certs(&mut read("admin.crt").as_slice()).map(Result::unwrap).collect();
        let key = rustls_pemfile::private_key(&mut read("admin.key").as_slice()).unwrap().unwrap();
        b.with_client_auth_cert(certs, key).unwrap()
    } else {
        b.with_no_client_auth()
    }
}

async fn over_tls(h: &Host, name: &str, with_cert: bool, h2: bool) -> Result<Value, Box<dyn std::error::Error>> {
    let mut c = tls_client(h.dir.path(), with_cert);
    if h2 {
        c.alpn_protocols = vec![b"h2".to_vec()];
    }
    let tcp = tokio::net::TcpStream::connect(h.url.strip_prefix("https://").unwrap()).await?;
    let tls =
        tokio_rustls::TlsConnector::from(Arc::new(c)).connect(ServerName::try_from(name.to_owned())?, tcp).await?;
    let req = http::Request::get(if h2 { "https://localhost/api" } else { "/api" })
        .header("host", "x")
        .body(Empty::<bytes::Bytes>::new())?;
    let body = if h2 {
        let (mut s, conn) =
            hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), TokioIo::new(tls)).await?;
        tokio::spawn(conn);
        s.send_request(req).await?.into_body().collect().await?
    } else {
        let (mut s, conn) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await?;
        tokio::spawn(conn);
        s.send_request(req).await?.into_body().collect().await?
    };
    Ok(serde_json::from_slice(&body.to_bytes())?)
}

#[tokio::test]
async fn tls_wants_a_certificate_of_our_own() {
    let h = Host::tls().await;
    for name in ["127.0.0.1", "localhost", "kubernetes.default.svc"] {
        assert_eq!(over_tls(&h, name, true, false).await.unwrap()["kind"], "APIVersions");
    }
    assert_eq!(over_tls(&h, "localhost", true, true).await.unwrap()["kind"], "APIVersions");
    assert!(over_tls(&h, "localhost", false, false).await.is_err(), "no certificate, no answer");
    assert!(over_tls(&h, "example.com", true, false).await.is_err(), "not a name of this server");
    // The keys outlive the server: old kubeconfigs go on working.
    let before = std::fs::read(h.dir.path().join("api.pki/admin.key")).unwrap();
    let h = Host::within(h.stop().await, |c| {
        c.tls = Some(TlsConfig { addrs: vec!["127.0.0.1:0".parse().unwrap()], ..TlsConfig::default() })
    })
    .await;
    assert_eq!(std::fs::read(h.dir.path().join("api.pki/admin.key")).unwrap(), before);
    assert!(over_tls(&h, "localhost", true, false).await.is_ok());
}

#[tokio::test]
async fn a_given_listener_is_used() {
    let l = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let want = l.local_addr().unwrap();
    let h = Host::with(|c| c.tls = Some(TlsConfig { listeners: vec![l], ..TlsConfig::default() })).await;
    assert_eq!(h.url, format!("https://{want}"));
    assert!(over_tls(&h, "127.0.0.1", true, false).await.is_ok());
}

async fn start_error(c: Config) -> ServeError {
    Server::start(c).await.expect_err("it started")
}

#[tokio::test]
async fn a_start_that_cannot_be_says_why() {
    let h = Host::new().await;
    let path = h.dir.path().join("api.redb");
    let e = start_error(Config { unix: Some(h.dir.path().join("two.sock")), ..Config::new(&path) }).await;
    assert!(matches!(&e, ServeError::StoreBusy(p) if *p == path), "{e:?}");
    let text = e.to_string();
    assert!(
        text.contains("api.redb") && text.contains("another API server") && text.contains("a store of its own"),
        "{text}"
    );

    let dir = tempfile::tempdir().unwrap();
    let bad = dir.path().join("bad.redb");
    std::fs::write(&bad, b"this is no store, it is a text of some length, longer than a header would be").unwrap();
    let text = start_error(Config { unix: Some(dir.path().join("s")), ..Config::new(&bad) }).await.to_string();
    assert!(text.contains("bad.redb") && text.contains("move it away"), "{text}");

    let fresh = || Config::new(dir.path().join("x.redb"));
    for (c, says) in [
        (fresh(), "nothing to listen on"),
        (Config { unix: Some("s".into()), service_cidrs: vec![], ..fresh() }, "service_cidrs"),
        (
            Config {
                unix: Some("s".into()),
                service_cidrs: vec!["10.0.0.0/16".parse().unwrap(), "10.1.0.0/16".parse().unwrap()],
                ..fresh()
            },
            "one of each family",
        ),
        (
            Config { unix: Some("s".into()), service_cidrs: vec!["10.0.0.0/31".parse().unwrap()], ..fresh() },
            "larger range",
        ),
        (Config { unix: Some(h.sock.clone()), ..fresh() }, "cannot listen on"),
        (
            Config {
                tls: Some(TlsConfig { addrs: vec!["192.0.2.1:1".parse().unwrap()], ..TlsConfig::default() }),
                ..fresh()
            },
            "192.0.2.1:1",
        ),
    ] {
        let text = start_error(c).await.to_string();
        assert!(text.contains(says), "{text:?} does not say {says:?}");
    }
}

#[tokio::test]
async fn stopping_ends_watches_and_leaves_no_socket() {
    let h = Host::new().await;
    let mut w = h.watch(&format!("{CMS}?watch=1")).await;
    let sock = h.sock.clone();
    let dir = h.stop().await;
    assert_eq!(w.next().await, None);
    assert!(!sock.exists());
    // A socket that a killed server left behind is replaced.
    drop(std::os::unix::net::UnixListener::bind(&sock).unwrap());
    assert!(sock.exists());
    let h = Host::within(dir, |_| {}).await;
    h.get("/api").await;
}
