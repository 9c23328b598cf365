"""A backing file seen from outside: found through its daemon's descriptors, read and damaged past
the page cache, as a disk would do it. How objects lie in it: daemon/disk/disk_format.h."""

import mmap
import os
import struct

BLOCK = 4096
SEGMENT = 512 * 1024
UNIT = 16
HEADER = struct.Struct("<IHH")  # object, length, units
TAG = 16


class Object:
    """Where one lies: offset of its header in the file, its length and what it takes with all."""

    def __init__(self, offset, number, length, units):
        self.offset, self.number, self.length, self.bytes = offset, number, length, units * UNIT

    def fields(self):
        """(name, first byte, bytes) of all that it consists of."""
        at = self.offset
        sealed = at + HEADER.size
        end = sealed + self.length + TAG
        return [("object", at, 4), ("length", at + 4, 2), ("units", at + 6, 2),
                ("first", sealed, 1), ("middle", sealed + self.length // 2, 1),
                ("last", sealed + self.length - 1, 1), ("tag", end - TAG, TAG),
                ("padding", end, at + self.bytes - end)]


class Backing:
    """The unnamed file of a daemon's writeback.dir. Whatever is done here is done at once, and
    behind the daemon's back."""

    def __init__(self, pid, directory):
        self.fd = -1
        prefix = os.path.realpath(directory) + "/"
        for entry in os.listdir(f"/proc/{pid}/fd"):
            path = f"/proc/{pid}/fd/{entry}"
            try:
                target = os.readlink(path)
            except OSError:
                continue
            if target.startswith(prefix) and target.endswith("(deleted)"):
                self.fd = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
                break
        if self.fd < 0:
            raise AssertionError(f"daemon {pid} has no unnamed file in {directory}")
        self.memory = mmap.mmap(-1, SEGMENT)  # aligned

    def close(self):
        os.close(self.fd)
        self.memory.close()

    def size(self):
        return os.fstat(self.fd).st_size

    def blocks_bytes(self):
        return os.fstat(self.fd).st_blocks * 512

    def read(self, offset, length):
        """Block-aligned; short at the end of the file."""
        with memoryview(self.memory) as view:
            got = os.preadv(self.fd, [view[:length]], offset)
            return bytes(view[:got])

    def write(self, offset, data):
        with memoryview(self.memory) as view:
            view[:len(data)] = data
            wrote = os.pwritev(self.fd, [view[:len(data)]], offset)
        if wrote != len(data):
            raise AssertionError(f"{wrote} of {len(data)} bytes written at {offset}")

    def segments(self):
        """(offset, bytes) of each that is not all zeros."""
        for offset in range(0, self.size(), SEGMENT):
            data = self.read(offset, SEGMENT)
            if data.count(0) != len(data):
                yield offset, data

    def objects(self):
        """All that the headers lead to, dead ones too."""
        found = []
        for start, data in self.segments():
            at = 0
            while at + HEADER.size + TAG < len(data):
                number, length, units = HEADER.unpack_from(data, at)
                if (length == 0 or length > 4096 or units * UNIT < length + HEADER.size + TAG or
                        at + units * UNIT > len(data)):
                    at = (at // BLOCK + 1) * BLOCK  # the rest of a block, or a hole
                    continue
                found.append(Object(start + at, number, length, units))
                at += units * UNIT
        return found

    def change(self, offset, function):
        """One byte."""
        start = offset // BLOCK * BLOCK
        data = bytearray(self.read(start, BLOCK))
        data[offset - start] = function(data[offset - start])
        self.write(start, data)

    def flip(self, offset, bit):
        self.change(offset, lambda byte: byte ^ 1 << bit)
