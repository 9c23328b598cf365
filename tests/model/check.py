#!/usr/bin/env python3
"""Checks the protocol model with spin: it must verify, and must fail with each rule taken out.

check.py [--long] [--only NAME]...

One line for each check; exit status 0: all went as they must, 77: spin or gcc is not installed.
Everything is built in a temporary directory. One core, less than a gigabyte, some two minutes.
--long adds what takes several minutes and up to 4 GiB. --only runs the checks whose names contain
NAME, and prints spin's trail of a failure.
"""

import argparse
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

MODEL = pathlib.Path(__file__).resolve().parent / "protocol.pml"

# What of the world a search contains. Together they contain everything; all at once is too much.
SMALL = "-DCRASHES=1 -DNO_MREMAP"
THREADS = "-DCRASHES=0 -DTWO_THREADS -DNO_MREMAP"
MOVES = "-DCRASHES=2 -DONE_EVENT -DNO_DISCARD"
MUNMAP = "-DCRASHES=1 -DREGISTRATION -DONE_EVENT -DNO_MREMAP"
UNREGISTER = "-DCRASHES=1 -DREGISTRATION -DONE_EVENT -DNO_DISCARD -DNO_MUNMAP"

HOLDS = {
    "discards and moves": "-DCRASHES=1",
    "deaths in recovery": "-DCRASHES=2 -DNO_MREMAP",
    "moves half applied": MOVES,
    "two threads": THREADS,
    "munmap and REGISTER": MUNMAP,
    "mremap and UNREGISTER": UNREGISTER,
}
HOLDS_LONG = {
    "two threads and a death": "-DCRASHES=1 -DTWO_THREADS -DNO_MREMAP",
    "discards, moves, deaths in recovery": "-DCRASHES=2",
    "mremap, munmap, registration": "-DCRASHES=1 -DREGISTRATION -DONE_EVENT -DNO_DISCARD",
}

# The rule that is taken out: macro, search, what it is.
BREAKS = [
    ("NO_EPOCH", SMALL, "the agent does not compare epochs"),
    ("NO_LOCK", SMALL, "there is no layout lock"),
    ("NO_QUARANTINE", SMALL, "what a REMOVE event names may be evicted at once"),
    ("ANSWER_FIRST", SMALL, "faults are answered before the events that were read with them"),
    ("BLIND_PUBLISH", SMALL, "entries are published without compare-and-swap"),
    ("ZERO_WITHOUT_LOCK", THREADS, "zero pages are filled in without the lock"),
    ("ENTRY_FIRST", SMALL, "the entry is published before its object is complete"),
    ("FREE_FIRST", SMALL, "the object is freed before COPY"),
    ("TRANSFER_FIRST", SMALL, "the transfer area is emptied before the entry is published"),
    ("INBOX_FIRST", SMALL, "the inbox entry is cleared before it is applied"),
    ("REMAP_IN_FLIGHT", MOVES, "a REMAP is applied while a batch is in flight"),
    ("NO_REGISTER", MUNMAP, "the agent moves without REGISTER in the same hold"),
    ("NO_RUN_PROBE", MUNMAP, "it does not look for holes that REGISTER passed over"),
    ("NO_PROBE", UNREGISTER, "nobody looks for a change under way around UNREGISTER"),
    ("NO_WAKE", SMALL, "recovery wakes nobody"),
    ("NO_BUMP", SMALL, "recovery lets go of the lock before it bumps the epoch"),
    ("CLEAR_EVERY_LOCK", SMALL, "recovery clears the agent's lock, too"),
    ("PRESENT_FIRST", SMALL, "recovery judges a page by pagemap while its command is posted"),
    ("STALE_RESULTS", SMALL, "the last command's results are there when the next pages become OUT"),
    ("REPLAY_CLEARS", MOVES, "a half-applied REMAP clears its target again"),
    ("NO_NOTE", UNREGISTER, "recovery does not know what was being unregistered"),
]


INCOMPLETE = "the search is not complete"


class Failed(Exception):
    pass


def call(command, directory, seconds):
    done = subprocess.run(command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, timeout=seconds, check=False)
    return done.returncode, done.stdout


def search(flags, directory, memory_mib, optimise):
    """Spin's report of one exhaustive search, which ends at the first error."""
    for command in (["spin", "-a", *flags.split(), str(MODEL)],
                    ["gcc", optimise, "-w", "-DSAFETY", "-DCOLLAPSE", f"-DMEMLIM={memory_mib}",
                     "-o", "pan", "pan.c"]):
        status, text = call(command, directory, 120)
        if status != 0 or not (directory / "pan.c").exists():
            raise Failed(f"{command[0]}: {text.strip()[:400]}")
    _, report = call(["./pan", "-m1000000"], directory, 1800)
    if "errors:" not in report:
        raise Failed(f"pan: {report.strip()[-400:]}")
    return report


def verdict(report):
    """"" for a complete search without an error, else what spin found."""
    error = re.search(r"^pan:\d+: (.*) \(at depth", report, re.M)
    if error:
        return error.group(1)
    whole = "errors: 0" in report and not re.search(
        r"max search depth too small|not completed|out of memory|memory limit", report)
    return "" if whole else INCOMPLETE


def meaning(error):
    if "expected" in error:
        return "a wrong byte is read"
    if "refs" in error:
        return "an object is freed that an entry names"
    if "layout" in error:
        return "two hold the lock"
    return "a fault waits for ever" if error == "invalid end state" else error


def states(report):
    return int(re.search(r"(\d+) states, stored", report).group(1))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--only", action="append", default=[], metavar="NAME")
    options = parser.parse_args()
    if not shutil.which("spin") or not shutil.which("gcc"):
        print("spin or gcc is not installed (scripts/deps.sh)")
        return 77
    holds = {**HOLDS, **(HOLDS_LONG if options.long else {})}
    wrong = 0

    def chosen(name):
        return not options.only or any(part in name for part in options.only)

    def check(name, flags, must_hold, what):
        nonlocal wrong
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="foldswap-model-") as path:
            directory = pathlib.Path(path)
            try:
                report = search(flags, directory, 4000 if name in HOLDS_LONG else 2000,
                                "-O2" if must_hold else "-O0")
                found, count = verdict(report), f"{states(report):>9,} states"
            except (Failed, subprocess.TimeoutExpired) as error:
                report, found, count = "", str(error), "no result"
            if must_hold:
                good = found == ""
                said = "holds" if good else found
            else:
                good = report != "" and found not in ("", INCOMPLETE)
                said = f"{meaning(found) if good else f'NOT NOTICED {found}'}: {what}"
            print(f"{'ok  ' if good else 'FAIL'} {name:<22} {count} "
                  f"{time.monotonic() - began:6.1f} s  {said}", flush=True)
            if options.only and found and (directory / "protocol.pml.trail").exists():
                print(call(["spin", "-p", "-k", "protocol.pml.trail", *flags.split(), str(MODEL)],
                           directory, 120)[1])
            wrong += not good

    for name, flags in holds.items():
        if chosen(name):
            check(name, flags, True, "")
    for macro, flags, what in BREAKS:
        if chosen(macro):
            check(macro, f"{flags} -D{macro}", False, what)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
