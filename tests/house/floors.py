#!/usr/bin/env python3
"""Keeps the floors of the house: who may include whom. Prints each complaint as FILE:LINE: words.

    floors.py ROOT            checks ROOT/lib/dtr and ROOT/apps
    floors.py --self-test     checks that every kind of violation is noticed
"""
import re
import sys
import tempfile
from pathlib import Path

FLOOR = {
    "base": 0,
    "bootstrap": 1, "gpu": 1, "storage": 1,
    "memory": 2,
    "fabric": 3,
    "runtime": 4,
    "transfer": 5, "pushpull": 5, "messaging": 5, "checkpoint": 5, "dataset": 5, "orchestrator": 5,
}  # fmt: skip

# Which rooms may see a third-party header at all. A header that is installed may see none of these.
ONLY_IN = {
    r"mpi\.h": {"bootstrap"},
    r"hdf5(_hl)?\.h|H5\w*\.h": {"checkpoint", "dataset", "storage"},
    r"infiniband/.*|rdma/.*": {"fabric"},
    r"cuda.*": {"gpu"},
}
# Only for sources: users of the library need not have them.
NEVER_IN_PUBLIC_HEADERS = re.compile(
    r"(spdlog|fmt|toml\+\+|nlohmann|sodium|CLI|Eigen|hwloc|infiniband|rdma|curl|arrow|parquet)(/|\.h).*"
    r"|(hdf5|zstd|libdeflate|xxhash|zlib|H5\w*|cuda\w*)\.h"
)
PUBLIC_WITH_MPI = "bootstrap/mpi.hpp"
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')


NOT_INSTALLED = {"detail", "loopback", "shm", "tcp", "verbs"}  # as in cmake/install.cmake


def is_public(path):
    return path.suffix == ".hpp" and not NOT_INSTALLED.intersection(path.parts)


def includes(path):
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if match := INCLUDE.match(line):
            yield number, match.group(2)


def check_library(lib):
    for path in sorted([*lib.rglob("*.hpp"), *lib.rglob("*.cpp")]):
        where = path.relative_to(lib)
        if len(where.parts) == 1:
            continue  # dtr.hpp: the whole house
        room = where.parts[0]
        sub_room = where.parts[1] if len(where.parts) > 2 and where.parts[1] != "detail" else None
        if room not in FLOOR:
            yield f"{path}:1: {room}/ is on no floor; give it one in {Path(__file__).name}"
            continue
        for number, name in includes(path):
            complaint = None
            if name.startswith("dtr/"):
                parts = Path(name).parts[1:]
                if not (lib / Path(*parts)).exists():
                    complaint = f"{name} does not exist"
                elif len(parts) == 1:
                    complaint = f"{name} is the whole house"
                elif parts[0] != room and FLOOR.get(parts[0], 99) >= FLOOR[room]:
                    complaint = f"{room}/ (floor {FLOOR[room]}) includes {parts[0]}/ (floor {FLOOR.get(parts[0])})"
                elif parts[0] != room and "detail" in parts:
                    complaint = f"{name} is private to {parts[0]}/"
                elif room == "fabric" and parts[0] == room and sub_room and len(parts) > 2:
                    if parts[1] not in (sub_room, "detail"):
                        complaint = f"fabric/{sub_room}/ includes its sibling fabric/{parts[1]}/"
                elif is_public(path) and "detail" in parts:
                    complaint = f"an installed header includes {name}, which is not installed"
            else:
                for pattern, rooms in ONLY_IN.items():
                    if re.fullmatch(pattern, name) and room not in rooms:
                        complaint = f"{name} only in {', '.join(sorted(rooms))}"
                if is_public(path) and NEVER_IN_PUBLIC_HEADERS.fullmatch(name):
                    complaint = f"an installed header includes {name}"
                if is_public(path) and name == "mpi.h" and where.as_posix() != PUBLIC_WITH_MPI:
                    complaint = f"an installed header includes mpi.h; only {PUBLIC_WITH_MPI} may"
            if complaint:
                yield f"{path}:{number}: {complaint}"


def check_apps(apps, lib):
    for path in sorted([*apps.rglob("*.hpp"), *apps.rglob("*.cpp")]):
        for number, name in includes(path):
            if not name.startswith("dtr/"):
                continue
            if "detail" in Path(name).parts or not (lib / Path(*Path(name).parts[1:])).exists():
                yield f"{path}:{number}: {name} is not a public header"


def check(root):
    return [*check_library(root / "lib/dtr"), *check_apps(root / "apps", root / "lib/dtr")]


def self_test():
    """Each line alone must be noticed: (file, what it includes, a word of the complaint); None: must be accepted."""
    cases = [
        ("lib/dtr/base/a.hpp", "dtr/fabric/x.hpp", "floor 0"),
        ("lib/dtr/bootstrap/a.cpp", "dtr/storage/x.hpp", "floor 1"),
        ("lib/dtr/dataset/a.cpp", "dtr/checkpoint/x.hpp", "floor 5"),
        ("lib/dtr/fabric/tcp/a.cpp", "dtr/fabric/shm/x.hpp", "sibling"),
        ("lib/dtr/fabric/tcp/a.cpp", "dtr/fabric/x.hpp", None),
        ("lib/dtr/fabric/tcp/a.cpp", "dtr/fabric/tcp/x.hpp", None),
        ("lib/dtr/runtime/a.cpp", "dtr/fabric/tcp/x.hpp", None),
        ("lib/dtr/runtime/a.cpp", "dtr/fabric/detail/x.hpp", "private"),
        ("lib/dtr/fabric/a.hpp", "dtr/fabric/detail/x.hpp", "not installed"),
        ("lib/dtr/fabric/a.cpp", "dtr/fabric/detail/x.hpp", None),
        ("lib/dtr/fabric/a.cpp", "dtr/gone/x.hpp", "does not exist"),
        ("lib/dtr/fabric/a.cpp", "dtr/dtr.hpp", "whole house"),
        ("lib/dtr/attic/a.cpp", "vector", "no floor"),
        ("lib/dtr/fabric/a.cpp", "mpi.h", "only in bootstrap"),
        ("lib/dtr/bootstrap/a.hpp", "mpi.h", "installed header"),
        ("lib/dtr/bootstrap/mpi.hpp", "mpi.h", None),
        ("lib/dtr/fabric/a.cpp", "hdf5.h", "only in"),
        ("lib/dtr/checkpoint/a.cpp", "hdf5.h", None),
        ("lib/dtr/checkpoint/a.hpp", "hdf5.h", "installed header"),
        ("lib/dtr/checkpoint/detail/a.hpp", "hdf5.h", None),
        ("lib/dtr/base/a.hpp", "spdlog/spdlog.h", "installed header"),
        ("lib/dtr/base/a.hpp", "toml++/toml.h", "installed header"),
        ("lib/dtr/base/a.cpp", "toml++/toml.h", None),
        ("apps/x/main.cpp", "dtr/fabric/detail/x.hpp", "not a public header"),
        ("apps/x/main.cpp", "dtr/fabric/x.hpp", None),
    ]
    there = ["fabric/x.hpp", "fabric/tcp/x.hpp", "fabric/shm/x.hpp", "fabric/detail/x.hpp", "storage/x.hpp",
             "checkpoint/x.hpp", "dtr.hpp"]  # fmt: skip
    wrong = []
    for file, included, word in cases:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            for name in there:
                (root / "lib/dtr" / name).parent.mkdir(parents=True, exist_ok=True)
                (root / "lib/dtr" / name).touch()
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_text(f"#include <{included}>\n")
            found = check(root)
        if (word is None and found) or (word is not None and not any(word in line for line in found)):
            wrong.append(f"{file} including {included}: expected {word!r}, found {found}")
    return wrong


complaints = self_test() if sys.argv[1] == "--self-test" else check(Path(sys.argv[1]))
print("\n".join(complaints))
sys.exit(1 if complaints else 0)
