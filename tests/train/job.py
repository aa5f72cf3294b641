"""Starts dtr_train under mpirun, finds its ranks, and ends it within a bound whatever happens. For the tests here."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
SCALE = float(os.environ.get("DTR_TEST_TIME_SCALE", "1"))
MARK = "DTR_TEST_TRAIN_RUN"  # every process of a run carries it in its environment


def crowding():
    """How many times longer than alone a process may take here now: the load for each core, from 1 to 4."""
    return min(max(os.getloadavg()[0] / len(os.sched_getaffinity(0)), 1.0), 4.0)


def scaled(seconds):
    """A bound on a hang or a detection, stretched on slow or busy machines."""
    return seconds * SCALE * crowding()


def mpi_environment():
    environment = dict(os.environ)
    environment.update(
        OMPI_MCA_rmaps_base_oversubscribe="1",
        OMPI_MCA_hwloc_base_binding_policy="none",
        OMPI_MCA_mpi_yield_when_idle="1",
    )
    if os.geteuid() == 0:
        environment.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    for name in [name for name in environment if name.startswith("DTR_") and not name.startswith("DTR_TEST_")]:
        del environment[name]  # the tests say themselves what they want
    return environment


class Failure(Exception):
    """What a test found wrong."""


def check(condition, words):
    if not condition:
        raise Failure(words)


def wait_until(condition, seconds, what):
    """Polls until condition() is true, and returns that value."""
    deadline = time.monotonic() + scaled(seconds)
    while True:
        value = condition()
        if value:
            return value
        check(time.monotonic() < deadline, f"after {scaled(seconds):.0f} s still no {what}")
        time.sleep(0.005)


class Job:
    """One launch. `settings`: environment of all ranks; `rank_settings`: of single ranks, {rank: {name: value}}.

    judged=True runs each rank beside a shell of its own that writes down how it ended, under --enable-recovery, so that
    survivors of a death live on.
    """

    def __init__(self, program, ranks, *arguments, settings=None, rank_settings=None, judged=False):
        self.ranks = ranks
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="dtr-train-"))
        self.tag = f"{MARK}={self.folder.name}"
        environment = mpi_environment()
        environment.update({MARK: self.folder.name, "OMPI_MCA_orte_tmpdir_base": str(self.folder)})
        # Open MPI's own shared memory, where a rank that is killed cannot leave it behind for good.
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else self.folder
        self.shared = pathlib.Path(tempfile.mkdtemp(prefix="dtr-train-", dir=memory))
        environment["OMPI_MCA_btl_vader_backing_directory"] = str(self.shared)
        environment.update({name: str(value) for name, value in (settings or {}).items()})
        command = ["mpirun"]
        if judged:
            command += ["--enable-recovery"]
        for rank in range(ranks):  # one application context each, so that settings may differ
            command += [":"] if rank > 0 else []
            command += ["-n", "1"]
            for name, value in (rank_settings or {}).get(rank, {}).items():
                command += ["-x", f"{name}={value}"]
            command += [str(HERE / "rank.sh"), str(self.folder)] if judged else []
            command += [str(program), *map(str, arguments)]
        self.log = open(self.folder / "log", "w+b")
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT
        )

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is not None:
            self.describe()
        if self.process.poll() is None:
            self.process.kill()
        for process in self.processes():
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self.shared, ignore_errors=True)

    def describe(self):
        """Prints what is known of a run that went wrong."""
        for path in sorted(self.folder.iterdir()):
            if path.is_file() and path.stat().st_size > 0:
                print(f"--- {path.name}\n{path.read_text(errors='replace').rstrip()}", flush=True)
        for process in self.processes():
            try:
                words = pathlib.Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
                name = pathlib.Path(f"/proc/{process}/comm").read_text().strip()
                print(f"--- process {process} ({name}) is in state {words[0]}", flush=True)
            except OSError:
                pass

    def processes(self):
        """Everything of this run that is still there, mpirun included."""
        found = []
        for entry in pathlib.Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                if self.tag.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                pass  # gone meanwhile, or somebody else's
        return found

    def process_of(self, rank):
        """The process of a rank, or None if it is not there (yet, or any more)."""
        wanted = f"OMPI_COMM_WORLD_RANK={rank}".encode()
        for process in self.processes():
            try:
                if wanted in pathlib.Path(f"/proc/{process}/environ").read_bytes().split(b"\0"):
                    return process
            except OSError:
                pass
        return None

    def text(self):
        self.log.flush()
        return (self.folder / "log").read_text(errors="replace")

    def wait(self, seconds):
        """mpirun's exit code; a Failure if it takes longer."""
        try:
            return self.process.wait(scaled(seconds))
        except subprocess.TimeoutExpired:
            raise Failure(f"still running after {scaled(seconds):.0f} s:\n{self.text()}") from None

    # --- judged jobs ---

    def written(self, kind, rank):
        path = self.folder / f"{kind}.{rank}"
        return path.read_text(errors="replace") if path.exists() else None

    def start_of(self, rank, seconds=30):
        """[process of the shell, process of the program]"""
        return [int(word) for word in wait_until(lambda: self.written("pid", rank), seconds, f"rank {rank}").split()]

    def kill_rank(self, rank):
        """SIGKILL, for the shell first, so that mpirun sees a rank that was killed. Returns when (time.time())."""
        shell, program = self.start_of(rank)
        os.kill(shell, signal.SIGKILL)
        os.kill(program, signal.SIGKILL)
        return time.time()

    def verdict_of(self, rank, seconds):
        """(exit code, what it wrote to stderr, when it ended) of a rank that must end by itself."""
        code = wait_until(lambda: self.written("code", rank), seconds, f"end of rank {rank}")
        return int(code), self.written("err", rank), (self.folder / f"code.{rank}").stat().st_mtime


def train(program, ranks, *arguments, seconds=60, **more):
    """Runs to a good end and returns the JSON."""
    with tempfile.TemporaryDirectory(prefix="dtr-train-") as folder:
        result = pathlib.Path(folder) / "result.json"
        with Job(program, ranks, *arguments, "--json", result, **more) as job:
            code = job.wait(seconds)
            check(code == 0, f"{ranks} ranks with {arguments}: exit code {code}\n{job.text()}")
            words = json.loads(result.read_text())
            words["log"] = job.text()
            return words


def saved_steps(folder):
    """Steps whose folder has its final name."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return sorted(int(name[5:]) for name in names if re.fullmatch(r"step_\d+", name))


def run_cases(cases):
    """Runs functions one after the other, says how each went, and ends the process."""
    wanted = sys.argv[2:]
    bad = 0
    for case in cases:
        if wanted and case.__name__ not in wanted:
            continue
        started = time.monotonic()
        try:
            case()
            outcome = "ok"
        except Failure as failure:
            bad += 1
            outcome = f"FAILED: {failure}"
        print(f"{case.__name__} ({time.monotonic() - started:.1f} s): {outcome}", flush=True)
    sys.exit(1 if bad else 0)
