"""Start several `participant` processes, and wait for them."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments.systems.processes.network import Host

_ROOT = Path(__file__).parents[3]
_SECONDS = 900.0  # after which a run is given up


def start(
    task: str,
    config: Any,
    num_processes: int = 1,
    num_devices: int = 1,
    hosts: list[Host] | None = None,
) -> dict[str, Any]:
    """Runs a task in fresh processes.

    Args:
      task: one of the participant's.
      config: the experiment's.
      num_processes: how many.
      num_devices: virtual CPU devices of each.
      hosts: where each of them runs; on loopback if None.

    Returns:
      What the first process found.

    Raises:
      RuntimeError: if one fails, with what it said, or if they take too long.
    """
    address = "localhost" if hosts is None else hosts[0].address
    coordinator = f"{address}:{_free_port()}"
    flag = f"--xla_force_host_platform_device_count={num_devices}"
    environment = os.environ | {"XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"}
    commands = []
    for process in range(num_processes):
        enter = () if hosts is None else hosts[process].command
        commands.append(
            [
                *(
                    *enter,
                    sys.executable,
                    "-m",
                    "experiments.systems.processes.participant",
                ),
                *(task, "--coordinator", coordinator, "--process", str(process)),
                *("--num-processes", str(num_processes)),
                *("--config", json.dumps(dataclasses.asdict(config))),
            ]
        )
    return json.loads(_run_together(commands, environment).splitlines()[-1])


def _run_together(commands: list[list[str]], environment: dict[str, str]) -> str:
    """Runs commands side by side; returns what the first one printed."""
    with tempfile.TemporaryDirectory() as folder:
        running, errors = [], []
        for number, command in enumerate(commands):
            output = Path(folder, f"{number}.out")
            errors.append(Path(folder, f"{number}.err"))
            with output.open("w") as out, errors[-1].open("w") as err:
                running.append(
                    subprocess.Popen(
                        command, env=environment, cwd=_ROOT, stdout=out, stderr=err
                    )
                )
        try:
            codes = _wait(running)
        finally:
            for process in running:
                process.kill()
                process.wait()
        for number, code in enumerate(codes):
            if code:  # not None either: it was still waiting for the others
                said = errors[number].read_text()
                raise RuntimeError(f"Process {number} failed:\n{said}")
        return Path(folder, "0.out").read_text()


def _wait(running: list[subprocess.Popen[bytes]]) -> list[int | None]:
    """Waits until all have ended, or one has failed: the others would wait for it."""
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline:
        codes = [process.poll() for process in running]
        if any(codes) or None not in codes:
            return codes
        time.sleep(0.05)
    raise RuntimeError(f"The processes took more than {_SECONDS:g} seconds.")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
