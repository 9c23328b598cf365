#!/usr/bin/env bash
# Shows foldswap at work: builds it, starts a private daemon, and runs a Python program with a heap
# of some 120 MB twice: plainly, and as a client that may keep half of that in memory.
# Exit status 0: both runs printed the same.
# The daemon needs root (or CAP_SYS_PTRACE and access to /dev/userfaultfd).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly resident_max=60M

scripts/deps.sh

launcher=()
if command -v ccache >/dev/null; then launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache); fi
work=$(mktemp -d)
daemon=
program=
cleanup() {
  local status=$?
  for pid in $program $daemon; do kill -TERM "$pid" 2>/dev/null || true; done
  wait || true
  rm -rf "$work"
  exit "$status"
}
trap cleanup EXIT
fail() {
  echo "demo: $1" >&2
  if [[ -s $work/daemon.log ]]; then tail -n 20 "$work/daemon.log" >&2; fi
  exit 1
}

echo "== building"
{ cmake --preset release "${launcher[@]}" &&
  cmake --build --preset release -j "$(nproc)" \
    --target bin/foldswapd bin/foldswap lib/libfoldswap.so; } >"$work/build.log" 2>&1 ||
  { tail -n 60 "$work/build.log" >&2; fail "the build failed"; }
PATH=$PWD/build/bin:$PATH
export FOLDSWAP_RUNTIME_DIR=$work/run
mkdir -m 0755 "$FOLDSWAP_RUNTIME_DIR"

echo "== starting a daemon of our own"
: >"$work/empty.toml"
foldswapd --config "$work/empty.toml" --runtime-dir "$FOLDSWAP_RUNTIME_DIR" \
  >"$work/daemon.log" 2>&1 &
daemon=$!
for ((i = 0; i < 200; i++)); do
  [[ -S $FOLDSWAP_RUNTIME_DIR/client.sock && -S $FOLDSWAP_RUNTIME_DIR/admin.sock ]] && break
  kill -0 "$daemon" 2>/dev/null || fail "the daemon did not start"
  sleep 0.05
done
[[ -S $FOLDSWAP_RUNTIME_DIR/client.sock ]] || fail "the daemon did not open its socket"

echo "== the program, plainly"
python3 scripts/demo_load.py >"$work/plain.txt"

echo "== the program as a client that may keep $resident_max in memory"
mkfifo "$work/go"
foldswap run --require --name demo --resident-max "$resident_max" -- \
  python3 scripts/demo_load.py "$work/ready" >"$work/client.txt" <"$work/go" &
program=$!
exec 3>"$work/go"
for ((i = 0; i < 6000; i++)); do
  [[ -e $work/ready ]] && break
  kill -0 "$program" 2>/dev/null || fail "the program ended early"
  sleep 0.05
done
[[ -e $work/ready ]] || fail "the program did not get ready within five minutes"

# The budget is kept by work in the background: wait until no more is being taken out.
out_pages() {
  foldswap clients --json | python3 -c \
    'import json, sys; print(sum(c["evicted_pages"] for c in json.load(sys.stdin)))'
}
before=-1
for ((i = 0; i < 60; i++)); do
  now=$(out_pages)
  ((now > 0 && now == before)) && break
  before=$now
  sleep 0.5
done
foldswap stats --json >"$work/stats.json"
foldswap stats
echo
python3 scripts/demo_report.py "$work/stats.json" || fail "nothing was taken out"

echo "== the program goes on and uses all of it again"
echo go >&3
exec 3>&-
wait "$program" || fail "the program failed"
program=
foldswap stats --json >"$work/after.json"
python3 scripts/demo_report.py --faults "$work/after.json"
cmp "$work/plain.txt" "$work/client.txt" || fail "the two runs differ"
echo "Both runs printed the same digests."

echo "== stopping the daemon"
kill -TERM "$daemon"
wait "$daemon" || fail "the daemon did not end well"
daemon=
