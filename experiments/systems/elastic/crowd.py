"""Start, kill and restart the processes of the experiment `elastic`.

They are forked from one server that has imported everything already, and has computed
nothing: a restart takes what JAX takes to start and to compile.
"""

import dataclasses
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from experiments.common.harness.own_process import free_port, virtual_devices

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["experiments.systems.elastic.survivor", "torchft"])


class Step(NamedTuple):
    """What a process last said: the number of steps taken, and who took part."""

    number: int
    present: str


class Crowd:
    """A lighthouse and the processes that train; all end with the ``with`` block.

    Args:
      config: the experiment's.
      folder: for what they say, and their checkpoints.
      seconds: after which something is given up.
    """

    def __init__(self, config: Any, folder: Path, seconds: float):
        """Starts nobody yet."""
        self._config, self._folder, self._seconds = config, folder, seconds
        self._port = free_port()
        self._running: dict[str, Any] = {}
        self._said: dict[str, Path] = {}
        self._starts = 0

    def __enter__(self) -> "Crowd":
        """Starts the lighthouse."""
        self.start_lighthouse()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Kills whoever is left."""
        self.kill(list(self._running))

    def start_lighthouse(self) -> None:
        """Starts the lighthouse, at the same port each time."""
        self.start("lighthouse", "lighthouse", {"port": self._port})
        self.wait("the lighthouse", lambda: self._text("lighthouse") != "")

    def start_members(self, numbers: Iterable[int], num_steps: int) -> None:
        """Starts processes, for the first time or again."""
        for number in numbers:
            options = {
                "process": number,
                "num_steps": num_steps,
                "lighthouse": f"http://localhost:{self._port}",
                "folder": str(self._folder / "checkpoints"),
            }
            self.start(str(number), "member", options)

    def kill(self, names: Iterable[str | int]) -> None:
        """Kills processes by SIGKILL, all before any is waited for."""
        killed = [self._running.pop(str(name)) for name in names]
        for process in killed:
            process.kill()
        for process in killed:
            process.join()

    def last_step(self, number: int) -> Step:
        """Returns the last step that a process has told of, since it was started."""
        for line in reversed(self._text(str(number)).splitlines()):
            words = line.split()
            if len(words) == 3 and words[0] == "step":
                return Step(int(words[1]), words[2])
        return Step(0, "")

    def results(self) -> list[dict[str, Any]]:
        """Waits until all processes have ended by themselves, and reads their last."""
        names = [name for name in self._running if name != "lighthouse"]

        def have_ended() -> bool:
            return all(self._running[name].exitcode is not None for name in names)

        self.wait("the processes to end", have_ended)
        return [json.loads(self._text(name).splitlines()[-1]) for name in names]

    def wait(self, what: str, holds: Callable[[], bool]) -> float:
        """Waits until something holds; returns after how many seconds it did.

        Raises:
          RuntimeError: if it takes too long, or if a process fails.
        """
        start = time.monotonic()
        while not holds():
            for name, process in self._running.items():
                if process.exitcode:
                    said = self._said[name].with_suffix(".stderr").read_text()
                    raise RuntimeError(f"Process {name} failed:\n{said[-3000:]}")
            if time.monotonic() - start > self._seconds:
                raise RuntimeError(f"Waited too long for {what}.")
            time.sleep(0.02)
        return time.monotonic() - start

    def start(self, name: str, task: str, options: dict[str, Any]) -> None:
        """Starts a task of `survivor` in a process of its own."""
        self._starts += 1
        said = self._folder / f"{self._starts}-{name}.stdout"
        config = dataclasses.asdict(self._config)
        arguments = (said, task, json.dumps({"config": config, **options}))
        self._running[name] = _SERVER.Process(target=_survive, args=arguments)
        self._running[name].start()
        self._said[name] = said

    def _text(self, name: str) -> str:
        """Reads whole lines only: the last may still be written."""
        text = self._said[name].read_text() if self._said[name].exists() else ""
        return text[: text.rfind("\n") + 1]


def _survive(said: Path, task: str, options: str) -> None:
    """Runs a task in a process just forked, on one CPU device."""
    for stream, number in (("stdout", 1), ("stderr", 2)):
        with said.with_suffix(f".{stream}").open("w") as file:
            os.dup2(file.fileno(), number)
    os.environ.update(virtual_devices(1))
    from experiments.systems.elastic import survivor

    survivor.main(task, options)


def time_collective(config: Any, folder: Path, seconds: float) -> float:
    """Returns steps a second of the same training over a mesh of processes."""
    with Crowd(config, folder, seconds) as crowd:
        coordinator = f"localhost:{free_port()}"
        for number in range(config.processes):
            options = {"process": number, "coordinator": coordinator}
            crowd.start(str(number), "collective", options)
        return crowd.results()[0]["steps_per_second"]
