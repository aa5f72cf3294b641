#!/usr/bin/env python3
"""kill -9 of any rank at any moment, then --resume: the digest of the uninterrupted run.

kill_resume_test.py DTR_TRAIN [--points N | --all] [--seed N]

The moments are spread at random over the whole run; every third is when a checkpoint is half written. --all means 20.
"""

import argparse
import os
import pathlib
import random
import signal
import sys
import tempfile
import time

from job import Failure, Job, check, saved_steps, scaled, train

RANKS, SERVERS, STEPS, EVERY = 4, 2, 40, 3
ARGUMENTS = ["--servers", SERVERS, "--batch", 16, "--max-steps", STEPS, "--seed", 5]


def half_written(folder):
    """True while a checkpoint has its temporary name."""
    try:
        return any(".tmp-" in name for name in os.listdir(folder))
    except FileNotFoundError:
        return False


def uninterrupted(program):
    """(digest, seconds until the first checkpoint, seconds until the last) of a run that nobody disturbs."""
    with tempfile.TemporaryDirectory(prefix="dtr-train-") as folder:
        folder = pathlib.Path(folder)
        arguments = [*ARGUMENTS, "--checkpoint-dir", folder / "steps", "--checkpoint-every", EVERY]
        started = time.monotonic()
        with Job(program, RANKS, *arguments, "--json", folder / "result.json") as job:
            first = None
            while job.process.poll() is None:
                if first is None and saved_steps(folder / "steps"):
                    first = time.monotonic() - started
                check(time.monotonic() - started < scaled(90), f"it hangs:\n{job.text()}")
                time.sleep(0.005)
            seconds = time.monotonic() - started
            check(job.process.returncode == 0 and first is not None, f"it failed:\n{job.text()}")
    plain = train(program, RANKS, *ARGUMENTS)
    return plain["parameter_digest"], first, seconds


def kill_one(program, folder, rank, moment, in_checkpoint):
    """Starts a run and kills a rank. Returns (the steps that were saved by then, None), or (None, the seconds that the
    run took) if it was over before."""
    arguments = [*ARGUMENTS, "--checkpoint-dir", folder, "--checkpoint-every", EVERY, "--resume"]
    with Job(program, RANKS, *arguments) as job:
        started = time.monotonic()
        while time.monotonic() - started < moment or (in_checkpoint and not half_written(folder)):
            if job.process.poll() is not None:
                check(job.process.returncode == 0, f"it failed before the kill:\n{job.text()}")
                return None, time.monotonic() - started
            time.sleep(0.0005)
        process = job.process_of(rank)
        if process is None:  # mpirun has not started it yet
            if job.process.poll() is not None:
                return None, time.monotonic() - started
            process = job.process.pid
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            return None, time.monotonic() - started
        saved = saved_steps(folder)
        code = job.wait(30)
        if code == 0:
            return None, time.monotonic() - started  # the rank was through already
        for left in job.processes():  # a rank whose mpirun died may go on for a moment
            try:
                os.kill(left, signal.SIGKILL)
            except ProcessLookupError:
                pass
        return saved, None


def one_point(program, dice, number, first, last, digest):
    rank = dice.randrange(RANKS)
    in_checkpoint = number % 3 == 2
    pace = 1.0  # of the runs here, against the one that was timed: the machine may be less busy by now
    for attempt in range(20):
        # The first point or two may come before the first checkpoint; then the second run starts at 0.
        moment = pace * (dice.uniform(first, 0.9 * last) if in_checkpoint else dice.uniform(0.5 * first, last))
        with tempfile.TemporaryDirectory(prefix="dtr-train-") as folder:
            saved, took = kill_one(program, folder, rank, moment, in_checkpoint)
            if saved is None:
                pace = min(pace, took / last)
                continue
            arguments = [*ARGUMENTS, "--checkpoint-dir", folder, "--checkpoint-every", EVERY, "--resume"]
            result = train(program, RANKS, *arguments)
            where = f"rank {rank} killed after {moment:.2f} s" + (" in a checkpoint" if in_checkpoint else "")
            lines = [line for line in result["log"].splitlines() if "resume" in line]
            print(f"point {number}: {where}, saved {saved[-1:] or 'nothing'}; then: {lines[:1]}", flush=True)
            check(result["parameter_digest"] == digest, f"{where}: digest {result['parameter_digest']}, wanted {digest}")
            check(result["steps"] == STEPS, f"{where}: {result['steps']} steps")
            resumed = any("resumed at step" in line for line in lines)
            check(resumed == bool(saved) or not saved, f"{where}: {saved} were saved, but it says {lines}")
            return
    raise Failure("every one of 20 runs ended before its kill")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--points", type=int, default=int(os.environ.get("DTR_TEST_KILL_POINTS", "6")))
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    options = parser.parse_args()
    points = 20 if options.all else options.points
    print(f"{points} points, --seed {options.seed}", flush=True)
    dice = random.Random(options.seed)
    try:
        digest, first, last = uninterrupted(options.program)
        print(f"digest {digest}; first checkpoint after {first:.2f} s, end after {last:.2f} s", flush=True)
        for number in range(points):
            one_point(options.program, dice, number, first, last, digest)
    except Failure as failure:
        sys.exit(f"FAILED: {failure}")


main()
