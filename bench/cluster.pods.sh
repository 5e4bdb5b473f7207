#!/usr/bin/env bash
# The second half of bench/cluster: started by it, not by hand. Brings up tests/k8s twice, with Seaway and with the reference
# plugins and kube-proxy, and makes many pods at once in each. WHO=seaway or WHO=peers: only one of them.
set -euo pipefail
cd "$(dirname "$0")/.."
source bench/lib.sh
need_root_and ip:iproute2 jq:jq nsenter:util-linux
count=${1:-100}
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
out=$(realpath -m "${OUT:-$target/bench}")
# Two nodes, as plain as both can be; beside another cluster, if there is one.
export NODES=2 FAMILY=ipv4 BACKEND=host-gw SEAWAY_K8S_NAME=${SEAWAY_K8S_NAME:-bench-k8s}
source tests/k8s/lib.sh; settings
[[ -x $BIN/kube-apiserver && -x $BIN/agnhost ]] || die "the cluster's programs are not built: make k8s-build"
[[ ! -e $STATE/settings ]] || die "$STATE: a cluster is there already: SEAWAY_K8S_NAME=$SEAWAY_K8S_NAME tests/k8s/down"
plugins=${PLUGINS:-/usr/lib/cni}
for p in bridge host-local loopback portmap; do
    [[ -x $plugins/$p ]] || die "$plugins/$p is missing: apt-get install --no-install-recommends containernetworking-plugins"
done
peer=$(realpath -m "${KUBE:-$target/peers}")
bench/peers "$peer"
if [[ -z ${SEAWAY_IMAGE:-} ]]; then make -s image >/dev/null; export SEAWAY_IMAGE=$target/image/seaway.tar; fi
work=$(mktemp -d)
trap 'rm -rf "$work"; tests/k8s/down || true' EXIT
rustc --edition 2024 -O -o "$work/cluster" bench/cluster.rs
note() { echo "$who,$NODES,$count,$1,$2" >>"$out/cluster.csv"; printf '%-8s %-46s %s\n' "$who" "$1" "$2"; }

# --- the peers: bridge, host-local and portmap, a route to each other node, kube-proxy in nftables mode
peers() {
    local n m cidr
    for n in $(seq $NODES); do
        for p in bridge host-local loopback portmap; do cp -L "$plugins/$p" "$STATE/node$n/cni-bin/"; done
        eventually 60 range "$n"; cidr=$(range "$n")
        cat >"$STATE/node$n/cni-conf/10-peer.conflist" <<J
{"cniVersion": "1.0.0", "name": "peer", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "isDefaultGateway": true, "hairpinMode": true, "ipMasq": false,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "$cidr"}]]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
J
        for ns in cp sw; do ip -n "$PREFIX-$ns" route replace "$cidr" via "$(node_v4 "$n")"; done
        for m in $(seq $NODES); do [[ $m == "$n" ]] || ip -n "$PREFIX-node$m" route replace "$cidr" via "$(node_v4 "$n")"; done
        in_net "node$n" sysctl -qw net.ipv4.ip_forward=1
        setsid nohup nsenter --target "$(node_init "$n")" --mount --uts --pid --ipc --net "$peer/kube-proxy" \
            --kubeconfig="$STATE/pki/admin.kubeconfig" --proxy-mode=nftables --cluster-cidr="$CLUSTER_CIDR" \
            --hostname-override="node$n" --conntrack-max-per-core=0 >>"$STATE/log/node$n-kube-proxy.log" 2>&1 </dev/null &
    done
}
range() { local c; c=$(kubectl get node "node$1" -o jsonpath='{.spec.podCIDR}'); [[ -n $c ]] && echo "$c"; }

# Processes of these nodes by their names; their CPU in hundredths of a second, with that of children that ended; what
# containerd's children took, which are the plugins, and on both sides alike what starts the shims.
named() { local n p; for n in $(seq $NODES); do for p in $(ip netns pids "$PREFIX-node$n"); do case " $* " in *" $(cat "/proc/$p/comm" 2>/dev/null) "*) echo "$p" ;; esac; done; done; }
agents() { named kube-proxy seaway; }
sum() { local t=0 p f=$1; shift; for p in "$@"; do t=$((t + $(awk "{sub(/.*\\) /, \"\"); print $f}" "/proc/$p/stat" 2>/dev/null || echo 0))); done; echo $t; }
ticks() { sum '$12 + $13 + $14 + $15' $(agents); }
plugins_ticks() { sum '$14 + $15' $(named containerd); }
rss() { local t=0 p; for p in $(agents); do t=$((t + $(sed -n 's/^VmRSS:[^0-9]*\([0-9]*\) kB/\1/p' "/proc/$p/status" 2>/dev/null || echo 0))); done; echo $t; }
ready() { (($(kubectl get nodes --no-headers | grep -cw Ready) == NODES)); }
# A process of a pod that is not its sandbox, by the pod's cgroup.
process_of() {
    local uid p; uid=$(kubectl -n bench get pod "$1" -o jsonpath='{.metadata.uid}')
    for p in $(grep -ls "$uid" /proc/[0-9]*/cgroup | cut -d/ -f3); do [[ $(cat "/proc/$p/comm") != agnhost ]] || { echo "$p"; return; }; done
    die "no process of pod $1"
}

measure() {
    local client watcher asker before before_plugins began i
    kubectl create namespace bench >/dev/null
    eventually 60 kubectl -n bench get serviceaccount default
    kubectl -n bench apply -f - >/dev/null <<Y
apiVersion: v1
kind: Pod
metadata: { name: client }
spec: { nodeName: node1, terminationGracePeriodSeconds: 0, containers: [{ name: c, image: localhost/agnhost:1, imagePullPolicy: Never, args: [pause] }] }
Y
    kubectl -n bench wait --for=condition=Ready pod/client --timeout=120s >/dev/null
    client=$(process_of client)
    # The Services first: a pod that is ready is asked through its own at once.
    for i in $(seq "$count"); do
        printf -- '---\napiVersion: v1\nkind: Service\nmetadata: { name: p%s }\nspec: { selector: { pod: p%s }, ports: [{ port: 80, targetPort: 8080 }] }\n' "$i" "$i"
    done | kubectl -n bench apply -f - >/dev/null
    kubectl -n bench get services -o json | jq -r '.items[] | [.metadata.name, .spec.clusterIP] | @tsv' >"$work/services"
    for i in $(seq "$count"); do
        printf -- '---\napiVersion: v1\nkind: Pod\nmetadata: { name: p%s, labels: { pod: p%s, group: bench } }\nspec: { terminationGracePeriodSeconds: 0, containers: [{ name: c, image: localhost/agnhost:1, imagePullPolicy: Never, args: [netexec, --http-port=8080], readinessProbe: { httpGet: { path: /healthz, port: 8080 }, periodSeconds: 1 } }] }\n' "$i" "$i"
    done >"$work/pods.yaml"
    # Ready is when the API says so; its own date of it has whole seconds only.
    rm -f "$work/watch"; mkfifo "$work/watch"
    nsenter --net="/run/netns/$PREFIX-cp" "$BIN/kubectl" -n bench get pods -l group=bench --watch --no-headers >"$work/watch" & watcher=$!
    nsenter --target "$client" --net "$work/cluster" reach "$work/services" <"$work/watch" >"$work/delays" & asker=$!
    sleep 5
    before=$(ticks) before_plugins=$(plugins_ticks) began=$EPOCHREALTIME
    kubectl -n bench create -f "$work/pods.yaml" >/dev/null
    kubectl -n bench wait --for=condition=Ready pod -l group=bench --timeout=600s >/dev/null
    note "all pods ready (s)" "$(awk "BEGIN {printf \"%.1f\", $EPOCHREALTIME - $began}")"
    wait "$asker"; kill "$watcher" 2>/dev/null || true
    (($(wc -l <"$work/delays") == count)) || die "$(wc -l <"$work/delays") of $count Services answered"
    # Until the last of it is done: what was put off counts too.
    sleep 10
    note "CPU of the network's agents, all nodes (s)" "$(awk "BEGIN {print ($(ticks) - $before) / 100}")"
    note "CPU of plugins and shims' starts, all nodes (s)" "$(awk "BEGIN {print ($(plugins_ticks) - $before_plugins) / 100}")"
    note "ready until reachable, p50 (s)" "$(quantile 0.5 <"$work/delays")"
    note "ready until reachable, p99 (s)" "$(quantile 0.99 <"$work/delays")"
    note "memory of the network's agents, a node (MiB)" "$(awk "BEGIN {printf \"%.1f\", $(rss) / 1024 / $NODES}")"
}

for who in ${WHO:-seaway peers}; do
    case $who in
    seaway) tests/k8s/up >"$out/cluster.$who.log" ;;
    peers) BARE=1 tests/k8s/up >"$out/cluster.$who.log"; peers; eventually 180 ready ;;
    *) die "WHO=$who: seaway or peers" ;;
    esac
    measure
    KEEP_LOGS=$out/cluster.$who tests/k8s/down
done
echo "$out/cluster.csv"
