"""Programs that want more than their budget and the pool together: most of them is on disk, and every
byte is right."""

import time

from lib import harness
from lib.ctest import ctest
from lib.harness import MIB, Place
from lib.on_disk import DiskSampler, OnDisk


@ctest("writeback", "e2e")
class Budget(OnDisk):
    """A program that wants more than its budget and the pool together."""

    SETTINGS = {"evict.quarantine_s": "0"}

    def larger_than_memory(self, mb, resident, kind, order="sequential"):
        command = [Place.program("sweep"), f"--mb={mb}", "--passes=2", f"--kind={kind}",
                   f"--order={order}", f"--seed={self.seed}"]
        plain = self.run_plain(command, 300)
        begun = time.monotonic()
        client = self.client(command, resident, name="large")
        sampler = DiskSampler(self)
        sampler.start()
        client.finish(900)
        sampler.stop()
        self.assert_same(plain, client)
        stats = self.finish_daemon()
        disk = stats["writeback"]
        print(f"{mb} MiB of {kind}, resident {resident}: {time.monotonic() - begun:.0f} s, at most "
              f"{sampler.most} of {mb * 256} pages on disk, {disk['written_bytes'] / MIB:.0f} MiB "
              f"written ({disk['cleaned_bytes'] / MIB:.0f} cleaned), "
              f"{disk['read_bytes'] / MIB:.0f} MiB read, {stats['faults']}", flush=True)
        self.assert_worked(stats)
        self.assertGreater(sampler.most, mb * 256 // 2, "most pages were not on disk")
        self.assertGreater(stats["faults"]["disk"] + stats["faults"]["readahead_pages"],
                           mb * 256 // 2)
        self.assertGreater(disk["read_bytes"], 0)

    def test_quarter_gib(self):
        self.daemon.stop()
        self.daemon = self.start_daemon({**self.SETTINGS, "pool.limit": "16M"}, "small")
        self.larger_than_memory(256, "32M", "heap")

    @ctest(labels="nightly", timeout=3600, minutes=1)
    def test_one_gib(self):
        self.daemon.stop()
        self.daemon = self.start_daemon({**self.SETTINGS, "pool.limit": "64M"}, "small")
        self.larger_than_memory(1024, "128M", "heap")

    def test_random_order(self):
        self.daemon.stop()
        self.daemon = self.start_daemon({**self.SETTINGS, "pool.limit": "16M"}, "small")
        self.larger_than_memory(96, "16M", "random", "random")


if __name__ == "__main__":
    harness.main()
