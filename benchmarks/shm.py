"""Shared memory: libdtr against UCX, Open MPI and memcpy, two processes on two cores."""

import harness
from harness import BANDWIDTH, LATENCY, RATE, Comparison

KIB, MIB = 1 << 10, 1 << 20
UCX = {"UCX_TLS": "posix,cma,self"}
OPENMPI = ["--mca", "pml", "ob1", "--mca", "btl", "vader,self"]
SEND_LIMIT = 4096  # fabric.eager_bytes: a larger message is no single `send`


def comparisons(runner: harness.Runner, quick: bool) -> tuple[list[Comparison], list[str]]:
    made: list[Comparison] = []

    def add(name, figure, size, cost_us, op, batch, ucx_test, mpi_op, memcpy=False, noise=True):
        column, unit, better = figure
        count = harness.iterations(size, quick, cost_us)
        options = [] if batch is None else ["--batch", str(batch)]
        peers = [
            harness.ucx(runner, ucx_test, size, count, column, UCX),
            harness.openmpi(runner, mpi_op, size, count, column, OPENMPI),
        ]
        if memcpy:
            peers.append(harness.own_program(runner, "memcpy", "bench_memcpy", mpi_op, size, count, column))
        ours = harness.dtr(runner, op, size, count, column, options)
        made.append(Comparison(f"{name}/{size}", unit, better, ours, peers, noise))

    add("put_lat", LATENCY, 8, 0.3, "put_lat", None, ["ucp_put_lat"], "put_lat")
    add("put_bw", RATE, 8, 0.1, "put_bw", 1, ["ucp_put_bw"], "put_bw")
    add("put_batch", RATE, 8, 0.1, "put_bw", 64, ["ucp_put_bw"], "put_bw", noise=False)
    for size in (64 * KIB, MIB, 16 * MIB):
        add("put_bw", BANDWIDTH, size, 0.3, "put_bw", 1, ["ucp_put_bw"], "put_bw", memcpy=True)
    add("get_lat", RATE, 8, 0.1, "get_lat", None, ["ucp_get", "-O", "1"], "get_lat")
    add("get_bw", RATE, 8, 0.1, "get_bw", 1, ["ucp_get"], "get_bw")
    for size in (64 * KIB, MIB, 16 * MIB):
        add("get_bw", BANDWIDTH, size, 0.3, "get_bw", 1, ["ucp_get"], "get_bw", memcpy=True)
    add("send_lat", LATENCY, 8, 0.6, "send_lat", None, ["tag_lat"], "send_lat")
    add("send_lat", LATENCY, 1024, 1.0, "send_lat", None, ["tag_lat"], "send_lat")
    add("send_bw", RATE, 8, 0.2, "send_bw", 64, ["tag_bw"], "send_bw")
    add("send_bw", BANDWIDTH, 4096, 1.0, "send_bw", 64, ["tag_bw"], "send_bw")
    left_out = [
        f"send_bw/{size}: libdtr's send takes at most {SEND_LIMIT} bytes (fabric.eager_bytes)"
        for size in (64 * KIB, MIB, 16 * MIB)
    ]
    return made, left_out


if __name__ == "__main__":
    harness.main("shm", comparisons)
