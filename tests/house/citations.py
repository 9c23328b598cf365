#!/usr/bin/env python3
"""What comments and documents cite must exist: citations.py [ROOT]

Looked at are the comments of all tracked sources (docstrings among them), and all Markdown. In these

- a file (`wire.h`, `daemon/state/state.h`, PROTOCOL.md, pool/take_over_*_test.cc) must be in the tree: with a
  folder from the root or from the folder of whoever cites it, without one anywhere. Absolute paths are
  files of somebody's system, and so is <header.h>;
- DESIGN §5 is a numbered heading of docs/DESIGN.md, and DESIGN §4.3 or §5, 3 a numbered item below it;
  § alone is DESIGN's;
- HAZARDS 12, Hazard 12 and (H12) are rows of the table in docs/HAZARDS.md; so is "row 12" in that file;
- a document whose words are quoted behind its name, as in DESIGN.md, "Register late", has them;
- a name that looks like one of ours must be a name in the sources, outside comments. In backticks that is
  what has ::, an underscore, a capital at its beginning or within, or () behind it, and a folder/;
  without them what has :: or (). Strings count as sources, because JSON keys, mutations and test
  names are such. The names that this check's own test makes up do not.

What is neither and yet right stands in one of the lists below, with the reason. Prints a line for each
citation that is broken; exit status 1: there is one.
"""

import ast
import fnmatch
import io
import os
import posixpath
import re
import sys
import tokenize
from collections import namedtuple

from tree import ROOT, tracked

# Names that nothing in the sources has, and why they are right.
OTHERS_NAMES = {
    "process_madvise", "mmap_changing", "mincore", "set_tid_address",  # the kernel's
}
# Files of others, and of users' systems.
OTHERS_FILES = {
    "foldswap.toml.d/*.toml",  # drop-ins, beside the configuration file
    "FILE.d/*.toml",           # likewise
    "linux/magic.h",           # the kernel's
    "witness.h",               # jemalloc's
}
# Promised by DESIGN, marked there as not built yet.
PROMISED = {"promotion_rate_max"}

C_LIKE = ("c", "h", "cc", "pml")
MARKS = (".py", ".sh", ".cmake", ".toml", ".in", ".rules", ".sysusers", ".tmpfiles", "CMakeLists.txt")
# What names things that are meant to be found nowhere.
OWN = ("tests/house/citations.py", "tests/house/citations_test.py")

# Of a comment or document, with the line it begins in. Of a document's code only paths are looked at.
Paragraph = namedtuple("Paragraph", "line text code")

C_TOKEN = re.compile(r"""
    (?P<line>//(?:\\\n|[^\n])*) | (?P<block>/\*.*?\*/)
  | R"(?P<mark>[^()\s\\]*)\(.*?\)(?P=mark)" | "(?:\\.|[^"\\\n])*"
  | \b\d[\w']* | '(?:\\.|[^'\\\n])*'""", re.S | re.X)
EXTENSION = r"(?:md|h|cc|py|sh|toml|pml|cmake)"
FILE = re.compile(rf"(?<![\w/.<$~*{{}}=-])((?:[\w.*-]+/)*[\w.*-]*[\w*]\.{EXTENSION})(?![\w/*>-]|\.\w)")
SECTION = re.compile(r"(?:\b([A-Z][A-Z0-9_]+)(?:\.md)?(?:'s)?\s+)?§\s?(\d+)(?:\.(\d+)|,\s(\d+)\b)?"
                     r"|\bDESIGN(?:\.md)?\s+(\d+)\b")
NUMBERS = r"(\d{1,3}(?:(?:\s*[,–-]\s*|\s+and\s+)\d{1,3}(?![\d.]))*)"
ROW = re.compile(rf"\bHAZARDS(?:\.md)?,?\s+(?:rows?\s+)?{NUMBERS}|\b[Hh]azards?\s+{NUMBERS}"
                 r"|(?<![\w-])H(\d{1,2})\b")
ROW_HERE = re.compile(rf"\b[Rr]ows?\s+{NUMBERS}")
QUOTED = re.compile(r"\b([A-Z][A-Z0-9_]+)\.md,\s+\"([^\"]+)\"")
BACKTICKS = re.compile(r"(?<!`)`([^`]+)`(?!`)")
MEMBER = re.compile(r"(?<![\w:`])([A-Z]\w*(?:::~?\w+)+)|(?<![\w:./`~])([A-Za-z_]\w*\(\))")
NAME = re.compile(r"~?[A-Za-z_]\w*(?:(?:::|\.)~?[A-Za-z_]\w*)*(?:\(.*\))?")
FOLDER = re.compile(r"[\w.-]+(?:/[\w.-]+)*/")


def paragraphs(lines):
    """Of (line, text): consecutive lines, up to an empty one or a gap. A row of a table is one by itself."""
    found, begun, text, last = [], 0, [], 0
    for number, line in [*lines, (0, "")]:
        alone = line.startswith("|")
        if text and (not line.strip() or number != last + 1 or alone or text[-1].startswith("|")):
            found.append(Paragraph(begun, "\n".join(text), False))
            text = []
        if line.strip():
            begun = begun if text else number
            text.append(line)
        last = number
    return found


def of_c(source):
    """Comments and the rest."""
    lines, rest, end = [], [], 0
    for token in C_TOKEN.finditer(source):
        if token["line"] is None and token["block"] is None:
            continue
        number = source.count("\n", 0, token.start()) + 1
        for more, line in enumerate(token[0].strip("/").split("\n")):
            lines.append((number + more, re.sub(r"^\s*(?:\*+/?\s?)?\s?", "", line)))
        rest.append(source[end:token.start()])
        end = token.end()
    return paragraphs(lines), " ".join([*rest, source[end:]])


def of_python(source):
    lines, rest = [], []
    documented = set()
    for node in ast.walk(ast.parse(source)):
        value = node.value if isinstance(node, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            documented.add((node.lineno, node.col_offset))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            lines.append((token.start[0], token.string.lstrip("#").strip()))
        elif token.type == tokenize.STRING and token.start in documented:
            for more, line in enumerate(token.string.strip("rbuf").strip("\"'").split("\n")):
                lines.append((token.start[0] + more, line.strip()))
        else:
            rest.append(token.string)
            if token.string.startswith("test_"):
                rest.append(token.string.removeprefix("test_"))  # what its CTest name ends in
    return paragraphs(lines), " ".join(rest)


def of_marked(source):
    """Where # begins a comment."""
    lines, rest = [], []
    for number, line in enumerate(source.split("\n"), 1):
        comment = re.match(r"""((?:[^#"']|"(?:\\.|[^"\\])*"|'[^']*'|(?<=\S)\#)*?)(?<!\S)\#+\s?(.*)""", line)
        rest.append(comment[1] if comment else line)
        if comment:
            lines.append((number, comment[2]))
    return paragraphs(lines), "\n".join(rest)


def of_markdown(source):
    lines, code, fenced, before = [], [], False, ""
    for number, line in enumerate(source.split("\n"), 1):
        # Four blanks, but not where a list goes on.
        goes_on = bool(code) and code[-1].line == number - 1
        indented = line.startswith("    ") and (goes_on or not before.strip())
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or indented:
            code.append(Paragraph(number, line, True))
        else:
            lines.append((number, line))
        before = line
    return paragraphs(lines) + code, ""


def parts_of(path, source):
    """(paragraphs, what is no comment), or nothing."""
    if path.endswith(".md"):
        return of_markdown(source)
    if path.endswith(".py"):
        return of_python(source)
    if path.rpartition(".")[2] in C_LIKE:
        return of_c(source)
    if path.endswith(MARKS):
        return of_marked(source)
    return [], ""


class Tree:
    """What can be cited."""

    def __init__(self, root):
        self.files = tracked(root)
        self.names = {posixpath.basename(path) for path in self.files}
        self.parts, self.texts, self.words = {}, {}, set()
        for path in self.files:
            try:
                with open(os.path.join(root, path), encoding="utf-8") as f:
                    self.texts[path] = f.read()
            except UnicodeDecodeError:
                continue
            self.parts[path], code = parts_of(path, self.texts[path])
            self.words |= set() if path in OWN else set(re.findall(r"\w+", code))
        for path in self.files:
            self.words |= set(re.findall(r"\w+", path))
        self.rows = set(re.findall(r"^\| (\d+) \|", self.document("HAZARDS"), re.M))

    def document(self, name):
        return self.texts.get(f"docs/{name}.md", self.texts.get(f"{name}.md", ""))

    def has_file(self, path, cited_by):
        here = posixpath.normpath(posixpath.join(posixpath.dirname(cited_by), path))
        if "*" in path:
            return any(fnmatch.fnmatchcase(file, pattern) for file in self.files
                       for pattern in ((path, here) if "/" in path else ("*" + path,)))
        return path in self.files or here in self.files or "/" not in path and path in self.names

    def has_section(self, document, section, item):
        found = re.search(rf"^## {section}\. .*?(?=^## |\Z)", self.document(document), re.M | re.S)
        return found is not None and (
            item is None or re.search(rf"^\s*{item}\. ", found[0], re.M) is not None)

    def has_name(self, name):
        return all(part in self.words or part in OTHERS_NAMES or part in PROMISED
                   for part in re.split(r"::|\.", name.partition("(")[0].replace("~", "")))

    def has_folder(self, path):
        return any(file.startswith(path) or "/" + path in file for file in self.files)


def looks_like_ours(name):
    if not NAME.fullmatch(name) or FILE.fullmatch(name):
        return False
    if "::" in name:
        return not name.startswith("std::")
    called = name.endswith(")") and "." not in name
    return called or "_" in name.strip("_") or re.search(r"[a-z\d][A-Z]|^[A-Z][a-z]\w", name) is not None


def is_placeholder(path):
    """FILE.py, DIR/FILE.md: who reads it puts a name there."""
    stem = posixpath.basename(path).rpartition(".")[0]
    return stem in ("FILE", "NAME", "SOME_DOCUMENT")


def files_in(paragraph, tree, path):
    for match in FILE.finditer(paragraph.text):
        file = match[1]
        if paragraph.code and "/" not in file or file in OTHERS_FILES or is_placeholder(file):
            continue
        if not tree.has_file(file, path):
            yield match.start(), f"there is no file {file}"


def sections_in(paragraph, tree):
    for match in SECTION.finditer(paragraph.text):
        document, section = match[1] or "DESIGN", match[2] or match[5]
        item = match[3] or match[4]
        if not tree.has_section(document, section, item):
            yield match.start(), f"{document} has no §{section}" + (f".{item}" if item else "")


def rows_in(paragraph, tree, path):
    matches = [*ROW.finditer(paragraph.text)]
    if path == "docs/HAZARDS.md":
        matches += ROW_HERE.finditer(paragraph.text)
    for match in matches:
        for row in re.findall(r"\d+", " ".join(group or "" for group in match.groups())):
            if row.lstrip("0") not in tree.rows:
                yield match.start(), f"HAZARDS has no row {row}"


def quotations_in(paragraph, tree):
    for match in QUOTED.finditer(paragraph.text):
        if " ".join(match[2].split()) not in " ".join(tree.document(match[1]).split()):
            yield match.start(), f"{match[1]}.md has no \"{match[2]}\""


def names_in(paragraph, tree):
    named = [(match.start(), " ".join(match[1].split())) for match in BACKTICKS.finditer(paragraph.text)]
    for at, name in named:
        if FOLDER.fullmatch(name) and not name.startswith("build/") and not tree.has_folder(name):
            yield at, f"there is no folder {name}"
    named = [(at, name) for at, name in named if looks_like_ours(name)]
    named += [(match.start(), match[0]) for match in MEMBER.finditer(paragraph.text)]
    for at, name in named:
        if not tree.has_name(name):
            yield at, f"nothing is called {name}"


def broken(root):
    """Lines `path:line: what`, one for each citation of what does not exist."""
    tree = Tree(root)
    for path, parts in tree.parts.items():
        for paragraph in parts:
            found = [*files_in(paragraph, tree, path)]
            if not paragraph.code:
                found += [*sections_in(paragraph, tree), *rows_in(paragraph, tree, path),
                          *quotations_in(paragraph, tree), *names_in(paragraph, tree)]
            for at, what in sorted(found):
                yield f"{path}:{paragraph.line + paragraph.text.count(chr(10), 0, at)}: {what}"


def main():
    complaints = [*broken(sys.argv[1] if len(sys.argv) > 1 else ROOT)]
    print("\n".join([*complaints, f"{len(complaints)} broken citations"]))
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
