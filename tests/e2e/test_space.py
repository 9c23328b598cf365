"""Operations on the address space, each against pages in every state: resident, out, out as
same-filled pages, on their way out, and being faulted in at that moment. The programs (space.h)
verify every byte; here is the other side of their talk: eviction when they ask for it."""

import harness
from harness import E2E, Churn, Place


class Space(E2E):
    """The talk: a line of the client is a request, answered with "go", until it says done."""

    def start(self, program, operation, *more, resident_max=None):
        return self.client([Place.program(program), f"--op={operation}", f"--seed={self.seed}",
                            *more], resident_max)

    def serve(self, client, seconds=120):
        """Serves until the client is done; the number of pages that were taken out."""
        pages = 0
        churn = None
        while True:
            line = client.line(seconds)
            if line == "done":
                break
            word, _, argument = line.partition(" ")
            if word == "evict":
                pages += self.reclaim(client.pid, *(("--bytes", argument) if argument else ()))
            elif word == "churn":
                churn = Churn(self, client.pid, restore_every=4)
                churn.start()
                self.cli_ok("limit", "--client", str(client.pid), argument or "1M")
            elif word == "calm":
                churn.stop()
                pages += churn.pages
                self.cli_ok("limit", "--client", str(client.pid), "none")
            elif word == "limit":
                self.cli_ok("limit", "--client", str(client.pid), argument)
            elif word == "skip":
                self.skipTest(argument)
            else:
                self.fail(f"the client says {line!r}")
            client.send("go")
        client.close_input()
        self.assertEqual(client.wait(), 0, client.stderr())
        print(f"{pages} pages taken out by reclaim")
        return pages

    def run_operation(self, program, operation, *more, resident_max=None):
        client = self.start(program, operation, *more, resident_max=resident_max)
        self.assertGreater(self.serve(client), 1000, "too little was evicted")
        return self.finish_daemon()


class Ops(Space):
    def test_dontneed(self):
        self.run_operation("space_ops", "dontneed")

    def test_free(self):
        self.run_operation("space_ops", "free")

    def test_munmap(self):
        self.run_operation("space_ops", "munmap")

    def test_map_fixed_anonymous(self):
        self.run_operation("space_ops", "map_fixed_anonymous")

    def test_map_fixed_file(self):
        self.run_operation("space_ops", "map_fixed_file")

    def test_mremap_grow_in_place(self):
        self.run_operation("space_ops", "mremap_grow_in_place")

    def test_mremap_grow_with_move(self):
        self.run_operation("space_ops", "mremap_grow_with_move")

    def test_mremap_shrink(self):
        self.run_operation("space_ops", "mremap_shrink")

    def test_mremap_onto(self):
        self.run_operation("space_ops", "mremap_onto")

    def test_mremap_dontunmap(self):
        self.run_operation("space_ops", "mremap_dontunmap")

    def test_realloc(self):
        self.run_operation("space_ops", "realloc")

    def test_mprotect(self):
        self.run_operation("space_ops", "mprotect")

    def test_brk(self):
        self.run_operation("space_ops", "brk")


class Advice(Space):
    def test_mlock(self):
        self.run_operation("space_advice", "mlock")

    def test_mlock_onfault(self):
        self.run_operation("space_advice", "mlock_onfault")

    def test_mlockall(self):
        self.run_operation("space_advice", "mlockall")

    def test_populate_read(self):
        self.run_operation("space_advice", "populate_read")

    def test_populate_write(self):
        self.run_operation("space_advice", "populate_write")

    def test_cold(self):
        self.run_operation("space_advice", "cold")

    def test_pageout(self):
        self.run_operation("space_advice", "pageout")

    def test_guard(self):
        self.run_operation("space_advice", "guard")

    def test_wipeonfork(self):
        self.run_operation("space_advice", "wipeonfork")

    def test_wipeonfork_unseen(self):
        self.run_operation("space_advice", "wipe_unseen")

    def test_dontfork(self):
        self.run_operation("space_advice", "dontfork")


if __name__ == "__main__":
    harness.main()
