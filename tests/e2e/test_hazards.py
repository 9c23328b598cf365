"""One test for each row of the list of hazards that programs can provoke, named after its number
and word. The programs verify every byte; the tests reclaim and restore meanwhile."""

import os
import random
import re
import signal
import time

from lib import harness
from lib.ctest import ctest
from lib.harness import E2E, MIB, Churn, Place, rss_anon, wait_until

MEMORY_CGROUP = "/sys/fs/cgroup/memory"


@ctest("hazard", "e2e e2e_san")
class Hazard(E2E):
    def start(self, program, row, *more, resident_max=None, name=None):
        client = self.client([Place.program(program), f"--row={row}", f"--seed={self.seed}", *more],
                             resident_max, name)
        return client

    def churned(self, row, *more, seconds=6, resident_max=None, restore_every=3):
        """Work of tests/programs/hazards/hazards_memory.cc with reclaim (and restore) running against it."""
        client = self.start("hazards_memory", row, *more, resident_max=resident_max)
        client.expect("ready")
        churn = Churn(self, client.pid, restore_every)
        churn.start()
        end = time.monotonic() + seconds
        # A run proves nothing before a page was out, and that may take a while here.
        late = end + harness.slower(30)
        while client.poll() is None and time.monotonic() < (end if churn.pages else late):
            time.sleep(0.1)
        churn.stop()
        client.close_input()
        client.expect("done", 120)
        self.assertEqual(client.wait(), 0, client.stderr())
        print(f"{churn.rounds} reclaims took out {churn.pages} pages")
        self.assertGreater(churn.pages, 0)
        return self.finish_daemon()

    def test_01_event_order(self):
        self.churned(1)

    def test_02_unregister(self):
        self.churned(2, restore_every=1)

    def test_03_move_unregistered(self):
        self.churned(3)

    def test_04_staging_only_copy(self):
        rng = random.Random(self.seed)
        for n in range(8):
            # Everything that inherits the output has ended when the output ends.
            client = self.start("hazards_fork", 4, "--mb=24", f"--delay_ms={rng.randrange(1, 60)}",
                                name=f"generations{n}")
            client.expect("ready")
            while self.cli("reclaim", "--client", f"generations{n}", "--bytes",
                           "8M").returncode == 0:
                pass
            client.expect("done", 60)
            self.assertEqual(client.finish(), 0)
            self.assertEqual(client.stderr(), b"")
        self.finish_daemon()

    def test_06_fork_fd(self):
        """Kill -9 of the daemon under its keeper, with pages of a parent and of its forked child out:
        the next daemon serves both, and nobody reads zeros."""
        self.daemon.stop()
        self.daemons.clear()
        self.daemon = self.start_daemon(self.SETTINGS, name="kept", keeper=True)
        client = self.start("hazards_fork", 6, "--mb=16")
        client.expect("ready")
        self.assertGreater(self.reclaim(client.pid), 3500)
        client.send("fork")
        child = int(client.line().split()[1])
        self.addCleanup(self.kill_quietly, child)
        os.kill(self.stats()["daemon"]["pid"], signal.SIGKILL)
        os.kill(child, signal.SIGUSR1)
        client.send("verify")
        self.assertEqual({client.line(), client.line()}, {"ok", "child ok"}, client.stderr())
        client.close_input()
        self.assertEqual(client.wait(), 0, client.stderr())
        self.assertEqual(self.stats()["daemon"]["restarts"], 1)
        self.finish_daemon()

    def kill_quietly(self, pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def test_07_hup_not_death_leader(self):
        client = self.start("hazards_fork", 7, "--how=leader", "--mb=16", name="relative")
        client.expect("ready")
        self.assertGreater(self.reclaim(client.pid), 3500)
        client.send("go")
        client.expect("done", 60)
        client.finish()
        self.assertEqual(client.stderr(), b"")
        self.finish_daemon()

    def test_07_hup_not_death_agent(self):
        client = self.start("hazards_fork", 7, "--how=agent", "--mb=16")
        client.expect("ready")
        self.assertGreater(self.reclaim(client.pid, "--bytes", "8M"), 1500)
        client.ask("filter", "filtered")
        self.cli("reclaim", "--client", str(client.pid), "--everything")
        wait_until("the client to be agentless",
                   lambda: self.row(client.pid)["state"] == "agentless")
        client.send("go")
        client.expect("done", 60)
        self.assertEqual(client.finish(), 0)
        self.finish_daemon()

    def test_09_thread_exit(self):
        client = self.start("hazards_thread", 9)
        for _ in range(6):
            client.expect("round", 30)
            self.assertGreater(self.reclaim(client.pid), 4000)
            client.send("go")
        client.expect("done", 30)
        self.assertEqual(client.finish(), 0)
        self.finish_daemon()

    def test_10_window_enoent(self):
        self.churned(10, restore_every=0)

    def test_11_raw_agent(self):
        client = self.start("hazards_thread", 11)
        client.expect("ready")
        self.assertGreater(self.reclaim(client.pid), 4000)
        client.send("go")
        client.expect("main leaves", 30)
        client.expect("done", 30)
        self.assertEqual(client.finish(30), 0)
        self.finish_daemon()

    def test_12_discards_without_event(self):
        self.churned(12)

    def test_13_split_mremap(self):
        self.churned(13, resident_max="24M", restore_every=0)

    def test_14_lock_holder_stopped(self):
        """One client is stopped at random moments; it delays itself alone."""
        good = self.client([Place.program("sweep"), "--mb=16", "--until_eof=1", "--order=random"],
                           "8M", name="good")
        good.expect("populated")
        client = self.start("hazards_thread", 14, "--mb=16")
        client.expect("ready")
        churn = Churn(self, client.pid, restore_every=0)
        churn.start()
        rng = random.Random(self.seed)
        for n in range(40):
            time.sleep(rng.random() * 0.05)
            os.kill(client.pid, signal.SIGSTOP)
            if n % 8 == 0:
                faults = self.row(good.pid)["faults"]
                wait_until("the other client to go on",
                           lambda: self.row(good.pid)["faults"] > faults, 10)
            else:
                time.sleep(rng.random() * 0.1)
            os.kill(client.pid, signal.SIGCONT)
        churn.stop()
        for one in (client, good):
            one.close_input()
            one.expect("done")
            self.assertEqual(one.wait(), 0, one.stderr())
        self.finish_daemon()

    def test_14_stopped_client_delays_itself_alone(self):
        """Orders that concern a stopped client too are answered, and carried out for the others."""
        clients = []
        for name in ("stopped", "running"):
            clients.append(self.client([Place.program("holder"), "--mb=16"], name=name))
            clients[-1].expect("ready")
        stopped, running = clients
        self.assertGreater(self.reclaim("stopped", "--bytes", "8M"), 2000)
        os.kill(stopped.pid, signal.SIGSTOP)
        result = self.cli("reclaim", "--all", seconds=20)
        self.assertEqual(result.returncode, 1, "not all that was asked for was possible")
        self.assertGreater(self.row(running.pid)["evicted_pages"], 3500)
        self.assertGreaterEqual(int(result.stdout), 3500)
        running.ask("verify")
        os.kill(stopped.pid, signal.SIGCONT)
        for client in clients:
            client.ask("verify")
            self.assertEqual(client.finish(), 0)
        self.finish_daemon()

    def test_15_memcg_limit(self):
        """Budget just under the limit of the program's own cgroup: COPY must not get it killed."""
        if not os.path.exists(f"{MEMORY_CGROUP}/memory.limit_in_bytes"):
            self.skipTest(f"no cgroup v1 memory controller at {MEMORY_CGROUP}")
        group = f"{MEMORY_CGROUP}/foldswap-e2e-{os.getpid()}"
        os.mkdir(group)
        self.addCleanup(self.remove_cgroup, group)
        with open(f"{group}/memory.limit_in_bytes", "w", encoding="ascii") as f:
            f.write(str(64 * MIB))
        enter = f'echo $$ > {group}/cgroup.procs && exec "$0" "$@"'
        client = self.plain(["/bin/sh", "-c", enter, *self.client_command(
            [Place.program("sweep"), "--mb=128", "--passes=3", "--pace_pages=8",
             "--kind=heap"], "63M",
            options=("--require",))])
        client.expect("populated", 120)
        client.expect(f"done {128 * 256 * 3}", 120)
        self.assertEqual(client.finish(), 0, client.stderr())
        with open(f"{group}/memory.oom_control", encoding="ascii") as f:
            killed = re.search(r"oom_kill (\d+)", f.read())
        self.assertEqual(killed.group(1), "0")
        self.assert_worked(self.finish_daemon())

    def remove_cgroup(self, group):
        for proc in self.procs:
            proc.kill()
        wait_until("the cgroup to be empty",
                   lambda: not open(f"{group}/cgroup.procs", encoding="ascii").read())
        os.rmdir(group)

    def test_16_quarantine(self):
        stats = self.churned(16)
        self.assertEqual(stats["faults"]["poisoned"], 0)

    def test_18_lost_wakeups(self):
        stats = self.churned(18, restore_every=0, seconds=8)
        self.assertGreater(stats["faults"]["total"], 1000)

    def test_20_owner_seal(self):
        client = self.start("hazards_fork", 20, "--mb=16")
        for _ in range(4):
            client.expect("round")
            self.assertGreater(self.reclaim(client.pid), 3500)
            client.send("go")
        client.expect("done")
        self.assertEqual(client.finish(), 0)
        self.finish_daemon()

    def test_21_mlockall(self):
        client = self.start("hazards_thread", 21, "--mb=16")
        for _ in range(3):
            client.expect("unlocked")
            self.assertGreater(self.reclaim(client.pid), 3500)
            client.send("go")
            client.expect("locked", 30)
            self.assertEqual(self.row(client.pid)["evicted_pages"], 0)
            self.assertEqual(self.reclaim(client.pid), 0, "locked memory was evicted")
            client.send("go")
        client.expect("unlocked")
        client.send("go")
        client.expect("done")
        self.assertEqual(client.finish(), 0)
        self.finish_daemon()


@ctest("hazard", "e2e e2e_san")
class DefaultQuarantine(E2E):
    SETTINGS = {}

    def test_16_quarantine_time(self):
        """With the default of 30 s a removed range stays in after `--everything`, and is
        counted."""
        client = self.client([Place.program("holder"), "--mb=32", "--kind=heap"])
        client.expect("ready")
        self.assertGreater(self.reclaim(client.pid), 7500)
        client.ask("discard")
        wait_until("the quarantine to be counted",
                   lambda: self.stats()["evict"]["quarantined"] >= 2048, 10)
        before = rss_anon(client.pid)
        self.reclaim(client.pid)
        after = rss_anon(client.pid)
        print(f"resident {before / MIB:.1f} MiB, after reclaim {after / MIB:.1f} MiB")
        self.assertGreaterEqual(after, 8 * MIB, "pages in quarantine were evicted")
        self.assertLess(self.row(client.pid)["evicted_pages"], 32 * 256 - 2048 + 256)
        client.ask("verify")
        # A wait that ends: with no time left and all threads seen asleep, the range can go.
        self.cli_ok("set", "evict.quarantine_s", "0")

        def all_out():
            self.reclaim(client.pid)
            return rss_anon(client.pid) < 3 * MIB

        wait_until("the quarantine to end", all_out, 20)
        client.ask("verify")
        self.assertEqual(client.finish(), 0)
        self.finish_daemon()


if __name__ == "__main__":
    harness.main()
