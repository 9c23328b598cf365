"""The crash points of foldswapd_crash (tests/crash/points.h): the control file that counts and arms
them, what the code calls them, and the list of them in tests/crash/POINTS.md:

    python3 tests/e2e/lib/crash_points.py LIST...    adds what test_crash_points.py wrote to FOLDSWAP_CRASH_LIST
    python3 tests/e2e/lib/crash_points.py --anew LIST...    and forgets what was listed"""

import mmap
import os
import re
import struct
import subprocess
import sys
from collections import namedtuple

MAGIC = 0x53544E494F504346
SLOTS = 1 << 14
HEADER_BYTES = 64
SLOT_BYTES = 24
ANY_NEW = (1 << 64) - 1
ARMED, COUNTDOWN, DIED_AT, DIED_PID, LOST, DEATHS = range(8, 56, 8)  # offsets
KINDS = ("before a store", "half way through", "before a call", "after a call")

CALLER = (1 << 30) - 1
ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "../../..")) + os.sep

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
        return {point: times for point, times, _ in self.slots()}

    def slots(self):
        words = struct.unpack_from(f"<{3 * SLOTS}Q", self.map, HEADER_BYTES)
        return [slot for slot in zip(words[::3], words[1::3], words[2::3]) if slot[0] != 0 and slot[1] != 0]

    def deaths(self):
        """How many there were; cheaper than died_at()."""
        return self.word(DEATHS)

    def died_at(self):
        """The points at which a daemon died, in the order of the (last) deaths there."""
        return [p for _, p in sorted((died, p) for p, _, died in self.slots() if died != 0)]

    def arm(self, point, times=1):
        """The daemon dies when it comes to the point for the so manieth time from now."""
        struct.pack_into("<QQ", self.map, DIED_AT, 0, 0)
        struct.pack_into("<Q", self.map, COUNTDOWN, times)
        struct.pack_into("<Q", self.map, ARMED, point)

    def arm_all(self):
        """Each daemon dies at the first point that it comes to where none has died."""
        struct.pack_into("<QQ", self.map, DIED_AT, 0, 0)
        struct.pack_into("<Q", self.map, ARMED, ANY_NEW)

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


# -- the list, in order of the data path

DOCUMENT = os.path.join(ROOT, "tests", "crash", "POINTS.md")
BEGIN = "<!-- crash points: written by tests/e2e/lib/crash_points.py -->\n"
END = "<!-- end of crash points -->\n"
# Whose a point is, of the functions around it, the outermost first.
PATH = (
    ("The daemon starts", r"State::(create|begun)|run_daemon|find_state|PoolLayout::(create|make_files|"
     r"write_headers)|Daemon::(Daemon|create|make_|apply_tunables|memory_total)|ArenaState::|DiskTier::|"
     r"BackingFile::(create|make_)|check_kernel|Seal::"),
    ("A client comes", r"Handshake::(accept|welcome|on_vetted|finish|map_agent|offer_agent|settle|refuse|"
     r"watch)|prove_address_space|page_there|Client::(Client|note_fds|take_agent|learn_pid)|PageMap::create|"
     r"Registry::(add|claim_record)|FaultService::(try_agent|answer_and_learn_pid)|State::claim_record|"
     r"copy_name|read_tgid"),
    ("A page leaves: which", r"ClockPolicy::|ThreadGuard::|QuarantineList::(?!add)|read_of_memory|"
     r"read_threads|read_rss_anon|CgroupLimit::|read_number|BudgetBook::|Pressure|"
     r"Evictor::(refresh_vmas|pages_wanted|housekeeping)"),
    ("A page leaves: how", r"Evictor::|EvictThread::|PageStore::publish"),
    ("In the pool", r"Pool(::|Layout|Care)|Carer|Shard|Arena|"
     r"FrameTable(?!::(restore|bring_home|forget_lists))|Record::"),
    ("A page comes back", r"FaultService::(read_messages|take_message|take_fault|answer|copy_in|clear_way|"
     r"must_hold|note_starved|settle_error|finish_fault|rescue|step|fill_window|run_give_back|hold_back)|"
     r"FaultThread::|LayoutTryLock::|ThreadStopper::|PageStore::clear$"),
    ("A page comes back from disk", r"DiskReader::|FaultService::(order|deliver|finish_delivered|.*disk)"),
    ("What else the reader does", r"FaultService::|PageStore::clear_range"),
    ("Events", r"AddressSpace::(?!apply_forks|end_taking_over)|PageStore::move|QuarantineList::"),
    ("A fork", r"ForkClone::|Registry::(adopt_child|child_ready|doom)|PageStore::share|AddressSpace::"),
    ("To the disk, and cleaning", r"Writeback|WriteBudget|Writer|KeptCopies::|PageStore::|"
     r"BackingFile::(?!take_over|adopt|settle)"),
    ("A client ends", r"Handshake::|Registry::|State::(wipe_record|free_record)|Client::|"
     r"PageMap::(?!rebuild|recycle|take_over)"),
    ("What an administrator asks for", r"Control::|stats_json|"
     r"Daemon::(?!run|place|kick_evictor|take_over|serve_taken)"),
    ("Recovery", r"TakeOver::|PoolTakeOver::|take_over|take_records|take_frames|forget_sums|"
     r"finish_replacing|FrameTable::|State::take_over|PageMap::|BackingFile::|Daemon::(take_over|serve)"),
    ("Elsewhere", r""),
)


def whose(names):
    """Which part of PATH, and in which function: the outermost that says so."""
    for name in reversed(names):
        for number, (_, functions) in enumerate(PATH[:-1]):
            if re.match(functions, name):
                return number, name
    return len(PATH) - 1, names[-1]


def names_of(description):
    """From the innermost function to the outermost."""
    first, *others = description.split(": ", 1)[1].split(" < ")
    return [first.split(" (")[0], *others]


def entries(descriptions):
    """{(part of PATH, function): {what it does there}}, `what` being functions that it calls."""
    found = {}
    for description in descriptions:
        names = names_of(description)
        number, name = whose(names)
        if name == "?":
            continue  # debug information does not say whose code that is
        inner = names[0] if names[0] != name else "itself"
        found.setdefault((number, name), set()).add(inner)
    return found


def listed():
    """What the document has, as entries() does."""
    with open(DOCUMENT, encoding="utf-8") as f:
        text = f.read()
    found, number = {}, 0
    for line in text[text.index(BEGIN):text.index(END)].splitlines():
        for index, (title, _) in enumerate(PATH):
            number = index if line == f"**{title}**" else number
        row = re.fullmatch(r"- `(.*?)`: (.*)", line)
        if row:
            found[(number, row.group(1))] = set(re.findall(r"`(.*?)`|(?<![`\w])(itself)", row.group(2)))
    return {key: {a or b for a, b in inner} for key, inner in found.items()}


def write_list(found):
    lines = []
    for number, (title, _) in enumerate(PATH):
        rows = sorted(key for key in found if key[0] == number)
        if rows:
            lines += ["", f"**{title}**", ""]
        for key in rows:
            inner = [name if name == "itself" else f"`{name}`" for name in sorted(found[key])]
            lines.append(f"- `{key[1]}`: {', '.join(inner)}")
    with open(DOCUMENT, encoding="utf-8") as f:
        text = f.read()
    begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    with open(DOCUMENT, "w", encoding="utf-8") as f:
        f.write(text[:begin] + "\n".join(lines[1:]) + "\n\n" + text[end:])


def main():
    arguments = sys.argv[1:]
    found = {}
    if arguments[:1] == ["--anew"]:
        arguments = arguments[1:]
    else:
        found = listed()
    for path in arguments:
        with open(path, encoding="utf-8") as f:
            for key, inner in entries(line.rstrip("\n").split("\t")[2] for line in f).items():
                found.setdefault(key, set()).update(inner)
    write_list(found)


if __name__ == "__main__":
    main()
