//! A server from the command line: `apiserver STORE ADDR [UNIX-SOCKET]` serves HTTPS on ADDR (`127.0.0.1:0` takes a free
//! port), writes `STORE.kubeconfig`, prints the URL, and ends at SIGINT or SIGTERM.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use apiserver::{Config, ServeError, Server, TlsConfig};

#[tokio::main]
async fn main() -> Result<(), ServeError> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [store, addr, rest @ ..] = args.as_slice() else {
        return Err(ServeError::other("usage: apiserver STORE ADDR [UNIX-SOCKET]"));
    };
    let mut config = Config::new(store);
    config.tls = Some(TlsConfig { addrs: vec![addr.parse().map_err(ServeError::other)?], ..TlsConfig::default() });
    config.unix = rest.first().map(Into::into);
    let server = Server::start(config).await?;
    let url = format!("https://{}", server.tls_addrs()[0]);
    let text = server.kubeconfig("seaway", &url)?;
    let path = format!("{store}.kubeconfig");
    let _ = std::fs::remove_file(&path);
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    file.and_then(|mut f| f.write_all(text.as_bytes())).map_err(ServeError::other)?;
    println!("{url}");
    let mut term =
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).map_err(ServeError::other)?;
    server
        .run(async move {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = term.recv() => {}
            }
        })
        .await
}
