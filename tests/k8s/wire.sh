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

# A namespace beyond the nodes' link, behind the switch as its router: from there upstream's tests ask, which take an
# address of the nodes' range for a node's.
outside() {
    local ns=$PREFIX-out
    ip netns add "$ns"; ip -n "$ns" link set lo up
    ip -n "$PREFIX-sw" link add out type veth peer name eth0 netns "$ns"
    ip -n "$PREFIX-sw" link set out up; ip -n "$ns" link set eth0 up
    ip -n "$PREFIX-sw" addr add 192.0.2.1/24 dev out; ip -n "$ns" addr add 192.0.2.2/24 dev eth0
    ip -n "$ns" route add default via 192.0.2.1
    ip -n "$PREFIX-sw" addr add fd89::1/64 dev out nodad; ip -n "$ns" addr add fd89::2/64 dev eth0 nodad
    ip -n "$ns" -6 route add default via fd89::1
    # Of the Internet's addresses, two that upstream's tests ask; nothing of it leaves this machine.
    ip -n "$ns" addr add 8.8.8.8/32 dev lo; ip -n "$PREFIX-sw" route add 8.8.8.8 via 192.0.2.2
    ip -n "$ns" addr add 2001:4860:4860::8888/128 dev lo nodad; ip -n "$PREFIX-sw" -6 route add 2001:4860:4860::8888 via fd89::2
    in_net sw sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding'
    world
}

# Who answers there: a name server with what those addresses are really called, which knows no other name, and a web
# server that says whom it sees.
world() {
    printf '.:53 {\n bind 8.8.8.8 2001:4860:4860::8888\n file %s .\n}\n' "$STATE/world.zone" >"$STATE/world"
    cat >"$STATE/world.zone" <<Z
. 5 IN SOA a.root-servers.net. nobody.invalid. 1 1800 900 604800 5
. 5 IN NS a.root-servers.net.
google.com. 5 IN A 192.0.2.2
google.com. 5 IN AAAA fd89::2
dns.google. 5 IN A 8.8.8.8
dns.google. 5 IN AAAA 2001:4860:4860::8888
8.8.8.8.in-addr.arpa. 5 IN PTR dns.google.
8.8.8.8.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.8.4.0.6.8.4.1.0.0.2.ip6.arpa. 5 IN PTR dns.google.
Z
    daemon world-dns out "$BIN/coredns" -conf "$STATE/world"
    daemon world-web out "$BIN/agnhost" netexec --http-port=80 --udp-port=-1
}
