"""Clients whose threads discard memory without a pause, so that no page can be put back while they
run. They are stopped for a moment, and must not see it (HAZARDS 5); and if somebody else traces
them, so that nobody can stop them, it must go on all the same (HAZARDS 39)."""

import re

from lib import harness
from lib.ctest import ctest
from lib.harness import E2E, Churn, Place, wait_until


class Traced(E2E):
    SETTINGS = {"evict.quarantine_s": "1", "log.level": "debug"}

    def command(self, *more):
        return [Place.program("churn_traced"), f"--seed={self.seed}", *more]

    def start_in_gdb(self, *more, resident_max=None):
        """The debugger starts `foldswap run`, which becomes the program."""
        command = self.client_command(self.command(*more), resident_max, "traced", ("--require",))
        return self.plain(["gdb", "-q", "-nx", "-batch", "-iex", "set startup-with-shell off",
                           "-iex", "set auto-load no", "-iex", "set debuginfod enabled off",
                           "-ex", "handle SIGUSR1 nostop noprint pass", "-ex", "run", "--args",
                           *command])

    def wait_for_client(self):
        return wait_until("the client", lambda: [c for c in self.clients()
                                                 if c["name"] == "traced"])[0]["pid"]

    def finish_in_gdb(self, gdb):
        try:
            gdb.finish(120)
        finally:
            print(gdb.stderr().decode(errors="replace"))
        output = gdb.output.decode(errors="replace")
        self.assertIn("done", output)
        self.assertIn("exited normally", output)
        self.assert_worked(self.finish_daemon())

    def run_in_gdb(self, *more):
        """By a budget, and so again and again."""
        self.finish_in_gdb(self.start_in_gdb(*more, resident_max="4M"))

    def run_in_gdb_reclaimed(self, *more):
        gdb = self.start_in_gdb(*more)
        while b"ready" not in gdb.output:
            gdb.line()
        self.assertGreater(self.reclaim(self.wait_for_client()), 1500)
        self.finish_in_gdb(gdb)


@ctest("hazard", "e2e")
class Hazard(Traced):
    def test_39_traced_threads(self):
        self.run_in_gdb()

    def test_39_traced_threads_reclaimed(self):
        self.run_in_gdb_reclaimed()

    def test_39_traced_many_pages(self):
        self.run_in_gdb("--own=60")

    def test_39_traced_many_pages_reclaimed(self):
        self.run_in_gdb_reclaimed("--own=60")

    def test_39_traced_apart(self):
        self.run_in_gdb("--apart=1", "--mb=32", "--own=500")

    def test_39_traced_movers(self):
        """Others move memory, and are held back for moments only."""
        self.run_in_gdb("--movers=2")

    def test_39_traced_movers_reclaimed(self):
        self.run_in_gdb_reclaimed("--movers=2")

    def test_39_traced_later(self):
        """The debugger comes when it has begun."""
        client = self.client(self.command("--reads=400", "--bound_s=20"), name="traced")
        client.expect("ready")
        gdb = self.plain(["gdb", "-q", "-nx", "-batch", "-iex", "set auto-load no", "-iex",
                          "set debuginfod enabled off", "-p", str(client.pid), "-ex", "continue"])
        wait_until("the debugger", lambda: self.tracer(client.pid) == gdb.pid)
        self.assertGreater(self.reclaim(client.pid), 1500)
        client.expect("done", 60)
        self.assertEqual(client.finish(), 0, client.stderr())
        gdb.finish()
        self.assert_worked(self.finish_daemon())

    @staticmethod
    def tracer(pid):
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as f:
            return int(re.search(r"TracerPid:\s+(\d+)", f.read()).group(1))


@ctest("stopped_calls", "e2e")
class Calls(Traced):
    """Threads asleep in system calls see a stop no more than the others do."""

    def stops(self):
        return self.daemon.log().count("its threads are stopped")

    def run_calls(self, *more, resident_max=None):
        client = self.client(self.command("--how=calls", "--reads=1500", *more), resident_max,
                             name="traced")
        client.expect("ready")
        if resident_max is None:
            self.assertGreater(self.reclaim(client.pid), 1500)
        churn = Churn(self, client.pid, restore_every=0)
        client.expect("signals", 60)
        before = self.stops()
        churn.start()
        client.expect("done", 120)
        churn.stop()
        self.assertEqual(client.finish(), 0, client.stderr())
        print(f"stopped {before} times, and {self.stops() - before} times with signals")
        self.assertGreater(before, 0, "nothing was stopped")
        self.assert_worked(self.finish_daemon())

    def test_go_on(self):
        self.run_calls(resident_max="4M")

    def test_go_on_reclaimed(self):
        self.run_calls()

    def test_go_on_many_pages(self):
        self.run_calls("--own=60", resident_max="4M")


if __name__ == "__main__":
    harness.main()
