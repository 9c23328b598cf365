#!/usr/bin/env python3
"""The nightly tests in parts, and a log of which part ran for which commit; scripts/nightly.sh runs it.

nightly.py --build-dir DIR --part K/N [--commit COMMIT] [--log FILE]
nightly.py --build-dir DIR --status [N] [--log FILE]

--part: runs the K-th of N shares of the tests that have the label `nightly`, and adds a line to the
    log. CTest's COST of each is the minutes that it takes, and the shares take about the same time.
    COMMIT is what was built. By these minutes a share takes 45 at most: N has to be large enough.
--status: tells for each of N parts (by default as few as there can be) whether it counts for HEAD.
    A part counts when it passed, and no file but documentation has changed since. Exit status 0:
    all parts count.

A line of the log: date, commit, part, passed, failed or skipped (all of it was), seconds, the tests that
failed, the tests that were skipped. A "+" after the commit says that files had changed that were not
committed."""

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from collections import namedtuple

import tree

MOST_MINUTES = 45
NONE = "-"  # in the log, for no tests

Record = namedtuple("Record", "date commit part verdict seconds failed skipped")


# -- shares of the tests

def shares(minutes, count):
    """The tests (name -> minutes) in `count` lists that take about the same time: each test goes
    where the least is so far, the longest test first."""
    lists = [[] for _ in range(count)]
    totals = [0.0] * count
    for name in sorted(minutes, key=lambda name: (-minutes[name], name)):
        least = totals.index(min(totals))
        lists[least].append(name)
        totals[least] += minutes[name]
    return lists


def longest(minutes, count):
    return max(sum(minutes[name] for name in share) for share in shares(minutes, count))


def fewest(minutes):
    """The least number of shares of which none takes too long."""
    too_long = [name for name, least in minutes.items() if least > MOST_MINUTES]
    if too_long:
        raise ValueError(f"more than {MOST_MINUTES} minutes: {', '.join(sorted(too_long))}")
    return next(n for n in range(1, len(minutes) + 2) if longest(minutes, n) <= MOST_MINUTES)


def part_of(text):
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not K/N with K from 1 to N")
    return int(match[1]), int(match[2])


def minutes_of(listing):
    """Name -> minutes of what `ctest --show-only=json-v1` has printed."""
    minutes = {}
    for test in listing["tests"]:
        properties = {p["name"]: p["value"] for p in test.get("properties", [])}
        if "COST" not in properties:
            raise ValueError(f"{test['name']} is nightly and does not say how many minutes it takes")
        minutes[test["name"]] = properties["COST"]
    return minutes


# -- the log

def format_record(record):
    return " ".join([record.date, record.commit, record.part, record.verdict, str(record.seconds),
                     ",".join(record.failed) or NONE, ",".join(record.skipped) or NONE])


def parse_record(line):
    date, commit, part, verdict, seconds, failed, skipped = line.split()
    names = [[] if text == NONE else text.split(",") for text in (failed, skipped)]
    return Record(date, commit, part, verdict, int(seconds), *names)


def parse_log(text):
    return [parse_record(line) for line in text.splitlines() if line.strip()]


def is_documentation(path):
    return path == "README.md" or path.startswith("docs/")


def why_not(commit, changed):
    """Why what was found out about a commit does not hold for HEAD; None: it does. `changed` tells
    which files differ between a commit and HEAD, or None when there is no such commit."""
    if commit.endswith("+"):
        return "with changes that were not committed"
    files = changed(commit)
    if files is None:
        return "which is no commit here"
    files = [path for path in files if not is_documentation(path)]
    if not files:
        return None
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    return f"and {files[0]}{more} changed since"


def status_of(part, records, changed):
    """Whether a part counts, and a text that says so. The last run that holds for HEAD decides."""
    reason = "has not been run"
    for record in reversed([r for r in records if r.part == part]):
        where = f"{record.verdict} at {record.commit[:10]} on {record.date}"
        stale = why_not(record.commit, changed)
        if stale is None:
            if record.failed:
                where += ": " + ", ".join(record.failed)
            if record.skipped:
                where += "; skipped: " + ", ".join(record.skipped)
            return record.verdict == "passed", where
        if reason == "has not been run":
            reason = f"{where}, {stale}"
    return False, reason


# -- the world

def git(*arguments):
    return subprocess.run(["git", *arguments], cwd=tree.ROOT, capture_output=True, text=True, check=False)


def changed_since(commit):
    done = git("diff", "--name-only", "--no-renames", commit, "HEAD")
    return done.stdout.splitlines() if done.returncode == 0 else None


def built(commit):
    """The commit, with a "+" when that is not what lies here."""
    done = git("status", "--porcelain", "--no-renames")
    dirty = [line for line in done.stdout.splitlines() if not is_documentation(line[3:])]
    same = git("rev-parse", "HEAD").stdout.strip() == commit
    return commit if same and not dirty else commit + "+"


def nightly_tests(build_dir):
    done = subprocess.run(["ctest", "--test-dir", build_dir, "-L", "^nightly$",
                           "--show-only=json-v1"], capture_output=True, text=True, check=True)
    return minutes_of(json.loads(done.stdout))


def verdict_of(case):
    """Of a testcase of CTest's JUnit file. A program that is missing is "skipped" there, too."""
    skipped = case.find("skipped")
    if skipped is None:
        return case.get("status")
    return "skipped" if skipped.get("message", "").startswith("SKIP_RETURN_CODE") else "missing"


def run_tests(build_dir, names):
    """Which failed and which were skipped. What CTest does not tell of has failed."""
    pattern = "^(" + "|".join(re.escape(name) for name in names) + ")$"
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "results.xml")
        subprocess.run(["ctest", "--test-dir", build_dir, "--output-on-failure", "-R", pattern,
                        "--output-junit", path], check=False)
        said = {}
        if os.path.exists(path):
            said = {case.get("name"): verdict_of(case)
                    for case in xml.etree.ElementTree.parse(path).iter("testcase")}
    failed = [name for name in names if said.get(name) not in ("run", "skipped")]
    return failed, [name for name in names if said.get(name) == "skipped"]


def run_part(options, minutes):
    number, count = options.part
    if longest(minutes, count) > MOST_MINUTES:
        sys.exit(f"nightly.py: with {count} parts one takes {longest(minutes, count):.0f} minutes; "
                 f"{fewest(minutes)} parts take at most {MOST_MINUTES}")
    names = shares(minutes, count)[number - 1]
    commit = options.commit or git("rev-parse", "HEAD").stdout.strip()
    print(f"part {number} of {count}: {len(names)} tests, about "
          f"{sum(minutes[name] for name in names):.0f} minutes", flush=True)
    if not commit:
        sys.exit("nightly.py: no git checkout: a result could not say what it is of")
    begun = time.monotonic()
    before = built(commit)
    failed, skipped = run_tests(options.build_dir, names) if names else ([], [])
    after = built(commit)
    nothing_ran = bool(names) and len(skipped) == len(names)
    verdict = "failed" if failed else "skipped" if nothing_ran else "passed"
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    record = Record(now, max(before, after, key=len), f"{number}/{count}", verdict,
                    round(time.monotonic() - begun), failed, skipped)
    with open(options.log, "a", encoding="utf-8") as log:
        log.write(format_record(record) + "\n")
    print(format_record(record))
    return not failed


def show_status(options, minutes):
    count = options.status or fewest(minutes)
    records = []
    if os.path.exists(options.log):
        with open(options.log, encoding="utf-8") as log:
            records = parse_log(log.read())
    everything = True
    for number in range(1, count + 1):
        part = f"{number}/{count}"
        counts, text = status_of(part, records, changed_since)
        everything = everything and counts
        print(f"{part:6} {'counts' if counts else 'MISSING':8} {text}")
    return everything


def main():
    parser = argparse.ArgumentParser(description="the nightly tests in parts")
    parser.add_argument("--build-dir", required=True)
    parser.add_argument("--log")
    parser.add_argument("--commit")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--part", type=part_of, metavar="K/N")
    what.add_argument("--status", type=int, nargs="?", const=0, metavar="N")
    options = parser.parse_args()
    options.log = options.log or os.path.join(options.build_dir, "nightly.log")
    minutes = nightly_tests(options.build_dir)
    well = run_part(options, minutes) if options.part else show_status(options, minutes)
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
