"""The state file that a keeper, or a service manager, has open (daemon/state/state.h)."""

import os


VERSION_AT = 4  # of StateHeader::version


def state_file(pid):
    """The path of the state file, as a process has it open."""
    base = f"/proc/{pid}/fd"
    for fd in os.listdir(base):
        try:
            if os.readlink(f"{base}/{fd}").startswith("/memfd:foldswap-state"):
                return f"{base}/{fd}"
        except OSError:
            pass
    raise AssertionError(f"process {pid} has no state file")


def change_version(pid, by):
    with open(state_file(pid), "r+b", buffering=0) as f:
        f.seek(VERSION_AT)
        version = int.from_bytes(f.read(4), "little") + by
        f.seek(VERSION_AT)
        f.write(version.to_bytes(4, "little"))
