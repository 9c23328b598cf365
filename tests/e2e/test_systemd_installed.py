"""What is installed for a real systemd."""

import os
import re
import subprocess
import time

from lib import harness
from lib.ctest import ctest
from lib.harness import wait_until
from lib.service import UNIT, Service
from lib.systemd_machine import PROGRAMS


def may_set_oom_score():
    """Of a process that ends at once."""
    return subprocess.run(["/bin/sh", "-c", "echo -900 > /proc/self/oom_score_adj"],
                          stderr=subprocess.DEVNULL, check=False).returncode == 0


@ctest("systemd", "e2e")
class Installed(Service):
    def test_example(self):
        """The drop-in that is installed as an example makes a service a client."""
        units = "/run/systemd/system"
        self.machine.write(f"{units}/memory.service",
                           f"[Unit]\nDefaultDependencies=no\n[Service]\nType=exec\n"
                           f"ExecStart={PROGRAMS}/sweep --mb=24 --passes=1000000\n")
        example = self.machine.read("/usr/local/share/doc/foldswap/examples/client.conf")
        self.machine.write(f"{units}/memory.service.d/foldswap.conf",
                           example.replace("512M", "8M"))
        self.systemctl("daemon-reload")
        self.systemctl("start", "memory.service")
        wait_until("it to be a client", lambda: any(
            c["name"] == "memory" and c["evicted_pages"] > 1000
            for c in self.machine.stats()["clients"]), 30)
        row = self.machine.row("memory")
        self.assertEqual(row["resident_max_bytes"], 8 << 20)
        self.assertEqual(str(row["pid"]), self.machine.show("memory.service", "MainPID"))
        self.systemctl("restart", UNIT)
        time.sleep(1)
        self.assertEqual(self.machine.show("memory.service", "ActiveState"), "active")
        wait_until("the next daemon to keep its budget",
                   lambda: self.machine.row("memory")["evicted_pages"] > 1000, 30)
        self.systemctl("stop", "memory.service")
        self.stop()

    def test_what_is_installed(self):
        """The files are ones that systemd's own tools take, and the sandbox is there."""
        prefix = "/usr/local/lib"
        said = self.machine.run("systemd-analyze", "verify", f"{prefix}/systemd/system/{UNIT}")
        complaints = [line for line in (said.stdout + said.stderr).splitlines()
                      if "foldswap" in line]
        self.assertEqual(complaints, [])
        self.machine.ok("systemd-sysusers", f"{prefix}/sysusers.d/foldswap.conf")
        self.assertIn("\nfoldswap:", self.machine.read("/etc/group"))
        # /var is this machine's.
        self.machine.ok("systemd-tmpfiles", "--create", "--prefix=/etc/foldswap",
                        f"{prefix}/tmpfiles.d/foldswap.conf")
        self.assertTrue(os.path.isdir(self.machine.path("/etc/foldswap/foldswap.toml.d")))
        rules = self.machine.read(f"{prefix}/udev/rules.d/60-foldswap.rules")
        self.assertIn('GROUP="foldswap"', rules)
        with open(os.path.join(os.path.dirname(__file__), "../../daemon/state/state.h"),
                  encoding="utf-8") as f:
            most = re.search(r"kMostStored = ([\d']+);", f.read())[1].replace("'", "")
        self.assertEqual(self.show("FileDescriptorStoreMax"), most)
        self.assertEqual(self.show("Environment"), f"FOLDSWAP_FDSTORE={most}")
        with open(f"/proc/{self.keeper_outside()}/status", encoding="ascii") as f:
            status = dict(line.rstrip("\n").split(":\t", 1) for line in f if ":\t" in line)
        self.assertEqual(status["NoNewPrivs"], "1")
        self.assertEqual(status["Seccomp"], "2")
        self.assertNotEqual(int(status["CapBnd"], 16) & (1 << 19), 0)   # CAP_SYS_PTRACE
        self.assertEqual(int(status["CapBnd"], 16) & (1 << 21), 0)      # CAP_SYS_ADMIN
        self.assertEqual(self.show("OOMScoreAdjust"), "-900")
        with open(f"/proc/{self.keeper_outside()}/oom_score_adj", encoding="ascii") as f:
            # Not every machine lets root do that (CAP_SYS_RESOURCE).
            self.assertEqual(f.read().strip(), "-900" if may_set_oom_score() else "0")
        self.stop()


if __name__ == "__main__":
    harness.main()
