"""System calls, devices and other processes that meet memory which is out. The client program says
when it wants everything out ("evict") and checks by its pagemap that it is; then it makes the call
and compares every byte."""

import os

from lib import harness
from lib.ctest import ctest
from lib.harness import E2E, SKIP, Churn, Place


class Base(E2E):
    def setUp(self):
        super().setUp()
        # Direct I/O needs a real file system, which the build directory is on and /tmp may not be.
        self.disk = os.path.join(Place.build, "tests", f"disk-{os.getpid()}")
        os.makedirs(self.disk)
        self.addCleanup(os.rmdir, self.disk)

    def end(self, client):
        """The status must be 0; 77 is a skip with the program's own reason."""
        code = client.finish()
        said = client.stderr().decode(errors="replace")
        if code == SKIP:
            self.skipTest(said.strip())
        self.assertEqual(code, 0, said)
        print(said, end="")

    def serve_until(self, client, *last):
        """Evicts whenever the client asks for it; gives the first line that is something else."""
        while True:
            try:
                line = client.line()
            except AssertionError:
                if client.poll() is None:
                    raise
                self.end(client)
                self.fail("the client ended without a word")
            if line != "evict":
                self.assertIn(line.split()[0], last)
                return line
            self.reclaim(client.pid)
            client.send("go")

    def start(self, case):
        return self.client([Place.program("kernel_access"), f"--case={case}", f"--seed={self.seed}",
                            f"--dir={self.disk}"])

    def case(self, name):
        client = self.start(name)
        self.serve_until(client, "done")
        self.end(client)

    def cases(self, *names):
        for name in names:
            self.case(name)
        self.assert_worked(self.finish_daemon())


@ctest("e2e_kernel", "e2e quick", load="light")
class KernelAccess(Base):
    def test_pipe_and_file(self):
        self.cases("pipes", "files")

    def test_vectors(self):
        self.cases("vectors")

    @ctest(labels="e2e e2e_san")
    def test_page_crossing(self):
        self.cases("page_crossing")

    def test_ioctl(self):
        self.cases("ioctl_buffers")

    def test_small_structs(self):
        self.cases("small_structs")

    def test_exec_arguments(self):
        self.cases("exec_arguments")

    @ctest(labels="e2e e2e_san")
    def test_futex(self):
        self.cases("futex_out", "futex_waiter", "condition_variable")

    @ctest(labels="e2e e2e_san")
    def test_futex_inheriting(self):
        self.cases("inheriting_mutex")

    @ctest(labels="e2e e2e_san")
    def test_blocked_calls(self):
        self.cases("blocked_read", "blocked_write", "blocked_recvmsg", "blocked_poll",
                   "blocked_waits")

    @ctest(labels="e2e e2e_san")
    def test_signal_frames(self):
        self.cases("alternate_stack", "thread_stack")

    def test_zerocopy_send(self):
        self.cases("zerocopy_send")

    def test_direct_io(self):
        self.cases("direct_io")

    def test_uring_registered(self):
        client = self.start("ring_registered")
        self.serve_until(client, "done")
        self.end(client)
        stats = self.finish_daemon()
        self.assert_worked(stats)
        self.assertGreater(stats["evict"]["pinned"], 0)

    @ctest(labels="e2e e2e_san")
    def test_uring_workers(self):
        self.cases("ring_workers")

    @ctest(labels="e2e e2e_san")
    def test_uring_sqpoll(self):
        self.cases("ring_sqpoll")


@ctest("e2e_kernel", "e2e quick", load="light")
class Others(Base):
    """Another process looks at the client's memory."""

    def looked_at(self):
        client = self.start("looked_at")
        self.at = self.serve_until(client, "at").split()[1]
        return client

    def look(self, client, how, expect="bytes"):
        other = self.run_plain([Place.program("kernel_other"), f"--how={how}", f"--expect={expect}",
                                f"--pid={client.pid}", f"--at={self.at}", f"--seed={self.seed}"])
        self.assertEqual(other.code, 0, f"{how}: {other.stderr()}")

    def ask(self, client, command):
        client.send(command)
        self.serve_until(client, "ok")

    def test_process_vm(self):
        client = self.looked_at()
        self.look(client, "vm_read")
        self.ask(client, "check")
        self.ask(client, "evict")
        self.look(client, "vm_write")
        self.ask(client, "check written")
        client.close_input()
        self.serve_until(client, "done")
        self.end(client)
        self.assert_worked(self.finish_daemon())


@ctest("hazard", "e2e e2e_san", load="light")
class Hazard(Others):
    def test_17_references(self):
        """References that are no pins: the bytes in the pipe are those of the call."""
        self.cases("vmsplice_source", "vmsplice_target")

    def test_22_debuggers(self):
        """EIO on what is out, and no harm done; the right bytes after `restore`."""
        client = self.looked_at()
        for how in ("ptrace", "mem"):
            self.look(client, how, "eio")
        self.restore(client.pid)
        for how in ("ptrace", "mem"):
            self.look(client, how)
        self.ask(client, "check")
        self.ask(client, "evict")
        for how in ("ptrace", "mem"):
            self.look(client, how, "eio")
        self.ask(client, "check")
        client.close_input()
        self.serve_until(client, "done")
        self.end(client)
        self.assert_worked(self.finish_daemon())


@ctest("e2e_pinned", "e2e slow")
class Pinned(Base):
    """Devices write to memory that is under pressure from all sides."""

    def pinned(self, reads, seconds, *more):
        client = self.client([Place.program("pinned_io"), f"--reads={reads}", f"--seed={self.seed}",
                              f"--dir={self.disk}", *more], "8M")
        try:
            client.expect("ready")
        except AssertionError:
            self.end(client)
            raise
        churn = Churn(self, client.pid, restore_every=0)
        churn.start()
        line = client.line(seconds)
        churn.stop()
        self.end(client)
        self.assertEqual(line.split()[0], "done")
        self.assertEqual(sum(int(n) for n in line.split()[1:]), reads)
        stats = self.finish_daemon()
        self.assert_worked(stats)
        print(f"reads {line.split()[1:]}; {churn.rounds} reclaims took out {churn.pages} pages; "
              f"evict {stats['evict']}")
        self.assertGreater(churn.pages, 0)
        self.assertGreater(stats["evict"]["pinned"], 0, "no pinned page was met")

    def test_direct_reads(self):
        self.pinned(100_000, 200)

    def test_direct_reads_unregistered(self):
        """Pages are pinned for as long as a read takes, and no longer."""
        self.pinned(15_000, 200, "--registered=0")

    @ctest(labels="nightly", load="alone", timeout=3600, minutes=1)
    def test_million_direct_reads(self):
        self.pinned(1_000_000, 1_500)


if __name__ == "__main__":
    harness.main()
