"""What CTest is told of the end-to-end tests. Each test file says it itself:

    @ctest("e2e_budget", "e2e", load="alone")   The CTest names of this class's tests begin with
    class Budget(E2E):                          e2e_budget_. They have the label e2e and run alone.
        @ctest(labels="nightly", minutes=1)     A method says only what differs from its class.
        def test_random_order(self):

    @inherited("torture", "sweep")              The class runs these two tests of its base class as
    @ctest("kill_with_disk", "e2e slow")        well, with what their methods say. It runs no other
    class KillWithDisk(Kill):                   test of its base class.

labels: scripts/test.sh runs `e2e`. Of these, `e2e_san` are worth running in sanitizer builds,
    `quick` are the inner loop, and `slow` are neither. scripts/nightly.sh runs `nightly`.
load: `half` of the machine is the default. Daemon and program wait for each other, so two such tests
    run at a time, on however many CPUs. `light` may run beside anything. `alone` is judged by what
    the machine does, so nothing else runs meanwhile.
timeout: in seconds.
minutes: how long a nightly test takes, for scripts/nightly.sh --part. CTest calls it COST.
sanitized_only: sanitizer builds alone have the test.

list_tests.py prints all tests, and tests/CMakeLists.txt makes CTest's list of that. A test without
prefix and labels, or with unknown ones, ends the configuration with an error that names it."""

import os
import sys
import unittest

LABELS = ("e2e", "e2e_san", "quick", "slow", "nightly")
LOADS = ("alone", "half", "light")
DEFAULTS = {"load": "half", "timeout": 600, "sanitized_only": False, "minutes": 0}


def ctest(prefix=None, labels=None, **settings):
    """Of a class or a method; of a method only what differs from its class."""
    said = dict(settings)
    if prefix is not None:
        said["prefix"] = prefix
    if labels is not None:
        said["labels"] = labels.split()

    def note(what):
        what.told_to_ctest = said
        return what
    return note


def inherited(*names, labels=None, **settings):
    """Of a class that runs tests of its base class. `settings`: what differs from them."""
    said = dict(settings)
    if labels is not None:
        said["labels"] = labels.split()

    def note(cls):
        cls.inherited_tests = {**vars(cls).get("inherited_tests", {}),
                               **{f"test_{name}": said for name in names}}
        return cls
    return note


class Test:
    """One test as CTest is told of it."""

    def __init__(self, module, cls, method, told):
        self.file = os.path.basename(module.__file__)
        self.method = f"{cls.__name__}.{method}"
        self.name = f"{told.get('prefix')}_{method.removeprefix('test_')}"
        self.told = told
        self.there = hasattr(cls, method)

    def complaints(self):
        told = self.told
        if not self.there:
            return ["there is no such test to inherit"]
        if "prefix" not in told or "labels" not in told:
            return ["neither it nor its class has a @ctest with a prefix and labels"]
        found = [f"unknown label {label}" for label in told["labels"] if label not in LABELS]
        if told["load"] not in LOADS:
            found.append(f"unknown load {told['load']}")
        if not found and ("e2e" in told["labels"]) == ("nightly" in told["labels"]):
            found.append("one of the labels e2e and nightly it must have")
        if ("nightly" in told["labels"]) != (told["minutes"] > 0):
            found.append("minutes it must have if it is nightly, and not otherwise")
        found += [f"unknown setting {key}" for key in told
                  if key not in ("prefix", "labels", *DEFAULTS)]
        return found

    def cmake(self):
        told = self.told
        return (f'foldswap_e2e({self.name} {self.file} {self.method} "{";".join(told["labels"])}" '
                f'{told["load"]} {told["timeout"]} {told["minutes"]})')


def tests_of_class(module, cls):
    own = vars(cls).get("told_to_ctest", {})
    of_methods = {name: {} for name, method in vars(cls).items()
                  if name.startswith("test") and callable(method)}
    of_methods.update(vars(cls).get("inherited_tests", {}))
    return [Test(module, cls, name,
                 {**DEFAULTS, **own,
                  **getattr(getattr(cls, name, None), "told_to_ctest", {}), **settings})
            for name, settings in of_methods.items()]


def tests_of_module(module):
    return [test for cls in vars(module).values()
            if isinstance(cls, type) and issubclass(cls, unittest.TestCase)
            and cls.__module__ == module.__name__
            for test in tests_of_class(module, cls)]


def print_tests(modules, sanitized):
    """For CMake. What is wrong goes to stderr, and makes the exit status 1."""
    tests = [test for module in modules for test in tests_of_module(module)]
    wrong, seen = [], {}
    for test in tests:
        where = f"{test.file}: {test.method}"
        wrong += [f"{where}: {complaint}" for complaint in test.complaints()]
        if test.name in seen:
            wrong.append(f"{where}: {test.name} is the name of {seen[test.name]}, too")
        seen[test.name] = where
    if wrong:
        sys.exit("\n".join(wrong))
    for test in tests:
        if sanitized or not test.told["sanitized_only"]:
            print(test.cmake())
