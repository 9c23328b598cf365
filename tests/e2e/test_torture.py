"""The torture client (tests/programs/torture/torture.cc) while somebody else reclaims, restores, and changes budgets
and settings, all from one seed. A failure prints the seed and the command that replays it:
FOLDSWAP_TEST_SEED=N python3 tests/e2e/test_torture.py --build-dir build Torture.four_threads"""

import random
import time

from lib import harness
from lib.ctest import ctest
from lib.disturber import Disturber
from lib.harness import E2E, MIB, Place, descriptor_count, wait_until


@ctest("torture", "e2e slow")
class Torture(E2E):
    def torture(self, seconds, threads, seed=None, fork=1, mb=32, least=500):
        seed = seed or self.seed
        before = (descriptor_count(self.daemon.pid), self.daemon.memory())
        client = self.client([Place.program("torture"), f"--seed={seed}", f"--seconds={seconds}",
                              f"--threads={threads}", f"--fork={fork}", f"--mb={mb}",
                              f"--hang={harness.slower(60)}"], "16M", name="tortured")
        client.expect("ready", 60)
        disturber = Disturber(self, "tortured", seed)
        disturber.start()
        said = ""
        try:
            said = client.line(seconds + 300)
        finally:
            disturber.stop()
        self.assertRegex(said, r"^done \d+ operations", client.stderr().decode(errors="replace"))
        self.assertEqual(client.wait(60), 0, client.stderr().decode(errors="replace"))
        stats = self.check_nothing_left()
        print(f"seed {seed}, {threads} threads, fork {fork}: {said}; {disturber.orders} orders, "
              f"{disturber.pages} pages reclaimed, {stats['evict']['pages']} evicted, "
              f"{stats['faults']['total']} faults")
        self.assertGreater(stats["evict"]["pages"], least, "nothing to speak of was evicted")
        self.assertEqual(stats["faults"]["poisoned"], 0)
        wait_until("descriptors to be closed",
                   lambda: descriptor_count(self.daemon.pid) <= before[0] + 2)
        if not Place.sanitized:
            wait_until("memory to be given back",
                       lambda: self.daemon.memory() <= before[1] + 12 * MIB)
        return stats

    @ctest(labels="nightly", minutes=1)
    def test_one_thread(self):
        self.torture(8, 1)
        self.finish_daemon()

    def test_two_threads(self):
        self.torture(10, 2)
        self.finish_daemon()

    @ctest(labels="nightly", minutes=1)
    def test_four_threads(self):
        self.torture(12, 4)
        self.finish_daemon()

    def test_eight_threads(self):
        self.torture(12, 8)
        self.finish_daemon()

    @ctest(labels="nightly", minutes=1)
    def test_four_threads_without_fork(self):
        self.torture(8, 4, fork=0)
        self.finish_daemon()

    def test_fixed_seeds(self):
        for seed in (20181, 2023):
            with self.subTest(seed):
                self.torture(6, 3, seed=seed)
        self.finish_daemon()

    @ctest(labels="e2e e2e_san slow", sanitized_only=True)
    def test_sanitized(self):
        self.torture(20, 4, least=200)
        self.finish_daemon()

    @ctest(labels="nightly", timeout=3600, minutes=11)
    def test_ten_minutes(self):
        """Seeds and numbers of threads by turns, every other run without fork."""
        rng = random.Random(self.seed)
        end = time.monotonic() + 600
        turn = 0
        while time.monotonic() < end:
            self.torture(60, (1, 2, 4, 8)[turn % 4], seed=rng.randrange(1, 1 << 30),
                         fork=int(turn % 3 != 2), mb=rng.choice((16, 32, 64)))
            turn += 1
        self.finish_daemon()


if __name__ == "__main__":
    harness.main()
