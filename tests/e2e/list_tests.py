"""Prints all end-to-end tests for tests/CMakeLists.txt, a call of foldswap_e2e() each (lib/ctest.py):
list_tests.py [--sanitized 0|1]"""

import argparse
import glob
import importlib
import os

from lib import ctest


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--sanitized", type=int, default=0)
    sanitized = parser.parse_args().sanitized
    files = glob.glob(os.path.join(os.path.dirname(os.path.abspath(__file__)), "test_*.py"))
    names = sorted(os.path.basename(file).removesuffix(".py") for file in files)
    ctest.print_tests([importlib.import_module(name) for name in names], sanitized)


if __name__ == "__main__":
    main()
