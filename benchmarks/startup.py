"""Start-up: Runtime::init beside MPI_Init, and the memory that it takes for each peer, at 2 to 64 ranks."""

import os

import harness
from harness import BUILD, MPI_MANY_RANKS, Comparison, Side, Together

RANKS = (2, 4, 8, 16, 32, 64)
INIT_LIMIT_MS = {2: 20.0, 16: 60.0}
PEER_LIMIT_KIB = 4.0
LEAF = ("leaf_kib", "leaf_shared_kib")  # what the last rank holds: it is connected with one rank, whatever the world


def measured(runner: harness.Runner, ranks: int) -> dict[str, float]:
    program = os.path.join(BUILD, "benchmarks", "bench_startup")
    return harness.figures(runner.output(["mpirun", *MPI_MANY_RANKS, "-n", str(ranks), program]))


def comparisons(runner: harness.Runner, quick: bool) -> tuple[list[Comparison], list[str]]:
    harness.TIME_LIMIT = 300
    made = []
    counts = RANKS[:4] if quick else RANKS
    for ranks in counts:
        runs = Together(lambda ranks=ranks: measured(runner, ranks))
        peers = [runs.side("mpi_ms", "MPI_Init")]
        if ranks in INIT_LIMIT_MS:
            peers.append(Side("limit", lambda ranks=ranks: INIT_LIMIT_MS[ranks]))
        made.append(Comparison(f"init/np{ranks}", "ms", "lower", runs.side("init_ms", "libdtr"), peers))
    few = counts[1]
    for ranks in counts[3:]:

        def a_peer(ranks: int = ranks) -> float:
            many, some = measured(runner, ranks), measured(runner, few)
            return max(0.01, sum(many[part] - some[part] for part in LEAF) / (ranks - few))

        made.append(Comparison(f"memory_a_peer/np{ranks}", "KiB", "lower", Side("libdtr", a_peer),
                               [Side("limit", lambda: PEER_LIMIT_KIB)]))
    return made, []


if __name__ == "__main__":
    harness.main("startup", comparisons)
