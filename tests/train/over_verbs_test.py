#!/usr/bin/env python3
"""Over RDMA devices, on a processor that is not this one's, the digest is the one of this machine over shm.

over_verbs_test.py DTR_TRAIN RDMA_VM_SCRIPT HOSTS
"""

import json
import pathlib
import subprocess
import sys
import tempfile

from job import check, mpi_environment, run_cases, scaled, train

PROGRAM, SCRIPT, HOSTS = sys.argv.pop(1), sys.argv.pop(1), sys.argv.pop(1)
STEPS = ["--servers", 2, "--batch", 16, "--max-steps", 20]
NO_MACHINE = 77


def the_digest_is_that_of_shared_memory():
    bound = int(scaled(300))
    with tempfile.TemporaryDirectory(prefix="dtr-train-") as folder:
        result = pathlib.Path(folder) / "result.json"
        command = [SCRIPT, "--hosts", HOSTS, "--timeout", bound, "--writable", folder, "--"]
        command += ["mpirun", "-n", 4, PROGRAM, *STEPS, "--json", result]
        ended = subprocess.run(
            [str(word) for word in command],
            env={**mpi_environment(), "DTR_TRANSPORT": "verbs"},
            stdin=subprocess.DEVNULL,
            timeout=bound + 120,
        )
        if ended.returncode == NO_MACHINE and not result.exists():
            sys.exit(NO_MACHINE)
        check(ended.returncode == 0, f"dtr_train in the machine ended with {ended.returncode}")
        theirs = json.loads(result.read_text())
    ours = train(PROGRAM, 4, *STEPS)
    check(theirs["transport"] == "verbs", f"the workers used {theirs['transport']}")
    check(ours["transport"] == "shm", f"here they used {ours['transport']}")
    check(theirs["steps"] == ours["steps"] == 20, f"{theirs['steps']} and {ours['steps']} steps")
    check(theirs["parameter_digest"] == ours["parameter_digest"], f"{theirs} is not {ours}")


run_cases([the_digest_is_that_of_shared_memory])
