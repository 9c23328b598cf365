#!/usr/bin/env python3
"""What the kernel's zram makes of the same pages: zram_peer.py FILE.pages...

Makes a zram device of its own (lz4) for each file, lets the pages live the life that
density_churn.h describes, and writes what mm_stat says into FILE.zram, where bench/density finds
it: a line `PHASE ORIG_DATA_SIZE COMPR_DATA_SIZE MEM_USED_TOTAL` for each phase, or one line
`none REASON`. MEM_USED_TOTAL leaves out zram's table of the device's pages, so it compares with the
pool's frames. To tidy is zram's `compact`. The device is reset and removed on every way out.
"""

import contextlib
import fcntl
import mmap
import os
import random
import signal
import struct
import sys
import time

PAGE = 4096
CONTROL = "/sys/class/zram-control"
BLKDISCARD = 0x1277
TURNOVER = 10


class Missing(Exception):
    """Why there is no zram."""


def read(path):
    with open(path, encoding="ascii") as file:
        return file.read().strip()


def write(path, text):
    with open(path, "w", encoding="ascii") as file:
        file.write(str(text))


class Device:
    """A zram device with lz4, opened with O_DIRECT."""

    def __init__(self, stack, pages):
        if not os.path.isdir(CONTROL):
            raise Missing(f"the running kernel has no zram loaded (no {CONTROL})")
        if os.geteuid() != 0:
            raise Missing("only root can make a zram device")
        self.number = int(read(CONTROL + "/hot_add"))
        stack.callback(self.remove)
        self.sys = f"/sys/block/zram{self.number}"
        try:
            write(self.sys + "/comp_algorithm", "lz4")
        except OSError:
            known = read(self.sys + "/comp_algorithm")
            raise Missing(f"this kernel's zram has no lz4, but {known}") from None
        write(self.sys + "/disksize", pages * PAGE)
        self.file = self.open(f"/dev/zram{self.number}")
        stack.callback(os.close, self.file)
        self.buffer = mmap.mmap(-1, PAGE)  # page-aligned, as O_DIRECT wants
        stack.callback(self.buffer.close)

    @staticmethod
    def open(name):
        for _ in range(100):
            if os.path.exists(name):
                return os.open(name, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
            time.sleep(0.02)
        raise Missing(f"no {name} appeared")

    def remove(self):
        with contextlib.suppress(OSError):
            write(self.sys + "/reset", 1)
        write(CONTROL + "/hot_remove", self.number)

    def put(self, slot, page):
        self.buffer[:] = page
        if os.pwritev(self.file, [self.buffer], slot * PAGE) != PAGE:
            raise OSError("zram took a part of a page")

    def drop(self, slot):
        fcntl.ioctl(self.file, BLKDISCARD, struct.pack("QQ", slot * PAGE, PAGE))

    def stat(self):
        return [int(word) for word in read(self.sys + "/mm_stat").split()[:3]]


def pages_of(name):
    """Those that are not same-filled."""
    with open(name, "rb") as file:
        data = file.read()
    pages = [data[at:at + PAGE] for at in range(0, len(data), PAGE)]
    return [page for page in pages if page != page[:8] * (PAGE // 8)]


def measure(name):
    """Lines for FILE.zram."""
    pages, rng = pages_of(name), random.Random(4)
    count = len(pages)
    with contextlib.ExitStack() as stack:
        device = Device(stack, count)
        lines = []

        def note(phase):
            lines.append(" ".join([phase, *map(str, device.stat())]))

        for slot, page in enumerate(pages):
            device.put(slot, page)
        note("fresh")
        for _ in range(TURNOVER * count):
            device.put(rng.randrange(count), rng.choice(pages))
        note("churned")
        freed = rng.sample(range(count), count * 3 // 10)
        for slot in freed:
            device.drop(slot)
        for slot in freed:
            device.put(slot, rng.choice(pages))
        note("refilled")
        for slot in rng.sample(range(count), count // 2):
            device.drop(slot)
        note("halved")
        write(device.sys + "/compact", 1)
        note("tidied")
    return lines


def main():
    if len(sys.argv) < 2:
        sys.exit("usage: zram_peer.py FILE.pages...")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda signum, frame: sys.exit(128 + signum))
    for name in sys.argv[1:]:
        try:
            lines = measure(name)
        except (Missing, OSError) as error:
            lines = [f"none {error}"]
        write(os.path.splitext(name)[0] + ".zram", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
