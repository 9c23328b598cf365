"""foldswapd as a service of a real systemd, for the tests of that (test_systemd_*.py)."""

import contextlib
import os
import random
import re
import signal
import time
import unittest

from lib import harness
from lib.harness import E2E, wait_until
from lib.systemd_machine import PROGRAMS, Machine, why_not

UNIT = "foldswapd.service"
LOG = "/run/foldswapd.log"


class Service(E2E):
    START_DAEMON = False
    DROP_IN = ""  # of the service
    CONFIG = "[evict]\nquarantine_s = 0\n"

    def setUp(self):
        reason = why_not()
        if reason is not None:
            print(f"skipped: {reason}", flush=True)
            raise unittest.SkipTest(reason)
        super().setUp()
        self.machine = Machine(self, ("holder", "sweep", "fork_tree", "torture"), self.directory(),
                               self.CONFIG)
        self.addCleanup(self.print_logs)
        self.machine.write(f"/run/systemd/system/{UNIT}.d/test.conf",
                           f"[Service]\nStandardError=append:{LOG}\n{self.DROP_IN}\n")
        self.systemctl("daemon-reload")
        self.systemctl("start", UNIT)
        self.assertEqual(self.show("ActiveState"), "active")

    def print_logs(self):
        print(f"--- log of {UNIT}:\n{self.log()[-6000:]}---")

    def log(self):
        return self.machine.read(LOG) if os.path.exists(self.machine.path(LOG)) else ""

    def systemctl(self, *arguments):
        return self.machine.ok("systemctl", "--no-pager", *arguments)

    def show(self, name):
        return self.machine.show(UNIT, name)

    def client_of(self, options, program, *arguments):
        return self.machine.start("/usr/local/bin/foldswap", "run", "--require", *options, "--",
                                  f"{PROGRAMS}/{program}", f"--seed={self.seed}", *arguments)

    def holder(self, name="held", mb=48, share=0.9):
        """A client with most of its memory out."""
        client = self.client_of(["--name", name], "holder", f"--mb={mb}")
        client.expect("ready")
        pages = int(self.machine.run("/usr/local/bin/foldswap", "reclaim", "--client", name).stdout)
        self.assertGreater(pages, mb * 256 * share)
        return client

    def sweeping(self):
        """One whose pages leave and come back all the time."""
        sweep = self.client_of(["--resident-max", "8M", "--name", "sweeping"], "sweep", "--mb=48",
                               "--until_eof=1", "--order=random")
        sweep.expect("populated")
        return sweep

    def end_sweep(self, sweep):
        sweep.close_input()
        sweep.expect("done", 120)
        self.assertEqual(sweep.wait(), 0)

    def verified(self, client):
        client.ask("verify", seconds=120)

    def finish(self, client):
        self.verified(client)
        self.assertEqual(client.finish(), 0, client.stderr().decode(errors="replace"))
        self.assertNotIn(": killed: ", self.log())

    def stop(self):
        self.systemctl("stop", UNIT)
        self.assertEqual(self.show("ActiveState"), "inactive")
        self.assertEqual(self.show("Result"), "success")

    def stored(self):
        return int(self.show("NFileDescriptorStore"))

    def next_serves(self, main):
        return (self.show("MainPID") not in ("0", main) and self.show("ActiveState") == "active"
                and self.show("SubState") == "running")

    def keeper_outside(self):
        return self.outside(self.show("MainPID"))

    def outside(self, inside):
        """A process' number in our process id namespace."""
        inside = str(inside)
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as f:
                    numbers = re.search(r"^NSpid:\s+(.*)$", f.read(), re.M)[1].split()
                if len(numbers) > 1 and numbers[-1] == inside and os.path.samefile(
                        f"/proc/{pid}/ns/pid", f"/proc/{self.machine.pid}/ns/pid"):
                    return int(pid)
            except OSError:
                pass
        raise AssertionError(f"process {inside} is not found")

    def kill_everything(self):
        """Keeper, daemon and helpers at once, and systemd starts the next keeper."""
        main = self.show("MainPID")
        self.systemctl("kill", "--signal=KILL", UNIT)
        wait_until("the next keeper", lambda: self.next_serves(main), 30)

    def torture(self, times, strike):
        """Forks, moves and discards are under way at each strike."""
        pick = random.Random(self.seed)
        client = self.client_of(["--resident-max", "12M", "--name", "tortured"], "torture",
                                "--seconds=3600", "--until_eof=1", "--threads=4", "--fork=1", "--mb=32",
                                f"--hang={harness.slower(120)}")
        client.expect("ready")
        for n in range(times):
            time.sleep(pick.random() * 0.5)
            self.machine.run("/usr/local/bin/foldswap", "reclaim", "--all", "--bytes", "8M")
            main = self.show("MainPID")
            strike(n, main)
            wait_until("the next keeper", lambda: self.next_serves(main), 30)
            self.assertIsNone(client.poll(), client.stderr().decode(errors="replace"))
        client.close_input()
        self.assertRegex(client.line(120), r"^done \d+ operations")
        self.assertEqual(client.wait(), 0, client.stderr().decode(errors="replace"))
        self.assertNotIn(": killed: ", self.log())
        self.assertEqual(self.machine.stats()["faults"]["poisoned"], 0)
        self.stop()

    @contextlib.contextmanager
    def manager_stopped(self):
        """It reads nothing meanwhile."""
        os.kill(self.machine.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.machine.pid, signal.SIGCONT)
