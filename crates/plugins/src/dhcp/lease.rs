//! What a server's acknowledgement says, as a result of CNI.

use std::net::Ipv4Addr;

use cni::{CniResult, Error, Ip, IpNet, RouteConf};
use types::Cidr;

use super::packet::{Message, code};
use super::wrong;

/// `RT_SCOPE_LINK`
const LINK: u8 = 253;

/// Address, gateway and routes of an acknowledgement. Classless routes stand instead of static ones and of the router
/// (RFC 3442).
///
/// # Errors
/// When it has no subnet mask, or one with holes.
pub fn result(ack: &Message) -> Result<CniResult, Error> {
    let mask = match ack.addresses(code::MASK).as_slice() {
        [m] => u32::from(*m),
        _ => return Err(wrong("the server's answer has no subnet mask (option 1)")),
    };
    if mask.leading_ones() + mask.trailing_zeros() != 32 && mask != u32::MAX {
        return Err(wrong(format!("the server's subnet mask {} has holes", Ipv4Addr::from(mask))));
    }
    let len = u8::try_from(mask.leading_ones()).unwrap_or(32);
    let gateway = ack.addresses(code::ROUTER).first().copied();
    let address = IpNet { addr: ack.yiaddr.into(), len };
    let ips = vec![Ip { interface: None, address, gateway: gateway.map(Into::into) }];
    let routes = match ack.option(code::CLASSLESS_ROUTES).map(classless).filter(|r| !r.is_empty()) {
        Some(routes) => routes,
        None => {
            let mut routes = classful(&ack.addresses(code::STATIC_ROUTES));
            let everywhere = Cidr::any(types::Family::V4);
            routes.extend(gateway.map(|gw| RouteConf::new(everywhere, Some(gw.into()))));
            routes
        }
    };
    Ok(CniResult { ips, routes, ..CniResult::default() })
}

/// Pairs of destination and router; the destination's class says how long its prefix is.
fn classful(pairs: &[Ipv4Addr]) -> Vec<RouteConf> {
    let one = |p: &[Ipv4Addr]| {
        let (dst, gw) = (p.first()?, p.get(1)?);
        let len = match dst.octets()[0] {
            0..128 => 8,
            128..192 => 16,
            192..224 => 24,
            // No class, no length.
            _ => return None,
        };
        Some(RouteConf::new(Cidr::new((*dst).into(), len)?, Some((*gw).into())))
    };
    pairs.chunks_exact(2).filter_map(one).collect()
}

/// RFC 3442: a length, as many bytes of the destination as it needs, the router; as far as it is whole.
fn classless(mut bytes: &[u8]) -> Vec<RouteConf> {
    let mut out = Vec::new();
    while let [len @ 0..=32, rest @ ..] = bytes {
        let n = usize::from(len.div_ceil(8));
        let Some((dst, rest)) = rest.split_at_checked(n) else { break };
        let Some((gw, rest)) = rest.split_first_chunk::<4>() else { break };
        let mut addr = [0; 4];
        for (a, b) in addr.iter_mut().zip(dst) {
            *a = *b;
        }
        let gw = Ipv4Addr::from(*gw);
        if let Some(dst) = Cidr::new(Ipv4Addr::from(addr).into(), *len) {
            out.push(if gw.is_unspecified() {
                // On the link itself.
                RouteConf { scope: Some(LINK), ..RouteConf::new(dst, None) }
            } else {
                RouteConf::new(dst, Some(gw.into()))
            });
        }
        bytes = rest;
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::dhcp::packet::Kind;
    use types::Mac;

    fn ack(options: &[(u8, &[u8])]) -> Message {
        let mut m = Message::new(Kind::Ack, 1, Mac([2; 6]));
        m.yiaddr = Ipv4Addr::new(10, 1, 2, 9);
        for (c, v) in options {
            m.set(*c, v.to_vec());
        }
        m
    }

    fn told(options: &[(u8, &[u8])]) -> String {
        match result(&ack(options)) {
            Err(e) => e.msg,
            Ok(r) => {
                let gw = |g: Option<std::net::IpAddr>| g.map_or("-".into(), |g| g.to_string());
                let routes = r.routes.iter().map(|r| format!("; {} {}", r.dst, gw(r.gw)));
                format!("{} {}{}", r.ips[0].address, gw(r.ips[0].gateway), routes.collect::<String>())
            }
        }
    }

    #[test]
    fn options_become_addresses_and_routes() {
        let mask: (u8, &[u8]) = (1, &[255, 255, 255, 0]);
        let router: (u8, &[u8]) = (3, &[10, 1, 2, 1, 10, 1, 2, 2]);
        assert_eq!(told(&[mask]), "10.1.2.9/24 -");
        assert_eq!(told(&[mask, router]), "10.1.2.9/24 10.1.2.1; 0.0.0.0/0 10.1.2.1");
        let fixed: (u8, &[u8]) =
            (33, &[10, 9, 9, 0, 10, 1, 2, 3, 192, 168, 5, 0, 10, 1, 2, 4, 224, 0, 0, 1, 1, 1, 1, 1]);
        assert_eq!(
            told(&[mask, router, fixed]),
            "10.1.2.9/24 10.1.2.1; 10.0.0.0/8 10.1.2.3; 192.168.5.0/24 10.1.2.4; 0.0.0.0/0 10.1.2.1"
        );
        let classless: (u8, &[u8]) =
            (121, &[0, 10, 1, 2, 7, 20, 172, 16, 255, 10, 1, 2, 8, 32, 9, 9, 9, 9, 0, 0, 0, 0, 99]);
        assert_eq!(
            told(&[mask, router, fixed, classless]),
            "10.1.2.9/24 10.1.2.1; 0.0.0.0/0 10.1.2.7; 172.16.240.0/20 10.1.2.8; 9.9.9.9/32 -"
        );
        assert!(told(&[]).contains("no subnet mask"));
        assert!(told(&[(1, &[255, 0, 255, 0])]).contains("holes"));
        assert_eq!(told(&[(1, &[255; 4])]), "10.1.2.9/32 -");
    }
}
