"""Programs behave as without us: whatever a program can see of itself is the same."""

import os
import subprocess
import time

from lib import harness
from lib.ctest import ctest
from lib.harness import E2E, Churn, Place

# A sanitized command line may not have anything preloaded before its run-time.
NOT_SANITIZED = "e2e"


@ctest("e2e_behaviour", "e2e quick", load="light")
class Behaviour(E2E):
    # Modes of tests/programs/plain/behave.cc that talk: at each "ready" the test evicts everything, then lets
    # them go on.
    def behave(self, mode, *more, answers=0, evict=True, seconds=60):
        command = [Place.program("behave"), mode, *more]
        runs = []
        for run in (self.plain, self.client):
            proc = run(command)
            for _ in range(answers):
                self.skip_to_ready(proc)
                if run == self.client and evict:
                    self.assertGreater(self.reclaim(proc.pid), 1000)
                proc.send("go")
            proc.finish(seconds)
            runs.append(proc)
        self.assert_same(*runs)
        return runs

    def skip_to_ready(self, proc):
        while proc.line() != "ready":
            pass

    def test_descriptors(self):
        self.behave("list_fds")
        self.finish_daemon()

    def test_signal_state(self):
        self.behave("signal_state")
        self.finish_daemon()

    def test_environment(self):
        self.behave("environment")
        self.finish_daemon()

    def test_outputs(self):
        plain, _ = self.behave("outputs")
        self.assertEqual(plain.code, 42)
        self.finish_daemon()

    def test_abort(self):
        plain, _ = self.behave("abort")
        self.assertLess(plain.code, 0)
        self.finish_daemon()

    def test_exec_chain(self):
        plain, client = self.behave("exec_chain", "5", answers=1)
        self.assertEqual(plain.code, 7)
        self.assertIn(b"same pid", client.output)
        self.finish_daemon()

    def test_close_all(self):
        self.behave("close_all", answers=1)
        self.finish_daemon()

    @ctest(labels="e2e e2e_san quick")
    def test_become_nobody(self):
        self.behave("become_nobody", answers=1)
        self.finish_daemon()

    def test_block_signals(self):
        self.behave("block_signals", answers=1)
        self.finish_daemon()

    def test_main_leaves(self):
        self.behave("main_leaves", answers=1)
        self.finish_daemon()

    @ctest(labels="e2e e2e_san quick")
    def test_spawn_children(self):
        self.behave("spawn_children", answers=1)
        self.finish_daemon()

    @ctest(labels="e2e e2e_san quick")
    def test_signal_stack(self):
        self.behave("signal_stack", answers=2, evict=True)
        self.finish_daemon()

    @ctest(labels="e2e e2e_san quick")
    def test_forks(self):
        self.behave("forks", answers=1)
        self.finish_daemon()

    @ctest(labels="e2e e2e_san quick")
    def test_thread_churn(self):
        plain = self.run_plain([Place.program("behave"), "thread_churn"])
        client = self.client([Place.program("behave"), "thread_churn"])
        churn = Churn(self, client.pid)
        churn.start()
        client.finish(120)
        churn.stop()
        self.assert_same(plain, client)
        self.finish_daemon()

    @ctest(labels=NOT_SANITIZED)
    def test_alloc_churn(self):
        plain = self.run_plain([Place.program("behave"), "alloc_churn"])
        client = self.client([Place.program("behave"), "alloc_churn"])
        churn = Churn(self, client.pid)
        churn.start()
        client.finish(240)
        churn.stop()
        self.assert_same(plain, client)
        self.finish_daemon()

    @ctest(labels=NOT_SANITIZED)
    def test_exit_at_once(self):
        for _ in range(20):
            self.assertEqual(self.run_client([Place.program("behave"), "exit_at_once"]).code, 9)
        script = "i=0; while [ $i -lt 500 ]; do /bin/true || exit 1; i=$((i+1)); done; echo all"
        client = self.run_client(["/bin/sh", "-c", script])
        self.assertEqual((client.code, client.output), (0, b"all\n"))
        self.finish_daemon()

    def test_exit_status_of_run(self):
        for command, code in ((["/bin/sh", "-c", "exit 3"], 3), (["/nonexistent/program"], 127),
                              ([self.tmp], 126)):
            self.assertEqual(self.run_client(command, options=()).code, code, command)
        killed = self.client(["/bin/sh", "-c", "kill -9 $$"])
        self.assertEqual(killed.finish(), -9)
        self.finish_daemon()

    @ctest(labels=NOT_SANITIZED)
    def test_preload_is_appended(self):
        environment = harness.clean_environment()
        environment["LD_PRELOAD"] = "libpthread.so.0"
        shown = self.client(["/usr/bin/env"], env=environment)
        shown.finish()
        line = next(line for line in shown.output.decode().splitlines()
                    if line.startswith("LD_PRELOAD="))
        self.assertTrue(line.startswith("LD_PRELOAD=libpthread.so.0"), line)
        self.assertIn("libfoldswap.so", line)
        self.finish_daemon()

    def test_disabled(self):
        environment = harness.clean_environment()
        environment["FOLDSWAP_DISABLE"] = "1"
        proc = self.client([Place.program("holder"), "--mb=1"], options=(), env=environment)
        proc.expect("ready")
        self.assertEqual(self.clients(), [])
        self.assertEqual(proc.finish(), 0)
        self.assertEqual(proc.stderr(), b"")
        self.finish_daemon()

    @ctest(labels="e2e", load="alone")
    def test_idle_client_uses_no_cpu(self):
        """Idle means idle: no tick of CPU time in the client's own agent while nothing is asked of
        it."""
        client = self.client([Place.program("holder"), "--mb=16"])
        client.expect("ready")
        self.reclaim(client.pid)
        time.sleep(1)
        before = self.cpu_ticks(client.pid)
        time.sleep(3)
        self.assertLessEqual(self.cpu_ticks(client.pid) - before, 2)
        client.ask("verify")
        self.assertEqual(client.finish(), 0)
        self.finish_daemon()

    def cpu_ticks(self, pid):
        with open(f"/proc/{pid}/stat", encoding="ascii") as f:
            fields = f.read().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    def test_unprivileged_client(self):
        """A program of an ordinary user becomes a client; the user may not command the daemon."""
        nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        client = self.plain([*nobody, *self.client_command([Place.program("holder"), "--mb=32"],
                                                           options=("--require",))])
        client.expect("ready")
        self.assertEqual(self.row(client.pid)["uid"], 65534)
        self.assertGreater(self.reclaim(client.pid), 7000)
        client.ask("verify")
        refused = subprocess.run([*nobody, Place.binary("foldswap"), "--runtime-dir",
                                  self.daemon.dir, "drain"],
                                 capture_output=True, check=False, env=harness.clean_environment())
        self.assertEqual(refused.returncode, 1, refused.stderr)
        client.ask("verify")
        self.assertEqual(client.finish(), 0)
        self.assertTrue(os.path.isdir(self.daemon.dir))
        self.finish_daemon()


if __name__ == "__main__":
    harness.main()
