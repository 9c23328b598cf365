"""Three kinds of calls that the preloaded library has to get right for every program: words that the
kernel itself writes, fork handlers of others, and ranges much larger than what is in them. Each with
pages out: the programs say when to evict, and verify every byte."""

from lib import harness
from lib.ctest import ctest
from lib.harness import Place
from lib.space import Space


class Calls(Space):
    def run_operation(self, program, operation, *more, least=1000, resident_max=None):
        client = self.client([Place.program(program), f"--op={operation}", f"--seed={self.seed}",
                              *more], resident_max)
        pages = self.serve(client)
        self.assertGreater(pages, least, "too little was evicted")
        return self.finish_daemon()


@ctest("words", "e2e")
class Words(Calls):
    @ctest(labels="e2e e2e_san")
    def test_early_robust(self):
        self.run_operation("words", "early_robust")

    @ctest(labels="e2e e2e_san")
    def test_early_inheriting(self):
        self.run_operation("words", "early_inheriting")

    @ctest(labels="e2e e2e_san")
    def test_ends_are_told(self):
        self.run_operation("words", "ends_are_told")

    def test_vfork_stands_still(self):
        self.run_operation("words", "vfork_stands_still")

    def test_destroyed(self):
        self.run_operation("words", "destroyed")

    def test_most_destroyed(self):
        self.run_operation("words", "most_destroyed")

    def test_unmapped(self):
        self.run_operation("words", "unmapped")

    def test_reused(self):
        self.run_operation("words", "reused")

    def test_ended(self):
        self.run_operation("words", "ended")

    def test_closed_for_a_while(self):
        self.run_operation("words", "closed_for_a_while")

    def test_beyond_counting(self):
        self.run_operation("words", "beyond_counting")

    def test_raw_forks(self):
        self.run_operation("words", "raw_forks")

    def test_ends_in_a_raw_child(self):
        self.run_operation("words", "ends_in_a_raw_child")

    def test_fork_within_a_call(self):
        self.run_operation("words", "fork_within_a_call")


@ctest("fork_handlers", "e2e")
class ForkHandlers(Calls):
    """Each also under a budget, which takes out again what the handlers touch."""

    def run_handlers(self, operation, least=1000):
        self.run_operation("atfork", operation, least=least)
        self.daemon = self.start_daemon(self.SETTINGS, name="budget")
        self.run_operation("atfork", operation, least=-1, resident_max="6M")

    @ctest(labels="e2e e2e_san")
    def test_realloc(self):
        self.run_handlers("realloc")

    def test_mremap(self):
        self.run_handlers("mremap")

    def test_madvise(self):
        self.run_handlers("madvise")

    def test_set_ids(self):
        self.run_handlers("set_ids")

    def test_unshare_before(self):
        self.run_handlers("unshare_before")

    def test_unshare_in_child(self):
        self.run_handlers("unshare_in_child")

    @ctest(labels="e2e e2e_san")
    def test_fork(self):
        self.run_handlers("fork")

    @ctest(labels="e2e e2e_san")
    def test_waits_for_thread(self):
        self.run_handlers("waits_for_thread")


@ctest("lengths", "e2e")
class Lengths(Calls):
    def test_refused(self):
        self.run_operation("advice_length", "refused")

    @ctest(labels="e2e e2e_san")
    def test_beyond_the_end(self):
        self.run_operation("advice_length", "beyond_the_end")

    @ctest(labels="e2e e2e_san")
    def test_raw_child(self):
        self.run_operation("advice_length", "raw_child")

    def test_reservation(self):
        self.run_operation("advice_length", "reservation")

    def test_signals(self):
        self.run_operation("advice_length", "signals")

    def test_raw_child_remaps(self):
        self.run_operation("advice_length", "raw_child_remaps")

    def test_absurd_mremap(self):
        self.run_operation("advice_length", "absurd_mremap")

    def test_moved_with_holes(self):
        self.run_operation("advice_length", "moved_with_holes")

    @ctest(labels="e2e e2e_san")
    def test_attach_over(self):
        self.run_operation("advice_length", "attach_over")


if __name__ == "__main__":
    harness.main()
