# shellcheck shell=bash
# Traffic throughout a test: echo servers and clients on every node, each client with a connection that lives on and new
# ones all the time to every server's address, to the Service of each, and to one of all, in each family. After lib.sh.
TRAFFIC=$STATE/traffic

families() { case $FAMILY in ipv4) echo IPv4 ;; ipv6) echo IPv6 ;; dual) echo IPv4 IPv6 ;; esac; }
listen() { case $FAMILY in ipv4) echo 0.0.0.0 ;; *) echo :: ;; esac; }

# Servers s1.. and their Services, on the nodes named; the Service `all` has those with stay=yes: the first two nodes.
traffic_servers() {
    local n policy=SingleStack stay
    [[ $FAMILY != dual ]] || policy=RequireDualStack
    mkdir -p "$TRAFFIC"; cp "$HERE/traffic.pl" "$TRAFFIC/"; chmod 777 "$TRAFFIC"
    { echo '{ apiVersion: v1, kind: Namespace, metadata: { name: life } }'
    for n in "$@"; do
        stay=no; ((n > 2)) || stay=yes
        cat <<Y
---
apiVersion: v1
kind: Pod
metadata: { name: s$n, namespace: life, labels: { server: s$n, stay: "$stay" } }
spec:
  nodeName: node$n
  terminationGracePeriodSeconds: 1
  tolerations: [{ operator: Exists }]
  containers:
    - name: server
      image: localhost/agnhost:1
      imagePullPolicy: Never
      command: [perl, /traffic/traffic.pl, server, "7"]
      env: [{ name: LISTEN, value: "$(listen)" }]
      readinessProbe: { tcpSocket: { port: 7 }, periodSeconds: 2, timeoutSeconds: 5, failureThreshold: 5 }
      volumeMounts: [{ name: traffic, mountPath: /traffic }]
  volumes: [{ name: traffic, hostPath: { path: $TRAFFIC } }]
---
apiVersion: v1
kind: Service
metadata: { name: s$n, namespace: life }
spec: { ipFamilyPolicy: $policy, selector: { server: s$n }, ports: [{ port: 7 }] }
Y
    done
    cat <<Y
---
apiVersion: v1
kind: Service
metadata: { name: all, namespace: life }
spec: { ipFamilyPolicy: $policy, selector: { stay: "yes" }, ports: [{ port: 7 }] }
Y
    } | kubectl apply -f - >/dev/null
    for n in "$@"; do kubectl -n life wait --for=condition=Ready --timeout=180s "pod/s$n" >/dev/null; done
}

of_family() { case $1 in *:*) echo v6 ;; *) echo v4 ;; esac; }
# What clients ask: NAME=ADDRESS for every server and Service that there is.
targets() {
    local name ips ip
    kubectl -n life get pods -l server -o jsonpath='{range .items[*]}{.metadata.name} {.status.podIPs[*].ip}{"\n"}{end}' |
        while read -r name ips; do for ip in $ips; do echo "$name.pod.$(of_family "$ip")=$ip"; done; done
    kubectl -n life get services -o jsonpath='{range .items[*]}{.metadata.name} {.spec.clusterIPs[*]}{"\n"}{end}' |
        while read -r name ips; do for ip in $ips; do echo "$name.service.$(of_family "$ip")=$ip"; done; done
}
# A client on each of the nodes named, that asks all that is there now.
traffic_clients() {
    local n args
    args=$(targets | sed 's/.*/"&"/' | paste -sd,)
    for n in "$@"; do
        mkdir -p "$TRAFFIC/c$n"; chmod 777 "$TRAFFIC/c$n"
        kubectl apply -f - >/dev/null <<Y
apiVersion: v1
kind: Pod
metadata: { name: c$n, namespace: life, labels: { client: c$n } }
spec:
  nodeName: node$n
  terminationGracePeriodSeconds: 0
  tolerations: [{ operator: Exists }]
  containers:
    - name: client
      image: localhost/agnhost:1
      imagePullPolicy: Never
      command: [perl, /traffic/traffic.pl, client, /traffic/c$n, $args]
      volumeMounts: [{ name: traffic, mountPath: /traffic }]
  volumes: [{ name: traffic, hostPath: { path: $TRAFFIC } }]
Y
    done
    for n in "$@"; do kubectl -n life wait --for=condition=Ready --timeout=180s "pod/c$n" >/dev/null; done
    eventually 120 flowing ''
}
streams() { (cd "$TRAFFIC" && find . -mindepth 2 -maxdepth 2 \( -name 'long-*' -o -name 'new-*' \) ! -name '*.new' | sed 's|^\./||' | sort); }
counts() { local s; for s in $(streams); do echo "$s $(cat "$TRAFFIC/$s" 2>/dev/null || echo 0)"; done; }
expected() { local t c; for t in $(targets | cut -d= -f1); do for c in "$TRAFFIC"/c*/; do c=${c%/}; echo "${c##*/}/long-$t"; echo "${c##*/}/new-$t"; done; done; }
# Whether each stream is answered (two more answers within 20 s), but those that match $1.
flowing() {
    local before after
    before=$(counts)
    local end=$((SECONDS + 20))
    while ((SECONDS < end)); do
        sleep 1; after=$(counts)
        stuck=$( { join <(echo "$before" | sort) <(echo "$after" | sort) | awk '$3 < $2 + 2 && !($3 < $2 && $3 >= 2) { print $1 }'
            comm -23 <(expected | sort) <(streams | sort); } | { if [[ $1 ]]; then grep -vE "$1"; else cat; fi; } | sort -u || true)
        [[ $stuck ]] || return 0
    done
    echo "not answered: $stuck" | head -20
    return 1
}
traffic_mark() { local c; for c in "$TRAFFIC"/c*/; do : >"${c}failures"; chmod 666 "${c}failures"; done; }
# Failures since the mark that do not match $1 (a regex of client/kind-target), and whether all is answered at the end.
traffic_check() {
    local allowed=${1:-} bad slow f
    if ! eventually 60 flowing '' >/dev/null 2>&1; then echo "  at the end $(flowing '' || true)"; return 1; fi
    f=$(cd "$TRAFFIC" && grep -H . c*/failures 2>/dev/null | sed -E 's|^(c[0-9]+)/failures:([0-9:]+) |\2 \1/|' | sort || true)
    slow=$(grep -c '(slow)' <<<"$f" || true)
    bad=$(grep -v '(slow)' <<<"$f" | grep . | { if [[ $allowed ]]; then grep -vE "$allowed"; else cat; fi; } || true)
    echo "  $(counts | awk '{ s += $2 } END { print s }') answers in $(streams | wc -l) streams, $(grep -v '(slow)' <<<"$f" | grep -c . || true) failures, $(grep -c . <<<"$bad" || true) of them not by the event itself, $slow answers slower than 2 s"
    [[ -z $bad ]] || { head -40 <<<"$bad" | sed 's/^/    /'; return 1; }
}
traffic_down() { kubectl delete namespace life --ignore-not-found --wait=true --timeout=180s >/dev/null; rm -rf "$TRAFFIC"; }
