"""Gradients: push_pull against MPI_Allreduce of the same workers, both turn and turn about in one program."""

import os
import statistics

import harness
from harness import BUILD, MPI_MANY_RANKS, Comparison, Together

MIB = 1 << 20
SIZES = (1 * MIB, 16 * MIB, 64 * MIB)
WORKERS = (2, 4, 8)


class BestShape:
    """Runs the program in the shape (ranks, options) in which libdtr was fastest in three trials each."""

    def __init__(self, runner: harness.Runner, command: list[str], shapes: list[tuple[int, list[str]]]) -> None:
        self._runner = runner
        self._command = command
        self._shapes = shapes

    def _run(self, shape: tuple[int, list[str]]) -> dict[str, float]:
        ranks, options = shape
        command = ["mpirun", *MPI_MANY_RANKS, "-n", str(ranks), *self._command, *options]
        return harness.figures(self._runner.output(command))

    def __call__(self) -> dict[str, float]:
        if len(self._shapes) > 1:
            cost = {shape[0]: statistics.median(self._run(shape)["ours_us"] for _ in range(3)) for shape in self._shapes}
            self._shapes = [min(self._shapes, key=lambda shape: cost[shape[0]])]
        return self._run(self._shapes[0])


def comparisons(runner: harness.Runner, quick: bool) -> tuple[list[Comparison], list[str]]:
    harness.TIME_LIMIT = 600
    made = []
    for managed in (False, True):
        for size in SIZES:
            rounds = max(5, min(100, (16 if quick else 64) * MIB // size))
            command = [os.path.join(BUILD, "benchmarks", "bench_gradients"), str(size), str(rounds)]
            if managed:
                command.append("--managed")
            for workers in WORKERS:
                ways = {"separate": [(workers + servers, ["--servers", str(servers)]) for servers in (1, workers)],
                        "colocated": [(workers, ["--colocated"])]}
                for way, shapes in ways.items():
                    runs = Together(BestShape(runner, command, shapes))
                    made.append(Comparison(f"{'managed-' if managed else ''}{way}/{size}/np{workers}", "us", "lower",
                                           runs.side("ours_us", "libdtr"), [runs.side("peer_us", "MPI_Allreduce")],
                                           noise=runs.side("again_us", "again")))
    return made, []


if __name__ == "__main__":
    harness.main("gradients", comparisons)
