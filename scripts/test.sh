#!/usr/bin/env bash
# Builds and tests everything: test.sh [--quick]
#   --quick   release build, unit tests and the quick end-to-end tests
#   (none)    release build with all tests; asan and tsan builds with the tests that suit them;
#             clang build with thread-safety analysis as errors; fuzzers; clang-tidy over what has changed; formatting; scripts
#             looked at by shellcheck and flake8
# The output ends with one line for each step, which says how long it took. Exit status 0: every step
# passed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

quick=no
case "${1-}" in
  --quick) quick=yes ;;
  "") ;;
  *)
    echo "usage: test.sh [--quick]" >&2
    exit 2
    ;;
esac

scripts/deps.sh

jobs=$(nproc)
# End-to-end tests wait for each other's processes and for clocks: one more than there are CPUs keeps these busy.
at_once=$((jobs + 1))
launcher=()
if command -v ccache >/dev/null; then launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache); fi
logs=$(mktemp -d)
beside=""  # process of compile_beside
# It has a group of its own, and the compilers end with it.
trap '[[ -z $beside ]] || kill -- "-$beside" 2>/dev/null || true; rm -rf "$logs"' EXIT
results=()
failed=0

record() {  # record NAME STATUS TEXT
  local verdict=passed
  if (($2 != 0)); then
    verdict=FAILED
    failed=1
  fi
  results+=("$(printf '%-16s %s  %s' "$1" "$verdict" "$3")")
}

# compile PRESET: builds it, with what is said in a log, and notes status and duration for build().
compile() {
  local preset=$1 status=0 begun=$SECONDS
  { cmake --preset "$preset" "${launcher[@]}" &&
    cmake --build --preset "$preset" -j "$jobs"; } >"$logs/build-$preset" 2>&1 || status=$?
  echo "$status $((SECONDS - begun))" >"$logs/building-$preset"
  mv "$logs/building-$preset" "$logs/built-$preset"
}

# compile_beside PRESET...: likewise, one after the other. All but the first with what the tests leave of the CPUs: these
# wait most of the time.
compile_beside() {
  local preset
  for preset in "$@"; do
    compile "$preset"
    chrt --idle --pid 0 "$BASHPID"
  done
}

# build PRESET: a failed build is recorded, and shown; returns its status. `built` says how long it took.
build() {
  local preset=$1 status seconds
  echo "== $preset: build"
  if [[ -z $beside ]]; then compile "$preset"; fi
  while [[ ! -e $logs/built-$preset ]] && kill -0 "$beside" 2>/dev/null; do sleep 1; done
  read -r status seconds <"$logs/built-$preset"
  built="build $seconds s"
  if ((status != 0)); then
    tail -n 80 "$logs/build-$preset"
    record "$preset" "$status" "$built"
  fi
  return "$status"
}

# check PRESET [CTEST-ARGUMENT]...: builds, runs ctest, keeps its closing lines.
check() {
  local preset=$1 status=0 log=$logs/test-$1 runner=() begun
  shift
  build "$preset" || return 0
  begun=$SECONDS
  echo "== $preset: ctest $*"
  # ThreadSanitizer needs a layout that full address space randomisation does not always give.
  if [[ $preset == tsan ]] && setarch -R true 2>/dev/null; then runner=(setarch -R); fi
  "${runner[@]}" ctest --preset "$preset" --no-tests=error -LE '^nightly$' -j "$at_once" "$@" 2>&1 | tee "$log" || status=$?
  record "$preset" "$status" "$built, tests $((SECONDS - begun)) s: \
$(grep -E '^[0-9]+% tests passed|^No tests' "$log" | tail -n 1 || true)"
}

# What reads other people's words, and the pool, under libFuzzer for a little while.
check_fuzz() {
  local status=0 log=$logs/fuzz begun=$SECONDS
  echo "== fuzz: scripts/fuzz.sh"
  scripts/fuzz.sh 6 >"$log" 2>&1 || status=$?
  if ((status != 0)); then tail -n 90 "$log"; fi
  record fuzz "$status" "$((SECONDS - begun)) s: $(grep -c -E 'Done [0-9]+ runs' "$log" || true) fuzzers"
}

# sources SUFFIX...: the files that end so.
sources() {
  local patterns=() names=()
  for suffix in "$@"; do
    patterns+=("*$suffix")
    names+=(-o -path "*$suffix")
  done
  git ls-files -co --exclude-standard -- "${patterns[@]}" 2>/dev/null ||
    find . -path './build*' -prune -o \( "${names[@]:1}" \) -print
}

check_tidy() {
  local status=0 log=$logs/tidy begun=$SECONDS
  echo "== tidy: scripts/tidy.sh"
  scripts/tidy.sh >"$log" 2>&1 || status=$?
  if ((status != 0)); then tail -n 90 "$log"; fi
  record tidy "$status" "$((SECONDS - begun)) s: $(tail -n 1 "$log")"
}

check_format() {
  local status=0 begun=$SECONDS
  echo "== format"
  sources .cc .h | xargs -r clang-format-19 --dry-run -Werror || status=$?
  record format "$status" "$((SECONDS - begun)) s: clang-format of all sources"
}

check_scripts() {
  local status=0 begun=$SECONDS
  echo "== scripts"
  sources .sh .ci/run | xargs -r shellcheck || status=$?
  sources .py | xargs -r flake8 || status=$?
  record scripts "$status" "$((SECONDS - begun)) s: shellcheck and flake8 of all scripts"
}

export ASAN_OPTIONS=${ASAN_OPTIONS-detect_stack_use_after_return=1}
export UBSAN_OPTIONS=${UBSAN_OPTIONS-print_stacktrace=1}
export TSAN_OPTIONS=${TSAN_OPTIONS-halt_on_error=1:second_deadlock_stack=1}

if [[ $quick == yes ]]; then
  check release -L '^(unit|quick)$'
else
  set -m
  compile_beside release asan tsan clang &
  beside=$!
  set +m
  check release
  check asan -L '^(unit|e2e_san)$'
  # ThreadSanitizer: what runs the pool, the core and both daemon threads against each other.
  check tsan -R '^(base|pool|daemon|e2e_program_fork_tree|e2e_reclaim_bytes|e2e_drain_.*|hazard_01_.*|hazard_04_.*|hazard_13_.*|torture_sanitized|storm_sanitized)$'
  if build clang; then
    record clang 0 "$built, with thread-safety analysis"
    check_fuzz
    check_tidy
  fi
  check_format
  check_scripts
fi

echo
echo "== summary"
printf '%s\n' "${results[@]}"
exit "$failed"
