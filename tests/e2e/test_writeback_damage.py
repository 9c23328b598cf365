"""Somebody damages the file with the pages on disk, in all ways there are. Every byte that a program
reads is verified."""

import os
import random
import re
import threading

from lib import harness
from lib.backing import SEGMENT
from lib.ctest import ctest
from lib.harness import MIB
from lib.on_disk import OnDisk


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

    @ctest(labels="nightly", minutes=1)
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


if __name__ == "__main__":
    harness.main()
