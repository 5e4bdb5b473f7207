//! `CNI_ARGS` as the reference plugins take it: `KEY=VALUE;KEY=VALUE`, a key that the plugin does not know refused
//! unless `IgnoreUnknown` says otherwise.

use cni::{Call, Code, Error};

fn bad(what: impl std::fmt::Display) -> Error {
    Error::new(Code::InvalidEnvironment, format!("invalid environment: CNI_ARGS: {what}"))
}

/// The values of `known`, in that order; an empty one counts as absent.
///
/// # Errors
/// Code 4, naming the key: a pair without `=`, an unknown key without `IgnoreUnknown=1`.
pub(crate) fn known<'a, const N: usize>(call: &'a Call, known: [&str; N]) -> Result<[Option<&'a str>; N], Error> {
    let mut out = [None; N];
    let (mut unknown, mut ignore) = (None, false);
    for pair in call.args.split(';').filter(|p| !p.is_empty()) {
        let Some((key, value)) = pair.split_once('=') else {
            return Err(bad(format!("{pair:?} is not KEY=VALUE")));
        };
        if key == "IgnoreUnknown" {
            ignore = match value.to_ascii_lowercase().as_str() {
                "1" | "true" => true,
                "0" | "false" => false,
                _ => return Err(bad(format!("IgnoreUnknown is {value:?}: true or false"))),
            };
        } else if let Some(slot) = known.iter().position(|k| *k == key).and_then(|i| out.get_mut(i)) {
            *slot = Some(value).filter(|v| !v.is_empty());
        } else {
            unknown = unknown.or(Some(key));
        }
    }
    match unknown.filter(|_| !ignore) {
        Some(key) => Err(bad(format!("{key} is not known; add IgnoreUnknown=1 to have such keys ignored"))),
        None => Ok(out),
    }
}
