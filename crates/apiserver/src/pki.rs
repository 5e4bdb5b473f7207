//! The server's own certificate authority, its server certificate and the admin's client certificate.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;

use crate::ServeError;

/// The key pairs of one server, on disk in one folder: `ca.crt ca.key server.crt server.key admin.crt admin.key`.
#[derive(Debug, Clone)]
pub(crate) struct Pki {
    dir: PathBuf,
}

fn ca_params() -> CertificateParams {
    let mut p = CertificateParams::default();
    let mut dn = DistinguishedName::new();
    dn.push(DnType::CommonName, "seaway-api-ca");
    p.distinguished_name = dn;
    p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    p.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    p
}

fn leaf(
    cn: &str,
    org: Option<&str>,
    usage: ExtendedKeyUsagePurpose,
    sans: Vec<String>,
) -> Result<CertificateParams, rcgen::Error> {
    // `new` tells addresses from names.
    let mut p = CertificateParams::new(sans)?;
    let mut dn = DistinguishedName::new();
    if let Some(org) = org {
        dn.push(DnType::OrganizationName, org);
    }
    dn.push(DnType::CommonName, cn);
    p.distinguished_name = dn;
    p.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    p.extended_key_usages = vec![usage];
    p.use_authority_key_identifier_extension = true;
    Ok(p)
}

impl Pki {
    /// Reads the folder, making what is missing: the CA and the admin's pair once, the server's pair at every start
    /// (its names follow the settings).
    pub(crate) fn open(dir: &Path, sans: &[String]) -> Result<Self, ServeError> {
        let pki = Self { dir: dir.to_path_buf() };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| pki.error(dir, &e))?;
        let (ca_crt, ca_key) = (dir.join("ca.crt"), dir.join("ca.key"));
        let key = if ca_key.exists() {
            let text = fs::read_to_string(&ca_key).map_err(|e| pki.error(&ca_key, &e))?;
            KeyPair::from_pem(&text).map_err(|e| pki.error(&ca_key, &e))?
        } else {
            KeyPair::generate().map_err(|e| pki.error(&ca_key, &e))?
        };
        if !ca_crt.exists() || !ca_key.exists() {
            let cert = ca_params().self_signed(&key).map_err(|e| pki.error(&ca_crt, &e))?;
            pki.put("ca.crt", &cert.pem())?;
            pki.put("ca.key", &key.serialize_pem())?;
            // Pairs signed by an older CA are of no use.
            let _ = fs::remove_file(dir.join("admin.crt"));
        }
        let issuer = Issuer::new(ca_params(), key);
        let mut all = vec!["localhost".to_owned(), "127.0.0.1".into(), "::1".into()];
        for n in ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
        {
            all.push(n.into());
        }
        all.extend(sans.iter().cloned());
        all.sort();
        all.dedup();
        let server = leaf("seaway-apiserver", None, ExtendedKeyUsagePurpose::ServerAuth, all);
        pki.sign("server", server, &issuer)?;
        if !dir.join("admin.crt").exists() || !dir.join("admin.key").exists() {
            let admin = leaf("admin", Some("system:masters"), ExtendedKeyUsagePurpose::ClientAuth, Vec::new());
            pki.sign("admin", admin, &issuer)?;
        }
        Ok(pki)
    }

    fn sign(
        &self,
        name: &str,
        params: Result<CertificateParams, rcgen::Error>,
        issuer: &Issuer<'_, KeyPair>,
    ) -> Result<(), ServeError> {
        let path = self.dir.join(format!("{name}.crt"));
        let params = params.map_err(|e| self.error(&path, &e))?;
        let key = KeyPair::generate().map_err(|e| self.error(&path, &e))?;
        let cert = params.signed_by(&key, issuer).map_err(|e| self.error(&path, &e))?;
        // The key first: a certificate on disk always has its key.
        self.put(&format!("{name}.key"), &key.serialize_pem())?;
        self.put(&format!("{name}.crt"), &cert.pem())
    }

    /// Writes beside and renames, so that a crash leaves the old file or the new one.
    fn put(&self, name: &str, text: &str) -> Result<(), ServeError> {
        let path = self.dir.join(name);
        let tmp = self.dir.join(format!(".{name}.tmp"));
        let write = || -> std::io::Result<()> {
            let _ = fs::remove_file(&tmp);
            let mut f = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&tmp)?;
            f.write_all(text.as_bytes())?;
            f.sync_all()?;
            fs::rename(&tmp, &path)
        };
        write().map_err(|e| self.error(&path, &e))
    }

    fn error(&self, path: &Path, e: &dyn std::fmt::Display) -> ServeError {
        ServeError::Pki { path: path.to_path_buf(), dir: self.dir.clone(), problem: e.to_string() }
    }

    /// A rustls configuration that demands a client certificate of our CA.
    pub(crate) fn server_config(&self) -> Result<rustls::ServerConfig, ServeError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        for c in self.certs("ca.crt")? {
            roots.add(c).map_err(|e| self.error(&self.dir.join("ca.crt"), &e))?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .map_err(|e| self.error(&self.dir.join("ca.crt"), &e))?;
        let path = self.dir.join("server.crt");
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| self.error(&path, &e))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.certs("server.crt")?, self.key("server.key")?)
            .map_err(|e| self.error(&path, &e))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }

    fn certs(&self, name: &str) -> Result<Vec<CertificateDer<'static>>, ServeError> {
        let path = self.dir.join(name);
        let text = fs::read(&path).map_err(|e| self.error(&path, &e))?;
        rustls_pemfile::certs(&mut text.as_slice()).collect::<Result<_, _>>().map_err(|e| self.error(&path, &e))
    }

    fn key(&self, name: &str) -> Result<PrivateKeyDer<'static>, ServeError> {
        let path = self.dir.join(name);
        let text = fs::read(&path).map_err(|e| self.error(&path, &e))?;
        rustls_pemfile::private_key(&mut text.as_slice())
            .map_err(|e| self.error(&path, &e))?
            .ok_or_else(|| self.error(&path, &"no private key in the file"))
    }
}

/// A kubeconfig (one cluster, user and context, all named `cluster`) with the admin's pair of the key folder `pki_dir`
/// embedded: the whole access, so keep it as a secret. `server` is the URL, e.g. `https://127.0.0.1:6443`.
///
/// # Errors
/// [`ServeError::Pki`] when the folder holds no key pairs (no server has started with it yet).
pub fn kubeconfig(pki_dir: &Path, cluster: &str, server: &str) -> Result<String, ServeError> {
    let read = |name: &str| {
        let path = pki_dir.join(name);
        fs::read(&path).map(|b| STANDARD.encode(b)).map_err(|e| ServeError::Pki {
            path,
            dir: pki_dir.to_path_buf(),
            problem: e.to_string(),
        })
    };
    let (ca, cert, key) = (read("ca.crt")?, read("admin.crt")?, read("admin.key")?);
    // Names go through the JSON printer: YAML takes JSON strings, so odd characters cannot break out.
    let (cluster, server) = (serde_json::Value::from(cluster), serde_json::Value::from(server));
    Ok(format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: {cluster}\nclusters:\n- name: {cluster}\n  cluster:\n    server: {server}\n    \
         certificate-authority-data: {ca}\nusers:\n- name: {cluster}\n  user:\n    client-certificate-data: {cert}\n    \
         client-key-data: {key}\ncontexts:\n- name: {cluster}\n  context:\n    cluster: {cluster}\n    user: {cluster}\n"
    ))
}

/// A bound address as a certificate name; the wildcard address is none.
pub(crate) fn san(addr: IpAddr) -> Option<String> {
    (!addr.is_unspecified()).then(|| addr.to_string())
}
