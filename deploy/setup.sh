#!/usr/bin/env bash
# Installs on Debian or Ubuntu what Berth needs to be built, tested and run in a lab. Says what it does; when all is
# there it does nothing and takes a moment. Uses sudo when it is not run as root.
#
#   deploy/setup.sh [--check]     --check only says what is missing, and fails if something is
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# package[:program]: where the program is there, from whatever source, the package is not needed. That matters for
# containerd: Docker's own packages bring it too, and Debian's would replace them.
PACKAGES=(
  # build
  build-essential:cc protobuf-compiler:protoc libprotobuf-dev curl:curl ca-certificates git:git
  # lab
  etcd-server:etcd etcd-client:etcdctl containerd:containerd runc:runc containernetworking-plugins
  iproute2:ip nftables:nft iptables:iptables util-linux:nsenter mount:losetup e2fsprogs:mkfs.ext4 xfsprogs:mkfs.xfs
  # demo and examples
  jq:jq python3:python3 python3-venv
)
# Their packages start a service of the same name; the lab runs its own, in its own folders.
SERVICES=(etcd containerd)

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

check=no
case ${1:-} in
  '') ;;
  --check) check=yes ;;
  *) die "usage: deploy/setup.sh [--check]" ;;
esac

# Some programs are in sbin, which is not on every user's PATH.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

installed() { [[ $(dpkg-query -W -f='${db:Status-Abbrev}' "$1" 2>/dev/null) == ii* ]]; }

missing=()
for entry in "${PACKAGES[@]}"; do
  package=${entry%%:*}
  program=${entry#"$package"}; program=${program#:}
  if [[ -n $program ]] && command -v "$program" >/dev/null; then continue; fi
  installed "$package" 2>/dev/null || missing+=("$package")
done

# The version that the workspace asks for.
wanted=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' "$here/../Cargo.toml")
PATH=$PATH:$HOME/.cargo/bin
rust_is_there() {
  # With rustup the right toolchain comes by itself: rust-toolchain.toml names it.
  command -v rustup >/dev/null && command -v cargo >/dev/null && return
  command -v cargo >/dev/null || return
  local version; version=$(cargo --version | cut -d' ' -f2)
  [[ $(printf '%s\n%s\n' "$wanted" "$version" | sort -V | head -n1) == "$wanted" ]]
}
rust=there
rust_is_there || rust=missing

if [[ ${#missing[@]} -eq 0 && $rust == there ]]; then
  say "all that Berth needs is installed"
  exit 0
fi
if [[ $check == yes ]]; then
  [[ ${#missing[@]} -eq 0 ]] || say "missing packages: ${missing[*]}"
  [[ $rust == there ]] || say "missing: Rust $wanted or newer"
  exit 1
fi

as_root=()
if [[ $EUID -ne 0 ]]; then
  command -v sudo >/dev/null || die "needs root to install packages and there is no sudo: run it as root"
  as_root=(sudo)
fi

policy=/usr/sbin/policy-rc.d
policy_made=no
restore() { if [[ $policy_made == yes ]]; then "${as_root[@]}" rm -f "$policy"; fi; }
trap restore EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

if [[ ${#missing[@]} -gt 0 ]]; then
  command -v apt-get >/dev/null || die "this is no Debian or Ubuntu: install by hand what these packages hold: ${missing[*]}"
  say "installing ${missing[*]}"
  # The packages' services must not start: this policy forbids it while they are installed.
  if [[ ! -e $policy ]]; then
    policy_made=yes
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
    "${as_root[@]}" chmod 755 "$policy"
  fi
  log=$(mktemp)
  install() {
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
      apt-get -qq -y -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300 install --no-install-recommends "${missing[@]}" >>"$log" 2>&1
  }
  # Package lists may be missing or old; a new list settles both.
  "${as_root[@]}" apt-get -qq -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300 update >>"$log" 2>&1 || say "apt-get update failed; trying with the lists that are there"
  if ! install; then
    tail -n 30 "$log" >&2
    die "cannot install ${missing[*]}: see above and $log"
  fi
  rm -f "$log"
  restore
  policy_made=no
  if [[ -d /run/systemd/system ]]; then
    for service in "${SERVICES[@]}"; do
      for package in "${missing[@]}"; do
        if [[ $package == "$service" || $package == "$service-server" ]]; then
          say "disabling the service $service, which the package would start at the next boot"
          "${as_root[@]}" systemctl --quiet disable --now "$service" || true
        fi
      done
    done
  fi
fi

if [[ $rust == missing ]]; then
  say "Rust $wanted or newer is missing: installing rustup for user $(id -un), with the toolchain that rust-toolchain.toml names, into ~/.cargo and ~/.rustup"
  if apt-cache policy rustup 2>/dev/null | grep -q 'Candidate: [0-9]'; then
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -y install rustup >/dev/null
    rustup default "$(sed -n 's/^channel *= *"\(.*\)"/\1/p' "$here/../rust-toolchain.toml")"
  else
    curl --proto '=https' --tlsv1.2 --fail --silent --show-error --retry 3 https://sh.rustup.rs \
      | sh -s -- -y --quiet --profile minimal --no-modify-path \
        --default-toolchain "$(sed -n 's/^channel *= *"\(.*\)"/\1/p' "$here/../rust-toolchain.toml")" \
        --component rustfmt --component clippy \
      || die "rustup could not be installed: install Rust $wanted or newer by hand, then run this again"
  fi
  (cd "$here/.." && cargo --version) || die "cargo does not run: see above"
  say "cargo is $(command -v cargo): add its folder to your PATH to call it by hand"
fi
say "done"
