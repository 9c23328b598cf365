"""The program that demo.sh runs: builds a big heap, lets most of it lie, uses all of it again.

Prints digests of everything in it, which must not depend on where its pages have been. With a file
name as argument it makes that file when the heap is complete, and waits for a line of input before
it goes on.
"""
import hashlib
import sys

ROWS = 250_000


def build():
    table = {}
    state = 1
    for i in range(ROWS):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        table[f"customer-{i:07d}"] = [i, f"{state:020d} orders since {1990 + i % 30}", state % 9973]
    return table


def digest(table, keys):
    h = hashlib.sha256()
    for key in keys:
        h.update(key.encode())
        h.update(repr(table[key]).encode())
    return h.hexdigest()


def main():
    table = build()
    first = digest(table, table)
    by_balance = sorted(table, key=lambda key: (table[key][2], key))
    print(first, digest(table, by_balance), sum(row[0] for row in table.values()))
    if len(sys.argv) > 1:
        sys.stdout.flush()
        with open(sys.argv[1], "w", encoding="ascii") as ready:
            ready.write("ready\n")
        sys.stdin.readline()
    print(digest(table, by_balance))


main()
