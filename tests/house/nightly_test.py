"""What nightly.py makes of tests, times and its log."""

import argparse
import unittest

import nightly

TESTS = {"storm": 32, "crash": 38, "crash_with_disk": 38, "kill": 9, "torture": 11, "leaks": 2,
         "one": 1, "other": 1}


class Shares(unittest.TestCase):
    def test_each_test_is_in_one(self):
        for count in range(1, 12):
            lists = nightly.shares(TESTS, count)
            self.assertEqual(len(lists), count)
            self.assertEqual(sorted(sum(lists, [])), sorted(TESTS))

    def test_they_do_not_depend_on_the_order(self):
        other = dict(reversed(TESTS.items()))
        self.assertEqual(nightly.shares(TESTS, 4), nightly.shares(other, 4))

    def test_they_take_about_the_same_time(self):
        totals = [sum(TESTS[name] for name in share) for share in nightly.shares(TESTS, 3)]
        self.assertLess(max(totals) - min(totals), 10)

    def test_as_few_as_can_be(self):
        self.assertEqual(nightly.fewest(TESTS), 4)
        self.assertLessEqual(nightly.longest(TESTS, 4), nightly.MOST_MINUTES)
        self.assertGreater(nightly.longest(TESTS, 3), nightly.MOST_MINUTES)
        self.assertEqual(nightly.fewest({"short": 1}), 1)

    def test_a_test_that_is_too_long(self):
        with self.assertRaisesRegex(ValueError, "endless"):
            nightly.fewest({**TESTS, "endless": 46})

    def test_part(self):
        self.assertEqual(nightly.part_of("3/12"), (3, 12))
        for text in ("0/3", "4/3", "3", "1/0", "-1/3", "1/3x"):
            with self.assertRaises(argparse.ArgumentTypeError, msg=text):
                nightly.part_of(text)

    def test_minutes(self):
        def listing(*costs):
            return {"tests": [{"name": f"test{n}", "properties": [{"name": "TIMEOUT", "value": 600.0}]
                               + [{"name": "COST", "value": cost}] * (cost is not None)}
                              for n, cost in enumerate(costs)]}
        self.assertEqual(nightly.minutes_of(listing(2.0, 30.0)), {"test0": 2.0, "test1": 30.0})
        with self.assertRaisesRegex(ValueError, "test1"):
            nightly.minutes_of(listing(2.0, None))


class Log(unittest.TestCase):
    def test_records_are_read_as_they_were_written(self):
        for failed, skipped in (([], []), (["one"], []), (["one", "other"], ["leaks"])):
            record = nightly.Record("2026-11-30T01:02:03Z", "abc", "1/4", "failed" if failed else
                                    "passed", 77, failed, skipped)
            self.assertEqual(nightly.parse_log(nightly.format_record(record) + "\n\n"), [record])

    def test_documentation(self):
        for path in ("README.md", "docs/ARCHITECTURE.md", "docs/picture.svg"):
            self.assertTrue(nightly.is_documentation(path), path)
        for path in ("daemon/main.cc", "tests/crash/POINTS.md", "tests/docs/x.py", "mydocs/x", "scripts/readme.mdx"):
            self.assertFalse(nightly.is_documentation(path), path)


class Status(unittest.TestCase):
    CHANGED = {"same": [], "documented": ["README.md", "docs/x.txt"],
               "old": ["docs/x.txt", "daemon/main.cc", "pool/pool.cc"]}

    def status(self, *records, part="1/2"):
        made = [nightly.Record("2026-11-30T01:02:03Z", commit, which, "failed" if failed else "passed",
                               1, failed, skipped) for commit, which, failed, skipped in records]
        return nightly.status_of(part, made, self.CHANGED.get)

    def test_nothing_was_run(self):
        self.assertEqual(self.status(), (False, "has not been run"))
        self.assertEqual(self.status(("same", "2/2", [], [])), (False, "has not been run"))
        self.assertEqual(self.status(("same", "1/3", [], [])), (False, "has not been run"))

    def test_passed(self):
        self.assertTrue(self.status(("same", "1/2", [], []))[0])
        self.assertTrue(self.status(("documented", "1/2", [], []))[0])

    def test_failed(self):
        counts, text = self.status(("same", "1/2", ["storm"], []))
        self.assertFalse(counts)
        self.assertIn("storm", text)

    def test_code_changed_since(self):
        counts, text = self.status(("old", "1/2", [], []))
        self.assertFalse(counts)
        self.assertIn("daemon/main.cc and 1 more", text)

    def test_the_last_run_decides(self):
        good, bad = ("same", "1/2", [], []), ("documented", "1/2", ["storm"], [])
        self.assertFalse(self.status(good, bad)[0])
        self.assertTrue(self.status(bad, good)[0])

    def test_a_run_of_another_commit_takes_nothing_back(self):
        self.assertTrue(self.status(("same", "1/2", [], []), ("old", "1/2", ["storm"], []))[0])

    def test_what_was_not_committed(self):
        self.assertFalse(self.status(("same+", "1/2", [], []))[0])

    def test_a_commit_that_is_gone(self):
        counts, text = self.status(("unknown", "1/2", [], []))
        self.assertFalse(counts)
        self.assertIn("no commit here", text)

    def test_skipped_tests_are_told(self):
        counts, text = self.status(("same", "1/2", [], ["leaks"]))
        self.assertTrue(counts)
        self.assertIn("skipped: leaks", text)


if __name__ == "__main__":
    unittest.main()
