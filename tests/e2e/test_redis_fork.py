"""Redis at half the memory it needs, under load, while it forks: BGSAVE and BGREWRITEAOF take what
their moment's memory was, and another, plain server that loads it has the same data."""

import os
import shutil
import subprocess
import threading
import time

from lib import harness
from lib.ctest import ctest
from lib.harness import E2E, MIB, rss_anon, slower, wait_until
from lib.redis_server import Server

VALUE_BYTES = 1000
KEY_COST = 1150  # bytes of memory for each key, about
# Keys as redis-benchmark names them, so that its load falls on all of the data and adds none.
# Values are text with numbers in it, none like the other.
FILL = """
for i = tonumber(ARGV[1]), tonumber(ARGV[2]) do
  local parts = {}
  for j = 1, 9 do
    parts[j] = redis.sha1hex(i .. '.' .. j) .. ' is what record ' .. i .. ' holds in field ' .. j ..
               ', which is followed by some more of the same; '
  end
  redis.call('set', string.format('key:%012d', i), string.sub(table.concat(parts), 1, ARGV[3]))
end
return redis.call('dbsize')
"""


class Load(threading.Thread):
    """redis-benchmark over the keys, reads and writes, until stop()."""

    def __init__(self, test, server, keys):
        super().__init__(daemon=True)
        self.command = ["redis-benchmark", "-s", server.socket, "-t", "set,get", "-c", "8", "-P",
                        "4", "-n", "5000", "-r", str(keys), "-d", str(VALUE_BYTES), "-q"]
        self.test = test
        self.stopping = threading.Event()
        self.rounds = 0
        self.errors = []

    def run(self):
        while not self.stopping.is_set():
            result = subprocess.run(self.command, capture_output=True, text=True,
                                    timeout=slower(300), check=False)
            self.rounds += 1
            if result.returncode != 0 or "rror" in result.stdout + result.stderr:
                self.errors.append(result.stdout + result.stderr)

    def stop(self):
        self.stopping.set()
        self.join()
        self.test.assertEqual(self.errors, [])
        self.test.assertGreater(self.rounds, 0)


class OutSampler(threading.Thread):
    """The most that was out at once of the server, and of its forked children."""

    def __init__(self, test, leader):
        super().__init__(daemon=True)
        self.test = test
        self.leader = leader
        self.most = {}  # pid: pages
        self.stopping = threading.Event()

    def run(self):
        while not self.stopping.wait(0.1):
            for row in self.test.clients():
                pid = row["pid"]
                self.most[pid] = max(self.most.get(pid, 0), row["evicted_pages"])

    def children(self):
        return {pid: pages for pid, pages in self.most.items() if pid != self.leader}

    def stop(self):
        self.stopping.set()
        self.join()


@ctest("redis_fork", "e2e slow")
class RedisFork(E2E):
    def setUp(self):
        super().setUp()
        for needed in ("redis-server", "redis-cli", "redis-benchmark"):
            if not shutil.which(needed):
                self.skipTest(f"{needed} is not installed")

    def reload(self, name, directory, keep, *more):
        """The digest of what a plain server makes of a copy of the files that `keep` names."""
        copy = os.path.join(self.tmp, name)
        os.mkdir(copy)
        for entry in keep:
            source = os.path.join(directory, entry)
            into = os.path.join(copy, entry)
            (shutil.copytree if os.path.isdir(source) else shutil.copy)(source, into)
        server = Server(self, name, self.plain, copy, *more)
        size = server.cli("dbsize")
        digest = server.digest()
        server.shutdown()
        shutil.rmtree(copy)
        return size, digest

    def note(self, what):
        print(f"{time.monotonic() - self.begun:6.1f} s: {what}", flush=True)

    def forks(self, total_bytes):
        self.begun = time.monotonic()
        keys = total_bytes // KEY_COST
        directory = os.path.join(self.tmp, "data")
        os.mkdir(directory)
        budget = total_bytes // 2
        server = Server(self, "source",
                        lambda command: self.client(command, budget, name="redis"),
                        directory, "--appendonly", "yes", "--appendfsync", "no",
                        "--auto-aof-rewrite-percentage", "0")
        for first in range(0, keys, 20000):
            last = min(first + 20000, keys) - 1
            self.assertEqual(server.cli("eval", FILL, "0", str(first), str(last),
                                        str(VALUE_BYTES)), str(last + 1))
        self.note("filled")
        used = int(server.info("used_memory"))
        print(f"{keys} keys, {used / MIB:.0f} MiB used, budget {budget / MIB:.0f} MiB")
        self.assertGreater(used, total_bytes * 9 // 10)
        out = OutSampler(self, server.proc.pid)
        out.start()
        wait_until("redis to be within its budget",
                   lambda: rss_anon(server.proc.pid) < budget + 64 * MIB, 120)

        # 1. While it is written to: forks in the middle of evictions, and what they write loads.
        load = Load(self, server, keys)
        load.start()
        time.sleep(1)
        evicted = self.stats()["evict"]["pages"]
        server.save()
        self.note("saved under load")
        server.rewrite()
        self.note("rewrote under load")
        self.assertGreater(self.stats()["evict"]["pages"], evicted, "nothing was evicted meanwhile")
        load.stop()
        self.assertEqual(self.reload("load", directory, ["dump.rdb"])[0], str(keys))

        # 2. The load has stopped: what is saved is exactly what is there, whatever is evicted.
        size, digest = server.cli("dbsize"), server.digest()
        self.assertEqual(size, str(keys))
        self.note("digest taken")
        self.reclaim("redis", "--bytes", str(total_bytes // 4))
        server.save()
        self.assertEqual(self.reload("dump", directory, ["dump.rdb"]), (size, digest))
        server.rewrite()
        log = ("--appendonly", "yes")
        self.assertEqual(self.reload("aof", directory, ["appendonlydir"], *log), (size, digest))
        self.assertEqual(server.digest(), digest)
        self.note("both loaded elsewhere")

        out.stop()
        print(f"{load.rounds} rounds of load; at most out: redis "
              f"{out.most[server.proc.pid] * 4 // 1024} MiB; its children "
              f"{[pages * 4 // 1024 for pages in out.children().values()]} MiB")
        self.assertGreater(out.most[server.proc.pid], total_bytes // 4 // 4096)
        self.assertGreaterEqual(len(out.children()), 4, "no fork was seen")
        self.assertGreater(max(out.children().values()), total_bytes // 8 // 4096)
        server.shutdown()
        stats = self.finish_daemon()
        print(f"{stats['evict']}, {stats['faults']}")
        self.assert_worked(stats)

    def test_half_resident(self):
        self.forks(96 * MIB)

    @ctest(labels="nightly", timeout=3600, minutes=5)
    def test_half_resident_1g(self):
        self.forks(1024 * MIB)


if __name__ == "__main__":
    harness.main()
