"""All to all: more ranks than cores exchange blocks, libdtr against Open MPI, turn and turn about in one program."""

import os

import harness
from harness import BUILD, MPI_MANY_RANKS, Comparison, Together

RANKS = (2, 4, 8)
SIZES = (8, 64 << 10)


def comparisons(runner: harness.Runner, quick: bool) -> tuple[list[Comparison], list[str]]:
    program = os.path.join(BUILD, "benchmarks", "bench_alltoall")
    made = []
    for ranks in RANKS:
        for size in SIZES:
            command = ["mpirun", *MPI_MANY_RANKS, "-n", str(ranks), program, str(size), "28" if quick else "140"]
            runs = Together(lambda command=command: harness.figures(runner.output(command)))
            peers = [runs.side("alltoall_us", "MPI_Alltoall"), runs.side("messages_us", "MPI_Isend")]
            made.append(Comparison(f"alltoall/{size}/np{ranks}", "us", "lower", runs.side("ours_us", "libdtr"), peers,
                                   noise=runs.side("again_us", "again")))
    return made, []


if __name__ == "__main__":
    harness.main("alltoall", comparisons)
