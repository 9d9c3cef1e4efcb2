# shellcheck shell=bash disable=SC2034 # the scripts that source this file use these
# Shared by the scripts beside it: the table of our images and how a root folder becomes an OCI image.
# Sourced, never run.
images_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root_dir=$(cd "$images_dir/../.." && pwd)
image_out="${CARGO_TARGET_DIR:-$root_dir/target}/images"

# Our programs and the numeric user each runs as; the chart names the same numbers.
declare -A image_uid=([agent-core]=65531 [tunnel-sidecar]=65532 [k8s-proxy]=65533)
image_names=(agent-core tunnel-sidecar k8s-proxy)

say() { printf 'images: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# A tar that depends on the content only: fixed order, owner and times.
plain_tar() { tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --format=ustar -C "$1" -cf - .; }

# put_blob <layout> <media type>: stores stdin under its digest and prints its descriptor's fields.
put_blob() {
    local layout=$1 type=$2 tmp digest
    tmp=$(mktemp "$layout/blob.XXXXXX")
    cat >"$tmp"
    digest=$(sha256sum "$tmp" | cut -d' ' -f1)
    printf '"mediaType":"%s","digest":"sha256:%s","size":%s' "$type" "$digest" "$(stat -c %s "$tmp")"
    chmod 0644 "$tmp"
    mv "$tmp" "$layout/blobs/sha256/$digest"
}

# oci_image <root folder> <full image name> <config object of OCI> <output tar>
# One uncompressed layer, one manifest, one index: what `ctr images import` and every registry client read.
oci_image() {
    local root=$1 name=$2 config=$3 out=$4 layout layer conf manifest digest arch
    case $(uname -m) in
    x86_64) arch=amd64 ;;
    aarch64) arch=arm64 ;;
    *) arch=$(uname -m) ;;
    esac
    layout=$(mktemp -d)
    mkdir -p "$layout/blobs/sha256" "$(dirname "$out")"
    layer=$(plain_tar "$root" | put_blob "$layout" application/vnd.oci.image.layer.v1.tar)
    digest=$(sed 's/.*"digest":"\([^"]*\)".*/\1/' <<<"$layer")
    conf=$(printf '{"architecture":"%s","os":"linux","config":%s,"rootfs":{"type":"layers","diff_ids":["%s"]}}' \
        "$arch" "$config" "$digest" | put_blob "$layout" application/vnd.oci.image.config.v1+json)
    manifest=$(printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{%s},"layers":[{%s}]}' \
        "$conf" "$layer" | put_blob "$layout" application/vnd.oci.image.manifest.v1+json)
    printf '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
    printf '{"schemaVersion":2,"manifests":[{%s,"platform":{"architecture":"%s","os":"linux"},"annotations":{"io.containerd.image.name":"%s","org.opencontainers.image.ref.name":"%s"}}]}' \
        "$manifest" "$arch" "$name" "${name##*:}" >"$layout/index.json"
    plain_tar "$layout" >"$out.new"
    mv "$out.new" "$out"
    rm -rf "$layout"
}
