"""Time steps of `jm.run` fed in four ways, and on a mesh beside a bare loop.

Run by the experiment `loading`, in a process of its own.
"""

import itertools
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxmedian as jm
from experiments.systems.loading import Config

_PIECE = 2**20  # numbers written to the file at a time


def loss(params: Any, batch: jax.Array) -> jax.Array:
    """Computes how badly a small network recognises the sum of each sample."""
    hidden = jax.nn.relu(batch @ params["in"])
    return jnp.mean(jnp.square(hidden @ params["out"] - jnp.sum(batch, axis=1)))


def start(config: Config) -> Any:
    """Draws the network."""
    keys = jax.random.split(jax.random.key(config.seed))
    shape = config.features, config.hidden
    return {
        "in": jax.random.normal(keys[0], shape) / config.features**0.5,
        "out": jax.random.normal(keys[1], shape[1:]) / config.hidden**0.5,
    }


def chain(axis_name: str | None = None) -> Any:
    """Builds the optimizer of all runs."""
    return jm.noisy_sign_sgd(1e-4, jm.noise.uniform(1e-2), 0, axis_name=axis_name)


def write_file(config: Config, folder: Path) -> np.memmap:
    """Writes the workers' samples, float32 ``[M, n, features]``."""
    sample = config.num_workers * config.features * 4
    num_samples = max(int(config.gigabytes * 1e9 / sample), config.batch_size)
    shape = config.num_workers, num_samples, config.features
    rng = np.random.default_rng(config.seed)
    with (folder / "samples").open("wb") as file:
        for first in range(0, int(np.prod(shape)), _PIECE):
            size = min(_PIECE, int(np.prod(shape)) - first)
            file.write(rng.random(size, dtype=np.float32).tobytes())
    return np.memmap(folder / "samples", np.float32, "r", shape=shape)


def walk(samples: np.ndarray, batch_size: int, first: int) -> Iterator[np.ndarray]:
    """Yields batches ``[M, batch, features]`` in order, again and again."""
    num_batches = samples.shape[1] // batch_size
    for number in itertools.count(first):
        place = number % num_batches * batch_size
        yield samples[:, place : place + batch_size]


class Edges:
    """Notes when edges are reached, by the clock and in seconds of all cores."""

    def __init__(self) -> None:
        self._times: list[tuple[float, float]] = []

    def note(self) -> None:
        """Notes an edge."""
        self._times.append((time.perf_counter(), time.process_time()))

    def ms(self, chunk: int) -> tuple[float, float]:
        """Returns the median of each a step, over all chunks but the first."""
        between = np.diff(np.array(self._times), axis=0) / chunk
        clock, cores = 1e3 * np.median(between, axis=0)
        return float(clock), float(cores)


def ms_of_run(config: Config, next_batch: Any, **options: Any) -> tuple[float, float]:
    """Trains, and returns the milliseconds a step: by the clock, and of the cores."""
    edges = Edges()
    jm.run(
        loss,
        chain("workers" if "mesh" in options else None),
        start(config),
        next_batch,
        config.num_steps,
        0,
        chunk=config.chunk,
        on_chunk=lambda step, row: edges.note(),
        **options,
    )
    return edges.ms(config.chunk)


def ms_of_loop(config: Config, batch: Any, mesh: Any) -> tuple[float, float]:
    """Trains with a step of one's own, and waits where a run has its edges."""
    optimizer = chain("workers")
    step = jm.sharding.shard_step(loss, optimizer, mesh, donate=True)
    params = jm.sharding.replicate(start(config), mesh)
    opt_state = jm.sharding.init_state(optimizer, params, mesh, config.num_workers)
    edges = Edges()
    for number in range(config.num_steps):
        params, opt_state, metrics = step(params, opt_state, batch)
        if number % 2:  # as many steps ahead as a run is
            metrics["loss"].block_until_ready()
        if (number + 1) % config.chunk == 0:
            jax.block_until_ready(params)
            edges.note()
    return edges.ms(config.chunk)


def measure(config: Config, folder: Path) -> dict[str, Any]:
    """Takes turns between all ways to train."""
    samples = write_file(config, folder)
    few = np.array(samples[:, : 8 * config.batch_size])  # cycled through
    one = few[:, : config.batch_size]
    mesh = jm.sharding.workers_mesh(config.devices)
    placed = jm.sharding.shard_workers(one, mesh)
    on_device = jm.full_batch(jnp.asarray(one))
    ways: dict[str, Callable[[int], tuple[float, float]]] = {
        "batch on the device": lambda turn: ms_of_run(config, on_device),
        "batch on the device, called for": lambda turn: ms_of_run(
            config, itertools.repeat(jnp.asarray(one))
        ),
        "host memory": lambda turn: ms_of_run(config, walk(few, config.batch_size, 0)),
        "memory-mapped file": lambda turn: ms_of_run(
            config, walk(samples, config.batch_size, turn * config.num_steps)
        ),
        "loop over shard_step": lambda turn: ms_of_loop(config, placed, mesh),
        "run(mesh=)": lambda turn: ms_of_run(config, jm.full_batch(placed), mesh=mesh),
    }
    before, peaks = _anonymous_megabytes(), dict.fromkeys(ways, 0.0)
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for turn in range(config.turns):
        for name in list(ways) if turn % 2 else reversed(ways):
            turns[name].append(ways[name](turn))
            peaks[name] = max(peaks[name], _anonymous_megabytes() - before)
    compared = {
        "batch on the device, called for": "batch on the device",
        "host memory": "batch on the device",
        "memory-mapped file": "batch on the device",
        "run(mesh=)": "loop over shard_step",
    }
    return {
        "rows": {
            name: {
                "ms": float(np.median([clock for clock, _ in times])),
                "core_ms": float(np.median([cores for _, cores in times])),
                "turns": [clock for clock, _ in times],
            }
            for name, times in turns.items()
        },
        "ratios": {n: _ratio(turns[n], turns[than]) for n, than in compared.items()},
        "memory": {
            "file": samples.nbytes / 1e6,
            "mapped": peaks["memory-mapped file"],
            "device": peaks["batch on the device"],
        },
    }


def _ratio(times: Any, others: Any) -> list[float]:
    """Returns the median, least and largest ratio of turns, and that of core times."""
    clock, cores = np.divide(times, others).T
    middle, least, largest = np.median(clock), clock.min(), clock.max()
    return [float(x) for x in (middle, least, largest, np.median(cores))]


def _anonymous_megabytes() -> float:
    """Reads the memory of this process that is not of files; 0 where Linux is not."""
    status = Path("/proc/self/status")
    text = status.read_text() if status.exists() else ""
    found = re.search(r"RssAnon:\s+(\d+) kB", text)
    return int(found[1]) / 1e3 if found else 0.0


if __name__ == "__main__":
    config = Config(**json.loads(sys.argv[1]))
    with tempfile.TemporaryDirectory(dir=config.scratch) as folder:
        print(json.dumps(measure(config, Path(folder))))
