"""Mappings that change without a word, mappings of other kinds, and agents that are stopped: see
unseen.cc, foreign.cc and stopworld.cc of tests/programs/hazards, which verify every byte."""

import os

from lib import harness
from lib.cgroups import controller_v1
from lib.ctest import ctest
from lib.harness import E2E, Churn, Place

HUGE_PAGES = "/proc/sys/vm/nr_hugepages"


@ctest("unseen", "e2e")
class Unseen(E2E):
    """HAZARDS 30: an entry must not outlive its mapping, whatever took that away."""

    def steps(self, row, *more):
        for n in range(2):
            client = self.client([Place.program("unseen"), f"--row={row}", f"--seed={self.seed + n}",
                                  *more])
            client.expect("ready 1")
            self.assertGreater(self.reclaim(client.pid), 3500)
            client.send("go")
            while (line := client.line()) != "done":
                self.assertRegex(line, r"^ready \d$")
                self.reclaim(client.pid)
                client.send("go")
            self.assertEqual(client.finish(), 0, client.stderr())
        self.finish_daemon()

    def test_shmat(self):
        self.steps("shmat")

    @ctest(labels="e2e e2e_san")
    def test_shmat_raw(self):
        self.steps("shmat", "--raw=1")

    def test_shmat_grow(self):
        self.steps("shmat_grow")

    @ctest(labels="e2e e2e_san")
    def test_shmat_grow_raw(self):
        self.steps("shmat_grow", "--raw=1")

    def test_shmat_moved(self):
        self.steps("shmat_moved")

    def test_shmat_moved_raw(self):
        self.steps("shmat_moved", "--raw=1")

    def test_shmat_forked(self):
        self.steps("shmat_forked", "--raw=1")

    def test_brk(self):
        self.steps("brk", "--raw=1")


@ctest("foreign", "e2e")
class Foreign(E2E):
    """HAZARDS 31: what is not ours is not registered."""

    def run_under_budget(self, row):
        client = self.client([Place.program("foreign"), f"--row={row}"], "16M")
        client.expect("done", 180)
        self.assertEqual(client.finish(), 0, client.stderr())
        self.assert_worked(self.finish_daemon())

    def test_huge(self):
        try:
            with open(HUGE_PAGES, encoding="ascii") as f:
                before = f.read()
            with open(HUGE_PAGES, "w", encoding="ascii") as f:
                f.write(str(int(before) + 8))
        except OSError as error:
            self.skipTest(f"no huge pages can be set aside: {error}")
        self.addCleanup(self.set_huge_pages, before)
        with open(HUGE_PAGES, encoding="ascii") as f:
            if int(f.read()) < int(before) + 8:
                self.skipTest("this machine has no memory for eight huge pages")
        self.run_under_budget("huge")

    def set_huge_pages(self, text):
        with open(HUGE_PAGES, "w", encoding="ascii") as f:
            f.write(text)

    def test_shared(self):
        self.run_under_budget("shared")

    def test_moves(self):
        client = self.client([Place.program("foreign"), "--row=moves"])
        while (line := client.line(120)) != "done":
            self.assertEqual(line, "ready")
            self.assertGreater(self.reclaim(client.pid), 4000)
            client.send("go")
        self.assertEqual(client.finish(), 0, client.stderr())
        self.finish_daemon()


@ctest("stopped_agent", "e2e")
class StoppedAgent(E2E):
    """HAZARDS 38: nobody waits for an agent that somebody has stopped."""

    SETTINGS = {**E2E.SETTINGS, "log.level": "debug"}

    def churned(self, what, rounds, resident_max=None, taken_over=False):
        client = self.client([Place.program("stopworld"), f"--what={what}", f"--rounds={rounds}",
                              f"--seed={self.seed}"], resident_max)
        client.expect("ready")
        churn = Churn(self, client.pid, restore_every=0, pause=0.002)
        churn.start()
        if taken_over:  # until it has happened
            harness.wait_until("pages to be taken over from a stopped agent",
                               lambda: "taken over from its agent" in self.daemon.log(), 90)
        client.close_input()
        client.expect("done", 240)
        churn.stop()
        self.assertEqual(client.wait(), 0, client.stderr())
        print(f"{churn.rounds} reclaims took out {churn.pages} pages")
        self.assertGreater(churn.pages, 0)
        self.finish_daemon()

    @ctest(labels="e2e e2e_san")
    def test_read(self):
        self.churned("read", 12)

    def test_read_under_a_budget(self):
        self.churned("read", 12, "8M", taken_over=True)

    def test_remap(self):
        self.churned("remap", 16)

    def test_fork(self):
        self.churned("fork", 16)

    @ctest(labels="e2e e2e_san")
    def test_agent_alone(self):
        self.churned("agent", 12)

    def test_agent_alone_under_a_budget(self):
        self.churned("agent", 12, "8M", taken_over=True)

    def test_announced_calls(self):
        self.churned("announce", 200)

    def test_vfork_parent(self):
        self.churned("vfork", 16)

    def test_frozen_agent(self):
        """The freezer stops the agent alone; it does not show in the thread's state."""
        freezer = controller_v1("freezer")
        if freezer is None:
            self.skipTest("no freezer of cgroup v1 is mounted, which can freeze a single thread")
        group = os.path.join(freezer, f"foldswap-e2e-agent-{os.getpid()}")
        os.mkdir(group)
        self.addCleanup(self.remove_group, group)
        client = self.client([Place.program("holder"), "--mb=32", f"--seed={self.seed}"])
        client.expect("ready")
        churn = Churn(self, client.pid, restore_every=0, pause=0.002)
        churn.start()
        self.write(group, "tasks", self.agent_of(client.pid))
        for _ in range(6):
            self.write(group, "freezer.state", "FROZEN")
            client.ask("verify", seconds=30)
            client.ask("move", seconds=30)
            self.write(group, "freezer.state", "THAWED")
            client.ask("dirty", seconds=30)
        churn.stop()
        self.assertGreater(churn.pages, 0)
        client.ask("verify")
        self.assertEqual(client.finish(), 0, client.stderr())
        self.finish_daemon()

    @staticmethod
    def agent_of(pid):
        for tid in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{tid}/comm", encoding="ascii") as f:
                if f.read().startswith("foldswap-agent"):
                    return tid
        raise AssertionError("there is no agent")

    @staticmethod
    def write(group, name, value):
        with open(os.path.join(group, name), "w", encoding="ascii") as f:
            f.write(str(value))

    def remove_group(self, group):
        self.write(group, "freezer.state", "THAWED")
        for proc in self.procs:
            proc.kill()
        harness.wait_until("the group to be empty",
                           lambda: not open(f"{group}/tasks", encoding="ascii").read())
        os.rmdir(group)


if __name__ == "__main__":
    harness.main()
