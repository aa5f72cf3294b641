"""Instructions an operation takes, path by path, against those that are written down. Counts, not times: they are the same
on a busy machine.

    instructions.py BENCH_HOT_PATHS [--update]

Each path has to lie within 5 % of tests/house/instructions.json, above and below: who makes one shorter writes that down
(--update), so that nobody loses it again. The counts are those of the platform that the file names; another one skips.
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
        callgrind = ["valgrind", "--tool=callgrind", "--separate-threads=yes", f"--callgrind-out-file={out}"]
        done = subprocess.run([*callgrind, program, LEFT_OUT], check=False, text=True, capture_output=True,
                              env={**os.environ, "DTR_BENCH_ITERATIONS": str(ITERATIONS)})
        if done.returncode != 0:
            sys.exit(f"{program} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        counts = {}
        for name in os.listdir(folder):
            if not name.endswith("-01"):  # of the thread that does the operations
                continue
            with open(os.path.join(folder, name), encoding="utf-8", errors="replace") as file:
                text = file.read()
            path = re.search(r"^desc: Trigger: Client Request: (\S+)$", text, re.MULTILINE)
            total = re.search(r"^(?:totals|summary): (\d+)$", text, re.MULTILINE)
            if path and total:
                counts[path.group(1)] = round(int(total.group(1)) / ITERATIONS)
    return dict(sorted(counts.items()))


def platform_of() -> str:
    """What the counts depend on besides this source: compiler, C library, and the CPU for which that picks its memcpy."""
    compiler = subprocess.run(["g++", "-dumpfullversion"], check=False, text=True, capture_output=True).stdout.strip()
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        flags = next((line.split(":", 1)[1].split() for line in file if line.startswith("flags")), [])
    cpu = " ".join(flag for flag in ("avx2", "erms", "fsrm") if flag in flags)
    return f"g++ {compiler}, {' '.join(os.confstr('CS_GNU_LIBC_VERSION').split())}, {cpu}"


def skip(why: str) -> None:
    print("skipped: " + why)
    sys.exit(77)


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
        skip("valgrind is not installed")
    known = {}
    if "--update" not in sys.argv:
        with open(KNOWN, encoding="utf-8") as file:
            known = json.load(file)
        if known["platform"] != platform_of():
            skip(f"this is {platform_of()}, and the counts are of {known['platform']}")
    if subprocess.run(["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", "true"], check=False,
                      capture_output=True).returncode != 0:
        skip("valgrind does not work on this machine")
    counts = count(sys.argv[1])
    if not counts:
        sys.exit("callgrind has counted nothing")
    for name, now in counts.items():
        print(f"{name:<24} {now:>8}")
    if "--update" in sys.argv:
        with open(KNOWN, "w", encoding="utf-8") as file:
            json.dump({"platform": platform_of(), "counts": counts}, file, indent=1)
            file.write("\n")
        return
    wrong = differences(counts, known["counts"])
    if wrong:
        sys.exit("\n".join(wrong) + f"\nwanted or not? If so: {sys.argv[0]} {sys.argv[1]} --update")


if __name__ == "__main__":
    main()
