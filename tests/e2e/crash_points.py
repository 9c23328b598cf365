"""The crash points of foldswapd_crash (tests/crash/points.h): the control file that counts and arms
them, and what the code calls them."""

import mmap
import os
import re
import struct
import subprocess
from collections import namedtuple

MAGIC = 0x53544E494F504346
SLOTS = 1 << 14
HEADER_BYTES = 64
SLOT_BYTES = 16
ARMED, COUNTDOWN, DIED_AT, DIED_PID, LOST = range(8, 48, 8)  # offsets
KINDS = ("before a store", "half way through", "before a call", "after a call")

CALLER = (1 << 30) - 1
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))) + os.sep

# Where a point is: the function that does it, file and line, and who called that, as far as is known.
Place = namedtuple("Place", "function file line around")


class Control:
    """The file that a foldswapd_crash counts in; its path goes into FOLDSWAP_CRASH_CONTROL."""

    def __init__(self, path):
        self.path = path
        with open(path, "wb") as f:
            f.write(struct.pack("<Q", MAGIC))
            f.truncate(HEADER_BYTES + SLOTS * SLOT_BYTES)
        with open(path, "r+b") as f:
            self.map = mmap.mmap(f.fileno(), 0)

    def word(self, offset):
        return struct.unpack_from("<Q", self.map, offset)[0]

    def counts(self):
        """How often each point was come to."""
        words = struct.unpack_from(f"<{2 * SLOTS}Q", self.map, HEADER_BYTES)
        return {point: times for point, times in zip(words[::2], words[1::2]) if point != 0}

    def arm(self, point, times=1):
        """The daemon dies when it comes to the point for the so manieth time from now."""
        struct.pack_into("<QQ", self.map, DIED_AT, 0, 0)
        struct.pack_into("<Q", self.map, COUNTDOWN, times)
        struct.pack_into("<Q", self.map, ARMED, point)

    def disarm(self):
        struct.pack_into("<Q", self.map, ARMED, 0)

    def death(self):
        """The pid of the daemon that has died at the armed point; 0: none has."""
        return self.word(DIED_PID) if self.word(DIED_AT) != 0 else 0

    def check(self, test):
        test.assertEqual(self.word(LOST), 0, "the table of points is too small")


def kind_of(point):
    return KINDS[point & 3]


def short(function):
    """Without namespace, arguments and template arguments."""
    name = re.sub(r"\[abi:[^]]*\]|\(anonymous namespace\)::|foldswap::|std::", "", function)
    name = name.replace("operator()", "operator@")
    while True:
        inner = re.sub(r"\{lambda\([^{}]*\)#\d+\}", "lambda", name)
        inner = re.sub(r"<[^<>]*>|\([^()]*\)", "", inner)
        if inner == name:
            break
        name = inner
    name = name.split(" [clone")[0].replace(" const", "").strip()
    return name.split(" ")[-1].replace("::lambda::operator@", "").replace("operator@", "operator()")


def frames_of(binary, addresses):
    """{address: [(function, file, line)]} of our code, the innermost inlined function first."""
    wanted = sorted(addresses)
    asked = "".join(f"{address - 1:#x}\n" for address in wanted)
    said = subprocess.run(["addr2line", "-a", "-f", "-i", "-C", "-e", binary], input=asked,
                          capture_output=True, text=True, check=True).stdout.splitlines()
    all_frames, function = [], None
    for line in said:
        if re.fullmatch(r"0x[0-9a-f]+", line):
            all_frames.append([])
            function = None
        elif function is None:
            function = line
        else:
            path, _, number = line.split(" ")[0].rpartition(":")
            path = os.path.normpath(path)
            if path.startswith(ROOT) or not os.path.isabs(path):
                all_frames[-1].append((short(function), path.removeprefix(ROOT), number))
            function = None
    return dict(zip(wanted, all_frames))


def symbolise(binary, points):
    """{point: Place}; what of other people's code was inlined is passed over."""
    frames = frames_of(binary, {at for p in points for at in (p >> 32, p >> 2 & CALLER) if at != 0})
    places = {}
    for point in points:
        found = frames[point >> 32] + frames.get(point >> 2 & CALLER, [])
        (function, path, line), *others = found or [("?", "?", "0")]
        places[point] = Place(function, path, line, tuple(f for f, _, _ in others))
    return places


def describe(point, place):
    around = "".join(f" < {name}" for name in place.around)
    return f"{kind_of(point)}: {place.function} ({place.file}:{place.line}){around}"
