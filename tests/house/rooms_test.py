"""That rooms.py sees what it is there for: rooms that see too much, or too little."""

import json
import os
import tempfile
import unittest

import rooms
import tree

TABLE = """
| room | what is in it | may include |
|---|---|---|
| `low/` | something | – |
| `up/left/` | more | low |
| `up/right/` | more | low |
| `top/` | all | all but left |
"""


class Rooms(unittest.TestCase):
    def setUp(self):
        self.tree = tempfile.TemporaryDirectory()
        self.addCleanup(self.tree.cleanup)
        self.addCleanup(setattr, tree, "ROOT", tree.ROOT)
        tree.ROOT = self.tree.name
        for folder in ("low", "up/left", "up/right", "top"):
            self.write(f"{folder}/a.h", "")
            self.write(f"{folder}/a.cc", "")
        self.write("docs/ARCHITECTURE.md", TABLE)
        self.seen = {"low": ["low"], "up/left": ["low", "left"], "up/right": ["low", "right"],
                     "top": ["low", "right", "top"]}

    def write(self, path, text):
        path = os.path.join(self.tree.name, path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)

    def check(self):
        """Each room as a folder of its own on the include path, as cmake/Rooms.cmake makes them."""
        for folder in self.seen:
            view = f"{self.tree.name}/view/{folder.rpartition('/')[2]}/{folder}"
            if not os.path.exists(view):
                os.makedirs(os.path.dirname(view), exist_ok=True)
                os.symlink(os.path.join(self.tree.name, folder), view)
        commands = [{"directory": self.tree.name, "file": f"{folder}/a.cc",
                     "command": "g++ -c " + " ".join(f"-I{self.tree.name}/view/{name}" for name in seen)}
                    for folder, seen in self.seen.items()]
        self.write("build/compile_commands.json", json.dumps(commands))
        return rooms.check(os.path.join(self.tree.name, "build"))

    def test_table(self):
        self.assertEqual(rooms.table_of(TABLE), {
            "low": {"low"}, "up/left": {"up/left", "low"}, "up/right": {"up/right", "low"},
            "top": {"low", "up/right", "top"}})

    def test_as_it_should_be(self):
        self.assertEqual(self.check(), [])

    def test_sees_too_much(self):
        self.seen["up/left"].append("right")
        self.assertEqual(self.check(), ["up/left/ can include up/right/a.h, against docs/ARCHITECTURE.md"])

    def test_sees_too_little(self):
        self.seen["up/right"].remove("low")
        self.assertEqual(self.check(),
                         ["up/right/ cannot include low/a.h, which docs/ARCHITECTURE.md allows"])

    def test_not_built(self):
        del self.seen["top"]
        self.assertEqual(self.check(), ["top/: nothing of it is built"])

    def test_past_the_include_path(self):
        self.write("up/left/a.cc", '#include "../right/a.h"\n#include "low/testing/b.h"\n')
        self.write("up/left/a_test.cc", '#include "low/testing/b.h"\n')
        self.assertEqual(rooms.leaving(self.tree.name, ["up/left/a.cc", "up/left/a_test.cc"]), [
            "up/left/a.cc:1: an include that leaves the folder: ../right/a.h",
            "up/left/a.cc:2: low/testing/b.h is for tests"])


if __name__ == "__main__":
    unittest.main()
