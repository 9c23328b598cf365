"""A real systemd as process 1 of its own namespaces (process ids, mounts, control groups, host name),
with its own /run, /tmp, /dev, /etc and /usr/local, into which foldswap is installed with cmake
--install. No unit of this machine is seen in there, and nothing in there changes anything outside."""

import fcntl
import json
import os
import shutil
import signal
import subprocess

from lib import cgroups
from lib.harness import Place, Proc, clean_environment, die_with_parent, wait_until

SYSTEMD = "/lib/systemd/systemd"
PROGRAMS = "/usr/local/libexec/foldswap-tests"
UNSHARE = ("unshare", "--pid", "--fork", "--mount", "--cgroup", "--uts", "--ipc")

# $1: what becomes /usr/local; $2: /mnt; $3: the configuration of foldswapd. Kernel settings are for
# looking at only: systemd would raise limits of the whole machine.
SETUP = r"""
set -e
mount --make-rprivate /
mount -t proc proc /proc
mount --bind /proc/sys /proc/sys
mount -o remount,ro,bind /proc/sys
mount --bind "$1" /usr/local
mount --bind "$2" /mnt
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /tmp
mkdir -p /run/upper /run/work /run/systemd/system
mount -t overlay -o lowerdir=/etc,upperdir=/run/upper,workdir=/run/work overlay /etc
echo 0123456789abcdef0123456789abcdef > /etc/machine-id
umount -R /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
mkdir /run/dev
mount -t tmpfs -o mode=755 tmpfs /run/dev
for node in null zero full random urandom tty userfaultfd; do
  touch /run/dev/$node
  mount --bind /dev/$node /run/dev/$node
done
touch /run/dev/console
mount --move /run/dev /dev
for target in e2e sysinit basic shutdown multi-user; do
  printf '[Unit]\nDefaultDependencies=no\n' > /run/systemd/system/$target.target
done
mkdir -p /etc/foldswap
printf '%s' "$3" > /etc/foldswap/foldswap.toml
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin container=lxc \
  SYSTEMD_UNIT_PATH=/run/systemd/system:/usr/local/lib/systemd/system \
  "$0" --system --unit=e2e.target --log-target=null --show-status=0
"""


def why_not():
    """What this machine lacks for it; None: nothing."""
    if os.geteuid() != 0:
        return "systemd in a namespace needs root"
    if not os.path.exists(SYSTEMD):
        return f"there is no {SYSTEMD}"
    if not shutil.which("nsenter") or not shutil.which("unshare"):
        return "there is no unshare or no nsenter"
    if cgroups.unified() is None:
        return "no version 2 control groups are mounted"
    with open("/proc/filesystems", encoding="ascii") as f:
        if "\toverlay\n" not in f.read():
            return "this kernel has no overlay file system"
    allowed = subprocess.run([*UNSHARE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"],
                             capture_output=True, text=True, check=False)
    return f"no namespaces: {allowed.stderr.strip()}" if allowed.returncode != 0 else None


class Tree(cgroups.Group):
    """With what systemd makes below it."""

    def remove(self):
        wait_until("the control groups to be empty", self.empty)
        for path, _, _ in os.walk(self.path, topdown=False):
            os.rmdir(path)

    def empty(self):
        return "populated 0" in self.read("cgroup.events")


class Machine:
    def __init__(self, test, programs, disk, config):
        self.test = test
        self.prefix = os.path.join(test.tmp, "prefix")
        # Installing writes into the build directory, and two tests may begin at once.
        with open(os.path.join(Place.build, "systemd", "install.lock"), "w", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            subprocess.run(["cmake", "--install", Place.build, "--prefix", "/usr/local"], check=True,
                           stdout=subprocess.DEVNULL,
                           env={**os.environ, "DESTDIR": os.path.join(test.tmp, "staged")})
        os.rename(os.path.join(test.tmp, "staged", "usr", "local"), self.prefix)
        os.makedirs(self.prefix + PROGRAMS.removeprefix("/usr/local"))
        for name in programs:
            shutil.copy(Place.program(name), self.prefix + PROGRAMS.removeprefix("/usr/local"))
        tree = Tree(test, cgroups.unified())
        self.popen = subprocess.Popen(
            cgroups.run_inside(tree, [*UNSHARE, "--kill-child", "/bin/sh", "-c", SETUP, SYSTEMD,
                                      self.prefix, disk, config]),
            stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=die_with_parent)
        test.addCleanup(self.end)
        self.pid = wait_until("systemd", self.first_process)
        wait_until("systemd to be ready",
                   lambda: self.systemctl("is-active", "e2e.target").returncode == 0, 60)

    def first_process(self):
        if self.popen.poll() is not None:
            raise AssertionError(f"no namespace: {self.popen.stderr.read().decode()}")
        with open(f"/proc/{self.popen.pid}/task/{self.popen.pid}/children", encoding="ascii") as f:
            children = f.read().split()
        if not children or os.readlink(f"/proc/{children[0]}/exe") != os.path.realpath(SYSTEMD):
            return None
        return int(children[0])

    def end(self):
        """Of all that runs in there, with its first process."""
        if self.popen.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
        self.popen.wait()
        self.popen.stderr.close()

    def path(self, inside):
        return f"/proc/{self.pid}/root{inside}"

    def read(self, inside):
        with open(self.path(inside), encoding="utf-8", errors="replace") as f:
            return f.read()

    def write(self, inside, text):
        os.makedirs(os.path.dirname(self.path(inside)), exist_ok=True)
        with open(self.path(inside), "w", encoding="utf-8") as f:
            f.write(text)

    def enter(self, command):
        return ["nsenter", "-t", str(self.pid), "-p", "-m", "--", *command]

    def run(self, *command, seconds=240):
        return subprocess.run(self.enter(command), capture_output=True, text=True, timeout=seconds,
                              check=False, env=clean_environment())

    def ok(self, *command, seconds=240):
        result = self.run(*command, seconds=seconds)
        self.test.assertEqual(result.returncode, 0, f"{command}: {result.stderr}{result.stdout}")
        return result.stdout.strip()

    def systemctl(self, *arguments, seconds=240):
        return self.run("systemctl", "--no-pager", *arguments, seconds=seconds)

    def show(self, unit, name):
        return self.ok("systemctl", "show", "-P", name, unit)

    def start(self, *command):
        """A program with pipes, in there."""
        proc = Proc(self.enter(command))
        self.test.procs.append(proc)
        return proc

    def foldswap(self, *arguments):
        return self.ok("/usr/local/bin/foldswap", *arguments)

    def stats(self):
        return json.loads(self.foldswap("stats", "--json"))

    def row(self, name):
        rows = [c for c in self.stats()["clients"] if c["name"] == name]
        self.test.assertEqual(len(rows), 1, f"rows of {name}")
        return rows[0]

    def kill(self, pid, name="KILL"):
        """By its number in there."""
        self.ok("/bin/kill", f"-{name}", str(pid))
