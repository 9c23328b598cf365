"""The programs whose heaps the density benchmark looks at, and what fills them.

Every program is real and comes from a package that scripts/deps.sh installs. Its data comes from a
seed and from texts of the machine (Python's standard library and the headers in /usr/include), so
two runs on one machine fill the heaps alike. PROGRAMS maps a name to a function that takes a
Bench, starts the program and returns its process when its heap is filled.
"""

import ctypes
import glob
import json
import os
import random
import re
import select
import signal
import subprocess
import sys
import sysconfig
import time

MIB = 1 << 20
PATIENCE_S = 180
PRCTL = ctypes.CDLL(None).prctl
PR_SET_PDEATHSIG = 1


class Missing(Exception):
    """The program is not installed, or did not do what it should."""


class Corpus:
    """Some MiB of text that people wrote, and its words in their order."""

    def __init__(self, most_bytes=12 * MIB):
        stdlib = sysconfig.get_paths()["stdlib"]
        names = sorted(glob.glob(stdlib + "/*.py") + glob.glob(stdlib + "/*/*.py"))
        names += sorted(glob.glob("/usr/include/*.h") + glob.glob("/usr/include/*/*.h"))
        texts, size = [], 0
        for name in names:
            with open(name, encoding="utf-8", errors="replace") as file:
                texts.append(file.read())
            size += len(texts[-1])
            if size >= most_bytes:
                break
        self.lines = [line for text in texts for line in text.splitlines() if line.strip()]
        self.words = re.findall("[A-Za-z]{3,16}", "\n".join(texts))
        self.files = names


class Bench:
    """A working directory, the corpus, and the processes started; end() ends these."""

    def __init__(self, work, corpus, heap_bytes):
        self.work = work
        self.corpus = corpus
        self.heap_bytes = heap_bytes  # about this much is worth filling
        self.random = random.Random(20)
        self.processes = []

    def path(self, name):
        return os.path.join(self.work, name)

    def write(self, name, text):
        with open(self.path(name), "w", encoding="utf-8") as file:
            file.write(text)
        return self.path(name)

    def start(self, *command):
        """A child with pipes for stdin and stdout, which dies with us."""
        def prepare():
            PRCTL(PR_SET_PDEATHSIG, signal.SIGKILL)
        environment = dict(os.environ, LC_ALL="C", LANG="C", PYTHONHASHSEED="0",
                           PERL_HASH_SEED="0", HOME=self.work)
        try:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                       stderr=subprocess.DEVNULL, cwd=self.work,
                                       env=environment, preexec_fn=prepare)
        except FileNotFoundError:
            raise Missing(f"{command[0]} is not installed") from None
        self.processes.append(process)
        return process

    def run(self, *command, stdin=None):
        process = self.start(*command)
        output, _ = process.communicate(stdin, timeout=PATIENCE_S)
        if process.returncode != 0:
            raise Missing(f"{command[0]} failed")
        return output.decode()

    def end(self):
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                try:
                    pipe.close()
                except OSError:  # what was not yet written has no reader any more
                    pass
        self.processes.clear()

    def record(self, number):
        """What applications keep about somebody or something."""
        rng, words = self.random, self.corpus.words
        name = rng.choice(words).lower() + str(number % 997)
        return {
            "id": 100000 + number, "name": name, "email": f"{name}@{rng.choice(words)}.example",
            "active": rng.random() < 0.8, "score": round(rng.gauss(50, 15), 3),
            "created": 1600000000 + number * 37 + rng.randrange(30),
            "tags": [rng.choice(words) for _ in range(rng.randrange(1, 6))],
            "address": {"street": f"{rng.choice(words)} {rng.randrange(1, 200)}",
                        "zip": f"{rng.randrange(10000, 99999)}", "city": rng.choice(words[:400])},
            "notes": " ".join(self.sentence() for _ in range(rng.randrange(1, 4))),
            "token": f"{rng.getrandbits(128):032x}",
        }

    def sentence(self):
        at = self.random.randrange(len(self.corpus.words) - 12)
        return " ".join(self.corpus.words[at:at + self.random.randrange(4, 12)])


def await_ready(process):
    """Waits for the program to print `ready`."""
    end = time.monotonic() + PATIENCE_S
    seen = b""
    while b"ready" not in seen:
        if not select.select([process.stdout], [], [], max(0, end - time.monotonic()))[0]:
            raise Missing("it was not ready in time")
        piece = os.read(process.stdout.fileno(), 65536)
        if not piece:
            raise Missing("it ended early")
        seen = seen[-8:] + piece
    return process


def anonymous_bytes(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return sum(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon:"))


def await_heap(process, size):
    """Waits until the program, which works and will end, has so large a heap; stops it there."""
    end = time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < end:
        if anonymous_bytes(process.pid) >= size:
            process.send_signal(signal.SIGSTOP)
            return process
        time.sleep(0.005)
    raise Missing("it ended before its heap was large")


# -- interpreters

PYTHON = """
import json, sys
with open(sys.argv[1]) as file:
    records = [json.loads(line) for line in file]
by_name = {}
by_tag = {}
for record in records:
    by_name.setdefault(record["name"], []).append(record)
    for tag in record["tags"]:
        by_tag.setdefault(tag, set()).add(record["id"])
print("ready", flush=True)
sys.stdin.read()
"""


def python(bench):
    count = bench.heap_bytes // 2000
    name = bench.write("records.json", "".join(json.dumps(bench.record(i)) + "\n"
                                               for i in range(count)))
    return await_ready(bench.start(sys.executable, "-c", PYTHON, name))


PERL = """
my (%places, @lines, %pairs); my $last = '';
open(my $file, '<', $ARGV[0]) or die;
while (my $line = <$file>) {
  chomp $line;
  push @lines, { text => $line, number => $. };
  for my $word ($line =~ /[A-Za-z_]{3,}/g) {
    push @{$places{$word}}, $.;
    $pairs{"$last $word"}++;
    $last = $word;
  }
}
$| = 1; print "ready\\n"; my $end = <STDIN>;
"""


def perl(bench):
    lines = bench.corpus.lines[:bench.heap_bytes // 700]
    return await_ready(bench.start("perl", "-e", PERL, bench.write("text", "\n".join(lines))))


# -- databases

def redis_command(*words):
    parts = [str(word).encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts)


def redis(bench):
    """Sessions, hashes, lists and a sorted set; then a fifth of the sessions expires."""
    socket = bench.path("redis.sock")
    server = bench.start("redis-server", "--port", "0", "--unixsocket", socket, "--save", "",
                         "--appendonly", "no", "--daemonize", "no")
    end = time.monotonic() + PATIENCE_S
    while not os.path.exists(socket):
        if server.poll() is not None or time.monotonic() > end:
            raise Missing("redis-server did not open its socket")
        time.sleep(0.02)
    commands = []
    count = bench.heap_bytes // 1300
    for number in range(count):
        record = bench.record(number)
        commands.append(redis_command("SET", f"session:{record['token']}", json.dumps(record)))
        commands.append(redis_command("HSET", f"user:{record['id']}", *(
            text for key in ("name", "email", "score", "created", "notes")
            for text in (key, record[key]))))
        commands.append(redis_command("ZADD", "scores", record["score"], record["name"]))
        commands.append(redis_command("RPUSH", f"events:{number % 500}", record["created"],
                                      record["notes"][:60]))
        if number % 5 == 0:
            commands.append(redis_command("DEL", f"session:{record['token']}"))
    bench.run("redis-cli", "-s", socket, "--pipe", stdin=b"".join(commands))
    return server


def sqlite(bench):
    """A database in memory: two tables, three indexes, some rows changed and deleted."""
    def quote(text):
        return "'" + str(text).replace("'", "''") + "'"
    statements = [
        "CREATE TABLE person(id INTEGER PRIMARY KEY, name TEXT, email TEXT, score REAL, city TEXT,"
        " created INTEGER, notes TEXT);",
        "CREATE TABLE tag(person INTEGER, word TEXT);", "BEGIN;"]
    for number in range(bench.heap_bytes // 500):
        record = bench.record(number)
        values = ",".join(quote(record[key]) for key in ("name", "email"))
        statements.append(
            f"INSERT INTO person VALUES({record['id']},{values},{record['score']},"
            f"{quote(record['address']['city'])},{record['created']},{quote(record['notes'])});")
        statements += [f"INSERT INTO tag VALUES({record['id']},{quote(t)});"
                       for t in record["tags"]]
    statements += [
        "COMMIT;", "CREATE INDEX person_name ON person(name);",
        "CREATE INDEX person_city ON person(city, score);", "CREATE INDEX tag_word ON tag(word);",
        "DELETE FROM person WHERE id % 11 = 3;",
        "UPDATE person SET notes = notes || ' ' || name WHERE id % 7 = 1;", ".print ready\n"]
    process = bench.start("sqlite3", "-batch", ":memory:")
    process.stdin.write(f".read {bench.write('fill.sql', chr(10).join(statements))}\n".encode())
    process.stdin.flush()
    return await_ready(process)


# -- tools

def sort(bench):
    """Log lines, as far as sort has read them when its input pauses."""
    rng, files = bench.random, bench.corpus.files
    process = bench.start("sort", "-S", f"{bench.heap_bytes * 3 // MIB}M", "-k", "6")
    clock, written = 1700000000.0, 0
    while written < bench.heap_bytes:
        clock += rng.expovariate(5)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(clock))
        line = (f"10.{rng.randrange(4)}.{rng.randrange(256)}.{rng.randrange(256)} - - [{stamp}] "
                f"\"GET {rng.choice(files)}?q={rng.choice(bench.corpus.words)} HTTP/1.1\" "
                f"{rng.choice((200, 200, 200, 304, 404))} {int(rng.lognormvariate(8, 2))}\n")
        process.stdin.write(line.encode())
        written += len(line)
    process.stdin.flush()
    return process


HEADERS = ("algorithm", "chrono", "deque", "functional", "future", "iostream", "map", "memory",
           "optional", "random", "ranges", "regex", "set", "sstream", "string", "thread",
           "unordered_map", "variant", "vector")


def big_source(bench, classes):
    """C++ as it is generated from an interface description."""
    words = sorted({w.lower() for w in bench.corpus.words[:40000] if len(w) > 4})
    rng = bench.random
    out = [f"#include <{header}>" for header in HEADERS]
    for number in range(classes):
        fields = rng.sample(words, rng.randrange(3, 9))
        kinds = [rng.choice(("int", "double", "std::string", "std::vector<std::string>",
                             "std::map<std::string, int>", "std::optional<std::string>"))
                 for _ in fields]
        name = f"Message{number}_{rng.choice(words)}"
        out.append(f"struct {name} {{")
        out += [f"  {kind} {field}_;" for kind, field in zip(kinds, fields)]
        out.append(f"  bool operator==(const {name}&) const = default;\n}};")
        out.append(f"std::map<std::string, {name}> table{number};")
        out.append(f"int visit{number}(const std::string& key, int depth) {{\n"
                   f"  auto found = table{number}.find(key);\n"
                   f"  if (found == table{number}.end()) return depth;\n"
                   f"  std::vector<{name}> copies(3, found->second);\n"
                   f"  std::stable_sort(copies.begin(), copies.end(), [](auto& a, auto& b) {{\n"
                   f"    return &a < &b; }});\n"
                   f"  for (int i = 0; i < depth; ++i) table{number}[key + std::to_string(i)] = "
                   f"copies[static_cast<unsigned>(i) % 3];\n"
                   f"  return static_cast<int>(copies.size()) + depth;\n}}")
    return bench.write("big.cc", "\n".join(out) + "\n")


def cc1plus(bench):
    """The compiler proper of g++, in the middle of its work."""
    source = big_source(bench, 100 + bench.heap_bytes // (MIB // 4))
    bench.run("g++", "-std=c++20", "-E", source, "-o", bench.path("big.ii"))
    compiler = bench.run("g++", "-print-prog-name=cc1plus").strip()
    return await_heap(bench.start(compiler, "-quiet", "-fpreprocessed", "-std=c++20", "-O1",
                                  bench.path("big.ii"), "-o", "/dev/null"),
                      bench.heap_bytes * 2)


def clang(bench):
    source = big_source(bench, 100 + bench.heap_bytes // (MIB // 4))
    return await_heap(bench.start("clang++-19", "-std=c++20", "-O1", "-c", source,
                                  "-o", "/dev/null"), bench.heap_bytes * 2)


def gdb(bench):
    """A debugger that has read all symbols of a program."""
    source = big_source(bench, 20)
    library = bench.path("big.so")
    bench.run("g++", "-std=c++20", "-g", "-O0", "-shared", "-fPIC", source, "-o", library)
    process = bench.start("gdb", "-q", "-nx", "-nh", library)
    process.stdin.write(b"set pagination off\nmaint expand-symtabs\necho ready\\n\n")
    process.stdin.flush()
    return await_ready(process)


PROGRAMS = {"python": python, "perl": perl, "redis": redis, "sqlite": sqlite, "sort": sort,
            "cc1plus": cc1plus, "clang": clang, "gdb": gdb}
