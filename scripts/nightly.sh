#!/usr/bin/env bash
# The long tests, which scripts/test.sh leaves out: those with the label `nightly` (CTest), in the
# release build. All of them take almost six hours.
#   nightly.sh [CTEST-ARGUMENT]...         runs all of them
#   nightly.sh --part K/N [--log FILE]     runs the K-th of N parts, and notes it in FILE
#   nightly.sh --status [N] [--log FILE]   tells which of N parts count for HEAD (tests/house/nightly.py)
# FILE is build/nightly.log by default. A part takes about 45 minutes at most, so N has to be large enough;
# --status without N takes the least.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
commit=$(git rev-parse HEAD 2>/dev/null || true)
scripts/deps.sh
launcher=()
if command -v ccache >/dev/null; then launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache); fi
cmake --preset release "${launcher[@]}" >/dev/null
nightly=(python3 -B tests/house/nightly.py --build-dir build)
case " $* " in
  *" --status"*) exec "${nightly[@]}" "$@" ;;
esac
cmake --build --preset release -j "$(nproc)"
case " $* " in
  *" --part"*) exec "${nightly[@]}" --commit "$commit" "$@" ;;
esac
exec ctest --preset release --no-tests=error -L '^nightly$' "$@"
