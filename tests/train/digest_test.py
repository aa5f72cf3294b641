#!/usr/bin/env python3
"""Any number of ranks trains, and the digest of the parameters depends on the seed and the workers only.

digest_test.py DTR_TRAIN [CASE...]
"""

import sys

from job import check, run_cases, train

PROGRAM = sys.argv[1]
STEPS = ["--max-steps", 25, "--batch", 32, "--seed", 3]


def digest_of(ranks, servers, **more):
    result = train(PROGRAM, ranks, "--servers", servers, *STEPS, **more)
    check(result["steps"] == 25, f"{result['steps']} steps instead of 25")
    return result["parameter_digest"], result["transport"]


def every_number_of_ranks_trains():
    for ranks, servers in [(2, 1), (3, 2), (4, 2), (6, 2), (8, 3)]:
        result = train(PROGRAM, ranks, "--servers", servers, *STEPS, seconds=120)
        check(result["transport"] == "shm", f"{ranks} ranks used {result['transport']}")
        check(0 < result["test_accuracy"] <= 1, f"accuracy {result['test_accuracy']}")


def one_server_is_the_default():
    result = train(PROGRAM, 2, *STEPS)
    check(result["parameter_digest"] == digest_of(2, 1)[0], "two ranks without --servers are not one worker and a server")


def the_digest_is_the_same_on_repetition_over_any_path_with_any_number_of_servers():
    wanted = digest_of(3, 1)
    seen = {
        "again": digest_of(3, 1)[0],
        "2 servers": digest_of(4, 2)[0],
        "3 servers": digest_of(5, 3)[0],
    }
    for servers in (1, 2):
        digest, transport = digest_of(2 + servers, servers, settings={"DTR_TRANSPORT": "tcp"})
        check(transport == "tcp", f"DTR_TRANSPORT=tcp used {transport}")
        seen[f"tcp, {servers} servers"] = digest
    digest, transport = digest_of(2, "colocated")
    check(transport == "shm", f"two colocated ranks used {transport}")
    seen["colocated"] = digest
    # Worker 0 shares a host with the server, worker 1 has one for itself.
    hosts = {0: {"DTR_HOST_ID": "a"}, 1: {"DTR_HOST_ID": "b"}, 2: {"DTR_HOST_ID": "a"}}
    digest, transport = digest_of(3, 1, rank_settings=hosts)
    check(transport == "shm,tcp", f"two hosts used {transport}")
    seen["two hosts"] = digest
    for name, digest in seen.items():
        check(digest == wanted[0], f"{name}: digest {digest}, wanted {wanted[0]}")


def the_digest_depends_on_the_seed():
    one = train(PROGRAM, 2, "--max-steps", 5, "--seed", 1)["parameter_digest"]
    other = train(PROGRAM, 2, "--max-steps", 5, "--seed", 2)["parameter_digest"]
    check(one != other, "two seeds give one digest: the digest says nothing")


run_cases(
    [
        every_number_of_ranks_trains,
        one_server_is_the_default,
        the_digest_is_the_same_on_repetition_over_any_path_with_any_number_of_servers,
        the_digest_depends_on_the_seed,
    ]
)
