#!/usr/bin/env python3
"""A rank that stands still (SIGSTOP) makes the others wait until their deadline and no longer; one that goes on in time
harms nothing.

stopped_rank_test.py DTR_TRAIN [CASE...]
"""

import os
import pathlib
import re
import signal
import sys
import tempfile
import time

from job import Job, check, run_cases, saved_steps, scaled, train, wait_until

PROGRAM = sys.argv[1]
RANKS, SERVERS, STEPS = 4, 2, 400
ARGUMENTS = ["--servers", SERVERS, "--batch", 16, "--seed", 8, "--max-steps", STEPS]


def stop_for_ever(victim, settings):
    """The others end, the workers among them with timed_out; when the stopped rank wakes up it learns that they have gone."""
    timeout = scaled(2)
    budget = scaled(2)
    settings = {**settings, "DTR_TIMEOUT_MS": int(1000 * timeout), "DTR_TIMEOUT_FINALIZE_MS": int(1000 * budget)}
    # No checkpoints: who waits for one to be written does not know which rank keeps it waiting.
    with Job(PROGRAM, RANKS, "--servers", SERVERS, "--batch", 16, settings=settings, judged=True) as job:
        process = job.start_of(victim)[1]
        wait_until(lambda: "loss" in (job.written("out", 0) or ""), 60, "line of progress")
        os.kill(process, signal.SIGSTOP)
        stopped = time.time()
        workers = [rank for rank in range(RANKS - SERVERS) if rank != victim]
        at_once = [rank for rank in range(RANKS) if rank != victim]
        for rank in at_once:
            code, words, ended = job.verdict_of(rank, 60)
            words = words.strip().splitlines()[-1]
            print(f"  rank {victim} stopped, rank {rank} after {ended - stopped:.2f} s: {words}", flush=True)
            check(code == 1, f"rank {rank} ended with {code}, not with an Error: {words}")
            if rank in workers:
                check(ended - stopped >= 0.9 * timeout, f"rank {rank} gave up before its deadline")
                # Its last operation may have begun a moment after the stop.
                check(ended - stopped <= timeout + budget + scaled(3), f"rank {rank} took longer to end than it may")
                check("timed_out" in words, f"rank {rank}: {words}")
                late = re.search(r"(no answer from|no part of the round came from|did not come:) (.*)", words)
                check(late is not None, f"rank {rank} does not say who is late: {words}")
                named = {int(word) for word in re.findall(r"\b\d+\b", late.group(2).split(";")[0])}
                check(named, f"rank {rank} names nobody: {words}")
                # A stopped worker makes the servers' answers late, a stopped server its own only.
                wanted = {victim} if victim >= RANKS - SERVERS else {victim, 2, 3}
                check(named <= wanted, f"rank {rank} names {named}: {words}")
        os.kill(process, signal.SIGCONT)
        code, words, _ = job.verdict_of(victim, 60)
        print(f"  rank {victim} awake again: {words.strip().splitlines()[-1]}", flush=True)
        check(code == 1, f"the stopped rank ended with {code}: {words}")
        job.wait(30)


def the_others_time_out_on_a_stopped_server_over_shm():
    stop_for_ever(3, {})


def the_others_time_out_on_a_stopped_server_over_tcp():
    stop_for_ever(2, {"DTR_TRANSPORT": "tcp"})


def the_others_time_out_on_a_stopped_worker_over_shm():
    stop_for_ever(1, {})


def the_others_time_out_on_a_stopped_worker_over_tcp():
    stop_for_ever(0, {"DTR_TRANSPORT": "tcp"})


def stop_and_go_on(settings):
    """Each rank in turn stands still for a second in the middle; the digest is that of an undisturbed run."""
    wanted = train(PROGRAM, RANKS, *ARGUMENTS, seconds=120, settings=settings)["parameter_digest"]
    with tempfile.TemporaryDirectory(prefix="dtr-train-") as folder:
        folder = pathlib.Path(folder)
        result = folder / "result.json"
        arguments = [*ARGUMENTS, "--checkpoint-dir", folder / "steps", "--checkpoint-every", 10, "--json", result]
        with Job(PROGRAM, RANKS, *arguments, settings=settings) as job:
            wait_until(lambda: saved_steps(folder / "steps"), 60, "checkpoint")
            stops = 0
            for rank in range(RANKS):
                process = job.process_of(rank)
                if process is None:
                    break
                os.kill(process, signal.SIGSTOP)
                time.sleep(0.7)
                stops += job.process.poll() is None
                os.kill(process, signal.SIGCONT)
                time.sleep(0.05)
            check(job.wait(120) == 0, f"it failed:\n{job.text()}")
            check(stops == RANKS, f"the run was over after {stops} stops; it needs more steps")
        digest = result.read_text()
        check(f'"{wanted}"' in digest, f"wanted {wanted}, got {digest}")


def a_rank_that_goes_on_in_time_harms_nothing_over_shm():
    stop_and_go_on({})


def a_rank_that_goes_on_in_time_harms_nothing_over_tcp():
    stop_and_go_on({"DTR_TRANSPORT": "tcp"})


run_cases(
    [
        the_others_time_out_on_a_stopped_server_over_shm,
        the_others_time_out_on_a_stopped_server_over_tcp,
        the_others_time_out_on_a_stopped_worker_over_shm,
        the_others_time_out_on_a_stopped_worker_over_tcp,
        a_rank_that_goes_on_in_time_harms_nothing_over_shm,
        a_rank_that_goes_on_in_time_harms_nothing_over_tcp,
    ]
)
