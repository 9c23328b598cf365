#!/usr/bin/env python3
"""Tests of the tests: takes the handling of one hazard after the other out (base/mutation.h), builds,
and demands that the test named here fails. A mutation that no test notices is an error.

mutations.py [--build-dir DIR] [--jobs N] [--part K/N] [NAME...]     default: all, in build-mutations

--part: the K-th of N shares of them.

Each test first has to pass without any mutation. Hazards that need a race to strike get several
tries. Ends with a line "N passed, M failed"; exit status 0: every mutation was noticed.
"""

import argparse
import os
import re
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# Mutation -> (CTest test, how often it may be tried). Tests of the kind "daemon" and "pool" are
# whole unit test programs.
CAUGHT_BY = {
    "h01_order_of_moves": ("daemon", 1),
    "h01_fork_before_frees": ("daemon", 1),
    "h01_fork_order": ("daemon", 1),
    "h02_probe_unregister": ("daemon", 1),
    "h03_register_in_hold": ("hazard_03_move_unregistered", 4),
    "h04_copy_in_hold": ("hazard_04_staging_only_copy", 6),
    "h05_stop_threads": ("daemon", 1),
    "h06_keep_child": ("e2e_program_fork_tree", 2),
    "h07_hup_is_no_death": ("hazard_07_hup_not_death_agent", 2),
    "h09_robust_mutexes": ("space_robust_mutex", 3),
    "h10_single_pages": ("daemon", 1),
    "h10_wake": ("daemon", 1),
    "h12_release_first": ("hazard_12_discards_without_event", 3),
    "h12_guards": ("daemon", 1),
    "h12_fresh_mappings": ("space_wipeonfork", 4),
    "h12_follow_moves": ("space_wipeonfork_moved", 3),
    "h13_unify_first": ("hazard_13_split_mremap", 3),
    "h16_quarantine": ("hazard_16_quarantine_time", 2),
    "h21_locked_staging": ("MoverTest.Hazard21MlockallKeepsEverything", 2),
    "h21_announce": ("space_mlockall_again", 4),
    "h37_innermost_handlers": ("fork_handlers_waits_for_thread", 2),
    "h40_from_the_first_call": ("words_early_robust", 3),
    "advice_without_end": ("lengths_raw_child", 1),
    "move_untold": ("MoverTest.WhatMoveKeepsToItselfIsNotLost", 2),
    "zero_under_lock": ("daemon", 1),
    "layout_epoch": ("MoverTest.AbortsWhenThePlanIsOld", 1),
    "fork_serialised": ("fork_many_threads_at_once", 2),
    "fork_references": ("daemon", 1),
    "fork_running_child": ("daemon", 1),
    "renew_shared": ("MoverTest.PagesThatWereSharedAreRenewed", 1),
    "renew_only_ones_own": ("MoverTest.PagesSharedByForkStay", 1),
    "prove_address_space": ("daemon", 1),
    "inheriting_mutexes": ("e2e_kernel_futex_inheriting", 2),
    "memory_of_a_dead_leader": ("ends_main_thread_ends_first_and_quiet", 2),
    "kept_without_looking": ("daemon", 1),
    "h30_closed_ranges": ("MoverTest.RegistersNothingInAClosedRange", 1),
    "h30_drop_stale": ("daemon", 1),
    "h31_mapping_in_hold": ("MoverTest.RegistersNothingThatIsShared", 1),
    "h31_unregister_others": ("daemon", 1),
    "h38_take_over": ("stopped_agent_read", 2),
    "h38_bounded_hold": ("daemon", 1),
    "h32_mapping_limit": ("daemon", 1),
    "sparse_scan": ("daemon", 1),
    "h39_unregister": ("daemon", 1),
    "stop_restarts_calls": ("stopped_calls_go_on", 2),
    "entry_before_checksum": ("simulator_deaths", 1),
    "free_before_copy": ("simulator_deaths", 1),
    "inbox_before_applied": ("simulator_deaths", 1),
    "staging_before_publish": ("simulator_deaths", 1),
}
# These the simulator must notice by itself, whatever else does: it runs for a minute.
CAUGHT_BY_SIMULATOR = ["fork_references", "h04_copy_in_hold", "h16_quarantine", "layout_epoch",
                       "move_untold"]
SIMULATOR = ("simulator", 2)
TARGETS = ["foldswapd", "foldswap", "foldswap_preload", "daemon_test", "preload_test",
           "foldswap_sim"]


class Mutants:
    def __init__(self, build_dir, jobs):
        self.dir = build_dir
        self.jobs = str(jobs)
        self.header = os.path.join(build_dir, "mutation", "active_mutation.h")

    def activate(self, name):
        text = ("#pragma once\nnamespace foldswap {\n"
                f"inline constexpr Mutation kActiveMutation = Mutation::{name};\n}}\n")
        os.makedirs(os.path.dirname(self.header), exist_ok=True)
        if not os.path.exists(self.header) or open(self.header, encoding="ascii").read() != text:
            with open(self.header, "w", encoding="ascii") as f:
                f.write(text)

    def run(self, command):
        return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, check=False)

    def configure(self):
        command = ["cmake", "--preset", "release", "-B", self.dir, "-DFOLDSWAP_MUTATIONS=ON",
                   "-DFOLDSWAP_BENCH=OFF"]
        if subprocess.run(["which", "ccache"], capture_output=True, check=False).returncode == 0:
            command.append("-DCMAKE_CXX_COMPILER_LAUNCHER=ccache")
        self.must(self.run(command))

    def build(self, targets=()):
        self.must(self.run(["cmake", "--build", self.dir, "-j", self.jobs,
                            *(("--target", *targets) if targets else ())]))

    @staticmethod
    def must(done):
        if done.returncode != 0:
            print(done.stdout[-5000:])
            sys.exit("mutations.py: cannot build")

    def passes(self, test):
        """True: it passed; False: it failed. A test that is skipped or missing proves nothing."""
        done = self.run(["ctest", "--test-dir", self.dir, "--no-tests=error", "--timeout", "300",
                         "--output-on-failure", "-R", f"^{re.escape(test)}$"])
        if "No tests were found" in done.stdout or "***Skipped" in done.stdout:
            sys.exit(f"mutations.py: {test} is missing or skipped\n{done.stdout[-2000:]}")
        return done.returncode == 0


def share(cases, part):
    """The K-th of N shares. Cases of one test lie side by side, so each share has some of every
    test, be it short or long."""
    match = re.fullmatch(r"(\d+)/(\d+)", part)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        sys.exit(f"mutations.py: --part {part} is not K/N with K from 1 to N")
    return sorted(cases, key=lambda case: (case[1], case[0]))[int(match[1]) - 1::int(match[2])]


def main():
    parser = argparse.ArgumentParser(description="tests of the tests")
    parser.add_argument("--build-dir", default=os.path.join(ROOT, "build-mutations"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--part", default="1/1", metavar="K/N")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in CAUGHT_BY]
    if unknown:
        parser.error(f"no such mutation: {', '.join(unknown)}")
    names = options.names or list(CAUGHT_BY)
    cases = [(name, CAUGHT_BY[name]) for name in names]
    cases += [(name, SIMULATOR) for name in names if name in CAUGHT_BY_SIMULATOR]
    cases = share(cases, options.part)
    mutants = Mutants(os.path.abspath(options.build_dir), options.jobs)
    mutants.activate("none")
    mutants.configure()
    mutants.build()
    failed = 0
    for test in dict.fromkeys(test for _, (test, _) in cases):
        if not mutants.passes(test):
            print(f"without a mutation: {test} FAILS", flush=True)
            failed += 1
    for name, (test, tries) in sorted(cases):
        begun = time.monotonic()
        mutants.activate(name)
        mutants.build(TARGETS)
        noticed = next((n for n in range(1, tries + 1) if not mutants.passes(test)), 0)
        verdict = f"noticed by {test} (try {noticed})" if noticed else f"SURVIVED {test}"
        failed += 0 if noticed else 1
        print(f"{name:26} {verdict}, {time.monotonic() - begun:.0f} s", flush=True)
    mutants.activate("none")
    print(f"{len(cases) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
