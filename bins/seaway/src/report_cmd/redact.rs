//! What a bundle must not say: secrets are replaced before anything is kept, by what a thing is called and by what it
//! looks like.

use serde_json::Value;

/// What stands in place of a secret.
pub const GONE: &str = "[redacted]";

/// Words in the name of a field, flag or variable whose value is a secret.
const NAMES: &[&str] = &[
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "credential",
    "authorization",
    "apikey",
    "api-key",
    "api_key",
    "private-key",
    "private_key",
    "privatekey",
    "keydata",
    "key-data",
    "key_data",
    "bearer",
    "cookie",
    "psk",
];

/// Whether a thing of this name holds a secret. Names of files (`keyfile`) are none.
fn secret_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let file = name.ends_with("file") || name.ends_with("path") || name.ends_with("dir");
    !file && NAMES.iter().any(|n| name.contains(n))
}

/// Whether a word looks like a secret, whatever it is called: a JSON web token, a long mixture of cases and digits without
/// the separators of names, a key of WireGuard's or SSH's.
fn secret_look(word: &str) -> bool {
    if word.starts_with("eyJ") && word.len() > 20 && word.matches('.').count() >= 2 {
        return true;
    }
    let plain = word.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=' | b'_' | b'-'));
    let has = |f: fn(&u8) -> bool| word.bytes().filter(f).count();
    let (upper, lower, digits) = (has(u8::is_ascii_uppercase), has(u8::is_ascii_lowercase), has(u8::is_ascii_digit));
    // A path has lower-case words between its slashes; a hash has no upper case and says nothing.
    plain && word.len() >= 28 && upper >= 4 && lower >= 4 && digits >= 2 && word.matches('-').count() < 4
}

/// A JSON value without its secrets. In annotations and environment variables, whose names are anybody's, every word that
/// looks like a secret goes as well, as everywhere.
pub fn json(value: &mut Value) {
    match value {
        Value::Object(map) => {
            // Environment variables: {"name": "X_TOKEN", "value": "..."}.
            let named = map.get("name").and_then(Value::as_str).is_some_and(secret_name);
            for (k, v) in map.iter_mut() {
                if (secret_name(k) || (named && k == "value")) && !v.is_null() && !v.is_boolean() {
                    *v = GONE.into();
                } else {
                    json(v);
                }
            }
        }
        Value::Array(all) => {
            // Arguments of a command: "--token", "abc".
            let mut after = false;
            for v in all {
                let flag = v.as_str().is_some_and(|s| s.starts_with("--") && !s.contains('=') && secret_name(s));
                if after && v.is_string() {
                    *v = GONE.into();
                } else {
                    json(v);
                }
                after = flag;
            }
        }
        Value::String(s) => *s = text(s),
        _ => {}
    }
}

/// A text without its secrets, line by line. JSON is read as such.
pub fn text(whole: &str) -> String {
    if whole.trim_start().starts_with(['{', '['])
        && let Ok(mut v) = serde_json::from_str::<Value>(whole)
    {
        json(&mut v);
        return serde_json::to_string_pretty(&v).unwrap_or_default() + "\n";
    }
    let mut out = String::with_capacity(whole.len());
    let mut in_key = false;
    for l in whole.split_inclusive('\n') {
        if l.contains("-----BEGIN") {
            in_key = true;
            out += GONE;
            out.push('\n');
        }
        if !in_key {
            out += &line(l);
        }
        if l.contains("-----END") {
            in_key = false;
        }
    }
    out
}

fn line(l: &str) -> String {
    let (body, end) = l.strip_suffix('\n').map_or((l, ""), |b| (b, "\n"));
    // A line that is an object, as of a log.
    if body.trim_start().starts_with('{')
        && let Ok(mut v) = serde_json::from_str::<Value>(body)
    {
        json(&mut v);
        return v.to_string() + end;
    }
    let mut out = String::with_capacity(body.len());
    // The word before said that a secret follows.
    let mut next = false;
    for part in body.split_inclusive([' ', '\t', ',', ';', '"', '\'', '\0']) {
        let word = part.trim_end_matches([' ', '\t', ',', ';', '"', '\'', '\0']);
        let tail = part.get(word.len()..).unwrap_or_default();
        if word.is_empty() {
            out += tail;
            continue;
        }
        let (name, value) = word.split_once(['=', ':']).unwrap_or((word, ""));
        if next && !matches!(word, "=" | ":") {
            let again = word.eq_ignore_ascii_case("bearer") || word.eq_ignore_ascii_case("basic");
            out += if again { word } else { GONE };
            out += tail;
            next = again;
            continue;
        }
        next &= matches!(word, "=" | ":");
        if secret_name(name) && !value.is_empty() && !value.starts_with("//") {
            let at = name.len() + 1;
            out += word.get(..at).unwrap_or_default();
            out += GONE;
        } else {
            // `--token abc`, `token: abc`, `Bearer abc`.
            let announces = name.starts_with("--") || word.ends_with([':', '=']) || name.eq_ignore_ascii_case("bearer");
            next |= value.is_empty() && announces && secret_name(name);
            out += &look(word);
        }
        out += tail;
    }
    out + end
}

/// A word: the user of a URL goes, and what looks like a secret.
fn look(word: &str) -> String {
    if let Some((scheme, rest)) = word.split_once("://")
        && let Some((user, host)) = rest.split_once('@')
        && !user.contains('/')
    {
        return format!("{scheme}://{GONE}@{host}");
    }
    let value = word.rsplit_once(['=', ':']).map_or(word, |(_, v)| v);
    if secret_look(word) {
        GONE.into()
    } else if secret_look(value) {
        format!("{}{GONE}", word.strip_suffix(value).unwrap_or_default())
    } else {
        word.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_go() {
        for (given, planted) in [
            ("--etcd-password hunter2 --node n1", "hunter2"),
            ("--etcd-password=hunter2", "hunter2"),
            ("SEAWAY_ETCD_PASSWORD=hunter2", "hunter2"),
            ("token: abc.def", "abc.def"),
            ("Authorization: Bearer s3cr3t", "s3cr3t"),
            ("GET https://joe:hunter2@host/x", "hunter2"),
            ("x eyJhbGciOiJSUzI1NiIsImtpZCI6IngifQ.eyJzdWIiOiJhIn0.c2ln y", "eyJhbGci"),
            ("key = yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=", "yAnz5TF"),
            ("-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEI\n-----END EC PRIVATE KEY-----\n", "MHcCAQEEI"),
            (r#"{"plugins": [{"type": "x", "policy": {"k8s_auth_token": "hunter2"}}]}"#, "hunter2"),
            (r#"{"env": [{"name": "DB_PASSWORD", "value": "hunter2"}], "args": ["--token", "hunter2"]}"#, "hunter2"),
            (r#"{"metadata": {"annotations": {"a.io/x": "Zk3kQ9vT2mB7xR4wL8nP6sD1fH5j"}}}"#, "Zk3kQ9vT2"),
        ] {
            let said = text(given);
            assert!(!said.contains(planted) && said.contains(GONE), "{given}: {said}");
        }
    }

    #[test]
    fn what_is_none_stays() {
        for given in [
            "10.244.1.0/24 via 10.244.1.0 dev seaway.1 onlink\n",
            "2026-11-21T13:12:46.714186Z  INFO wrote /etc/cni/net.d/10-seaway.conflist\n",
            "22:1e:35:0c:d0:92 dst 172.31.1.12 self permanent\n",
            "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt\n",
            "Pod/kube-system/coredns-5d78c9869d-x2kfp uid 9f1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9\n",
            "--etcd-keyfile /etc/etcd/key.pem --etcd-cafile=/etc/etcd/ca.pem\n",
        ] {
            assert_eq!(text(given), given);
        }
    }
}
