"""A real systemd stops foldswapd, which drains first."""

import os
import re
import subprocess
import time

from lib import harness
from lib.ctest import ctest
from lib.harness import wait_until
from lib.service import UNIT, Service


@ctest("systemd", "e2e")
class Stop(Service):
    def test_stop_drains(self):
        """Every page is back before the daemon ends, and the client goes on without it."""
        client = self.holder()
        self.stop()
        self.assertIn("bringing everything back", self.log())
        self.assertFalse(os.path.exists(self.machine.path("/run/foldswap")))
        self.verified(client)
        self.assertEqual(client.finish(), 0)

    def test_stop_waits_for_memory(self):
        """What is out does not fit: it says so, moves nothing, and waits, until it does fit."""
        client = self.holder()
        with open("/proc/meminfo", encoding="ascii") as f:
            text = re.sub(r"MemAvailable: .*", "MemAvailable:   1000 kB", f.read())
        self.machine.write("/run/meminfo", text)
        keeper = str(self.keeper_outside())
        into = ["nsenter", "-t", keeper, "-p", "-m", "--"]  # the service has mounts of its own
        subprocess.run([*into, "mount", "--bind", "/run/meminfo", "/proc/meminfo"], check=True)
        out = self.machine.row("held")["evicted_pages"]
        self.systemctl("stop", "--no-block", UNIT)
        wait_until("it to say so", lambda: "cannot stop yet" in self.show("StatusText"))
        self.assertIn("needs more memory", self.log())
        self.assertEqual(self.show("SubState"), "stop-sigterm")
        self.assertEqual(self.machine.row("held")["evicted_pages"], out)
        self.machine.kill(self.show("MainPID"), "USR2")  # systemd would give the store up now
        time.sleep(0.5)
        self.assertEqual(self.machine.row("held")["evicted_pages"], out)
        subprocess.run([*into, "umount", "/proc/meminfo"], check=True)
        wait_until("its end", lambda: self.show("ActiveState") == "inactive", 60)
        self.verified(client)
        self.assertEqual(client.finish(), 0)


if __name__ == "__main__":
    harness.main()
