"""The daemon is killed at random moments while clients work; its keeper starts the next one, which
takes them over. Every client verifies its memory all the time, none is killed, none hangs.

A failure prints its seed: FOLDSWAP_TEST_SEED=N python3 tests/e2e/test_kill.py --build-dir build
Kill.torture"""

import os
import random
import signal
import time

from lib import harness
from lib.ctest import ctest, inherited
from lib.harness import E2E, Place, wait_until


@ctest("kill", "e2e slow")
class Kill(E2E):
    SETTINGS = {"evict.quarantine_s": "0"}

    def setUp(self):
        super().setUp()
        self.daemon.stop()
        self.daemon = self.start_daemon(self.SETTINGS, "kept", keeper=True)
        self.random = random.Random(self.seed)

    def worker(self):
        """The daemon's pid, while the keeper's is the one that we started."""
        return self.stats()["daemon"]["pid"]

    def kill(self, pid):
        """Ends the daemon, and waits for the next one. Its pid, and how long it took."""
        begun = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        wait_until("the next daemon", lambda: self.next_after(pid), 60)
        return self.stats()["daemon"]["pid"], time.monotonic() - begun

    def next_after(self, pid):
        result = self.cli("stats", "--json", seconds=60)
        return result.returncode == 0 and f'"pid":{pid},' not in result.stdout.replace(" ", "")

    def disturb(self):
        """So that something is on its way out, or back."""
        pick = self.random.randrange(10)
        if pick < 5:
            self.cli("reclaim", "--all", "--bytes", f"{self.random.randrange(1, 24)}M", seconds=120)
        elif pick < 7:
            self.cli("restore", "--all", "--hold", "0", seconds=120)

    def kills(self, clients, count):
        pid = self.worker()
        longest = 0.0
        for _ in range(count):
            time.sleep(self.random.random() * 0.3)
            self.disturb()
            time.sleep(self.random.random() * 0.05)
            pid, seconds = self.kill(pid)
            longest = max(longest, seconds)
            for client in clients:
                self.assertIsNone(client.poll(), client.stderr().decode(errors="replace"))
        stats = self.stats()
        self.assertEqual(stats["daemon"]["restarts"], count)
        self.assertEqual(stats["faults"]["poisoned"], 0)
        self.assertNotIn(": killed: ", self.daemon.log())
        return longest

    def finish(self, clients, count, longest):
        time.sleep(2)
        for client in clients:
            client.close_input()
            self.assertRegex(client.line(120), r"^done \d+ operations")
            self.assertEqual(client.wait(60), 0, client.stderr().decode(errors="replace"))
        stats = self.check_nothing_left()
        print(f"seed {self.seed}: {count} kills, the next one answered after {longest * 1000:.0f} ms "
              f"at most; {stats['evict']['pages']} pages evicted, {stats['faults']['total']} faults",
              flush=True)
        self.assertGreater(stats["evict"]["pages"], 500)
        self.finish_daemon()

    def torture(self, count, threads, fork, mb=32):
        client = self.client([Place.program("torture"), f"--seed={self.seed}",
                              "--seconds=36000", "--until_eof=1", f"--threads={threads}", f"--fork={fork}",
                              f"--mb={mb}", f"--hang={harness.slower(120)}"], "12M", name="tortured")
        client.expect("ready", 60)
        longest = self.kills([client], count)
        self.finish([client], count, longest)

    def test_sweep(self):
        """Reads only, and everything is out: what comes back is what left."""
        client = self.client([Place.program("sweep"), "--mb=64", "--until_eof=1", "--order=random",
                              "--kind=sizes", f"--seed={self.seed}"], "8M", name="sweeping")
        client.expect("populated", 60)
        longest = self.kills([client], 10)
        client.close_input()
        client.expect("done", 120)
        self.assertEqual(client.wait(60), 0, client.stderr().decode(errors="replace"))
        print(f"10 kills, {longest * 1000:.0f} ms at most")
        self.finish_daemon()

    def test_successors_that_cannot_start(self):
        """Whatever is in their way, the clients wait, and then go on."""
        client = self.client([Place.program("sweep"), "--mb=32", "--until_eof=1",
                              f"--seed={self.seed}"], "8M", name="waiting")
        client.expect("populated", 60)
        self.reclaim(client.pid)
        pid = self.worker()
        path = os.path.join(self.daemon.dir, "admin.sock")
        os.unlink(path)
        os.mkdir(path)
        os.kill(pid, signal.SIGKILL)
        wait_until("two to have failed", lambda: self.daemon.log().count("with status 1") >= 2, 30)
        self.assertIsNone(client.poll(), client.stderr().decode(errors="replace"))
        self.assertTrue(self.daemon.running(), "the keeper has closed everything")
        os.rmdir(path)
        wait_until("the next daemon", lambda: self.next_after(pid), 60)
        client.close_input()
        client.expect("done", 120)
        self.assertEqual(client.wait(60), 0, client.stderr().decode(errors="replace"))
        self.finish_daemon()

    def test_what_was_set(self):
        """An administrator's orders outlive the daemon that was given them."""
        pid = self.worker()
        self.assertEqual(self.cli("set", "pool.limit", "48M").returncode, 0)
        self.assertEqual(self.cli("set", "fault.spin_us", "7").returncode, 0)
        self.assertEqual(self.cli("set", "pool.limit", "32M").returncode, 0)
        client = self.client([Place.program("sweep"), "--mb=16", "--until_eof=1",
                              f"--seed={self.seed}"], "8M", name="limited")
        client.expect("populated", 60)
        self.assertEqual(self.cli("limit", "--client", "limited", "4M").returncode, 0)
        pid, _ = self.kill(pid)
        self.assertEqual(self.stats()["pool"]["limit_bytes"], 32 << 20)
        self.assertEqual(self.cli("get", "fault.spin_us").stdout.strip(), "7")
        self.assertEqual(self.stats()["clients"][0]["resident_max_bytes"], 4 << 20)
        self.assertEqual(self.cli("drain", seconds=120).returncode, 0)
        pid, _ = self.kill(pid)
        self.assertEqual(self.stats()["clients"][0]["state"], "released")
        refused = self.client([Place.program("sweep"), "--mb=1", "--passes=1"], "1M", name="late")
        self.assertEqual(refused.wait(60), 125)
        self.assertIn("drained", refused.stderr().decode(errors="replace"))
        self.assertEqual(self.cli("resume").returncode, 0)
        self.reclaim(client.pid)
        self.kill(pid)
        client.close_input()
        client.expect("done", 120)
        self.assertEqual(client.wait(60), 0, client.stderr().decode(errors="replace"))
        self.finish_daemon()

    @ctest(labels="nightly", minutes=1)
    def test_torture(self):
        self.torture(10, 4, fork=0)

    def test_torture_forking(self):
        self.torture(10, 4, fork=1)

    @ctest(labels="nightly", timeout=7200, minutes=9)
    def test_thousand(self):
        """Ten minutes."""
        self.torture(1000, 4, fork=1)


@inherited("torture_forking", "torture", "thousand")
@inherited("sweep", labels="nightly", minutes=1)
@ctest("kill_with_disk", "e2e slow")
class KillWithDisk(Kill):
    """Likewise, with most of what is out on disk."""

    def setUp(self):
        super().setUp()
        self.daemon.stop()
        self.daemon = self.start_daemon(
            {**self.SETTINGS, "writeback.dir": self.directory(), "pool.limit": "4M", "writeback.max": "256M",
             "writeback.free_min": "16M"}, "disk", keeper=True)

    def finish_daemon(self):
        stats = super().finish_daemon()
        self.assertGreater(stats["faults"]["disk"], 50, "hardly anything was on disk")
        return stats


if __name__ == "__main__":
    harness.main()
