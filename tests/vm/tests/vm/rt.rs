//! Our own rtnetlink on this kernel, with iproute2 as the witness.

use kernel::Rt;
use kernel_api::Rtnetlink as _;
use kernel_api::rt::{Address, LinkKind, ROUTE_PROTOCOL, Route, RouteTo, RtRequest, SetLink};
use vm::in_vm;

use crate::tools::{ip, name};

#[test]
fn addresses_and_routes_on_a_dummy() {
    in_vm!();
    ip("link add d0 type dummy");
    let mut rt = Rt::open().unwrap();
    let address = |a: &str, prefix_len| Address::new(name("d0"), a.parse().unwrap(), prefix_len);
    let addresses = [address("192.0.2.1", 24), address("2001:db8::1", 64)];
    let route = |dst: &str, metric, gateway: &str| Route {
        metric,
        ..Route::new(
            dst.parse().unwrap(),
            RouteTo::Via { gateway: gateway.parse().unwrap(), link: name("d0"), onlink: false },
        )
    };
    let routes = [route("198.51.100.0/24", 0, "192.0.2.9"), route("2001:db8:1::/64", 1024, "2001:db8::9")];
    rt.run(&[RtRequest::LinkSet(SetLink::up(name("d0")))]).unwrap();
    rt.run(&addresses.clone().map(RtRequest::AddressAdd)).unwrap();
    rt.run(&routes.clone().map(RtRequest::RouteReplace)).unwrap();

    let link = rt.links().unwrap().into_iter().find(|l| l.name == name("d0")).unwrap();
    assert!(link.up && link.kind == LinkKind::Dummy, "{link:?}");
    let seen = rt.addresses().unwrap();
    assert!(addresses.iter().all(|a| seen.contains(a)), "{seen:?}");
    let mut ours: Vec<Route> =
        rt.routes().unwrap().into_iter().filter(|r| r.protocol == ROUTE_PROTOCOL).map(|r| r.route).collect();
    ours.sort();
    assert_eq!(ours, routes);
    assert!(ip("route show proto 83").starts_with("198.51.100.0/24 via 192.0.2.9 dev d0"));
    assert!(ip("-6 route show proto 83").starts_with("2001:db8:1::/64 via 2001:db8::9 dev d0 metric 1024"));
}
