"""SIGUSR2 to a keeper without a service manager: the daemon stops as it is, the keeper executes its
program file anew, and the next daemon takes the clients over. Likewise what becomes of a daemon that
hangs, and of one whose keeper is killed. With systemd: test_systemd_*.py."""

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import time

from lib import harness
from lib.ctest import ctest, inherited
from lib.harness import E2E, Place, wait_until
from lib.state_file import change_version


@ctest("hand_over", "e2e")
class HandOver(E2E):
    START_DAEMON = False

    def start(self, **more):
        self.daemon = self.start_daemon(self.SETTINGS, "kept", keeper=True, **more)

    def holder(self, mb=32):
        client = self.client([Place.program("holder"), f"--mb={mb}", f"--seed={self.seed}"])
        client.expect("ready")
        self.assertGreater(self.reclaim(client.pid), mb * 200)
        return client

    def worker(self):
        return self.stats()["daemon"]["pid"]

    def next_after(self, pid):
        def found():
            result = self.cli("stats", "--json", seconds=60)
            match = re.search(r'"pid": *(\d+)', result.stdout.split('"daemon"')[-1])
            return result.returncode == 0 and int(match[1]) != pid and int(match[1])
        return wait_until("the next daemon", found, 60)

    def finish(self, client):
        client.ask("verify")
        self.assertEqual(client.finish(), 0)
        self.assertNotIn(": killed: ", self.daemon.log())
        self.finish_daemon()

    def end_quietly(self, pid):
        """A daemon without its keeper is nobody's child."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def test_again_and_again(self):
        """Under work: everything is out when it begins, and it goes on meanwhile."""
        self.start()
        client = self.client([Place.program("sweep"), "--mb=64", "--until_eof=1", "--order=random",
                              f"--seed={self.seed}"], "8M")
        client.expect("populated")
        holder = self.holder()
        pid = self.worker()
        for _ in range(5):
            out = self.row(holder.pid)["evicted_pages"]
            os.kill(self.daemon.pid, signal.SIGUSR2)
            pid = self.next_after(pid)
            self.assertIsNone(client.poll(), client.stderr().decode(errors="replace"))
            self.assertEqual(self.row(holder.pid)["evicted_pages"], out, "a page moved meanwhile")
            self.assertEqual(self.row(holder.pid)["state"], "active")
        self.assertEqual(self.stats()["daemon"]["restarts"], 5)
        self.assertEqual(self.daemon.log().count("handing over to"), 5)
        self.assertTrue(self.daemon.running())
        client.close_input()
        client.expect("done", 120)
        self.assertEqual(client.wait(), 0, client.stderr().decode(errors="replace"))
        self.finish(holder)

    def test_signals_meanwhile(self):
        """More signals while the keeper alone has everything, and while the next program starts: each
        is heard, by one that can do what it says."""
        self.start()
        client = self.holder()
        for _ in range(10):
            pid = self.next_after(0)  # one more may be under way
            os.kill(self.daemon.pid, signal.SIGUSR2)
            for _ in range(60):
                time.sleep(0.002)
                self.assertTrue(self.daemon.running(), "the keeper was killed by a signal")
                os.kill(self.daemon.pid, signal.SIGUSR2)
            self.next_after(pid)
        self.assertIsNone(client.poll())
        os.kill(self.daemon.pid, signal.SIGUSR2)
        os.kill(self.daemon.pid, signal.SIGTERM)
        self.assertEqual(self.daemon.popen.wait(60), 0)
        self.assertIn("bringing everything back", self.daemon.log())
        client.ask("verify")
        self.assertEqual(client.finish(), 0)

    def test_hangup(self):
        """A terminal or a reader of the log that goes: the keeper stays."""
        self.start(wrap=("/bin/bash", "-c", 'exec "$0" "$@" 2> >(exec head -c 1 > /dev/null)'))
        client = self.holder()
        os.kill(self.daemon.pid, signal.SIGHUP)
        for _ in range(3):
            pid = self.worker()
            os.kill(pid, signal.SIGKILL)
            self.next_after(pid)
            self.assertTrue(self.daemon.running())
        os.kill(self.daemon.pid, signal.SIGUSR2)
        self.next_after(pid)
        self.finish(client)

    def test_idle_administrator(self):
        """One that has connected and says nothing holds nobody up."""
        self.start(env={"WATCHDOG_USEC": "12000000"})
        client = self.holder()
        pid = self.worker()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as idle:
            idle.connect(os.path.join(self.daemon.dir, "admin.sock"))

            def handed_over():
                with contextlib.suppress(OSError):
                    idle.send(b" ")  # never a line
                return "handing over to" in self.daemon.log()
            os.kill(self.daemon.pid, signal.SIGUSR2)
            wait_until("the hand-over", handed_over, 60)
        self.next_after(pid)
        self.assertNotIn("no sign of life", self.daemon.log())
        self.finish(client)

    def test_torture(self):
        """Forks, moves and discards are under way; now and then the daemon is killed, too."""
        pick = random.Random(self.seed)
        self.start()
        count = 15
        client = self.client([Place.program("torture"), f"--seed={self.seed}", "--seconds=3600", "--until_eof=1",
                              "--threads=4", "--fork=1", "--mb=32",
                              f"--hang={harness.slower(120)}"], "12M")
        client.expect("ready", 60)
        pid = self.worker()
        for _ in range(count):
            time.sleep(pick.random() * 0.5)
            self.cli("reclaim", "--all", "--bytes", f"{pick.randrange(1, 24)}M", seconds=120)
            os.kill(self.daemon.pid, signal.SIGUSR2)
            if pick.randrange(4) == 0:
                time.sleep(pick.random() * 0.05)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            pid = self.next_after(pid)
            self.assertIsNone(client.poll(), client.stderr().decode(errors="replace"))
        client.close_input()
        self.assertRegex(client.line(120), r"^done \d+ operations")
        self.assertEqual(client.wait(), 0, client.stderr().decode(errors="replace"))
        self.assertNotIn(": killed: ", self.daemon.log())
        self.assertEqual(self.stats()["faults"]["poisoned"], 0)
        self.finish_daemon()

    def test_program_that_cannot(self):
        """A program file that cannot be executed, or fails, is not gone over to."""
        copy = os.path.join(self.tmp, "foldswapd")
        shutil.copy(Place.binary("foldswapd"), copy)
        self.start(wrap=("/bin/sh", "-c", f'exec {copy} "$@"'))
        client = self.holder()
        pid = self.worker()
        for text in ("not a program", "#!/bin/sh\nexit 1\n"):
            os.rename(copy, copy + ".old")
            with open(copy, "w", encoding="ascii") as f:
                f.write(text)
            os.chmod(copy, 0o755)
            os.kill(self.daemon.pid, signal.SIGUSR2)
            pid = self.next_after(pid)
            client.ask("sample")
            os.replace(copy + ".old", copy)
        self.assertEqual(self.daemon.log().count("this version goes on"), 2)
        self.assertNotIn("handing over to", self.daemon.log())
        os.kill(self.daemon.pid, signal.SIGUSR2)
        self.next_after(pid)
        self.assertIn("handing over to", self.daemon.log())
        self.finish(client)

    def test_other_version(self):
        """A state that nobody here understands: the keeper keeps all of it, and the clients wait."""
        self.start()
        client = self.holder()
        pid = self.worker()
        change_version(self.daemon.pid, 1)
        os.kill(self.daemon.pid, signal.SIGUSR2)
        wait_until("two refusals", lambda: self.daemon.log().count("with status 4") >= 2, 30)
        self.assertIn("drain before changing versions", self.daemon.log())
        client.send("verify")
        time.sleep(1)
        self.assertIsNone(client.poll())
        self.assertEqual(bytes(client.buffer), b"", "it was served by nobody")
        change_version(self.daemon.pid, -1)
        self.next_after(pid)
        client.expect("ok")
        self.finish(client)

    def test_sigterm_outlives_a_death(self):
        """A daemon that is killed while it drains: the next one drains, too."""
        self.start()
        client = self.holder()
        pid = self.worker()
        os.kill(pid, signal.SIGSTOP)
        os.kill(self.daemon.pid, signal.SIGTERM)
        time.sleep(0.2)
        os.kill(pid, signal.SIGKILL)
        self.daemon.popen.wait(60)
        self.daemon.stop()
        client.ask("verify")
        self.assertEqual(client.finish(), 0)

    def test_hang(self):
        """A daemon that shows no sign of life is killed, and the next one goes on."""
        self.start(env={"WATCHDOG_USEC": "12000000"})
        client = self.holder()
        pid = self.worker()
        time.sleep(8)
        self.assertEqual(self.worker(), pid, "one that idles was taken for one that hangs")
        os.kill(pid, signal.SIGSTOP)
        client.send("verify")
        self.next_after(pid)
        client.expect("ok")
        self.assertIn("no sign of life", self.daemon.log())
        self.finish(client)

    def test_keeper_killed(self):
        """Nobody is there to hand over to: the daemon serves on."""
        self.start()
        client = self.holder()
        pid = self.worker()
        self.addCleanup(self.end_quietly, pid)
        os.kill(self.daemon.pid, signal.SIGKILL)
        self.daemon.popen.wait()
        wait_until("the daemon to notice", lambda: "the keeper is gone" in self.daemon.log())
        client.ask("verify")
        self.assertGreater(self.reclaim(client.pid), 6000)
        self.assertEqual(self.worker(), pid)
        os.kill(pid, signal.SIGTERM)
        wait_until("the daemon's end", lambda: "stopped" in self.daemon.log())
        client.ask("verify")
        self.assertEqual(client.finish(), 0)


@inherited("again_and_again", "torture", "other_version", "sigterm_outlives_a_death")
@ctest("hand_over_with_disk", "e2e")
class HandOverWithDisk(HandOver):
    """Likewise, with most of what is out on disk."""

    def start(self, **more):
        self.daemon = self.start_daemon(
            {**self.SETTINGS, "writeback.dir": self.directory(), "pool.limit": "4M",
             "writeback.max": "256M", "writeback.free_min": "16M"}, "disk", keeper=True, **more)

    def finish(self, client):
        self.assertGreater(self.stats()["faults"]["disk"], 50, "hardly anything was on disk")
        super().finish(client)


if __name__ == "__main__":
    harness.main()
