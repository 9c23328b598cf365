#!/usr/bin/env bash
# Installs what building and testing foldswap need, as far as it is missing (Debian 12 and its
# relatives). Says nothing when there is nothing to do. Needs root to install; run it once as root,
# then build as anyone.
set -euo pipefail

build=(g++ cmake ninja-build ccache pkg-config git clang-19 clang-tidy-19 clang-format-19
  libclang-rt-19-dev libzstd-dev liblz4-dev libxxhash-dev libspdlog-dev libfmt-dev libcli11-dev
  libtomlplusplus-dev nlohmann-json3-dev libsystemd-dev libcap-dev libgtest-dev libgmock-dev
  librapidcheck-dev libbenchmark-dev liburing-dev libsodium-dev)
tests=(python3 sqlite3 redis-server redis-tools coreutils libcap2-bin gdb procps util-linux e2fsprogs
  stress-ng spin systemd shellcheck flake8)

missing=()
for package in "${build[@]}" "${tests[@]}"; do
  status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [[ $status == installed ]] || missing+=("$package")
done
((${#missing[@]} > 0)) || exit 0

if ((EUID != 0)); then
  echo "deps.sh: missing packages: ${missing[*]}; run it as root to install them" >&2
  exit 1
fi

# Installing redis-server must not start a server: policy-rc.d says no, if nobody else's is there.
policy=/usr/sbin/policy-rc.d
log=$(mktemp)
guarded=no
cleanup() {
  if [[ $guarded == yes ]]; then rm -f "$policy"; fi
  rm -f "$log"
}
trap cleanup EXIT
if [[ ! -e $policy ]]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  guarded=yes
  chmod 755 "$policy"
fi

quietly() {
  if ! "$@" >"$log" 2>&1 </dev/null; then
    cat "$log" >&2
    echo "deps.sh: failed: $*" >&2
    exit 1
  fi
}
export DEBIAN_FRONTEND=noninteractive
quietly apt-get update
quietly apt-get install -y --no-install-recommends "${missing[@]}"
echo "deps.sh: installed ${missing[*]}"
