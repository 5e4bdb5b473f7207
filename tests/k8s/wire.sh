# shellcheck shell=bash
# plug NAME IPV4 IPV6: a network namespace at the switch. Sourced after lib.sh.
plug() {
    local ns=$PREFIX-$1
    ip netns add "$ns"; ip -n "$ns" link set lo up
    ip -n "$PREFIX-sw" link add "p-$1" type veth peer name eth0 netns "$ns"
    ip -n "$PREFIX-sw" link set "p-$1" master br0 up; ip -n "$ns" link set eth0 up
    if [[ $FAMILY != ipv6 ]]; then ip -n "$ns" addr add "$2/24" dev eth0; ip -n "$ns" route add default via 10.88.0.1; fi
    if [[ $FAMILY != ipv4 ]]; then ip -n "$ns" addr add "$3/64" dev eth0 nodad; ip -n "$ns" -6 route add default via fd88::1; fi
}
