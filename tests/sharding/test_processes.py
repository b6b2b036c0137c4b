"""Two processes of two devices each: the bits of one device."""

import ast
import os
import pathlib
import socket
import subprocess
import sys

import jax
import pytest
import run_of_a_process
from compiling import xla_flags
from rules_of_a_process import data, digests, updates

import jaxmedian as jm

SUPPORT = pathlib.Path(__file__).parents[1] / "support"


def said_by_two_processes(script, *arguments, devices=2):
    """Runs a script in two processes; what each wrote last, and on its error stream."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "XLA_FLAGS": xla_flags(devices),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(SUPPORT.parents[1]), str(SUPPORT)]),
    }
    command = [sys.executable, str(SUPPORT / script)]
    running = [
        subprocess.Popen(
            [*command, str(process), "2", str(port), *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    try:
        said = [process.communicate(timeout=300) for process in running]
    finally:
        for process in running:
            process.kill()
    for process, (_, errors) in zip(running, said, strict=True):
        assert process.returncode == 0, errors
    return [(out.splitlines()[-1].split(" ", 1), errors) for out, errors in said]


def test_votes_and_medians_of_two_processes_are_those_of_one_device():
    expected = digests(jax.jit(updates(None))(*data()))
    for (num_devices, found), _ in said_by_two_processes("rules_of_a_process.py"):
        assert num_devices == "4"
        assert ast.literal_eval(found) == expected
    assert len(set(expected.values())) == len(expected)


def test_a_run_of_two_processes_resumes_to_the_bits_of_one_device(tmp_path):
    """With data of its own workers in each, drawn and read; progress is shown once."""
    pytest.importorskip("orbax.checkpoint")
    pytest.importorskip("tqdm")
    whole = run_of_a_process.DATA
    expected = [
        run_of_a_process.digest(run_of_a_process.train(batches, run_of_a_process.STEPS))
        for batches in (jm.epochs(whole, 2, 3), run_of_a_process.Reader(whole))
    ]
    said = said_by_two_processes("run_of_a_process.py", str(tmp_path), devices=1)
    for process, ((num_devices, found), errors) in enumerate(said):
        assert num_devices == "2"
        assert ast.literal_eval(found) == expected
        assert ("Resuming at step 2" in errors) == (process == 0)
        assert ("step/s" in errors) == (process == 0)
    assert len(set(expected)) == 2


def test_a_process_that_starts_another_run_is_named_on_all_of_them():
    """Nothing hangs, and afterwards the same run trains."""
    told = said_by_two_processes("unlike_processes.py", devices=1)
    for process, ((number, found), _) in enumerate(told):
        assert int(number) == process
        found = ast.literal_eval(found)
        assert len(found) == 18
        assert all(found.values()), found
