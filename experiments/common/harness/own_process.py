"""Run a module in a process of its own, where JAX must start in another way."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any


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
