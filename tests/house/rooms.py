"""Each room finds the headers of the rooms that docs/ARCHITECTURE.md allows it, and of no others.

    rooms.py --build-dir DIR

Takes the compiler's command for a file of each room from DIR/compile_commands.json, and has it read one include of each
other room. Also lists what the compiler cannot refuse: includes that leave the room by "..", and of testing/ in what is
no test. Exit status 1: something is not as the table says.
"""

import argparse
import concurrent.futures
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile

import tree

ROW = re.compile(r"^\| `([a-z/]+)/` \| [^|]* \| ([^|]*) \|$", re.M)
# Who sees only a part of a room, and which headers.
PARTS = {("pool", "compress"): ("checksum.h", "codec_id.h")}
# Whose tests, and what is made of all rooms, may include testing/.
MAY_TEST = re.compile(r"(_test|_fuzz)\.cc$|/testing/|^sim/|^bench/|^tests/")


def table_of(text):
    """{room: rooms that it may include, itself among them}; rooms are folders."""
    rows = ROW.findall(text)
    folders = {folder.rpartition("/")[2]: folder for folder, _ in rows}
    table = {}
    for folder, allowed in rows:
        if allowed.startswith("all but "):
            without = {folders[name] for name in allowed.removeprefix("all but ").split(", ")}
            table[folder] = set(folders.values()) - without
        else:
            table[folder] = {folders[name] for name in allowed.split(", ") if name != "–"}
        table[folder].add(folder)
    return table


def header_of(root, folder, among=None):
    """The smallest: any will do."""
    names = [name for name in os.listdir(os.path.join(root, folder)) if name.endswith(".h")]
    names = [name for name in names if among is None or name in among]
    return min(names, key=lambda name: os.path.getsize(os.path.join(root, folder, name)))


def includes_of(command):
    """Of the compiler's command: itself, and what says where includes are found."""
    words = shlex.split(command)
    words = words[1:] if os.path.basename(words[0]) == "ccache" else words
    kept = [words[0]]
    for n, word in enumerate(words):
        if word.startswith(("-I", "-D", "-std", "-U")):
            kept.append(word)
        elif word in ("-isystem", "-include"):
            kept += words[n:n + 2]
    return kept


def commands_of(build, folders):
    """{room: the command for one of its files that is no test}."""
    found = {}
    with open(os.path.join(build, "compile_commands.json"), encoding="utf-8") as f:
        for entry in json.load(f):
            path = os.path.relpath(os.path.join(entry["directory"], entry["file"]), tree.ROOT)
            folder = os.path.dirname(path)
            once_more = re.search(r"-o \S*(sim|crash|fuzz|test)\S*\.dir/", entry["command"])
            if folder in folders and not once_more and folder not in found:
                found[folder] = includes_of(entry["command"])
    return found


def compiles(command, header):
    """Whether the include is found; whatever else may be wrong."""
    with tempfile.TemporaryDirectory() as elsewhere:  # where the source is, the compiler looks first
        done = subprocess.run([*command, "-M", "-x", "c++", "-"], input=f'#include "{header}"\n', text=True,
                              capture_output=True, check=False, cwd=elsewhere)
    if done.returncode != 0 and "No such file" not in done.stderr and "file not found" not in done.stderr:
        raise SystemExit(f"rooms.py: {' '.join(command)} {header}: {done.stderr}")
    return done.returncode == 0


def leaving(root, paths):
    """Includes that no include path decides about."""
    wrong = []
    for path in paths:
        with open(os.path.join(root, path), encoding="utf-8") as f:
            for number, line in enumerate(f, 1):
                include = re.match(r'\s*#\s*include\s+"([^"]+)"', line)
                if not include:
                    continue
                if "../" in include[1]:
                    wrong.append(f"{path}:{number}: an include that leaves the folder: {include[1]}")
                elif "/testing/" in include[1] and not MAY_TEST.search(path):
                    wrong.append(f"{path}:{number}: {include[1]} is for tests")
    return wrong


def check(build):
    with open(os.path.join(tree.ROOT, "docs", "ARCHITECTURE.md"), encoding="utf-8") as f:
        table = table_of(f.read())
    commands = commands_of(build, table)
    wrong = [f"{folder}/: nothing of it is built" for folder in table if folder not in commands]
    tries = []
    for folder, command in sorted(commands.items()):
        for other in table:
            part = PARTS.get((folder, other))
            if part:
                rest = set(os.listdir(os.path.join(tree.ROOT, other))) - set(part)
                tries.append((folder, command, f"{other}/{header_of(tree.ROOT, other, part)}", True))
                tries.append((folder, command, f"{other}/{header_of(tree.ROOT, other, rest)}", False))
            else:
                tries.append((folder, command, f"{other}/{header_of(tree.ROOT, other)}", other in table[folder]))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(lambda t: compiles(t[1], t[2]), tries))
    for (folder, _, header, allowed), there in zip(tries, found):
        if there and not allowed:
            wrong.append(f"{folder}/ can include {header}, against docs/ARCHITECTURE.md")
        elif allowed and not there:
            wrong.append(f"{folder}/ cannot include {header}, which docs/ARCHITECTURE.md allows")
    refused = sum(not there for there in found)
    print(f"{len(table)} rooms, {len(tries)} includes tried: {len(tries) - refused} found, {refused} refused")
    sources = [path for path in tree.tracked(tree.ROOT) if path.endswith((".h", ".cc"))]
    return wrong + leaving(tree.ROOT, sources)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--build-dir", required=True)
    wrong = check(parser.parse_args().build_dir)
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
