#!/usr/bin/env bash
# The long tests: nightly.sh [CTEST-ARGUMENT]...
# Runs what has the label `nightly` (CTest) in the release build: the ten-minute torture, the
# half-hour storm, a death at every crash point, the tests of the tests (tests/mutations.py) and
# others. scripts/test.sh leaves these out. Takes about four hours.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/deps.sh
launcher=()
if command -v ccache >/dev/null; then launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache); fi
cmake --preset release "${launcher[@]}" >/dev/null
cmake --build --preset release -j "$(nproc)"
exec ctest --preset release --no-tests=error -L '^nightly$' "$@"
