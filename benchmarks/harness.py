"""Runs libdtr and its peers in turn, and says who is ahead. Used by benchmarks/NAME.py, started by scripts/bench.sh."""

import argparse
import dataclasses
import json
import os
import platform
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from typing import Callable, Optional, Union

import plot

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILD = os.path.join(ROOT, "build", "release")
TIME_LIMIT = 60  # seconds for one run of one program


class Unavailable(Exception):
    """This side cannot do this here; the words say why."""


@dataclasses.dataclass
class Side:
    """One way to do an operation. `run` returns one figure, in the comparison's unit."""

    name: str
    run: Callable[[], float]


class Together:
    """Sides that one run of a program measures at once: each takes its own figure, and who has taken his runs it anew."""

    def __init__(self, run: Callable[[], dict[str, float]]) -> None:
        self._run = run
        self._figures: dict[str, float] = {}

    def side(self, key: str, name: str) -> Side:
        def take() -> float:
            if key not in self._figures:
                self._figures = dict(self._run())
            return self._figures.pop(key)

        return Side(name, take)


@dataclasses.dataclass
class Comparison:
    name: str  # OP/BYTES
    unit: str
    better: str  # "higher" or "lower"
    ours: Side
    peers: list[Side]
    noise: Union[bool, Side] = False  # also the first peer against itself: run once more, or by this


# --- the machine ---


def two_cores() -> tuple[int, int]:
    """Two allowed CPUs that are not threads of one core."""
    allowed = sorted(os.sched_getaffinity(0))
    first = allowed[0]
    path = f"/sys/devices/system/cpu/cpu{first}/topology/thread_siblings_list"
    try:
        with open(path, encoding="ascii") as file:
            siblings = set()
            for part in file.read().strip().split(","):
                low, _, high = part.partition("-")
                siblings.update(range(int(low), int(high or low) + 1))
    except OSError:
        siblings = {first}
    for cpu in allowed[1:]:
        if cpu not in siblings:
            return first, cpu
    raise SystemExit("bench.sh: needs two cores; each side runs on its own")


def busy_seconds() -> float:
    """CPU time that all programs of this machine have used."""
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system, _, _, irq, softirq = map(int, file.readline().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def machine() -> str:
    model = platform.processor() or platform.machine()
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return f"{model}, {os.cpu_count()} CPUs, Linux {platform.release()}"


# --- running programs ---

# More ranks than cores: those that wait give their core away.
MPI_MANY_RANKS = ["--bind-to", "none", "--oversubscribe", "--mca", "mpi_yield_when_idle", "1", "--mca", "btl", "vader,self"]

# Niceness counts only within a session where the kernel groups processes by session, so the session is set as well.
FIRST = ["sh", "-c", 'echo -20 > /proc/self/autogroup; exec nice -n -20 "$@"', "first"]


class Runner:
    """Starts the programs of both sides in the same way: on the same two cores, at the same priority."""

    def __init__(self, urgent: bool) -> None:
        self.cpus = two_cores()
        self._first = FIRST if urgent else []
        self._environment = dict(os.environ)
        if os.geteuid() == 0:
            self._environment.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")

    def pinned(self, cpu: int, command: list[str]) -> list[str]:
        return [*self._first, "taskset", "-c", str(self.cpus[cpu]), *command]

    def start(self, command: list[str], environment: Optional[dict[str, str]] = None) -> subprocess.Popen:
        return subprocess.Popen(
            command,
            env={**self._environment, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def output(self, command: list[str], environment: Optional[dict[str, str]] = None) -> str:
        return finish(self.start(command, environment), command)

    def mpirun(self, options: list[str], command: list[str], under: Optional[list[str]] = None) -> str:
        """Two ranks that wait by spinning, each on its core; the first runs under the program `under`."""
        first = [*(under or []), *command]
        ranks = ["-n", "1", *self.pinned(0, first), ":", "-n", "1", *self.pinned(1, command)]
        spin = ["--bind-to", "none", "--mca", "mpi_yield_when_idle", "0"]
        return self.output(["mpirun", *spin, *options, *ranks])


def finish(process: subprocess.Popen, command: list[str]) -> str:
    try:
        text, _ = process.communicate(timeout=TIME_LIMIT)
    except subprocess.TimeoutExpired:
        stop(process)
        raise Unavailable(f"{command[0]} did not end in {TIME_LIMIT} s") from None
    except BaseException:
        stop(process)
        raise
    if process.returncode != 0:
        said = [l for l in text.splitlines() if l.strip("- ")] or ["no output"]
        raise Unavailable(f"{os.path.basename(command[0])} ended with {process.returncode}: {said[0]}")
    return text


def stop(process: subprocess.Popen) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def figures(text: str) -> dict[str, float]:
    """The line of JSON that our own programs print among whatever libraries say."""
    for line in text.splitlines():
        if line.startswith("{"):
            return json.loads(line)
    raise Unavailable("no result in: " + text.strip()[-200:])


def needs(program: str, package: str) -> str:
    if shutil.which(program) is None:
        raise Unavailable(f"{program} is not installed (package {package}; scripts/bench.sh NAME --install)")
    return program


# --- the sides ---

# What one run is measured by. A rate for what is small, since nanoseconds an operation have too few digits.
LATENCY = ("median_us", "us", "lower")
BANDWIDTH = ("GBps", "GB/s", "higher")
RATE = ("Mops", "Mop/s", "higher")


def iterations(bytes_: int, quick: bool, cost_us: float, most: int = 2_000_000) -> int:
    """As many as take about 0.4 s (quick: 0.1 s) where a byte costs 0.1 ns more than `cost_us` an operation."""
    seconds = 0.1 if quick else 0.4
    return max(20, min(most, int(seconds * 1e6 / (cost_us + bytes_ * 1e-4))))


def dtr(runner: Runner, op: str, size: int, count: int, figure: str, options: list[str]) -> Side:
    def run() -> float:
        path = os.path.join(ROOT, "build", "bench", "dtr_perf.json")
        program = os.path.join(BUILD, "apps", "dtr_perf")
        command = [program, op, "--size", str(size), "--iterations", str(count), "--json", path, *options]
        if os.path.exists(path):
            os.unlink(path)
        runner.mpirun([], command)
        with open(path, encoding="utf-8") as file:
            return json.load(file)[0][figure]

    return Side("libdtr", run)


def openmpi(runner: Runner, op: str, size: int, count: int, figure: str, options: list[str]) -> Side:
    def run() -> float:
        program = os.path.join(BUILD, "benchmarks", "bench_mpi_pair")
        return figures(runner.mpirun(options, [program, op, str(size), str(count)]))[figure]

    return Side("openmpi", run)


def own_program(runner: Runner, name: str, program: str, op: str, size: int, count: int, figure: str) -> Side:
    """memcpy and raw sockets; they place their second process themselves."""

    def run() -> float:
        path = os.path.join(BUILD, "benchmarks", program)
        cpus = [str(cpu) for cpu in runner.cpus]
        return figures(runner.output(runner.pinned(0, [path, op, str(size), str(count), *cpus])))[figure]

    return Side(name, run)


# Columns of ucx_perftest -v -f.
UCX_COLUMN = {"median_us": "50.0_percentile_lat", "GBps": "overall_bw", "Mops": "overall_mr"}
UCX_SCALE = {"median_us": 1.0, "GBps": 2**20 / 1e9, "Mops": 1e-6}


def ucx(runner: Runner, test: list[str], size: int, count: int, figure: str, environment: dict[str, str]) -> Side:
    def run() -> float:
        program = needs("ucx_perftest", "ucx-utils")
        port = free_port()
        server_command = runner.pinned(1, [program, "-p", port])
        server = runner.start(server_command, environment)
        try:
            wait_for_listener(int(port), server)
            warm_up = str(max(2, min(10000, count // 10)))
            measure = ["-t", *test, "-s", str(size), "-n", str(count), "-w", warm_up, "-f", "-v"]
            client = runner.pinned(0, [program, "localhost", "-p", port, *measure])
            lines = runner.output(client, environment).strip().splitlines()
        finally:
            stop(server)
        for names, values in zip(lines, lines[1:]):
            if names.startswith("iterations,"):
                row = dict(zip(names.split(","), values.split(",")))
                return float(row[UCX_COLUMN[figure]]) * UCX_SCALE[figure]
        raise Unavailable("ucx_perftest: no result in: " + " / ".join(lines[-3:]))

    return Side("ucx", run)


# The provider, as the programs of libfabric call it, and what else they need for it: server, client.
FABRIC_SHM = ("shm", ["-s", "127.0.0.1"], ["-s", "127.0.0.1"])
FABRIC_TCP = ("tcp;ofi_rxm", ["-s", "127.0.0.1"], [])


def libfabric(runner: Runner, provider: tuple[str, list[str], list[str]], put: bool, size: int, count: int,
              figure: str) -> Side:
    """put: fi_rma_bw, a stream of writes. Otherwise fi_pingpong: one message under way, and a mean, not a median."""

    def run() -> float:
        name, of_server, of_client = provider
        port = free_port()
        if put:
            program = needs("fi_rma_bw", "fabtests, of libfabric; not in Debian 12")
            test = ["-o", "write"]
            exchange = [f"-E={port}"] if name == "shm" else []  # over that port the two tell each other their names
            of_server, of_client = of_server + exchange, of_client + exchange
        else:
            program = needs("fi_pingpong", "libfabric-bin")
            test, of_server, of_client = ["-e", "rdm"], [], []
        measure = ["-p", name, *test, "-S", str(size), "-I", str(max(count, 200))]
        server = runner.start(runner.pinned(1, [program, *measure, *of_server, "-B", port]))
        try:
            wait_for_listener(int(port), server)
            client = runner.pinned(0, [program, *measure, *of_client, "-P", port, "127.0.0.1"])
            lines = [line.split() for line in runner.output(client).strip().splitlines()]
        finally:
            stop(server)
        for names, values in zip(lines, lines[1:]):
            if names[:1] == ["bytes"]:
                bytes_a_us = float(values[names.index("MB/sec")])  # more digits than its usec/xfer
                return {"median_us": size / bytes_a_us, "GBps": bytes_a_us * 1e-3, "Mops": bytes_a_us / size}[figure]
        raise Unavailable(f"{program}: no result in: " + " / ".join(" ".join(words) for words in lines[-3:]))

    return Side("libfabric", run)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def wait_for_listener(port: int, server: subprocess.Popen) -> None:
    """Looks into the kernel's table: a connection would be taken for the client."""
    wanted = f":{port:04X}"
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and server.poll() is None:
        for table in ("/proc/net/tcp", "/proc/net/tcp6"):
            with open(table, encoding="ascii") as file:
                for line in file:
                    fields = line.split()
                    if fields[1].endswith(wanted) and fields[3] == "0A":
                        return
        time.sleep(0.01)
    raise Unavailable("its server does not listen")


# --- comparing ---


def quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def ratio_of(ours: float, peer: float, better: str) -> float:
    if ours <= 0 or peer <= 0:
        return float("nan")
    return ours / peer if better == "higher" else peer / ours


def row(name: str, ours: list[float], peer: list[float], peer_name: str, comparison: Comparison) -> dict:
    ours_low, ours_middle, ours_high = quartiles(ours)
    peer_low, peer_middle, peer_high = quartiles(peer)
    return {
        "name": name,
        "ours": ours_middle,
        "peer": peer_middle,
        "peer_name": peer_name,
        "ratio": ratio_of(ours_middle, peer_middle, comparison.better),
        "unit": comparison.unit,
        "better": comparison.better,
        "ours_quartiles": [ours_low, ours_high],
        "peer_quartiles": [peer_low, peer_high],
    }


def measure(comparison: Comparison, rounds: int, skipped: Callable[[str], None]) -> list[dict]:
    """Each round runs all sides, every other round backwards, so that a drift hits all alike."""
    again = "again"
    sides = [comparison.ours, *comparison.peers]
    if comparison.noise and comparison.peers:
        second = comparison.noise if isinstance(comparison.noise, Side) else comparison.peers[0]
        sides.append(Side(again, second.run))
    results: dict[str, list[float]] = {side.name: [] for side in sides}
    for turn in range(rounds):
        for side in sides if turn % 2 == 0 else list(reversed(sides)):
            if side.name not in results:
                continue
            try:
                results[side.name].append(side.run())
            except Unavailable as reason:
                skipped(f"{comparison.name}: {side.name}: {reason}")
                del results[side.name]
        if comparison.ours.name not in results:
            return []
    ours = results[comparison.ours.name]
    rows = [
        row(comparison.name, ours, results[peer.name], peer.name, comparison)
        for peer in comparison.peers
        if peer.name in results
    ]
    first = comparison.peers[0].name if comparison.peers else ""
    if again in results and first in results:
        rows.append(row("noise/" + comparison.name, results[again], results[first], first, comparison))
    return rows


# --- saying it ---

HEADER = f"{'name':<24} {'peer':<13} {'libdtr':>10} {'(quartiles)':>19} {'peer':>10} {'(quartiles)':>19} {'unit':<6} {'ratio':>6}"


def number(value: float) -> str:
    return f"{value:.4g}"


def line(row_: dict) -> str:
    def spread(pair: list[float]) -> str:
        return f"{number(pair[0])}-{number(pair[1])}"

    return (
        f"{row_['name']:<24} {row_['peer_name']:<13} {number(row_['ours']):>10} {spread(row_['ours_quartiles']):>19} "
        f"{number(row_['peer']):>10} {spread(row_['peer_quartiles']):>19} {row_['unit']:<6} {row_['ratio']:>6.2f}"
    )


def markdown(rows: list[dict]) -> str:
    lines = ["| name | peer | libdtr | quartiles | peer | quartiles | unit | ratio |", "|---|---|---:|---|---:|---|---|---:|"]
    for r in rows:
        ours, peer = r["ours_quartiles"], r["peer_quartiles"]
        lines.append(
            f"| {r['name']} | {r['peer_name']} | {number(r['ours'])} | {number(ours[0])} to {number(ours[1])} "
            f"| {number(r['peer'])} | {number(peer[0])} to {number(peer[1])} | {r['unit']} | {r['ratio']:.2f} |"
        )
    return "\n".join(lines) + "\n"


TITLES = {"put_lat": "put, one way", "send_lat": "message, one way", "put_bw": "bandwidth of puts and messages"}


class Sweep:
    """The points of a picture: one operation at a range of sizes."""

    def __init__(self, runner: Runner, quick: bool, most: int, options: list[str]) -> None:
        self.made: list[Comparison] = []
        self._runner = runner
        self._quick = quick
        self._most = most
        self._options = options

    def add(self, op, figure, size, cost_us, options, peers) -> None:
        """`peers`: names, and what makes a Side of size, iterations and column."""
        column, unit, better = figure
        count = iterations(size, self._quick, cost_us, most=self._most)
        ours = dtr(self._runner, op, size, count, column, [*self._options, *options])
        sides = [Side(name, make(size, count, column).run) for name, make in peers]
        self.made.append(Comparison(f"{op}/{size}", unit, better, ours, sides))


def picture(path: str, name: str, rows: list[dict]) -> None:
    """Rows called OP/BYTES, a panel for each OP."""
    panels: dict[str, plot.Panel] = {}
    for r in rows:
        op, size = r["name"].split("/")
        panel = panels.setdefault(op, plot.Panel(TITLES[op], r["unit"], {}))
        for side, values, quartiles_ in (("libdtr", r["ours"], r["ours_quartiles"]), (r["peer_name"], r["peer"], r["peer_quartiles"])):
            points = panel.lines.setdefault(side, [])
            if all(point.x != float(size) for point in points):
                points.append(plot.Point(float(size), values, *quartiles_))
    when = time.strftime("%d %B %Y").lstrip("0")
    plot.draw(path, f"{name}: {machine()}, {when}; medians, bars from quartile to quartile", list(panels.values()))


Chooser = Callable[[Runner, bool], tuple[list[Comparison], list[str]]]


def main(name: str, comparisons: Chooser, sweep: Optional[Chooser] = None) -> None:
    """`sweep`: what --sweep measures."""
    parser = argparse.ArgumentParser(prog=f"scripts/bench.sh {name}")
    parser.add_argument("--rounds", type=int, default=5, help="how often each side runs (default 5)")
    parser.add_argument("--quick", action="store_true", help="short runs, for a first look")
    parser.add_argument("--only", default="", help="only names that contain this, or one of these (a,b)")
    parser.add_argument("--urgent", action="store_true", help="both sides at the highest priority: for a machine that others use")
    if sweep:
        parser.add_argument("--sweep", action="store_true", help="a range of sizes and a picture, instead of the table")
    parser.add_argument("--markdown", metavar="FILE", help="write the table there as well")
    options = parser.parse_args()
    if options.urgent and os.geteuid() != 0:
        parser.error("--urgent needs root")

    os.makedirs(os.path.join(ROOT, "build", "bench"), exist_ok=True)
    runner = Runner(options.urgent)
    wanted = [part for part in options.only.split(",") if part]
    sweeping = sweep is not None and options.sweep
    chosen, left_out = (sweep if sweeping else comparisons)(runner, options.quick)
    called = name + "-sweep" if sweeping else name
    if wanted:
        chosen = [c for c in chosen if any(part in c.name for part in wanted)]
    skips: list[str] = []

    def skipped(what: str) -> None:
        if what not in skips:
            skips.append(what)

    for what in left_out:
        skipped(what)
    print(f"{name}: {machine()}; CPUs {runner.cpus[0]} and {runner.cpus[1]}, {options.rounds} rounds", flush=True)
    print(HEADER)
    rows: list[dict] = []
    path = os.path.join(ROOT, "build", "bench", called + ".json")
    begin, busy, own = time.monotonic(), busy_seconds(), own_seconds()
    for comparison in chosen:
        for result in measure(comparison, options.rounds, skipped):
            rows.append(result)
            print(line(result), flush=True)
        with open(path + ".new", "w", encoding="utf-8") as file:  # a long comparison that is stopped leaves what it has
            json.dump(rows, file, indent=1)
        os.replace(path + ".new", path)
    seconds = time.monotonic() - begin
    others = max(0.0, busy_seconds() - busy - (own_seconds() - own)) / max(seconds, 1e-9)
    for what in skips:
        print(f"skipped: {what}")
    print(f"{seconds:.0f} s; meanwhile other programs kept {others:.1f} of {os.cpu_count()} CPUs busy")

    print(f"written: {os.path.relpath(path, ROOT)}")
    if sweeping and rows:
        drawn = os.path.join(ROOT, "build", "bench", name + ".svg")
        picture(drawn, name, rows)
        print(f"written: {os.path.relpath(drawn, ROOT)}")
    if options.markdown:
        with open(options.markdown, "w", encoding="utf-8") as file:
            file.write(markdown(rows))
    if not rows:
        sys.exit("bench.sh: nothing could be compared")
