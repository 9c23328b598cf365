"""A real systemd restarts foldswapd: it hands over through the descriptor store. Clients verify their
memory before and after."""

import os
import time

from lib import harness
from lib.ctest import ctest
from lib.harness import wait_until
from lib.service import UNIT, Service
from lib.state_file import change_version
from lib.systemd_machine import PROGRAMS


@ctest("systemd", "e2e")
class Restart(Service):
    def test_restart(self):
        """Hands over through the store, again and again; everything stays out meanwhile."""
        client = self.holder()
        sweep = self.sweeping()
        for n in range(1, 5):
            out = self.machine.row("held")["evicted_pages"]
            main = self.show("MainPID")
            self.systemctl("restart", UNIT)
            self.assertNotEqual(self.show("MainPID"), main)
            stats = self.machine.stats()
            self.assertEqual(stats["daemon"]["restarts"], n)
            self.assertEqual(self.machine.row("held")["evicted_pages"], out)
            self.assertIsNone(sweep.poll(), sweep.stderr().decode(errors="replace"))
        self.end_sweep(sweep)
        self.finish(client)
        self.stop()

    def test_restart_under_new_clients(self):
        """Who starts while nobody is there waits for the next daemon, and becomes a client."""
        for n in range(3):
            starting = [self.client_of(["--name", f"new-{n}-{k}"], "holder", "--mb=4")
                        for k in range(4)]
            self.systemctl("restart", UNIT)
            for client in starting:
                client.expect("ready")
                client.ask("verify")
                self.assertEqual(client.finish(), 0, client.stderr().decode(errors="replace"))
        self.stop()

    def test_forked_children(self):
        """Their userfaultfds exist in the daemon alone until their agents come."""
        parent = self.client_of(["--name", "tree"], "fork_tree", "--mb=16", "--wait=1")
        parent.expect("populated")
        self.machine.run("/usr/local/bin/foldswap", "reclaim", "--client", "tree")
        self.assertGreater(self.machine.row("tree")["evicted_pages"], 3000)
        parent.close_input()
        for _ in range(3):
            self.systemctl("restart", UNIT)
        self.assertEqual(parent.finish(), 0, parent.stderr().decode(errors="replace"))
        self.assertNotIn(": killed: ", self.log())
        self.stop()

    def test_client_of_nobody(self):
        """The service has the few capabilities that it takes to look into other users' processes."""
        client = self.machine.start(
            "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/local/bin/foldswap",
            "run", "--require", "--name", "nobody", "--", f"{PROGRAMS}/holder", "--mb=16",
            f"--seed={self.seed}")
        client.expect("ready")
        for _ in range(2):
            pages = self.machine.run("/usr/local/bin/foldswap", "reclaim", "--client", "nobody").stdout
            self.assertGreater(int(pages), 3600)
            self.systemctl("restart", UNIT)
            self.assertEqual(self.machine.row("nobody")["uid"], 65534)
            client.ask("fork")
            client.ask("move")
            client.ask("dirty")
            client.ask("verify")
        self.finish(client)
        self.stop()

    def test_handed_over_by_hand(self):
        """SIGUSR2 without a restart job."""
        client = self.holder()
        main = self.show("MainPID")
        self.machine.kill(main, "USR2")
        wait_until("the next keeper", lambda: self.next_serves(main), 30)
        self.assertGreater(self.machine.row("held")["evicted_pages"], 10000)
        self.finish(client)
        self.stop()

    def test_torture(self):
        def strike(n, main):
            if n % 3 != 2:
                self.systemctl("restart", UNIT)
            else:
                self.machine.kill(main)
        self.torture(12, strike)

    def test_other_version(self):
        """The next program cannot read what was left: the unit does not become ready, the store
        keeps it all, and a program that can takes over."""
        client = self.holder()
        change_version(self.keeper_outside(), 1)
        result = self.machine.systemctl("restart", UNIT)
        self.assertNotEqual(result.returncode, 0)
        wait_until("two to have refused",
                   lambda: self.log().count("drain before changing versions") >= 2, 30)
        self.assertNotEqual(self.show("ActiveState"), "active")
        self.assertGreater(self.stored(), 8)
        client.send("verify")
        time.sleep(1)
        self.assertIsNone(client.poll())
        self.assertEqual(bytes(client.buffer), b"", "it was served by nobody")
        change_version(self.machine.pid, -1)
        wait_until("the next daemon", lambda: self.show("ActiveState") == "active", 30)
        client.expect("ok")
        self.finish(client)
        self.stop()

    def test_successor_dies_before_it_serves(self):
        """It is killed again and again while it starts: nothing is closed."""
        client = self.holder()
        self.machine.write("/run/systemd/system/" + UNIT + ".d/slow.conf",
                           "[Service]\nExecStart=\nExecStart=/bin/false\n")
        self.systemctl("daemon-reload")
        self.assertNotEqual(self.machine.systemctl("restart", UNIT).returncode, 0)
        wait_until("three to have failed", lambda: int(self.show("NRestarts")) >= 3, 30)
        self.assertGreater(self.stored(), 8)
        os.unlink(self.machine.path("/run/systemd/system/" + UNIT + ".d/slow.conf"))
        self.systemctl("daemon-reload")
        wait_until("the next daemon", lambda: self.show("ActiveState") == "active", 30)
        self.finish(client)
        self.stop()

    def test_successor_that_cannot_start(self):
        """It has begun to work on what it was given: it keeps that, and tries again by itself; and
        it can hand it over although it never served."""
        client = self.holder()
        socket = self.machine.path("/run/foldswap/admin.sock")
        os.unlink(socket)
        os.mkdir(socket)
        main = self.show("MainPID")
        for _ in range(3):
            self.systemctl("restart", "--no-block", UNIT)
            wait_until("the next keeper", lambda: self.show("MainPID") not in ("0", main), 30)
            said = self.log().count("with status 1")
            wait_until("two to have failed",
                       lambda: self.log().count("with status 1") >= said + 2, 30)
            self.assertEqual(self.show("ActiveState"), "activating")
            self.assertIn("ended by an error", self.show("StatusText"))
            main = self.show("MainPID")
        os.rmdir(socket)
        wait_until("the next daemon", lambda: self.show("ActiveState") == "active", 30)
        self.assertEqual(self.show("MainPID"), main)
        self.finish(client)
        self.stop()


@ctest("systemd", "e2e")
class Disk(Service):
    CONFIG = ('[evict]\nquarantine_s = 0\n[pool]\nlimit = "4M"\n[writeback]\ndir = "/mnt"\n'
              'max = "256M"\nfree_min = "16M"\n')

    def test_restart_with_disk(self):
        """The file without a name, and what is in it, are handed over, too."""
        client = self.holder(share=0.2)
        wait_until("pages on disk", lambda: self.machine.row("held")["disk_pages"] > 500)
        for n in range(1, 4):
            self.systemctl("restart", UNIT)
            self.assertEqual(self.machine.stats()["daemon"]["restarts"], n)
            self.assertGreater(self.machine.row("held")["disk_pages"], 300)
        self.verified(client)
        self.assertGreater(self.machine.stats()["faults"]["disk"], 100)
        self.finish(client)
        self.stop()


if __name__ == "__main__":
    harness.main()
