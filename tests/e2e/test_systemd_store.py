"""What the descriptor store of a real systemd holds while foldswapd serves."""

from lib import harness
from lib.ctest import ctest
from lib.harness import wait_until
from lib.service import Service


@ctest("systemd", "e2e")
class Store(Service):
    def test_store_follows(self):
        """What has ended is let go of."""
        wait_until("the pool to be there", lambda: self.stored() >= 4)
        before = self.stored()
        client = self.holder()
        self.assertGreater(self.stored(), before + 6)
        self.finish(client)
        wait_until("it to be let go of", lambda: self.stored() == before)
        self.stop()
        self.assertEqual(self.stored(), 0)

    def test_manager_that_does_not_read(self):
        """Clients come and are served, and nobody takes the daemon for dead."""
        daemon = self.machine.stats()["daemon"]["pid"]
        with self.manager_stopped():
            clients = [self.holder(f"held-{n}", mb=8) for n in range(4)]
            clients[0].ask("fork")
            self.assertEqual(self.machine.stats()["daemon"]["pid"], daemon)
        wait_until("all to be stored", lambda: self.stored() >= 4 + 4 * 7)
        self.kill_everything()
        for client in clients:
            self.finish(client)
        self.stop()


if __name__ == "__main__":
    harness.main()
