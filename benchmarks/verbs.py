"""verbs: libdtr against perftest on an RDMA device, and what libdtr itself costs a descriptor.

Without a device of its own this machine runs the first part in one boot of the RDMA VM (scripts/rdma-vm.sh). There the
clock of one program, printed figures and start-up are not to be trusted, so an operation's time is taken from outside:
(wall(4N) - wall(N)) / (operations between), with N so many that they take two seconds.
"""

import functools
import itertools
import json
import os
import re
import subprocess
import sys
import time

import harness
from harness import BUILD, ROOT, Comparison, Side, Unavailable

KIB, MIB = 1 << 10, 1 << 20
JSON_FILE = os.path.join(ROOT, "build", "bench", "verbs.json")
DESCRIPTOR_LIMIT_NS = 150
ROUNDS = 7

# name, bytes, perftest's program, its options, ours, microseconds an operation to begin the search for N with.
# Ping-pong: an iteration is two operations, on both sides.
ROWS = [
    ("put_lat", 8, "ib_write_lat", [], ["put_lat"], 15),
    ("put_bw", 64 * KIB, "ib_write_bw", [], ["put_bw"], 700),
    ("put_bw", MIB, "ib_write_bw", [], ["put_bw"], 11000),
    ("get_bw", 64 * KIB, "ib_read_bw", [], ["get_bw"], 700),
    ("get_bw", MIB, "ib_read_bw", [], ["get_bw"], 11000),
    ("send_lat", 8, "ib_send_lat", [], ["send_lat"], 20),
    ("atomic_lat", 8, "ib_atomic_lat", [], ["atomic_lat", "--atomics", "device"], 20),
]
PING_PONG = ("put_lat", "send_lat")


def devices() -> list[str]:
    try:
        return sorted(os.listdir("/sys/class/infiniband"))
    except FileNotFoundError:
        return []


# --- on the machine with the device ---


def per_operation(seconds_of, guess_us: float, quick: bool):
    """`seconds_of(iterations)` gives wall-clock seconds and the operations that ran. Microseconds an operation."""
    wanted = 0.3 if quick else 2.2
    found: list[int] = []

    def between(iterations: int) -> float:
        short, short_operations = seconds_of(iterations)
        long, long_operations = seconds_of(4 * iterations)
        return (long - short) * 1e6 / (long_operations - short_operations)

    def run() -> float:
        if not found:
            trial = max(20, int(wanted * 1e6 / guess_us / 8))
            cost = max(between(trial), guess_us / 10)
            found.append(max(20, int(wanted * 1e6 / cost)))
        return between(found[0])

    return run


def dtr_perf(operation: list[str], size: int, iterations: int) -> list[str]:
    program = os.path.join(BUILD, "apps", "dtr_perf")
    return [program, *operation, "--size", str(size), "--iterations", str(iterations)]


def ours(runner: harness.Runner, name: str, size: int, operation: list[str], guess_us: float, quick: bool) -> Side:
    rounds = 2 if name in PING_PONG else 1

    def seconds_of(iterations: int) -> tuple[float, int]:
        path = os.path.join(ROOT, "build", "bench", "dtr_perf.json")
        command = [*dtr_perf(operation, size, iterations), "--json", path]
        if name.endswith("_bw"):
            command += ["--batch", "1"]
        start = time.monotonic()
        runner.mpirun([], command)
        seconds = time.monotonic() - start
        with open(path, encoding="utf-8") as file:
            row = json.load(file)[0]
        if row["transport"] != "verbs":
            raise Unavailable(f"dtr_perf went over {row['transport']}")
        return seconds, rounds * row["operations"]

    return Side("libdtr", per_operation(seconds_of, guess_us, quick))


def perftest(runner: harness.Runner, name: str, size: int, program: str, options: list[str], guess_us: float,
             quick: bool) -> Side:
    rounds = 2 if name in PING_PONG else 1

    def seconds_of(iterations: int) -> tuple[float, int]:
        return run_perftest(runner, program, name, size, iterations, options), rounds * iterations

    return Side("perftest", per_operation(seconds_of, guess_us, quick))


PORTS = itertools.count(18600)


def run_perftest(runner: harness.Runner, program: str, name: str, size: int, iterations: int, options: list[str],
                 under: tuple[str, ...] = ()) -> float:
    """Seconds of its client, which runs under the program `under`."""
    harness.needs(program, "perftest")
    port = next(PORTS)
    length = [] if name == "atomic_lat" else ["-s", str(size)]
    gid = ["-x", os.environ.get("BENCH_GID_INDEX", "1")]
    command = [program, "-d", devices()[0], *gid, "-F", "-p", str(port), *length, "-n", str(iterations), *options]
    address = os.environ.get("RDMA_VM_ADDRESSES", "127.0.0.1").split()[0]
    server = runner.start(runner.pinned(1, command))
    try:
        harness.wait_for_listener(port, server)
        start = time.monotonic()
        runner.output(runner.pinned(0, [*under, *command, address]))
        seconds = time.monotonic() - start
        server.communicate(timeout=30)
    finally:
        harness.stop(server)
    return seconds


# --- instructions, where the clock says little ---

COUNTED = (1000, 4000)  # operations of a short and a long run
# What MPI does at start and end is no part of an operation.
NOT_COUNTED = ("libmpi", "libopen-", "pmix", "libevent", "libhwloc", "mca_", "ld-linux")


def executed(path: str) -> dict[tuple[str, str], int]:
    """How often each instruction ran, by library and address, from callgrind's file."""
    counts: dict[tuple[str, str], int] = {}
    library, of_a_call = "", False
    with open(path, encoding="utf-8", errors="replace") as file:
        for text in file:
            if text.startswith("ob="):
                library = text[3:].strip()
            elif text.startswith("calls="):
                of_a_call = True  # the next line is what the callee cost
            elif text.startswith("0x"):
                fields = text.split()
                if not of_a_call:
                    place = (library, fields[0])
                    counts[place] = counts.get(place, 0) + int(fields[-1])
                of_a_call = False
    return counts


def instructions_of(run) -> float:
    """User-space instructions of an operation. Each counts once at most, however often a wait repeats it: the wait's
    length is the machine's. `run(iterations, under)` runs that many with the measured side under `under`."""
    out = os.path.join(ROOT, "build", "bench", "operation.callgrind")
    harness.needs("valgrind", "valgrind")
    under = ("valgrind", "--tool=callgrind", "--dump-instr=yes", "--compress-pos=no", "--compress-strings=no",
             f"--callgrind-out-file={out}")
    counts = []
    for iterations in COUNTED:
        run(iterations, under)
        counts.append(executed(out))
        os.unlink(out)
    total = 0.0
    for place, count in counts[1].items():
        if not any(part in place[0] for part in NOT_COUNTED):
            total += min(1.0, max(0.0, (count - counts[0].get(place, 0)) / (COUNTED[1] - COUNTED[0])))
    return total


def counted(runner: harness.Runner) -> list[Comparison]:
    made = []
    for name, size, program, options, operation, _ in ROWS:
        if name not in PING_PONG:
            continue

        def run_ours(iterations: int, under: tuple[str, ...], operation=operation, size=size) -> None:
            runner.mpirun([], dtr_perf(operation, size, iterations), list(under))

        def run_theirs(iterations: int, under: tuple[str, ...], name=name, size=size, program=program,
                       options=options) -> None:
            run_perftest(runner, program, name, size, iterations, options, under)

        sides = [Side(who, functools.cache(functools.partial(instructions_of, run)))
                 for who, run in (("libdtr", run_ours), ("perftest", run_theirs))]
        made.append(Comparison(f"instructions/{name}/{size}", "1", "lower", sides[0], [sides[1]]))
    return made


def as_bandwidth(side: Side, size: int) -> Side:
    return Side(side.name, lambda: size / side.run() * 1e-3)


def comparisons(runner: harness.Runner, quick: bool) -> tuple[list[Comparison], list[str]]:
    harness.TIME_LIMIT = 300
    made = []
    for name, size, program, options, operation, guess_us in ROWS:
        sides = [ours(runner, name, size, operation, guess_us, quick),
                 perftest(runner, name, size, program, options, guess_us, quick)]
        unit, better = "us", "lower"
        if name.endswith("_bw"):
            sides = [as_bandwidth(side, size) for side in sides]
            unit, better = "GB/s", "higher"
        made.append(Comparison(f"{name}/{size}", unit, better, sides[0], [sides[1]], noise=True))
    return made + counted(runner), []


# --- what libdtr itself costs, anywhere ---


def descriptor_rows(rounds: int) -> list[dict]:
    """ns and instructions of a put from Channel::post to the doorbell, on a software NIC that executes nothing."""
    program = os.path.join(BUILD, "benchmarks", "bench_verbs_post")
    rows = []
    for size, batch in ((8, 64), (4096, 64), (8, 1)):
        measured = [harness.figures(subprocess.run([program, str(size), str(batch), "2000"], check=True, text=True,
                                                   capture_output=True).stdout)["post_ns"] for _ in range(rounds)]
        limit = Comparison(f"post_ns/{size}x{batch}", "ns", "lower", Side("libdtr", float), [])
        rows.append(harness.row(limit.name, measured, [float(DESCRIPTOR_LIMIT_NS)], "limit", limit))
        counted = instructions(program, size, batch)
        if counted is not None:
            rows.append({"name": f"post_instructions/{size}x{batch}", "ours": counted, "peer": None, "peer_name": None,
                         "ratio": None, "unit": "instructions", "better": "lower"})
    return rows


def instructions(program: str, size: int, batch: int):
    """User-space instructions of Link::post a descriptor, without those of the NIC; None without valgrind."""
    rounds = 100
    out = os.path.join(ROOT, "build", "bench", "verbs_post.callgrind")
    count = "dtr::v0::fabric::verbs::Link::post(*"
    try:
        harness.needs("callgrind_annotate", "valgrind")
        subprocess.run(["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", f"--toggle-collect={count}",
                        program, str(size), str(batch), str(rounds)], check=True, capture_output=True)
        text = subprocess.run(["callgrind_annotate", "--inclusive=yes", out], check=True, text=True,
                              capture_output=True).stdout
    except Unavailable as reason:
        print(f"skipped: post_instructions: {reason}")
        return None
    finally:
        if os.path.exists(out):
            os.unlink(out)

    def of(function: str) -> int:
        return max(int(found.replace(",", "")) for found in re.findall(rf"^ *([\d,]+) .*{function}", text, re.MULTILINE))

    batches = rounds + rounds // 10 + 1
    return (of("PROGRAM TOTALS") - of(r"TimedNic::post_send\(")) / (batches * batch)


# --- both ---


def main() -> None:
    if "--rounds" not in sys.argv:
        sys.argv += ["--rounds", str(ROUNDS)]
    # Like perftest's, the calling thread does everything itself.
    os.environ.update(DTR_TRANSPORT="verbs", DTR_PROGRESS="inline")
    if "RDMA_VM_HOST" in os.environ:
        harness.main("verbs", comparisons)
        return
    os.makedirs(os.path.dirname(JSON_FILE), exist_ok=True)
    only = sys.argv[sys.argv.index("--only") + 1] if "--only" in sys.argv else ""
    if not only.startswith("post"):
        here = [sys.executable, os.path.abspath(__file__), *sys.argv[1:]]
        if devices():
            harness.main("verbs", comparisons)
        else:
            vm = [os.path.join(ROOT, "scripts", "rdma-vm.sh"), "--timeout", "7200", "--writable",
                  os.path.dirname(JSON_FILE), "--"]
            if subprocess.run([*vm, *here], check=False).returncode != 0:
                sys.exit("bench.sh: no result from the RDMA VM")
    print("to the doorbell, on this machine:")
    rows = descriptor_rows(int(sys.argv[sys.argv.index("--rounds") + 1]))
    for row in rows:
        print(harness.line(row) if row["peer"] else f"{row['name']:<24} {row['ours']:.0f} {row['unit']}")
    before = []
    if os.path.exists(JSON_FILE):
        with open(JSON_FILE, encoding="utf-8") as file:
            before = [row for row in json.load(file) if not row["name"].startswith("post_")]
    with open(JSON_FILE + ".new", "w", encoding="utf-8") as file:
        json.dump(before + rows, file, indent=1)
    os.replace(JSON_FILE + ".new", JSON_FILE)


if __name__ == "__main__":
    main()
