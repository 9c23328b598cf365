#!/usr/bin/env bash
# clang-tidy over the clang build's sources: tidy.sh [--build] [--all | --part K/N]
#   (none)      sources that have changed, and those that include a header that has: since the last tag; without a tag,
#               in the last commit and what is not committed. Of these at most 8, and says how many it left out
#   --all       the whole tree
#   --part K/N  a K-th share of the whole tree
# Needs the clang preset built (--build does it), because the build knows who includes what. Exit status 0: nothing was found.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

most=8
with_build=no
if [[ ${1-} == --build ]]; then
  with_build=yes
  shift
fi
mode=${1-changed}
build="build-clang"
if [[ $with_build == yes ]]; then
  cmake --preset clang >/dev/null
  cmake --build --preset clang -j "$(nproc)" >/dev/null
fi
if [[ ! -f $build/compile_commands.json || ! -f $build/.ninja_deps ]]; then
  echo "tidy.sh: build the clang preset first: cmake --preset clang && cmake --build --preset clang" >&2
  exit 2
fi

# Sources that are compiled, by their paths from the root, each once.
compiled() {
  python3 - "$build" <<'PYTHON'
import json, os, sys
with open(os.path.join(sys.argv[1], "compile_commands.json"), encoding="utf-8") as f:
    files = {os.path.relpath(os.path.join(c["directory"], c["file"])) for c in json.load(f)}
print("\n".join(sorted(name for name in files if not name.startswith((".", "build")))))
PYTHON
}

# Those among them that are, or include, one of the files on standard input.
touched() {
  ninja -C "$build" -t deps 2>/dev/null | python3 -c '
import os, sys
root = os.getcwd() + os.sep
with open(sys.argv[1], encoding="utf-8") as f:
    changed = set(f.read().split())
found = set()
for block in sys.stdin.read().split("\n\n"):
    files = [line.strip() for line in block.splitlines()[1:]]
    files = [os.path.realpath(os.path.join("'"$build"'", name)).removeprefix(root) for name in files]
    if files and changed.intersection(files):
        found.add(files[0])
print("\n".join(sorted(found)))' "$1"
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
case $mode in
  changed)
    since=$(git describe --tags --abbrev=0 2>/dev/null || git rev-parse --verify -q HEAD~1 || git rev-parse HEAD)
    git diff --name-only "$since" -- '*.cc' '*.h' >"$work/changed"
    touched "$work/changed" >"$work/touched"
    # What changed itself comes first.
    { grep -E '\.cc$' "$work/changed" || true; cat "$work/touched"; } | awk '!seen[$0]++' >"$work/ordered"
    compiled | grep -Fxf - "$work/ordered" >"$work/files" || true
    if (($(wc -l <"$work/files") > most)); then
      echo "tidy.sh: $(wc -l <"$work/files") sources are concerned; the first $most are looked at, --all looks at all"
      head -n "$most" "$work/files" >"$work/some" && mv "$work/some" "$work/files"
    fi
    ;;
  --all) compiled >"$work/files" ;;
  --part)
    if [[ ! ${2-} =~ ^([1-9][0-9]*)/([1-9][0-9]*)$ ]] || ((BASH_REMATCH[1] > BASH_REMATCH[2])); then
      echo "tidy.sh: --part wants K/N with K from 1 to N" >&2
      exit 2
    fi
    compiled | awk -v k="${BASH_REMATCH[1]}" -v n="${BASH_REMATCH[2]}" 'NR % n == k % n' >"$work/files"
    ;;
  *)
    echo "usage: tidy.sh [--build] [--all | --part K/N]" >&2
    exit 2
    ;;
esac

status=0
xargs -r -n 1 -P "$(nproc)" clang-tidy-19 -p "$build" --quiet <"$work/files" >"$work/log" 2>/dev/null || status=1
# A header is read by many.
grep -vE '^[0-9]+ warnings? generated' "$work/log" | awk '/: (warning|error): / { show = !seen[$0]++ } show' || true
if grep -qE ': (warning|error): ' "$work/log"; then status=1; fi
echo "tidy.sh: $(wc -l <"$work/files") sources looked at"
exit "$status"
