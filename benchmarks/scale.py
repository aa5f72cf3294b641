"""What grows with the job: simulated worlds of 100 to 10,000 ranks, tcp with 1,000 peers, and a model fitted to real ones."""

import itertools
import math
import os
import statistics

import harness
import startup
from harness import BUILD, Comparison, Side, Together

WORLDS = (100, 1000, 10000)
USED = 64
TCP_PEERS = (10, 100, 1000)
ACTIVE = 4


def simulated(runner: harness.Runner, ranks: int) -> dict[str, float]:
    program = os.path.join(BUILD, "benchmarks", "bench_scale")
    found = harness.figures(runner.output(runner.pinned(0, [program, "world", str(ranks), str(USED)])))
    found["init_a_peer_us"] = found["init_us"] / ranks
    return found


def peers_by_tcp(runner: harness.Runner, peers: int) -> dict[str, float]:
    program = os.path.join(BUILD, "benchmarks", "bench_scale")
    both = f"{runner.cpus[0]},{runner.cpus[1]}"
    return harness.figures(runner.output(["taskset", "-c", both, program, "tcp", str(peers), str(ACTIVE)]))


def comparisons(runner: harness.Runner, quick: bool) -> tuple[list[Comparison], list[str]]:
    harness.TIME_LIMIT = 120
    made = []
    few = WORLDS[0]
    for ranks in WORLDS[1:]:
        runs = Together(lambda ranks=ranks: simulated(runner, ranks))
        small = Together(lambda: simulated(runner, few))

        def versus_few(name: str, key: str, unit: str) -> Comparison:
            return Comparison(f"{name}/{ranks}", unit, "lower", runs.side(key, "libdtr"),
                              [small.side(key, f"{few} ranks")])

        made.append(versus_few("init_a_peer", "init_a_peer_us", "us"))
        made.append(versus_few("connect", "connect_us", "us"))
        made.append(versus_few("message", "message_ns", "ns"))
        made.append(versus_few("look", "used_look_ns", "ns"))
        made.append(versus_few("look_waiting", "waiting_look_ns", "ns"))

        def a_peer(ranks: int = ranks) -> float:
            return (simulated(runner, ranks)["init_kib"] - simulated(runner, few)["init_kib"]) / (ranks - few)

        made.append(Comparison(f"memory_a_peer/{ranks}", "KiB", "lower", Side("libdtr", a_peer),
                               [Side("limit", lambda: startup.PEER_LIMIT_KIB)]))
    for peers in TCP_PEERS[:2] if quick else TCP_PEERS:
        runs = Together(lambda peers=peers: peers_by_tcp(runner, peers))
        for name, key in (("tcp_few_active", "half_round_us"), ("tcp_all_active", "work_us")):
            made.append(Comparison(f"{name}/{peers}", "us", "lower", runs.side(key, "libdtr"),
                                   [runs.side("one_" + key, "1 peer")]))
    return made, []


# --- the model ---

TERMS = {"1": lambda n: 1.0, "log2 N": math.log2, "N": float}


def solve(rows: list[list[float]], values: list[float]) -> list[float]:
    """Least squares, by the normal equations."""
    size = len(rows[0])
    matrix = [[sum(r[i] * r[j] for r in rows) for j in range(size)] + [sum(r[i] * v for r, v in zip(rows, values))]
              for i in range(size)]
    for i in range(size):
        pivot = max(range(i, size), key=lambda k: abs(matrix[k][i]))
        matrix[i], matrix[pivot] = matrix[pivot], matrix[i]
        for k in range(size):
            if k != i and matrix[i][i] != 0:
                factor = matrix[k][i] / matrix[i][i]
                matrix[k] = [a - factor * b for a, b in zip(matrix[k], matrix[i])]
    return [matrix[i][size] / matrix[i][i] for i in range(size)]


def fit(points: dict[int, float]) -> tuple[dict[str, float], float]:
    """The terms that fit best with no negative cost, relative errors weighing alike; and the largest relative error."""
    best: tuple[float, dict[str, float], float] = (math.inf, {}, 0.0)
    for count in (1, 2, 3):
        for names in itertools.combinations(TERMS, count):
            rows = [[TERMS[name](n) / value for name in names] for n, value in points.items()]
            costs = solve(rows, [1.0] * len(rows))
            if min(costs) < 0:
                continue
            errors = [sum(c * part for c, part in zip(costs, row)) - 1 for row in rows]
            squares = sum(e * e for e in errors)
            if squares < 0.9 * best[0]:  # another term has to be worth it
                best = (squares, dict(zip(names, costs)), max(abs(e) for e in errors))
    return best[1], best[2]


def model(runner: harness.Runner, rounds: int) -> None:
    print(f"\nfits to real jobs of {startup.RANKS[0]} to {startup.RANKS[-1]} ranks on this machine, medians of {rounds}:")
    runs = {n: [startup.measured(runner, n) for _ in range(rounds)] for n in startup.RANKS}
    for key, unit in (("mpi_ms", "ms"), ("init_ms", "ms"), ("finalize_ms", "ms"), ("threads", ""), ("leaf_kib", "KiB"),
                      ("leaf_shared_kib", "KiB"), ("top_kib", "KiB"), ("top_shared_kib", "KiB")):
        points = {n: max(0.001, statistics.median(run[key] for run in of_n)) for n, of_n in runs.items()}
        costs, error = fit(points)
        text = " + ".join(f"{cost:.4g}" + ("" if name == "1" else f" {name}") for name, cost in costs.items())
        at = ", ".join(f"{n}: {value:.4g}" for n, value in points.items())
        print(f"  {key:<16} {text} {unit} (largest error {100 * error:.0f} %; {at})")


if __name__ == "__main__":
    harness.main("scale", comparisons)
    model(harness.Runner(False), 3)
