#!/usr/bin/env python3
"""Makes one trace of the traces of all ranks: merge-traces.py OUT IN...

Ranks of one host are aligned by its monotonic clock, hosts by their wall clocks. Open OUT in https://ui.perfetto.dev.
"""

import json
import os
import sys

FORMAT = "dtr-trace-1"


class BadTrace(Exception):
    pass


def load(path):
    try:
        with open(path, encoding="utf-8") as file:
            trace = json.load(file)
    except OSError as error:
        raise BadTrace(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise BadTrace(f"{path}: no JSON: {error}") from error
    about = trace.get("otherData", {}) if isinstance(trace, dict) else {}
    if about.get("format") != FORMAT:
        raise BadTrace(f"{path}: no trace of one rank (format {FORMAT})")
    return trace


def start_times(traces):
    """The start of each trace in ns of one clock: of each host, the first trace tells how its clock lies."""
    offsets = {}
    starts = []
    for trace in traces:
        about = trace["otherData"]
        monotonic = about["start_monotonic_ns"]
        # Without a boot id nothing says that two traces share a clock.
        host = about["boot_id"] or ("rank", about["rank"])
        offset = offsets.setdefault(host, about["start_wall_ns"] - monotonic)
        starts.append(monotonic + offset)
    return starts


def merge(traces, paths):
    ranks = {}
    for trace, path in zip(traces, paths):
        rank = trace["otherData"]["rank"]
        if rank in ranks:
            raise BadTrace(f"{path}: rank {rank} is already in {ranks[rank]}")
        ranks[rank] = path
    starts = start_times(traces)
    first = min(starts)
    events = []
    for trace, start in zip(traces, starts):
        shift_us = (start - first) / 1000
        for event in trace["traceEvents"]:
            if "ts" in event:
                event["ts"] = round(event["ts"] + shift_us, 3)
            events.append(event)
    return {
        "displayTimeUnit": "ns",
        "traceEvents": events,
        "otherData": {
            "format": "dtr-trace-merged-1",
            "ranks": sorted(ranks),
            "start_wall_ns": first,
            "dropped_events": sum(trace["otherData"]["dropped_events"] for trace in traces),
        },
    }


def main(arguments):
    if len(arguments) < 2:
        print("usage: merge-traces.py OUT IN...", file=sys.stderr)
        return 2
    out, paths = arguments[0], arguments[1:]
    try:
        merged = merge([load(path) for path in paths], paths)
    except BadTrace as error:
        print(f"merge-traces: {error}", file=sys.stderr)
        return 1
    temporary = f"{out}.tmp.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(merged, file, separators=(",", ":"))
    os.replace(temporary, out)
    print(f"{out}: {len(merged['traceEvents'])} events of {len(paths)} ranks")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
