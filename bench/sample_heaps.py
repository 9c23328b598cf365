#!/usr/bin/env python3
"""Takes pages from the heaps of real programs: sample_heaps.py OUTDIR [--mib N] [--only NAME]...

Starts each program of heap_programs.py by itself, stops it when its heap is filled, writes the
resident private anonymous pages of its heap to OUTDIR/NAME.pages (at most N MiB, spread evenly
over the heap when it is larger), and ends it. A program that cannot be had is named and left out.
Exit status 0: at least one program (each of --only) was sampled.
"""

import argparse
import array
import os
import re
import signal
import sys
import tempfile
import time

import heap_programs
from heap_programs import MIB

PAGE = 4096
RUN_PAGES = 64  # the unit of sampling
PRESENT, FILE_OR_SHARED = 1 << 63, 1 << 61  # bits of a pagemap entry
LEAST_BYTES = 8 * MIB  # less is no heap to speak of


def heap_ranges(pid):
    """[heap], and mappings that are anonymous, private and writable."""
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as file:
        for line in file:
            match = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw-p \S+ \S+ 0\s*(.*)$", line)
            if match and (match[3] in ("", "[heap]") or match[3].startswith("[anon:")):
                yield int(match[1], 16), int(match[2], 16)


def resident_pages(pid):
    pages = []
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as file:
        for start, end in heap_ranges(pid):
            file.seek(start // PAGE * 8)
            entries = array.array("Q", file.read((end - start) // PAGE * 8))
            pages += [start + i * PAGE for i, entry in enumerate(entries)
                      if entry & PRESENT and not entry & FILE_OR_SHARED]
    return pages


def spread(pages, most):
    """At most so many, in runs that lie evenly over all."""
    if len(pages) <= most:
        return pages
    runs = max(1, most // RUN_PAGES)
    starts = [i * (len(pages) - RUN_PAGES) // max(1, runs - 1) for i in range(runs)]
    return [page for start in starts for page in pages[start:start + RUN_PAGES]][:most]


def stop(pid):
    os.kill(pid, signal.SIGSTOP)
    for _ in range(1000):
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            if file.read().rpartition(")")[2].split()[0] in "Tt":
                return
        time.sleep(0.005)
    raise heap_programs.Missing("it did not stop")


def sample(pid, name, most):
    """Returns the pages written and the pages that there were."""
    stop(pid)
    pages = resident_pages(pid)
    if len(pages) * PAGE < min(LEAST_BYTES, most * PAGE):
        raise heap_programs.Missing(f"its heap has {len(pages) * PAGE // MIB} MiB only")
    chosen = spread(pages, most)
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory, open(name, "wb") as out:
        for page in chosen:
            memory.seek(page)
            out.write(memory.read(PAGE))
    return len(chosen), len(pages)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("outdir")
    parser.add_argument("--mib", type=int, default=48, help="the most of one heap (default 48)")
    parser.add_argument("--only", action="append", choices=heap_programs.PROGRAMS)
    args = parser.parse_args()
    if args.mib < 1:
        parser.error("--mib must be at least 1")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda signum, frame: sys.exit(128 + signum))
    os.makedirs(args.outdir, exist_ok=True)
    corpus = heap_programs.Corpus()
    done, missed = 0, []
    for name in args.only or heap_programs.PROGRAMS:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="foldswap-heaps-") as work:
            bench = heap_programs.Bench(work, corpus, max(16, args.mib) * MIB)
            try:
                process = heap_programs.PROGRAMS[name](bench)
                taken, there = sample(process.pid, f"{args.outdir}/{name}.pages",
                                      args.mib * MIB // PAGE)
                done += 1
                print(f"sampled {name}: {taken} of {there} pages of its heap, "
                      f"{time.monotonic() - began:.0f} s", flush=True)
            except (heap_programs.Missing, heap_programs.subprocess.TimeoutExpired,
                    OSError) as error:
                missed.append(name)
                print(f"left out {name}: {error}", flush=True)
            finally:
                bench.end()
    return 1 if done == 0 or (args.only and missed) else 0


if __name__ == "__main__":
    sys.exit(main())
