"""tcp over loopback: libdtr against UCX, Open MPI and raw sockets, two processes on two cores."""

import harness
from harness import BANDWIDTH, LATENCY, RATE, Comparison

KIB, MIB = 1 << 10, 1 << 20
UCX = {"UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "lo"}
OPENMPI = ["--mca", "pml", "ob1", "--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", "lo"]
# Open MPI's windows would use shared memory; pt2pt is the one that goes over the tcp btl.
WINDOW = ["--mca", "osc", "pt2pt"]


def slow(size: int, count: int, test: str) -> int:
    """UCX emulates one-sided transfers over tcp: 34 MB/s has been seen. No run shall take minutes."""
    if not test.startswith("ucp_") or size < 32 * KIB:
        return count
    return max(4, min(count, 50_000_000 // size))


def comparisons(runner: harness.Runner, quick: bool) -> tuple[list[Comparison], list[str]]:
    made: list[Comparison] = []

    def add(name, figure, size, cost_us, batch, ucx_tests, mpi_ops, raw):
        """The first peer stands in the noise row, so it is the raw socket where there is one."""
        column, unit, better = figure
        count = harness.iterations(size, quick, cost_us, most=500_000)
        peers = []
        if raw is not None:
            peers.append(harness.own_program(runner, "raw", "bench_raw_tcp", raw, size, count, column))
        for label, test in ucx_tests:
            side = harness.ucx(runner, test, size, slow(size, count, test[0]), column, UCX)
            peers.append(harness.Side(label, side.run))
        for label, op in mpi_ops:
            window = [] if op.startswith("send") else WINDOW
            side = harness.openmpi(runner, op, size, count, column, OPENMPI + window)
            peers.append(harness.Side(label, side.run))
        if name == "send_lat":
            peers.append(harness.libfabric(runner, harness.FABRIC_TCP, False, size, count, column))
        if name == "put_bw":
            peers.append(harness.libfabric(runner, harness.FABRIC_TCP, True, size, count // 4, column))
        ours = harness.dtr(runner, name, size, count, column, ["--transport", "tcp", *batch])
        made.append(Comparison(f"{name}/{size}", unit, better, ours, peers, noise=True))

    add("put_lat", LATENCY, 8, 10, [], [("ucx", ["ucp_put_lat"])], [("openmpi", "put_lat")], "lat")
    add("send_lat", LATENCY, 8, 10, [], [("ucx", ["tag_lat"])], [("openmpi", "send_lat")], "lat")
    add("get_lat", LATENCY, 8, 20, [], [("ucx", ["ucp_get", "-O", "1"])], [("openmpi", "get_lat")], None)
    add("send_bw", RATE, 8, 0.5, [], [("ucx", ["tag_bw"])], [("openmpi", "send_bw")], None)
    add("send_lat", LATENCY, 4 * KIB, 10, [], [("ucx", ["tag_lat"])], [("openmpi", "send_lat")], "lat")
    add("send_bw", BANDWIDTH, 4 * KIB, 2, [], [("ucx", ["tag_bw"])], [("openmpi", "send_bw")], "bw")
    # The best that a peer has for large data is its two-sided form, so that is compared as well.
    for size in (64 * KIB, MIB, 16 * MIB):
        ucx_tests = [("ucx", ["ucp_put_bw"]), ("ucx-tag", ["tag_bw"])]
        mpi_ops = [("openmpi", "put_bw"), ("openmpi-send", "send_bw")]
        add("put_bw", BANDWIDTH, size, 20, ["--batch", "4"], ucx_tests, mpi_ops, "bw")
    for size in (64 * KIB, MIB):
        add("get_bw", BANDWIDTH, size, 20, ["--batch", "4"], [("ucx", ["ucp_get"])], [("openmpi", "get_bw")], "bw")
    for size in (4 * KIB, 16 * KIB, 64 * KIB):
        add("msg_lat", LATENCY, size, 20, [], [("ucx", ["tag_lat"])], [("openmpi", "send_lat")], "lat")
    for size in (4 * KIB, 16 * KIB, 64 * KIB, MIB, 16 * MIB):
        add("msg_bw", BANDWIDTH, size, 20, [], [("ucx", ["tag_bw"])], [("openmpi", "send_bw")], "bw")
    return made, []


def sweep(runner: harness.Runner, quick: bool) -> tuple[list[Comparison], list[str]]:
    points = harness.Sweep(runner, quick, 100_000, ["--transport", "tcp"])
    add = points.add

    def ucx(test):
        return lambda size, count, column: harness.ucx(runner, [test], size, slow(size, count, test), column, UCX)

    def openmpi(op):
        options = OPENMPI + ([] if op.startswith("send") else WINDOW)
        return lambda *of: harness.openmpi(runner, op, *of, options)

    def libfabric(put):
        return lambda *of: harness.libfabric(runner, harness.FABRIC_TCP, put, *of)

    def raw(op):
        return lambda *of: harness.own_program(runner, "raw", "bench_raw_tcp", op, *of)

    for size in (8, 64, 512, 4096):
        add("put_lat", LATENCY, size, 10, [], [("UCX put", ucx("ucp_put_lat")), ("Open MPI put", openmpi("put_lat"))])
    for size in (8, 64, 512, 4096):
        add("send_lat", LATENCY, size, 10, [], [("UCX message", ucx("tag_lat")), ("Open MPI message", openmpi("send_lat")),
                                                ("libfabric message", libfabric(False)), ("raw socket", raw("lat"))])
    for power in range(3, 25, 3):
        add("put_bw", BANDWIDTH, 1 << power, 5, [],
            [("UCX put", ucx("ucp_put_bw")), ("Open MPI put", openmpi("put_bw")), ("UCX message", ucx("tag_bw")),
             ("Open MPI message", openmpi("send_bw")), ("libfabric put", libfabric(True)), ("raw socket", raw("bw"))])
    return points.made, []


if __name__ == "__main__":
    harness.main("tcp", comparisons, sweep)
