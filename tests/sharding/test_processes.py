"""Two processes of two devices each: the bits of one device."""

import ast
import os
import pathlib
import socket
import subprocess
import sys

import jax
from rules_of_a_process import data, digests, updates

SUPPORT = pathlib.Path(__file__).parents[1] / "support"


def test_votes_and_medians_of_two_processes_are_those_of_one_device():
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(SUPPORT.parents[1]), str(SUPPORT)]),
    }
    script = str(SUPPORT / "rules_of_a_process.py")
    running = [
        subprocess.Popen(
            [sys.executable, script, str(process), "2", str(port)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    try:
        expected = digests(jax.jit(updates(None))(*data()))
        said = [process.communicate(timeout=300) for process in running]
    finally:
        for process in running:
            process.kill()
    for process, (out, errors) in zip(running, said, strict=True):
        assert process.returncode == 0, errors
        num_devices, found = out.splitlines()[-1].split(" ", 1)
        assert num_devices == "4"
        assert ast.literal_eval(found) == expected
    assert len(set(expected.values())) == len(expected)
