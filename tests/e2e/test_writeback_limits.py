"""Writeback on disks, and with limits, that are too small."""

import os
import shutil
import subprocess
import time

from lib import harness
from lib.ctest import ctest
from lib.harness import MIB, wait_until
from lib.on_disk import OnDisk


@ctest("writeback", "e2e")
class Limits(OnDisk):
    """Disks and budgets that are too small: writing stops, says why, and nothing is lost."""

    def test_largest_file(self):
        """writeback.max at the least there is; a program that would need four times as much."""
        self.daemon.stop()
        self.daemon = self.start_daemon({**self.SETTINGS, "writeback.max": "16M"}, "narrow")
        client = self.hold(64, kind="random")
        self.reclaim(client.pid)
        self.trouble("full")
        disk = self.writeback()
        self.assertLessEqual(disk["file_bytes"], 16 * MIB + self.FOR_ITSELF)
        self.assertGreater(disk["live_bytes"], 8 * MIB)
        self.writing_ends()
        # Nor is anything moved about, for as long as nothing changes.
        before = self.writeback()
        time.sleep(2.5)
        self.assertEqual(self.writeback(), before)
        self.goes_on(client)
        self.reclaim(client.pid)
        self.assertLessEqual(self.writeback()["file_bytes"], 16 * MIB + self.FOR_ITSELF)
        client.ask("verify")
        # More room: it goes on.
        self.cli_ok("set", "writeback.max", "1G")
        self.all_on_disk(client, 64 * 200)
        client.ask("verify")
        self.assertEqual(client.finish(), 0)
        self.finish_daemon()

    def test_maximum_below_what_is_used(self):
        client = self.hold(64, kind="random")
        self.all_on_disk(client, 64 * 200)
        self.set_maximum(16 * MIB)
        before = self.writeback()["file_bytes"]
        for what in ("verify", "dirty"):
            client.ask(what, seconds=120)
        self.reclaim(client.pid)
        self.trouble("full")
        wait_until("the file to shrink", lambda: self.writeback()["file_bytes"] <= 17 * MIB, 30)
        self.assertLess(self.writeback()["file_bytes"], before)
        self.goes_on(client)
        self.assertEqual(client.finish(), 0)
        self.finish_daemon()

    def test_maximum_below_what_is_held(self):
        """What is on disk stays there, beyond the new maximum, until somebody wants it."""
        client = self.hold(48, kind="random")
        on_disk = self.all_on_disk(client)
        self.set_maximum(16 * MIB)
        other = self.hold(16, kind="random")
        self.reclaim(other.pid)
        self.trouble("full|as large as it may become")
        self.assertEqual(self.row(client.pid)["disk_pages"], on_disk)
        other.ask("verify")
        client.ask("verify")
        for program in (client, other):
            self.assertEqual(program.finish(), 0)
        self.finish_daemon()

    def test_budget_per_day(self):
        self.daemon.stop()
        self.daemon = self.start_daemon({**self.SETTINGS, "writeback.budget_per_day": "8M"}, "flash")
        client = self.hold(64, kind="random")
        self.reclaim(client.pid)
        self.trouble("budget")
        self.goes_on(client)
        self.reclaim(client.pid)
        disk = self.writeback()
        self.assertLessEqual(disk["written_bytes"], 8 * MIB)
        self.assertGreater(disk["written_bytes"], 4 * MIB)
        client.ask("verify")
        self.cli_ok("set", "writeback.budget_per_day", "0")
        self.all_on_disk(client, 64 * 200)
        client.ask("verify")
        self.assertEqual(client.finish(), 0)
        self.finish_daemon()

    def test_free_min_while_it_runs(self):
        """Somebody else fills the disk, as far as we can tell."""
        client = self.hold(32, kind="random")
        self.cli_ok("set", "writeback.free_min", "1000T")
        self.reclaim(client.pid)
        self.trouble(".")
        self.goes_on(client)
        self.cli_ok("set", "writeback.free_min", "64M")
        self.all_on_disk(client, 32 * 200)
        client.ask("verify")
        self.assertEqual(client.finish(), 0)
        self.finish_daemon()


@ctest("writeback", "e2e")
class SmallDisk(OnDisk):
    """A file system of its own, in a mount namespace of the daemon's, that fills up under it."""

    START_DAEMON = False

    def start_on_image(self, mib, below=None, **settings):
        """The daemon's writeback.dir is an ext4 in a file (`below`: in this directory)."""
        for needed in ("mkfs.ext4", "losetup", "unshare", "mount"):
            if not shutil.which(needed, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin"):
                self.skipTest(f"{needed} is not installed")
        if os.geteuid() != 0 or not os.path.exists("/dev/loop-control"):
            self.skipTest("loop devices need root and /dev/loop-control")
        self.image = os.path.join(below or self.tmp, "image")
        with open(self.image, "wb") as f:
            f.truncate(mib * MIB)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", self.image],
                       check=True, capture_output=True,
                       env={**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"})
        self.mounted = os.path.join(self.tmp, "mounted")
        os.mkdir(self.mounted)
        probe = subprocess.run(["unshare", "--mount", "mount", "-o", "loop", self.image,
                                self.mounted], capture_output=True, text=True, check=False)
        if probe.returncode != 0:
            self.skipTest(f"no loop mount here: {probe.stderr.strip()}")
        script = f'mount -o loop {self.image} {self.mounted} && exec "$0" "$@"'
        self.daemon = self.start_daemon(
            {**self.SETTINGS, "writeback.dir": self.mounted, "writeback.free_min": "0", **settings},
            wrap=("unshare", "--mount", "/bin/sh", "-c", script))

    def inside(self, *names):
        return os.path.join(f"/proc/{self.daemon.pid}/root", self.mounted.lstrip("/"), *names)

    def fill_up(self):
        with open(self.inside("filler"), "wb", buffering=0) as f:
            for size in (MIB, 4096):
                try:
                    while True:
                        f.write(bytes(size))
                except OSError:
                    pass
            os.fsync(f.fileno())

    def finish_daemon(self, poisoned=0):
        image = self.image
        stats = super().finish_daemon(poisoned)
        wait_until("the loop device to be gone",
                   lambda: image not in subprocess.run(["losetup", "-a"], capture_output=True,
                                                       text=True, check=False).stdout, 30)
        return stats

    def test_fills_up(self):
        self.start_on_image(96)
        client = self.hold(32, kind="random")
        self.all_on_disk(client, 32 * 200)
        self.fill_up()
        big = self.hold(48, kind="random")
        self.reclaim(big.pid)
        self.trouble(".")
        self.goes_on(big)
        self.goes_on(client)
        self.reclaim(client.pid)
        client.ask("verify")
        os.unlink(self.inside("filler"))
        self.all_on_disk(big, 48 * 200)
        self.goes_on(big)
        self.goes_on(client)
        for program in (client, big):
            self.assertEqual(program.finish(), 0)
        self.finish_daemon()

    def test_full_from_the_start(self):
        """It starts with little room, and finds none when it wants it."""
        self.start_on_image(32)
        self.fill_up()
        client = self.hold(32, kind="random")
        self.reclaim(client.pid)
        self.trouble(".")
        self.goes_on(client)
        os.unlink(self.inside("filler"))

        def some_on_disk():
            self.reclaim(client.pid)
            return self.row(client.pid)["disk_pages"] > 4000

        wait_until("pages on disk", some_on_disk, 30)
        client.ask("verify")
        self.assertEqual(client.finish(), 0)
        self.finish_daemon()


if __name__ == "__main__":
    harness.main()
