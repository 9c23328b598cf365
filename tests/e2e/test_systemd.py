"""foldswapd as a service of a real systemd: it is installed, started, restarted (handing over through
the descriptor store), stopped (draining), killed in every part, and it hangs. Clients verify their
memory before and after."""

import contextlib
import os
import random
import re
import signal
import struct
import subprocess
import time
import unittest

from lib import harness
from lib.ctest import ctest
from lib.harness import E2E, wait_until
from lib.systemd_machine import PROGRAMS, Machine, why_not
from test_hand_over import change_version, state_file

UNIT = "foldswapd.service"
LOG = "/run/foldswapd.log"


def may_set_oom_score():
    """Of a process that ends at once."""
    return subprocess.run(["/bin/sh", "-c", "echo -900 > /proc/self/oom_score_adj"],
                          stderr=subprocess.DEVNULL, check=False).returncode == 0


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


@ctest("systemd", "e2e")
class Systemd(Service):
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

    def test_handed_over_by_hand(self):
        """SIGUSR2 without a restart job."""
        client = self.holder()
        main = self.show("MainPID")
        self.machine.kill(main, "USR2")
        wait_until("the next keeper", lambda: self.next_serves(main), 30)
        self.assertGreater(self.machine.row("held")["evicted_pages"], 10000)
        self.finish(client)
        self.stop()

    def test_stop_drains(self):
        """Every page is back before the daemon ends, and the client goes on without it."""
        client = self.holder()
        self.stop()
        self.assertIn("bringing everything back", self.log())
        self.assertFalse(os.path.exists(self.machine.path("/run/foldswap")))
        self.verified(client)
        self.assertEqual(client.finish(), 0)

    def test_stop_waits_for_memory(self):
        """What is out does not fit: it says so, moves nothing, and waits, until it does fit."""
        client = self.holder()
        with open("/proc/meminfo", encoding="ascii") as f:
            text = re.sub(r"MemAvailable: .*", "MemAvailable:   1000 kB", f.read())
        self.machine.write("/run/meminfo", text)
        keeper = str(self.keeper_outside())
        into = ["nsenter", "-t", keeper, "-p", "-m", "--"]  # the service has mounts of its own
        subprocess.run([*into, "mount", "--bind", "/run/meminfo", "/proc/meminfo"], check=True)
        out = self.machine.row("held")["evicted_pages"]
        self.systemctl("stop", "--no-block", UNIT)
        wait_until("it to say so", lambda: "cannot stop yet" in self.show("StatusText"))
        self.assertIn("needs more memory", self.log())
        self.assertEqual(self.show("SubState"), "stop-sigterm")
        self.assertEqual(self.machine.row("held")["evicted_pages"], out)
        self.machine.kill(self.show("MainPID"), "USR2")  # systemd would give the store up now
        time.sleep(0.5)
        self.assertEqual(self.machine.row("held")["evicted_pages"], out)
        subprocess.run([*into, "umount", "/proc/meminfo"], check=True)
        wait_until("its end", lambda: self.show("ActiveState") == "inactive", 60)
        self.verified(client)
        self.assertEqual(client.finish(), 0)

    def kill_everything(self):
        """Keeper, daemon and helpers at once, and systemd starts the next keeper."""
        main = self.show("MainPID")
        self.systemctl("kill", "--signal=KILL", UNIT)
        wait_until("the next keeper", lambda: self.next_serves(main), 30)

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

    def test_torture(self):
        def strike(n, main):
            if n % 3 != 2:
                self.systemctl("restart", UNIT)
            else:
                self.machine.kill(main)
        self.torture(12, strike)

    def test_torture_and_everything_killed(self):
        """A child whose userfaultfd had not come to the store would be killed: here none is."""
        self.torture(10, lambda n, main: self.systemctl("kill", "--signal=KILL", UNIT))

    @contextlib.contextmanager
    def manager_stopped(self):
        """It reads nothing meanwhile."""
        os.kill(self.machine.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.machine.pid, signal.SIGCONT)

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

    def test_manager_that_does_not_read(self):
        """Clients come and are served, and nobody takes the daemon for dead."""
        daemon = self.machine.stats()["daemon"]["pid"]
        with self.manager_stopped():
            clients = [self.holder(f"held-{n}", mb=8) for n in range(4)]
            clients[0].ask("fork")
            self.assertEqual(self.machine.stats()["daemon"]["pid"], daemon)
        wait_until("all to be stored", lambda: self.stored() >= 4 + 4 * 7)
        self.kill_everything()
        for client in clients:
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
            self.assertIn("lost with a daemon and its keeper", self.log())
        self.assertEqual(client.finish(), 0)
        self.stop()

    def test_store_follows(self):
        """What has ended is let go of."""
        wait_until("the pool to be there", lambda: self.stored() >= 4)
        before = self.stored()
        client = self.holder()
        self.assertGreater(self.stored(), before + 6)
        self.finish(client)
        wait_until("it to be let go of", lambda: self.stored() == before)
        self.stop()
        self.assertEqual(self.stored(), 0)

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

    def test_example(self):
        """The drop-in that is installed as an example makes a service a client."""
        units = "/run/systemd/system"
        self.machine.write(f"{units}/memory.service",
                           f"[Unit]\nDefaultDependencies=no\n[Service]\nType=exec\n"
                           f"ExecStart={PROGRAMS}/sweep --mb=24 --passes=1000000\n")
        example = self.machine.read("/usr/local/share/doc/foldswap/examples/client.conf")
        self.machine.write(f"{units}/memory.service.d/foldswap.conf",
                           example.replace("512M", "8M"))
        self.systemctl("daemon-reload")
        self.systemctl("start", "memory.service")
        wait_until("it to be a client", lambda: any(
            c["name"] == "memory" and c["evicted_pages"] > 1000
            for c in self.machine.stats()["clients"]), 30)
        row = self.machine.row("memory")
        self.assertEqual(row["resident_max_bytes"], 8 << 20)
        self.assertEqual(str(row["pid"]), self.machine.show("memory.service", "MainPID"))
        self.systemctl("restart", UNIT)
        time.sleep(1)
        self.assertEqual(self.machine.show("memory.service", "ActiveState"), "active")
        self.assertGreater(self.machine.row("memory")["evicted_pages"], 1000)
        self.systemctl("stop", "memory.service")
        self.stop()

    def test_what_is_installed(self):
        """The files are ones that systemd's own tools take, and the sandbox is there."""
        prefix = "/usr/local/lib"
        said = self.machine.run("systemd-analyze", "verify", f"{prefix}/systemd/system/{UNIT}")
        complaints = [l for l in (said.stdout + said.stderr).splitlines() if "foldswap" in l]
        self.assertEqual(complaints, [])
        self.machine.ok("systemd-sysusers", f"{prefix}/sysusers.d/foldswap.conf")
        self.assertIn("\nfoldswap:", self.machine.read("/etc/group"))
        # /var is this machine's.
        self.machine.ok("systemd-tmpfiles", "--create", "--prefix=/etc/foldswap",
                        f"{prefix}/tmpfiles.d/foldswap.conf")
        self.assertTrue(os.path.isdir(self.machine.path("/etc/foldswap/foldswap.toml.d")))
        rules = self.machine.read(f"{prefix}/udev/rules.d/60-foldswap.rules")
        self.assertIn('GROUP="foldswap"', rules)
        with open(os.path.join(os.path.dirname(__file__), "../../daemon/state.h"),
                  encoding="utf-8") as f:
            most = re.search(r"kMostStored = ([\d']+);", f.read())[1].replace("'", "")
        self.assertEqual(self.show("FileDescriptorStoreMax"), most)
        self.assertEqual(self.show("Environment"), f"FOLDSWAP_FDSTORE={most}")
        with open(f"/proc/{self.keeper_outside()}/status", encoding="ascii") as f:
            status = dict(line.rstrip("\n").split(":\t", 1) for line in f if ":\t" in line)
        self.assertEqual(status["NoNewPrivs"], "1")
        self.assertEqual(status["Seccomp"], "2")
        self.assertNotEqual(int(status["CapBnd"], 16) & (1 << 19), 0)   # CAP_SYS_PTRACE
        self.assertEqual(int(status["CapBnd"], 16) & (1 << 21), 0)      # CAP_SYS_ADMIN
        self.assertEqual(self.show("OOMScoreAdjust"), "-900")
        with open(f"/proc/{self.keeper_outside()}/oom_score_adj", encoding="ascii") as f:
            # Not every machine lets root do that (CAP_SYS_RESOURCE).
            self.assertEqual(f.read().strip(), "-900" if may_set_oom_score() else "0")
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
