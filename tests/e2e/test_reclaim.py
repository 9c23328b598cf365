"""reclaim, restore, drain and resume from the command line."""

import os
import signal
import time

from lib import harness
from lib.ctest import ctest
from lib.harness import E2E, MIB, Place, rss_anon, vm_flags, wait_until


@ctest("e2e_reclaim", "e2e e2e_san quick")
class Reclaim(E2E):
    def start_holder(self, mb, name=None, kind="heap"):
        client = self.client([Place.program("holder"), f"--mb={mb}", f"--kind={kind}",
                              f"--seed={self.seed}"],
                             name=name)
        client.expect("ready", 120)
        return client

    def evicted(self, pid):
        return self.row(pid)["evicted_pages"]

    def assert_printed(self, client, how, at_least, at_most=None):
        """What `reclaim` prints is what has gone out; the client sleeps in read(2) meanwhile."""
        before = self.evicted(client.pid)
        printed = self.reclaim(client.pid if how[0] == "pid" else how[0], *how[1:])
        self.assertEqual(printed, self.evicted(client.pid) - before)
        self.assertGreaterEqual(printed, at_least)
        if at_most is not None:
            self.assertLessEqual(printed, at_most)
        return printed

    @ctest(labels="e2e")
    def test_everything(self):
        client = self.start_holder(500, name="big")
        whole = rss_anon(client.pid)
        self.assert_printed(client, ("big", "--everything"), 500 * 256 * 95 // 100)
        self.assertLess(rss_anon(client.pid), whole * 5 // 100)
        stats = self.check_conservation()
        self.assertEqual(stats["pool"]["stored_pages"], stats["clients"][0]["pool_pages"])
        self.assertLess(stats["pool"]["compressed_bytes"], 250 * MIB,
                        "heap-like data did not compress")
        client.ask("verify", seconds=240)
        self.assertGreaterEqual(self.stats()["faults"]["total"], 1)
        self.check_conservation()
        # Once more, with changed pages, by PID; then all back in.
        client.ask("dirty")
        self.assert_printed(client, ("pid",), 500 * 256 * 95 // 100)
        self.assertLess(rss_anon(client.pid), whole * 5 // 100)
        self.restore("big")
        self.assertEqual(self.evicted(client.pid), 0)
        self.assertGreater(rss_anon(client.pid), whole * 95 // 100)
        faults = self.stats()["faults"]["total"]
        client.ask("verify", seconds=120)
        self.assertLess(self.stats()["faults"]["total"] - faults, 64,
                        "pages were still out after restore")
        self.check_conservation()
        self.assertEqual(client.finish(), 0)
        self.finish_daemon()

    def test_bytes(self):
        client = self.start_holder(64)
        whole = rss_anon(client.pid)
        wanted = 16 * 256
        self.assert_printed(client, ("pid", "--bytes", "16M"), wanted, wanted + 512)
        self.assertLess(rss_anon(client.pid), whole - 15 * MIB)
        self.assert_printed(client, ("pid", "--bytes", "16777216"), wanted, wanted + 512)
        result = self.cli("reclaim", "--client", str(client.pid), "--bytes", "1G")
        self.assertEqual(result.returncode, 1, "more than there is cannot be possible")
        self.assertIn("less than asked for: ", result.stderr)
        self.assertGreater(int(result.stdout), 20 * 256)
        client.ask("verify")
        self.assertEqual(client.finish(), 0)
        self.finish_daemon()

    def test_kinds_of_pages(self):
        for kind in ("mixed", "random"):
            client = self.start_holder(32, kind=kind)
            self.assert_printed(client, ("pid",), 32 * 256 * 9 // 10)
            stats = self.check_conservation()
            if kind == "mixed":
                self.assertGreater(stats["pool"]["same_filled_pages"], 400)
            else:
                self.assertGreater(stats["pool"]["incompressible_pages"], 7000)
            client.ask("verify")
            client.ask("move")
            client.ask("fork")
            client.ask("verify")
            self.assertEqual(client.finish(), 0)
            self.check_nothing_left()
        self.finish_daemon()

    def test_name_of_several_and_all(self):
        clients = [self.start_holder(16, name=name) for name in ("twin", "twin", "other")]
        self.assertGreater(self.reclaim("twin"), 2 * 16 * 256 * 9 // 10)
        self.assertLess(self.row(clients[2].pid)["evicted_pages"], 100)
        result = self.cli("reclaim", "--all")
        self.assertIn(result.returncode, (0, 1))
        self.assertGreater(int(result.stdout), 16 * 256 * 9 // 10)
        self.check_conservation()
        for client in clients:
            client.ask("verify")
        self.cli_ok("restore", "--all")
        self.assertEqual(sum(c["evicted_pages"] for c in self.clients()), 0)
        for client in clients:
            client.ask("verify")
            self.assertEqual(client.finish(), 0)
        self.finish_daemon()

    def test_orders_about_one_that_is_stopped(self):
        """Each comes to an end, also when commands of the one before are still under way."""
        client = self.start_holder(64)
        os.kill(client.pid, signal.SIGSTOP)
        for _ in range(3):
            result = self.cli("reclaim", "--client", str(client.pid), seconds=30)
            self.assertEqual(result.returncode, 1)
            self.assertIn("it may be stopped", result.stderr)
        os.kill(client.pid, signal.SIGCONT)
        self.assertGreater(self.reclaim(client.pid), 64 * 256 * 8 // 10)
        client.ask("verify")
        self.assertEqual(client.finish(), 0)
        self.finish_daemon()

    def test_name_of_one_that_ends(self):
        """As of a script and the commands that it calls: who ends meanwhile is no failure."""
        client = self.start_holder(16, name="script")
        script = self.client(["sh", "-c", "while :; do /bin/true; done"], name="script")
        end = time.monotonic() + 5
        orders = 0
        while time.monotonic() < end:
            result = self.cli("reclaim", "--client", "script")
            self.assertEqual(result.returncode, 0, f"order {orders}: {result.stderr}")
            orders += 1
        print(f"{orders} orders")
        script.kill()
        script.wait()
        client.ask("verify")
        self.assertEqual(client.finish(), 0)
        self.finish_daemon()

    def test_restore_suspends_budget(self):
        client = self.client([Place.program("holder"), "--mb=64"], 24 * MIB)
        client.expect("ready")
        wait_until("the budget", lambda: rss_anon(client.pid) <= 26 * MIB)
        self.restore(client.pid)
        self.assertGreater(rss_anon(client.pid), 60 * MIB)
        client.ask("verify")
        self.assertGreater(rss_anon(client.pid), 60 * MIB)
        self.assertEqual(self.evicted(client.pid), 0)
        self.cli_ok("limit", "--client", str(client.pid), "24M")
        wait_until("the budget again", lambda: rss_anon(client.pid) <= 26 * MIB)
        client.ask("verify")
        self.assertEqual(client.finish(), 0)
        self.finish_daemon()

    def test_unknown_client(self):
        for command in (("reclaim", "--client", "nobody-of-that-name"),
                        ("restore", "--client", "999999999"),
                        ("limit", "--client", "nobody-of-that-name", "1G")):
            result = self.cli(*command)
            self.assertEqual(result.returncode, 1, command)
            self.assertIn(command[2], result.stderr)
        self.finish_daemon()


@ctest("e2e", "e2e e2e_san quick")
class Drain(E2E):
    def test_drain_and_resume(self):
        start_memory = self.daemon.memory()
        clients = []
        for n in range(3):
            clients.append(self.client([Place.program("holder"), "--mb=48",
                                        f"--seed={self.seed + n}"],
                                       None if n else 16 * MIB, name=f"c{n}"))
            clients[-1].expect("ready")
        for client in clients:
            self.reclaim(client.pid)
        self.cli_ok("drain")
        stats = self.check_conservation()
        for row in stats["clients"]:
            self.assertEqual(row["state"], "released")
            for key in ("evicted_pages", "pool_pages", "disk_pages", "same_filled_pages"):
                self.assertEqual(row[key], 0, key)
        self.assertEqual(len(stats["clients"]), 3)
        for key in ("stored_pages", "same_filled_pages", "compressed_bytes"):
            self.assertEqual(stats["pool"][key], 0, key)
        self.assertLess(stats["pool"]["frame_bytes"], MIB)
        for client in clients:
            registered = [flags for flags in vm_flags(client.pid) if "um" in flags]
            self.assertEqual(registered, [], "something is still registered after drain")
            client.ask("verify")
            client.ask("dirty")
        if not Place.sanitized:
            self.assertLess(self.daemon.memory() - start_memory, 8 * MIB, "memory kept after drain")
        self.assert_new_clients_are_refused()
        self.assertEqual(self.cli("reclaim", "--client", "c1").stdout.strip() or "0", "0")
        for client in clients:
            client.ask("verify")
            self.assertEqual(client.finish(), 0)
        self.cli_ok("resume")
        after = self.client([Place.program("holder"), "--mb=16"])
        after.expect("ready")
        self.assertGreater(self.reclaim(after.pid), 3000)
        after.ask("verify")
        self.assertEqual(after.finish(), 0)
        self.finish_daemon()

    def assert_new_clients_are_refused(self):
        required = self.client(["/bin/echo", "ran"])
        self.assertEqual(required.finish(), 125)
        self.assertEqual(required.output, b"")
        self.assertNotEqual(required.stderr(), b"")
        plainly = self.client(["/bin/echo", "ran"], options=())
        self.assertEqual(plainly.finish(), 0)
        self.assertEqual(plainly.output, b"ran\n")

    def test_sigterm_gives_everything_back(self):
        client = self.client([Place.program("holder"), "--mb=64"])
        client.expect("ready")
        self.assertGreater(self.reclaim(client.pid), 10000)
        self.daemon.stop()
        client.ask("verify")
        client.ask("fork")
        client.ask("move")
        client.ask("verify")
        self.assertEqual(client.finish(), 0)
        self.daemons.clear()

    def test_drain_under_work(self):
        client = self.client([Place.program("sweep"), "--mb=48", "--until_eof=1", "--order=random"],
                             24 * MIB)
        client.expect("populated")
        for _ in range(3):
            self.cli_ok("drain")
            self.assertEqual(self.row(client.pid)["evicted_pages"], 0)
            self.cli_ok("resume")
        client.close_input()
        client.expect("done")
        self.assertEqual(client.wait(), 0)
        self.finish_daemon()


if __name__ == "__main__":
    harness.main()
