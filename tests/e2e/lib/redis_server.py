"""A redis-server of a test's own, and ways to speak to it."""

import os
import re
import socket
import subprocess

from lib.harness import slower, wait_until


class Server:
    """One redis-server and redis-cli for it, on a unix socket."""

    def __init__(self, test, name, run, directory, *more):
        self.test = test
        self.socket = os.path.join(test.tmp, name + ".sock")
        self.log = os.path.join(test.tmp, name + ".log")
        self.proc = run(["redis-server", "--port", "0", "--unixsocket", self.socket, "--save", "",
                         "--enable-debug-command", "local", "--daemonize", "no", "--dir", directory,
                         "--logfile", self.log, *more])
        wait_until(f"{name} to answer", lambda: self.cli("ping") == "PONG", 120)

    def cli(self, *arguments):
        result = subprocess.run(["redis-cli", "-s", self.socket, *arguments], capture_output=True,
                                text=True, timeout=slower(300), check=False)
        return result.stdout.strip()

    def info(self, key):
        found = re.search(rf"^{key}:(.*?)\r?$", self.cli("info"), re.MULTILINE)
        return found.group(1) if found else None

    def digest(self):
        digest = self.cli("debug", "digest")
        self.test.assertRegex(digest, "^[0-9a-f]{40}$")
        return digest

    def begin(self, command):
        self.test.assertIn("started", self.cli(command))

    def end(self, command, running, status):
        """BGSAVE or BGREWRITEAOF to its end; its child is also a client's child."""
        wait_until(f"{command} to end", lambda: self.info(running) == "0", 300)
        self.test.assertEqual(self.info(status), "ok", f"{command}: {self.log_text()}")

    def begin_save(self):
        self.begin("bgsave")

    def end_save(self):
        self.end("bgsave", "rdb_bgsave_in_progress", "rdb_last_bgsave_status")

    def save(self):
        self.begin_save()
        self.end_save()

    def rewrite(self):
        self.begin("bgrewriteaof")
        self.end("bgrewriteaof", "aof_rewrite_in_progress", "aof_last_bgrewrite_status")

    def log_text(self):
        with open(self.log, encoding="utf-8", errors="replace") as f:
            return f.read()[-4000:]

    def shutdown(self):
        self.cli("shutdown", "nosave")
        self.test.assertEqual(self.proc.finish(120), 0, self.log_text())


class Connection:
    """A connection that takes many commands at once; their replies come in the same order."""

    def __init__(self, server):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(slower(120))
        self.socket.connect(server.socket)
        self.file = self.socket.makefile("rb", 1 << 16)

    def send(self, commands):
        parts = []
        for command in commands:
            parts.append(b"*%d\r\n" % len(command))
            for word in command:
                parts.append(b"$%d\r\n%b\r\n" % (len(word), word))
        self.socket.sendall(b"".join(parts))

    def reply(self):
        """int, bytes, or None for nil. What Redis calls an error is one."""
        line = self.file.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b":":
            return int(rest)
        if kind == b"+":
            return rest
        if kind == b"$":
            length = int(rest)
            return None if length < 0 else self.file.read(length + 2)[:-2]
        raise AssertionError(f"redis said {line!r}")

    def close(self):
        self.file.close()
        self.socket.close()
