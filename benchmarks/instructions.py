"""Instructions an operation takes, path by path, against those that are written down. Counts, not times: they are the same
on a busy machine.

    instructions.py BENCH_HOT_PATHS [--update]

Each path has to lie within 5 % of benchmarks/instructions.json, above and below: who makes one shorter writes that down
(--update), so that nobody loses it again. The counts are those of the compiler and the libraries of Debian 12.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

KNOWN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "instructions.json")
ITERATIONS = 4000
TOLERANCE = 0.05
LEFT_OUT = "--benchmark_filter=-^tcp/"  # how often they look until the kernel has delivered is the machine's affair


def count(program: str) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "counts")
        done = subprocess.run(["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", program, LEFT_OUT], check=False,
                              text=True, capture_output=True, env={**os.environ, "DTR_BENCH_ITERATIONS": str(ITERATIONS)})
        if done.returncode != 0:
            sys.exit(f"{program} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        counts = {}
        for name in os.listdir(folder):
            with open(os.path.join(folder, name), encoding="utf-8", errors="replace") as file:
                text = file.read()
            path = re.search(r"^desc: Trigger: Client Request: (\S+)$", text, re.MULTILINE)
            total = re.search(r"^(?:totals|summary): (\d+)$", text, re.MULTILINE)
            if path and total:
                counts[path.group(1)] = round(int(total.group(1)) / ITERATIONS)
    return dict(sorted(counts.items()))


def differences(counts: dict[str, int], known: dict[str, int]) -> list[str]:
    wrong = [f"{name}: not measured any more" for name in known if name not in counts]
    for name, now in counts.items():
        before = known.get(name)
        if before is None:
            wrong.append(f"{name}: {now}, not written down")
        elif abs(now - before) > TOLERANCE * before:
            wrong.append(f"{name}: {now} instead of {before} ({(now - before) / before:+.0%})")
    return wrong


def main() -> None:
    if shutil.which("valgrind") is None:
        print("skipped: valgrind is not installed")
        sys.exit(77)
    counts = count(sys.argv[1])
    if not counts:
        sys.exit("callgrind has counted nothing")
    for name, now in counts.items():
        print(f"{name:<24} {now:>8}")
    if "--update" in sys.argv:
        with open(KNOWN, "w", encoding="utf-8") as file:
            json.dump(counts, file, indent=1)
            file.write("\n")
        return
    with open(KNOWN, encoding="utf-8") as file:
        wrong = differences(counts, json.load(file))
    if wrong:
        sys.exit("\n".join(wrong) + f"\nwanted or not? If so: {sys.argv[0]} {sys.argv[1]} --update")


if __name__ == "__main__":
    main()
