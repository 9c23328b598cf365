"""The memory-eater storm: several programs that each want more than there is, all at once, with the
pool at its limit, while somebody reclaims, restores, changes budgets and the limit itself, and kills
one of them. Every byte is verified, no operation may take long (tests/programs/plain/eater.cc), and nobody may
hold more than two locks: the report that z3fold's end began with was 48 locks held by "memory-eater".

A failure prints its seed: FOLDSWAP_TEST_SEED=N python3 tests/e2e/test_storm.py --build-dir build
Storm.one_minute"""

import random
import re
import signal
import threading
import time

from lib import harness
from lib.ctest import ctest
from lib.disturber import Disturber
from lib.harness import E2E, MIB, Place

# A batch is 64 to 512 pages, and room for two pages each is set aside before it is taken out. So a full
# pool is one that is short of its limit by less than the batches that are tried.
BATCH_MOST = 512 * 8192
TOO_SLOW = 6  # an eater's status
KINDS = ("mixed", "sizes", "mixed", "random", "sizes", "heap")


class StormOrders(Disturber):
    """Orders to one eater or to all of them. Never to set pool.limit: see Gauge."""

    def order(self):
        one = str(self.random.choice(tuple(self.test.eaters)).pid)
        client = self.random.choice((one, one, one, "eater"))
        pick = self.random.randrange(100)
        if pick < 20:
            return ("reclaim", "--client", client, "--everything")
        if pick < 45:
            return ("reclaim", "--client", client, "--bytes", f"{self.random.randrange(1, 32)}M")
        if pick < 48:
            return ("restore", "--client", one, "--hold", "0")
        if pick < 80:
            return ("limit", "--client", client, self.random.choice(self.test.BUDGETS))
        if pick < 90:
            return self.random.choice(
                (("set", "pool.codec", self.random.choice(("lz4", "zstd:1", "raw"))),
                 ("set", "pool.cold_codec", self.random.choice(("none", "zstd:3")))))
        return ("set", "fault.readahead_max", self.random.choice(("1", "8", "64")))


class Gauge(threading.Thread):
    """Watches the pool, and now and then changes its limit, until stop(). Frames may be above the limit
    in force only while they have not been under it since it was lowered."""

    PERIOD = 0.25

    def __init__(self, test, limit, seed, change_every):
        super().__init__(daemon=True)
        self.test = test
        self.ceiling = limit
        self.limits = (limit, limit * 3 // 4, limit * 5 // 4)
        self.random = random.Random(seed)
        self.change_every = change_every
        self.errors = []
        self.samples = self.at_limit = 0
        self.nearest = limit  # the smallest distance between the frames and the limit
        self.resident = 0
        self.stopping = threading.Event()

    def sample(self):
        stats = self.test.stats()
        pool = stats["pool"]
        frames, limit, force = (pool["frame_bytes"], pool["limit_bytes"],
                                pool["limit_in_force_bytes"])
        if frames <= force:
            self.ceiling = force
        if frames > self.ceiling:
            self.errors.append(f"{frames} bytes of frames, and the limit is {limit}, in force {force}, "
                               f"at most it was {self.ceiling} since they were under it")
        if stats["faults"]["poisoned"]:
            self.errors.append(f"{stats['faults']['poisoned']} pages poisoned")
        self.samples += 1
        self.at_limit += limit - frames <= 2 * BATCH_MOST
        if frames <= limit:
            self.nearest = min(self.nearest, limit - frames)
        self.resident = max(self.resident, sum(c["resident_bytes"] for c in stats["clients"]))

    def begin(self):
        """From here on the samples count; what was wrong before stays wrong."""
        self.samples = self.at_limit = 0

    def set_limit(self, limit):
        self.ceiling = max(self.ceiling, limit)
        self.test.cli_ok("set", "pool.limit", str(limit))

    def run(self):
        changed = time.monotonic()
        try:
            while not self.stopping.wait(self.PERIOD):
                self.sample()
                if time.monotonic() - changed > self.change_every:
                    changed = time.monotonic()
                    self.set_limit(self.random.choice(self.limits))
        except AssertionError as error:  # the command failed, or did not end in time
            self.errors.append(str(error))

    def stop(self):
        self.stopping.set()
        self.join()


@ctest("storm", "e2e slow", load="alone")
class Storm(E2E):
    LIMIT = 32 * MIB
    SETTINGS = {"evict.quarantine_s": "0", "pool.limit": str(LIMIT)}
    COUNT = 6
    BUDGETS = ("8M", "4M", "16M", "32M")

    def start_eater(self, seconds, watchdog_ms):
        """It eats until its input ends; for twice the test's time at most."""
        self.started += 1
        self.eaters.append(self.client(
            [Place.program("eater"), "--mb=64", "--threads=2", f"--watchdog_ms={watchdog_ms}",
             f"--seconds={2 * seconds + 600}", f"--seed={self.seed + self.started}",
             f"--kind={KINDS[self.started % len(KINDS)]}"], self.BUDGETS[0], name="eater"))

    def storm(self, seconds, watchdog_ms, least):
        """The budgets are an eighth of what the eaters want, and the pool can hold a fifth or so."""
        self.started = 0
        self.eaters = []
        for _ in range(self.COUNT):
            self.start_eater(seconds, watchdog_ms)
        orders = StormOrders(self, "eater", self.seed)
        gauge = Gauge(self, self.LIMIT, self.seed, change_every=min(10, seconds / 20))
        gauge.start()
        orders.start()
        try:
            for eater in self.eaters:
                eater.expect("filled", 120)
            gauge.begin()
            self.kill_now_and_then(seconds, watchdog_ms)
            for eater in self.eaters:
                eater.close_input()
            lines = [eater.line(120) for eater in self.eaters]
        finally:
            orders.stop()
            gauge.stop()
        for eater in self.eaters:
            self.assertEqual(eater.wait(60), 0)
        gauge.set_limit(max(gauge.limits))
        self.report(lines, gauge, orders, least)

    def kill_now_and_then(self, seconds, watchdog_ms):
        """At least once, in the middle; somebody else comes in its place."""
        chance = random.Random(self.seed)
        times = max(1, seconds // 60)
        for _ in range(times):
            time.sleep(seconds / times / 2)
            victim = self.eaters.pop(chance.randrange(self.COUNT))
            self.assertIsNone(victim.poll(), "an eater ended by itself: "
                              f"{victim.code}: {victim.stderr().decode(errors='replace')}")
            victim.kill()
            self.assertEqual(victim.code, -signal.SIGKILL)
            self.start_eater(seconds, watchdog_ms)
            self.eaters[-1].expect("filled", 120)
            time.sleep(seconds / times / 2)

    def report(self, lines, gauge, orders, least):
        """Checks what was seen, and tells it."""
        self.assertEqual(gauge.errors, [])
        self.assertIn("the pool is full", self.daemon.log())
        stats = self.finish_daemon()
        held = stats["daemon"]["held_locks_max"]
        longest = max(lines, key=lambda line: int(re.search(r"operation (\d+) us", line)[1]))
        operations = sum(int(re.search(r"(\d+) operations", line)[1]) for line in lines)
        slow = sum(int(re.search(r"(\d+) over 1 s", line)[1]) for line in lines)
        faults = stats["faults"]
        print(f"seed {self.seed}: {operations} operations, {slow} over 1 s, "
              f"{longest.split(',')[0]}; {stats['evict']['pages']} pages evicted, "
              f"{faults['total']} faults ({faults['rescued']} rescued), "
              f"latency {faults['latency_us']}; {orders.orders} orders, {orders.pages} reclaimed; "
              f"pool at its limit in {gauge.at_limit} of {gauge.samples} samples, as near as "
              f"{gauge.nearest} bytes; together up to {gauge.resident >> 20} MiB resident; "
              f"at most {held} locks held", flush=True)
        self.assertLessEqual(1, held)
        self.assertLessEqual(held, 2, "locks held at once by one thread")
        if not Place.sanitized:  # that one fills the pool more slowly than the eaters empty it
            self.assertGreater(gauge.at_limit, gauge.samples // 2, "the pool had room for long")
            self.assertLessEqual(gauge.nearest, BATCH_MOST, "the pool was never full")
        self.assertGreater(stats["evict"]["pages"], least, "nothing to speak of was evicted")
        self.assertGreater(stats["faults"]["total"], least, "nothing to speak of was faulted in")

    @ctest(labels="e2e", load="half")
    def test_watchdog(self):
        """An eater whose faults nobody answers says so and ends, whatever of it is out."""
        self.started, self.eaters = 0, []
        self.start_eater(60, 1_000)
        eater = self.eaters[0]
        eater.expect("filled", 120)
        self.daemon.popen.send_signal(signal.SIGSTOP)
        try:
            self.assertEqual(eater.wait(60), TOO_SLOW)
        finally:
            self.daemon.popen.send_signal(signal.SIGCONT)
        self.assertIn(b"TOO SLOW: thread", eater.stderr())
        self.finish_daemon()

    def test_one_minute(self):
        """A busy machine starves the daemon for half a second and more; what takes over a second is
        told, and ten are a hang."""
        self.storm(60, 10_000, 20_000)

    @ctest(labels="e2e e2e_san slow", sanitized_only=True)
    def test_sanitized(self):
        self.storm(15, 60_000 if Place.sanitized else 10_000, 2_000)

    @ctest(labels="nightly", timeout=3600, minutes=32)
    def test_half_hour(self):
        """For a machine with nothing else to do: no operation takes over a second."""
        self.storm(1800, 1_000, 500_000)


if __name__ == "__main__":
    harness.main()
