//! The late chains: what becomes of packets to addresses of Services that nobody translated.

use kernel_api::nft::{ChainKind, CmpOp, Expr, Hook, HookPoint, Reg, Verdict};
use types::Family;

use crate::image::Rule;
use crate::layout::{ChainRow, DROP_NO_SERVICE, REJECT_UNUSED_PORT, RuleBuilder, goto, in_family, plain};

/// After everybody's translations, those of the firewalls that come later than most included: what is still to an
/// address of Services by then, nobody serves.
const LATE: i32 = -50;
/// `RTN_LOCAL` (include/uapi/linux/rtnetlink.h).
const LOCAL_TYPE: u32 = 2;

/// What ends packets to addresses of Services that nobody translated: base chains and one for each family. Without them
/// such packets go wherever the routes lead.
pub(crate) fn chains() -> Vec<ChainRow> {
    let hook = |point| Some(Hook { kind: ChainKind::Nat, point, priority: LATE, drop: false });
    let each = |rules: &dyn Fn(Family) -> Vec<Rule>| Family::BOTH.into_iter().flat_map(rules).collect::<Vec<_>>();
    let rest = |f| RuleBuilder::of(f).then(goto(&in_family("unserved", f)));
    let mut out = vec![
        (
            "late_prerouting".into(),
            hook(HookPoint::Prerouting),
            each(&|f| {
                // It comes from outside, so it was led here, and nobody else serves the address.
                let led_here = RuleBuilder::of(f).daddr_in("outside_ips", false).saddr_in("cluster_cidrs", true);
                vec![led_here.of_services_alone().then(goto(REJECT_UNUSED_PORT)), rest(f)]
            }),
        ),
        ("late_output".into(), hook(HookPoint::Output), each(&|f| vec![rest(f)])),
        (DROP_NO_SERVICE.into(), None, vec![plain(vec![Expr::Verdict(Verdict::Drop)])]),
    ];
    out.extend(Family::BOTH.map(|f| {
        let rule = || RuleBuilder::of(f);
        let own = rule().daddr_in("outside_ips", false).daddr_in("balancer_ranges", false);
        let rules = vec![
            rule().daddr_in("cluster_ips", false).then(goto(REJECT_UNUSED_PORT)),
            own.of_services_alone().then(goto(REJECT_UNUSED_PORT)),
            rule().daddr_in("service_cidrs", false).of_services_alone().then(goto(DROP_NO_SERVICE)),
        ];
        (in_family("unserved", f), None, rules)
    }));
    out
}

impl RuleBuilder {
    /// To an address that neither a node nor a pod nor an interface of this machine has: these serve what they please.
    fn of_services_alone(self) -> Self {
        let mut r =
            self.daddr_in("node_addresses", true).daddr_in("node_port_addresses", true).daddr_in("cluster_cidrs", true);
        r.push(Expr::FibDaddrType { dreg: Reg(0) });
        r.push(Expr::Cmp { sreg: Reg(0), op: CmpOp::Neq, data: LOCAL_TYPE.to_ne_bytes().to_vec() });
        r
    }
}
