#!/usr/bin/env python3
"""What cannot work ends on every rank, soon, with an Error that says why. And: resuming.

bad_input_test.py DTR_TRAIN [CASE...]
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from job import Job, check, run_cases, saved_steps, train

PROGRAM = sys.argv[1]
DATA = pathlib.Path("/usr/share/datasets/fashion-mnist")


def expect_errors(ranks, arguments, words, seconds=30, **more):
    """Every rank ends by itself with exit code 1 and an Error that has these words. Returns what they wrote."""
    written = []
    with Job(PROGRAM, ranks, *arguments, judged=True, **more) as job:
        for rank in range(ranks):
            code, said, _ = job.verdict_of(rank, seconds)
            check(code == 1, f"rank {rank} ended with {code}: {said}")
            check(words in said, f"rank {rank} does not say '{words}': {said}")
            written.append(said)
        job.wait(30)
    return written


def one_rank_leaves_no_worker():
    said = expect_errors(1, [], "1 servers among 1 ranks leave no worker; start at least 2")
    check("init: invalid_argument" in said[0], said[0])


def as_many_servers_as_ranks_leave_no_worker():
    expect_errors(3, ["--servers", 3], "3 servers among 3 ranks leave no worker; start at least 4")


def a_missing_data_folder_is_an_error_on_every_rank():
    expect_errors(4, ["--servers", 2, "--data", "/nonexistent/data"], "/nonexistent/data")


def a_truncated_data_file_is_an_error_on_every_rank():
    with tempfile.TemporaryDirectory(prefix="dtr-train-") as folder:
        for file in DATA.iterdir():
            shutil.copy(file, folder)
        images = pathlib.Path(folder) / "train-images-idx3-ubyte.gz"
        os.truncate(images, images.stat().st_size // 2)
        expect_errors(4, ["--servers", 2, "--data", folder, "--max-steps", 5], "train-images-idx3-ubyte.gz")


def a_missing_test_set_is_said_before_the_training():
    with tempfile.TemporaryDirectory(prefix="dtr-train-") as folder:
        for file in DATA.iterdir():
            if not file.name.startswith("t10k-images"):
                shutil.copy(file, folder)
        checkpoints = pathlib.Path(folder) / "steps"
        arguments = ["--data", folder, "--checkpoint-dir", checkpoints, "--checkpoint-every", 1]
        expect_errors(3, arguments, "t10k-images-idx3-ubyte")
        check(not checkpoints.exists(), "it trained before it looked")


def an_unwritable_checkpoint_folder_is_an_error_on_every_rank():
    arguments = ["--servers", 2, "--batch", 16, "--checkpoint-every", 3, "--checkpoint-dir", "/proc/nowhere"]
    expect_errors(4, arguments, "/proc/nowhere")


def a_full_disk_is_an_error_on_every_rank():
    with tempfile.TemporaryDirectory(prefix="dtr-train-") as folder:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
        if mounted.returncode != 0:
            print("  skipped: tmpfs cannot be mounted here", flush=True)
            return
        try:
            arguments = ["--servers", 2, "--batch", 16, "--checkpoint-every", 3, "--checkpoint-dir", folder]
            expect_errors(4, arguments, "no_space")
            check(saved_steps(folder) == [], "a step that did not fit stands there under its final name")
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


def resuming_without_a_checkpoint_starts_at_0_and_says_so():
    wanted = train(PROGRAM, 3, "--batch", 16, "--max-steps", 10)
    with tempfile.TemporaryDirectory(prefix="dtr-train-") as folder:
        result = train(PROGRAM, 3, "--batch", 16, "--max-steps", 10, "--resume", "--checkpoint-dir", folder + "/none")
    check("no checkpoint to resume from" in result["log"], result["log"])
    check("starting at step 0" in result["log"], result["log"])
    check(result["parameter_digest"] == wanted["parameter_digest"], "it did not start at 0")


def nonsense_numbers_are_refused():
    for option, value in [("--lr", "nan"), ("--lr", "inf"), ("--lr", "-1"), ("--seed", "-1"), ("--epochs", "-1"),
                          ("--max-steps", "-3"), ("--checkpoint-every", "-1"), ("--batch", "-5")]:
        ended = subprocess.run([PROGRAM, option, value], capture_output=True, text=True, timeout=60)
        check(ended.returncode != 0 and option in ended.stderr + ended.stdout,
              f"{option} {value}: {ended.returncode} {ended.stdout}{ended.stderr}")


def checkpoints_of_another_job_are_an_error_with_and_without_resume():
    with tempfile.TemporaryDirectory(prefix="dtr-train-") as folder:
        arguments = ["--batch", 16, "--checkpoint-dir", folder, "--checkpoint-every", 4]
        first = train(PROGRAM, 3, *arguments, "--seed", 1, "--max-steps", 9)
        again = train(PROGRAM, 3, *arguments, "--seed", 1, "--max-steps", 9)
        check(again["parameter_digest"] == first["parameter_digest"], "the same job again differs")
        expect_errors(3, [*arguments, "--seed", 2, "--max-steps", 9], "are of another job (seed 1,")
        expect_errors(3, [*arguments, "--seed", 2, "--max-steps", 9, "--resume"], "are of another job (seed 1,")


def max_steps_counts_from_0_when_resuming():
    wanted = train(PROGRAM, 3, "--batch", 16, "--max-steps", 20)
    with tempfile.TemporaryDirectory(prefix="dtr-train-") as folder:
        arguments = ["--batch", 16, "--checkpoint-dir", folder, "--checkpoint-every", 4, "--resume"]
        train(PROGRAM, 3, *arguments, "--max-steps", 9)
        result = train(PROGRAM, 3, *arguments, "--max-steps", 20)
        check("resumed at step 8" in result["log"], result["log"])
        check(result["steps"] == 20, f"{result['steps']} steps")
        check(result["parameter_digest"] == wanted["parameter_digest"], "not the digest of one run of 20 steps")
        over = train(PROGRAM, 3, *arguments, "--max-steps", 20)
        check(over["steps"] == 20, f"a run that is over went on to {over['steps']}")
        check(over["parameter_digest"] == wanted["parameter_digest"], "a run that is over changed its parameters")


def a_broken_newest_checkpoint_is_passed_over_by_name():
    wanted = train(PROGRAM, 3, "--batch", 16, "--max-steps", 20)
    with tempfile.TemporaryDirectory(prefix="dtr-train-") as folder:
        arguments = ["--batch", 16, "--checkpoint-dir", folder, "--checkpoint-every", 4, "--resume"]
        train(PROGRAM, 3, *arguments, "--max-steps", 12)
        newest = max(pathlib.Path(folder).glob("step_*"))
        broken = max(newest.glob("*.h5"), key=lambda file: file.stat().st_size)
        data = bytearray(broken.read_bytes())
        data[len(data) // 2] ^= 1
        broken.write_bytes(data)
        result = train(PROGRAM, 3, *arguments, "--max-steps", 20)
        check("passed over: step 12" in result["log"] and "resumed at step 8" in result["log"], result["log"])
        check(result["parameter_digest"] == wanted["parameter_digest"], "not the digest of an undisturbed run")


def checkpoints_come_as_often_as_the_configuration_says():
    with tempfile.TemporaryDirectory(prefix="dtr-train-") as folder:
        arguments = ["--batch", 16, "--checkpoint-dir", folder]
        train(PROGRAM, 3, *arguments, "--max-steps", 10, settings={"DTR_CHECKPOINT_INTERVAL_STEPS": 4})
        check(saved_steps(folder) == [4, 8], f"steps {saved_steps(folder)} instead of 4 and 8")
        settings = {"DTR_CHECKPOINT_INTERVAL_STEPS": 4, "DTR_CHECKPOINT_KEEP_LAST_N": 1}
        train(PROGRAM, 3, *arguments, "--max-steps", 10, "--checkpoint-every", 5, settings=settings)
        check(saved_steps(folder) == [10], f"steps {saved_steps(folder)} instead of 10")


def a_checkpoint_setting_that_cannot_be_met_is_an_error_on_every_rank():
    with tempfile.TemporaryDirectory(prefix="dtr-train-") as folder:
        words = "checkpoint.compression = 'zstd': this version writes with 'none' only"
        expect_errors(3, ["--checkpoint-dir", folder], words, settings={"DTR_CHECKPOINT_COMPRESSION": "zstd"})


def a_place_for_the_results_that_is_not_there_is_said_at_the_start():
    with tempfile.TemporaryDirectory(prefix="dtr-train-") as folder:
        checkpoints = pathlib.Path(folder) / "steps"
        arguments = ["--checkpoint-dir", checkpoints, "--checkpoint-every", 1]
        expect_errors(3, [*arguments, "--json", folder + "/none/result.json"], folder + "/none'")
        expect_errors(3, [*arguments, "--json", folder], "that is a folder; give it the name of a file")
        check(not checkpoints.exists(), "it trained before it looked")


def a_checkpoint_beyond_max_steps_is_said_and_reported_as_what_it_is():
    with tempfile.TemporaryDirectory(prefix="dtr-train-") as folder:
        arguments = ["--batch", 16, "--checkpoint-dir", folder, "--checkpoint-every", 4, "--resume"]
        first = train(PROGRAM, 3, *arguments, "--max-steps", 8)
        result = train(PROGRAM, 3, *arguments, "--max-steps", 5)
        check("beyond --max-steps 5" in result["log"], result["log"])
        check(result["steps"] == 8, f"{result['steps']} steps")
        check(result["parameter_digest"] == first["parameter_digest"], "not the parameters of step 8")
        again = train(PROGRAM, 3, *arguments, "--max-steps", 8)
        check("had come to its end" in again["log"] and again["steps"] == 8, again["log"])


def a_wrong_setting_of_one_rank_is_an_error_on_every_rank():
    said = expect_errors(
        3, [], "progress.spin_us", rank_settings={1: {"DTR_PROGRESS_SPIN_US": "fast"}}
    )
    for rank in (0, 2):
        check("init to rank 1" in said[rank], f"rank {rank} does not name rank 1: {said[rank]}")
    check("DTR_PROGRESS_SPIN_US" in said[1], said[1])


def transports_that_do_not_meet_are_an_error_on_every_rank():
    hosts = {0: {"DTR_HOST_ID": "a"}, 1: {"DTR_HOST_ID": "b"}}
    expect_errors(2, [], "unreachable", settings={"DTR_TRANSPORT": "shm"}, rank_settings=hosts)


run_cases(
    [
        one_rank_leaves_no_worker,
        as_many_servers_as_ranks_leave_no_worker,
        a_missing_data_folder_is_an_error_on_every_rank,
        a_truncated_data_file_is_an_error_on_every_rank,
        a_missing_test_set_is_said_before_the_training,
        an_unwritable_checkpoint_folder_is_an_error_on_every_rank,
        a_full_disk_is_an_error_on_every_rank,
        resuming_without_a_checkpoint_starts_at_0_and_says_so,
        nonsense_numbers_are_refused,
        checkpoints_of_another_job_are_an_error_with_and_without_resume,
        max_steps_counts_from_0_when_resuming,
        a_broken_newest_checkpoint_is_passed_over_by_name,
        checkpoints_come_as_often_as_the_configuration_says,
        a_checkpoint_setting_that_cannot_be_met_is_an_error_on_every_rank,
        a_place_for_the_results_that_is_not_there_is_said_at_the_start,
        a_checkpoint_beyond_max_steps_is_said_and_reported_as_what_it_is,
        a_wrong_setting_of_one_rank_is_an_error_on_every_rank,
        transports_that_do_not_meet_are_an_error_on_every_rank,
    ]
)
