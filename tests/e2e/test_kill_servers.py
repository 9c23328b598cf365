"""Servers whose daemon is killed again and again, at random moments: Redis under load, which also
saves, and a server that forks its workers before they are needed. Redis' clients know every answer; the
dumps that its forked children write are loaded elsewhere and verified; every worker verifies what it
has inherited, and what it has written since.

A failure prints its seed: FOLDSWAP_TEST_SEED=N python3 tests/e2e/test_kill_servers.py --build-dir
build KillServers.redis"""

import os
import random
import shutil
import threading
import time

import test_kill
import test_redis_disk
from lib import harness
from lib.ctest import ctest, inherited
from lib.harness import E2E, MIB, Place
from lib.redis_server import Server
from test_redis_disk import LATEST_MS, RECORD_BYTES, Share


class Killer(threading.Thread):
    """Kills the daemon so many times, with something on its way out or back."""

    def __init__(self, test, count):
        super().__init__(daemon=True)
        self.test = test
        self.count = count
        self.longest = 0.0
        self.error = None
        self.start()

    def run(self):
        try:
            pid = self.test.worker()
            for _ in range(self.count):
                time.sleep(self.test.random.random() * 0.5)
                self.test.disturb()
                time.sleep(self.test.random.random() * 0.05)
                pid, seconds = self.test.kill(pid)
                self.longest = max(self.longest, seconds)
        except Exception as error:  # whatever it is, the test is told
            self.error = f"{type(error).__name__}: {error}"


@ctest("kill", "nightly", minutes=2)
class KillServers(E2E):
    SETTINGS = {"evict.quarantine_s": "0"}
    KILLS = 60

    worker = test_kill.Kill.worker
    kill = test_kill.Kill.kill
    next_after = test_kill.Kill.next_after
    disturb = test_kill.Kill.disturb
    in_each = test_redis_disk.RedisOnDisk.in_each
    wait_for_all = test_redis_disk.RedisOnDisk.wait_for_all
    check_saved = test_redis_disk.RedisOnDisk.check_saved

    def setUp(self):
        super().setUp()
        self.daemon.stop()
        self.daemon = self.start_daemon(self.settings(), "kept", keeper=True)
        self.random = random.Random(self.seed)

    def settings(self):
        return self.SETTINGS

    def finish(self, killer):
        stats = self.stats()
        self.assertEqual(stats["daemon"]["restarts"], killer.count)
        self.assertNotIn(": killed: ", self.daemon.log())
        stats = self.finish_daemon()
        print(f"{killer.count} kills, the next one answered after {killer.longest * 1000:.0f} ms at "
              f"most; {stats['evict']['pages']} pages evicted, {stats['faults']}", flush=True)
        self.assert_worked(stats)
        return stats

    def test_redis(self):
        for needed in ("redis-server", "redis-cli"):
            if not shutil.which(needed):
                self.skipTest(f"{needed} is not installed")
        directory = os.path.join(self.tmp, "data")
        os.mkdir(directory)
        server = Server(self, "redis", lambda command: self.client(command, "24M", name="redis"),
                        directory)
        total = 72 * MIB // RECORD_BYTES
        shares = [Share(server, n, 4, total, self.seed) for n in range(4)]
        self.in_each(shares, Share.fill)
        killer = Killer(self, self.KILLS)
        for share in shares:
            share.start()
        dumps = []
        while killer.is_alive():
            oldest = [list(share.version) for share in shares]
            self.wait_for_all(shares, 2)  # all that has been executed
            server.begin_save()
            newest = [list(share.version) for share in shares]
            server.end_save()
            kept = os.path.join(self.tmp, f"dump{len(dumps)}")
            os.mkdir(kept)
            shutil.move(os.path.join(directory, "dump.rdb"), kept)
            dumps.append((kept, oldest, newest))
        self.assertIsNone(killer.error)
        for share in shares:
            share.ending.set()
        for share in shares:
            share.join()
        self.assertEqual([share.error for share in shares if share.error], [])
        self.assertEqual(sum(share.verified for share in shares), total)
        server.shutdown()
        time.sleep(LATEST_MS / 1000)  # what is in a dump and expires has expired
        for kept, oldest, newest in dumps:
            self.assertGreater(self.check_saved(shares, kept, oldest, newest), total * 8 // 10)
        print(f"{total} records verified, and {len(dumps)} dumps")
        self.assertGreater(len(dumps), 1)
        self.finish(killer)

    def test_forking_server(self):
        killer = Killer(self, self.KILLS)
        verified = forked = 0
        while killer.is_alive():
            server = self.client([Place.program("family"), "--mb=24",
                                  f"--seed={self.random.randrange(1 << 30)}"], "8M", name="serving")
            server.expect("ready", 60)
            workers = []
            for _ in range(20):
                if len(workers) == 5:
                    server.ask(f"end {workers.pop(self.random.randrange(5))}")
                server.send("rawfork" if self.random.randrange(4) == 0 else "fork")
                self.assertGreater(int(server.line(60)), 0)
                workers.append(forked % 20)
                forked += 1
                server.ask("write 300")
                worker = self.random.choice(workers)
                server.ask(f"at {worker} verify")
                server.ask(f"at {worker} write 100")
                server.ask(f"at {worker} verify")
                server.ask("verify")
                verified += 3
            server.close_input()
            self.assertEqual(server.finish(60), 0, server.stderr().decode(errors="replace"))
        self.assertIsNone(killer.error)
        print(f"{forked} workers forked, {verified} times all memory of a process verified")
        self.finish(killer)


@inherited("redis", "forking_server")
@ctest("kill_with_disk", "nightly", minutes=2)
class KillServersWithDisk(KillServers):
    """Likewise, with most of what is out on disk."""

    def settings(self):
        return {**self.SETTINGS, "writeback.dir": E2E.directory(self), "pool.limit": "4M",
                "writeback.max": "512M", "writeback.free_min": "16M"}

    def finish(self, killer):
        stats = super().finish(killer)
        self.assertGreater(stats["faults"]["disk"], 200, "hardly anything was on disk")
        return stats


if __name__ == "__main__":
    harness.main()
