#!/usr/bin/env python3
"""Reads of data that lies on a disk, over foldswap and over kernel swap: see disk.sh.

One run: the same worker (disk_worker.cc) as a client of a foldswapd of its own, and in a memory
control group with a swap file on the same disk, with and without zswap. Each may have the same
memory: foldswap what stays resident and the pool, the kernel a limit of both together. They take
turns, round by round. Then, over foldswap alone, pages change at random while live data fills a
given share of the backing file: how much is written again by cleaning.

As root: it makes a swap file and a control group, and changes zswap's settings. All of that is
undone on every way out but SIGKILL.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

PAGE = 4096
MIB = 1 << 20
ZSWAP = "/sys/module/zswap/parameters"


class Missing(Exception):
    """Why a peer cannot be had."""


def read(path):
    with open(path, encoding="ascii") as file:
        return file.read().strip()


def write(path, text):
    with open(path, "w", encoding="ascii") as file:
        file.write(str(text))


def command(*args):
    result = subprocess.run(args, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise Missing(f"{args[0]} failed: {result.stderr.strip() or result.stdout.strip()}")
    return result.stdout


def vmstat():
    with open("/proc/vmstat", encoding="ascii") as file:
        return {name: int(value) for name, value in (line.split() for line in file)}


def memory_total():
    with open("/proc/meminfo", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemTotal:"))


def own_session():
    os.setpgid(0, 0)  # an interrupt from the terminal is for us alone: we end what we started


class Worker:
    def __init__(self, stack, args):
        self.process = subprocess.Popen(args, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, preexec_fn=own_session)
        stack.callback(self.end)
        if self.answer().get("what") != "ready":
            raise Missing("the worker did not start")

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker ended with status {self.process.wait()}")
        return json.loads(line)

    def ask(self, *words):
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def end(self):
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()


class Foldswap:
    name = "foldswap"

    def __init__(self, stack, options, directory):
        self.cli = os.path.join(options.build, "bin/foldswap")
        self.runtime = os.path.join(directory, "run")
        os.mkdir(self.runtime)
        sets = {"writeback.dir": directory, "pool.limit": options.pool * MIB,
                "writeback.max": 4 * options.mib * MIB, "writeback.free_min": 0,
                "policy.psi": 0, "policy.mem_available_low": 0, "log.level": "error"}
        sets.update(word.split("=", 1) for word in options.set)
        args = [os.path.join(options.build, "bin/foldswapd"), "--runtime-dir", self.runtime]
        for key, value in sets.items():
            args += ["--set", f"{key}={value}"]
        self.daemon = subprocess.Popen(args, preexec_fn=own_session)
        stack.callback(self.end_daemon)
        self.wait_for_daemon()
        self.worker = Worker(stack, [self.cli, "--runtime-dir", self.runtime, "run",
                                     "--resident-max", str(options.resident * MIB), "--name",
                                     "disk", "--require", "--", options.worker,
                                     str(options.mib)])

    def wait_for_daemon(self):
        for _ in range(500):
            if os.path.exists(os.path.join(self.runtime, "client.sock")):
                return
            if self.daemon.poll() is not None:
                break
            time.sleep(0.02)
        raise Missing("foldswapd did not start")

    def end_daemon(self):
        self.daemon.terminate()
        try:
            self.daemon.wait(20)
        except subprocess.TimeoutExpired:
            self.daemon.kill()
            self.daemon.wait()

    def call(self, *args):
        return command(self.cli, "--runtime-dir", self.runtime, *args)

    def stats(self):
        return json.loads(self.call("stats", "--json"))

    def settle(self, every=0.1):
        """Until nothing is written any more."""
        last, still = -1, 0
        for _ in range(300):
            stats = self.stats()
            now = stats["writeback"]["written_bytes"] + stats["evict"]["pages"]
            still = still + 1 if now == last else 0
            last = now
            if still == 3:
                return stats
            time.sleep(every)
        return self.stats()

    def cpu_seconds(self):
        """Of the daemon, by thread."""
        seconds = {}
        base = f"/proc/{self.daemon.pid}/task"
        for task in os.listdir(base):
            with contextlib.suppress(OSError):
                text = read(f"{base}/{task}/stat")
                thread = text[text.index("(") + 1:text.rindex(")")]
                fields = text[text.rindex(")") + 2:].split()
                ticks = int(fields[11]) + int(fields[12])
                seconds[thread] = seconds.get(thread, 0) + ticks / os.sysconf("SC_CLK_TCK")
        return seconds

    def phase(self, *words):
        before, cpu = self.settle(), self.cpu_seconds()
        result = self.worker.ask(*words)
        busy, after = self.cpu_seconds(), self.stats()
        result["cpu_s"] = {thread: round(busy[thread] - cpu.get(thread, 0), 2) for thread in busy}
        result.update(self.difference(before, after))
        return result

    @staticmethod
    def difference(before, after):
        def of(part, key):
            return after[part][key] - before[part][key]
        faults = {kind: of("faults", kind) for kind in
                  ("total", "disk", "pool", "rescued", "zero", "same_filled", "readahead_pages")}
        return {"faults": faults, "evicted_pages": of("evict", "pages"),
                "written_bytes": of("writeback", "written_bytes"),
                "cleaned_bytes": of("writeback", "cleaned_bytes"),
                "read_bytes": of("writeback", "read_bytes")}


class Group:
    """A memory control group with a limit, version 1 or 2, whichever has the controller."""

    def __init__(self, stack, name):
        parent, self.v2 = self.find(stack)
        self.path = os.path.join(parent, name)
        try:
            os.mkdir(self.path)
        except OSError as error:
            raise Missing(f"no control group can be made: {error}") from None
        stack.callback(self.remove)

    @staticmethod
    def find(stack):
        with open("/proc/mounts", encoding="utf-8", errors="replace") as file:
            mounts = [line.split()[:4] for line in file]
        for _, path, kind, options in mounts:
            if kind == "cgroup" and "memory" in options.split(","):
                return path, False
        for _, path, kind, _ in mounts:
            if kind != "cgroup2" or "memory" not in read(path + "/cgroup.controllers").split():
                continue
            if "memory" not in read(path + "/cgroup.subtree_control").split():
                try:
                    write(path + "/cgroup.subtree_control", "+memory")
                except OSError as error:
                    raise Missing(f"the memory controller cannot be had: {error}") from None
                stack.callback(write, path + "/cgroup.subtree_control", "-memory")
            return path, True
        path = tempfile.mkdtemp(prefix="foldswap-cgroup-")
        stack.callback(os.rmdir, path)
        command("mount", "-t", "cgroup", "-o", "memory", "none", path)
        stack.callback(subprocess.run, ["umount", path], check=False)
        return path, False

    def limit(self, total, zswap):
        """`zswap`: of it for zswap's pool. Version 1 does not count that, version 2 does."""
        if not self.v2:
            write(self.path + "/memory.limit_in_bytes", total - zswap)
            return
        if os.path.exists(self.path + "/memory.zswap.max"):
            write(self.path + "/memory.zswap.max", zswap)
        write(self.path + "/memory.max", total)

    def remove(self):
        for _ in range(100):  # what was in it may take a moment to be gone
            try:
                os.rmdir(self.path)
                return
            except OSError:
                time.sleep(0.05)
        print(f"disk.sh: {self.path} cannot be removed", file=sys.stderr)


class SwapFile:
    """On, with a priority above any other, until the end of the stack."""

    def __init__(self, stack, path, size):
        self.path = path
        with open(path, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            stack.callback(os.unlink, path)
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                raise Missing(f"no room for a swap file: {error}") from None
        for tool in ("mkswap", "swapon", "swapoff"):
            if shutil.which(tool) is None:
                raise Missing(f"there is no {tool}")
        command("mkswap", path)
        stack.callback(self.off)  # before it is on: an interrupt may come in between
        command("swapon", "--priority", "32767", path)

    def off(self):
        with open("/proc/swaps", encoding="utf-8", errors="replace") as file:
            on = any(line.split()[0] == os.path.realpath(self.path) for line in file)
        if on and subprocess.run(["swapoff", self.path], check=False).returncode != 0:
            print(f"disk.sh: swapoff {self.path} failed", file=sys.stderr)


class Zswap:
    """Its settings, which are put back at the end of the stack."""

    def __init__(self, stack):
        if not os.path.isdir(ZSWAP):
            raise Missing("this kernel has no zswap")
        self.old = {name: read(f"{ZSWAP}/{name}") for name in
                    ("enabled", "max_pool_percent", "shrinker_enabled")
                    if os.path.exists(f"{ZSWAP}/{name}")}
        stack.callback(self.restore)
        self.compressor = read(ZSWAP + "/compressor")

    def turn(self, on, percent=1):
        write(ZSWAP + "/max_pool_percent", percent if on else self.old["max_pool_percent"])
        write(ZSWAP + "/enabled", "Y" if on else "N")

    def restore(self):
        for name, value in self.old.items():
            write(f"{ZSWAP}/{name}", value)


class KernelSwap:
    """With zswap: `percent` of the machine's memory for its pool, else 0."""

    def __init__(self, stack, options, zswap, percent):
        self.name = f"zswap ({zswap.compressor}) + swap" if percent else "kernel swap"
        self.zswap, self.percent = zswap, percent
        group = Group(stack, f"foldswap-disk-{os.getpid()}-{percent}")
        total = (options.resident + options.pool) * MIB
        if percent and group.v2:
            group.limit(total, options.pool * MIB)
        else:
            group.limit(total, memory_total() * percent // 100)
        self.enter()
        inside = f'echo $$ > {group.path}/cgroup.procs && exec "$0" "$@"'
        self.worker = Worker(stack, ["/bin/sh", "-c", inside, options.worker, str(options.mib)])

    def enter(self):
        if self.zswap is not None:
            self.zswap.turn(self.percent != 0, self.percent)

    def phase(self, *words):
        self.enter()
        before = vmstat()
        result = self.worker.ask(*words)
        after = vmstat()
        for name in ("pswpin", "pswpout", "zswpin", "zswpout", "zswpwb"):
            result[name] = after.get(name, 0) - before.get(name, 0)
        return result


def zswap_percent(options, group_v2):
    """The share of memory for zswap's pool that makes it as large as foldswap's."""
    if group_v2:
        return 100, None  # the group's own memory.zswap.max is the limit
    one = memory_total() / 100
    percent = int(options.pool * MIB / one)
    if percent == 0:
        return 0, (f"its pool is at least 1 % of the machine's memory, {one / MIB:.0f} MiB, and the "
                   f"group's version has no limit of its own: more than foldswap's pool of "
                   f"{options.pool} MiB (--pool {one / MIB + 1:.0f} and --mib to fit compares it)")
    return percent, None


def kernel_peers(stack, options, directory, notes):
    peers = []
    try:
        SwapFile(stack, os.path.join(directory, "swap"), 4 * options.mib * MIB)
        zswap = None
        try:
            zswap = Zswap(stack)
        except Missing as error:
            notes.append(f"no zswap: {error}")
        peers.append(KernelSwap(stack, options, zswap, 0))
        if zswap is not None:
            v2 = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
            percent, why = zswap_percent(options, v2)
            if why:
                notes.append(f"no line for zswap: {why}")
            else:
                peers.append(KernelSwap(stack, options, zswap, percent))
    except (Missing, OSError) as error:
        notes.append(f"no kernel swap: {error}")
    return peers


def reads(homes, options, results):
    for number in range(options.rounds):
        for what in (["random", options.touches, number + 1], ["sweep"]):
            for home in homes:
                result = home.phase(*what)
                results[home.name][what[0]].append(result)
                print(f"  round {number + 1} {home.name}: {result['what']} mean "
                      f"{result['mean_us']:.1f} us, p50 {result['p50_us']:.1f}, p99 "
                      f"{result['p99_us']:.0f}, p99.9 {result['p999_us']:.0f}", file=sys.stderr)
    for home in homes:
        results[home.name]["check"] = home.phase("check")


def first_writes(foldswap, fill, options):
    """After the first fill: what of it went to disk was written once."""
    stats = foldswap.settle()
    part, pool = stats["writeback"], stats["pool"]
    if part["pages"] == 0:
        raise RuntimeError("nothing is on disk: --mib is too small for --resident and --pool")
    compressed = part["compressed_bytes"]
    fill["written_bytes"] = part["written_bytes"]
    fill["evicted_pages"] = stats["evict"]["pages"]
    return {"disk_pages": part["pages"],
            "pool_pages": pool["stored_pages"] - part["pages"]
            if pool["stored_pages"] >= part["pages"] else pool["stored_pages"],
            "pages": options.mib * MIB // PAGE,
            "codec_ratio": part["pages"] * PAGE / compressed,
            "written_per_disk_byte": part["written_bytes"] / (part["pages"] * PAGE),
            "written_per_evicted_byte": part["written_bytes"] / (stats["evict"]["pages"] * PAGE)}


def churn(foldswap, order, options):
    """Pages change while live data fills options.fill of the file; `order`: of the changes.

    How much is live depends on what stays in memory, and swings with the pool's level: so the
    pool is small, and the file's maximum follows the mean over a time, until the mean of a time agrees
    with it. It falls in steps: data that finds no room at once would stay in memory, and not be live
    on disk.
    """
    limit = 4 * options.mib * MIB
    foldswap.call("set", "writeback.max", str(limit))
    foldswap.call("set", "pool.limit", str(options.mib * MIB // 32))
    changing(foldswap, order, 0.5, options)
    limit = 2 * foldswap.stats()["writeback"]["file_bytes"]
    for _ in range(16):
        live = statistics.fmean(changing(foldswap, order, 0.25, options)[0])
        if abs(live / limit - options.fill) < 0.015:
            break
        limit = int(max(16 * MIB, live / options.fill, 0.75 * limit))
        foldswap.call("set", "writeback.max", str(limit))
    before = foldswap.stats()
    live, seconds, rewritten = changing(foldswap, order, options.churn, options)
    after = foldswap.stats()
    result = Foldswap.difference(before, after)
    result.update({"order": order, "writeback_max": limit, "seconds": seconds,
                   "rewritten_pages": rewritten, "fill_mean": statistics.fmean(live) / limit,
                   "fill_min": min(live) / limit, "fill_max": max(live) / limit,
                   "file_bytes": after["writeback"]["file_bytes"],
                   "trouble": after["writeback"]["trouble"]})
    fresh = result["written_bytes"] - result["cleaned_bytes"]
    result["amplification"] = result["written_bytes"] / fresh if fresh > 0 else None
    print(f"  {order}: {result['written_bytes'] / MIB:.0f} MiB written, "
          f"{result['cleaned_bytes'] / MIB:.0f} of that by cleaning; live data "
          f"{100 * result['fill_mean']:.0f} % of {limit / MIB:.0f} MiB", file=sys.stderr)
    foldswap.worker.ask("check")
    return result


def changing(foldswap, order, rounds, options):
    """So many rounds of changes, which the daemon may always catch up with: live bytes on disk
    at 16 moments of each, seconds of changes, pages."""
    step = options.mib * MIB // PAGE // 16
    live, seconds = [], 0.0
    for _ in range(int(16 * rounds)):
        seconds += foldswap.worker.ask("churn", step, order)["seconds"]
        live.append(foldswap.settle(0.05)["writeback"]["live_bytes"])
    return live, seconds, step * len(live)


def median(results, what, key):
    return statistics.median(result[key] for result in results[what])


def spread(results, what, key):
    values = [result[key] for result in results[what]]
    return f"{min(values):.4g}..{max(values):.4g}"


def row(name, ours, theirs, ratio, goal, passed):
    mark = "" if passed is None else "met" if passed else "MISSED"
    print(f"{name:<38} {ours:>12} {theirs:>12} {ratio:>8} {goal:>8} {mark}")


def compare(results, ours, theirs):
    """Rows for one peer; the ratios are speeds: above 1 foldswap is faster."""
    mine, other = results[ours], results[theirs]
    print(f"\n{'':<38} {'foldswap':>12} {theirs[:12]:>12} {'speed':>8} {'goal':>8}")
    for what, goal in (("sweep", 4.0), ("random", 1.0)):
        title = "sequential" if what == "sweep" else "random"
        for key in ("mean_us", "p50_us", "p99_us"):
            a, b = median(mine, what, key), median(other, what, key)
            wanted = goal if key == "mean_us" else None
            row(f"{title}, {key[:-3]}, us per access", f"{a:.2f}", f"{b:.2f}",
                f"{b / a:.2f}" if a else "-", f">= {wanted:.0f}" if wanted else "-",
                None if wanted is None else b / a >= wanted)
        print(f"    means by round: {spread(mine, what, 'mean_us')} and "
              f"{spread(other, what, 'mean_us')} us")


def shares(results, name):
    for what in ("random", "sweep"):
        faults = [result["faults"] for result in results[name][what]]
        total = sum(part["total"] for part in faults) or 1
        disk, pool = (sum(part[kind] for part in faults) for kind in ("disk", "pool"))
        ahead = sum(part["readahead_pages"] for part in faults)
        print(f"  {what}: {total} faults, {100 * disk / total:.0f} % from disk, "
              f"{100 * pool / total:.0f} % from the pool; {ahead} pages read ahead")


def report(results, options, notes):
    print(f"data {options.mib} MiB; memory {options.resident + options.pool} MiB: foldswap "
          f"{options.resident} resident + {options.pool} pool, kernel a limit of both; "
          f"{options.rounds} rounds in turn, medians; load {os.getloadavg()[0]:.1f} at the end")
    for note in notes:
        print(note)
    names = list(results["reads"])
    for name in names[1:]:
        compare(results["reads"], names[0], name)
    if len(names) == 1:
        for what in ("sweep", "random"):
            for key in ("mean_us", "p50_us", "p99_us"):
                row(f"{what}, {key[:-3]}, us per access",
                    f"{median(results['reads'][names[0]], what, key):.2f}", "-", "-", "-", None)
    print("\nfoldswap's faults:")
    shares(results["reads"], names[0])
    for name in names[1:]:
        for what in ("random", "sweep"):
            got = results["reads"][name][what]
            print(f"  {name}, {what}: {sum(r['pswpin'] for r in got)} pages read from disk, "
                  f"{sum(r['zswpin'] for r in got)} from zswap, "
                  f"{sum(r['pswpout'] for r in got)} written, for "
                  f"{sum(r['accesses'] for r in got)} accesses")
    first = results["first"]
    print(f"\nbytes: codec ratio {first['codec_ratio']:.2f}; {first['disk_pages']} of "
          f"{first['pages']} pages on disk after the fill")
    print(f"{'':<38} {'foldswap':>12} {'kernel':>12} {'x codec':>8} {'goal':>8}")
    for title, key in (("written per byte that went to disk", "written_per_disk_byte"),
                       ("written per evicted byte", "written_per_evicted_byte")):
        share = first[key]
        times = share * first["codec_ratio"]
        row(title, f"{share:.4f}", "1.0000", f"{times:.3f}", "<= 1.1", times <= 1.1)
    if results["churn"]:
        print("\nwrites while pages change: bytes written per byte that was new on the disk, with "
              f"live data at {100 * options.fill:.0f} % of writeback.max")
    for part in results["churn"]:
        factor = part["amplification"]
        row(part["order"], "-" if factor is None else f"{factor:.2f}", "-", "-", "< 1.3",
            factor is not None and factor < 1.3)
        print(f"    {part['rewritten_pages']} pages rewritten in {part['seconds']:.1f} s; "
              f"{part['written_bytes'] / MIB:.0f} MiB written, {part['cleaned_bytes'] / MIB:.0f} "
              f"of that by cleaning, {part['read_bytes'] / MIB:.0f} read; live data "
              f"{100 * part['fill_mean']:.0f} % of {part['writeback_max'] / MIB:.0f} MiB "
              f"({100 * part['fill_min']:.0f} to {100 * part['fill_max']:.0f} %)"
              + ("" if abs(part["fill_mean"] - options.fill) <= 0.03 else
                 ": NOT the fill that was asked for")
              + (f"; {part['trouble']}" if part["trouble"] else ""))


def parse():
    parser = argparse.ArgumentParser(prog="disk.sh", description=__doc__.split("\n\n")[0])
    parser.add_argument("build", metavar="BUILD_DIR")
    parser.add_argument("--mib", type=int, default=512, help="data")
    parser.add_argument("--resident", type=int, help="MiB (default: a quarter of the data)")
    parser.add_argument("--pool", type=int, default=24, help="MiB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--touches", type=int, default=20_000, help="random reads in a round")
    parser.add_argument("--churn", type=int, default=2, help="how often all data changes; 0: no")
    parser.add_argument("--orders", default="permuted,uniform,skewed",
                        help="of the changes: permuted, uniform, skewed")
    parser.add_argument("--fill", type=float, default=0.7, help="share of the file that is live")
    parser.add_argument("--dir", help="on the disk (default: BUILD_DIR)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="another setting of foldswapd")
    parser.add_argument("--no-kernel", action="store_true", help="foldswap alone")
    parser.add_argument("--json", metavar="FILE", help="every figure")
    options = parser.parse_args()
    options.resident = options.resident or options.mib // 4
    options.dir = os.path.abspath(options.dir or options.build)
    options.worker = os.path.abspath(os.path.join(options.build, "bench/disk_worker"))
    options.build = os.path.abspath(options.build)
    for path in (options.worker, options.build + "/bin/foldswapd"):
        if not os.path.exists(path):
            sys.exit(f"disk.sh: no {path}: build foldswapd, foldswap, libfoldswap.so, disk_worker")
    return options


def main():
    options = parse()
    if os.geteuid() != 0:
        sys.exit("disk.sh: only root can make a control group and a swap file: run it as root")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda signum, frame: sys.exit(128 + signum))
    results, notes = {"reads": {}, "churn": []}, []
    with contextlib.ExitStack() as stack:
        directory = tempfile.mkdtemp(prefix="foldswap-disk-", dir=options.dir)
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        with contextlib.ExitStack() as things:
            try:
                run(things, options, directory, results, notes)
            finally:
                deaf()  # a second interrupt must not keep anything from being undone
    report(results, options, notes)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"options": vars(options), "notes": notes, **results}, file, indent=1)


def deaf():
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def run(stack, options, directory, results, notes):
    foldswap = Foldswap(stack, options, directory)
    homes = [foldswap]
    if not options.no_kernel:
        homes += kernel_peers(stack, options, directory, notes)
    for home in homes:
        results["reads"][home.name] = {"fill": home.phase("fill"), "sweep": [], "random": []}
    results["first"] = first_writes(foldswap, results["reads"][foldswap.name]["fill"], options)
    reads(homes, options, results["reads"])
    for home in homes[1:]:
        home.worker.end()
    for order in options.orders.split(","):
        if options.churn:
            results["churn"].append(churn(foldswap, order, options))


if __name__ == "__main__":
    main()
