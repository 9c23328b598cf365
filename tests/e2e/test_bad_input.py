"""Bad usage, missing things and unusual surroundings: a clear line and the right exit status."""

import os
import shutil
import signal
import subprocess

from lib import harness
from lib.ctest import ctest
from lib.harness import E2E, Daemon, Place, descriptor_count, slower

NOBODY = 65534


@ctest("e2e_usage", "e2e quick", load="light")
class Usage(E2E):
    def assert_bad_usage(self, named, *arguments):
        result = self.cli(*arguments)
        self.assertEqual(result.returncode, 2, f"{arguments}: {result.stderr}")
        self.assertIn(named, result.stderr)

    def test_cli(self):
        self.assert_bad_usage("--wrong", "stats", "--wrong")
        self.assert_bad_usage("nonsense", "nonsense")
        self.assert_bad_usage("pool.nothing", "get", "pool.nothing")
        self.assert_bad_usage("pool.nothing", "set", "pool.nothing", "1")
        self.assert_bad_usage("12Q", "run", "--resident-max", "12Q", "--", "/bin/true")
        self.assert_bad_usage("many", "reclaim", "--all", "--bytes", "many")
        self.assert_bad_usage("fast", "set", "fault.spin_us", "fast")
        self.assert_bad_usage("lots", "limit", "--client", "1", "lots")
        self.assertEqual(self.cli("reclaim").returncode, 2)
        self.assertEqual(self.cli("run").returncode, 2)
        self.assertEqual(self.cli().returncode, 2)
        self.assertEqual(self.cli("--help").returncode, 0)
        self.assertIn(".", self.cli_ok("version"))
        self.finish_daemon()

    def test_get_and_set(self):
        self.assertEqual(self.cli_ok("get", "evict.quarantine_s").split()[-1], "0")
        self.cli_ok("set", "evict.quarantine_s", "7")
        self.assertEqual(self.cli_ok("get", "evict.quarantine_s").split()[-1], "7")
        everything = self.cli_ok("get")
        for key in ("pool.limit", "pool.codec", "fault.threads", "evict.quarantine_s", "log.level"):
            self.assertIn(key, everything)
        self.cli_ok("set", "pool.codec", "lz4")
        self.assertIn("lz4", self.cli_ok("get", "pool.codec"))
        self.finish_daemon()


@ctest("e2e_daemon", "e2e e2e_san quick", load="light")
class Daemons(E2E):
    START_DAEMON = False

    def run_daemon(self, *arguments, wrap=(), seconds=20):
        return subprocess.run([*wrap, Place.binary("foldswapd"), *arguments], capture_output=True,
                              text=True,
                              timeout=slower(seconds), check=False, env=harness.clean_environment())

    def assert_refuses(self, named, code, *arguments, **more):
        result = self.run_daemon(*arguments, **more)
        said = result.stderr + result.stdout
        self.assertEqual(result.returncode, code, said)
        self.assertIn(named, said)
        return said

    def test_bad_options(self):
        run = os.path.join(self.tmp, "run")
        self.assert_refuses("--wrong", 2, "--wrong")
        self.assert_refuses("pool.nothing", 2, "--runtime-dir", run, "--set", "pool.nothing=1")
        self.assert_refuses("fault.threads", 2, "--runtime-dir", run, "--set", "fault.threads=many")
        config = os.path.join(self.tmp, "bad.toml")
        with open(config, "w", encoding="ascii") as f:
            f.write("[pool]\nlimit = '1G'\n\n[evict]\nsurprise = 3\n")
        said = self.assert_refuses("surprise", 1, "--runtime-dir", run, "--config", config)
        self.assertIn("bad.toml:5", said)
        self.assert_refuses("missing.toml", 1, "--runtime-dir", run, "--config",
                            "/nonexistent/missing.toml")

    def test_second_daemon(self):
        self.daemon = self.start_daemon()
        said = self.assert_refuses(self.daemon.dir, 1, "--runtime-dir", self.daemon.dir)
        self.assertGreater(len(said.strip()), 20)
        client = self.client([Place.program("holder"), "--mb=8"])
        client.expect("ready")
        self.assertGreater(self.reclaim(client.pid), 1500)
        client.ask("verify")
        client.finish()
        self.finish_daemon()

    def test_starts_again_after_kill(self):
        """Sockets left behind by a killed daemon are no second daemon."""
        self.daemon = self.start_daemon()
        self.daemon.kill()
        self.daemons.clear()
        self.daemon = self.start_daemon()
        self.assertEqual(self.clients(), [])
        self.finish_daemon()

    def test_no_daemon(self):
        self.daemon = type("Nowhere", (), {"dir": os.path.join(self.tmp, "nobody-here")})
        open_run = self.client(["/bin/echo", "ran"], options=())
        self.assertEqual(open_run.finish(), 0)
        self.assertEqual(open_run.output, b"ran\n")
        self.assertLessEqual(open_run.stderr().count(b"\n"), 2)
        self.assertIn(b"nobody-here", open_run.stderr())
        quiet = harness.clean_environment()
        quiet["FOLDSWAP_QUIET"] = "1"
        silent = self.client(["/bin/echo", "ran"], options=(), env=quiet)
        self.assertEqual(silent.finish(), 0)
        self.assertEqual(silent.stderr(), b"")
        required = self.client(["/bin/echo", "ran"])
        self.assertEqual(required.finish(), 125)
        self.assertEqual(required.output, b"")
        for command in (["stats"], ["clients", "--json"], ["reclaim", "--all"], ["drain"]):
            result = self.cli(*command)
            self.assertEqual(result.returncode, 1, command)
            self.assertIn("nobody-here", result.stderr)

    def test_library_by_hand(self):
        environment = harness.clean_environment()
        environment.update(LD_PRELOAD=Place.library(),
                           FOLDSWAP_RUNTIME_DIR=os.path.join(self.tmp, "nobody-here"))
        proc = self.run_plain(["/bin/echo", "ran"], env=environment)
        self.assertEqual((proc.code, proc.output), (0, b"ran\n"))
        self.assertEqual(proc.stderr(), b"")  # a daemon may come yet
        required = self.run_plain(["/bin/echo", "ran"],
                                  env={**environment, "FOLDSWAP_REQUIRE": "1"})
        self.assertEqual((required.code, required.stderr().count(b"\n")), (125, 1))
        self.daemon = self.start_daemon()
        environment.update(FOLDSWAP_RUNTIME_DIR=self.daemon.dir, FOLDSWAP_NAME="by-hand",
                           FOLDSWAP_RESIDENT_MAX="16M")
        proc = self.plain([Place.program("holder"), "--mb=32"], env=environment)
        proc.expect("ready")
        row = self.await_state(proc.pid, "active")
        self.assertEqual((row["name"], row["resident_max_bytes"]), ("by-hand", 16 << 20))
        proc.ask("verify")
        self.assertEqual(proc.finish(), 0)
        self.finish_daemon()

    def test_require(self):
        self.daemon = self.start_daemon()
        static = Place.program("static")
        refused = self.client([static])
        self.assertEqual(refused.finish(), 125)
        self.assertIn(b"static", refused.stderr())
        self.assertEqual(self.run_client([static], options=()).output, b"static program ran\n")
        setuid = os.path.join(self.tmp, "setuid")
        shutil.copy("/bin/true", setuid)
        os.chmod(setuid, 0o4755)
        refused = self.client([setuid])
        self.assertEqual(refused.finish(), 125)
        self.assertIn(b"setuid", refused.stderr())
        self.finish_daemon()

    def test_no_userfaultfd_device(self):
        """A mount namespace whose /dev/userfaultfd is absent: one line that says so, exit 1."""
        script = ("mount -t tmpfs none /dev && mknod /dev/null c 1 3 && "
                  'mknod /dev/urandom c 1 9 && exec "$0" "$@"')
        said = self.assert_refuses("/dev/userfaultfd", 1, "--runtime-dir",
                                   os.path.join(self.tmp, "run"),
                                   wrap=("unshare", "--mount", "/bin/sh", "-c", script))
        self.assertEqual(len(said.strip().splitlines()), 1, said)

    @ctest(labels="e2e")  # a sanitizer's run-time wants more privileges than this daemon has
    def test_unprivileged_daemon(self):
        """The daemon as an ordinary user with CAP_SYS_PTRACE alone and a device node that it may
        open."""
        node = os.path.join(self.tmp, "uffd")
        status = os.stat("/dev/userfaultfd")
        os.mknod(node, 0o666 | 0o020000, status.st_rdev)
        os.chmod(node, 0o666)
        run = os.path.join(self.tmp, "run")
        os.makedirs(run)
        os.chown(run, NOBODY, NOBODY)
        user = f"--reuid={NOBODY} --regid={NOBODY} --clear-groups"
        script = (f"mount --bind {node} /dev/userfaultfd && exec setpriv {user} "
                  "--inh-caps=-all,+sys_ptrace --ambient-caps=+sys_ptrace "
                  '--bounding-set=-all,+sys_ptrace "$0" "$@"')
        self.daemon = Daemon(run, self.SETTINGS,
                             wrap=("unshare", "--mount", "/bin/sh", "-c", script))
        self.daemons.append(self.daemon)
        self.daemon.wait_ready()
        with open(f"/proc/{self.daemon.pid}/status", encoding="ascii") as f:
            self.assertIn(f"Uid:\t{NOBODY}", f.read())
        client = self.plain(["setpriv", *user.split(),
                             *self.client_command([Place.program("fork_tree"), "--mb=16",
                                                   "--wait=1"],
                                                  options=("--require",))])
        client.expect("populated")
        self.assertGreater(self.reclaim(client.pid), 3000)
        client.finish()
        self.assertEqual(client.code, 0, client.stderr())
        self.assert_worked(self.finish_daemon())

    def test_keeper_stops(self):
        """With a keeper SIGTERM to the keeper, the process we started, gives everything back and
        ends both."""
        self.daemon = self.start_daemon(self.SETTINGS, keeper=True)
        inner = self.stats()["daemon"]["pid"]
        self.assertNotEqual(inner, self.daemon.pid)
        client = self.client([Place.program("holder"), "--mb=32"])
        client.expect("ready")
        self.assertGreater(self.reclaim(client.pid), 7000)
        self.daemon.stop()
        self.assertFalse(os.path.exists(f"/proc/{inner}"))
        client.ask("verify")
        self.assertEqual(client.finish(), 0)
        self.daemons.clear()


@ctest("e2e_clients", "e2e e2e_san")
class ManyAtOnce(E2E):
    def test_start_and_end(self):
        """Clients that come and go, many at once, some killed: nothing of them remains."""
        before = descriptor_count(self.daemon.pid)
        for n in range(6):
            clients = [self.client([Place.program("holder"), "--mb=4"]) for _ in range(12)]
            for client in clients:
                client.expect("ready", 120)
            self.cli("reclaim", "--all")
            for k, client in enumerate(clients):
                if k % 3 == n % 3:
                    os.kill(client.pid, signal.SIGKILL)
                    self.assertEqual(client.wait(), -9)
                else:
                    client.ask("verify")
                    self.assertEqual(client.finish(), 0)
        self.check_nothing_left()
        harness.wait_until("descriptors to be closed",
                           lambda: descriptor_count(self.daemon.pid) <= before)
        self.finish_daemon()


if __name__ == "__main__":
    harness.main()
