#!/usr/bin/env bash
# Runs every fuzzer of the clang build for a while: fuzz.sh [--build] [SECONDS-EACH]
#   --build   builds them first
# Each begins with the inputs of tests/fuzz/corpus, and leaves these as they are. An input that shows something wrong is
# printed in base64, and kept in build-clang/fuzz-found. Exit status 0: nothing was found.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

build=no
if [[ ${1-} == --build ]]; then
  build=yes
  shift
fi
seconds=${1-10}
if [[ ! $seconds =~ ^[0-9]+$ || $# -gt 1 ]]; then
  echo "usage: fuzz.sh [--build] [SECONDS-EACH]" >&2
  exit 2
fi
if [[ $build == yes ]]; then
  cmake --preset clang >/dev/null
  # shellcheck disable=SC2046  # names without blanks
  cmake --build --preset clang -j "$(nproc)" --target $(cd tests/fuzz/corpus && printf '%s_fuzz ' *)
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
found="build-clang/fuzz-found"
mkdir -p "$found"
failed=0
for corpus in tests/fuzz/corpus/*/; do
  name=$(basename "$corpus")
  cp -r "$corpus" "$work/$name"
  if "build-clang/bin/${name}_fuzz" -max_total_time="$seconds" -max_len=4000 -timeout=20 \
    -artifact_prefix="$found/$name-" "$work/$name" >"$work/log" 2>&1; then
    printf '%-16s %s\n' "$name" "$(grep -E '^Done [0-9]+ runs' "$work/log" | tail -n 1)"
  else
    failed=1
    tail -n 60 "$work/log"
    printf '%-16s FAILED\n' "$name"
  fi
done
exit "$failed"
