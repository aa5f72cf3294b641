#!/usr/bin/env python3
"""A rank is killed in the middle of a training: every other rank ends by itself within 5 s, with an Error that names it.

survivors_test.py DTR_TRAIN [CASE...]
"""

import re
import sys
import tempfile

from job import Job, check, run_cases, saved_steps, scaled, wait_until

PROGRAM = sys.argv[1]
RANKS, SERVERS = 4, 2
BOUND = 5.0  # seconds, from the kill to the end of the process


def kill_in_training(victim, settings):
    with tempfile.TemporaryDirectory(prefix="dtr-train-") as folder:
        arguments = ["--servers", SERVERS, "--batch", 16, "--checkpoint-dir", folder, "--checkpoint-every", 20]
        with Job(PROGRAM, RANKS, *arguments, settings=settings, judged=True) as job:
            wait_until(lambda: saved_steps(folder), 60, "checkpoint")
            killed = job.kill_rank(victim)
            slowest = 0.0
            for rank in range(RANKS):
                if rank == victim:
                    continue
                code, words, ended = job.verdict_of(rank, 4 * BOUND)
                print(f"  rank {victim} dead, rank {rank} after {ended - killed:.2f} s: {words.strip()}", flush=True)
                check(code == 1, f"rank {rank} ended with {code}, not with an Error: {words}")
                named = re.search(rf"rank {rank}: .*\brank {victim}\b.*peer_failed", words)
                check(named, f"rank {rank} does not name rank {victim}: {words}")
                slowest = max(slowest, ended - killed)
            check(slowest < scaled(BOUND), f"the last survivor ended after {slowest:.1f} s")
            check(job.written("code", victim) is None, "the victim was to die")
            job.wait(30)


def survivors_over_shm_name_a_dead_worker_0():
    kill_in_training(0, {})


def survivors_over_shm_name_a_dead_worker():
    kill_in_training(1, {})


def survivors_over_shm_name_a_dead_server():
    kill_in_training(3, {})


def survivors_over_tcp_name_a_dead_worker_0():
    kill_in_training(0, {"DTR_TRANSPORT": "tcp"})


def survivors_over_tcp_name_a_dead_worker():
    kill_in_training(1, {"DTR_TRANSPORT": "tcp"})


def survivors_over_tcp_name_a_dead_server():
    kill_in_training(2, {"DTR_TRANSPORT": "tcp"})


run_cases(
    [
        survivors_over_shm_name_a_dead_worker_0,
        survivors_over_shm_name_a_dead_worker,
        survivors_over_shm_name_a_dead_server,
        survivors_over_tcp_name_a_dead_worker_0,
        survivors_over_tcp_name_a_dead_worker,
        survivors_over_tcp_name_a_dead_server,
    ]
)
