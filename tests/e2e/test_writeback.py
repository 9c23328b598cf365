"""Writeback: cold pages on disk, and everything that programs, orders, disks and people who write to
other people's files may do meanwhile. Every byte is verified, whatever has happened to the file."""

import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time

from lib import harness
from lib.backing import Backing, SEGMENT
from lib.ctest import ctest
from lib.harness import E2E, MIB, Daemon, Place, rss_anon, slower, wait_until

NOBODY = 65534


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

    @ctest(labels="nightly", timeout=3600)
    def test_one_gib(self):
        self.daemon.stop()
        self.daemon = self.start_daemon({**self.SETTINGS, "pool.limit": "64M"}, "small")
        self.larger_than_memory(1024, "128M", "heap")

    def test_random_order(self):
        self.daemon.stop()
        self.daemon = self.start_daemon({**self.SETTINGS, "pool.limit": "16M"}, "small")
        self.larger_than_memory(96, "16M", "random", "random")


@ctest("writeback", "e2e")
class Damage(OnDisk):
    """Somebody writes to the file. A page comes back right, or its reader gets SIGBUS: nobody ever
    sees a wrong byte."""

    def start(self, mb=32, kind="mixed"):
        self.pages = mb * 256
        client = self.hold(mb, kind=kind, program="flipped")
        self.out(client)
        self.file = self.backing()
        return client

    def out(self, client):
        self.all_on_disk(client, self.pages // 3)

    def touch(self, client, how="touch"):
        """How many pages cannot be read."""
        client.send(how)
        said = client.line(120)
        found = re.fullmatch(r"ok (\d+) poisoned (\d+)", said)
        self.assertIsNotNone(found, f"{said}: {client.stderr()}")
        self.assertEqual(int(found[1]) + int(found[2]), self.pages)
        return int(found[2])

    def assert_damage_known(self, client, poisoned):
        """It stays with those pages, whoever looks; the program can begin anew with them."""
        self.assertEqual(self.touch(client, "again"), poisoned)
        stats = self.check_conservation(poisoned=poisoned)
        if poisoned:
            self.assertGreater(stats["writeback"]["errors"], 0)
        self.assertEqual(self.touch(client, "child"), poisoned)
        client.ask("move")
        self.assertEqual(self.touch(client), poisoned)
        client.ask("heal")
        self.assertEqual(self.touch(client), 0)
        self.out(client)
        self.assertEqual(self.touch(client, "random"), 0)
        self.assertEqual(client.finish(), 0)
        return self.finish_daemon(poisoned)

    def flip_fields(self, file, chance):
        """A bit in every field, each of another object. Returns how many flips could matter."""
        objects = file.objects()
        chance.shuffle(objects)
        flips, seen = 0, set()
        for item in objects:
            for name, at, count in item.fields():
                if name in seen or count == 0:
                    continue
                seen.add(name)
                file.flip(at + chance.randrange(count), chance.randrange(8))
                flips += name in ("first", "middle", "last", "tag")
                break
        self.assertEqual(len(seen), 8, f"only {seen}")
        return flips

    def flip_random(self, file, chance, count):
        objects = file.objects()
        for _ in range(count):
            item = chance.choice(objects)
            file.flip(item.offset + chance.randrange(item.bytes), chance.randrange(8))

    def flips(self, how, client):
        chance = random.Random(self.seed)
        fields = self.flip_fields(self.file, chance)
        self.flip_random(self.file, chance, 1000)
        poisoned = self.touch(client, how)
        print(f"{fields} flips of fields and 1000 random ones: {poisoned} pages of {self.pages} "
              f"poisoned; {self.stats()['writeback']}", flush=True)
        self.assertGreaterEqual(poisoned, fields)
        self.assertLessEqual(poisoned, fields + 1000)
        self.assert_damage_known(client, poisoned)

    def test_flips(self):
        self.flips("touch", self.start())

    def test_flips_random_order(self):
        self.flips("random", self.start(kind="sizes"))

    def test_flips_checksum_only(self):
        self.daemon.stop()
        self.daemon = self.start_daemon({**self.SETTINGS, "writeback.encrypt": "false"}, "plain")
        client = self.start()
        self.assertEqual(self.writeback()["cipher"], "xxh3")
        self.flips("random", client)

    def test_flips_seen_by_a_child(self):
        """A forked child finds them first; parent and child share the objects."""
        client = self.start(16)
        self.flip_random(self.file, random.Random(self.seed), 100)
        in_child = self.touch(client, "child")
        mine = self.touch(client)
        self.assertEqual(in_child, mine)
        self.assertGreater(mine, 0)
        self.check_conservation(poisoned=2 * mine)
        client.ask("heal")
        self.assertEqual(self.touch(client), 0)
        self.assertEqual(client.finish(), 0)
        self.finish_daemon(2 * mine)

    def test_headers_and_padding(self):
        """Nothing that counts: the headers are for cleaning, and not believed there either. A third
        of the pages is written anew, with no room for that but what cleaning finds."""
        self.daemon.stop()
        self.daemon = self.start_daemon({**self.SETTINGS, "writeback.max": "43M",
                                         "fault.readahead_max": "1"}, "narrow")
        client = self.start(64, "sizes")
        chance = random.Random(self.seed)
        for turn in ("random", "again"):
            # While nothing is written: what is done to the file is no object's that came since.
            objects = chance.sample(self.file.objects(), 64)
            for item in objects:
                name, at, count = chance.choice(item.fields()[:3] + item.fields()[-1:])
                if count:
                    self.file.flip(at + chance.randrange(count), chance.randrange(8))
            before = self.writeback()
            client.ask("dirty")
            self.reclaim(client.pid)
            self.writing_ends()
            cleaned = self.writeback()["cleaned_bytes"] - before["cleaned_bytes"]
            self.assertGreater(cleaned, MIB, "no damaged segment was cleaned")
            self.assertEqual(self.touch(client, turn), 0)
            print(f"{cleaned / MIB:.1f} MiB cleaned; {self.writeback()}", flush=True)
            self.out(client)
        self.assertEqual(self.touch(client), 0)
        self.check_conservation()
        self.assertEqual(client.finish(), 0)
        self.finish_daemon()

    def test_zeroed_and_truncated(self):
        """All of it gone: every page that was on disk is poisoned, and no other."""
        client = self.start(16)
        on_disk = self.row(client.pid)["disk_pages"]
        for offset in range(0, self.file.size(), SEGMENT):
            length = len(self.file.read(offset, SEGMENT))
            if length:
                self.file.write(offset, bytes(length))
        zeroed = self.touch(client)
        self.assertEqual(zeroed, on_disk)
        client.ask("heal")
        self.out(client)
        on_disk = self.row(client.pid)["disk_pages"]
        os.ftruncate(self.file.fd, 0)
        truncated = self.touch(client, "random")
        self.assertEqual(truncated, on_disk)
        self.assert_damage_known_total(client, zeroed + truncated)

    def assert_damage_known_total(self, client, poisoned):
        client.ask("heal")
        self.assertEqual(self.touch(client), 0)
        self.check_conservation(poisoned=poisoned)
        self.out(client)
        self.assertEqual(self.touch(client), 0)
        self.assertEqual(client.finish(), 0)
        self.finish_daemon(poisoned)

    def exchange(self, client):
        """What is written well, in the wrong place; and what was once right in the right place."""
        segments = [(at, data) for at, data in self.file.segments() if len(data) == SEGMENT]
        self.assertGreater(len(segments), 3)
        (first, one), (second, other) = segments[0], segments[1]
        self.file.write(first, other)
        self.file.write(second, one)
        moved = self.touch(client)
        self.assertGreater(moved, 10)
        client.ask("heal")
        self.out(client)
        before = dict(self.file.segments())
        self.assertEqual(self.touch(client), 0)
        client.ask("renew")
        for _ in range(3):
            self.out(client)
            client.ask("renew")
        self.out(client)
        replayed = 0
        there = dict(self.file.segments())
        for at, data in before.items():
            # What has been given back to the file system would be ours for good.
            if at in there and there[at] != data:
                self.file.write(at, data)
                replayed += 1
        self.assertGreater(replayed, 3, "no segment was written anew")
        poisoned = self.touch(client)
        print(f"{moved} pages of two exchanged segments, {poisoned} of {replayed} old ones")
        self.assertGreater(poisoned, 10)
        self.assert_damage_known_total(client, moved + poisoned)

    def test_exchanged_and_replayed(self):
        self.exchange(self.start(16, "sizes"))

    @ctest(labels="nightly")
    def test_exchanged_and_replayed_checksum_only(self):
        self.daemon.stop()
        self.daemon = self.start_daemon({**self.SETTINGS, "writeback.encrypt": "false"}, "plain")
        self.exchange(self.start(16, "sizes"))

    def test_restore_of_damaged(self):
        """Nobody has asked for these pages when they turn out bad; the program meets them after
        they are nobody's to watch any more."""
        client = self.start(16)
        self.flip_random(self.file, random.Random(self.seed), 100)
        self.restore(client.pid)
        self.assertEqual(self.row(client.pid)["evicted_pages"], 0)
        poisoned = self.touch(client)
        self.assertGreater(poisoned, 0)
        self.assertEqual(self.touch(client, "again"), poisoned)
        self.assertGreater(self.writeback()["errors"], 0)
        self.assertEqual(self.daemon.log().count("it is poisoned"), poisoned)
        client.ask("heal")
        self.assertEqual(self.touch(client), 0)
        self.assertEqual(client.finish(), 0)
        self.daemon.stop()  # faults.poisoned counts faults only, and there was none

    def test_sigterm_with_damaged(self):
        client = self.start(16)
        self.flip_random(self.file, random.Random(self.seed), 100)
        self.daemon.stop()
        self.daemons.clear()
        poisoned = self.touch(client)
        self.assertGreater(poisoned, 0)
        self.assertEqual(self.touch(client, "child"), poisoned)
        client.ask("heal")
        self.assertEqual(self.touch(client), 0)
        self.assertEqual(client.finish(), 0)

    def test_restore_while_touched(self):
        """Pages turn out bad for a fault and for a restore at the same time."""
        for turn in range(6):
            client = self.start(16)
            self.flip_random(self.file, random.Random(self.seed + turn), 300)
            client.send("random")
            for _ in range(3):
                self.cli("restore", "--client", str(client.pid), "--hold", "0")
            said = client.line(120)
            self.assertRegex(said, r"ok \d+ poisoned [1-9]\d*", client.stderr())
            self.assertEqual(self.touch(client, "again"), int(said.split()[-1]))
            self.assertEqual(client.finish(), 0)
        self.daemon.stop()

    def test_flickering(self):
        """The disk is wrong now and then: what is read again may be right."""
        client = self.start(16)
        chance = random.Random(self.seed)
        objects = self.file.objects()
        places = [(item.offset + chance.randrange(item.bytes), chance.randrange(8))
                  for item in chance.sample(objects, min(60, len(objects)))]
        ending = threading.Event()

        def flicker():
            while not ending.is_set():
                for at, bit in places:
                    self.file.flip(at, bit)

        thread = threading.Thread(target=flicker, daemon=True)
        thread.start()
        poisoned = self.touch(client, "random")
        ending.set()
        thread.join()
        print(f"{poisoned} poisoned of {len(places)} places", flush=True)
        self.assertLessEqual(poisoned, len(places))
        self.assertEqual(self.touch(client), poisoned)
        client.ask("heal")
        self.assertEqual(self.touch(client), 0)
        self.assertEqual(client.finish(), 0)
        self.check_nothing_left(poisoned)
        self.daemon.stop()


@ctest("writeback", "e2e")
class Orders(OnDisk):
    """Pages on disk, and everything that programs and commands do with pages that are out."""

    def test_program_goes_on(self):
        """fork, mremap, discard, and what is written in between."""
        for kind in ("heap", "mixed", "random"):
            client = self.hold(24, kind=kind)
            for what in ("fork", "move", "discard", "dirty", "fork", "verify"):
                self.all_on_disk(client)
                client.ask(what, seconds=120)
                client.ask("sample", seconds=120)
            client.ask("verify", seconds=120)
            self.assertEqual(client.finish(), 0)
            self.check_nothing_left()
        stats = self.finish_daemon()
        self.assertGreater(stats["faults"]["disk"], 0)

    def test_quit_with_pages_on_disk(self):
        client = self.hold(32)
        self.all_on_disk(client, 32 * 100)
        self.assertEqual(client.finish(), 0)
        self.finish_daemon()

    def test_restore(self):
        client = self.hold(48, name="held")
        for _ in range(2):
            self.all_on_disk(client, 48 * 128)
            self.restore("held")
            row = self.row(client.pid)
            self.assertEqual((row["evicted_pages"], row["disk_pages"]), (0, 0))
            faults = self.stats()["faults"]["total"]
            client.ask("verify")
            self.assertLess(self.stats()["faults"]["total"] - faults, 64)
            client.ask("dirty")
        self.assertEqual(client.finish(), 0)
        self.finish_daemon()

    def test_drain(self):
        clients = [self.hold(24, kind=kind) for kind in ("heap", "random", "mixed")]
        for client in clients:
            self.all_on_disk(client)
        self.cli_ok("drain")
        stats = self.check_conservation()
        for row in stats["clients"]:
            self.assertEqual((row["state"], row["evicted_pages"], row["disk_pages"]),
                             ("released", 0, 0))
        self.assertEqual(stats["writeback"]["pages"], 0)
        for client in clients:
            client.ask("verify")
            self.assertEqual(client.finish(), 0)
        self.cli_ok("resume")
        after = self.hold(24)
        self.all_on_disk(after, 0)
        after.ask("verify")
        self.assertEqual(after.finish(), 0)
        self.finish_daemon()

    def test_sigterm(self):
        client = self.hold(64)
        self.all_on_disk(client, 64 * 128)
        self.daemon.stop()
        self.daemons.clear()
        self.assertEqual(os.listdir(self.directory()), [])
        for what in ("verify", "fork", "move", "verify"):
            client.ask(what)
        self.assertEqual(client.finish(), 0)

    def test_killed_while_reading(self):
        """Orders under way for somebody who is gone; the next ones are not disturbed."""
        chance = random.Random(self.seed)
        other = self.hold(16, kind="random")
        self.all_on_disk(other)
        for turn in range(12):
            victim = self.hold(16, kind="sizes")
            self.all_on_disk(victim)
            victim.send(("verify", "fork", "sample")[turn % 3])
            time.sleep(chance.random() * 0.05)  # anywhere in it; nothing is judged by it
            victim.kill()
        other.ask("verify")
        self.assertEqual(other.finish(), 0)
        self.finish_daemon()

    def test_many_clients(self):
        """Eight that together want ten times what budgets and pool hold."""
        command = [Place.program("sweep"), "--mb=24", "--passes=3", "--kind=mixed",
                   "--order=random"]
        clients = [self.client([*command, f"--seed={self.seed + n}"], "4M", name="crowd")
                   for n in range(8)]
        sampler = DiskSampler(self)
        sampler.start()
        for client in clients:
            self.assertEqual(client.finish(240), 0, client.stderr())
        sampler.stop()
        stats = self.finish_daemon()
        print(f"at most {sampler.most} pages on disk; {stats['writeback']}, {stats['faults']}")
        self.assertGreater(sampler.most, 8 * 24 * 256 // 3)

    def test_churn(self):
        """Reclaimed and restored all the time, by somebody else, while it works."""
        client = self.client([Place.program("sweep"), "--mb=32", "--until_eof=1", "--order=random",
                              "--kind=sizes", f"--seed={self.seed}"], "8M", name="churned")
        client.expect("populated")
        churn = harness.Churn(self, "churned")
        churn.start()
        wait_until("some rounds", lambda: churn.rounds > 12, 60)
        churn.stop()
        client.close_input()
        client.expect("done", 120)
        self.assertEqual(client.wait(), 0)
        self.finish_daemon()

    def test_fork_tree(self):
        client = self.client([Place.program("fork_tree"), "--mb=24", "--wait=1"], "8M")
        client.expect("populated")
        self.all_on_disk(client, 100)
        client.finish(120)
        self.assertEqual(client.code, 0, client.stderr())
        self.finish_daemon()


@ctest("writeback", "e2e")
class Limits(OnDisk):
    """Disks and budgets that are too small: writing stops, says why, and nothing is lost."""

    def test_largest_file(self):
        """writeback.max at the least there is; a program that would need four times as much."""
        self.daemon.stop()
        self.daemon = self.start_daemon({**self.SETTINGS, "writeback.max": "16M"}, "narrow")
        client = self.hold(64, kind="random")
        self.reclaim(client.pid)
        self.trouble("full")
        disk = self.writeback()
        self.assertLessEqual(disk["file_bytes"], 16 * MIB + self.FOR_ITSELF)
        self.assertGreater(disk["live_bytes"], 8 * MIB)
        self.writing_ends()
        # Nor is anything moved about, for as long as nothing changes.
        before = self.writeback()
        time.sleep(2.5)
        self.assertEqual(self.writeback(), before)
        self.goes_on(client)
        self.reclaim(client.pid)
        self.assertLessEqual(self.writeback()["file_bytes"], 16 * MIB + self.FOR_ITSELF)
        client.ask("verify")
        # More room: it goes on.
        self.cli_ok("set", "writeback.max", "1G")
        self.all_on_disk(client, 64 * 200)
        client.ask("verify")
        self.assertEqual(client.finish(), 0)
        self.finish_daemon()

    def test_maximum_below_what_is_used(self):
        client = self.hold(64, kind="random")
        self.all_on_disk(client, 64 * 200)
        self.set_maximum(16 * MIB)
        before = self.writeback()["file_bytes"]
        for what in ("verify", "dirty"):
            client.ask(what, seconds=120)
        self.reclaim(client.pid)
        self.trouble("full")
        wait_until("the file to shrink", lambda: self.writeback()["file_bytes"] <= 17 * MIB, 30)
        self.assertLess(self.writeback()["file_bytes"], before)
        self.goes_on(client)
        self.assertEqual(client.finish(), 0)
        self.finish_daemon()

    def test_maximum_below_what_is_held(self):
        """What is on disk stays there, beyond the new maximum, until somebody wants it."""
        client = self.hold(48, kind="random")
        on_disk = self.all_on_disk(client)
        self.set_maximum(16 * MIB)
        other = self.hold(16, kind="random")
        self.reclaim(other.pid)
        self.trouble("full|as large as it may become")
        self.assertEqual(self.row(client.pid)["disk_pages"], on_disk)
        other.ask("verify")
        client.ask("verify")
        for program in (client, other):
            self.assertEqual(program.finish(), 0)
        self.finish_daemon()

    def test_budget_per_day(self):
        self.daemon.stop()
        self.daemon = self.start_daemon({**self.SETTINGS, "writeback.budget_per_day": "8M"}, "flash")
        client = self.hold(64, kind="random")
        self.reclaim(client.pid)
        self.trouble("budget")
        self.goes_on(client)
        self.reclaim(client.pid)
        disk = self.writeback()
        self.assertLessEqual(disk["written_bytes"], 8 * MIB)
        self.assertGreater(disk["written_bytes"], 4 * MIB)
        client.ask("verify")
        self.cli_ok("set", "writeback.budget_per_day", "0")
        self.all_on_disk(client, 64 * 200)
        client.ask("verify")
        self.assertEqual(client.finish(), 0)
        self.finish_daemon()

    def test_free_min_while_it_runs(self):
        """Somebody else fills the disk, as far as we can tell."""
        client = self.hold(32, kind="random")
        self.cli_ok("set", "writeback.free_min", "1000T")
        self.reclaim(client.pid)
        self.trouble(".")
        self.goes_on(client)
        self.cli_ok("set", "writeback.free_min", "64M")
        self.all_on_disk(client, 32 * 200)
        client.ask("verify")
        self.assertEqual(client.finish(), 0)
        self.finish_daemon()


@ctest("writeback", "e2e")
class SmallDisk(OnDisk):
    """A file system of its own, in a mount namespace of the daemon's, that fills up under it."""

    START_DAEMON = False

    def start_on_image(self, mib, below=None, **settings):
        """The daemon's writeback.dir is an ext4 in a file (`below`: in this directory)."""
        for needed in ("mkfs.ext4", "losetup", "unshare", "mount"):
            if not shutil.which(needed, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin"):
                self.skipTest(f"{needed} is not installed")
        if os.geteuid() != 0 or not os.path.exists("/dev/loop-control"):
            self.skipTest("loop devices need root and /dev/loop-control")
        self.image = os.path.join(below or self.tmp, "image")
        with open(self.image, "wb") as f:
            f.truncate(mib * MIB)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", self.image],
                       check=True, capture_output=True,
                       env={**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"})
        self.mounted = os.path.join(self.tmp, "mounted")
        os.mkdir(self.mounted)
        probe = subprocess.run(["unshare", "--mount", "mount", "-o", "loop", self.image,
                                self.mounted], capture_output=True, text=True, check=False)
        if probe.returncode != 0:
            self.skipTest(f"no loop mount here: {probe.stderr.strip()}")
        script = f'mount -o loop {self.image} {self.mounted} && exec "$0" "$@"'
        self.daemon = self.start_daemon(
            {**self.SETTINGS, "writeback.dir": self.mounted, "writeback.free_min": "0", **settings},
            wrap=("unshare", "--mount", "/bin/sh", "-c", script))

    def inside(self, *names):
        return os.path.join(f"/proc/{self.daemon.pid}/root", self.mounted.lstrip("/"), *names)

    def fill_up(self):
        with open(self.inside("filler"), "wb", buffering=0) as f:
            for size in (MIB, 4096):
                try:
                    while True:
                        f.write(bytes(size))
                except OSError:
                    pass
            os.fsync(f.fileno())

    def finish_daemon(self, poisoned=0):
        image = self.image
        stats = super().finish_daemon(poisoned)
        wait_until("the loop device to be gone",
                   lambda: image not in subprocess.run(["losetup", "-a"], capture_output=True,
                                                       text=True, check=False).stdout, 30)
        return stats

    def test_fills_up(self):
        self.start_on_image(96)
        client = self.hold(32, kind="random")
        self.all_on_disk(client, 32 * 200)
        self.fill_up()
        big = self.hold(48, kind="random")
        self.reclaim(big.pid)
        self.trouble(".")
        self.goes_on(big)
        self.goes_on(client)
        self.reclaim(client.pid)
        client.ask("verify")
        os.unlink(self.inside("filler"))
        self.all_on_disk(big, 48 * 200)
        self.goes_on(big)
        self.goes_on(client)
        for program in (client, big):
            self.assertEqual(program.finish(), 0)
        self.finish_daemon()

    def test_full_from_the_start(self):
        """It starts with little room, and finds none when it wants it."""
        self.start_on_image(32)
        self.fill_up()
        client = self.hold(32, kind="random")
        self.reclaim(client.pid)
        self.trouble(".")
        self.goes_on(client)
        os.unlink(self.inside("filler"))

        def some_on_disk():
            self.reclaim(client.pid)
            return self.row(client.pid)["disk_pages"] > 4000

        wait_until("pages on disk", some_on_disk, 30)
        client.ask("verify")
        self.assertEqual(client.finish(), 0)
        self.finish_daemon()


@ctest("writeback", "e2e", load="light")
class Settings(OnDisk):
    """What cannot be a backing file's place."""

    START_DAEMON = False

    def refused(self, reason, code=1, wrap=(), **settings):
        command = [*wrap, Place.binary("foldswapd"), "--runtime-dir", os.path.join(self.tmp, "no")]
        for key, value in settings.items():
            command += ["--set", f"writeback.{key}={value}"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=slower(20),
                                check=False, env=harness.clean_environment())
        said = result.stderr + result.stdout
        print(f"{settings}: {said.strip()}", flush=True)
        self.assertEqual(result.returncode, code, said)
        self.assertRegex(said, reason)
        for mark in harness.SANITIZER_MARKS:
            self.assertNotIn(mark, said)

    def test_bad_directories(self):
        directory = self.directory()
        self.refused("nowhere.*No such file", dir=os.path.join(directory, "nowhere"))
        path = os.path.join(directory, "file")
        with open(path, "wb"):
            pass
        self.refused("file.*Not a directory", dir=path)
        os.unlink(path)
        self.refused("/dev/shm.*memory", dir="/dev/shm")
        self.refused("/proc", dir="/proc")
        self.refused("free", dir=directory, free_min="1000T")
        self.refused("free_min", code=2, dir=directory, free_min=str((1 << 64) - 1))
        self.refused("dir", code=2, dir="relative/path")
        self.refused("max", code=2, dir=directory, max="15M")
        self.refused("max", code=2, dir=directory, max="-1")
        self.refused("encrypt", code=2, dir=directory, encrypt="perhaps")
        self.refused("budget_per_day", code=2, dir=directory, budget_per_day="much")
        self.assertEqual(os.listdir(directory), [])

    def test_read_only_file_system(self):
        directory = self.directory()
        script = f'mount --bind {directory} {directory} && ' \
                 f'mount -o remount,bind,ro {directory} && exec "$0" "$@"'
        self.refused("Read-only", dir=directory, wrap=("unshare", "--mount", "/bin/sh", "-c", script))

    def test_directory_of_somebody_else(self):
        """An ordinary user's daemon, and root's directory."""
        node = os.path.join(self.tmp, "uffd")
        os.mknod(node, 0o666 | 0o020000, os.stat("/dev/userfaultfd").st_rdev)
        os.chmod(node, 0o666)
        run = os.path.join(self.tmp, "no")
        os.mkdir(run)
        os.chown(run, NOBODY, NOBODY)
        directory = self.directory()
        os.chmod(directory, 0o755)
        script = (f"mount --bind {node} /dev/userfaultfd && exec setpriv --reuid={NOBODY} "
                  f"--regid={NOBODY} --clear-groups --inh-caps=-all,+sys_ptrace "
                  '--ambient-caps=+sys_ptrace --bounding-set=-all,+sys_ptrace "$0" "$@"')
        self.refused(f"{directory}.*Permission denied", dir=directory,
                     wrap=("unshare", "--mount", "/bin/sh", "-c", script))

    def test_without_encryption(self):
        self.daemon = self.start_daemon({**self.SETTINGS, "writeback.encrypt": "false"})
        self.assertEqual(self.writeback()["cipher"], "xxh3")
        client = self.hold(24)
        self.all_on_disk(client, 24 * 100)
        client.ask("verify")
        client.ask("fork")
        self.assertEqual(client.finish(), 0)
        self.finish_daemon()

    def test_file_is_what_it_says(self):
        """Encrypted by default; nobody else's to find; its blocks are what the stats say."""
        self.daemon = self.start_daemon(self.SETTINGS)
        disk = self.writeback()
        self.assertIn(disk["cipher"], ("aes-256-gcm", "xchacha20-poly1305"))
        self.assertEqual(disk["trouble"], "")
        client = self.hold(24, kind="heap")
        self.all_on_disk(client, 24 * 160)
        self.assertEqual(os.listdir(self.directory()), [])
        file = self.backing()
        self.assertEqual(os.fstat(file.fd).st_nlink, 0)
        self.assertEqual(os.fstat(file.fd).st_mode & 0o077, 0)
        # Two samples: holes may be made in between.
        wait_until("the file to have the blocks that the stats say",
                   lambda: self.writeback()["file_bytes"] == file.blocks_bytes(), 10)
        stats = self.stats()
        disk = stats["writeback"]
        self.assertEqual(disk["pages"], sum(row["disk_pages"] for row in stats["clients"]))
        taken = sum(item.bytes for item in file.objects())
        self.assertGreaterEqual(taken, disk["live_bytes"])
        self.assertGreaterEqual(sum(item.length for item in file.objects()),
                                disk["compressed_bytes"])
        for _, data in file.segments():
            # What heap-like pages have in them, and what zstd's frames begin with.
            self.assertNotIn((0x0000555500004000).to_bytes(8, "little"), data)
            self.assertNotIn(b"\x28\xb5\x2f\xfd", data)
        client.ask("verify")
        self.assertEqual(client.finish(), 0)
        self.finish_daemon()

    def test_off_by_default(self):
        self.daemon = E2E.start_daemon(self, self.SETTINGS)
        disk = self.writeback()
        self.assertFalse(disk["enabled"])
        client = self.hold(32)
        self.reclaim(client.pid)
        self.assertEqual(self.row(client.pid)["disk_pages"], 0)
        client.ask("verify")
        self.assertEqual(client.finish(), 0)
        E2E.finish_daemon(self)


if __name__ == "__main__":
    harness.main()
