"""Where writeback may keep its file, and what is in that."""

import os
import subprocess

from lib import harness
from lib.ctest import ctest
from lib.harness import E2E, Place, slower, wait_until
from lib.on_disk import OnDisk

NOBODY = 65534


@ctest("writeback", "e2e", load="light")
class Settings(OnDisk):
    """What cannot be a backing file's place."""

    START_DAEMON = False

    def refused(self, reason, code=1, wrap=(), **settings):
        command = [*wrap, Place.binary("foldswapd"), "--runtime-dir", os.path.join(self.tmp, "no")]
        for key, value in settings.items():
            command += ["--set", f"writeback.{key}={value}"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=slower(20),
                                check=False, env=harness.clean_environment())
        said = result.stderr + result.stdout
        print(f"{settings}: {said.strip()}", flush=True)
        self.assertEqual(result.returncode, code, said)
        self.assertRegex(said, reason)
        for mark in harness.SANITIZER_MARKS:
            self.assertNotIn(mark, said)

    def test_bad_directories(self):
        directory = self.directory()
        self.refused("nowhere.*No such file", dir=os.path.join(directory, "nowhere"))
        path = os.path.join(directory, "file")
        with open(path, "wb"):
            pass
        self.refused("file.*Not a directory", dir=path)
        os.unlink(path)
        self.refused("/dev/shm.*memory", dir="/dev/shm")
        self.refused("/proc", dir="/proc")
        self.refused("free", dir=directory, free_min="1000T")
        self.refused("free_min", code=2, dir=directory, free_min=str((1 << 64) - 1))
        self.refused("dir", code=2, dir="relative/path")
        self.refused("max", code=2, dir=directory, max="15M")
        self.refused("max", code=2, dir=directory, max="-1")
        self.refused("encrypt", code=2, dir=directory, encrypt="perhaps")
        self.refused("budget_per_day", code=2, dir=directory, budget_per_day="much")
        self.assertEqual(os.listdir(directory), [])

    def test_read_only_file_system(self):
        directory = self.directory()
        script = f'mount --bind {directory} {directory} && ' \
                 f'mount -o remount,bind,ro {directory} && exec "$0" "$@"'
        self.refused("Read-only", dir=directory, wrap=("unshare", "--mount", "/bin/sh", "-c", script))

    def test_directory_of_somebody_else(self):
        """An ordinary user's daemon, and root's directory."""
        node = os.path.join(self.tmp, "uffd")
        os.mknod(node, 0o666 | 0o020000, os.stat("/dev/userfaultfd").st_rdev)
        os.chmod(node, 0o666)
        run = os.path.join(self.tmp, "no")
        os.mkdir(run)
        os.chown(run, NOBODY, NOBODY)
        directory = self.directory()
        os.chmod(directory, 0o755)
        script = (f"mount --bind {node} /dev/userfaultfd && exec setpriv --reuid={NOBODY} "
                  f"--regid={NOBODY} --clear-groups --inh-caps=-all,+sys_ptrace "
                  '--ambient-caps=+sys_ptrace --bounding-set=-all,+sys_ptrace "$0" "$@"')
        self.refused(f"{directory}.*Permission denied", dir=directory,
                     wrap=("unshare", "--mount", "/bin/sh", "-c", script))

    def test_without_encryption(self):
        self.daemon = self.start_daemon({**self.SETTINGS, "writeback.encrypt": "false"})
        self.assertEqual(self.writeback()["cipher"], "xxh3")
        client = self.hold(24)
        self.all_on_disk(client, 24 * 100)
        client.ask("verify")
        client.ask("fork")
        self.assertEqual(client.finish(), 0)
        self.finish_daemon()

    def test_file_is_what_it_says(self):
        """Encrypted by default; nobody else's to find; its blocks are what the stats say."""
        self.daemon = self.start_daemon(self.SETTINGS)
        disk = self.writeback()
        self.assertIn(disk["cipher"], ("aes-256-gcm", "xchacha20-poly1305"))
        self.assertEqual(disk["trouble"], "")
        client = self.hold(24, kind="heap")
        self.all_on_disk(client, 24 * 160)
        self.assertEqual(os.listdir(self.directory()), [])
        file = self.backing()
        self.assertEqual(os.fstat(file.fd).st_nlink, 0)
        self.assertEqual(os.fstat(file.fd).st_mode & 0o077, 0)
        # Two samples: holes may be made in between.
        wait_until("the file to have the blocks that the stats say",
                   lambda: self.writeback()["file_bytes"] == file.blocks_bytes(), 10)
        stats = self.stats()
        disk = stats["writeback"]
        self.assertEqual(disk["pages"], sum(row["disk_pages"] for row in stats["clients"]))
        taken = sum(item.bytes for item in file.objects())
        self.assertGreaterEqual(taken, disk["live_bytes"])
        self.assertGreaterEqual(sum(item.length for item in file.objects()),
                                disk["compressed_bytes"])
        for _, data in file.segments():
            # What heap-like pages have in them, and what zstd's frames begin with.
            self.assertNotIn((0x0000555500004000).to_bytes(8, "little"), data)
            self.assertNotIn(b"\x28\xb5\x2f\xfd", data)
        client.ask("verify")
        self.assertEqual(client.finish(), 0)
        self.finish_daemon()

    def test_off_by_default(self):
        self.daemon = E2E.start_daemon(self, self.SETTINGS)
        disk = self.writeback()
        self.assertFalse(disk["enabled"])
        client = self.hold(32)
        self.reclaim(client.pid)
        self.assertEqual(self.row(client.pid)["disk_pages"], 0)
        client.ask("verify")
        self.assertEqual(client.finish(), 0)
        E2E.finish_daemon(self)


if __name__ == "__main__":
    harness.main()
