"""Real programs at half the memory they need: same output, same exit status, every byte right."""

import hashlib
import os
import shutil
import socket
import subprocess
import sys

from lib import harness
from lib.ctest import ctest
from lib.harness import E2E, MIB, Churn, Place, slower, wait_until

# Three measures of a large dictionary of small objects; prints digests only.
PYTHON_PROGRAM = """
import hashlib, random, sys
random.seed(42)
d = {}
for i in range(100000):
    d[f"key-{i}-{random.getrandbits(40):x}"] = (i, random.random(), [i % 7, str(i)])
digest = hashlib.sha256()
for k in sorted(d):
    digest.update(f"{k}={d[k]}".encode())
print(len(d), digest.hexdigest())
order = sorted(d, key=lambda k: d[k][1])
print(hashlib.sha256("".join(order).encode()).hexdigest())
for k in order[::2]:
    del d[k]
print(sum(v[0] for v in d.values()), len(d))
"""

SQLITE_PROGRAM = """
import hashlib, random, sqlite3
random.seed(7)
db = sqlite3.connect(":memory:")
db.execute("create table t(id integer primary key, name text, body blob, n integer)")
db.execute("create index by_name on t(name)")
for start in range(0, 60000, 1000):
    rows = []
    for i in range(start, start + 1000):
        rows.append((i, f"name{random.randrange(10**6)}", random.randbytes(120) * 3, i % 97))
    db.executemany("insert into t values(?,?,?,?)", rows)
    db.execute("update t set n = n + 1 where id % 11 = ?", (start % 11,))
print(db.execute("pragma integrity_check").fetchall())
print(db.execute("select count(*), sum(n), count(distinct name) from t").fetchall())
h = hashlib.sha256()
for row in db.execute("select name, body from t order by name, id"):
    h.update(row[0].encode() + row[1])
print(h.hexdigest())
db.execute("delete from t where n % 2 = 0")
db.commit()
db.execute("vacuum")
print(db.execute("pragma integrity_check").fetchall(),
      db.execute("select count(*) from t").fetchall())
"""


@ctest("e2e_program", "e2e")
class Programs(E2E):
    def compare_at_half(self, command, seconds=240, **more):
        """Plainly, then with half of the memory that this took; identical, and pages really went
        out."""
        plain = self.run_plain(command, seconds, **more)
        self.assertEqual(plain.code, 0, plain.stderr().decode(errors="replace"))
        half = plain.max_rss // 2
        client = self.run_client(command, half, seconds * 2, **more)
        print(f"peak {plain.max_rss // MIB} MiB, ran in {half // MIB} MiB")
        self.assert_same(plain, client)
        stats = self.finish_daemon()
        self.assert_worked(stats)
        return stats

    def test_python(self):
        self.compare_at_half([sys.executable, "-c", PYTHON_PROGRAM])

    def test_sqlite(self):
        self.compare_at_half([sys.executable, "-c", SQLITE_PROGRAM])

    def test_shared_threads(self):
        self.compare_at_half([Place.program("shared_threads"), f"--seed={self.seed}"])

    def test_rw_buffers(self):
        command = [Place.program("rw_buffers"), f"--seed={self.seed}", f"--dir={self.tmp}"]
        plain = self.run_plain(command)
        client = self.client(command, 20 * MIB)
        churn = Churn(self, client.pid, restore_every=0)
        churn.start()
        client.finish(240)
        churn.stop()
        self.assert_same(plain, client)
        self.assert_worked(self.finish_daemon())

    @ctest(labels="e2e e2e_san")
    def test_fork_tree(self):
        command = [Place.program("fork_tree"), "--mb=32", "--wait=1", f"--seed={self.seed}"]
        plain = self.plain(command)
        plain.expect("populated")
        plain.finish()
        self.assertEqual(plain.code, 0, plain.stderr())
        client = self.client(command, 16 * MIB)
        client.expect("populated")
        self.assertGreater(self.reclaim(client.pid), 0)
        client.finish(240)
        self.assert_same(plain, client)
        self.assert_worked(self.finish_daemon())

    def test_compiler(self):
        source = os.path.join(self.tmp, "large.cc")
        with open(source, "w", encoding="ascii") as f:
            f.write("#include <map>\n#include <string>\n#include <vector>\n")
            for i in range(200):
                f.write(f"struct S{i} {{ std::map<int, std::vector<std::string>> m;\n"
                        f"int a[{i + 1}]; }};\nint f{i}(S{i}& s, int k) {{ "
                        f"s.m[k].push_back(std::to_string(k * {i})); "
                        f"return s.a[k % {i + 1}] + static_cast<int>(s.m.size()); }}\n")
        digests = []

        def compile_with(run):
            target = os.path.join(self.tmp, "large.o")
            proc = run(["g++", "-O1", "-c", source, "-o", target], cwd=self.tmp)
            self.assertEqual(proc.code, 0, proc.stderr())
            with open(target, "rb") as f:
                digests.append(hashlib.sha256(f.read()).hexdigest())
            return proc
        # g++ itself is small: cc1plus, its child, has the memory, inherits the budget and is a
        # client, too.
        plain = compile_with(self.run_plain)
        client = compile_with(lambda c, **k: self.run_client(c, plain.max_rss // 2, **k))
        self.assert_same(plain, client)
        self.assertEqual(digests[0], digests[1])
        self.assert_worked(self.finish_daemon())

    def test_sort(self):
        source = os.path.join(self.tmp, "lines")
        state = self.seed
        with open(source, "w", encoding="ascii") as f:
            for _ in range(900000):
                state = (state * 6364136223846793005 + 1442695040888963407) & (2**64 - 1)
                f.write(f"{state:016x} some text that goes with the number {state % 1000}\n")
        self.compare_at_half(["/usr/bin/sort", "--parallel=2", "-S", "400M", source])


@ctest("e2e_program", "e2e")
class Redis(E2E):
    def redis(self, *arguments, data=None):
        result = subprocess.run(["redis-cli", "-p", str(self.port), *arguments],
                                capture_output=True, text=True,
                                input=data, timeout=slower(120), check=False)
        return result.stdout.strip()

    def start_redis(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        server = self.client(
            ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "",
             "--appendonly", "no",
             "--enable-debug-command", "yes", "--daemonize", "no", "--dir", self.tmp,
             "--logfile", os.path.join(self.tmp, "redis.log")], name="redis")
        wait_until("redis to answer", lambda: self.redis("ping") == "PONG", 20)
        return server

    def test_redis(self):
        if not shutil.which("redis-server"):
            self.skipTest("redis-server is not installed")
        server = self.start_redis()
        for kind in ("", "other"):
            self.redis("debug", "populate", "200000", f"key{kind}", "100" if kind else "32")
        self.redis("eval", "for i=1,50000 do redis.call('hset','h'..(i%500),'f'..i,'v'..i) "
                           "redis.call('zadd','z'..(i%50),i,'m'..i) end return 1", "0")
        before = self.redis("debug", "digest")
        self.assertRegex(before, "^[0-9a-f]{40}$")
        for _ in range(3):
            self.assertGreater(self.reclaim("redis"), 10000)
            self.assertEqual(self.redis("debug", "digest"), before)
        self.assertGreater(self.reclaim("redis"), 0)
        self.redis("eval", "for i=1,20000 do redis.call('set','n'..i,string.rep('x',i%300)) end "
                           "return 1", "0")
        self.assertEqual(self.redis("strlen", "n299"), "299")
        self.assertEqual(self.redis("dbsize"), str(200000 * 2 + 500 + 50 + 20000))
        self.check_conservation()
        self.redis("shutdown", "nosave")
        self.assertEqual(server.finish(), 0)
        self.assert_worked(self.finish_daemon())


if __name__ == "__main__":
    harness.main()
