"""The trainer of all experiments: a rule over settings and seeds, one compiled program.

A run is a function of its settings (learning rate, b, ...), its seed and what the
workers are served, so a sweep is compiled once for each rule. The host sees every edge
of a chunk: there it measures, saves, and may be stopped or killed; what was saved goes
on to the same bits, and what is finished is not trained again.
"""

import functools
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm.auto import tqdm

import jaxmedian as jm
from experiments.common.harness.misuse import Misuse
from experiments.common.training.outcomes import Runs, Settings
from experiments.common.training.problems import Problem, accuracies, serve
from jaxmedian.noise import keys

Build = Callable[..., optax.GradientTransformation]  # (key=..., **setting)

_SAVED_EVERY = 10.0  # seconds of training that a kill may cost
_CLOCK = "seconds and core seconds"


def build_trainer(
    problem: Problem,
    build: Build,
    *,
    batch_size: int | None,
    num_steps: int,
    chunk: int,
    replace: bool = True,
    measure: Callable[[Any], dict[str, jax.Array]] | None = None,
    spoil: Callable[..., Callable[..., Any]] | None = None,
    worker_chunk: int | None = None,
) -> Callable[..., Runs]:
    """Builds ``(settings, split, checkpoint=None, on=problem, **common) -> Runs``.

    It is compiled once a shape. ``common`` are scalars that all settings share: not
    vmapped, they can choose between branches (`jax.lax.switch`) of which only one is
    computed. ``checkpoint`` is the folder in which the runs are kept, and from which
    they go on. ``on`` is a problem of the same model and shapes to train on instead.

    Args:
      problem: data, networks and seeds.
      build: ``build(key=key, **setting, **common)`` -> optimizer; everything may be
        traced.
      batch_size: samples a worker and step; None for all that it holds.
      num_steps: steps of every run.
      chunk: steps between two measurements.
      replace: whether samples are drawn with replacement.
      measure: parameters -> scalars; by default the `accuracies`.
      spoil: ``spoil(next_batch, **common)`` -> what serves the workers instead.
      worker_chunk: workers whose gradients are computed at a time, run by run; None for
        all. On CPUs large networks are faster with 1.

    What it builds raises:
      Misuse: for a checkpoint of runs on other data.
    """
    # Small batches are mostly overhead, which runs share; of whole ones the products
    # are, which on CPUs take longer over all runs than run by run.
    is_whole = batch_size is None or worker_chunk is not None
    over_runs = _one_by_one if is_whole else _all_at_once
    start = _build_start(build, over_runs)
    advance = _build_advance(problem, build, over_runs, measure, spoil, worker_chunk)

    def train(
        settings: Settings,
        split: jm.splits.Split,
        checkpoint: Path | None = None,
        on: Problem = problem,
        **common: Any,
    ) -> Runs:
        traced = {name: jnp.asarray(v, jnp.float32) for name, v in settings.items()}
        shared = {name: jnp.asarray(value) for name, value in common.items()}
        arrays = {name: getattr(on, name) for name in ("keys", "validation", "test")}
        next_batch = serve(on.train, split, batch_size, replace)
        num_settings = len(next(iter(traced.values())))
        params = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (num_settings, *leaf.shape)),
            on.params,
        )

        def go_on(state: Any, done: int) -> tuple[Any, dict[str, jax.Array]]:
            length = min(chunk, num_steps - done)
            steps = jnp.int32(done), length
            return advance(traced, arrays, state, shared, next_batch, *steps)

        state = start(traced, on.keys, params, shared)
        kept = None if checkpoint is None else _Checkpoints(checkpoint, on, split)
        return Runs(settings, *_chunk_by_chunk(go_on, state, num_steps, chunk, kept))

    return train


def _build_start(build: Build, over_runs: Callable[..., Any]) -> Callable[..., Any]:
    """Builds ``(settings, seeds, params, common) -> state`` of all runs at step 0."""

    @jax.jit
    def start(settings: Any, seeds: jax.Array, params: Any, common: Any) -> Any:
        def start_one(setting: Any, key: jax.Array, params: Any) -> Any:
            return params, build(key=key, **setting, **common).init(params)

        return over_runs(start_one, settings, seeds, params)

    return start


def _build_advance(
    problem: Problem,
    build: Build,
    over_runs: Callable[..., Any],
    measure: Callable[[Any], dict[str, jax.Array]] | None,
    spoil: Callable[..., Callable[..., Any]] | None,
    worker_chunk: int | None,
) -> Callable[..., Any]:
    """Builds what takes all runs through a chunk of ``length`` steps, and measures."""

    @functools.partial(jax.jit, static_argnames="length")
    def advance(
        settings: Any,
        arrays: dict[str, Any],
        state: Any,
        common: Any,
        next_batch: Any,
        done: Any,
        length: int,
    ) -> tuple[Any, dict[str, jax.Array]]:
        own = problem._replace(**arrays)
        measured = measure or functools.partial(accuracies, own)
        if spoil is not None:
            next_batch = spoil(next_batch, **common)

        def advance_one(setting: Any, key: jax.Array, state: Any) -> Any:
            params, opt_state = state
            optimizer = build(key=key, **setting, **common)

            run_key = jax.random.fold_in(key, keys.RUN)

            def batch_of(_: jax.Array, step: jax.Array) -> Any:
                step_key = jax.random.fold_in(run_key, done + step)
                return next_batch(step_key, done + step)

            found = jm.run_pure(
                problem.model.loss,
                optimizer._replace(init=lambda params: opt_state),
                params,
                batch_of,
                length,
                key,
                chunk=length,
                metrics=[lambda params, grads, updates: measured(params)],
                worker_chunk=worker_chunk,
            )
            row = {name: values[0] for name, values in found.metrics.items()}
            return (found.params, found.opt_state), row | {"step": done + length}

        return over_runs(advance_one, settings, own.keys, state)

    return advance


def part_folder(checkpoints: Path | None, name: str) -> Path | None:
    """Returns where one part of an experiment keeps its checkpoint, None for nowhere.

    >>> part_folder(Path("checkpoints"), "sto-sign, B = max|g|").name
    'sto-sign, B = max%7Cg%7C'
    """
    return None if checkpoints is None else checkpoints / quote(name, safe=" ,=")


def _all_at_once(one: Any, settings: Any, keys: jax.Array, state: Any) -> Any:
    """Maps ``one(setting, key, state)`` over settings [G], keys [S], states [G, S]."""
    over_seeds = jax.vmap(one, in_axes=(None, 0, 0))
    return jax.vmap(over_seeds, in_axes=(0, None, 0))(settings, keys, state)


def _one_by_one(one: Any, settings: Any, keys: jax.Array, state: Any) -> Any:
    """The same, run after run."""

    def over_seeds(row: Any) -> Any:
        setting, states = row
        return jax.lax.map(lambda own: one(setting, *own), (keys, states))

    return jax.lax.map(over_seeds, (settings, state))


class _Checkpoints:
    """The checkpoints of some runs, which know what data those were made on."""

    def __init__(self, path: Path, problem: Problem, split: jm.splits.Split) -> None:
        parts = (problem.train, problem.validation, problem.test)
        digest = hashlib.blake2b(digest_size=16)
        for leaf in jax.tree.leaves((parts, split.order, split.offsets)):
            digest.update(np.asarray(leaf).tobytes())
        self.path = path
        self._digest = np.frombuffer(digest.digest(), np.uint8)

    def save(self, done: int, state: Any, table: dict[str, np.ndarray]) -> None:
        """Saves the runs and what was measured so far."""
        jm.checkpoint.save(self.path, done, (state, table, self._digest))

    def restore(
        self, state: Any, table: dict[str, np.ndarray]
    ) -> tuple[int, Any, dict[str, np.ndarray]]:
        """Returns the steps done, 0 without a checkpoint, and what was saved then."""
        wanted = (state, table, self._digest)
        done, (state, rows, digest) = jm.checkpoint.restore(self.path, wanted)
        if not np.array_equal(digest, self._digest):
            raise Misuse(
                f"the checkpoints in {self.path} are of runs on other data. Give the "
                "same data, or leave out --resume to start from the beginning."
            )
        return done, state, {name: np.array(row) for name, row in rows.items()}


def _chunk_by_chunk(
    go_on: Callable[[Any, int], tuple[Any, dict[str, jax.Array]]],
    state: Any,
    num_steps: int,
    chunk: int,
    kept: _Checkpoints | None,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Trains to the end from where the checkpoint is.

    Args:
      go_on: ``(state, done) -> (state, metrics [G, S])`` of the next chunk.
      state: at step 0.
      num_steps: steps to take.
      chunk: steps between two edges.
      kept: where the runs are saved; None saves nothing.

    Returns:
      Metrics [G, S, T], and seconds and core seconds [T, 2] of the chunks.
    """
    edges = [*range(chunk, num_steps, chunk), num_steps]
    shapes = jax.eval_shape(lambda state: go_on(state, 0), state)[1]
    table = {
        name: np.zeros((len(edges), *row.shape), row.dtype)
        for name, row in shapes.items()
    } | {_CLOCK: np.zeros((len(edges), 2), np.float32)}
    saved = done = 0
    if kept is not None:
        saved, state, table = kept.restore(state, table)
        done = saved
        if done:
            print(f"  found in {kept.path}/: {done} of {num_steps} steps")
    last_saved = time.monotonic()
    try:
        for number in tqdm(
            range(edges.index(done) + 1 if done else 0, len(edges)), disable=None
        ):
            start = _clock()
            state, row = jax.block_until_ready(go_on(state, done))
            for name, values in (row | {_CLOCK: _clock() - start}).items():
                table[name][number] = values
            done = edges[number]
            if kept is not None and time.monotonic() - last_saved > _SAVED_EVERY:
                saved, last_saved = done, time.monotonic()
                kept.save(done, state, table)
    finally:  # Ctrl-C included
        if kept is not None and done > saved:
            kept.save(done, state, table)
    clock = table.pop(_CLOCK)
    return {name: np.moveaxis(rows, 0, 2) for name, rows in table.items()}, clock


def _clock() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])


def run_to_end(
    *arguments: Any, on_chunk: Callable[..., Any] | None = None, **options: Any
) -> jm.RunResult:
    """Runs `jaxmedian.run`, but for Ctrl-C: it ends an experiment, not a run alone.

    Raises:
      KeyboardInterrupt: if the run was stopped, and not by ``on_chunk``.
    """
    is_over = False
    if (ask := on_chunk) is not None:

        def on_chunk(step: int, row: dict[str, Any]) -> Any:
            nonlocal is_over
            is_over = ask(step, row)
            return is_over

    result = jm.run(*arguments, on_chunk=on_chunk, **options)
    if result.step < arguments[4] and not is_over:
        raise KeyboardInterrupt
    return result
