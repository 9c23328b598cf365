"""What the end-to-end tests stand on: a private daemon, programs run plainly or as its clients,
and the checks that every run ends with.

Every test has its own runtime directory and its own daemon, so tests do not see each other.
Everything started here is ended here, by its own process id. A daemon that does not end on SIGTERM
with status 0, or whose log holds a sanitizer's report, fails the test; on any failure the daemon's
log is printed.

Run one test:     python3 test_reclaim.py --build-dir BUILD Reclaim.everything
List those of a file, as CTest is told of them (ctest.py):   python3 test_reclaim.py --list
"""

import contextlib
import ctypes
import json
import os
import random
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

from lib import ctest

SKIP = 77  # the exit status that CTest counts as "skipped"; the reason is printed
MIB = 1 << 20
SANITIZER_MARKS = ("ERROR: AddressSanitizer", "ERROR: LeakSanitizer", "WARNING: ThreadSanitizer",
                   "runtime error:", "terminate called", "FATAL: ThreadSanitizer")
LOG_NOISE = re.compile(r" info foldswapd: \S+ is now ")  # orders that a test gave itself
FAULT_KINDS = ("zero", "same_filled", "pool", "disk", "rescued", "poisoned")
PRCTL = ctypes.CDLL(None).prctl
PR_SET_PDEATHSIG = 1
STATES = ("active", "agentless", "released", "exiting")
NO_CLIENT = ("announced", "refused")  # what rows of processes have that are no clients (yet)


class Place:
    """Where the build is; set once by main()."""
    build = ""
    sanitized = False

    @classmethod
    def binary(cls, name):
        return os.path.join(cls.build, "bin", name)

    @classmethod
    def library(cls):
        return os.path.join(cls.build, "lib", "libfoldswap.so")

    @classmethod
    def program(cls, name):
        return os.path.join(cls.build, "tests", "programs", name)


def die_with_parent():
    """In a child, before exec: a test that is killed itself (a time-out) leaves nothing running."""
    PRCTL(PR_SET_PDEATHSIG, signal.SIGKILL)


def slower(seconds):
    """A time bound, with room for sanitizers and busy machines. Bounds catch hangs; they judge no
    speed."""
    return seconds * (6 if Place.sanitized else 2)


def wait_until(what, condition, seconds=20.0, every=0.05):
    """Waits for condition() to be true and returns its value."""
    end = time.monotonic() + slower(seconds)
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {slower(seconds):.0f} s: {what}")
        time.sleep(every)


def accepts(path, kind):
    """Is somebody there? A socket file alone may be what a killed daemon left behind."""
    with socket.socket(socket.AF_UNIX, kind) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def status_kib(pid, *keys):
    """The sum of fields of /proc/PID/status, in bytes; None when the process is gone."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as f:
            fields = dict(line.split(":", 1) for line in f if ":" in line)
        return sum(int(fields[key].split()[0]) for key in keys) * 1024
    except (OSError, KeyError):
        return None


def in_memory(directory):
    kind = subprocess.run(["stat", "-f", "-c", "%T", directory], capture_output=True, text=True,
                          check=True).stdout.strip()
    return kind in ("tmpfs", "ramfs")


def rss_anon(pid):
    return status_kib(pid, "RssAnon")


def descriptor_count(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def vm_flags(pid):
    with open(f"/proc/{pid}/smaps", encoding="ascii", errors="replace") as f:
        return [line.split(":")[1].split() for line in f if line.startswith("VmFlags:")]


def clean_environment():
    env = {k: v for k, v in os.environ.items() if not k.startswith("FOLDSWAP_")}
    env.pop("LD_PRELOAD", None)
    env["PYTHONHASHSEED"] = "0"
    env["LC_ALL"] = "C"
    return env


class Proc:
    """A running program with pipes; its output is read here, line by line or whole, always with a
    time bound."""

    def __init__(self, command, env=None, cwd=None, stdout=subprocess.PIPE):
        self.command = command
        self.errors = tempfile.TemporaryFile()
        self.popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stdout,
                                      stderr=self.errors,
                                      env=env or clean_environment(), cwd=cwd, bufsize=0,
                                      preexec_fn=die_with_parent)
        self.pid = self.popen.pid
        self.buffer = bytearray()  # not yet taken as a line
        self.output = bytearray()  # all of it
        self.max_rss = 0
        self.code = None

    def stderr(self):
        self.errors.seek(0)
        return self.errors.read()

    def _describe(self):
        return (f"{' '.join(self.command[-6:])} (pid {self.pid}, status {self.code}): "
                f"stderr:\n{self.stderr().decode(errors='replace')}")

    def read_some(self, end):
        """More output into the buffer; False at its end."""
        left = max(0.0, end - time.monotonic())
        if not select.select([self.popen.stdout], [], [], left)[0]:
            raise AssertionError(f"no output in time: {self._describe()}")
        data = os.read(self.popen.stdout.fileno(), 1 << 16)
        self.output += data
        self.buffer += data
        return bool(data)

    def line(self, seconds=60):
        end = time.monotonic() + slower(seconds)
        while b"\n" not in self.buffer:
            if not self.read_some(end):
                self.wait(5)
                raise AssertionError(f"ended early: {self._describe()}")
        end_of_line = self.buffer.index(b"\n")
        line = self.buffer[:end_of_line].decode(errors="replace")
        del self.buffer[: end_of_line + 1]
        return line

    def expect(self, wanted, seconds=60):
        got = self.line(seconds)
        if got != wanted:
            raise AssertionError(f"expected {wanted!r}, got {got!r}: {self._describe()}")

    def send(self, command):
        self.popen.stdin.write(command.encode() + b"\n")

    def ask(self, command, answer="ok", seconds=60):
        self.send(command)
        self.expect(answer, seconds)

    def close_input(self):
        if not self.popen.stdin.closed:
            self.popen.stdin.close()

    def poll(self):
        if self.code is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid == self.pid:
                self._ended(status, usage)
        return self.code

    def _ended(self, status, usage):
        self.code = os.waitstatus_to_exitcode(status)
        self.popen.returncode = self.code
        self.max_rss = usage.ru_maxrss * 1024

    def wait(self, seconds=60):
        end = time.monotonic() + slower(seconds)
        pause = 0.001
        while self.poll() is None:
            if time.monotonic() > end:
                raise AssertionError(f"does not end: {self._describe()}")
            time.sleep(pause)
            pause = min(pause * 2, 0.05)
        return self.code

    def finish(self, seconds=60):
        """Closes the input, reads the output to its end and waits."""
        self.close_input()
        end = time.monotonic() + slower(seconds)
        while self.popen.stdout and self.read_some(end):
            pass
        return self.wait(seconds)

    def kill(self):
        if self.poll() is None:
            try:
                os.kill(self.pid, signal.SIGKILL)
                os.kill(self.pid, signal.SIGCONT)
            except ProcessLookupError:
                pass
            try:
                self.wait(20)
            except AssertionError as error:
                print(f"could not be killed: {error}", file=sys.stderr)
        for stream in (self.popen.stdin, self.popen.stdout):
            if stream and not stream.closed:
                stream.close()
        self.errors.close()


class RssSampler(threading.Thread):
    """Samples a process's RssAnon each 100 ms until it ends or stop() is called."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid = pid
        self.samples = []  # (time, bytes)
        self.stopping = threading.Event()

    def run(self):
        while not self.stopping.wait(0.1):
            value = rss_anon(self.pid)
            if value is None:
                return
            self.samples.append((time.monotonic(), value))

    def stop(self):
        self.stopping.set()
        self.join()


class Daemon:
    """A private foldswapd in the foreground of its own runtime directory."""

    def __init__(self, runtime_dir, settings=None, keeper=False, wrap=(), env=None,
                 binary="foldswapd"):
        self.dir = runtime_dir
        self.keeper = keeper
        self.log_path = os.path.join(runtime_dir, "..", os.path.basename(runtime_dir) + ".log")
        command = [*wrap, Place.binary(binary), "--runtime-dir", runtime_dir]
        if keeper:
            command.append("--keeper")
        for key, value in (settings or {}).items():
            command += ["--set", f"{key}={value}"]
        environment = clean_environment()
        environment.update({"ASAN_OPTIONS": "exitcode=99:detect_leaks=1",
                            "TSAN_OPTIONS": "exitcode=98",
                            "UBSAN_OPTIONS": "print_stacktrace=1"})
        environment.update(env or {})
        with open(self.log_path, "ab") as log:
            self.popen = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                          env=environment, preexec_fn=die_with_parent)
        self.pid = self.popen.pid

    def wait_ready(self, seconds=20):
        def ready():
            if self.popen.poll() is not None:
                raise AssertionError(f"ended at once with {self.popen.returncode}\n{self.log()}")
            return (accepts(os.path.join(self.dir, "admin.sock"), socket.SOCK_STREAM)
                    and accepts(os.path.join(self.dir, "client.sock"), socket.SOCK_SEQPACKET))

        wait_until("the daemon's sockets", ready, seconds)
        return self

    def log(self, since=0):
        with open(self.log_path, "rb") as f:
            f.seek(since)
            return f.read().decode(errors="replace")

    def log_size(self):
        return os.path.getsize(self.log_path)

    def memory(self):
        return status_kib(self.pid, "RssAnon", "RssShmem")

    def running(self):
        return self.popen.poll() is None

    def stop(self, seconds=60):
        """SIGTERM; the status must be 0 and the log free of reports."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
            try:
                self.popen.wait(slower(seconds))
            except subprocess.TimeoutExpired:
                self.kill()
                raise AssertionError("the daemon did not end on SIGTERM") from None
        self.check_log()
        if self.popen.returncode != 0:
            raise AssertionError(f"the daemon ended with status {self.popen.returncode}")

    def check_log(self):
        text = self.log()
        for mark in SANITIZER_MARKS:
            if mark in text:
                raise AssertionError(f"the daemon's log holds {mark!r}")

    def children(self):
        try:
            with open(f"/proc/{self.pid}/task/{self.pid}/children", encoding="ascii") as f:
                return [int(pid) for pid in f.read().split()]
        except OSError:
            return []

    def kill(self):
        """With a keeper: the keeper, and the daemon that it has started, which outlives it."""
        children = []
        if self.keeper and self.popen.poll() is None:
            self.popen.send_signal(signal.SIGSTOP)  # it starts no other one
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            children = self.children()
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait()
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def check_writeback(stats, quiet, check):
    """The part of the disk tier."""
    disk, on_disk = stats["writeback"], sum(c["disk_pages"] for c in stats["clients"])
    if not disk["enabled"]:
        for key in ("file_bytes", "live_bytes", "pages", "written_bytes", "read_bytes", "errors"):
            check(disk[key] == 0, f"no writeback, but writeback.{key} is {disk[key]}")
        check(on_disk == 0, f"no writeback, but {on_disk} pages on disk")
        return
    objects = disk["pages"] + disk["kept_pages"]
    check(disk["compressed_bytes"] <= objects * 4096, "an object on disk is over a page")
    check(disk["live_bytes"] <= disk["file_bytes"], "more is live than the file has")
    if quiet:
        check(disk["pages"] <= on_disk, f"{disk['pages']} objects on disk, {on_disk} mapped")
        check(disk["compressed_bytes"] <= disk["live_bytes"],
              "more compressed bytes on disk than live ones")
        check((objects == 0) == (disk["live_bytes"] == 0),
              f"{disk['live_bytes']} live bytes of {objects} objects on disk")


def conservation_errors(stats, quiet=False, poisoned=0):
    """What does not add up in a `stats --json`; quiet: nothing is in flight, so more must hold.
    poisoned: pages that a test has damaged and the program has met."""
    errors = []

    def check(ok, what):
        if not ok:
            errors.append(what)

    pool, faults, clients = stats["pool"], stats["faults"], stats["clients"]
    for c in clients:
        who = f"client {c['pid']} {c['name']}"
        parts = c["pool_pages"] + c["disk_pages"] + c["same_filled_pages"]
        check(c["evicted_pages"] == parts,
              f"{who}: evicted {c['evicted_pages']} but the parts are {parts}")
        check(c["state"] in STATES + NO_CLIENT, f"{who}: state {c['state']!r}")
        check(all(v >= 0 for v in c.values() if isinstance(v, int)), f"{who}: a negative count")
    if quiet:
        total = sum(faults[kind] for kind in FAULT_KINDS)
        check(faults["total"] == total,
              f"faults.total {faults['total']} but the kinds sum up to {total}")
        mapped = sum(c["pool_pages"] for c in clients)
        check(pool["stored_pages"] <= mapped,
              f"{pool['stored_pages']} stored, only {mapped} mapped")
        stored = pool["stored_pages"] + stats["writeback"]["pages"]
        check(min(1, mapped) <= stored, f"{mapped} mapped, nothing stored")
    check(pool["incompressible_pages"] <= pool["stored_pages"], "more incompressible than stored")
    check(pool["compressed_bytes"] <= pool["stored_pages"] * 4096,
          "an object is larger than a page")
    check(pool["compressed_bytes"] <= pool["frame_bytes"], "more compressed bytes than frames")
    check(pool["frame_bytes"] <= pool["limit_bytes"], "the pool is over its limit")
    check(faults["poisoned"] == poisoned,
          f"{faults['poisoned']} pages poisoned, expected {poisoned}")
    check_writeback(stats, quiet, check)
    latency = faults["latency_us"]
    check(latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"],
          f"latencies {latency}")
    clients = [c for c in clients if c["state"] not in NO_CLIENT]
    check(stats["daemon"]["clients"] == len(clients), "daemon.clients is not the number of clients")
    if not clients:
        for key in ("stored_pages", "same_filled_pages", "incompressible_pages",
                    "compressed_bytes"):
            check(pool[key] == 0, f"no clients, but pool.{key} is {pool[key]}")
    return errors


class E2E(unittest.TestCase):
    """One daemon per test (SETTINGS), helpers, and the checks at the end."""

    SETTINGS = {"evict.quarantine_s": "0"}
    START_DAEMON = True

    def setUp(self):
        self.tmp = tempfile.mkdtemp(prefix="foldswap-e2e-")
        os.chmod(self.tmp, 0o755)
        self.addCleanup(shutil.rmtree, self.tmp, ignore_errors=True)
        self.procs = []
        self.daemons = []
        self.addCleanup(self._end_everything)
        self.daemon = None
        given = int(os.environ.get("FOLDSWAP_TEST_SEED", "0"))
        self.seed = given or random.SystemRandom().randrange(1, 1 << 30)
        print(f"seed {self.seed} (FOLDSWAP_TEST_SEED={self.seed} repeats it)", flush=True)
        if self.START_DAEMON:
            self.daemon = self.start_daemon(self.SETTINGS)

    def _end_everything(self):
        for proc in self.procs:
            proc.kill()
        for daemon in self.daemons:
            daemon.kill()
            print(f"--- log of {daemon.dir} (status {daemon.popen.returncode}) ---")
            lines = [line for line in daemon.log().splitlines() if not LOG_NOISE.search(line)]
            most = 400 if Place.sanitized else 60
            bad = [line for line in lines[:-most] if " warning " in line or " error " in line]
            print("\n".join(bad[-most:] + lines[-most:]) + "\n---")

    def start_daemon(self, settings=None, name="run", ready_seconds=20, **more):
        directory = os.path.join(self.tmp, name)
        os.makedirs(directory, exist_ok=True)
        daemon = Daemon(directory, settings, **more)
        self.daemons.append(daemon)
        return daemon.wait_ready(ready_seconds)

    def directory(self):
        """On a disk, whatever /tmp is."""
        if not hasattr(self, "disk"):
            self.disk = os.path.join(self.tmp, "disk")
            if in_memory(self.tmp):
                self.disk = tempfile.mkdtemp(prefix="foldswap-e2e-", dir=Place.build)
                self.addCleanup(shutil.rmtree, self.disk, ignore_errors=True)
            os.makedirs(self.disk, exist_ok=True)
        return self.disk

    # -- programs

    def plain(self, command, **more):
        proc = Proc(command, **more)
        self.procs.append(proc)
        return proc

    def client_command(self, command, resident_max=None, name=None, options=()):
        out = [Place.binary("foldswap"), "--runtime-dir", self.daemon.dir, "run", *options]
        if resident_max is not None:
            out += ["--resident-max", str(resident_max)]
        if name is not None:
            out += ["--name", name]
        return [*out, "--", *command]

    def client(self, command, resident_max=None, name=None, options=("--require",), **more):
        return self.plain(self.client_command(command, resident_max, name, options), **more)

    def run_plain(self, command, seconds=120, **more):
        proc = self.plain(command, **more)
        proc.finish(seconds)
        return proc

    def run_client(self, command, resident_max=None, seconds=240, **more):
        proc = self.client(command, resident_max, **more)
        proc.finish(seconds)
        return proc

    def assert_same(self, plain, client):
        """Two runs of one program must not differ in anything that can be seen from outside."""
        self.assertEqual(plain.code, client.code, client.stderr().decode(errors="replace"))
        self.assertEqual(plain.output, client.output)
        self.assertEqual(plain.stderr(), client.stderr())

    # -- the command line

    def cli(self, *arguments, seconds=120):
        return subprocess.run([Place.binary("foldswap"), "--runtime-dir", self.daemon.dir,
                               *arguments],
                              capture_output=True, text=True, timeout=slower(seconds), check=False,
                              env=clean_environment())

    def cli_ok(self, *arguments, seconds=120):
        result = self.cli(*arguments, seconds=seconds)
        self.assertEqual(result.returncode, 0,
                         f"foldswap {arguments}: {result.stderr}{result.stdout}")
        return result.stdout

    def stats(self):
        return json.loads(self.cli_ok("stats", "--json"))

    def clients(self):
        return json.loads(self.cli_ok("clients", "--json"))

    def row(self, pid):
        rows = [c for c in self.clients() if c["pid"] == pid]
        self.assertEqual(len(rows), 1, f"rows of client {pid}")
        return rows[0]

    def await_state(self, pid, state, seconds=15):
        """Its row, when it is in that state."""
        return wait_until(f"{pid} is {state}",
                          lambda: next((c for c in self.clients()
                                        if c["pid"] == pid and c["state"] == state), None),
                          seconds)

    def reclaim(self, client, *how):
        """The number that `reclaim` prints. 1 is an answer too: not all that was asked for was
        possible. Of everything, on a machine where others work as well, that may be because for two
        seconds nothing moved; so it is asked again when that is the reason, or something moved."""
        pages = 0
        for _ in range(1 if how else 4):
            result = self.cli("reclaim", "--client", str(client), *(how or ("--everything",)))
            self.assertIn(result.returncode, (0, 1), result.stderr)
            self.assertRegex(result.stdout.strip(), r"^\d+$", f"reclaim printed: {result.stderr}")
            pages += int(result.stdout)
            if result.returncode == 0 or int(result.stdout) == 0 and "may be stopped" not in result.stderr:
                break
        return pages

    def restore(self, client):
        self.cli_ok("restore", "--client", str(client))

    # -- checks

    def check_conservation(self, quiet=True, poisoned=0):
        """Takes its own sample; a few tries, because counters of work under way may be read
        half-way."""
        errors = []
        for _ in range(20):
            stats = self.stats()
            errors = conservation_errors(stats, quiet, poisoned)
            if not errors:
                return stats
            time.sleep(0.1)
        self.fail("does not add up: " + "; ".join(errors))

    def check_nothing_left(self, poisoned=0):
        """After the last client has gone every count is back at nothing."""
        wait_until("the last client to be forgotten", lambda: not self.clients(), 20)
        stats = self.check_conservation(poisoned=poisoned)
        self.assertLess(stats["pool"]["frame_bytes"], MIB, "frames kept for nobody")
        return stats

    def finish_daemon(self, poisoned=0):
        """What a test ends with: all clients gone, everything adds up to nothing, a clean stop."""
        stats = self.check_nothing_left(poisoned)
        self.daemon.stop()
        self.daemons.remove(self.daemon)
        return stats

    def assert_worked(self, stats):
        """A run proves nothing if no page was ever out."""
        self.assertGreater(stats["evict"]["pages"], 0, "nothing was evicted")
        self.assertGreater(stats["faults"]["total"], 0, "nothing was faulted in")


class Churn(threading.Thread):
    """Reclaims everything of a client and brings it back, again and again, until stop()."""

    def __init__(self, test, client, restore_every=3, pause=0.01):
        super().__init__(daemon=True)
        self.test = test
        self.client_name = client
        self.restore_every = restore_every
        self.pause = pause
        self.rounds = 0
        self.pages = 0
        self.stopping = threading.Event()

    def run(self):
        while not self.stopping.wait(self.pause):
            result = self.test.cli("reclaim", "--client", str(self.client_name), "--everything")
            if result.stdout.strip().isdigit():
                self.pages += int(result.stdout)
            self.rounds += 1
            if self.restore_every and self.rounds % self.restore_every == 0:
                self.test.cli("restore", "--client", str(self.client_name))

    def stop(self):
        self.stopping.set()
        self.join()


def main():
    """FILE.py --build-dir DIR [--sanitized 1] Class.test, or FILE.py --list"""
    arguments = sys.argv[1:]
    module = sys.modules["__main__"]
    if arguments == ["--list"]:
        ctest.print_tests([module], True)
        return
    while len(arguments) >= 2 and arguments[0].startswith("--"):
        if arguments[0] == "--build-dir":
            Place.build = os.path.abspath(arguments[1])
        elif arguments[0] == "--sanitized":
            Place.sanitized = arguments[1] not in ("", "0", "OFF")
        else:
            sys.exit(f"unknown option {arguments[0]}")
        arguments = arguments[2:]
    for needed in (Place.binary("foldswapd"), Place.binary("foldswap"), Place.library()):
        if not os.path.exists(needed):
            sys.exit(f"not built: {needed}")
    names = [a if ".test_" in a or "." not in a else a.replace(".", ".test_", 1) for a in arguments]
    loader = unittest.defaultTestLoader
    if names:
        suite = loader.loadTestsFromNames(names, module)
    else:
        suite = loader.loadTestsFromModule(module)
    result = unittest.TextTestRunner(verbosity=2).run(suite)
    if not result.wasSuccessful():
        sys.exit(1)
    if result.testsRun == len(result.skipped):
        sys.exit(SKIP)
