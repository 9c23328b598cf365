#!/usr/bin/env bash
# clang-tidy over the sources of the clang preset: tidy.sh [--all | --part K/N]
#   (none)      what has changed since the last tag. Without a tag: since the commit at which HEAD and
#               FOLDSWAP_TIDY_BASE parted, or else in HEAD's last 20 commits. What is not committed counts as changed.
#               First come sources that have changed, then those with the name of a header that has, then others that
#               include one, directly or not. It looks at 8 at most, which takes about a minute on two CPUs, and says
#               how many it has left out.
#   --all       the whole tree, which takes ten minutes on two CPUs
#   --part K/N  a K-th share of the whole tree
# The preset is configured, and need not be built. Tests and the simulator are not part of it. Exit status 0: nothing
# was found.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

mode=${1-changed}
build="build-clang"
launcher=()
if command -v ccache >/dev/null; then launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache); fi
cmake --preset clang "${launcher[@]}" >/dev/null

# Sources that are compiled, by their paths from the root, each once.
compiled() {
  python3 - "$build" <<'PYTHON'
import json, os, sys
with open(os.path.join(sys.argv[1], "compile_commands.json"), encoding="utf-8") as f:
    files = {os.path.relpath(os.path.join(c["directory"], c["file"])) for c in json.load(f)}
print("\n".join(sorted(name for name in files if not name.startswith((".", "build")))))
PYTHON
}

# Of the sources on standard input those that the changed files (named in $1) concern, in the order that the head of
# this script tells. All includes are written from the root of the tree.
concerned() {
  python3 -c '
import os, re, sys
with open(sys.argv[1], encoding="utf-8") as f:
    changed = set(f.read().split())
includes = {}
def closure(name):
    if name not in includes:
        includes[name] = set()
        if os.path.exists(name):
            with open(name, encoding="utf-8") as f:
                direct = re.findall(r"^\s*#\s*include\s+\"([^\"]+)\"", f.read(), re.M)
            includes[name] = set(direct).union(*(closure(header) for header in direct))
    return includes[name]
def rank(source):
    if source in changed:
        return 0
    if source.removesuffix(".cc") + ".h" in changed:
        return 1
    return 2 if changed & closure(source) else 3
found = sorted((rank(source), source) for source in sys.stdin.read().split())
print("\n".join(source for place, source in found if place < 3))' "$1"
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
most=8
left=0
case $mode in
  changed)
    since=$(git describe --tags --abbrev=0 2>/dev/null ||
      git merge-base HEAD "${FOLDSWAP_TIDY_BASE-}" 2>/dev/null ||
      git rev-parse --verify -q HEAD~20 ||
      git rev-list --max-parents=0 HEAD | tail -n 1)
    { git diff --name-only "$since" -- '*.cc' '*.h'; git ls-files -o --exclude-standard -- '*.cc' '*.h'; } >"$work/changed"
    compiled | concerned "$work/changed" | sed '/^$/d' >"$work/concerned"
    head -n "$most" "$work/concerned" >"$work/files"
    left=$(($(wc -l <"$work/concerned") - $(wc -l <"$work/files")))
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
    echo "usage: tidy.sh [--all | --part K/N]" >&2
    exit 2
    ;;
esac

status=0
xargs -r -n 1 -P "$(nproc)" clang-tidy-19 -p "$build" --quiet <"$work/files" >"$work/log" 2>"$work/errors" || status=1
# Many sources read one header, each by a link of its own (cmake/Rooms.cmake): it is shown once, and by its path.
sed -E "s#^.*/$build/rooms/[a-z_]+/##; s#^$PWD/##" "$work/log" |
  awk '/: (warning|error): / { show = !seen[$0]++ } show'
# It may also have ended without a word about the source.
if ((status != 0)) && ! grep -qE ': (warning|error): ' "$work/log"; then tail -n 20 "$work/errors"; fi
echo "tidy.sh: $(wc -l <"$work/files") sources looked at, $left left out"
exit "$status"
