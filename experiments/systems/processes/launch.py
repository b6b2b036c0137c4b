"""Start several processes of one module, and wait for them."""

import contextlib
import dataclasses
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments.common.harness.own_process import free_port, start_module
from experiments.systems.processes.network import Host, NotAllowed, limited_hosts

PARTICIPANT = "experiments.systems.processes.participant"
_SECONDS = 900.0  # after which a run is given up


def start(
    task: str,
    config: Any,
    num_processes: int = 1,
    num_devices: int = 1,
    hosts: list[Host] | None = None,
    module: str = PARTICIPANT,
) -> dict[str, Any]:
    """Runs a task in fresh processes.

    Args:
      task: one of the module's.
      config: the experiment's.
      num_processes: how many.
      num_devices: virtual CPU devices of each.
      hosts: where each of them runs; on loopback if None.
      module: what each of them runs, see `participant.main`.

    Returns:
      What the first process found.

    Raises:
      RuntimeError: if one fails, with what it said, or if they take too long.
    """
    address = "localhost" if hosts is None else hosts[0].address
    options = [
        *(task, "--coordinator", f"{address}:{free_port()}"),
        *("--num-processes", str(num_processes)),
        *("--config", json.dumps(dataclasses.asdict(config), default=str)),
    ]
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        running: list[subprocess.Popen[str]] = []
        for process in range(num_processes):
            streams = {
                name: stack.enter_context(Path(scratch, f"{process}.{name}").open("w"))
                for name in ("stdout", "stderr")
            }
            running.append(
                start_module(
                    module,
                    [*options, "--process", str(process)],
                    num_devices,
                    () if hosts is None else hosts[process].command,
                    **streams,
                )
            )
        try:
            codes = _wait(running)
        finally:
            for one in running:
                one.kill()
                one.wait()
        for number, code in enumerate(codes):
            if code:  # not None either: it was still waiting for the others
                said = Path(scratch, f"{number}.stderr").read_text()
                raise RuntimeError(f"Process {number} failed:\n{said}")
        return json.loads(Path(scratch, "0.stdout").read_text().splitlines()[-1])


def start_on_link(
    task: str,
    config: Any,
    num_processes: int,
    megabits: float,
    module: str = PARTICIPANT,
) -> dict[str, Any]:
    """Runs a task in processes whose cables carry so many megabits a second.

    Returns:
      What the first process found; "skipped" says why where no link can be made.
    """
    try:
        with limited_hosts(num_processes, megabits) as hosts:
            return start(task, config, num_processes, hosts=hosts, module=module)
    except NotAllowed as refusal:
        print(f"The limited link is left out: {refusal}.")
        return {"skipped": str(refusal)}


def _wait(running: list[subprocess.Popen[str]]) -> list[int | None]:
    """Waits until all have ended, or one has failed: the others would wait for it."""
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline:
        codes = [process.poll() for process in running]
        if any(codes) or None not in codes:
            return codes
        time.sleep(0.05)
    raise RuntimeError(f"The processes took more than {_SECONDS:g} seconds.")
