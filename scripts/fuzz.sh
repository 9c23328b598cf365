#!/usr/bin/env bash
# Runs the fuzzers of the clang build for a while: fuzz.sh [--build] [SECONDS-EACH [NAME]...]
#   --build   builds them first
#   NAME      only these, of the folders of tests/fuzz/corpus; by default all of them
# As many run at once as there are CPUs. Each begins with the inputs of tests/fuzz/corpus, and leaves these as they are.
# An input that shows something wrong is printed in base64, and kept in build-clang/fuzz-found. Exit status 0: nothing
# was found.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

build=no
if [[ ${1-} == --build ]]; then
  build=yes
  shift
fi
seconds=${1-10}
names=("${@:2}")
if ((${#names[@]} == 0)); then mapfile -t names < <(ls tests/fuzz/corpus); fi
for name in "${names[@]}"; do
  if [[ ! $seconds =~ ^[0-9]+$ || ! -d tests/fuzz/corpus/$name ]]; then
    echo "usage: fuzz.sh [--build] [SECONDS-EACH [NAME]...]" >&2
    exit 2
  fi
done
if [[ $build == yes ]]; then
  launcher=()
  if command -v ccache >/dev/null; then launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache); fi
  cmake --preset clang "${launcher[@]}" >/dev/null
  cmake --build --preset clang -j "$(nproc)" --target "${names[@]/%/_fuzz}"
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
found="build-clang/fuzz-found"
mkdir -p "$found"

# run NAME: prints what libFuzzer says at the end, or the last that it said. Inputs
# may be long from the start (len_control).
run() {
  local name=$1
  cp -r "tests/fuzz/corpus/$name" "$work/$name"
  if "build-clang/bin/${name}_fuzz" -max_total_time="$seconds" -max_len=4000 -len_control=0 -timeout=20 \
    -artifact_prefix="$found/$name-" "$work/$name" >"$work/$name.log" 2>&1; then
    printf '%-16s %s\n' "$name" "$(grep -aE '^Done [0-9]+ runs' "$work/$name.log" | tail -n 1)"
  else
    tail -n 60 "$work/$name.log"
    printf '%-16s FAILED\n' "$name"
    return 1
  fi
}
export -f run
export work found seconds
printf '%s\n' "${names[@]}" | xargs -P "$(nproc)" -I '{}' bash -c 'run {}' || exit 1
