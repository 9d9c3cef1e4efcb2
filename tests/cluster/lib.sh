# shellcheck shell=bash disable=SC2034 # the scripts that source this file use these
# Shared by the scripts beside it: where a cluster's state is, its addresses, how to talk to it.
# Sourced, never run.
#
#   PIPEOPS_CLUSTER_DIR       state folder; default ${XDG_CACHE_HOME:-~/.cache}/pipeops-agent/cluster
#   PIPEOPS_CLUSTER_INSTANCE  0..99, picks the addresses; default: the first that is free
#
# Two clusters live side by side when their folders differ.
cluster_scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tests_dir=$(cd "$cluster_scripts/.." && pwd)
dir=${PIPEOPS_CLUSTER_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/pipeops-agent/cluster}

say() { printf 'cluster: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

need_root() { [ "$(id -u)" -eq 0 ] || die "namespaces, mounts and cgroups need root"; }

# addresses <instance>: everything that follows from the instance's number.
addresses() {
    instance=$1
    link="pipeops-$instance"            # the host's end of the veth pair
    host_address="10.90.$instance.1"    # the host, as seen from the node and its pods
    node_address="10.90.$instance.2"    # the node, as seen from the host
    pod_cidr="10.91.$instance.0/24"
    service_cidr="10.92.$instance.0/24"
    kubernetes_service="10.92.$instance.1"
    node_name="node-$instance"
    cgroup="/pipeops-$instance"
}

# load: reads the instance of the state folder; fails when no cluster was started there.
load() {
    [ -s "$dir/instance" ] || die "no cluster in $dir: run \`make cluster-up\` (tests/cluster/up)"
    addresses "$(cat "$dir/instance")"
}

# node_pid: the process that is PID 1 of the node's namespaces, as the host numbers it; fails when it is gone.
# A number alone may be another process's by then: it must be our script, run for this folder.
node_pid() {
    local pid
    pid=$(cat "$dir/node.pid" 2>/dev/null) || return 1
    [ -n "$pid" ] && tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF -- "$cluster_scripts/node $dir " || return 1
    printf '%s\n' "$pid"
}

# inside <command...>: runs it on the node: its network, mounts and processes.
inside() {
    local pid
    pid=$(node_pid) || die "the cluster of $dir is not running"
    nsenter --target "$pid" --mount --net --pid --wd=/ -- "$@"
}

# shellcheck disable=SC2154 # set by the scripts that call it
kube() { "$kubectl" --kubeconfig "$dir/kubeconfig" "$@"; }

# tell <start|stop> <daemon> [signal]: an order to the node's PID 1.
tell() { printf '%s\n' "$*" >"$dir/control"; }

# eventually <seconds> <command...>: repeats it until it succeeds; fails when the time is over.
eventually() {
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || return 1
        sleep 0.2
    done
}

# ready <endpoint>: whether the apiserver answers 200 there.
ready() {
    curl -sf -m 5 -o /dev/null --cacert "$dir/pki/ca.crt" --cert "$dir/pki/admin.crt" --key "$dir/pki/admin.key" \
        "https://$node_address:6443/$1"
}

# cgroup_roots: the mount points of every hierarchy: one with version 2, many with version 1.
cgroup_roots() {
    awk '$3 == "cgroup" || $3 == "cgroup2" { print $2 }' /proc/self/mounts
}

# find_cgroups: every folder of this instance's cgroup, deepest first.
find_cgroups() {
    local root
    for root in $(cgroup_roots); do
        [ ! -d "$root$cgroup" ] || find "$root$cgroup" -depth -type d
    done
}
