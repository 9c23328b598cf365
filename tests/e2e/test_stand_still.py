"""Clients that stand still or make trouble: stopped, frozen, starved of CPU, flooding the daemon
with events; and huge pages that cannot be moved. Everybody else goes on, all bytes are right."""

import os
import signal
import time

from lib import harness
from lib.cgroups import CpuQuota, Freezer, run_inside
from lib.ctest import ctest
from lib.ending import Ending
from lib.harness import Churn, Place


@ctest("stand_still", "e2e", load="alone")
class StandStill(Ending):
    """One client is stopped, frozen, starved or floods; the other goes on."""

    def start_slow(self, command_of=lambda command: command):
        """A client that evicts and faults all the time."""
        command = self.client_command([Place.program("sweep"), "--mb=16", "--until_eof=1",
                                       "--order=random", f"--seed={self.seed + 1}"], "8M",
                                      "slow", ("--require",))
        slow = self.plain(command_of(command))
        slow.expect("populated", 120)
        return slow

    def check_orders(self, witness):
        """Orders about the other client, and about all, are answered."""
        self.reclaim(witness.pid, "--bytes", "1M")
        result = self.cli("reclaim", "--all", "--bytes", "1M", seconds=30)
        self.assertIn(result.returncode, (0, 1), result.stderr)

    def check_end(self, witness, slow):
        self.check_goes_on(witness)
        for client in (witness, slow):
            client.close_input()
            client.expect("done", 120)
            self.assertEqual(client.wait(), 0, client.stderr())
        self.assert_worked(self.finish_daemon())

    def test_stopped(self):
        witness, slow = self.start_witness(), self.start_slow()
        for n in range(12):
            time.sleep(self.rng.random() * 0.1)
            os.kill(slow.pid, signal.SIGSTOP)
            self.check_goes_on(witness)
            if n % 6 == 5:
                self.check_orders(witness)
            os.kill(slow.pid, signal.SIGCONT)
            self.check_goes_on(slow)
        self.check_end(witness, slow)

    def test_frozen(self):
        freezer = Freezer(self)
        witness, slow = self.start_witness(), self.start_slow()
        freezer.add(slow.pid)
        for n in range(12):
            time.sleep(self.rng.random() * 0.1)
            freezer.freeze()
            self.check_goes_on(witness)
            if n % 6 == 5:
                self.check_orders(witness)
            freezer.thaw()
            self.check_goes_on(slow)
        self.check_end(witness, slow)

    def test_starved_of_cpu(self):
        """Agent and threads share 5 % of a CPU; all that they do stands still most of the time."""
        quota = CpuQuota(self, 50)  # until it has filled its memory
        witness = self.start_witness()
        slow = self.start_slow(lambda command: run_inside(quota, command))
        quota.limit(5)
        self.assertTrue(quota.has("cpu.stat"))
        before = quota.throttled()
        for _ in range(5):
            self.check_goes_on(witness)
            self.check_goes_on(slow, faults=10, seconds=30)
            self.check_orders(witness)
        self.assertGreater(quota.throttled(), before, "the quota did nothing")
        quota.release()
        self.check_end(witness, slow)

    def test_flood_of_events(self):
        witness = self.start_witness()
        flood = self.start("flood", "--mb=8", program="ends_churn", name="flood")
        self.assertGreater(self.reclaim(flood.pid), 1500)
        flood.send("go")
        flood.expect("flooding")
        for _ in range(5):
            self.check_goes_on(witness)
            self.check_orders(witness)
        # Its own order may not be possible; it has to be answered.
        self.assertIn(self.cli("reclaim", "--client", "flood", seconds=30).returncode, (0, 1))
        flood.send("stop")
        flood.expect("done")
        self.check_clean_end(flood)
        self.end_witness(witness)
        self.finish_daemon()


@ctest("hazard", "e2e")
class Hazard(Ending):
    def copy_starved(self, *more):
        """Threads keep the descriptor full of events; each fault is answered all the same."""
        client = self.start("starve", "--mb=16", *more, program="ends_churn")
        self.assertGreater(self.reclaim(client.pid), 3500)
        client.send("go")
        try:
            client.expect("done", 15)  # 30 s, see slower()
        finally:
            print(client.stderr().decode(errors="replace"))
        self.assertEqual(client.finish(), 0)
        self.finish_daemon()

    def test_05_copy_starved(self):
        self.copy_starved("--apart=0")

    def test_05_copy_starved_apart(self):
        self.copy_starved("--apart=1")

    def start_huge(self, how, *more, resident_max=None):
        client = self.client([Place.program("ends_churn"), f"--how={how}", "--mb=16",
                              f"--seed={self.seed}", *more], resident_max)
        kib = int(client.line().split()[1])
        if kib == 0:
            self.skipTest("this machine gives no huge pages")
        print(f"{kib} KiB in huge pages")
        return client

    def test_23_large_folio_vmspliced(self):
        client = self.start_huge("vmsplice")
        client.expect("held")
        print(f"with a page of each in a pipe: {self.reclaim(client.pid)} pages out")
        client.ask("go", "released")
        self.assertGreater(self.reclaim(client.pid), 3500)
        client.ask("go", "done")
        self.check_clean_end(client)
        self.finish_daemon()

    def test_23_large_folio_pinned(self):
        client = self.start_huge("pinned", f"--file={self.tmp}/direct")
        client.expect("reading")
        churn = Churn(self, client.pid)
        churn.start()
        time.sleep(5)
        churn.stop()
        client.close_input()
        reads = int(client.line().split()[1])
        self.check_clean_end(client)
        print(f"{reads} direct reads, {churn.pages} pages out")
        self.assertGreater(reads, 1000)
        self.assertGreater(churn.pages, 1000)
        self.finish_daemon()

    def test_23_large_folio_split(self):
        client = self.start_huge("split")
        client.expect("cut")
        self.assertGreater(self.reclaim(client.pid), 3000)
        client.ask("go", "shared")
        print(f"shared with a child: {self.reclaim(client.pid)} pages out")
        client.ask("go", "alone")  # a third of it written since, so no longer shared
        out = self.reclaim(client.pid)
        print(f"alone again: {out} pages out")
        self.assertGreater(out, 1000)
        client.ask("go", "done")
        self.check_clean_end(client)
        self.finish_daemon()


if __name__ == "__main__":
    harness.main()
