"""Run modules in processes of their own, where JAX must start in another way."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[3]


def run_module(
    module: str, config: Any, environment: Mapping[str, str], timeout: float
) -> dict[str, Any]:
    """Runs ``python -m module CONFIG`` and reads the JSON of the last line it prints.

    Args:
      module: its name; it gets the Config as JSON.
      config: a dataclass.
      environment: variables beside those of this process.
      timeout: seconds.

    Raises:
      ValueError: with what the process complained of, if it failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, json.dumps(dataclasses.asdict(config))],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if done.returncode:
        raise ValueError(f"The process of {module} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def start_module(
    module: str,
    options: Sequence[str],
    num_devices: int,
    enter: Sequence[str] = (),
    **files: Any,
) -> "subprocess.Popen[str]":
    """Starts ``python -m module OPTIONS`` on virtual CPU devices.

    Args:
      module: its name.
      options: of its command line.
      num_devices: how many devices the CPU is split into.
      enter: what to put before the command, such as to run it on another host.
      **files: where its output goes, as `subprocess.Popen` takes it.
    """
    return subprocess.Popen(
        [*enter, sys.executable, "-m", module, *options],
        env=os.environ | virtual_devices(num_devices),
        cwd=_ROOT,
        text=True,
        **files,
    )


def virtual_devices(num_devices: int) -> dict[str, str]:
    """Returns what splits the CPU into devices, beside the user's own `XLA_FLAGS`."""
    flag = f"--xla_force_host_platform_device_count={num_devices}"
    flags = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    return {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def free_port() -> int:
    """Returns a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
