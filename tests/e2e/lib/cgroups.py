"""Control groups for tests: a freezer and a CPU quota, in version 1 or 2, whichever this machine
has mounted. A group is made for one test and removed with it, after everything the test started has
been ended."""

import os
import subprocess

from lib.harness import wait_until


def mounts():
    """(path, type, options) of every control group file system."""
    found = []
    with open("/proc/mounts", encoding="utf-8", errors="replace") as f:
        for line in f:
            _, path, kind, options = line.split()[:4]
            if kind in ("cgroup", "cgroup2"):
                found.append((path, kind, options.split(",")))
    return found


def controller_v1(name):
    return next((path for path, kind, options in mounts() if kind == "cgroup" and name in options),
                None)


def unified():
    return next((path for path, kind, _ in mounts() if kind == "cgroup2"), None)


class Group:
    """One group below `parent`, which must be a mounted control group file system."""

    def __init__(self, test, parent):
        self.test = test
        self.path = os.path.join(parent, f"foldswap-e2e-{os.getpid()}")
        try:
            os.mkdir(self.path)
        except OSError as error:
            test.skipTest(f"no control group can be made: {error}")
        test.addCleanup(self.remove)

    def write(self, name, value):
        with open(os.path.join(self.path, name), "w", encoding="ascii") as f:
            f.write(str(value))

    def read(self, name):
        with open(os.path.join(self.path, name), encoding="ascii") as f:
            return f.read()

    def has(self, name):
        return os.path.exists(os.path.join(self.path, name))

    def add(self, pid):
        self.write("cgroup.procs", pid)

    def release(self):
        """What keeps members from ending goes first."""

    def remove(self):
        self.release()
        for proc in self.test.procs:
            proc.kill()
        wait_until("the control group to be empty", lambda: not self.read("cgroup.procs"))
        os.rmdir(self.path)


class Freezer(Group):
    def __init__(self, test):
        super().__init__(test, controller_v1("freezer") or unified() or self.mount(test))
        self.old = self.has("freezer.state")
        if not self.old and not self.has("cgroup.freeze"):
            test.skipTest("this kernel's control groups have no freezer")

    @staticmethod
    def mount(test):
        """Nobody has mounted any: version 2, for as long as the test runs."""
        path = os.path.join(test.tmp, "cgroup")
        os.makedirs(path, exist_ok=True)
        result = subprocess.run(["mount", "-t", "cgroup2", "none", path], capture_output=True,
                                text=True, check=False)
        if result.returncode != 0:
            test.skipTest(f"no control groups, and none can be mounted: {result.stderr.strip()}")
        test.addCleanup(subprocess.run, ["umount", path], check=False)
        return path

    def is_frozen(self):
        if self.old:
            return self.read("freezer.state").strip() == "FROZEN"
        return "frozen 1" in self.read("cgroup.events")

    def freeze(self):
        self.write(*(("freezer.state", "FROZEN") if self.old else ("cgroup.freeze", 1)))
        wait_until("the group to be frozen", self.is_frozen, 20)

    def thaw(self):
        self.write(*(("freezer.state", "THAWED") if self.old else ("cgroup.freeze", 0)))

    release = thaw


class CpuQuota(Group):
    """`percent` of one CPU, in periods of 100 ms."""

    def __init__(self, test, percent):
        parent = controller_v1("cpu")
        if parent is None:
            parent = unified()
            enabled = ""
            if parent is not None:
                with open(os.path.join(parent, "cgroup.subtree_control"), encoding="ascii") as f:
                    enabled = f.read()
            if "cpu" not in enabled.split():
                test.skipTest("no control group file system with the cpu controller")
        super().__init__(test, parent)
        self.percent = percent
        if not self.has("cpu.cfs_quota_us") and not self.has("cpu.max"):
            test.skipTest("the cpu controller has no quotas on this kernel")
        self.limit(percent)

    def limit(self, percent):
        if self.has("cpu.max"):
            self.write("cpu.max", f"{percent * 1000} 100000")
            return
        self.write("cpu.cfs_period_us", 100000)
        self.write("cpu.cfs_quota_us", percent * 1000)

    def throttled(self):
        """How many periods ended with the group wanting more."""
        for line in self.read("cpu.stat").splitlines():
            if line.startswith("nr_throttled "):
                return int(line.split()[1])
        return 0

    def release(self):
        if self.has("cpu.max"):
            self.write("cpu.max", "max 100000")
        else:
            self.write("cpu.cfs_quota_us", -1)


def run_inside(group, command):
    """`command`, from its first instruction in the group."""
    return ["/bin/sh", "-c", f'echo $$ > {group.path}/cgroup.procs && exec "$0" "$@"', *command]
