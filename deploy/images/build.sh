#!/usr/bin/env bash
# Builds the lab's container images from Debian packages and from sources here: nothing is pulled from an image registry.
#
#   build.sh [--force] OUTDIR [NAME...]
#
# Writes OUTDIR/NAME.tar for each NAME (pause, nginx and canary if there is none): OCI archives, one layer each, with the
# names under which manifests ask for them. pause, nginx and canary are built below; every other image has a folder here,
# whose image.sh says how it is built. An archive is rebuilt when this script or its own folder changed, or with --force;
# the same packages give the same bytes. Needs no root.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

PAUSE_TAGS=(berth.local/pause:1)
# The names that the Kubernetes documentation uses for its StatefulSet examples, and nginx's own.
NGINX_TAGS=(
  registry.k8s.io/nginx-slim:0.24
  registry.k8s.io/nginx-slim:0.21
  registry.k8s.io/nginx-slim:0.8
  docker.io/library/nginx:1.22
)
# One program under two names, so that tests can roll a set to another image.
CANARY_TAGS=(berth.local/canary:1 berth.local/canary:2)
PAUSE_PACKAGES=(catatonit)
# wget besides busybox's own: that one crashes when it is given a time limit (-T), which every probe gives it.
NGINX_PACKAGES=(nginx nginx-common wget)

die() { printf 'build.sh: %s\n' "$*" >&2; exit 1; }

force=no
if [[ ${1:-} == --force ]]; then force=yes; shift; fi
[[ $# -ge 1 ]] || die "usage: build.sh [--force] OUTDIR [NAME...]"
mkdir -p "$1" || die "cannot create $1: choose a directory that you may write to"
out=$(cd "$1" && pwd); shift
names=("$@")
[[ $# -gt 0 ]] || names=(pause nginx canary)
for name in "${names[@]}"; do
  case $name in
    pause | nginx | canary) ;;
    *) [[ $name != */* && -f $here/$name/image.sh ]] || die "no image $name: there are pause nginx canary $(cd "$here" && printf '%s ' */image.sh | sed 's,/image.sh,,g')" ;;
  esac
done

missing=()
for tool in apt-get:apt dpkg-deb:dpkg tar:tar gzip:gzip sha256sum:coreutils; do
  command -v "${tool%%:*}" >/dev/null || missing+=("${tool##*:}")
done
[[ ${#missing[@]} -eq 0 ]] || die "missing tools: run apt-get install ${missing[*]} (images are built from Debian packages, so this needs Debian or Ubuntu)"

arch=$(dpkg --print-architecture)
case $arch in
  amd64 | arm64) ;;
  armhf) arch=arm ;;
  ppc64el) arch=ppc64le ;;
  *) ;; # Debian and OCI use the same name.
esac

# stamp_of NAME says what an archive is made from: when it changes, the archive is stale.
stamp_of() {
  local sources=(build.sh)
  [[ ! -d $here/$1 ]] || sources+=("$1")
  (cd "$here" && { printf '%s\n' "$arch"; find "${sources[@]}" -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum; }) | sha256sum | cut -d' ' -f1
}

tmp=
cleanup() { if [[ -n $tmp ]]; then chmod -R u+rwX "$tmp" 2>/dev/null || true; rm -rf "$tmp"; fi; }
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
# Leaves of runs that were killed: nobody else writes here while the lock is held.
exec 9>"$out/.lock"
if command -v flock >/dev/null; then
  flock -w 300 9 || die "another build has held $out/.lock for five minutes: end it, then run this again"
  rm -rf "$out"/.build.*
fi
tmp=$(mktemp -d "$out/.build.XXXXXX")

# refresh gets new package lists where it may; what fails for want of them says so later.
refresh() { [[ $EUID -ne 0 ]] || apt-get -qq -o Acquire::Retries=3 update >"$tmp/update.log" 2>&1 || true; }

# fetch DIR PACKAGE... downloads the packages' archives into DIR.
fetch() {
  local dir=$1 log=$tmp/apt.log; shift
  mkdir -p "$dir"
  local get=(apt-get -qq -o Acquire::Retries=3 -o Acquire::http::Timeout=60)
  # apt's own download user cannot write into a private directory; root needs no second user to fetch a file.
  [[ $EUID -ne 0 ]] || get+=(-o APT::Sandbox::User=root)
  if (cd "$dir" && "${get[@]}" download "$@") >"$log" 2>&1; then return; fi
  # Package lists may be too old for the archive's present files.
  if [[ $EUID -eq 0 ]]; then
    refresh
    if (cd "$dir" && "${get[@]}" download "$@") >>"$log" 2>&1; then return; fi
  fi
  cat "$log" >&2
  die "cannot download $*: run 'apt-get update' (as root) and check that Debian's archive can be reached, then run this again"
}

# libraries PACKAGE... names the packages of all libraries that the given ones need, but those in $without. Other
# dependencies (installers' helpers, documentation) have no use in an image.
libraries() {
  local -A seen=()
  local unwanted
  for unwanted in $without; do seen[$unwanted]=1; done
  local level=("$@") next needs dependency
  while [[ ${#level[@]} -gt 0 ]]; do
    needs=$(apt-cache depends --important "${level[@]}" | sed -nE 's/^ *\|?(Pre)?Depends: ((lib|zlib)[^ ]*)$/\2/p')
    next=()
    for dependency in $needs; do
      if [[ -z ${seen[$dependency]:-} ]]; then
        seen[$dependency]=1
        next+=("$dependency")
        printf '%s\n' "$dependency"
      fi
    done
    level=("${next[@]}")
  done
}

# unpack ROOT DIR extracts every package in DIR over ROOT, whose /bin, /lib and /sbin are links into /usr.
unpack() {
  local root=$1 dir=$2 deb link
  for link in bin lib lib64 sbin; do
    mkdir -p "$root/usr/$link"
    ln -s "usr/$link" "$root/$link"
  done
  # dpkg-deb -x would put directories in the place of the links.
  for deb in "$dir"/*.deb; do
    dpkg-deb --fsys-tarfile "$deb" | tar -x --no-same-owner --keep-directory-symlink -C "$root"
  done
}

# Libraries that a recipe does without, although a package asks for them.
without=
# system NAME PACKAGE... makes a root filesystem in $tmp/NAME of packages, their libraries and busybox: everything that a
# program expects around it, and nothing that only people read.
system() {
  local name=$1 root=$tmp/$1 applet found; shift
  apt-cache show "$@" busybox-static >/dev/null 2>&1 || refresh
  libraries "$@" >"$tmp/libraries"
  mapfile -t found <"$tmp/libraries"
  fetch "$tmp/$name.debs" "$@" busybox-static "${found[@]}"
  unpack "$root" "$tmp/$name.debs"
  rm -rf "$tmp/$name.debs"
  # Not needed in a container; licences stay.
  find "$root/usr/share/doc" -type f ! -name copyright -delete
  rm -rf "$root"/usr/share/{man,lintian,locale,initramfs-tools,bug,vim} \
    "$root"/usr/lib/*/{gconv,audit} "$root"/usr/share/{apport,gcc,gdb,info} "$root"/usr/lib/systemd "$root"/etc/{init.d,default,logrotate.d,ufw,initramfs-tools}
  find "$root" -type d -empty -delete
  mkdir -p "$root"/{dev,etc,home,mnt,proc,root,run,srv,sys,tmp,usr/local/bin,var/cache,var/lib,var/log,var/tmp,usr/sbin}
  chmod 1777 "$root/tmp" "$root/var/tmp"
  # Every applet of busybox under its usual name, unless a real program is there.
  "$root/usr/bin/busybox" --list >"$tmp/applets"
  while IFS= read -r applet; do
    [[ -e $root/usr/bin/$applet || -e $root/usr/sbin/$applet ]] || ln -s /bin/busybox "$root/usr/bin/$applet"
  done <"$tmp/applets"
  printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$root/etc/passwd"
  printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
  printf 'passwd: files\ngroup: files\nhosts: files dns\n' >"$root/etc/nsswitch.conf"
}
# user ROOT WHO ID adds a user with a group of the same name and number.
user() {
  printf '%s:x:%s:%s:%s:/:/bin/false\n' "$2" "$3" "$3" "$2" >>"$1/etc/passwd"
  printf '%s:x:%s:\n' "$2" "$3" >>"$1/etc/group"
}

# oci NAME ROOT CONFIG-JSON TAG... packs ROOT as a one-layer image into OUT/NAME.tar.
# Everything that could vary (order, times, owners) is fixed, so that equal contents give equal digests.
oci() {
  local name=$1 root=$2 config=$3; shift 3
  local image=$tmp/$name.oci blobs=$tmp/$name.oci/blobs/sha256
  local pack=(tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --format=gnu)
  mkdir -p "$blobs"

  "${pack[@]}" -C "$root" -cf "$tmp/layer.tar" .
  local diff; diff=$(sha256sum <"$tmp/layer.tar" | cut -d' ' -f1)
  gzip -6n "$tmp/layer.tar"
  local layer layer_size; layer=$(sha256sum <"$tmp/layer.tar.gz" | cut -d' ' -f1)
  layer_size=$(stat -c %s "$tmp/layer.tar.gz")
  mv "$tmp/layer.tar.gz" "$blobs/$layer"

  put() { # put CONTENT: stores a blob; answers in $digest and $size
    digest=$(printf '%s' "$1" | sha256sum | cut -d' ' -f1)
    size=${#1}
    printf '%s' "$1" >"$blobs/$digest"
  }
  local digest size
  put "{\"architecture\":\"$arch\",\"os\":\"linux\",\"config\":$config,\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[\"sha256:$diff\"]},\"history\":[{\"created_by\":\"deploy/images/build.sh $name\"}]}"
  local manifest="{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"config\":{\"mediaType\":\"application/vnd.oci.image.config.v1+json\",\"digest\":\"sha256:$digest\",\"size\":$size},\"layers\":[{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar+gzip\",\"digest\":\"sha256:$layer\",\"size\":$layer_size}]}"
  put "$manifest"
  local entries=() tag
  for tag in "$@"; do
    entries+=("{\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"digest\":\"sha256:$digest\",\"size\":$size,\"annotations\":{\"io.containerd.image.name\":\"$tag\",\"org.opencontainers.image.ref.name\":\"${tag##*:}\"}}")
  done
  local list; list=$(IFS=,; printf '%s' "${entries[*]}")
  printf '{"schemaVersion":2,"manifests":[%s]}' "$list" >"$image/index.json"
  printf '{"imageLayoutVersion":"1.0.0"}' >"$image/oci-layout"
  "${pack[@]}" -C "$image" -cf "$tmp/$name.tar" oci-layout index.json blobs
  # The archive goes last: with its stamp it is whole.
  rm -f "$out/$name.stamp"
  mv -f "$tmp/$name.tar" "$out/$name.tar"
  stamp_of "$name" >"$out/$name.stamp"
  printf '%s: %s, %s KiB\n' "$out/$name.tar" "$*" "$(($(stat -c %s "$out/$name.tar") / 1024))"
}

current() { [[ $force == no && -f $out/$1.tar && -f $out/$1.stamp && $(<"$out/$1.stamp") == "$(stamp_of "$1")" ]]; }

build_pause() {
  local root=$tmp/pause
  fetch "$tmp/pause.debs" "${PAUSE_PACKAGES[@]}"
  dpkg-deb -x "$tmp"/pause.debs/catatonit_*.deb "$tmp/pause.x"
  mkdir -p "$root"
  install -m 0755 "$tmp/pause.x/usr/bin/catatonit" "$root/pause"
  # catatonit -P waits, reaps the orphans of a shared pid namespace and ends at SIGTERM or SIGINT. It is linked statically.
  oci pause "$root" '{"Entrypoint":["/pause","-P"],"User":"65535:65535","WorkingDir":"/"}' "${PAUSE_TAGS[@]}"
}

build_nginx() {
  local root=$tmp/nginx
  system nginx "${NGINX_PACKAGES[@]}"
  user "$root" www-data 33
  mkdir -p "$root"/var/{log,lib}/nginx
  install -m 0644 "$here/nginx/nginx.conf" "$root/etc/nginx/nginx.conf"
  ln -sf /dev/stdout "$root/var/log/nginx/access.log"
  ln -sf /dev/stderr "$root/var/log/nginx/error.log"
  # SIGQUIT lets nginx finish its requests; SIGTERM ends it at once. Both are clean exits.
  oci nginx "$root" '{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],"Cmd":["nginx","-g","daemon off;"],"ExposedPorts":{"80/tcp":{}},"StopSignal":"SIGQUIT","WorkingDir":"/"}' "${NGINX_TAGS[@]}"
}

# The program that the tests of volumes run: what it needs from outside is the Rust that builds Berth.
build_canary() {
  local root=$tmp/canary
  mkdir -p "$root"
  PATH=$PATH:$HOME/.cargo/bin
  command -v rustc >/dev/null || die "no rustc: run deploy/setup.sh"
  # Linked statically: the image holds nothing else.
  rustc --edition 2024 -C opt-level=2 -C codegen-units=1 -C strip=symbols -C target-feature=+crt-static \
    --remap-path-prefix "$here=." -o "$root/canary" "$here/canary/main.rs"
  # It has nothing to say goodbye to; what was not acknowledged may be lost.
  oci canary "$root" '{"Entrypoint":["/canary"],"ExposedPorts":{"7000/tcp":{}},"StopSignal":"SIGKILL","WorkingDir":"/"}' "${CANARY_TAGS[@]}"
}

for name in "${names[@]}"; do
  if current "$name"; then
    printf '%s: up to date\n' "$out/$name.tar"
    continue
  fi
  # shellcheck source=/dev/null
  [[ ! -f $here/$name/image.sh ]] || . "$here/$name/image.sh"
  without=
  "build_$name"
  rm -rf "${tmp:?}"/*
done
