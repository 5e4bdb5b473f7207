# Shared by the scripts beside it: names, places, and how a program is run where.
# shellcheck shell=bash disable=SC2034
set -euo pipefail
HERE=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
REPO=$(realpath "$HERE/../..")

# What is built once lives outside the tree, what a cluster writes below STATE.
CACHE=${SEAWAY_K8S_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/seaway/k8s}
# Namespaces and cgroups carry it: clusters of different names live side by side.
PREFIX=${SEAWAY_K8S_NAME:-seaway-k8s}
STATE=${SEAWAY_K8S_STATE:-/var/tmp/$PREFIX}
export KUBECONFIG=$STATE/pki/admin.kubeconfig

KUBERNETES=v1.36.3 STAGING=v0.36.3
declare -A VERSION=([kubernetes]=$KUBERNETES [etcd]=v3.6.16 [containerd]=v2.2.9 [coredns]=v1.14.7 [helm]=v3.22.0)

# One folder with every program.
BIN=$CACHE/bin

# What runs how: kept by `up` for the scripts after it.
settings() {
    NODES=${NODES:-3} FAMILY=${FAMILY:-dual} BACKEND=${BACKEND:-vxlan} ALLOCATE=${ALLOCATE:-yes}
    case $FAMILY in
    ipv4) CLUSTER_CIDR=10.244.0.0/16 SERVICE_CIDR=10.96.0.0/16 ;;
    ipv6) CLUSTER_CIDR=fd00:10:244::/56 SERVICE_CIDR=fd00:10:96::/112 ;;
    dual) CLUSTER_CIDR=10.244.0.0/16,fd00:10:244::/56 SERVICE_CIDR=10.96.0.0/16,fd00:10:96::/112 ;;
    *) die "FAMILY=$FAMILY: ipv4, ipv6 or dual" ;;
    esac
    case $FAMILY in
    ipv6) API=fd88::2 API_HOST=[fd88::2] DNS=fd00:10:96::a ;;
    *) API=10.88.0.2 API_HOST=10.88.0.2 DNS=10.96.0.10 ;;
    esac
    # Addresses beyond the cluster at which somebody answers (wire.sh): the first is the nodes' name server.
    case $FAMILY in
    ipv4) WORLD=8.8.8.8 ;;
    ipv6) WORLD=2001:4860:4860::8888 ;;
    dual) WORLD="8.8.8.8 2001:4860:4860::8888" ;;
    esac
}
node_v4() { echo "10.88.0.$((10 + $1))"; }
node_v6() { printf 'fd88::%x' $((16 + $1)); }
node_ips() {
    # What a test moved a node to.
    if [[ -s $STATE/node$1/ips ]]; then cat "$STATE/node$1/ips"; return; fi
    case $FAMILY in ipv4) node_v4 "$1" ;; ipv6) node_v6 "$1" ;; dual) echo "$(node_v4 "$1"),$(node_v6 "$1")" ;; esac
}

die() { echo "${0##*/}: $*" >&2; exit 1; }
say() { echo "[$(date +%T)] $*"; }

# Inside a node's or the control plane's network, with this machine's files.
in_net() { local ns=$1; shift; nsenter --net="/run/netns/$PREFIX-$ns" "$@"; }
kubectl() { in_net cp "$BIN/kubectl" "$@"; }
# The first process of a node, in whose namespaces everything of it runs.
node_init() { pgrep -P "$(cat "$STATE/node$1/pid")" | head -1; }
in_node() { local n=$1; shift; nsenter --target "$(node_init "$n")" --mount --uts --pid --ipc --net "$@"; }

# $1 seconds until the rest succeeds.
eventually() {
    local end=$((SECONDS + $1)); shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || { echo "not within its time: $*" >&2; "$@" || true; return 1; }
        sleep 0.5
    done
}

# A process of its own session: NAME NAMESPACE COMMAND..., log and pid below STATE.
daemon() {
    local name=$1 ns=$2; shift 2
    setsid nohup nsenter --net="/run/netns/$PREFIX-$ns" "$@" >>"$STATE/log/$name.log" 2>&1 </dev/null &
    echo $! >"$STATE/$name.pid"
}

# Every network case of e2e.test by its full name, sorted.
e2e_cases() { "$BIN/e2e.test" --list-tests 2>/dev/null | sed 's/^ *[^ ]*\.go:[0-9]*: //' | grep -F '[sig-network]' | LC_ALL=C sort -u; }

# Seaway's image on a node.
import_seaway() {
    eventually 120 in_node "$1" "$BIN/ctr" version
    in_node "$1" "$BIN/ctr" -n k8s.io image import "$STATE/seaway.tar" >>"$STATE/log/node$1-import.log" 2>&1
}
node_ready() { [[ $(kubectl get node "node$1" -o jsonpath='{.status.conditions[?(@.type=="Ready")].status}' 2>/dev/null) == True ]]; }
# One node more than `up` made, ready and with Seaway; and one that leaves for good.
node_joins() {
    (source "$HERE/pki.sh"; cd "$STATE/pki"; node_certificate "$1")
    "$HERE/node" start "$1" && import_seaway "$1" && eventually 180 node_ready "$1" && way_to "$1"
}
node_leaves() { kubectl delete node "node$1" >/dev/null; "$HERE/node" stop "$1"; }
# The control plane is no node: its way to a node's pods leads over that node.
way_to() {
    local c via ns
    for c in $(kubectl get node "node$1" -o jsonpath='{.spec.podCIDRs[*]}'); do
        case $c in *:*) via=$(node_v6 "$1") ;; *) via=$(node_v4 "$1") ;; esac
        for ns in cp sw; do ip -n "$PREFIX-$ns" route replace "$c" via "$via"; done
    done
}
