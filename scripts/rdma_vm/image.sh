#!/usr/bin/env bash
# Builds what scripts/rdma-vm.sh boots, once for each version of Debian's kernel, and prints the folder that holds it:
#   vmlinux       the kernel
#   modules.cpio  an initial file system of busybox and the kernel modules; /init is added by each run
#
# usage: image.sh CACHE-FOLDER. Nothing is installed. Runs that start at once wait for the first one; a folder appears
# complete or not at all.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
PATH=$PATH:/usr/sbin:/sbin
self=$(readlink -f "${BASH_SOURCE[0]}")
cache=$1

# Their dependencies come along. What is not loaded by name is there for `tc`, which has the kernel load it.
modules=(
  virtio_pci 9pnet_virtio 9p virtio_console virtio_net overlay
  rdma_rxe rdma_ucm ib_umad crc32_generic crc32_pclmul veth dummy
  sch_netem sch_prio sch_tbf sch_ingress cls_u32 cls_flower cls_matchall act_gact
)

# "PACKAGE VERSION" of the newest kernel that apt knows; nothing where its lists are empty.
newest_kernel() {
  local package
  package=$(apt-cache depends linux-image-amd64 2> /dev/null | sed -n 's/^ *Depends: \(linux-image-[^ ]*\).*/\1/p' | head -n 1)
  [ -n "$package" ] || return 0
  apt-cache show --no-all-versions "$package" | sed -n "s/^Version: /$package /p" | head -n 1
}

download() { # PACKAGE VERSION, into the current folder
  timeout --foreground 300 apt-get -qq download "$1=$2" 2> download.log
}

# The kernel lies compressed in the boot image; taken out here once, the guest is spared to do so at each boot.
extract_kernel() { # BOOT-IMAGE
  local sectors offset length
  sectors=$(od -An -tu1 -j 497 -N 1 "$1")
  offset=$(od -An -tu4 -j 584 -N 4 "$1")
  length=$(od -An -tu4 -j 588 -N 4 "$1")
  tail -c +$(((sectors + 1) * 512 + offset + 1)) "$1" | head -c "$((length))" | xz -dc --single-stream
}

build() { # PACKAGE VERSION FOLDER
  local release=${1#linux-image-} folder=$3 module file
  cd "$folder"
  if ! download "$1" "$2"; then
    cat download.log >&2
    return 1
  fi
  dpkg-deb -x ./*.deb package
  extract_kernel "package/boot/vmlinuz-$release" > vmlinux
  [ "$(head -c 4 vmlinux | od -An -tx1)" = ' 7f 45 4c 46' ] || die "$1: its boot image is not packed as expected"

  depmod -b package "$release"
  mkdir -p tree/{bin,proc,sys,dev,mnt} "tree/lib/modules/$release"
  cp "$(command -v busybox)" tree/bin/busybox
  for module in "${modules[@]}"; do modprobe -d package -S "$release" --show-depends "$module"; done |
    sed -n 's/^insmod \([^ ]*\).*/\1/p' | sort -u > files
  while read -r file; do
    file=${file#*/lib/modules/"$release"/}
    install -D -m 644 "package/lib/modules/$release/$file" "tree/lib/modules/$release/$file"
  done < files
  cp "package/lib/modules/$release/"modules.{builtin,builtin.modinfo,order} "tree/lib/modules/$release/"
  depmod -b tree "$release"
  (cd tree && find . | cpio --quiet -o -H newc -R 0:0) > modules.cpio
  rm -rf package tree files ./*.deb download.log
}

mkdir -p "$cache"
exec 9> "$cache/lock"
flock -w 900 9 || die "another run has been building the image in $cache for 15 minutes"

read -r package version <<< "$(newest_kernel)" || true
if [ -z "${package:-}" ]; then # package lists are often removed from container images; an image of before is good
  newest=$(find "$cache" -mindepth 2 -maxdepth 2 -name modules.cpio -printf '%T@ %h\n' | sort -n | tail -n 1 | cut -d' ' -f2-)
  if [ -n "$newest" ]; then
    echo "$newest"
    exit 0
  fi
  [ "$(id -u)" != 0 ] || apt-get -qq update >&2 || true
  read -r package version <<< "$(newest_kernel)" || true
  [ -n "${package:-}" ] || die 'apt knows no linux-image-amd64 (apt-get update)'
fi

folder=$cache/${package}_${version}_$(sha256sum "$self" | head -c 8)
if [ ! -e "$folder/modules.cpio" ]; then
  new=$(mktemp -d "$cache/new-XXXXXX")
  trap 'rm -rf "$new"' EXIT
  trap 'exit 1' INT TERM HUP
  say "rdma-vm: building the image from $package $version" >&2
  if ! (build "$package" "$version" "$new"); then
    # The archive may have moved on since the package lists were fetched.
    [ "$(id -u)" = 0 ] && apt-get -qq update >&2 || die 'cannot build the image'
    read -r package version <<< "$(newest_kernel)"
    folder=$cache/${package}_${version}_$(sha256sum "$self" | head -c 8)
    rm -rf "$new" && mkdir "$new"
    (build "$package" "$version" "$new") || die 'cannot build the image'
  fi
  chmod 755 "$new"
  rm -rf "$folder"
  mv -T "$new" "$folder"
fi
touch "$folder"
find "$cache" -mindepth 1 -maxdepth 1 -type d -mtime +30 -exec rm -rf {} + # images of kernels gone by
echo "$folder"
