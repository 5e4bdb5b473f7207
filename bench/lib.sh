# What the scripts of this folder share; sourced, not run.

# Ends with the package to install when a tool is missing, or when the caller is not root: need_root_and TOOL:PACKAGE...
need_root_and() {
    local tool me=bench/${0##*/}
    for tool; do
        command -v "${tool%%:*}" >/dev/null || { echo "$me: ${tool%%:*} is missing: apt-get install ${tool##*:}" >&2; exit 1; }
    done
    (($(id -u) == 0)) || { echo "$me: run as root" >&2; exit 1; }
}

# The value a fraction $1 of the way through the sorted input.
quantile() { sort -n | awk -v q="$1" '{v[NR] = $1} END {x = 1 + (NR - 1) * q; i = int(x); print v[i] + (i < NR ? (x - i) * (v[i + 1] - v[i]) : 0)}'; }

# Median and quartiles of the ratios of the rounds in file $1 over those in file $2, a number a line each.
ratios() {
    local q all
    all=$(paste "$1" "$2" | awk '{print $1 / $2}')
    for q in 0.5 0.25 0.75; do quantile "$q" <<<"$all"; done | xargs
}

# Gbit/s that the receiver at address $1 counted of one TCP stream of $2 seconds.
gbits() { iperf3 -J -c "$1" -t "$2" | jq '.end.sum_received.bits_per_second / 1e9'; }
