"""Forked children as clients: each has an agent of its own and is evicted like any other, while what
it shares with its relatives is neither copied nor lost. Every process verifies every byte."""

import os

from lib import harness
from lib.ctest import ctest
from lib.harness import E2E, MIB, Churn, Place, rss_anon, status_kib, wait_until

PAGES = 32 * 256  # of tests/programs/plain/family.cc


@ctest("fork", "e2e e2e_san")
class Fork(E2E):
    def family(self, *more, resident_max=None, name="family"):
        first = self.client([Place.program("family"), f"--seed={self.seed}", *more], resident_max,
                            name=name)
        first.expect("ready")
        return first

    def number(self, member, command):
        member.send(command)
        answer = member.line()
        self.assertRegex(answer, r"^\d+$")
        return int(answer)

    def fork(self, member, path=""):
        """A child that has become a client: its pid."""
        pid = self.number(member, path + "fork")
        self.await_agent(pid)
        return pid

    def await_agent(self, pid):
        wait_until(f"process {pid} to be a client",
                   lambda: [c["state"] for c in self.clients() if c["pid"] == pid] == ["active"],
                   20)

    def end(self, member):
        member.send("quit")
        member.expect("bye")
        self.assertEqual(member.finish(), 0, member.stderr())
        return self.finish_daemon()

    def test_child_is_evicted_like_any_client(self):
        first = self.family()
        self.assertGreater(self.reclaim(first.pid), PAGES * 9 // 10)
        child = self.fork(first)
        # Both read everything, so both have pages of their own.
        first.ask("verify")
        first.ask("at 0 verify")
        self.assertGreater(rss_anon(child), 30 * MIB)
        self.assertGreater(self.reclaim(child), PAGES * 9 // 10)
        self.assertLess(rss_anon(child), 3 * MIB)
        self.assertGreater(rss_anon(first.pid), 30 * MIB, "the parent was evicted with its child")
        self.assertEqual(self.row(child)["name"], "family")
        first.ask("at 0 verify")
        first.ask("at 0 write 500")
        self.assertGreater(self.reclaim(child), PAGES // 2)
        self.assertGreater(self.reclaim(first.pid), PAGES // 2)
        self.check_conservation(quiet=False)
        first.ask("at 0 verify")
        first.ask("verify")
        self.end(first)

    def test_budget_is_inherited(self):
        first = self.family(resident_max="12M")
        self.reclaim(first.pid)  # what is resident at the fork is shared, and could not leave
        self.fork(first)
        first.ask("at 0 verify")
        child = self.clients()[1]
        self.assertEqual(child["resident_max_bytes"], 12 * MIB)
        wait_until("the child to be within its budget",
                   lambda: rss_anon(child["pid"]) < 13 * MIB, 30)
        first.ask("at 0 verify")
        first.ask("verify")
        self.assert_worked(self.end(first))

    def test_child_of_an_unregistered_parent(self):
        """Nothing was registered, so there was no event: the child registers like a fresh process."""
        first = self.family()
        child = self.fork(first)
        first.ask("at 0 write 8192")
        self.assertGreater(self.reclaim(child), PAGES // 2)
        first.ask("at 0 verify")
        first.ask("verify")
        self.end(first)

    def test_grandchildren(self):
        first = self.family()
        self.reclaim(first.pid)
        path = ""
        for _ in range(4):
            # At once, before the child has said anything of itself.
            first.send(path + "fork")
            self.assertRegex(first.line(), r"^\d+$")
            path += "at 0 "
        wait_until("five clients", lambda: [c["state"] for c in self.clients()] == ["active"] * 5)
        for depth in range(5):
            first.ask("at 0 " * depth + "write 200")
        self.cli("reclaim", "--all")
        for depth in range(5):
            first.ask("at 0 " * depth + "verify")
        self.check_conservation(quiet=False)
        self.end(first)

    def test_raw_clone_is_served(self):
        first = self.family()
        self.assertGreater(self.reclaim(first.pid), PAGES * 9 // 10)
        child = self.number(first, "rawfork")
        first.ask("at 0 verify")
        first.ask("at 0 write 300")
        first.ask("at 0 verify")
        self.assertEqual([c["state"] for c in self.clients() if c["pid"] == child], ["agentless"])
        # Its own child by fork() has nothing to go by either, and is served.
        first.send("at 0 fork")
        self.assertRegex(first.line(), r"^\d+$")
        first.ask("at 0 at 0 verify")
        first.ask("verify")
        self.end(first)

    @ctest(labels="e2e")
    def test_many_threads_at_once(self):
        first = self.family()
        churn = Churn(self, first.pid, restore_every=0)
        churn.start()
        first.ask("storm 8 40", seconds=240)
        churn.stop()
        self.assertGreater(churn.pages, 0)
        first.ask("verify")
        self.end(first)

    def test_batch_in_flight(self):
        """Forks while the agent moves: what a batch has taken reaches the children, too."""
        first = self.family()
        churn = Churn(self, "family", restore_every=4)
        churn.start()
        for i in range(40):
            self.number(first, "fork")
            first.ask(f"at {i} write 300")
            first.ask(f"at {i} verify")
            first.ask("write 300")
            if i % 8:
                first.ask(f"end {i}")
        churn.stop()
        print(f"{churn.rounds} reclaims took out {churn.pages} pages")
        self.assertGreater(churn.pages, 2000)
        first.ask("verify")
        for i in range(0, 40, 8):
            first.ask(f"at {i} verify")
        self.end(first)

    @ctest(labels="e2e")
    def test_child_that_ends_at_once(self):
        first = self.family()
        self.reclaim(first.pid)
        first.ask("brief 60")
        wait_until("the children to be forgotten", lambda: len(self.clients()) == 1)
        first.ask("verify")
        self.end(first)

    @ctest(labels="e2e")
    def test_fork_in_a_signal_handler(self):
        first = self.family()
        self.reclaim(first.pid)
        first.ask("inherit", seconds=120)
        first.ask("verify")
        self.end(first)

    @ctest(labels="e2e")
    def test_shared_pages_stay_shared(self):
        """What a live relative maps, too, is neither evicted nor copied."""
        first = self.family("--kind=heap")
        child = self.fork(first)
        before = status_kib(first.pid, "RssAnon") + status_kib(child, "RssAnon")
        pss = self.pss(first.pid) + self.pss(child)
        for _ in range(3):
            self.assertLess(self.reclaim(first.pid), 600)
        self.assertGreater(status_kib(first.pid, "RssAnon") + status_kib(child, "RssAnon"),
                           before - 4 * MIB, "shared pages left")
        self.assertLess(self.pss(first.pid) + self.pss(child), pss + 3 * MIB, "pages were copied")
        self.assertGreater(self.stats()["evict"]["shared"], PAGES // 2)
        first.ask("at 0 verify")
        first.ask("verify")
        self.end(first)

    @ctest(labels="e2e")
    def test_shared_pages_are_renewed(self):
        """When the relative is gone they can leave: by themselves MOVE would refuse them for ever."""
        first = self.family("--kind=heap")
        self.fork(first)
        self.assertLess(self.reclaim(first.pid), 600)
        first.ask("end 0")
        self.assertGreater(self.reclaim(first.pid), PAGES * 9 // 10)
        self.assertLess(rss_anon(first.pid), 3 * MIB)
        first.ask("verify")
        self.end(first)

    def pss(self, pid):
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as f:
            return next(int(line.split()[1]) * 1024 for line in f if line.startswith("Pss:"))

    @ctest(labels="e2e")
    def test_child_after_the_daemon_was_drained(self):
        first = self.family()
        self.reclaim(first.pid)
        self.cli_ok("drain")
        self.number(first, "fork")
        first.ask("at 0 verify")
        first.ask("at 0 write 200")
        first.ask("verify")
        self.cli_ok("resume")
        self.assertGreater(self.reclaim(first.pid), 0)
        first.ask("at 0 verify")
        first.ask("verify")
        self.end(first)


@ctest("fork", "e2e")
class ForkQuota(E2E):
    SETTINGS = {"evict.quarantine_s": "0", "quota.clients_per_user": "2"}

    def test_child_over_the_quota_is_served(self):
        """It may not register, but it never reads a wrong byte."""
        first = self.client([Place.program("family"), f"--seed={self.seed}"])
        first.expect("ready")
        self.reclaim(first.pid)
        for i in range(4):
            first.send("fork")
            self.assertRegex(first.line(), r"^\d+$")
            first.ask(f"at {i} verify")
        first.ask("verify")
        first.send("quit")
        first.expect("bye")
        self.assertEqual(first.finish(), 0)
        self.finish_daemon()


if __name__ == "__main__":
    os.environ.setdefault("PYTHONHASHSEED", "0")
    harness.main()
