"""The test's side of the talk with a program that has its pages taken out when it asks for it
(tests/programs/space/space.h)."""

from lib.harness import E2E, Churn, Place


class Space(E2E):
    """The talk: a line of the client is a request, answered with "go", until it says done."""

    def start(self, program, operation, *more):
        return self.client([Place.program(program), f"--op={operation}", f"--seed={self.seed}",
                            *more])

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

    def run_operation(self, program, operation, *more, least=1000):
        client = self.start(program, operation, *more)
        pages = self.serve(client)
        if least is not None:
            self.assertGreater(pages, least, "too little was evicted")
        return self.finish_daemon()
