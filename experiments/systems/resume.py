"""Kills: a run ended anywhere by SIGKILL resumes to the bits of one left in peace.

Claim: with `jm.run(..., checkpoint=folder)` a process may be killed at any moment,
before its first checkpoint or in the middle of writing one; the same command then ends
with the same parameters, optimizer state, keys and metrics, to the bit. Over a mesh
(one worker's gradient at a time) it may go on with another number of devices, or after
one of two processes was killed; metrics, which devices add up in another order, are
left out of the comparison there.

    python -m experiments resume                 20 kills, and 4 + 20 on a mesh
    python -m experiments resume --preset quick  5 kills, and 1 + 1

All runs are on CPUs, as processes of their own. The last row says what a checkpoint
costs: it is written while the next chunk computes, so it costs most where chunks are
short.
"""

import dataclasses
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import jaxmedian as jm
from experiments.common.harness.options import Count, Seed, Whole
from experiments.common.harness.own_process import free_port, start_module
from experiments.common.harness.plots import panels
from experiments.common.harness.results import Claim, Result


@dataclasses.dataclass(frozen=True)
class Config:
    """How often to kill, and what.

    Attributes:
      num_kills: runs of `jaxmedian.run` to kill.
      device_changes: kills of a mesh that resumes with another number of devices.
      process_kills: kills of one of two processes that train together.
      num_steps: steps of each run.
      chunk: steps between two checkpoints.
      pause: seconds between two chunks, so that a kill can fall there too.
      sizes: parameters of the models whose checkpoints are timed.
      seed: of the moments of the kills.
    """

    num_kills: Whole = 20
    device_changes: Whole = 4
    process_kills: Whole = 20
    num_steps: Count = 200
    chunk: Count = 5
    pause: float = 0.02
    sizes: tuple[Count, ...] = (100_000, 10_000_000)
    seed: Seed = 0


PRESETS = {
    "quick": Config(
        num_kills=5, device_changes=1, process_kills=1, sizes=(100_000, 1_000_000)
    ),
    "tiny": Config(
        num_kills=1,
        device_changes=0,
        process_kills=0,
        num_steps=20,
        sizes=(),
    ),
}


class Kill(NamedTuple):
    """One run that was killed and resumed.

    Attributes:
      saved_step: step of the checkpoint it left, 0 without any.
      half_written: whether it left one half written, too.
      exact: whether the resumed run ended with the bits of the unbroken one.
    """

    saved_step: int
    half_written: bool
    exact: bool


def run(config: Config) -> Result:
    """Kills, resumes and compares; then times the checkpoints."""
    rng = np.random.default_rng(config.seed)
    with tempfile.TemporaryDirectory() as scratch:
        folders = (Path(scratch) / str(number) for number in range(10**6))
        plain, mesh = [Part(0)], [Part(2)]
        unbroken = _finish(config, plain, None)
        kills = []
        for number in range(config.num_kills):
            kills.append(_kill(config, rng, next(folders), plain, plain, unbroken))
            print(f"kill {number + 1} of {config.num_kills}: {kills[-1]}")
        on_mesh, of_processes = [], []
        if config.device_changes or config.process_kills:
            unbroken = _finish(config, mesh, None)
        for _ in range(config.device_changes):
            before, after = rng.choice((1, 2, 4, 8), 2, replace=False)
            parts = [Part(int(before))], [Part(int(after))]
            on_mesh.append(_kill(config, rng, next(folders), *parts, unbroken))
            print(f"{before} devices killed, {after} resume: {on_mesh[-1]}")
        for _ in range(config.process_kills):
            pair = [Part(2, process=0), Part(2, process=1)]
            kill = _kill(config, rng, next(folders), pair, pair, unbroken)
            of_processes.append(kill)
            print(f"one of two processes killed, both resume: {kill}")
        costs = {size: _cost(size, next(folders)) for size in config.sizes}
    claims = _claims(kills, on_mesh, of_processes, costs)
    curves = {"kills": _as_curve(kills)} if kills else {}
    found = {"killed": kills, "other devices": on_mesh, "two processes": of_processes}
    figures = {
        name: f"{sum(kill.exact for kill in some)} of {len(some)}"
        for name, some in found.items()
    }
    return Result(curves, claims, {"figures": figures})


# --- processes ------------------------------------------------------------------------


class Part(NamedTuple):
    """One process of a run: the devices of its mesh (0: no mesh), and its number."""

    devices: int
    process: int | None = None


def _kill(
    config: Config,
    rng: np.random.Generator,
    folder: Path,
    before: Sequence[Part],
    after: Sequence[Part],
    unbroken: str,
) -> Kill:
    """Kills one process of a run at a random moment, resumes it, compares."""
    num_edges = config.num_steps // config.chunk
    processes = _start(config, before, folder)
    edge = int(rng.integers(num_edges))  # 0: while it compiles
    for _ in range(edge + 1):
        assert processes[0].stdout is not None
        processes[0].stdout.readline()
    time.sleep(rng.uniform(0, 2.0 if edge == 0 else 2 * config.pause + 0.1))
    rng.choice(np.asarray(processes, object)).send_signal(signal.SIGKILL)
    for process in processes:  # the others would wait for it in vain
        process.kill()
        process.communicate()
    entries = [path.name for path in folder.glob("*")]
    saved = max((int(name) for name in entries if name.isdecimal()), default=0)
    half_written = any("tmp" in name for name in entries)
    return Kill(saved, half_written, _finish(config, after, folder) == unbroken)


def _finish(config: Config, parts: Sequence[Part], folder: Path | None) -> str:
    """Runs to the end and returns the hash of all bits."""
    processes = _start(config, parts, folder)
    printed = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError(f"a run failed: {printed}")
    return printed[0].rsplit("bits ", 1)[1].strip()


def _start(
    config: Config, parts: Sequence[Part], folder: Path | None
) -> list[subprocess.Popen[str]]:
    options = [f"--num-steps={config.num_steps}", f"--chunk={config.chunk}"]
    if folder is not None:
        options += [f"--folder={folder}", f"--pause={config.pause}"]
    if len(parts) > 1:
        options += [f"--coordinator=127.0.0.1:{free_port()}"]
        options += [f"--processes={len(parts)}"]
    return [
        start_module(
            "experiments.systems.killable",
            [
                *options,
                f"--devices={part.devices * len(parts)}",
                *([] if part.process is None else [f"--process={part.process}"]),
            ],
            max(1, part.devices),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        for part in parts
    ]


# --- what a checkpoint costs ----------------------------------------------------------


class Cost(NamedTuple):
    """Milliseconds between two chunk edges: without checkpoints and with them."""

    without: float
    saving: float


def _cost(size: int, folder: Path) -> Cost:
    """Times the chunks of a model with ``size`` parameters and as much momentum."""
    return Cost(_milliseconds(size, None), _milliseconds(size, folder))


def _milliseconds(size: int, folder: Path | None) -> float:
    def loss(params: jax.Array, target: jax.Array) -> jax.Array:
        return 0.5 * jnp.mean(jnp.square(params - target))

    chunk = max(1, 10_000_000 // size)
    edges: list[float] = []
    jm.run(
        loss,
        optax.chain(jm.majority_vote(), optax.sgd(1e-3, momentum=0.9)),
        jax.random.normal(jax.random.key(0), (size,)),
        jm.full_batch(jnp.arange(3.0)),
        num_steps=12 * chunk,
        key=0,
        chunk=chunk,
        on_chunk=lambda step, row: edges.append(time.perf_counter()),
        checkpoint=folder,
    )
    return 1e3 * float(np.median(np.diff(edges)))


# --- results --------------------------------------------------------------------------


def _claims(
    kills: Sequence[Kill],
    on_mesh: Sequence[Kill],
    of_processes: Sequence[Kill],
    costs: dict[int, Cost],
) -> tuple[Claim, ...]:
    def claim(statement: str, found: Sequence[Kill]) -> list[Claim]:
        if not found:
            return []
        exact = sum(kill.exact for kill in found)
        unsaved = sum(kill.saved_step == 0 for kill in found)
        half = sum(kill.half_written for kill in found)
        here = (
            f"{exact} of {len(found)} exact; {half} left a checkpoint half written, "
            f"{unsaved} none at all"
        )
        return [Claim(statement, here, exact == len(found))]

    timed = "; ".join(
        f"{cost.saving - cost.without:+.0f} on {cost.without:.0f} ms at d = {size:,}"
        for size, cost in costs.items()
    )
    cost = Claim("What a checkpoint adds to each chunk", timed)
    return (
        *claim("Killed at random moments, a run resumes to the same bits", kills),
        *claim("A mesh resumes to the same bits with more or fewer devices", on_mesh),
        *claim(
            "One of two processes killed, both resume to the same bits", of_processes
        ),
        *([cost] if timed else []),
    )


def _as_curve(kills: Sequence[Kill]) -> dict[str, np.ndarray]:
    columns: dict[str, Any] = dict(
        zip(Kill._fields, zip(*kills, strict=True), strict=True)
    )
    return {"step": np.asarray(columns.pop("saved_step"))} | {
        name: np.asarray(column, int) for name, column in columns.items()
    }


def plot(result: Result) -> Figure:
    """Draws what each kill left on disk."""
    figure, (axes,) = panels(1)
    if "kills" not in result.curves:
        return figure
    kills = result.curves["kills"]
    order = np.argsort(kills["step"], kind="stable")
    for half_written, label in ((0, "whole checkpoints only"), (1, "one half written")):
        chosen = kills["half_written"][order] == half_written
        axes.plot(
            np.flatnonzero(chosen), kills["step"][order][chosen], "o", label=label
        )
    axes.set(xlabel="kill, sorted", ylabel="step of the checkpoint it left")
    exact = f"{kills['exact'].sum()} of {len(kills['exact'])}"
    axes.set_title(f"{exact} killed runs resumed to the same bits")
    axes.legend()
    return figure
