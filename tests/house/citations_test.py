"""citations.py sees what it is for: in small trees made up here each kind of citation is right once and
broken once, and a broken one stands in each kind of file that has comments."""

import os
import tempfile
import unittest

import citations

SOURCES = {
    "docs/DESIGN.md": "# What is promised\n\n## 4. Getting a client\n\n1. It connects.\n2. It is checked.\n\n"
                      "Never managed: stacks.\n\n## 5. Evicting\n\nPages leave.\n",
    "docs/HAZARDS.md": "| # | hazard |\n|---|---|\n| 1 | order |\n| 2 | more of it |\n",
    "daemon/pool.h": "class Pool {\n  void take_out();\n};\nconst char* const kKey = \"pool.waste_max\";\n",
    "daemon/pool_test.cc": "TEST(Pool, Takes) {}\n",
}


class Citations(unittest.TestCase):
    def complaints(self, **files):
        """About SOURCES and these files."""
        with tempfile.TemporaryDirectory() as root:
            for path, text in {**SOURCES, **files}.items():
                os.makedirs(os.path.join(root, os.path.dirname(path)), exist_ok=True)
                with open(os.path.join(root, path), "w", encoding="utf-8") as f:
                    f.write(text)
            return [*citations.broken(root)]

    def about(self, text, path="daemon/user.cc", before="// ", behind=""):
        return self.complaints(**{path: before + text + behind + "\n"})

    def assert_right(self, *texts):
        for text in texts:
            with self.subTest(text):
                self.assertEqual(self.about(text), [])
                self.assertEqual(self.about(text, "docs/OTHER.md", before=""), [])

    def assert_broken(self, text, what):
        with self.subTest(text):
            self.assertEqual(self.about(text), [f"daemon/user.cc:1: {what}"])
            self.assertEqual(self.about(text, "docs/OTHER.md", before=""), [f"docs/OTHER.md:1: {what}"])

    def test_a_tree_without_citations(self):
        self.assertEqual(self.complaints(), [])

    def test_files(self):
        self.assert_right("See pool.h.", "See `daemon/pool.h`.",
                          "See daemon/pool_*.cc, HAZARDS.md, docs/DESIGN.md.")
        self.assert_right("Of /etc/foldswap/none.toml, $DIR/none.sh and <none.h>; FILE.py, FILE.md.")
        for extension in ("md", "h", "cc", "py", "sh", "toml", "pml", "cmake"):
            self.assert_broken(f"See gone.{extension}, there.", f"there is no file gone.{extension}")
        self.assert_broken("(base/pool.h)", "there is no file base/pool.h")
        self.assert_broken("See `daemon/gone_*.cc`.", "there is no file daemon/gone_*.cc")
        self.assert_broken("In `gone/`, perhaps.", "there is no folder gone/")

    def test_files_from_where_they_are_cited(self):
        text = "[it](../daemon/pool.h), [not it](../pool.h)"
        self.assertEqual(self.about(text, "docs/OTHER.md", before=""),
                         ["docs/OTHER.md:1: there is no file ../pool.h"])
        self.assertEqual(self.about("# see daemon/pool.h and pool.h", "CMakeLists.txt", before=""), [])
        self.assertEqual(self.about("# see user/pool.h", "daemon/CMakeLists.txt", before=""),
                         ["daemon/CMakeLists.txt:1: there is no file user/pool.h"])

    def test_sections(self):
        self.assert_right("(DESIGN §5)", "DESIGN §4.2, DESIGN §4, 1", "DESIGN 4", "(DESIGN §5, HAZARDS 1)",
                          "§5 says so.")
        self.assert_broken("(DESIGN §6)", "DESIGN has no §6")
        self.assert_broken("(§6)", "DESIGN has no §6")
        self.assert_broken("(DESIGN 6)", "DESIGN has no §6")
        self.assert_broken("DESIGN §4.3", "DESIGN has no §4.3")
        self.assert_broken("DESIGN §5, 1", "DESIGN has no §5.1")
        self.assert_broken("GONE §5", "GONE has no §5")
        self.assertEqual(self.about("It is\n// said in DESIGN\n// §6."),
                         ["daemon/user.cc:2: DESIGN has no §6"])

    def test_rows(self):
        self.assert_right("HAZARDS 1, 2", "(H1, H2)", "Hazard 02", "HAZARDS row 1 and 2",
                          "(HAZARDS 1): 9 of 10")
        self.assert_broken("HAZARDS 3", "HAZARDS has no row 3")
        self.assert_broken("HAZARDS 1, 3", "HAZARDS has no row 3")
        self.assert_broken("HAZARDS rows 2–4", "HAZARDS has no row 4")
        self.assert_broken("(H1, H12)", "HAZARDS has no row 12")
        self.assert_broken("Hazard 12 strikes", "HAZARDS has no row 12")
        self.assertEqual(self.about("HAZARDS\n// 3"), ["daemon/user.cc:1: HAZARDS has no row 3"])
        hazards = SOURCES["docs/HAZARDS.md"] + "\nThat is row 1.\nThis is row 7.\n"
        self.assertEqual(self.complaints(**{"docs/HAZARDS.md": hazards}),
                         ["docs/HAZARDS.md:7: HAZARDS has no row 7"])

    def test_quotations(self):
        self.assert_right('DESIGN.md, "Never managed"')
        self.assert_broken('DESIGN.md, "Always managed"', 'DESIGN.md has no "Always managed"')

    def test_names(self):
        self.assert_right("`Pool::take_out`, `take_out()`, `take_out(page)`, `Pool`",
                          "Pool::take_out, take_out()")
        self.assert_right("`pool.waste_max`", "`kKey`", "`stop`, `--all`, `two words`",
                          "std::expected, `std::gone`")
        self.assert_broken("`Pool::put_in`", "nothing is called Pool::put_in")
        self.assert_broken("`Gone::take_out`", "nothing is called Gone::take_out")
        self.assert_broken("`put_in`", "nothing is called put_in")
        self.assert_broken("`put()`", "nothing is called put()")
        self.assert_broken("`put(page)`", "nothing is called put(page)")
        self.assert_broken("`PageStore`", "nothing is called PageStore")
        self.assert_broken("`Gone`", "nothing is called Gone")
        self.assert_broken("`kGone`", "nothing is called kGone")
        self.assert_broken("`pool.least_waste`", "nothing is called pool.least_waste")
        self.assert_broken("Pool::put_in does.", "nothing is called Pool::put_in")
        self.assert_broken("Then put() does.", "nothing is called put()")

    def test_a_comment_makes_no_name(self):
        self.assertEqual(self.about("`put_in` puts in; put_in does."),
                         ["daemon/user.cc:1: nothing is called put_in"])

    def test_where_comments_are(self):
        for path, before, behind in (
                ("daemon/user.cc", "int a = 1'000;  // ", ""), ("daemon/user.h", "/* ", " */ int b;"),
                ("tests/model.pml", "/* ", " */"), ("tests/user.py", "a = 1  # ", ""),
                ("tests/user.py", '"""', '"""'), ("tests/user.py", "def user():\n    '''", "'''"),
                ("scripts/user.sh", "a=1  # ", ""), ("cmake/User.cmake", "# ", ""),
                ("CMakeLists.txt", "set(a 1)  # ", ""), ("configs/user.toml", "a = '#'  # ", ""),
                ("systemd/user.service.in", "# ", "")):
            with self.subTest(path, before=before):
                line = 1 + before.count("\n")
                self.assertEqual(self.about("as gone.h says", path, before, behind),
                                 [f"{path}:{line}: there is no file gone.h"])

    def test_where_none_are(self):
        for path, text in (
                ("daemon/user.cc", 'say("// as gone.h says"); say(R"(// gone.h)"); say(\'"\', "gone.h");'),
                ("tests/user.py", 'say("# gone.h")\nwrite("""\ngone.h""")'),
                ("scripts/user.sh", 'say "# gone.h" gone.h#x'),
                ("cmake/User.cmake", 'say("# gone.h")'), ("tests/user.txt", "gone.h")):
            with self.subTest(path):
                self.assertEqual(self.complaints(**{path: text + "\n"}), [])

    def test_lines_of_long_comments(self):
        text = "// One.\n// Two.\n//\n// See\n// gone.h.\nint a;\n/*\n * And\n * HAZARDS 9.\n */\n"
        self.assertEqual(self.complaints(**{"daemon/user.cc": text}),
                         ["daemon/user.cc:5: there is no file gone.h",
                          "daemon/user.cc:9: HAZARDS has no row 9"])

    def test_code_in_documents(self):
        """Only its paths are looked at: a program named there may be anybody's."""
        text = ("So:\n\n```\nrun big.py `put_in` §9\nscripts/gone.sh\n```\n\n    daemon/gone.h\n\n"
                "- a\n\n  gone.h\n")
        self.assertEqual(sorted(self.complaints(**{"README.md": text})), [
            "README.md:12: there is no file gone.h", "README.md:5: there is no file scripts/gone.sh",
            "README.md:8: there is no file daemon/gone.h"])

    def test_this_tree_cites(self):
        """Or the check would look at nothing."""
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        texts = [p.text for parts in citations.Tree(root).parts.values() for p in parts]
        for pattern, least in ((citations.FILE, 200), (citations.SECTION, 30), (citations.ROW, 100),
                               (citations.BACKTICKS, 500), (citations.MEMBER, 100)):
            self.assertGreater(sum(len(pattern.findall(text)) for text in texts), least, pattern.pattern)


if __name__ == "__main__":
    unittest.main()
