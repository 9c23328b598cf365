"""The ends of clients: exec, exit, death by signal, relatives and threads that live on. What ends
must be forgotten, what lives on must have every byte, and nobody else may notice."""

import os
import signal
import time

from lib import harness
from lib.ctest import ctest
from lib.ending import Ending
from lib.harness import Churn, Place, wait_until

SYS_WRITE = "1"


def tasks(pid):
    return [int(t) for t in os.listdir(f"/proc/{pid}/task")]


def system_call(pid, tid):
    """The number of the system call it sleeps in; "-1": asleep outside of any, so in a fault."""
    try:
        with open(f"/proc/{pid}/task/{tid}/syscall", encoding="ascii") as f:
            return f.read().split()[0]
    except OSError:
        return ""


def process_states(pid):
    states = []
    for tid in sorted(tasks(pid)):
        with open(f"/proc/{pid}/task/{tid}/stat", encoding="ascii") as f:
            states.append(f.read().rsplit(")", 1)[1].split()[0])
    return states


def kill_quietly(pid, number=signal.SIGKILL):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


@ctest("ends", "e2e")
class Ends(Ending):
    def exec_chain(self, origin, to, levels):
        """At each level everything is out, threads read it, and one thread leaves by exec."""
        client = self.client([Place.program("ends"), "--how=exec", f"--from={origin}",
                              f"--depth={levels}", f"--to={to}", "--mb=8", f"--seed={self.seed}"])
        for level in range(levels + 1):
            client.expect("ready")
            wait_until("the old program to be forgotten", lambda: len(self.clients()) == 1)
            self.assertGreater(self.reclaim(client.pid), 1500, f"level {level}")
            if level < levels or to == "self":
                client.send("go")
        return client

    @ctest(labels="e2e e2e_san")
    def test_exec_from_thread(self):
        client = self.exec_chain("thread", "self", 6)
        client.expect("done")
        self.check_clean_end(client)
        self.finish_daemon()

    def test_exec_of_another_program(self):
        for origin in ("thread", "main", "thread"):
            client = self.client([Place.program("ends"), "--how=exec", f"--from={origin}",
                                  "--depth=0", f"--to={Place.program('holder')}", "--mb=8",
                                  f"--seed={self.seed}"])
            for _ in range(2):  # of `ends`, then of `holder`
                client.expect("ready")
                wait_until("the old program to be forgotten", lambda: len(self.clients()) == 1)
                self.assertGreater(self.reclaim(client.pid), 1500)
                client.send("verify")
            client.expect("ok")
            client.send("quit")
            client.expect("bye")
            self.check_clean_end(client)
        self.finish_daemon()

    def test_exec_from_main_under_faults(self):
        client = self.exec_chain("main", "self", 6)
        client.expect("done")
        self.check_clean_end(client)
        self.finish_daemon()

    def test_exit_group_in_faults(self):
        for n in range(12):
            client = self.start("leave", "--mb=4", f"--from={('main', 'thread')[n % 2]}")
            self.assertGreater(self.reclaim(client.pid), 700)
            client.send("go")
            self.check_clean_end(client, 7)
        self.finish_daemon()

    def stand_in_faults(self):
        """A client with all its threads but main in faults that nobody answers: the daemon is
        stopped. Also a second client with everything out."""
        other = self.client([Place.program("holder"), "--mb=8"], name="other")
        other.expect("ready")
        bound = {**harness.clean_environment(), "LD_BIND_NOW": "1"}
        client = self.start("stand", "--mb=4", "--readers=4", "--writers=3", env=bound)
        self.assertGreater(self.reclaim(other.pid), 1500)
        # All of it, or the writers find their first pages in.
        taken = 0
        for _ in range(20):
            taken += self.reclaim(client.pid)
            if taken >= 1024:
                break
        self.assertGreaterEqual(taken, 1000)
        time.sleep(0.3)  # what they need to wait at the gate (stacks, libc's data) comes back
        os.kill(self.daemon.pid, signal.SIGSTOP)
        self.addCleanup(kill_quietly, self.daemon.pid, signal.SIGCONT)
        wait_until("the daemon to stand still",
                   lambda: set(process_states(self.daemon.pid)) == {"T"})
        client.popen.stdin.write(b"r")

        calls = []

        def all_wait():
            nonlocal calls
            calls = [system_call(client.pid, t) for t in tasks(client.pid)]
            # A writer whose first page was in goes on to a fault of its own.
            return calls.count("-1") + calls.count(SYS_WRITE) == 7 and SYS_WRITE in calls

        try:
            wait_until("seven threads in faults, some of them in write(2)", all_wait)
        except AssertionError as error:
            self.fail(f"{error}; they are in system calls {calls}")
        return client, other

    def go_on_after_end(self, other):
        os.kill(self.daemon.pid, signal.SIGCONT)
        other.ask("verify")
        wait_until("the dead client to be forgotten", lambda: len(self.clients()) == 1)
        self.check_clean_end(other)
        self.finish_daemon()

    @ctest(labels="e2e e2e_san")
    def test_exit_group_while_nobody_answers(self):
        client, other = self.stand_in_faults()
        client.popen.stdin.write(b"x")
        self.check_clean_end(client, 7)
        self.go_on_after_end(other)

    @ctest(labels="e2e e2e_san")
    def test_sigkill_in_a_fault(self):
        client, other = self.stand_in_faults()
        os.kill(client.pid, signal.SIGKILL)
        self.check_clean_end(client, -signal.SIGKILL)
        self.go_on_after_end(other)

    def test_sigkill_in_a_move(self):
        """Killed at random moments while the agent moves pages, by budget and by order."""
        witness = self.start_witness()
        for n in range(30):
            victim = self.client([Place.program("sweep"), "--mb=8", "--until_eof=1",
                                  "--order=random", f"--seed={n}"],
                                 "2M" if n % 2 == 0 else None, name="victim")
            victim.expect("populated")
            order = None
            if n % 2 == 1:
                order = self.plain([Place.binary("foldswap"), "--runtime-dir", self.daemon.dir,
                                    "reclaim", "--client", str(victim.pid)])
            time.sleep(self.rng.random() * 0.04)
            os.kill(victim.pid, signal.SIGKILL)
            self.check_clean_end(victim, -signal.SIGKILL)
            if order is not None:
                self.assertIn(order.finish(20), (0, 1), order.stderr())
        self.check_goes_on(witness)
        self.end_witness(witness)
        stats = self.finish_daemon()
        self.assert_worked(stats)

    @ctest(labels="e2e e2e_san")
    def test_sigkill_of_relatives(self):
        """Some of a family die in the middle of eviction; the others have their bytes."""
        for n in range(8):
            name = f"family{n}"
            client = self.start("family", "--mb=8", resident_max="4M" if n % 2 else None, name=name)
            churn = Churn(self, name, restore_every=5)
            churn.start()
            client.send("go")
            pids = {}
            while len(pids) < 3:
                _, role, pid = client.line().split()
                pids[role] = int(pid)
                self.addCleanup(kill_quietly, int(pid))
            time.sleep(self.rng.random() * 0.4)
            killed = self.rng.sample(sorted(pids), self.rng.choice((1, 2)))
            for role in killed:
                os.kill(pids[role], signal.SIGKILL)
            time.sleep(0.2)
            client.close_input()
            code = client.finish()
            churn.stop()
            self.assertEqual(client.stderr(), b"", f"killed: {killed}")
            self.assertEqual(code, -signal.SIGKILL if "parent" in killed else 0)
            said = [line for line in client.output.decode().splitlines() if line.startswith("ok")]
            self.assertEqual(sorted(said), sorted(f"ok {r}" for r in pids if r not in killed))
        self.finish_daemon()

    def test_budget_over_shared_pages(self):
        """More than the budget is shared with a child, and so cannot leave. The budget is soft:
        the faults of the program must not wait for evictions that come to nothing."""
        client = self.start("sharing", "--mb=8")
        self.assertGreater(self.reclaim(client.pid, "--bytes", "4M"), 1000)
        client.ask("go", "shared")
        self.cli_ok("limit", "--client", str(client.pid), "1M")
        time.sleep(0.5)
        client.send("go")
        client.expect("done", 15)  # 30 s, see slower()
        client.expect("child ok")
        self.assertEqual(client.finish(), 0)
        print(client.stderr().decode())
        self.finish_daemon()

    def test_abort_in_a_handler(self):
        for _ in range(4):
            client = self.start("abort", "--mb=4")
            self.assertGreater(self.reclaim(client.pid), 700)
            client.send("go")
            client.expect("in the handler")
            self.check_clean_end(client, -signal.SIGABRT)
        self.finish_daemon()

    def start_without_main(self, *more):
        client = self.start("main_leaves", "--mb=16", *more, name="headless")
        self.assertGreater(self.reclaim(client.pid), 3500)
        client.send("go")
        client.expect("main leaves")
        wait_until("the main thread to end", lambda: process_states(client.pid)[0] == "Z")
        return client

    def end_without_main(self, client):
        client.close_input()
        client.expect("done")
        self.check_clean_end(client)
        self.finish_daemon()

    def test_main_thread_ends_first(self):
        """It is served and evicted on, though /proc shows nothing of its memory under its pid."""
        client = self.start_without_main()
        churn = Churn(self, "headless")
        churn.start()
        time.sleep(3)
        churn.stop()
        print(f"without its main thread {churn.pages} pages went out in {churn.rounds} reclaims")
        self.assertGreater(churn.pages, 1000)
        self.end_without_main(client)

    def test_main_thread_ends_first_and_quiet(self):
        """When it has been quiet the daemon looks which memory is registered; nothing to be seen
        must not mean none."""
        client = self.start_without_main("--idle=1")
        time.sleep(7)
        self.end_without_main(client)

    def test_spawn_under_eviction(self):
        client = self.client([Place.program("ends_churn"), "--how=spawn", "--mb=12"], name="spawns")
        client.expect("ready")
        churn = Churn(self, client.pid)
        churn.start()
        time.sleep(5)
        churn.stop()
        client.close_input()
        client.expect("done")
        self.check_clean_end(client)
        self.assertGreater(churn.pages, 1000)
        self.assert_worked(self.finish_daemon())


if __name__ == "__main__":
    harness.main()
