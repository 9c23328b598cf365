"""The agent comes late: into a program that runs already, and sees nothing of it (docs/LATE_AGENT.md)."""

import os
import re
import shutil
import signal
import struct
import subprocess
import time

from lib.ctest import ctest
from lib import harness
from lib.harness import E2E, MIB, Place, descriptor_count, rss_anon, wait_until

BUDGET = 32 * MIB
ALLOWED = BUDGET * 105 // 100 + 4 * MIB
KINDS = ("nanosleep", "clock_nanosleep", "read", "recv", "poll", "ppoll", "select", "futex",
         "futex_timed", "epoll", "pause", "sigsuspend", "wait", "code")
LATE = 3  # status of a sender whose thread did not stop in time
COUNTERS = ("begun", "signalled", "eintr", "odd", "handled", "elsewhere", "wrong")


def threads(pid):
    return len(os.listdir(f"/proc/{pid}/task"))


def field(pid, key):
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as f:
        return dict(line.split(":", 1) for line in f if ":" in line)[key].split()


class Late(E2E):
    """Programs that are announced, and become clients when the daemon wants them to."""

    def environment(self, **more):
        env = harness.clean_environment()
        env.update({"FOLDSWAP_RUNTIME_DIR": self.daemon.dir, "LD_PRELOAD": Place.library()})
        env.update({f"FOLDSWAP_{key.upper()}": str(value) for key, value in more.items()})
        return env

    def late(self, command, **wishes):
        return self.plain(command, env=self.environment(**wishes))

    def holder(self, mb, **wishes):
        proc = self.late([Place.program("holder"), f"--mb={mb}", f"--seed={self.seed}"], **wishes)
        proc.expect("ready")
        return proc

    def rows_of(self, pid):
        return [c for c in self.clients() if c["pid"] == pid]

    def assert_plain(self, pid):
        """Nothing of ours is in it but the library."""
        self.assertEqual(threads(pid), 1)
        with open(f"/proc/{pid}/maps", encoding="ascii", errors="replace") as f:
            self.assertNotIn("foldswap-", f.read())


@ctest("arrival", "e2e e2e_san")
class Arrival(Late):
    def test_found_when_over_its_budget(self):
        client = self.holder(96, resident_max=BUDGET)
        self.await_state(client.pid, "active")
        wait_until("its budget holds", lambda: rss_anon(client.pid) <= ALLOWED)
        client.ask("verify")
        client.ask("dirty")
        client.ask("discard")
        client.ask("move")
        client.ask("fork")
        client.ask("verify")
        client.send("quit")
        client.expect("bye")
        self.assertEqual(client.wait(), 0)
        self.assertEqual(client.stderr(), b"")

    @ctest(labels="e2e e2e_san quick")
    def test_nothing_happens_to_it_below_its_budget(self):
        client = self.holder(24, resident_max=64 * MIB)
        plain = self.plain([Place.program("holder"), "--mb=24", f"--seed={self.seed}"])
        plain.expect("ready")
        row = self.await_state(client.pid, "announced")
        self.assertEqual(row["reason"], "")
        self.assertEqual(row["name"], "holder")
        self.assertEqual(row["resident_max_bytes"], 64 * MIB)
        time.sleep(2.5)
        self.await_state(client.pid, "announced")
        self.assert_plain(client.pid)
        self.assertEqual(descriptor_count(client.pid), descriptor_count(plain.pid))

    @ctest(labels="e2e e2e_san quick")
    def test_comes_on_command(self):
        """Below client.min_size, by pid and by name."""
        by_pid, by_name = self.holder(4), self.holder(4, name="small")
        self.assertGreater(int(self.cli_ok("reclaim", "--client", str(by_pid.pid))), 900)
        self.assertGreater(int(self.cli_ok("reclaim", "--client", "small")), 900)
        for client in (by_pid, by_name):
            self.await_state(client.pid, "active")
            self.assertEqual(threads(client.pid), 2)
            client.ask("verify")

    def test_a_limit_reaches_it(self):
        client = self.holder(64)
        self.await_state(client.pid, "announced")
        self.cli_ok("limit", "--client", str(client.pid), str(BUDGET))
        wait_until("its budget holds", lambda: rss_anon(client.pid) <= ALLOWED)
        client.ask("verify")

    def test_a_daemon_that_starts_finds_it(self):
        self.daemon.stop()
        client = self.holder(64, resident_max=BUDGET)
        self.daemon = self.start_daemon(self.SETTINGS)
        self.await_state(client.pid, "active")
        wait_until("its budget holds", lambda: rss_anon(client.pid) <= ALLOWED)
        client.ask("verify")

    def test_one_group(self):
        """Two that are under the group's budget only together."""
        first = self.holder(40, group="both", group_max=48 * MIB)
        time.sleep(1.5)
        self.assert_plain(first.pid)
        second = self.holder(40, group="both", group_max=48 * MIB)
        wait_until("the group's budget holds",
                   lambda: rss_anon(first.pid) + rss_anon(second.pid) <= 56 * MIB)
        first.ask("verify")
        second.ask("verify")

    def test_an_unmanageable_one_says_why(self):
        """Under a filter that allows everything."""
        client = self.late([Place.program("filtered"), Place.program("holder"), "--mb=64"],
                           resident_max=BUDGET)
        client.expect("ready")
        row = self.await_state(client.pid, "refused")
        self.assertIn("seccomp", row["reason"])
        self.assert_plain(client.pid)
        refused = self.cli("reclaim", "--client", str(client.pid))
        self.assertEqual(refused.returncode, 1)
        self.assertIn("seccomp", refused.stderr)
        client.ask("verify")
        client.send("quit")
        client.expect("bye")

    def test_traced_by_somebody_else(self):
        client = self.late([Place.program("kill_at_call"), "-1", Place.program("holder"), "--mb=64"],
                           resident_max=BUDGET)
        client.expect("ready")
        pid = int(open(f"/proc/{client.pid}/task/{client.pid}/children", encoding="ascii").read())
        wait_until("a reason", lambda: any("traces" in c["reason"] for c in self.rows_of(pid)))
        client.ask("verify")

    def test_execs_into_another_program(self):
        """What was found of the program before holds no more."""
        env = self.environment(resident_max=BUDGET)
        client = self.plain(["/bin/sh", "-c",
                             f"sleep 2; exec {Place.program('holder')} --mb=64"], env=env)
        client.expect("ready")
        self.await_state(client.pid, "active")
        client.ask("verify")

    def test_children_are_found_like_anybody(self):
        """A child of a client that had nothing registered has no thread of ours."""
        client = self.holder(8)
        self.cli_ok("reclaim", "--client", str(client.pid))
        self.cli_ok("restore", "--client", str(client.pid))
        client.ask("fork")
        client.ask("verify")


@ctest("arrival_rights", "e2e")
class Rights(Late):
    """The agent never has more rights than its program, and a filter that comes later does not meet it."""

    def check_way(self, way):
        def lines(proc):
            out = []
            while not out or out[-1] != "done":
                out.append(proc.line())
            self.assertEqual(proc.wait(), 0, proc.stderr())
            return out

        plain = self.plain([Place.program("gives_up"), way], cwd=Place.build)
        plain.expect("ready")
        plain.send("go")
        wanted = lines(plain)
        client = self.plain([Place.program("gives_up"), way], env=self.environment(name=way),
                            cwd=Place.build)
        client.expect("ready")
        self.assertGreater(int(self.cli_ok("reclaim", "--client", str(client.pid))), 3000)
        self.assertEqual(threads(client.pid), 2)
        client.send("go")
        for _ in range(6):
            time.sleep(0.2)
            self.cli("reclaim", "--client", str(client.pid))
        got = lines(client)
        own = [line for line in got if not line.startswith("foldswap-agent")]
        self.assertEqual(own, wanted)
        for line in got:
            if not line.startswith("foldswap-agent"):
                continue
            agent, program = line.split()[1:], wanted[0].split()[1:]
            print(f"{way}: {line}")
            self.assertEqual(agent[0], program[0], "user")
            for mine, leaders in zip(agent[1:3], program[1:3]):
                self.assertEqual(int(mine, 16) & ~int(leaders, 16), 0, line)
            self.assertGreaterEqual(int(agent[3]), int(program[3]), "no_new_privs")
            self.assertEqual(agent[4], program[4], "seccomp")

    def test_capset(self):
        self.check_way("capset")

    def test_raw_capset(self):
        self.check_way("raw_capset")

    def test_bounding_set(self):
        self.check_way("prctl")

    def test_no_new_privs(self):
        self.check_way("nnp")

    def test_setuid(self):
        self.check_way("setuid")

    def test_raw_setuid(self):
        self.check_way("raw_setuid")

    def test_filter(self):
        self.check_way("filter")

    def test_filter_of_all_threads(self):
        self.check_way("filter_tsync")

    def test_chroot(self):
        self.check_way("chroot")

    def test_namespace(self):
        self.check_way("namespace")


@ctest("arrival_leaves", "e2e", load="light")
class Leaves(Late):
    def test_goes_when_nothing_is_out_and_comes_again(self):
        """A minute after the last page has left, with everything back: no thread, no mapping of
        ours but one page, and every page of the program's. Then it comes again on command."""
        client = self.holder(32)
        forked = self.holder(8)
        with open(f"/proc/{client.pid}/maps", encoding="ascii") as f:
            plain = len(f.readlines())
        for _ in range(2):
            for proc in (client, forked):
                self.assertGreater(int(self.cli_ok("reclaim", "--client", str(proc.pid))), 1800)
                self.await_state(proc.pid, "active")
                proc.ask("sample")
                self.cli_ok("restore", "--client", str(proc.pid), "--hold", "0")
                self.assertEqual(threads(proc.pid), 2)
            begun = time.monotonic()
            while time.monotonic() - begun < 50:
                forked.ask("fork")  # while it is there, while it goes, and when it has gone
                client.ask("sample")
                time.sleep(0.3)
            self.assertEqual(threads(client.pid), 2)
            while threads(forked.pid) == 2 or threads(client.pid) == 2:
                self.assertLess(time.monotonic() - begun, harness.slower(60))
                forked.ask("fork")
                client.ask("move")
            self.await_state(client.pid, "announced")
            self.assert_plain(client.pid)
            with open(f"/proc/{client.pid}/maps", encoding="ascii") as f:
                self.assertLessEqual(len(f.readlines()), plain + 6)
            client.ask("verify")
            forked.ask("verify")
            forked.ask("fork")
        for proc in (client, forked):
            self.assertEqual(proc.finish(), 0)
        self.assert_worked(self.finish_daemon())


@ctest("arrival_run_times", "e2e")
class RunTimes(E2E):
    """Programs that bring a run-time of their own which wants to be first, or to see everything."""

    def check_same(self, command, wanted):
        """Plainly, as a program that is announced, and as a child of such a one."""
        plain = self.run_plain(command)
        self.assertEqual((plain.code, plain.output), (0, wanted), plain.stderr())
        for more in (command, ["/bin/sh", "-c", 'exec "$0" "$@"; exit 9', *command],
                     ["/bin/sh", "-c", '"$0" "$@"', *command]):
            self.assert_same(plain, self.run_client(more, 8 * MIB, options=()))

    def test_address_sanitizer(self):
        self.check_same([Place.program("with_asan")], b"static program ran\n")

    def test_valgrind(self):
        if shutil.which("valgrind") is None:
            self.skipTest("valgrind is not installed")
        self.check_same(["valgrind", "-q", "/bin/echo", "ran"], b"ran\n")


@ctest("arrival_orphans", "e2e")
class Orphans(Late):
    SETTINGS = {"evict.quarantine_s": "0", "client.min_size": "0"}

    def test_raw_children(self):
        """What they have inherited is registered, and not theirs to change: no agent comes, and
        every page is there."""
        client = self.late([Place.program("family"), "--mb=6", f"--seed={self.seed}"],
                           resident_max=2 * MIB)
        client.expect("ready")
        self.await_state(client.pid, "active")
        wait_until("pages are out", lambda: self.row(client.pid)["evicted_pages"] > 500)
        pids = []
        for kind in ("rawfork", "fork", "rawfork", "rawfork"):
            client.send(kind)
            pids.append(int(client.line()))
            client.ask("write 300")
        end = time.monotonic() + 6
        while time.monotonic() < end:
            for n in range(len(pids)):
                client.ask(f"at {n} write 50")
                client.ask(f"at {n} verify")
            client.ask("verify")
        self.assertEqual([threads(pid) for pid in pids], [1, 2, 1, 1])


@ctest("arrival_unseen", "e2e")
class Unseen(Late):
    """Agents that are sent again and again, by the injector's own code: the program must see
    nothing. (All but the first find that there is one, and go.)"""

    SETTINGS = {"evict.quarantine_s": "0", "client.min_size": "1G"}

    def waiting(self, kind, *options):
        path = os.path.join(self.tmp, f"counters-{kind}-{len(self.procs)}")
        proc = self.late([Place.program("waits"), kind, path, *options])
        proc.expect("ready")
        proc.counters = path
        time.sleep(0.05)
        proc.mask = field(proc.pid, "SigBlk")
        return proc

    @staticmethod
    def counted(proc):
        with open(proc.counters, "rb") as f:
            return dict(zip(COUNTERS, struct.unpack(f"{len(COUNTERS)}Q", f.read(8 * len(COUNTERS)))))

    @staticmethod
    def run_here(*command):
        """Its status and output; thousands of these leave no descriptor behind."""
        done = subprocess.run(command, capture_output=True, text=True, check=False,
                              timeout=harness.slower(60), preexec_fn=harness.die_with_parent)
        return done.returncode, done.stdout

    def send(self, pid, times):
        """How often it was done. One that did not come to it in time, on a busy machine, is tried again."""
        code, said = LATE, ""
        for _ in range(20):
            code, said = self.run_here(Place.program("send_agent"), str(pid), str(times), "1000")
            if code != LATE:
                break
        self.assertEqual(code, 0, said)
        print(said.strip())
        return int(re.match(r"sent (\d+)", said).group(1))

    def assert_goes_on(self, proc):
        begun = self.counted(proc)["begun"]
        os.kill(proc.pid, signal.SIGUSR1)
        wait_until("it goes on", lambda: self.counted(proc)["begun"] > begun)

    def assert_unseen(self, proc):
        """And it still does what it did: a signal ends its call."""
        self.assertIsNone(proc.poll())
        before = self.counted(proc)
        for key in ("eintr", "odd", "elsewhere", "wrong"):
            self.assertEqual(before[key], 0, (proc.command, before))
        os.kill(proc.pid, signal.SIGUSR1)
        wait_until("the signal is handled",
                   lambda: self.counted(proc)["handled"] == before["handled"] + 1)
        self.assertEqual(field(proc.pid, "TracerPid"), ["0"])
        wait_until("it blocks what it did", lambda: field(proc.pid, "SigBlk") == proc.mask)

    def check_kind(self, kind, times=200):
        proc = self.waiting(kind)
        sent = self.send(proc.pid, times)
        self.assertGreater(sent, times // 4, kind)
        time.sleep(0.1)
        self.assert_unseen(proc)
        proc.kill()

    def test_each_kind_of_call(self):
        for kind in KINDS:
            with self.subTest(kind=kind):
                self.check_kind(kind)

    def test_signals_meanwhile(self):
        """None is lost, none is handled on the agent, none is taken for an end of the call without one."""
        for kind in KINDS:
            with self.subTest(kind=kind):
                proc = self.waiting(kind)
                sender = self.plain([Place.program("send_agent"), str(proc.pid), "300", "200"])
                signals = 0
                while sender.poll() is None:
                    before = self.counted(proc)["handled"]
                    os.kill(proc.pid, signal.SIGUSR1)
                    signals += 1
                    wait_until("the signal is handled",
                               lambda n=before: self.counted(proc)["handled"] > n, every=0.0005)
                self.assertIn(sender.code, (0, LATE), sender.output)
                time.sleep(0.05)
                counted = self.counted(proc)
                self.assertEqual(counted["handled"], signals)
                self.assert_unseen(proc)
                proc.kill()

    def test_sender_killed_at_each_step(self):
        """The program lives, and nothing of a tracer or a blocked signal is left."""
        for kind in KINDS:
            with self.subTest(kind=kind):
                proc = self.waiting(kind)
                command = [Place.program("send_agent"), str(proc.pid), "1"]
                _, whole = self.run_here(Place.program("kill_at_call"), "-1", *command)
                stops = int(re.search(r"after (\d+) stops", whole).group(1))
                self.assertGreater(stops, 100)
                for stop in range(stops - 90, stops):
                    self.run_here(Place.program("kill_at_call"), str(stop), *command)
                time.sleep(0.05)
                counted = self.counted(proc)
                for key in ("odd", "elsewhere", "wrong"):
                    self.assertEqual(counted[key], 0, (kind, counted))
                print(f"{kind}: {stops} stops, {counted['eintr']} EINTR")
                self.assertIsNone(proc.poll(), kind)
                self.assert_goes_on(proc)
                if kind != "epoll":
                    self.assertEqual(counted["eintr"], 0, (kind, counted))
                proc.kill()


if __name__ == "__main__":
    harness.main()
