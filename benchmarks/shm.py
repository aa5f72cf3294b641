"""Shared memory: libdtr against UCX, Open MPI and memcpy, two processes on two cores."""

import harness
from harness import BANDWIDTH, LATENCY, RATE, Comparison

KIB, MIB = 1 << 10, 1 << 20
UCX = {"UCX_TLS": "posix,cma,self"}
OPENMPI = ["--mca", "pml", "ob1", "--mca", "btl", "vader,self"]


def comparisons(runner: harness.Runner, quick: bool) -> tuple[list[Comparison], list[str]]:
    made: list[Comparison] = []

    def add(name, figure, size, cost_us, op, batch, ucx_test, mpi_op, memcpy=False, noise=True, managed=False):
        column, unit, better = figure
        count = harness.iterations(size, quick, cost_us)
        options = [] if batch is None else ["--batch", str(batch)]
        if managed:
            options.append("--managed")
        peers = [
            harness.ucx(runner, ucx_test, size, count, column, UCX),
            harness.openmpi(runner, mpi_op, size, count, column, OPENMPI),
        ]
        if name == "send_lat":
            peers.append(harness.libfabric(runner, harness.FABRIC_SHM, False, size, count, column))
        if name == "put_bw" and size >= 64 * KIB:
            peers.append(harness.libfabric(runner, harness.FABRIC_SHM, True, size, count // 4, column))
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
    # From memory of malloc into the receiver's own, on all sides.
    add("msg_lat", LATENCY, 8, 0.6, "msg_lat", None, ["tag_lat"], "send_lat")
    add("msg_bw", RATE, 8, 0.2, "msg_bw", None, ["tag_bw"], "send_bw")
    for size in (64 * KIB, MIB, 16 * MIB):
        add("send_bw", BANDWIDTH, size, 0.3, "msg_bw", None, ["tag_bw"], "send_bw")
        add("msg_lat", LATENCY, size, 0.6, "msg_lat", None, ["tag_lat"], "send_lat", noise=False)
        # For information: libdtr's from memory of its pool.
        add("pool_bw", BANDWIDTH, size, 0.3, "msg_bw", None, ["tag_bw"], "send_bw", noise=False, managed=True)
    return made, []


def sweep(runner: harness.Runner, quick: bool) -> tuple[list[Comparison], list[str]]:
    points = harness.Sweep(runner, quick, 500_000, [])
    add = points.add

    def ucx(test):
        return lambda *of: harness.ucx(runner, [test], *of, UCX)

    def openmpi(op):
        return lambda *of: harness.openmpi(runner, op, *of, OPENMPI)

    def libfabric(put):
        return lambda *of: harness.libfabric(runner, harness.FABRIC_SHM, put, *of)

    def memcpy(*of):
        return harness.own_program(runner, "memcpy", "bench_memcpy", "put_bw", *of)

    for size in (8, 64, 512, 4096):
        add("put_lat", LATENCY, size, 0.3, [], [("UCX put", ucx("ucp_put_lat")), ("Open MPI put", openmpi("put_lat"))])
    for size in (8, 64, 512, 4096):
        add("send_lat", LATENCY, size, 0.6, [], [("UCX message", ucx("tag_lat")),
                                                 ("Open MPI message", openmpi("send_lat")),
                                                 ("libfabric message", libfabric(False))])
    for power in range(3, 25, 3):
        add("put_bw", BANDWIDTH, 1 << power, 0.3, ["--batch", "1"],
            [("UCX put", ucx("ucp_put_bw")), ("Open MPI put", openmpi("put_bw")), ("UCX message", ucx("tag_bw")),
             ("Open MPI message", openmpi("send_bw")), ("libfabric put", libfabric(True)), ("memcpy", memcpy)])
    return points.made, []


if __name__ == "__main__":
    harness.main("shm", comparisons, sweep)
