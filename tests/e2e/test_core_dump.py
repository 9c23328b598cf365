"""Core dumps of clients with pages out, the kernel's and a debugger's: holes, never wrong bytes;
all there after `restore`."""

import os
import shutil
import signal
import struct
import subprocess

from lib import harness
from lib.ctest import ctest
from lib.ending import Ending
from lib.harness import Place, slower

PAGE = 4096


@ctest("core_dump", "e2e")
class CoreDump(Ending):
    def start_core(self):
        image = os.path.join(self.tmp, "image")
        client = self.client([Place.program("ends"), "--how=core", "--mb=8", f"--image={image}",
                              f"--seed={self.seed}"], cwd=self.tmp)
        address = int(client.line().split()[1])
        client.expect("ready")
        self.assertGreater(self.reclaim(client.pid), 1900)
        with open(image, "rb") as f:
            return client, address, f.read()

    def memory_of_core(self, path, start, size):
        """`size` bytes at address `start`, out of the PT_LOADs; what has no bytes there is None."""
        pages = [None] * (size // PAGE)
        with open(path, "rb") as f:
            data = f.read(64)
            self.assertEqual(data[:6], b"\x7fELF\x02\x01")
            offset, = struct.unpack_from("<Q", data, 32)
            entry_size, count = struct.unpack_from("<HH", data, 54)
            for i in range(count):
                f.seek(offset + i * entry_size)
                kind, _, at, vaddr, _, filesz = struct.unpack_from("<IIQQQQ", f.read(entry_size))
                for page in range(max(vaddr, start), min(vaddr + filesz, start + size), PAGE):
                    if kind == 1:
                        f.seek(at + page - vaddr)
                        pages[(page - start) // PAGE] = f.read(PAGE)
        return pages

    def dumped(self, client):
        """Where the kernel puts the core of `client`, which is about to abort in our directory."""
        with open("/proc/sys/kernel/core_pattern", encoding="utf-8") as f:
            pattern = f.read().strip()
        if pattern.startswith(("|", "/")) or not pattern:
            self.skipTest(f"core dumps do not go into the working directory: {pattern!r}")
        before = set(os.listdir(self.tmp))
        client.send("abort")
        self.assertEqual(client.finish(), -signal.SIGABRT)
        new = [os.path.join(self.tmp, n) for n in set(os.listdir(self.tmp)) - before]
        self.assertEqual(len(new), 1, f"new files: {new}")
        return new[0]

    def pages_of(self, image):
        return [image[i:i + PAGE] for i in range(0, len(image), PAGE)]

    def test_holes(self):
        """Pages that are out are holes in a core dump; none has wrong bytes."""
        client, address, image = self.start_core()
        wanted = self.pages_of(image)
        pages = self.memory_of_core(self.dumped(client), address, len(image))
        zero = bytes(PAGE)
        holes = sum(p is None or (p == zero and w != zero) for p, w in zip(pages, wanted))
        right = sum(p == w for p, w in zip(pages, wanted))
        print(f"{holes} holes, {right} right pages of {len(wanted)}")
        self.assertGreater(holes, 1000)
        for page, want in zip(pages, wanted):
            self.assertTrue(page in (None, zero, want), "a page with other bytes")
        self.finish_daemon()

    def test_whole_after_restore(self):
        client, address, image = self.start_core()
        self.restore(client.pid)
        self.assertEqual(self.row(client.pid)["evicted_pages"], 0)
        pages = self.memory_of_core(self.dumped(client), address, len(image))
        self.assertEqual(sum(p != w for p, w in zip(pages, self.pages_of(image))), 0)
        self.finish_daemon()

    def test_gcore_after_restore(self):
        """A debugger's dump of a running client; it lives on."""
        gcore = shutil.which("gcore")
        if gcore is None:
            self.skipTest("no gcore")
        client, address, image = self.start_core()
        self.restore(client.pid)
        prefix = os.path.join(self.tmp, "gcore")
        result = subprocess.run([gcore, "-o", prefix, str(client.pid)], stdin=subprocess.DEVNULL,
                                capture_output=True, text=True, timeout=slower(60), check=False)
        self.assertEqual(result.returncode, 0, result.stderr)
        pages = self.memory_of_core(f"{prefix}.{client.pid}", address, len(image))
        self.assertEqual(sum(p != w for p, w in zip(pages, self.pages_of(image))), 0)
        self.assertGreater(self.reclaim(client.pid), 1900)
        client.send("quit")
        self.check_clean_end(client)
        self.finish_daemon()


if __name__ == "__main__":
    harness.main()
