"""What programs, administrators and deaths may do while pages are on disk."""

import os
import random
import time

from lib import harness
from lib.ctest import ctest
from lib.harness import Place, wait_until
from lib.on_disk import DiskSampler, OnDisk


@ctest("writeback", "e2e")
class Orders(OnDisk):
    """Pages on disk, and everything that programs and commands do with pages that are out."""

    def test_program_goes_on(self):
        """fork, mremap, discard, and what is written in between."""
        for kind in ("heap", "mixed", "random"):
            client = self.hold(24, kind=kind)
            for what in ("fork", "move", "discard", "dirty", "fork", "verify"):
                self.all_on_disk(client)
                client.ask(what, seconds=120)
                client.ask("sample", seconds=120)
            client.ask("verify", seconds=120)
            self.assertEqual(client.finish(), 0)
            self.check_nothing_left()
        stats = self.finish_daemon()
        self.assertGreater(stats["faults"]["disk"], 0)

    def test_quit_with_pages_on_disk(self):
        client = self.hold(32)
        self.all_on_disk(client, 32 * 100)
        self.assertEqual(client.finish(), 0)
        self.finish_daemon()

    def test_restore(self):
        client = self.hold(48, name="held")
        for _ in range(2):
            self.all_on_disk(client, 48 * 128)
            self.restore("held")
            row = self.row(client.pid)
            self.assertEqual((row["evicted_pages"], row["disk_pages"]), (0, 0))
            faults = self.stats()["faults"]["total"]
            client.ask("verify")
            self.assertLess(self.stats()["faults"]["total"] - faults, 64)
            client.ask("dirty")
        self.assertEqual(client.finish(), 0)
        self.finish_daemon()

    def test_drain(self):
        clients = [self.hold(24, kind=kind) for kind in ("heap", "random", "mixed")]
        for client in clients:
            self.all_on_disk(client)
        self.cli_ok("drain")
        stats = self.check_conservation()
        for row in stats["clients"]:
            self.assertEqual((row["state"], row["evicted_pages"], row["disk_pages"]),
                             ("released", 0, 0))
        self.assertEqual(stats["writeback"]["pages"], 0)
        for client in clients:
            client.ask("verify")
            self.assertEqual(client.finish(), 0)
        self.cli_ok("resume")
        after = self.hold(24)
        self.all_on_disk(after, 0)
        after.ask("verify")
        self.assertEqual(after.finish(), 0)
        self.finish_daemon()

    def test_sigterm(self):
        client = self.hold(64)
        self.all_on_disk(client, 64 * 128)
        self.daemon.stop()
        self.daemons.clear()
        self.assertEqual(os.listdir(self.directory()), [])
        for what in ("verify", "fork", "move", "verify"):
            client.ask(what)
        self.assertEqual(client.finish(), 0)

    def test_killed_while_reading(self):
        """Orders under way for somebody who is gone; the next ones are not disturbed."""
        chance = random.Random(self.seed)
        other = self.hold(16, kind="random")
        self.all_on_disk(other)
        for turn in range(12):
            victim = self.hold(16, kind="sizes")
            self.all_on_disk(victim)
            victim.send(("verify", "fork", "sample")[turn % 3])
            time.sleep(chance.random() * 0.05)  # anywhere in it; nothing is judged by it
            victim.kill()
        other.ask("verify")
        self.assertEqual(other.finish(), 0)
        self.finish_daemon()

    def test_many_clients(self):
        """Eight that together want ten times what budgets and pool hold."""
        command = [Place.program("sweep"), "--mb=24", "--passes=1000000", "--until_eof=1",
                   "--kind=mixed", "--order=random"]
        clients = [self.client([*command, f"--seed={self.seed + n}"], "4M", name="crowd")
                   for n in range(8)]
        sampler = DiskSampler(self)
        sampler.start()
        wait_until("a third to be on disk at once",
                   lambda: sampler.most > 8 * 24 * 256 // 3, 120)
        time.sleep(2)
        for client in clients:
            self.assertEqual(client.finish(240), 0, client.stderr())
        sampler.stop()
        stats = self.finish_daemon()
        print(f"at most {sampler.most} pages on disk; {stats['writeback']}, {stats['faults']}")

    def test_churn(self):
        """Reclaimed and restored all the time, by somebody else, while it works."""
        client = self.client([Place.program("sweep"), "--mb=32", "--until_eof=1", "--order=random",
                              "--kind=sizes", f"--seed={self.seed}"], "8M", name="churned")
        client.expect("populated")
        churn = harness.Churn(self, "churned")
        churn.start()
        wait_until("some rounds", lambda: churn.rounds > 12, 60)
        churn.stop()
        client.close_input()
        client.expect("done", 120)
        self.assertEqual(client.wait(), 0)
        self.finish_daemon()

    def test_fork_tree(self):
        client = self.client([Place.program("fork_tree"), "--mb=24", "--wait=1"], "8M")
        client.expect("populated")
        self.all_on_disk(client, 100)
        client.finish(120)
        self.assertEqual(client.code, 0, client.stderr())
        self.finish_daemon()


if __name__ == "__main__":
    harness.main()
