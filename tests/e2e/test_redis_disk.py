"""Redis with four times the data that its budget and the pool can hold: most of it is on disk, and
every answer is checked against what the clients know that they wrote."""

import os
import random
import shutil
import statistics
import threading
import time

from lib import harness
from lib.ctest import ctest
from lib.harness import MIB, wait_until
from lib.on_disk import OnDisk
from lib.redis_server import Connection, Server

SIZES = ((100, 1400), (100, 1400), (1500, 4500), (1500, 4500), (6000, 14000))  # least, and more
RECORD_BYTES = 4800  # of memory for each, about
MOST_APPENDED = 4
BATCH = 16  # commands that are under way at once on a connection
LATEST_MS = 5000  # from now to the end of a record that expires
WORDS = ("active", "expired", "pending", "unknown", "customer", "invoice", "parcel", "address")


def make_corpus():
    """What all values are made of: records with names, numbers and empty fields, as a heap has."""
    chance = random.Random(5)
    records, size = [], 0
    while size < 512 * 1024:
        record = (b'{"id": %d, "kind": "%s", "state": "%s", "created": 17%08d, "flags": 0, '
                  b'"next": null, "owner": {"id": %d, "name": null}, "size": %d}, ' %
                  (chance.randrange(10 ** 8), chance.choice(WORDS).encode(),
                   chance.choice(WORDS).encode(), chance.randrange(10 ** 8),
                   chance.randrange(10 ** 6), chance.randrange(4096)))
        records.append(record)
        size += len(record)
    return b"".join(records)


CORPUS = make_corpus()


def mixed(*numbers):
    h = 0x9E3779B97F4A7C15
    for number in numbers:
        h = (h ^ number) * 0xBF58476D1CE4E5B9 & (1 << 64) - 1
        h ^= h >> 29
    return h


def piece(h, least, more):
    length = least + (h & 0xFFFF) % more
    at = (h >> 16) % (len(CORPUS) - length)
    return CORPUS[at:at + length]


def added(number, version, which):
    return b"+%d.%d.%d:" % (number, version, which) + piece(mixed(number, version, which), 20, 200)


def contents(number, version, appended):
    """The value of a record that was set for the so manieth time, and appended to since."""
    h = mixed(number, version)
    least, more = SIZES[(h >> 40) % len(SIZES)]
    value = b"%d.%d:%b:%d" % (number, version, piece(h, least, more), version)
    return value + b"".join(added(number, version, which) for which in range(appended))


def key_of(number):
    return b"record:%09d" % number


def now_ms():
    return time.time_ns() // 1_000_000


class Share(threading.Thread):
    """A client that alone writes every fourth record, or so, and knows what they are. `there`,
    `version`, `appended`, `deadline` (0: none) are its records' state when all that was sent is
    done; those that expire are there until somebody looks."""

    def __init__(self, server, first, step, total, seed):
        super().__init__(daemon=True)
        self.numbers = range(first, total, step)
        self.version = [0] * len(self.numbers)
        self.appended = [0] * len(self.numbers)
        self.deadline = [0] * len(self.numbers)
        self.there = [False] * len(self.numbers)
        self.chance = random.Random(seed + first)
        self.connection = Connection(server)
        self.commands, self.expected = [], []
        self.counts = {}
        self.batches = self.verified = 0
        self.ending = threading.Event()
        self.error = None

    # -- commands; each notes what it has to be answered

    def ask(self, expected, *command):
        self.commands.append(command)
        self.expected.append(expected)
        self.counts[command[0]] = self.counts.get(command[0], 0) + 1

    def value(self, i):
        return contents(self.numbers[i], self.version[i], self.appended[i])

    def set(self, i, deadline=0):
        self.version[i] += 1
        self.appended[i] = 0
        self.there[i], self.deadline[i] = True, deadline
        more = (b"PXAT", b"%d" % deadline) if deadline else ()
        self.ask((b"OK", 0), b"SET", key_of(self.numbers[i]), self.value(i), *more)

    def get(self, i):
        value = self.value(i) if self.there[i] else None
        self.ask((value, self.deadline[i]), b"GET", key_of(self.numbers[i]))

    def delete(self, i):
        self.ask((int(self.there[i]), self.deadline[i]), b"DEL", key_of(self.numbers[i]))
        self.there[i], self.deadline[i] = False, 0

    def append(self, i):
        more = added(self.numbers[i], self.version[i], self.appended[i])
        self.appended[i] += 1
        self.ask((len(self.value(i)), 0), b"APPEND", key_of(self.numbers[i]), more)

    def expire(self, i):
        self.deadline[i] = now_ms() + self.chance.randrange(LATEST_MS)
        self.ask((1, 0), b"PEXPIREAT", key_of(self.numbers[i]), b"%d" % self.deadline[i])

    def one(self):
        chance = self.chance.random
        few = max(1, len(self.numbers) // 50)  # that are asked for more often than others
        i = self.chance.randrange(few if chance() < 0.3 else len(self.numbers))
        what = chance()
        if not self.there[i] and what < 0.8:
            self.set(i)
        elif what < 0.55:
            self.get(i)
        elif what < 0.83:
            self.set(i)
        elif what < 0.86:
            self.set(i, now_ms() + self.chance.randrange(LATEST_MS))
        elif what < 0.89:
            self.delete(i)
        elif self.deadline[i] or not self.there[i]:
            self.get(i)
        elif what < 0.91:
            self.expire(i)
        elif self.appended[i] < MOST_APPENDED:
            self.append(i)
        else:
            self.get(i)

    # -- and their answers

    def flush(self):
        begun = now_ms()
        self.connection.send(self.commands)
        answers = [self.connection.reply() for _ in self.commands]
        ended = now_ms()
        for command, answer, (wanted, deadline) in zip(self.commands, answers, self.expected):
            nothing = 0 if isinstance(wanted, int) else None
            # From its deadline on nobody sees a record; just then, both are right.
            if deadline and begun > deadline:
                wanted = nothing
            if answer == wanted or deadline and ended >= deadline and answer == nothing:
                continue
            raise AssertionError(f"{command[:2]}: wanted {wanted!r:.200}, got {answer!r:.200}, "
                                 f"deadline {deadline}, {begun} to {ended}")
        self.commands.clear()
        self.expected.clear()
        self.batches += 1

    def for_all(self, command):
        for i in range(len(self.numbers)):
            command(i)
            if len(self.commands) == 64:
                self.flush()
        self.flush()

    def fill(self):
        self.for_all(self.set)

    def load(self):
        while not self.ending.is_set():
            for _ in range(BATCH):
                self.one()
            self.flush()

    def verify(self):
        self.for_all(self.get)
        self.verified = len(self.numbers)

    def run(self):
        try:
            self.load()
            self.verify()
        except Exception as error:  # whatever it is, the test is told
            self.error = f"{type(error).__name__}: {error}"

    def live(self):
        now = now_ms()
        return sum(there and not 0 < deadline < now
                   for there, deadline in zip(self.there, self.deadline))


class Sampler(threading.Thread):
    """Where the server's pages are, until stop()."""

    def __init__(self, test, pid):
        super().__init__(daemon=True)
        self.test, self.pid = test, pid
        self.rows = []
        self.stopping = threading.Event()

    def run(self):
        while not self.stopping.wait(0.25):
            self.rows += [row for row in self.test.clients() if row["pid"] == self.pid]

    def stop(self):
        self.stopping.set()
        self.join()

    def median(self, key):
        return statistics.median(row[key] for row in self.rows)


@ctest("redis_disk", "nightly", minutes=2)
class RedisOnDisk(OnDisk):
    START_DAEMON = False
    SHARES = 4

    def setUp(self):
        super().setUp()
        for needed in ("redis-server", "redis-cli"):
            if not shutil.which(needed):
                self.skipTest(f"{needed} is not installed")

    def note(self, what):
        print(f"{time.monotonic() - self.begun:6.1f} s: {what}", flush=True)

    def in_each(self, shares, function):
        """At the same time; what one of them raises is raised here."""
        errors = []

        def work(share):
            try:
                function(share)
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(share,), daemon=True) for share in shares]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for error in errors:
            raise error

    def wait_for_all(self, shares, batches):
        before = [share.batches for share in shares]
        wait_until("the load to go on", lambda: all(
            share.error or share.batches >= count + batches
            for share, count in zip(shares, before)), 120)
        self.assertEqual([share.error for share in shares if share.error], [])

    def save(self, server, shares):
        """BGSAVE under load; for every record the versions it may have in what is saved."""
        oldest = [list(share.version) for share in shares]
        self.wait_for_all(shares, 2)  # all that has been executed
        faults = self.stats()["faults"]["disk"]
        server.begin_save()
        newest = [list(share.version) for share in shares]
        server.end_save()
        self.wait_for_all(shares, 1)
        self.assertGreater(self.stats()["faults"]["disk"], faults)
        return oldest, newest

    def check_saved(self, shares, directory, oldest, newest):
        """What the forked child saw of its memory: every value whole, and of its time."""
        server = Server(self, "saved", self.plain, directory)
        connection = Connection(server)
        found = 0
        for share, least, most in zip(shares, oldest, newest):
            for at in range(0, len(share.numbers), 64):
                batch = range(at, min(at + 64, len(share.numbers)))
                connection.send([(b"GET", key_of(share.numbers[i])) for i in batch])
                for i in batch:
                    value = connection.reply()
                    if value is None:
                        continue  # deleted or expired, then or since
                    version = int(value[value.index(b".") + 1:value.index(b":")])
                    self.assertTrue(least[i] <= version <= most[i], f"{i}: {value!r:.100}")
                    self.assertIn(value, [contents(share.numbers[i], version, appended)
                                          for appended in range(MOST_APPENDED + 1)])
                    found += 1
        connection.close()
        self.assertEqual(found, int(server.cli("dbsize")))
        server.shutdown()
        return found

    def on_disk(self, mb, budget_mb, pool_mb, seconds, least_faults):
        self.begun = time.monotonic()
        self.daemon = self.start_daemon({**self.SETTINGS, "pool.limit": f"{pool_mb}M"})
        directory = os.path.join(self.tmp, "data")
        os.mkdir(directory)
        server = Server(self, "redis", lambda command: self.client(
            command, f"{budget_mb}M", name="redis"), directory)
        pid = server.proc.pid
        total = mb * MIB // RECORD_BYTES
        shares = [Share(server, n, self.SHARES, total, self.seed) for n in range(self.SHARES)]
        self.in_each(shares, Share.fill)
        used = int(server.info("used_memory"))
        self.note(f"{total} records, {used / MIB:.0f} MiB used, budget {budget_mb} MiB, "
                  f"pool {pool_mb} MiB")

        sampler = Sampler(self, pid)
        sampler.start()
        before = self.stats()
        end = time.monotonic() + seconds
        for share in shares:
            share.start()
        time.sleep(seconds / 6)
        self.wait_for_all(shares, 1)
        saved = self.save(server, shares)
        self.note("saved under load")
        while time.monotonic() < end:
            self.wait_for_all(shares, 1)
            time.sleep(0.1)
        after = self.stats()
        sampler.stop()
        disk = after["writeback"]
        held = budget_mb * MIB + pool_mb * MIB * disk["pages"] * 4096 // disk["compressed_bytes"]
        for share in shares:
            share.ending.set()
        self.note("load ends")
        for share in shares:
            share.join()
        self.assertEqual([share.error for share in shares if share.error], [])
        self.assertEqual(sum(share.verified for share in shares), total)
        self.note("every record verified")
        wait_until("records to expire", lambda: int(server.cli("dbsize")) == sum(
            share.live() for share in shares), LATEST_MS / 1000 + 30)
        server.shutdown()
        stats = self.finish_daemon()
        found = self.check_saved(shares, directory, *saved)
        self.note(f"{found} records of the dump verified")
        self.assertGreater(found, total * 9 // 10)

        counts = {}
        for share in shares:
            for what, count in share.counts.items():
                counts[what.decode()] = counts.get(what.decode(), 0) + count
        print(f"commands {counts}\n"
              f"{used / held:.1f} times what budget and pool can hold ({held / MIB:.0f} MiB)\n"
              f"half of the time at least: {sampler.median('resident_bytes') / MIB:.0f} MiB "
              f"resident, {sampler.median('pool_pages') / 256:.0f} MiB of pages in the pool, "
              f"{sampler.median('disk_pages') / 256:.0f} MiB on disk\n"
              f"under load: disk faults {after['faults']['disk'] - before['faults']['disk']}, "
              f"all {after['faults']['total'] - before['faults']['total']}\n"
              f"{stats['writeback']}\n{stats['evict']}\n{stats['faults']}", flush=True)
        self.assert_worked(stats)
        self.assertEqual((stats["faults"]["poisoned"], stats["faults"]["lost_pages"]), (0, 0))
        self.assertGreaterEqual(used, 4 * held, "budget and pool can hold more")
        self.assertGreater(sampler.median("disk_pages") * 4096, used // 2,
                           "most of the data was not on disk")
        self.assertGreater(after["faults"]["disk"] - before["faults"]["disk"], least_faults)

    def test_one_minute(self):
        self.on_disk(288, 32, 6, 60, 5000)


if __name__ == "__main__":
    harness.main()
