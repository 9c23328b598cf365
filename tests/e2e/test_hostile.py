"""Clients that mean harm. After each one: the daemon lives and answers, an honest client that ran
all the time has only right bytes, a log line says what was refused, and no descriptor is left
behind."""

import os
import re
import signal
import subprocess
import time

from lib import harness
from lib.ctest import ctest
from lib.harness import E2E, Place, descriptor_count, wait_until

# What tests/programs/hazards/hostile.cc is asked to do -> what the log has to speak of; None: nothing need be
# said.
REFUSED = {
    "wrong_version": r"version",
    "wrong_magic": r"magic|message|hello|protocol|malformed",
    "wrong_type": r"type|message|hello|malformed",
    "wrong_length": r"length|bytes|size|short|message|malformed",
    "wrong_kind": r"kind|hello",
    "short": r"short|length|bytes|size|malformed",
    "one_byte": r"short|length|bytes|size|malformed",
    "oversized": r"long|large|length|bytes|size|truncated|malformed",
    "no_fd": r"descriptor|userfault",
    "fd_pipe": r"descriptor|userfault",
    "fd_file": r"descriptor|userfault",
    "fd_eventfd": r"descriptor|userfault",
    "fd_socket": r"descriptor|userfault",
    "fd_device": r"descriptor|userfault",
    "many_fds": r"descriptor|userfault",
    "most_fds": r"descriptor|userfault",
    "api_done": r"userfault|API|initiali",
    "staging_zero": r"staging",
    "staging_unaligned": r"staging",
    "staging_kernel": r"staging",
    "staging_end": r"staging",
    "reconnect": r"reconnect|kind|version|refused",
    "uffd_of_another": r"not of the process",
}
# Odd, but not necessarily refused.
ODD = ("staging_overlap", "own_wraps", "huge_limits", "name_unterminated", "name_control",
       "child_of_nobody",
       "connect_close", "welcome_close", "hello_close", "truncate_memfds", "register_everything")


@ctest("e2e_hostile", "e2e e2e_san", load="light")
class Hostile(E2E):
    def setUp(self):
        super().setUp()
        self.good = self.client([Place.program("sweep"), "--mb=24", "--until_eof=1",
                                 "--order=random",
                                 "--kind=mixed", f"--seed={self.seed}"], "12M", name="good")
        self.good.expect("populated")
        wait_until("the honest client to be under pressure",
                   lambda: self.row(self.good.pid)["evicted_pages"] > 500)
        self.before = descriptor_count(self.daemon.pid)

    def attack(self, mode):
        return self.plain([Place.program("hostile"), f"--socket={self.daemon.dir}/client.sock",
                           f"--mode={mode}"])

    def assert_unharmed(self, what):
        self.assertTrue(self.daemon.running(), f"the daemon died of {what}")
        self.assertIsNone(self.good.poll(),
                          f"the honest client ended: {what}: {self.good.stderr()}")
        faults = self.row(self.good.pid)["faults"]
        wait_until(f"the honest client to go on after {what}",
                   lambda: self.row(self.good.pid)["faults"] > faults, 20)
        wait_until(f"descriptors to be closed after {what}",
                   lambda: descriptor_count(self.daemon.pid) <= self.before, 20)
        wait_until(f"only the honest client to be listed after {what}",
                   lambda: [c["name"] for c in self.clients()] == ["good"], 20)

    def finish(self):
        self.good.close_input()
        self.good.expect("done")
        self.assertEqual(self.good.wait(), 0)
        self.finish_daemon()

    def attack_and_look(self, mode, pattern):
        mark = self.daemon.log_size()
        attacker = self.attack(mode)
        self.assertEqual(attacker.finish(), 0, attacker.stderr())
        print(f"{mode}: {attacker.output.decode(errors='replace').strip()}")
        self.assert_unharmed(mode)
        if pattern is not None:
            self.assertNotIn(b"ready", attacker.output, f"{mode} was accepted")
            said = self.daemon.log(mark).splitlines()
            lines = [line for line in said if re.search(pattern, line, re.IGNORECASE)]
            self.assertTrue(lines,
                            f"{mode}: nothing in the log about it: {self.daemon.log(mark)!r}")
            self.assertLessEqual(len(lines), 3, f"{mode}: said too often")

    def test_bad_handshakes(self):
        for mode, pattern in REFUSED.items():
            with self.subTest(mode):
                self.attack_and_look(mode, pattern)
        self.finish()

    def test_odd_handshakes(self):
        for mode in ODD:
            with self.subTest(mode):
                self.attack_and_look(mode, None)
        for line in self.daemon.log().splitlines():
            self.assertNotIn("\x1b[2J", line, "a client's name reached the log unescaped")
        self.finish()

    def test_floods(self):
        for mode in ("flood_of_connects", "flood_of_bytes", "many_registrations"):
            with self.subTest(mode):
                attacker = self.attack(mode)
                attacker.finish(120)
                self.assert_unharmed(mode)
        self.finish()

    def test_lingering_descriptors(self):
        """A descriptor whose last close() blocks is nothing that the daemon may ever close."""
        for mode in ("linger_behind_child", "linger_behind_client", "linger_at_admin"):
            with self.subTest(mode):
                attacker = self.attack(mode)
                while attacker.line(60) != "holding":
                    pass
                begun = time.monotonic()
                for _ in range(10):
                    self.stats()
                    self.assert_good_goes_on()
                newcomer = self.run_client(["/bin/true"], seconds=30)
                self.assertEqual(newcomer.code, 0)
                # It lingers for a minute; we are done long before, or waited for it.
                self.assertLess(time.monotonic() - begun, 45, "the daemon waited")
                attacker.finish()
                self.assert_unharmed(mode)
        self.finish()

    def hold_and_look(self, mode):
        attacker = self.attack(mode)
        while attacker.line(120) != "holding":
            pass
        # While it holds on: others get in, and the honest one goes on.
        newcomer = self.client([Place.program("holder"), "--mb=4"], name="newcomer")
        newcomer.expect("ready", 30)
        self.assertGreater(self.reclaim("newcomer"), 500)
        newcomer.ask("verify")
        self.assertEqual(newcomer.finish(), 0)
        attacker.finish()
        self.assert_unharmed(mode)

    def test_holding_on(self):
        for mode in ("connect_hang", "welcome_hang", "clear_nonblock"):
            with self.subTest(mode):
                self.hold_and_look(mode)
        self.finish()

    def test_hold_many_connections(self):
        attacker = self.attack("hold_connections")
        attacker.expect("holding", 120)
        self.assertTrue(self.daemon.running())
        self.assert_good_goes_on()
        attacker.finish()
        self.assert_unharmed("hold_connections")
        self.hold_and_look("connect_hang")
        self.finish()

    def assert_good_goes_on(self):
        faults = self.row(self.good.pid)["faults"]
        wait_until("the honest client to go on", lambda: self.row(self.good.pid)["faults"] > faults)

    def reclaim_from_mad(self):
        """Whatever this answers, it has to answer; what is asked for may have become impossible."""
        try:
            result = self.cli("reclaim", "--client", "mad", "--bytes", "4M", seconds=20)
        except subprocess.TimeoutExpired:
            return "no answer"
        self.assertIn(result.returncode, (0, 1))
        return str(result.returncode)

    def scribble(self, what):
        """Garbage in the shared areas of a client while its own pages are evicted. It may hang
        itself: its fault. It may not hang anybody else, nor whoever gives the daemon orders."""
        answers = []
        for n in range(3):
            mad = self.client([Place.program("scribble"), f"--what={what}", "--mb=16",
                               f"--seed={self.seed + n}"], name="mad")
            mad.expect("ready")
            for _ in range(3):
                answers.append(self.reclaim_from_mad())
                self.assert_good_goes_on()
                if answers[-1] == "no answer":
                    break
            if mad.poll() is None:
                os.kill(mad.pid, signal.SIGKILL)
            mad.wait()
            self.assert_unharmed(f"scribbling on {what}")
        print(f"{what}: reclaim ended with {answers}")
        self.finish()
        self.assertNotIn("no answer", answers, "a mad client holds up who reclaims from it")

    def test_scribbled_mailbox(self):
        self.scribble("mailbox")

    def test_held_layout_lock(self):
        self.scribble("layout")

    def test_scribbled_transfer(self):
        self.scribble("transfer")


@ctest("hazard", "e2e e2e_san", load="light")
class Hazard(Hostile):
    """The row of the list of hazards that is about descriptors, by its number."""

    def test_08_hostile_descriptors(self):
        for mode in ("fd_pipe", "fd_device", "many_fds"):
            with self.subTest(mode):
                self.attack_and_look(mode, REFUSED[mode])
        with self.subTest("truncate_memfds"):
            self.attack_and_look("truncate_memfds", None)
        with self.subTest("clear_nonblock"):
            self.hold_and_look("clear_nonblock")
        self.finish()


if __name__ == "__main__":
    harness.main()
