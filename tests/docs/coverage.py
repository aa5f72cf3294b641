#!/usr/bin/env python3
"""What docs/api-coverage.md names is there: tests in the last column, types and functions in the column of libdtr.

    coverage.py ROOT BUILD    also every test of GoogleTest that another page of docs/ names
    coverage.py --self-test
"""
import re
import subprocess
import sys
import tempfile
from pathlib import Path

PAGE = "docs/api-coverage.md"
CODE = re.compile(r"`([^`]+)`")
CASE = re.compile(r"^[A-Z]\w*\.[A-Z]\w*$")  # RuntimeTest.OneRankIsTheOnlyWorker
GTEST = re.compile(r"\b(?:TYPED_)?TEST(?:_F|_P)?\(\s*(\w+)\s*,\s*(\w+)\s*\)")
NAMED = re.compile(r"\b([A-Z]\w+)::(~?\w+)")  # Runtime::allocate
SUITE = re.compile(r"\b[A-Z]\w*Test$")


def listed(build):
    """What ctest would run."""
    text = subprocess.run(["ctest", "--test-dir", build, "-N"], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"Test\s+#\d+: (\S+)", text))


def known(root):
    cases, headers = set(), []
    for path in (root / "tests").rglob("*.cpp"):
        cases.update(f"{suite}.{name}" for suite, name in GTEST.findall(path.read_text()))
    for path in (root / "lib").rglob("*.hpp"):
        headers.append(set(re.findall(r"~?\w+", path.read_text())))
    return cases, headers


def rows(text):
    """(line, cells) of each row of a table that has a column for proofs."""
    proofs = False
    for number, line in enumerate(text.splitlines(), 1):
        if not line.startswith("|"):
            proofs = False
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[-1].startswith("proof"):
            proofs = True
        elif proofs and not set(line) <= set("|-: "):
            yield number, cells


def check(root, runs):
    cases, headers = known(root)
    complaints = []
    found = 0
    for number, cells in rows((root / PAGE).read_text()):
        for name in CODE.findall(cells[-1]):
            found += 1
            if CASE.match(name):
                good = name in cases
            else:
                good = name in runs or (name.startswith("scripts/") and (root / name).exists())
            if not good:
                complaints.append(f"{PAGE}:{number}: there is no test `{name}`")
        for code in CODE.findall(cells[1]) if len(cells) > 3 else []:
            for owner, member in NAMED.findall(code):
                if not any(owner in words and member in words for words in headers):
                    complaints.append(f"{PAGE}:{number}: no header has {owner}::{member}")
    if found == 0:
        complaints.append(f"{PAGE}: names no test")
    for page in sorted((root / "docs").rglob("*.md")):
        for number, line in enumerate(page.read_text().splitlines(), 1):
            for name in CODE.findall(line):
                if CASE.match(name) and SUITE.search(name.split(".")[0]) and name not in cases:
                    complaints.append(f"{page.relative_to(root)}:{number}: there is no test `{name}`")
    return sorted(set(complaints)), found


def self_test():
    """Each kind of mistake is found, and nothing else is."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("docs", "tests", "lib", "scripts"):
            (root / name).mkdir()
        (root / "tests/a_test.cpp").write_text("TEST(RoomTest, Good) {}\nTEST_P(OtherTest,\n       AlsoGood) {}\n")
        (root / "lib/room.hpp").write_text("class Room { void open(); };\n")
        (root / "scripts/run.sh").write_text("")
        table = "| call | here | state | proof |\n|---|---|---|---|\n| x | {} | there | {} |\n"

        def complaints(here, proof):
            (root / PAGE).write_text(table.format(here, proof))
            return check(root, {"room/world"})[0]

        good = "`RoomTest.Good`, `OtherTest.AlsoGood`, `room/world`, `scripts/run.sh`"
        assert complaints("`Room::open(path)`", good) == []
        for here, proof in [
            ("`Room::close`", good),
            ("`Room::open`", "`RoomTest.Bad`"),
            ("", "`room/none`"),
            ("", "`scripts/none.sh`"),
            ("", "none"),
        ]:
            assert len(complaints(here, proof)) >= 1, (here, proof)
    print("the check finds what it is there to find")


if sys.argv[1] == "--self-test":
    self_test()
    sys.exit(0)
complaints, found = check(Path(sys.argv[1]), listed(sys.argv[2]))
for complaint in complaints:
    print(complaint)
print(f"{found} proofs named, {len(complaints)} complaints")
sys.exit(1 if complaints else 0)
