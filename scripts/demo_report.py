"""What `foldswap stats --json` says, in plain words, for demo.sh.

demo_report.py STATS            what was saved; exit status 1 when nothing was taken out
demo_report.py --faults STATS   what came back
"""
import json
import sys

MIB = 2**20


def report_saved(stats):
    pages = sum(client["evicted_pages"] for client in stats["clients"])
    out = pages * 4096
    kept = stats["pool"]["frame_bytes"] + stats["pool"]["metadata_bytes"]
    print(f"The program has {out / MIB:.0f} MiB out of its memory. "
          f"They take {kept / MIB:.0f} MiB in the daemon: {(out - kept) / MIB:.0f} MiB saved.")
    return 0 if pages > 0 else 1


def report_faults(stats):
    faults = stats["faults"]
    latency = faults["latency_us"]
    touched = faults["pool"] + faults["same_filled"]
    print(f"It touched {touched} pages that were out and got them back, "
          f"{faults['readahead_pages']} more came before they were asked for. "
          f"Half of the faults took less than {latency['p50']:.0f} microseconds, "
          f"99 % less than {latency['p99']:.0f}.")
    return 0


def main():
    faults = sys.argv[1] == "--faults"
    with open(sys.argv[-1], encoding="utf-8") as file:
        stats = json.load(file)
    return report_faults(stats) if faults else report_saved(stats)


sys.exit(main())
