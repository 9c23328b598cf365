"""What tests/e2e/lib/ctest.py tells CMake, and what it complains of."""

import contextlib
import io
import os
import sys
import types
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../e2e"))
from lib import ctest  # noqa: E402  only now is it on the path

HEAD = "import unittest\nfrom lib.ctest import ctest, inherited\n"


def printed(text, sanitized=False):
    """What is printed of a test file with this text; or what is complained of."""
    module = types.ModuleType("test_x")
    module.__file__ = "/somewhere/test_x.py"
    exec(HEAD + text, module.__dict__)
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            ctest.print_tests([module], sanitized)
    except SystemExit as ended:
        return ended.code.splitlines()
    return out.getvalue().splitlines()


def of_class(decorator, method=""):
    return f"{decorator}\nclass A(unittest.TestCase):\n    {method}\n    def test_one(self): pass\n"


class Printed(unittest.TestCase):
    def test_defaults(self):
        self.assertEqual(printed(of_class('@ctest("a", "e2e quick")')),
                         ['foldswap_e2e(a_one test_x.py A.test_one "e2e;quick" half 600 0)'])

    def test_a_method_goes_before_its_class(self):
        text = of_class('@ctest("a", "e2e", load="light", timeout=60)',
                        '@ctest(labels="nightly", minutes=3, load="alone")')
        self.assertEqual(printed(text),
                         ['foldswap_e2e(a_one test_x.py A.test_one "nightly" alone 60 3)'])

    def test_sanitized_only(self):
        text = of_class('@ctest("a", "e2e")', "@ctest(sanitized_only=True)")
        self.assertEqual(printed(text), [])
        self.assertEqual(len(printed(text, sanitized=True)), 1)

    def test_inherited(self):
        """None by default; what is named has what its method says, and what the class says of it."""
        base = of_class('@ctest("a", "e2e slow", timeout=60)', "@ctest(load='light')")
        self.assertEqual(len(printed(base + '@ctest("b", "e2e")\nclass B(A): pass\n')), 1)
        for said, wanted in (('"one"', '"e2e" light 600 0'),
                             ('"one", labels="nightly", minutes=2', '"nightly" light 600 2')):
            text = base + f'@inherited({said})\n@ctest("b", "e2e")\nclass B(A): pass\n'
            self.assertEqual(printed(text)[1], f"foldswap_e2e(b_one test_x.py B.test_one {wanted})")


class Complaints(unittest.TestCase):
    def assert_complaint(self, text, pattern):
        found = printed(text)
        self.assertEqual(len(found), 1, found)
        self.assertRegex(found[0], r"^test_x\.py: \w+\.test_\w+: .*" + pattern)

    def test_nothing_said(self):
        self.assert_complaint(of_class(""), "neither it nor its class")
        self.assert_complaint(of_class("", '@ctest(labels="e2e")'), "neither it nor its class")

    def test_unknown_words(self):
        self.assert_complaint(of_class('@ctest("a", "e2e qiuck")'), "label qiuck")
        self.assert_complaint(of_class('@ctest("a", "e2e", load="heavy")'), "load heavy")
        self.assert_complaint(of_class('@ctest("a", "e2e", timout=3)'), "setting timout")

    def test_labels_that_run_nowhere_or_twice(self):
        self.assert_complaint(of_class('@ctest("a", "slow")'), "e2e and nightly")
        self.assert_complaint(of_class('@ctest("a", "e2e nightly", minutes=1)'), "e2e and nightly")

    def test_minutes(self):
        self.assert_complaint(of_class('@ctest("a", "nightly")'), "minutes")
        self.assert_complaint(of_class('@ctest("a", "e2e", minutes=1)'), "minutes")

    def test_one_name_twice(self):
        text = of_class('@ctest("a", "e2e")')
        self.assert_complaint(text + text.replace("class A", "class B"), "a_one is the name of")

    def test_a_test_that_is_not_there(self):
        text = of_class('@ctest("a", "e2e")')
        self.assert_complaint(text + '@inherited("two")\n@ctest("b", "e2e")\nclass B(A): pass\n',
                              "there is no such test")


if __name__ == "__main__":
    unittest.main()
