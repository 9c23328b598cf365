"""stress-ng's memory stressors as clients: each verifies what it wrote, while it has a small budget
and everything of every client is reclaimed again and again.

stress-ng forks a process for each stressor, and most of those fork once more; it is in those that
memory is used, so a test that says so also checks that pages of such a process were out. Options
keep each stressor small: an address space of at most 1 GiB (stacks, heaps and brk grow until
something stops them), and no rights to lock without limit or to poison real memory (madvise as
root would: MADV_HWPOISON).
"""

import re
import shutil
import threading

from lib import harness
from lib.ctest import ctest
from lib.harness import E2E, MIB

ADDRESS_SPACE = 1024 * MIB
# What stress-ng says when a check fails, or when it could not do its work.
BAD_WORDS = re.compile(r"\b(fail|error|unsuccessful|skipp|untrustworthy|corrupt|bit errors?|killed|"
                       r"aborted|SIGSEGV|SIGBUS|out of memory)", re.IGNORECASE)
VM_METHODS = (
    "cache-lines cache-stripe checkerboard flip fwdrev galpat-0 galpat-1 gray grayflip rowhammer "
    "incdec inc-nybble lfsr32 rand-set rand-sum read64 ror swap move-inv modulo-x mscan wrrd128nt "
    "prime-0 prime-1 prime-gray-0 prime-gray-1 prime-incdec walk-0d walk-1d walk-0a walk-1a "
    "write64 write64nt write1024v zero-one").split()


class Pressure(threading.Thread):
    """Reclaims everything of all clients, again and again, and notes how much of any process but
    the first was out at once."""

    def __init__(self, test, leader, pause=0.02):
        super().__init__(daemon=True)
        self.test = test
        self.leader = leader
        self.pause = pause
        self.rounds = 0
        self.most_out = 0  # pages
        self.states = set()
        self.stopping = threading.Event()

    def run(self):
        while not self.stopping.wait(self.pause):
            self.test.cli("reclaim", "--all", "--everything")
            self.rounds += 1
            for row in self.test.clients():
                if row["pid"] != self.leader:
                    self.most_out = max(self.most_out, row["evicted_pages"])
                    self.states.add(row["state"])

    def stop(self):
        self.stopping.set()
        self.join()


@ctest("stress_ng", "e2e")
class StressNg(E2E):
    def setUp(self):
        super().setUp()
        if not shutil.which("stress-ng"):
            self.skipTest("stress-ng is not installed")

    def stress(self, stressor, *options, seconds=4, budget="6M", out=0):
        """One stressor under pressure. out: MiB of a forked process that must have been out at
        once."""
        command = ["prlimit", f"--as={ADDRESS_SPACE}",
                   "setpriv", "--bounding-set=-sys_admin,-ipc_lock",
                   "stress-ng", f"--{stressor}", "1", *options, "--verify", "--metrics-brief",
                   "--timeout", str(seconds), "--temp-path", self.tmp, "--seed", str(self.seed)]
        client = self.client(command, budget)
        pressure = Pressure(self, client.pid)
        pressure.start()
        try:
            client.finish(seconds + 60)
        finally:
            pressure.stop()
        said = (client.output + client.stderr()).decode(errors="replace")
        print(said)
        self.assertEqual(client.code, 0, said)
        self.assertIsNone(BAD_WORDS.search(said), said)
        self.assertRegex(said, "successful run completed")
        # "metrc: [pid] vm   123 ...": it did something.
        done = re.search(rf"metrc: \[\d+\] {stressor} +(\d+) ", said)
        self.assertIsNotNone(done, said)
        self.assertGreater(int(done.group(1)), 0, said)
        stats = self.finish_daemon()
        print(f"{pressure.rounds} reclaims; {stats['evict']}, {stats['faults']['total']} faults; "
              f"at most {pressure.most_out} pages of one process out; {sorted(pressure.states)}")
        self.assertGreater(stats["evict"]["pages"], 0, "nothing was evicted")
        if out:
            self.assert_worked(stats)
        self.assertGreaterEqual(pressure.most_out, out * MIB // 4096,
                                "the stressor's own memory was never out")
        return stats

    def test_vm(self):
        self.stress("vm", "--vm-bytes", "16M", "--vm-method", "all", seconds=12, out=4)

    def test_mmap(self):
        self.stress("mmap", "--mmap-bytes", "32M", "--mmap-mprotect", out=2)

    @ctest(labels="e2e e2e_san")
    def test_mremap(self):
        self.stress("mremap", "--mremap-bytes", "16M", out=2)

    def test_madvise(self):
        self.stress("madvise")

    def test_fork(self):
        self.stress("fork", "--fork-max", "4")

    @ctest(labels="nightly", minutes=1)
    def test_vfork(self):
        self.stress("vfork", "--vfork-max", "4")

    def test_clone(self):
        self.stress("clone", "--clone-max", "8")

    def test_brk(self):
        self.stress("brk")

    @ctest(labels="nightly", minutes=1)
    def test_stack(self):
        self.stress("stack", "--stack-fill")

    @ctest(labels="nightly", minutes=1)
    def test_bigheap(self):
        self.stress("bigheap", out=8)

    @ctest(labels="nightly", minutes=1)
    def test_malloc(self):
        self.stress("malloc", "--malloc-bytes", "8K", "--malloc-max", "4096", "--malloc-pthreads",
                    "2", "--malloc-touch", out=4)

    def test_mlock(self):
        self.stress("mlock")

    def test_userfaultfd(self):
        """It makes a userfaultfd of its own for its memory, which is then not ours."""
        self.stress("userfaultfd")


@ctest("stress_ng", "nightly", timeout=3600, minutes=5)
class EveryMethod(StressNg):
    """For the nightly run: each method of vm by itself, long enough for several passes."""

    def test_vm_methods(self):
        for method in VM_METHODS:
            with self.subTest(method=method):
                if self.daemon not in self.daemons:
                    self.daemon = self.start_daemon(self.SETTINGS, name=method)
                # A pass of these goes to another page with every byte: in 16 MiB it has no end.
                jumps = method in ("cache-lines", "prime-incdec")
                self.stress("vm", "--vm-bytes", "256K" if jumps else "16M", "--vm-method", method,
                            seconds=10 if jumps else 4)


if __name__ == "__main__":
    harness.main()
