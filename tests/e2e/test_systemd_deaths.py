"""foldswapd as a service of a real systemd is killed in every part, and it hangs. Clients verify their
memory before and after."""

import os
import random
import signal
import struct
import time

from lib import harness
from lib.ctest import ctest
from lib.harness import wait_until
from lib.service import UNIT, Service
from lib.state_file import state_file


@ctest("systemd", "e2e")
class Deaths(Service):
    def test_daemon_killed(self):
        """The keeper starts the next one, and systemd does not come into it."""
        client = self.holder()
        main = self.show("MainPID")
        self.machine.kill(self.machine.stats()["daemon"]["pid"])
        self.verified(client)
        self.assertEqual(self.show("MainPID"), main)
        self.assertEqual(self.show("NRestarts"), "0")
        self.assertEqual(self.machine.stats()["daemon"]["restarts"], 1)
        self.finish(client)
        self.stop()

    def test_keeper_killed(self):
        """The main process: the daemon hands over by itself, and systemd starts the next keeper."""
        client = self.holder()
        for n in range(1, 4):
            main = self.show("MainPID")
            out = self.machine.row("held")["evicted_pages"]
            self.machine.kill(main)
            wait_until("the next keeper", lambda: self.next_serves(main), 30)
            self.assertEqual(self.machine.stats()["daemon"]["restarts"], n)
            self.assertEqual(self.machine.row("held")["evicted_pages"], out)
        self.finish(client)
        self.stop()

    def test_everything_killed(self):
        """What is out is there again, and so is a child that has no agent yet."""
        client = self.holder()
        sweep = self.sweeping()
        parent = self.client_of(["--name", "tree"], "fork_tree", "--mb=16", "--wait=1")
        parent.expect("populated")
        self.machine.run("/usr/local/bin/foldswap", "reclaim", "--client", "tree")
        self.assertGreater(self.machine.row("tree")["evicted_pages"], 3000)
        parent.close_input()
        for n in range(1, 6):
            out = self.machine.row("held")["evicted_pages"]
            self.kill_everything()
            self.assertEqual(self.machine.stats()["daemon"]["restarts"], n)
            self.assertEqual(self.machine.row("held")["evicted_pages"], out)
            self.assertIsNone(sweep.poll(), sweep.stderr().decode(errors="replace"))
            self.finish(self.holder(f"other-{n}", mb=8))
        self.assertEqual(parent.finish(), 0, parent.stderr().decode(errors="replace"))
        self.end_sweep(sweep)
        self.finish(client)
        self.stop()

    def test_crash_loop(self):
        """Each is killed before it serves, or soon after, in every part; in the end one serves."""
        pick = random.Random(self.seed)
        client = self.holder()
        for n in range(20):
            time.sleep(pick.random() * 0.3)
            main = self.show("MainPID")
            if n % 2 == 0 or main == "0":
                self.machine.systemctl("kill", "--signal=KILL", UNIT)
            else:
                self.machine.run("/bin/kill", "-KILL", main)
        wait_until("the last of them to serve", lambda: self.next_serves(main), 60)
        self.assertGreater(self.machine.row("held")["evicted_pages"], 10000)
        self.finish(client)
        self.stop()

    def test_torture_and_everything_killed(self):
        """A child whose userfaultfd had not come to the store would be killed: here none is."""
        self.torture(10, lambda n, main: self.systemctl("kill", "--signal=KILL", UNIT))

    def test_what_the_dead_said(self):
        """The manager had not read what a daemon told it, and drops it when that has died: the next
        daemon tells it again."""
        wait_until("the pool to be there", lambda: self.stored() >= 4)
        daemon = self.outside(self.machine.stats()["daemon"]["pid"])
        with self.manager_stopped():
            client = self.holder(mb=16)
            os.kill(daemon, signal.SIGKILL)
            wait_until("the next daemon", lambda: "took over 1 clients" in self.log(), 30)
        wait_until("it to be stored", lambda: self.stored() >= 11)
        self.kill_everything()
        self.finish(client)
        self.stop()

    def test_child_of_a_lost_fork(self):
        """It says hello, and there was no event: if it is old enough there may have been one, which
        was lost. Younger ones are served."""
        self.machine.write("/run/forks.py", """
import os, sys
data = bytearray(os.urandom(16 << 20))
print("ready", flush=True)
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        import time
        time.sleep(1)
        os._exit(0 if data[12345] == data[12345] else 1)
    print("status", os.waitpid(pid, 0)[1], flush=True)
""")
        client = self.machine.start("/usr/local/bin/foldswap", "run", "--require", "--name", "forks",
                                    "--", "python3", "/run/forks.py")
        client.expect("ready")
        self.machine.ok("/usr/local/bin/foldswap", "reclaim", "--client", "forks")
        self.machine.ok("/usr/local/bin/foldswap", "restore", "--client", "forks")
        pid = self.outside(self.machine.row("forks")["pid"])

        def registered():
            with open(f"/proc/{pid}/smaps", encoding="ascii", errors="replace") as f:
                return sum(" um" in line for line in f if line.startswith("VmFlags"))
        wait_until("most of its memory to be registered no more", lambda: registered() <= 1, 30)

        def status():
            client.send("fork")
            return client.line(60)

        self.assertEqual(status(), "status 0")
        with open(state_file(self.keeper_outside()), "r+b", buffering=0) as state:
            # StateHeader::told_ns, some moments ago, and forks_lost_ns behind it, near its end
            now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            head = state.read(32)
            head += state.read(struct.unpack_from("<Q", head, 24)[0] - 32)  # up to the client table
            at = max(i for i in range(0, len(head) - 16, 8)
                     if now - 300_000_000_000 < struct.unpack_from("<Q", head, i)[0] <= now
                     and struct.unpack_from("<Q", head, i + 8)[0] == 0)
            state.seek(at + 8)
            state.write(struct.pack("<Q", now))
            time.sleep(0.05)  # when a process began is known in ticks of 10 ms, rounded down
            self.assertEqual(status(), "status 0")
            self.assertNotIn("lost with a daemon", self.log())
            state.seek(at + 8)
            state.write(struct.pack("<Q", now + 3_600_000_000_000))
            self.assertEqual(status(), "status 9")
            wait_until("the log to say why",
                       lambda: "lost with a daemon and its keeper" in self.log())
        self.assertEqual(client.finish(), 0)
        self.stop()


@ctest("systemd_small_store", "e2e")
class Small(Service):
    DROP_IN = "FileDescriptorStoreMax=12\nEnvironment=FOLDSWAP_FDSTORE=12"

    def test_keeper_killed(self):
        """The store has no room for all: the daemon that is left alone brings everything back, and
        the next keeper leaves the state alone until it has ended."""
        one = self.holder("one", mb=16)
        other = self.holder("other", mb=400)
        main = self.show("MainPID")
        self.machine.kill(main)
        wait_until("the next keeper", lambda: self.next_serves(main), 120)
        for client in (one, other):
            self.verified(client)
            self.assertEqual(client.finish(), 0, client.stderr().decode(errors="replace"))
        self.assertNotIn(": killed: ", self.log())
        self.stop()


@ctest("systemd", "e2e")
class Watchdog(Service):
    DROP_IN = "WatchdogSec=12"

    def test_daemon_hangs(self):
        """The keeper ends it and starts the next; for systemd nothing has happened."""
        client = self.holder()
        main = self.show("MainPID")
        time.sleep(14)
        self.assertEqual(self.machine.stats()["daemon"]["restarts"], 0, "it was idle, and killed")
        self.machine.kill(self.machine.stats()["daemon"]["pid"], "STOP")
        self.verified(client)
        self.assertIn("no sign of life", self.log())
        self.assertEqual(self.show("MainPID"), main)
        self.assertEqual(self.show("NRestarts"), "0")
        self.assertEqual(self.machine.stats()["daemon"]["restarts"], 1)
        self.finish(client)
        self.stop()

    def test_keeper_hangs(self):
        """systemd notices, and tells it to hand over, and to go on (SIGCONT, which it adds to
        any signal). The clients have been served all along."""
        client = self.holder()
        main = self.show("MainPID")
        self.machine.kill(main, "STOP")
        client.ask("sample")
        self.assertEqual(self.show("MainPID"), main)
        out = self.machine.row("held")["evicted_pages"]
        wait_until("the next keeper", lambda: self.next_serves(main), 60)
        self.assertEqual(self.show("NRestarts"), "1")
        self.assertEqual(self.machine.stats()["daemon"]["restarts"], 1)
        self.assertEqual(self.machine.row("held")["evicted_pages"], out)
        self.finish(client)
        self.stop()


if __name__ == "__main__":
    harness.main()
