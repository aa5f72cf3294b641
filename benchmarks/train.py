"""Training: dtr_train whose ranks are worker and server at once, against the same program with MPI_Allreduce."""

import json
import os

import harness
from harness import BUILD, MPI_MANY_RANKS, ROOT, Comparison, Side, Unavailable

BATCH = 64
DIGESTS: dict[int, str] = {}  # of the parameters, by ranks


def same_result(ranks: int, digest: str) -> None:
    """For up to two ranks: with more, MPI may add in another order."""
    if ranks <= 2 and DIGESTS.setdefault(ranks, digest) != digest:
        raise SystemExit(f"bench.sh: {ranks} ranks came to {digest} and {DIGESTS[ranks]}")


def comparisons(runner: harness.Runner, quick: bool) -> tuple[list[Comparison], list[str]]:
    harness.TIME_LIMIT = 300
    steps = 200 if quick else 800

    def ours(ranks: int) -> float:
        path = os.path.join(ROOT, "build", "bench", "dtr_train.json")
        runner.output(["mpirun", *MPI_MANY_RANKS, "-n", str(ranks), os.path.join(BUILD, "apps", "dtr_train"), "--servers",
                       "colocated", "--max-steps", str(steps), "--batch", str(BATCH), "--json", path])
        with open(path, encoding="utf-8") as file:
            result = json.load(file)
        if result["transport"] != "shm":
            raise Unavailable(f"dtr_train went over {result['transport']}")
        same_result(ranks, result["parameter_digest"])
        return result["samples_per_second"]

    def theirs(ranks: int) -> float:
        program = os.path.join(BUILD, "benchmarks", "bench_train_mpi")
        result = harness.figures(runner.output(["mpirun", *MPI_MANY_RANKS, "-n", str(ranks), program, str(steps), str(BATCH)]))
        same_result(ranks, result["digest"])
        return result["samples_per_second"]

    made = [Comparison(f"train/np{ranks}", "1/s", "higher", Side("libdtr", lambda ranks=ranks: ours(ranks)),
                       [Side("MPI_Allreduce", lambda ranks=ranks: theirs(ranks))], noise=True) for ranks in (2, 4)]
    return made, []


if __name__ == "__main__":
    harness.main("train", comparisons)
