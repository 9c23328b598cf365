"""Budgets: RssAnon comes under --resident-max and stays there, whatever the program does."""

import time

from lib import harness
from lib.ctest import ctest
from lib.harness import E2E, MIB, Place, RssSampler, rss_anon, wait_until

BUDGET = 48 * MIB
ALLOWED = BUDGET * 105 // 100 + 4 * MIB


@ctest("e2e_budget", "e2e", load="alone")
class Budget(E2E):
    def sweep(self, order, kind, mb=96, passes=4):
        """Twice the budget, swept several times. Judged from the first moment after the first fill
        at which RssAnon was within the budget; that moment has to come."""
        client = self.client([Place.program("sweep"), f"--mb={mb}", "--passes=1000000",
                              "--until_eof=1",
                              f"--order={order}", f"--kind={kind}", f"--seed={self.seed}"], BUDGET)
        client.expect("populated")
        sampler = RssSampler(client.pid)
        sampler.start()
        wait_until("RssAnon within the budget",
                   lambda: any(value <= BUDGET for _, value in sampler.samples), 30)
        faults = self.stats()["faults"]["total"]
        wanted = faults + passes * mb * 256 // 4
        time.sleep(4)
        wait_until("some passes", lambda: self.stats()["faults"]["total"] > wanted, 60, every=0.5)
        sampler.stop()
        client.close_input()
        client.expect("done")
        self.assertEqual(client.wait(), 0)
        values = [value for _, value in sampler.samples]
        first = next(n for n, value in enumerate(values) if value <= BUDGET)
        worst = max(values[first:])
        print(f"{len(values)} samples, at most {worst / MIB:.1f} MiB of {BUDGET / MIB:.0f}")
        self.assertGreater(len(values) - first, 10)
        self.assertLessEqual(worst, ALLOWED)
        self.assert_worked(self.finish_daemon())

    def test_sequential_compressible(self):
        self.sweep("sequential", "heap")

    @ctest(labels="nightly", minutes=1)
    def test_sequential_incompressible(self):
        self.sweep("sequential", "random")

    @ctest(labels="nightly", minutes=1)
    def test_random_compressible(self):
        self.sweep("random", "heap")

    def test_random_incompressible(self):
        self.sweep("random", "random")

    @ctest(labels="e2e e2e_san quick", load="half")
    def test_limit_of_running_client(self):
        client = self.client([Place.program("holder"), "--mb=96"], name="limited")
        client.expect("ready")
        self.assertIsNone(self.row(client.pid)["resident_max_bytes"] or None)
        self.cli_ok("limit", "--client", "limited", "32M")
        self.assertEqual(self.row(client.pid)["resident_max_bytes"], 32 * MIB)
        wait_until("the new budget to be kept", lambda: rss_anon(client.pid) <= 34 * MIB, 30)
        client.ask("verify")
        wait_until("the budget to be kept again", lambda: rss_anon(client.pid) <= 34 * MIB, 30)
        self.cli_ok("limit", "--client", str(client.pid), "none")
        client.ask("verify")
        time.sleep(1)
        self.assertGreater(rss_anon(client.pid), 90 * MIB)
        self.check_conservation()
        self.assertEqual(client.finish(), 0)
        self.finish_daemon()

    def test_inherited_by_exec_and_children(self):
        sweep = f"{Place.program('sweep')} --mb=64 --passes=3"
        inner = f"{sweep} && {sweep}"
        client = self.client(["/bin/sh", "-c", inner], 32 * MIB, name="family")
        client.finish(240)
        self.assertEqual(client.code, 0, client.stderr())
        self.assertEqual(client.output.count(b"done"), 2)
        self.assert_worked(self.finish_daemon())


if __name__ == "__main__":
    harness.main()
