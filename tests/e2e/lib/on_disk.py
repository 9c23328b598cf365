"""A daemon with writeback, for tests of pages on disk."""

import os
import re
import threading

from lib.backing import Backing
from lib.harness import E2E, MIB, Place, wait_until


class DiskSampler(threading.Thread):
    """The most pages on disk at once, until stop()."""

    def __init__(self, test):
        super().__init__(daemon=True)
        self.test = test
        self.most = 0
        self.stopping = threading.Event()

    def run(self):
        while not self.stopping.wait(0.2):
            self.most = max(self.most, sum(c["disk_pages"] for c in self.test.clients()))

    def stop(self):
        self.stopping.set()
        self.join()


class OnDisk(E2E):
    """A daemon with writeback. In a pool this small nothing stays for long."""

    SETTINGS = {"evict.quarantine_s": "0", "pool.limit": "4M"}
    AFTERWARDS = 8 * MIB  # of the file, when nobody is left
    FOR_ITSELF = MIB // 16  # what the file system's own tables may take of a file

    def start_daemon(self, settings=None, name="run", **more):
        given = {"writeback.dir": self.directory(), "writeback.free_min": "64M"}
        return super().start_daemon({**given, **(settings or {})}, name, **more)

    def writeback(self):
        return self.stats()["writeback"]

    def backing(self):
        file = Backing(self.daemon.pid, self.directory())
        self.addCleanup(file.close)
        return file

    def hold(self, mb, name=None, kind="mixed", program="holder", seed=None):
        client = self.client([Place.program(program), f"--mb={mb}", f"--kind={kind}",
                              f"--seed={seed or self.seed}"], name=name)
        client.expect("ready", 120)
        return client

    def all_on_disk(self, client, least=1):
        """Everything of a client out, and on disk but for what the pool may keep (it is small); at
        least so many pages. How many it is: nothing is written any more."""
        wait_until("quarantine to end", lambda: self.stats()["evict"]["quarantined"] == 0, 30)

        def out():
            self.reclaim(client.pid)
            wait_until("the pool to have room",
                       lambda: self.stats()["pool"]["compressed_bytes"] < 2 * MIB, 30)
            return self.row(client.pid)["disk_pages"] >= least

        wait_until(f"{least} pages on disk", out, 30)
        self.writing_ends()
        return self.row(client.pid)["disk_pages"]

    def writing_ends(self):
        """Nothing is written any more, and nothing freed."""
        before = [None]

        def quiet():
            disk = self.writeback()
            now = [disk[key] for key in ("written_bytes", "read_bytes", "pages", "live_bytes")]
            same = now == before[0]
            before[0] = now
            return same

        wait_until("writing to end", quiet, 30, every=0.3)

    def trouble(self, why, seconds=30):
        pattern = re.compile(why)
        wait_until(f"trouble to be {why}", lambda: pattern.search(self.writeback()["trouble"]),
                   seconds)
        print(f"trouble: {self.writeback()['trouble']}", flush=True)

    def set_maximum(self, size):
        self.cli_ok("set", "writeback.max", str(size))
        wait_until("the maximum to be taken up", lambda: self.writeback()["max_bytes"] == size, 10)

    def goes_on(self, client):
        for what in ("verify", "dirty", "fork", "move", "verify"):
            client.ask(what, seconds=120)

    def check_nothing_left(self, poisoned=0):
        """The disk, too, is as it was."""
        stats = super().check_nothing_left(poisoned)
        if not stats["writeback"]["enabled"]:
            return stats
        for key in ("pages", "kept_pages", "live_bytes", "compressed_bytes"):
            self.assertEqual(stats["writeback"][key], 0, key)
        wait_until("the file to shrink",
                   lambda: self.writeback()["file_bytes"] < self.AFTERWARDS, 30)
        wait_until("trouble to be over", lambda: self.writeback()["trouble"] == "", 30)
        if not poisoned:
            self.assertEqual(stats["writeback"]["errors"], 0)
        return stats

    def finish_daemon(self, poisoned=0):
        stats = super().finish_daemon(poisoned)
        self.assertEqual(os.listdir(self.directory()), [], "something is left in writeback.dir")
        return stats
