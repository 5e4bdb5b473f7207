#!/usr/bin/env bash
# The second half of bench/cluster: started by it, not by hand. Brings up tests/k8s twice, with Seaway and with the reference
# plugins and kube-proxy, and makes many pods at once in each.
set -euo pipefail
cd "$(dirname "$0")/.."
source bench/lib.sh
need_root_and ip:iproute2 jq:jq nsenter:util-linux
count=${1:-100}
out=$(realpath -m "${OUT:-${CARGO_TARGET_DIR:-target}/bench}")
mkdir -p "$out"
[[ -s $out/cluster.csv ]] || echo "who,nodes,pods,measure,value" >"$out/cluster.csv"
export NODES=2 FAMILY=ipv4 BACKEND=host-gw
source tests/k8s/lib.sh; settings
[[ -x $BIN/kube-apiserver && -x $BIN/agnhost ]] || die "the cluster's programs are not built: make k8s-build"
[[ ! -e $STATE/settings ]] || die "$STATE: a cluster is there already: tests/k8s/down"
plugins=${PLUGINS:-/usr/lib/cni}
peer=$(realpath -m "${KUBE:-${CARGO_TARGET_DIR:-target}/peers}")
bench/peers "$peer"
trap 'tests/k8s/down || true' EXIT
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

# The processes of the network, by name, in any of the nodes.
agents() { pgrep -x 'kube-proxy|seaway' || true; }
ticks() { local t=0 p; for p in $(agents); do t=$((t + $(awk '{sub(/.*\) /, ""); print $12 + $13 + $14 + $15}' "/proc/$p/stat" 2>/dev/null || echo 0))); done; echo $t; }
rss() { local t=0 p; for p in $(agents); do t=$((t + $(sed -n 's/^VmRSS:[^0-9]*\([0-9]*\) kB/\1/p' "/proc/$p/status" 2>/dev/null || echo 0))); done; echo $t; }

measure() {
    kubectl create namespace bench >/dev/null
    # The Service and its client first: a pod that is ready is asked through it, by its own name, at once.
    kubectl -n bench apply -f - >/dev/null <<Y
apiVersion: v1
kind: Pod
metadata: { name: client }
spec: { nodeName: node1, terminationGracePeriodSeconds: 0, containers: [{ name: c, image: localhost/agnhost:1, imagePullPolicy: Never, args: [pause] }] }
Y
    kubectl -n bench wait --for=condition=Ready pod/client --timeout=120s >/dev/null
    for i in $(seq "$count"); do
        printf -- '---\napiVersion: v1\nkind: Service\nmetadata: { name: p%s }\nspec: { selector: { pod: p%s }, ports: [{ port: 80, targetPort: 8080 }] }\n' "$i" "$i"
    done | kubectl -n bench apply -f - >/dev/null
    kubectl -n bench get services -o json | jq -r '.items[] | [.metadata.name, .spec.clusterIP] | @tsv' >"$STATE/services"
    # From the client's own network: one line per Service with the time of its first answer.
    local pid; pid=$(client_pid)
    while read -r name ip; do
        (until nsenter --target "$pid" --net curl -s -o /dev/null --max-time 0.3 "http://$ip/"; do sleep 0.02; done; echo "$name $EPOCHREALTIME" >>"$STATE/answered") &
    done <"$STATE/services"
    local pollers; pollers=$(jobs -p)
    # When the API first says that a pod is ready; its own date of it has whole seconds only.
    (kubectl -n bench get pods -l group=bench -w --no-headers | while read -r name ready _; do
        [[ $ready != 1/1 ]] || echo "$name $EPOCHREALTIME" >>"$STATE/ready.seen"; done) &
    local watcher=$!
    local before began; before=$(ticks); began=$EPOCHREALTIME
    for i in $(seq "$count"); do
        printf -- '---\napiVersion: v1\nkind: Pod\nmetadata: { name: p%s, labels: { pod: p%s, group: bench } }\nspec: { terminationGracePeriodSeconds: 0, containers: [{ name: c, image: localhost/agnhost:1, imagePullPolicy: Never, args: [netexec, --http-port=8080], readinessProbe: { httpGet: { path: /healthz, port: 8080 }, periodSeconds: 1 } }] }\n' "$i" "$i"
    done >"$STATE/pods.yaml"
    kubectl -n bench create -f "$STATE/pods.yaml" >/dev/null
    kubectl -n bench wait --for=condition=Ready pod -l group=bench --timeout=600s >/dev/null
    note "all pods ready (s)" "$(awk "BEGIN {printf \"%.1f\", $EPOCHREALTIME - $began}")"
    for p in $pollers; do wait "$p" 2>/dev/null || true; done
    note "CPU of the network's agents, all nodes (s)" "$(awk "BEGIN {print ($(ticks) - $before) / 100}")"
    kill "$watcher" 2>/dev/null || true
    sort -u -k1,1 "$STATE/ready.seen" >"$STATE/ready"
    sort "$STATE/answered" | join - "$STATE/ready" | awk '{d = $2 - $3; print d < 0 ? 0 : d}' >"$STATE/delays"
    note "ready until reachable, p50 (s)" "$(quantile 0.5 <"$STATE/delays")"
    note "ready until reachable, p99 (s)" "$(quantile 0.99 <"$STATE/delays")"
    note "memory of the network's agents, a node (MiB)" "$(awk "BEGIN {printf \"%.1f\", $(rss) / 1024 / $NODES}")"
}
# The first process of the client's container: agnhost pause on node1.
client_pid() { local p; for p in $(pgrep -f 'agnhost pause'); do [[ $(nsenter --target "$p" --net hostname -I 2>/dev/null | wc -w) -ge 1 ]] && { echo "$p"; return; }; done; }

for who in seaway peers; do
    case $who in
    seaway) tests/k8s/up >/dev/null ;;
    peers) BARE=1 tests/k8s/up >/dev/null; peers; ready() { (($(kubectl get nodes --no-headers | grep -cw Ready) == NODES)); }; eventually 180 ready ;;
    esac
    measure
    tests/k8s/down
done
