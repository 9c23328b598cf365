"""The daemon dies at every crash point (tests/crash/points.h) that clients at work bring it to: before
each store to a memory file that outlives it, before and after each system call. Its keeper starts
the next one. Every client verifies its memory all the time; none may find a wrong byte, hang or end.

`some`: points chosen at random. `all`: whatever point it comes to, from the first start to the
end, it dies there if none has died there, so that none is left (and a hang is what takes minutes).
`first_start`, `stop`: those that the first start and the end come to, a client being looked at
after each.

What is chosen comes from the seed, what the daemon comes to does not. A failure names the points
that were died at since the client began. FOLDSWAP_CRASH_LIST names a file for the list of points;
FOLDSWAP_CRASH_SECONDS is how long the clients of `all` work."""

import contextlib
import os
import random
import re
import signal
import subprocess
import threading
import time
import unittest
from collections import Counter

from lib import crash_points, harness
from lib.ctest import ctest, inherited
from lib.harness import E2E, Place, slower, wait_until

SETTINGS = {"pool.codec": ("lz4", "zstd:1"), "pool.cold_codec": ("none", "zstd:3"),
            "pool.waste_max": ("1", "3", "30"), "fault.readahead_max": ("1", "8", "64")}
HANG_SECONDS = 30
LONGEST_PATIENCE = 8
REFUSED = 125  # `foldswap run --require` found no daemon that would have it: one was dying


def threads_of(pid):
    """What the threads of a process that hangs, and of its children, wait in."""
    lines = []
    with contextlib.suppress(OSError):
        for tid in os.listdir(f"/proc/{pid}/task"):
            words = [f"pid {pid} thread {tid}"]
            for name in ("comm", "wchan", "syscall", "stack", "children"):
                with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{tid}/{name}",
                                                        encoding="ascii") as f:
                    words.append(f.read().strip())
            lines.append(" | ".join(words))
            lines += [threads_of(int(child)) for child in words[-1].split() if child.isdigit()]
    return "\n".join(lines)


class Worker(threading.Thread):
    """Runs round() again and again until told to stop. What fails is noted, and it goes on."""

    def __init__(self, test, seed):
        super().__init__(daemon=True)
        self.running = None  # its client
        self.name_of_client, self.known_before, self.deaths_before = None, 0, 0
        self.test = test
        self.random = random.Random(seed)
        self.stopping = threading.Event()
        self.rounds = self.completed = 0
        self.start()

    def run(self):
        while not self.stopping.is_set():
            try:
                self.round()
            except Exception as error:  # whatever it is, a client did not do its work
                if self.running is None or self.running.poll() != REFUSED:
                    self.failed(error)
                self.forget()
            self.rounds += 1

    def failed(self, error):
        where = threads_of(self.running.pid) if self.running is not None else ""
        self.test.note_failure(f"{type(self).__name__}: {error}\n{where}", self.deaths_before)

    def client(self, command, budget, name, **more):
        self.deaths_before = len(self.test.deaths)
        self.running = self.test.client([Place.program(command[0]), *command[1:]], budget, name,
                                        **more)
        return self.running

    def forget(self):
        if self.running is None:
            return
        self.running.kill()
        self.test.procs.remove(self.running)
        self.running = None

    def finished(self, client):
        """It has said all that it had to say."""
        code = client.wait(self.test.hang_seconds)
        if code != 0:
            raise AssertionError(f"status {code}: {client.stderr().decode(errors='replace')}")
        self.forget()
        self.completed += 1


class Torturer(Worker):
    def round(self):
        seconds = self.random.randrange(3, 20)
        client = self.client(["torture", f"--seed={self.random.randrange(1 << 30)}",
                              f"--seconds={seconds}", "--threads=3", "--fork=1", "--mb=24",
                              f"--hang={slower(self.test.hang_seconds)}"], "10M", "tortured",
                             options=())  # what it executes waits for some seconds only
        client.expect("ready", self.test.hang_seconds)
        said = client.line(seconds + 2 * self.test.hang_seconds)
        if not said.startswith("done "):
            raise AssertionError(said)
        self.finished(client)


class Family(Worker):
    """Children with and without an agent, which inherit what is out and verify it."""

    def round(self):
        hang_seconds = self.test.hang_seconds
        client = self.client(["family", "--mb=6", f"--seed={self.random.randrange(1 << 30)}"], "2M",
                             "family")
        client.expect("ready", hang_seconds)
        children = 0
        for _ in range(self.random.randrange(4, 12)):
            pick = self.random.randrange(6)
            if pick < 2 and children < 4:
                client.send(self.random.choice(("fork", "rawfork")))
                int(client.line(hang_seconds))
                children += 1
            elif pick == 2:
                client.ask("storm 2 2", seconds=hang_seconds)
            elif pick == 3:
                client.ask("brief 3", seconds=hang_seconds)
            else:
                client.ask("write 200", seconds=hang_seconds)
            if children != 0:
                client.ask(f"at {self.random.randrange(children)} verify", seconds=hang_seconds)
            client.ask("verify", seconds=hang_seconds)
        client.close_input()
        self.finished(client)


class Passer(Worker):
    """Comes and goes, as a client if it can."""

    def round(self):
        client = self.client(["sweep", "--mb=3", "--passes=2"], "1M", "passing", options=())
        client.expect("populated", self.test.hang_seconds)
        if not client.line(self.test.hang_seconds).startswith("done "):
            raise AssertionError("sweep did not end well")
        self.finished(client)
        time.sleep(self.random.random())


class Orders(Worker):
    """So that something is on its way out, or back. Whether an order is carried out is up to the
    daemon, which may die over it."""

    def round(self):
        pick = self.random.randrange(100)
        if pick < 50:
            self.test.cli("reclaim", "--all", "--bytes", f"{self.random.randrange(1, 16)}M")
        elif pick < 65:
            self.test.cli("restore", "--all", "--hold", "0")
        elif pick < 80:
            self.test.cli("limit", "--client", "tortured", self.random.choice(("4M", "10M", "none")))
        elif pick < 90:
            key = self.random.choice(sorted(SETTINGS))
            self.test.cli("set", key, self.random.choice(SETTINGS[key]))
        else:
            self.test.cli(self.random.choice(("clients", "metrics")))
        time.sleep(self.random.random() * 0.2)


@ctest("crash_points_list", "e2e quick", load="light")
class List(unittest.TestCase):
    def test_names(self):
        """What tests/crash/POINTS.md lists are functions that there are."""
        text = ""
        for room in ("base", "daemon", "pool"):
            for directory, _, names in os.walk(os.path.join(crash_points.ROOT, room)):
                for name in names:
                    with open(os.path.join(directory, name), encoding="utf-8") as f:
                        text += f.read()
        words = set(re.findall(r"\w+", text))
        found = crash_points.listed()
        self.assertGreater(len(found), 50)
        names = {name for (_, outer), inner in found.items() for name in {outer, *inner}}
        gone = {n for n in names - {"itself", "operator()"}
                if n.rpartition("::")[2].lstrip("~") not in words}
        self.assertEqual(gone, set())


@ctest("crash_points", "e2e slow")
class CrashPoints(E2E):
    SETTINGS = {"evict.quarantine_s": "0"}
    START_DAEMON = False

    def setUp(self):
        super().setUp()
        self.binary = Place.binary("foldswapd_crash")
        if not os.path.exists(self.binary):
            self.skipTest("foldswapd_crash is not built: g++ without sanitizers builds it")
        self.random = random.Random(self.seed)
        self.control = crash_points.Control(os.path.join(self.tmp, "points"))
        self.lock, self.log_lock = threading.Lock(), threading.Lock()
        self.failures, self.deaths = [], []
        self.hang_seconds = HANG_SECONDS
        self.places = {}

    def settings(self):
        return self.SETTINGS

    def begin(self, name="crashing", ready_seconds=20):
        self.daemon = self.start_daemon(self.settings(), name, ready_seconds, keeper=True,
                                        binary="foldswapd_crash",
                                        env={"FOLDSWAP_CRASH_CONTROL": self.control.path})
        self.log_seen = 0

    def describe(self, point):
        if point not in self.places:
            known = set(self.control.counts()) | {point}
            self.places = crash_points.symbolise(self.binary, known)
        return crash_points.describe(point, self.places[point])

    def note_failure(self, text, since=None):
        with self.lock:
            last = self.deaths[-8:] if since is None else self.deaths[since:]
            self.failures.append((text, last))
        print(f"FAILURE: {text}\n  after deaths at:", flush=True)
        for point in last:
            print(f"  {self.describe(point)}", flush=True)

    def look_at_log(self):
        """A client that was killed is a failure, and so is a daemon that died by itself, or hung."""
        with self.log_lock:
            text = self.daemon.log(self.log_seen)
            end = text.rfind("\n") + 1
            self.log_seen += len(text[:end].encode())
            for line in text[:end].splitlines():
                if re.search(r"\): killed: | poisoned|was ended by (?!signal 9\b)|no sign of life", line):
                    self.note_failure(line)

    # -- deaths

    def worker_pid(self):
        children = self.daemon.children()
        return children[0] if children else 0

    def served(self):
        """The daemon that serves now; 0 when none does yet."""
        before = self.worker_pid()
        result = self.cli("stats", "--json", seconds=30)
        return before if result.returncode == 0 and f'"pid":{before},' in \
            result.stdout.replace(" ", "") else 0

    def await_daemon(self):
        self.pid = wait_until("the next daemon", self.served, 60, every=0.01)
        now = self.control.counts()
        self.in_start = {p for p, n in now.items() if n != self.at_death.get(p, 0)}
        self.at_ready = now

    def died(self, point, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.control.death():
                return True
            time.sleep(0.005)
        return False

    def die_at(self, point, patience):
        """Whether the daemon could be brought to it: at work, or, after another death, in the start
        of the next one."""
        self.control.arm(point, self.random.choice((1, 1, 1, 2, 5)) if patience > 1 else 1)
        counts = self.control.counts()
        starting = point in self.in_start and counts.get(point) == self.at_ready.get(point)
        died = self.died(point, 0.3 if starting and patience < LONGEST_PATIENCE else patience)
        if not died and not self.control.death():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self.at_death = self.control.counts()
        gone = self.pid
        wait_until("it to be gone", lambda: self.worker_pid() != gone, 20, every=0.005)
        self.await_daemon()
        died = self.control.death() != 0
        self.control.disarm()
        if died:
            self.deaths.append(point)
        self.look_at_log()
        return died

    def hunt(self, most, seconds):
        """Dies at points that were come to, each once, until there is none left that was tried less
        than three times."""
        end = time.monotonic() + seconds
        tried, hit = Counter(), set()
        while len(hit) < most and time.monotonic() < end:
            left = [p for p in self.control.counts() if p not in hit and tried[p] < 3]
            if not left:
                break
            least = min(tried[p] for p in left)
            point = self.random.choice(sorted(p for p in left if tried[p] == least))
            tried[point] += 1
            if self.die_at(point, (1, 3, LONGEST_PATIENCE)[tried[point] - 1]):
                hit.add(point)
            if len(hit) % 50 == 0 and self.deaths[-1:] == [point]:
                print(f"{len(hit)} hit of {len(self.control.counts())}", flush=True)
        return hit

    @contextlib.contextmanager
    def at_work(self):
        """Clients work meanwhile, and then end well."""
        workers = [kind(self, self.random.randrange(1 << 30))
                   for kind in (Torturer, Family, Passer, Orders)]
        yield
        for worker in workers:
            worker.stopping.set()
        for worker in workers:
            worker.join(slower(300) + self.hang_seconds)
            self.assertFalse(worker.is_alive(), f"{type(worker).__name__} hangs")
        self.look_at_log()
        print(f"rounds: {', '.join(f'{type(w).__name__} {w.rounds}' for w in workers)}; "
              f"{len(self.failures)} failures", flush=True)
        self.assertEqual(self.failures, [])
        idle = [type(w).__name__ for w in workers if w.completed == 0 and not isinstance(w, Orders)]
        self.assertEqual(idle, [], "not one client of these did all of its work")
        self.control.check(self)

    def report(self, hit, began):
        counts = self.control.counts()
        print(f"{len(counts)} points, {len(hit)} died at, {time.monotonic() - began:.0f} s",
              flush=True)
        self.show_points(counts, hit)

    def unlisted(self):
        """Functions that have points, and that tests/crash/POINTS.md does not know."""
        counts = self.control.counts()
        places = crash_points.symbolise(self.binary, counts)
        there = crash_points.entries(crash_points.describe(p, places[p]) for p in counts)
        missing = sorted(set(there) - set(crash_points.listed()))
        if missing:
            print(f"not in tests/crash/POINTS.md, see tests/e2e/lib/crash_points.py: {missing}")
        return missing

    def show_points(self, counts, hit):
        path = os.environ.get("FOLDSWAP_CRASH_LIST")
        if path is None:
            return
        self.places = crash_points.symbolise(self.binary, counts)
        with open(path, "w", encoding="utf-8") as f:
            for point in sorted(counts):
                verdict = "died" if point in hit else "not died"
                f.write(f"{verdict}\t{counts[point]}\t{self.describe(point)}\n")

    def test_some(self):
        self.begin()
        self.at_death = self.control.counts()
        self.await_daemon()
        with self.at_work():
            time.sleep(4)
            began = time.monotonic()
            hit = self.hunt(40, slower(60))
            self.report(hit, began)
        self.assertGreaterEqual(len(hit), 10)
        self.unlisted()  # a rare one may be come to here first
        self.finish_daemon()

    # -- all of them

    def note_deaths(self):
        with self.lock:
            self.deaths = self.control.died_at()

    def die_wherever(self, seconds):
        """Daemons die by themselves where none has, for so long. One that does not die for some
        time is killed: recovery comes to some points seldom. At first they die one after another,
        most of them in their start, with the keeper's pauses in between: clients wait long."""
        begun = said = time.monotonic()
        seen, since, patience = 0, begun, 1.0
        while time.monotonic() < begun + seconds:
            self.look_at_log()
            now = time.monotonic()
            if now > said + 60:
                said = now
                print(f"died at {seen} points", flush=True)
            if (deaths := self.control.deaths()) != seen:
                self.note_deaths()
                seen, since, patience = deaths, now, self.random.uniform(0, 8)
            elif now > since + patience and (pid := self.served()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                since, patience = now, self.random.uniform(0, 8)
            time.sleep(0.005)

    def stop_wherever(self, client):
        """It gives back what it has, dying over it."""
        end = time.monotonic() + 600
        while self.daemon.running() and time.monotonic() < end:
            with contextlib.suppress(ProcessLookupError):
                self.daemon.popen.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.daemon.popen.wait(1)
        self.assertFalse(self.daemon.running(), "it does not end")
        self.end_daemon()
        self.end_sweeper(client)

    @ctest(labels="nightly", timeout=7200, minutes=38)
    def test_all(self):
        self.hang_seconds = 600
        self.control.arm_all()
        began = time.monotonic()
        self.begin(ready_seconds=600)
        self.note_deaths()
        print(f"the first start: died at {len(self.deaths)} points", flush=True)
        with self.at_work():
            self.die_wherever(float(os.environ.get("FOLDSWAP_CRASH_SECONDS", "1800")))
        self.control.disarm()
        wait_until("the last daemon", self.served, 60)
        self.assertGreater(self.stats()["evict"]["pages"], 10_000, "next to nothing was evicted")
        self.check_nothing_left()
        client = self.sweeper()
        self.reclaim(client.pid)
        self.control.arm_all()
        self.stop_wherever(client)
        self.note_deaths()
        self.report(set(self.deaths), began)
        self.assertEqual(set(self.control.counts()) - set(self.deaths), set())
        self.assertEqual(self.unlisted(), [])

    # -- the first start and the end: a daemon of its own for each point

    def sweeper(self):
        client = self.client([Place.program("sweep"), "--mb=2", "--until_eof=1"], "1M", "sweeping")
        client.expect("populated", self.hang_seconds)
        return client

    def end_sweeper(self, client):
        client.close_input()
        client.expect("done", self.hang_seconds)
        self.assertEqual(client.wait(self.hang_seconds), 0, client.stderr().decode(errors="replace"))
        client.kill()
        self.procs.remove(client)

    def end_daemon(self):
        self.daemon.stop()
        self.look_at_log()
        self.assertEqual(self.failures, [])
        self.daemons.remove(self.daemon)

    def one_by_one(self, points, live):
        """`live` takes a daemon through the part of its life in which it comes to them."""
        missed = []
        for number, point in enumerate(sorted(points)):
            try:
                live(f"life{number}", point)
            except BaseException:
                print(f"died at {self.describe(point)}", flush=True)
                raise
            if not self.control.death():
                missed.append(point)
            self.control.disarm()
        print(f"{len(points)} points, {len(points) - len(missed)} died at; not come to again:")
        for point in missed:
            print(f"  {self.describe(point)}")
        self.assertLess(len(missed), len(points) // 4)

    def first_life(self, name, point):
        if point:
            self.control.arm(point)
        self.begin(name)
        client = self.sweeper()
        self.reclaim(client.pid)
        self.end_sweeper(client)
        self.end_daemon()

    @ctest(labels="nightly", minutes=8)
    def test_first_start(self):
        """There is nobody yet; one that died before it was ready is followed by one that is."""
        self.begin()
        points = set(self.control.counts())
        self.end_daemon()
        self.one_by_one(points, self.first_life)

    def test_ready_is_sent_again(self):
        """The daemon dies when it serves a new client and has not told it yet."""
        self.begin()
        self.end_sweeper(self.sweeper())
        points = [p for p in self.control.counts() if "after a call: EvictThread::kick" in
                  self.describe(p) and "Daemon::place" in self.describe(p)]
        self.assertNotEqual(points, [])
        for point in points:
            self.control.arm(point)
            client = self.sweeper()
            self.assertNotEqual(self.control.death(), 0)
            self.assertGreater(self.reclaim(client.pid), 0)
            self.end_sweeper(client)
        self.end_daemon()

    def last_life(self, name, point):
        """It dies while it gives everything back, and its successor is asked to."""
        self.begin(name)
        client = self.sweeper()
        self.reclaim(client.pid)
        before = self.control.counts()
        if point:
            self.control.arm(point)
        self.daemon.popen.send_signal(signal.SIGTERM)
        wait_until("it to be gone", lambda: not self.daemon.running() or self.control.death(), 60,
                   every=0.005)
        # It has been told to end before, and may already have.
        wait_until("the next daemon, or its end",
                   lambda: not self.daemon.running() or self.served(), 60, every=0.01)
        self.end_daemon()
        self.end_sweeper(client)
        now = self.control.counts()
        return {p for p, times in now.items() if times != before.get(p, 0)}

    @ctest(labels="nightly", minutes=8)
    def test_stop(self):
        self.at_death = {}
        self.one_by_one(self.last_life("first", 0), self.last_life)


@inherited("some", "all")
@ctest("crash_points_with_disk", "e2e slow")
class CrashPointsWithDisk(CrashPoints):
    def settings(self):
        return {**self.SETTINGS, "writeback.dir": self.directory(), "pool.limit": "4M",
                "writeback.max": "64M", "writeback.free_min": "16M"}


if __name__ == "__main__":
    harness.main()
