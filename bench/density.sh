#!/usr/bin/env bash
# How dense the pool is on the heaps of real programs, against the codec, z3fold, zbud and zram:
#   density.sh [--mib N] [--build DIR]
# Takes pages from the heaps of programs that it starts (at most N MiB each, default 48), has the
# kernel's zram store them where there is one (as root), then runs DIR/bench/density (default
# build). The pages lie in a temporary directory that goes away at the end.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

mib=48
build=build
usage() {
  echo "usage: density.sh [--mib N] [--build DIR]" >&2
  exit 2
}
while (($# > 0)); do
  case "$1" in
    --mib) mib=${2-} ;;
    --build) build=${2-} ;;
    *) usage ;;
  esac
  shift 2 || usage
done
if [[ ! -x $build/bench/density ]]; then
  echo "density.sh: no $build/bench/density: cmake --preset release &&" \
    "cmake --build --preset release --target bench/density" >&2
  exit 1
fi

work=$(mktemp -d)
child=
cleanup() {
  local status=$?
  trap - EXIT INT TERM HUP
  if [[ -n $child ]]; then
    kill -TERM "$child" 2>/dev/null || true
    wait "$child" 2>/dev/null || true
  fi
  rm -rf "$work"
  exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

# In the background and waited for, so that a signal ends it at once.
step() {
  "$@" &
  child=$!
  local status=0
  wait "$child" || status=$?
  child=
  return "$status"
}

step python3 -B bench/sample_heaps.py "$work" --mib "$mib"
step python3 -B bench/zram_peer.py "$work"/*.pages
echo
step "$build/bench/density" "$work"/*.pages
