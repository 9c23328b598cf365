"""Memory of which little is used: a page here and there must not use up the program's mappings
(HAZARDS 32), and an ocean must not hide the heap that lies behind it. Every byte is compared."""

from lib import harness
from lib.ctest import ctest
from lib.harness import E2E, MIB, Place, rss_anon, wait_until


def most_mappings():
    with open("/proc/sys/vm/max_map_count", encoding="ascii") as f:
        return int(f.read())


class Sparse(E2E):
    BUDGET = 16 * MIB

    def start(self, shape, *more, resident_max=None):
        client = self.client([Place.program("sparse"), f"--shape={shape}", f"--seed={self.seed}",
                              *more], resident_max)
        client.expect("ready", 120)
        return client

    def mappings(self, client):
        client.send("maps")
        return int(client.line())

    def wait_for_budget(self, client, seconds=10):
        """What is kept back for the library and its staging is a few hundred KiB."""
        try:
            wait_until("the budget to be kept", lambda: rss_anon(client.pid) <= self.BUDGET + MIB,
                       seconds)
        finally:
            print(f"resident: {rss_anon(client.pid) >> 10} KiB")

    def check_mappings(self, client, own=0):
        """Never more than half of what the machine allows, or than it has itself; and so it can
        have more."""
        count = self.mappings(client)
        print(f"{count} mappings of {most_mappings()}")
        self.assertLessEqual(count, max(most_mappings() // 2, own + 100))
        client.ask("more")

    def end(self, client):
        client.close_input()
        client.expect("done", 120)
        self.assertEqual(client.finish(), 0, client.stderr())
        self.assertEqual(client.stderr(), b"")
        self.assert_worked(self.finish_daemon())

    def keep_budget(self, shape, *more, own=0):
        client = self.start(shape, *more, resident_max=self.BUDGET)
        self.wait_for_budget(client)
        self.check_mappings(client, own)
        client.ask("check", seconds=120)
        client.ask("touch", seconds=120)
        self.wait_for_budget(client)
        self.check_mappings(client, own)
        self.end(client)

    def reclaim_first(self, shape, *more, own=0):
        """Everything leaves at once, comes back, and leaves again."""
        client = self.start(shape, *more)
        resident = rss_anon(client.pid) // 4096
        for _ in range(2):
            self.assertGreater(self.reclaim(client.pid), resident * 3 // 4)
            self.check_mappings(client, own)
            client.ask("check", seconds=120)
        self.end(client)


@ctest("hazard", "e2e")
class Hazard(Sparse):
    def test_32_mapping_limit(self):
        self.keep_budget("pages", "--count=40000")

    def test_32_mapping_limit_reclaim(self):
        self.reclaim_first("pages", "--count=40000")

    def test_32_mapping_limit_islands(self):
        self.keep_budget("islands", "--count=12000", "--island=3", "--step_kb=2052")

    def test_32_mapping_limit_apart(self):
        self.keep_budget("apart", "--count=7000", "--step_kb=8192", own=14000)

    def test_32_mapping_limit_apart_reclaim(self):
        self.reclaim_first("apart", "--count=7000", "--step_kb=8192", own=14000)

    def test_32_mapping_limit_of_its_own(self):
        """It has used up half of what there is itself."""
        own = most_mappings() * 6 // 10
        self.keep_budget("pages", "--count=20000", f"--own={own}", own=own)

    def test_32_mapping_limit_of_its_own_reclaim(self):
        own = most_mappings() * 6 // 10
        self.reclaim_first("pages", "--count=20000", f"--own={own}", own=own)

    def few_left(self, leave, **how):
        """Hardly a mapping is left, and it needs one now and then."""
        client = self.start("none", "--slack=60", "--heap_mb=128", **how)
        for _ in range(3):
            leave(client)
            client.ask("work", seconds=120)
        client.ask("check", seconds=120)
        self.end(client)

    def test_32_few_mappings_left(self):
        self.few_left(self.wait_for_budget, resident_max=self.BUDGET)

    def test_32_few_mappings_left_reclaim(self):
        self.few_left(lambda client: self.assertGreater(self.reclaim(client.pid), 4000))


@ctest("sparse", "e2e")
class Ocean(Sparse):
    def test_first(self):
        self.keep_budget("first", "--gib=14336", "--heap_mb=64")

    @ctest(labels="e2e e2e_san")
    def test_first_reclaim(self):
        self.reclaim_first("first", "--gib=14336", "--heap_mb=64")

    def test_last(self):
        self.keep_budget("last", "--gib=14336", "--heap_mb=64")

    def test_last_reclaim(self):
        self.reclaim_first("last", "--gib=14336", "--heap_mb=64")

    def test_around(self):
        self.keep_budget("around", "--gib=16384", "--heap_mb=32")

    @ctest(labels="e2e e2e_san")
    def test_around_reclaim(self):
        self.reclaim_first("around", "--gib=16384", "--heap_mb=32")

    @ctest(labels="e2e e2e_san")
    def test_two_clients(self):
        """The search of one does not keep the other waiting."""
        other = self.start("islands", "--count=64", "--island=1024", resident_max=self.BUDGET)
        client = self.start("around", "--gib=16384", "--heap_mb=32", resident_max=self.BUDGET)
        for one in (other, client):
            self.wait_for_budget(one)
            one.ask("check", seconds=120)
        for one in (other, client):
            self.wait_for_budget(one)
            one.close_input()
            one.expect("done", 120)
            self.assertEqual(one.finish(), 0, one.stderr())
        self.assert_worked(self.finish_daemon())


if __name__ == "__main__":
    harness.main()
