"""After thousands of forks, execs and exits the daemon has the descriptors, the memory and the pool
it had before."""

import time

from lib import harness
from lib.ctest import ctest
from lib.harness import E2E, MIB, Churn, Place, descriptor_count, wait_until

# What may differ: an administrator's connection that is being closed; pages the allocator keeps.
# The last clients' descriptors are closed when every thread of the daemon has looked up once.
SETTLED_S = 3
DESCRIPTORS = 1
MEMORY = MIB


@ctest("leaks", "e2e e2e_san")
class Leaks(E2E):
    def storm(self, count):
        client = self.client([Place.program("fork_storm"), f"--count={count}",
                              f"--seed={self.seed}"], "3M", name="storm")
        client.expect("ready")
        churn = Churn(self, client.pid, restore_every=0, pause=0.2)
        churn.start()
        start = time.monotonic()
        client.send("go")
        client.expect("done", 280)
        churn.stop()
        self.assertEqual(client.finish(), 0, client.stderr())
        self.assertEqual(client.stderr(), b"")
        print(f"{count} children in {time.monotonic() - start:.1f} s, {churn.pages} pages out")
        return churn.pages

    def measure(self):
        wait_until("everybody to be forgotten", lambda: not self.clients(), 30)
        time.sleep(SETTLED_S)
        stats = self.check_conservation()
        pool = stats["pool"]
        now = {"descriptors": descriptor_count(self.daemon.pid), "memory": self.daemon.memory(),
               "frames": pool["frame_bytes"], "metadata": pool["metadata_bytes"],
               "objects": pool["stored_pages"]}
        print(now)
        return now

    def run_storm(self, count):
        self.storm(min(count // 5, 1000))  # whatever is made once, and kept
        before = self.measure()
        self.assertGreater(self.storm(count), 500)
        after = self.measure()
        self.assertLessEqual(abs(after["descriptors"] - before["descriptors"]), DESCRIPTORS)
        if not Place.sanitized:  # a sanitizer keeps what was freed; it tells of leaks at the end
            self.assertLessEqual(after["memory"], before["memory"] + MEMORY)
        self.assertLessEqual(after["frames"], before["frames"] + MIB)
        self.assertLessEqual(after["metadata"], before["metadata"] + MIB)
        self.assertEqual(after["objects"], 0)
        self.finish_daemon()

    def test_forks_execs_exits(self):
        self.run_storm(2000)

    @ctest(labels="nightly", minutes=2)
    def test_forks_execs_exits_10000(self):
        self.run_storm(10000)


if __name__ == "__main__":
    harness.main()
