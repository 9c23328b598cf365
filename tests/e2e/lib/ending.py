"""Clients that end, beside a witness that goes on."""

import random

from lib.harness import E2E, Place, wait_until


class Ending(E2E):
    def setUp(self):
        super().setUp()
        self.rng = random.Random(self.seed)

    def start(self, how, *more, program="ends", **options):
        """A client of tests/programs/ends/ends.cc, up to its "ready"."""
        client = self.client([Place.program(program), f"--how={how}", f"--seed={self.seed}", *more],
                             **options)
        client.expect("ready")
        return client

    def start_witness(self):
        """A client that always faults; it verifies what it reads until its input ends."""
        witness = self.client([Place.program("sweep"), "--mb=16", "--until_eof=1",
                               "--order=random", f"--seed={self.seed}"], "8M", name="witness")
        witness.expect("populated")
        return witness

    def check_goes_on(self, client, faults=100, seconds=10):
        """The client faults, and gets its pages."""
        wanted = self.row(client.pid)["faults"] + faults
        wait_until(f"{client.pid} to go on", lambda: self.row(client.pid)["faults"] >= wanted,
                   seconds)

    def end_witness(self, witness):
        witness.close_input()
        witness.expect("done")
        self.assertEqual(witness.wait(), 0, witness.stderr())

    def check_clean_end(self, client, code=0):
        self.assertEqual(client.finish(), code, client.stderr())
        self.assertEqual(client.stderr(), b"")
