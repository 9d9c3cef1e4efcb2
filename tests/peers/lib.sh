# shellcheck shell=bash disable=SC2034 # the scripts that source this file use these
# Shared by the scripts beside it: where the peers live and which there are. Sourced, never run.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
peers_dir="${XDG_CACHE_HOME:-$HOME/.cache}/pipeops-agent/peers"

say() { printf 'peers: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# All peer names, in the order of the table.
peer_names() { awk '!/^#/ && NF { print $1 }' "$here/versions"; }

# peer_row <name>: sets name, version, module and binaries (binary=package words), or fails.
peer_row() {
    read -r name version module binaries \
        < <(awk -v n="$1" '!/^#/ && $1 == n' "$here/versions") || die "no peer named $1; known: $(peer_names | xargs)"
}

# peer_of <binary>: the peer that this binary belongs to; nothing if there is none.
peer_of() {
    awk -v b="$1" '!/^#/ { for (i = 4; i <= NF; i++) if (index($i, b "=") == 1) print $1 }' "$here/versions"
}

# peer_home: the folder of the row that was read last.
peer_home() { printf '%s/%s-%s\n' "$peers_dir" "$name" "$version"; }

# peer_complete: whether every binary of the row that was read last is there.
peer_complete() {
    local word
    for word in $binaries; do
        [ -x "$(peer_home)/${word%%=*}" ] || return 1
    done
}
