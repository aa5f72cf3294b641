#!/usr/bin/env python3
"""Runs a short job under valgrind and looks for what libdtr did wrong: memory that it lost, memory that it misused.

    valgrind_leaks.py MPIRUN RANKS PROGRAM [ARGUMENT...]

Open MPI and its helpers lose memory of their own, so a finding counts only if the innermost frame outside the
allocator, the C and the C++ library is in libdtr or in the program. Needs the mpirun environment of scripts/common.sh.
"""
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml
from pathlib import Path

mpirun, ranks, program = sys.argv[1], sys.argv[2], sys.argv[3:]
BELOW = ("vgpreload", "libc.so", "libstdc++", "libm.so", "ld-linux", "libgcc_s")
OURS = ("libdtr.so", Path(program[0]).name)


def frames(error):
    stack = error.find("stack")
    for frame in [] if stack is None else stack.iter("frame"):
        yield frame.findtext("obj") or "", frame.findtext("fn") or "?", frame.findtext("file"), frame.findtext("line")


def is_ours(error):
    for thing, _, _, _ in frames(error):
        name = Path(thing).name
        if not name.startswith(BELOW):
            return name.startswith(OURS)
    return False


with tempfile.TemporaryDirectory() as folder:
    valgrind = ["valgrind", "--leak-check=full", "--show-leak-kinds=definite,possible", "--xml=yes",
                f"--xml-file={folder}/%p.xml", "--num-callers=30"]  # fmt: skip
    run = subprocess.run([mpirun, "-n", ranks, *valgrind, *program], capture_output=True, text=True, check=False)
    if run.returncode != 0:
        sys.exit(f"the run itself failed\n{run.stdout}\n{run.stderr}")
    reports = sorted(Path(folder).glob("*.xml"))
    if len(reports) != int(ranks):
        sys.exit(f"{len(reports)} reports for {ranks} ranks")
    others = 0
    findings = []
    for report in reports:
        for error in xml.parse(report).getroot().iter("error"):
            if is_ours(error):
                findings.append(error)
            else:
                others += 1

for error in findings:
    print(error.findtext("kind"), error.findtext("what") or error.findtext("xwhat/text"))
    for _, function, file, line in frames(error):
        print(f"    {function} ({file}:{line})")
print(f"{len(findings)} findings in libdtr, {others} elsewhere (not counted)")
sys.exit(1 if findings else 0)
