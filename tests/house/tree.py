"""The files that checks of the whole tree look at."""

import os
import subprocess

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def tracked(root):
    """Files of the tree, by their paths from the root."""
    listed = subprocess.run(["git", "-C", root, "ls-files", "-z"], capture_output=True, text=True,
                            check=False)
    names = [name for name in listed.stdout.split("\0") if name]
    if not names:  # no repository: what somebody has unpacked
        for folder, folders, files in os.walk(root):
            folders[:] = [name for name in folders if not name.startswith((".", "build"))]
            names += [os.path.relpath(os.path.join(folder, name), root) for name in files]
    return sorted(name for name in names if os.path.isfile(os.path.join(root, name)))
