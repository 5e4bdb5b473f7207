//! The configuration of `dhcp`: which options to send and to ask for.

use cni::{Error, Fields, bad};

use super::packet::code;

/// Where the daemon listens unless `daemonSocketPath` or `-socketpath` says otherwise.
pub const SOCKET: &str = "/run/cni/dhcp.sock";

/// `ipam` of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conf {
    /// The daemon's socket.
    pub socket: String,
    /// Options of every message to the server, each once.
    pub options: Vec<(u8, Vec<u8>)>,
    /// Metric of the routes.
    pub priority: Option<u32>,
}

/// An option by its name or number.
fn option(text: &str, at: &str) -> Result<u8, Error> {
    Ok(match text {
        "dhcp-client-identifier" => code::CLIENT_ID,
        "subnet-mask" => code::MASK,
        "routers" => code::ROUTER,
        "host-name" => code::HOST_NAME,
        "user-class" => code::USER_CLASS,
        "vendor-class-identifier" => code::VENDOR_CLASS,
        n => n.parse().ok().filter(|n| !matches!(n, 0 | 255)).ok_or_else(|| {
            bad(format!(
                "{at} is {n:?}: the number of an option from 1 to 254, or one of dhcp-client-identifier, \
                subnet-mask, routers, host-name, user-class, vendor-class-identifier"
            ))
        })?,
    })
}

impl Conf {
    /// Reads it; `args` is `CNI_ARGS`, from which `fromArg` takes values.
    ///
    /// # Errors
    /// Code 7, naming the field.
    pub fn read(conf: &Fields<'_>, args: &str) -> Result<Self, Error> {
        let ipam = conf.object("ipam")?.ok_or_else(|| bad("ipam is missing"))?;
        let socket = ipam.text("daemonSocketPath")?.filter(|p| !p.is_empty()).unwrap_or(SOCKET).to_owned();
        let arg =
            |key: &str| args.split(';').filter_map(|p| p.split_once('=')).find(|(k, _)| *k == key).map(|(_, v)| v);
        let mut options: Vec<(u8, Vec<u8>)> = Vec::new();
        let mut put = |code: u8, v: &str, at: String| {
            if v.len() > 255 {
                return Err(bad(format!("{at} has {} bytes: an option holds 255", v.len())));
            }
            options.retain(|(c, _)| *c != code);
            options.push((code, v.as_bytes().to_vec()));
            Ok(())
        };
        for p in ipam.objects("provide")? {
            let code = option(p.needed("option")?, &p.name("option"))?;
            if let Some(v) = p.text("value")?.filter(|v| !v.is_empty()) {
                put(code, v, p.name("value"))?;
            }
            if let Some(v) = p.text("fromArg")?.and_then(arg) {
                put(code, v, p.name("fromArg"))?;
            }
        }
        let (mut asked, mut usual) = (Vec::new(), true);
        for r in ipam.objects("request")? {
            usual &= !r.flag("skipDefault")?;
            if let Some(name) = r.text("option")?.filter(|n| !n.is_empty()) {
                asked.push(option(name, &r.name("option"))?);
            }
        }
        if usual {
            // Beyond the reference's two: routes that a server would otherwise keep to itself.
            asked.extend([code::MASK, code::CLASSLESS_ROUTES, code::ROUTER, code::STATIC_ROUTES]);
        }
        let mut once: Vec<u8> = Vec::new();
        asked.retain(|c| {
            !once.contains(c) && {
                once.push(*c);
                true
            }
        });
        if !asked.is_empty() {
            options.push((code::PARAMETERS, asked));
        }
        let priority = ipam.number("priority", 0..=u32::MAX)?.filter(|p| *p > 0);
        Ok(Self { socket, options, priority })
    }
}
