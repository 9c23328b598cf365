#!/usr/bin/env bash
# Reads of data that lies on a disk, over foldswap and over kernel swap on the same disk with the
# same memory, in turn; bytes written; cleaning while pages change:
#   disk.sh BUILD_DIR [--mib N] [...]        (disk.sh BUILD_DIR --help for the rest; as root)
exec python3 -B "$(dirname "${BASH_SOURCE[0]}")/disk_bench.py" "$@"
