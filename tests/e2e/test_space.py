"""Operations on the address space, each against pages in every state: resident, out, out as
same-filled pages, on their way out, and being faulted in at that moment. The programs (space.h)
verify every byte; here is the other side of their talk: eviction when they ask for it."""

import fcntl
import os

from lib import harness
from lib.ctest import ctest
from lib.space import Space

THP = "/sys/kernel/mm/transparent_hugepage"
KSM = "/sys/kernel/mm/ksm"


@ctest("space", "e2e")
class Ops(Space):
    @ctest(labels="e2e e2e_san")
    def test_dontneed(self):
        self.run_operation("space_ops", "dontneed")

    def test_free(self):
        self.run_operation("space_ops", "free")

    def test_munmap(self):
        self.run_operation("space_ops", "munmap")

    def test_map_fixed_anonymous(self):
        self.run_operation("space_ops", "map_fixed_anonymous")

    @ctest(labels="e2e e2e_san")
    def test_map_fixed_file(self):
        self.run_operation("space_ops", "map_fixed_file")

    def test_mremap_grow_in_place(self):
        self.run_operation("space_ops", "mremap_grow_in_place")

    def test_mremap_grow_with_move(self):
        self.run_operation("space_ops", "mremap_grow_with_move")

    def test_mremap_shrink(self):
        self.run_operation("space_ops", "mremap_shrink")

    @ctest(labels="e2e e2e_san")
    def test_mremap_onto(self):
        self.run_operation("space_ops", "mremap_onto")

    def test_mremap_dontunmap(self):
        self.run_operation("space_ops", "mremap_dontunmap")

    def test_realloc(self):
        self.run_operation("space_ops", "realloc")

    @ctest(labels="e2e e2e_san")
    def test_mprotect(self):
        self.run_operation("space_ops", "mprotect")

    def test_brk(self):
        self.run_operation("space_ops", "brk")


@ctest("space", "e2e")
class Advice(Space):
    def test_mlock(self):
        self.run_operation("space_advice", "mlock")

    def test_mlock_onfault(self):
        self.run_operation("space_advice", "mlock_onfault")

    @ctest(labels="e2e e2e_san")
    def test_mlockall(self):
        self.run_operation("space_advice", "mlockall")

    @ctest(labels="e2e e2e_san")
    def test_mlockall_again(self):
        self.run_operation("space_advice", "lock_again", "--ms=4000")

    @ctest(labels="e2e e2e_san")
    def test_grow_locked(self):
        self.run_operation("space_advice", "grow_locked", least=900)

    def test_populate_read(self):
        self.run_operation("space_advice", "populate_read")

    def test_populate_write(self):
        self.run_operation("space_advice", "populate_write")

    def test_cold(self):
        self.run_operation("space_advice", "cold")

    def test_pageout(self):
        self.run_operation("space_advice", "pageout")

    @ctest(labels="e2e e2e_san")
    def test_guard(self):
        self.run_operation("space_advice", "guard")

    @ctest(labels="e2e e2e_san")
    def test_wipeonfork(self):
        self.run_operation("space_advice", "wipeonfork")

    @ctest(labels="e2e e2e_san")
    def test_wipeonfork_unseen(self):
        self.run_operation("space_advice", "wipe_unseen")

    @ctest(labels="e2e e2e_san")
    def test_wipeonfork_moved(self):
        stats = self.run_operation("space_advice", "wipe_moved", least=None)
        self.assertGreater(stats["evict"]["pages"], 4000)

    def test_dontfork(self):
        self.run_operation("space_advice", "dontfork")


@ctest("space", "e2e")
class Huge(Space):
    """Huge pages and KSM: settings of the whole machine, put back afterwards."""

    def lock_settings(self, directory):
        """Another run of these tests would take our values for those to put back."""
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        self.addCleanup(os.close, fd)  # the lock goes with it, after all that is added later
        fcntl.flock(fd, fcntl.LOCK_EX)

    def set_machine(self, path, value):
        """Writes a setting and has it put back; skips when it is not there or not ours to set."""
        try:
            with open(path, encoding="ascii") as f:
                before = f.read().strip()
            if "[" in before:
                before = before[before.index("[") + 1:before.index("]")]
            self.write_setting(path, value)
        except OSError as error:
            self.skipTest(f"{path} cannot be set: {error.strerror}")
        self.addCleanup(self.write_setting, path, before)

    @staticmethod
    def write_setting(path, value):
        with open(path, "w", encoding="ascii") as f:
            f.write(value)

    def run_with_huge_pages(self, operation, setting="madvise"):
        if not os.path.exists(THP):
            self.skipTest("this kernel has no transparent huge pages")
        self.lock_settings(THP)
        self.set_machine(f"{THP}/enabled", setting)
        self.run_operation("space_huge", operation)

    def test_hugepage(self):
        self.run_with_huge_pages("hugepage")

    def test_nohugepage(self):
        self.run_with_huge_pages("nohugepage")

    def test_collapse(self):
        self.run_with_huge_pages("collapse")

    def test_huge_discard(self):
        self.run_with_huge_pages("huge_discard")

    def test_huge_mremap(self):
        self.run_with_huge_pages("huge_mremap")

    def test_thp_always_discard(self):
        self.run_with_huge_pages("always_discard", "always")

    def test_thp_always_mremap(self):
        self.run_with_huge_pages("always_mremap", "always")

    def test_mergeable(self):
        if not os.path.exists(KSM):
            self.skipTest("this kernel has no KSM")
        self.lock_settings(KSM)
        self.set_machine(f"{KSM}/pages_to_scan", "5000")
        self.set_machine(f"{KSM}/sleep_millisecs", "2")
        self.set_machine(f"{KSM}/run", "1")
        self.run_operation("space_huge", "mergeable")


@ctest("space", "e2e")
class Threads(Space):
    def test_main_stack(self):
        self.run_operation("space_threads", "main_stack")

    def test_thread_stack(self):
        self.run_operation("space_threads", "thread_stack")

    def test_robust_mutex(self):
        self.run_operation("space_threads", "robust_mutex")

    def test_thread_exit(self):
        self.run_operation("space_threads", "thread_exit")

    @ctest(labels="e2e e2e_san")
    def test_long_discard(self):
        self.run_operation("space_threads", "long_discard")

    def test_unevictable(self):
        self.run_operation("space_threads", "unevictable", least=50)

    @ctest(labels="e2e e2e_san")
    def test_neighbours(self):
        self.run_operation("space_shared", "neighbours")

    @ctest(labels="e2e e2e_san")
    def test_same_range(self):
        self.run_operation("space_shared", "same_range")


@ctest("space_default_quarantine", "e2e")
class DefaultQuarantine(Space):
    SETTINGS = {}

    def test_long_discard(self):
        self.run_operation("space_threads", "long_discard")


if __name__ == "__main__":
    harness.main()
