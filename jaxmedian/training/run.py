"""Runs of many steps with simulated workers.

`run` repeats the step of `jaxmedian.training.step` in compiled chunks and returns to
the host between them, to measure, report, save and stop; `run_pure` is the same without
the host, so that whole runs can be vmapped over seeds and noise scales.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmedian.checkpoint import Folder, Path
from jaxmedian.noise import keys
from jaxmedian.training.chunks import (
    ExtraArgs,
    Feed,
    Metric,
    NextBatch,
    TrainState,
    build_chunk,
    build_feed,
    start_state,
)
from jaxmedian.training.interrupts import (
    StopRequest,
    deferred_interrupts,
    wait_until_ready,
)
from jaxmedian.training.reporting import OnChunk, Row, build_report, progress_bar
from jaxmedian.training.resume import Edge, RunCheckpoints, open_run
from jaxmedian.workers.checks import check_count
from jaxmedian.workers.gradients import LossFn


class RunResult(NamedTuple):
    """What a run leaves.

    Attributes:
      params: parameters after ``step`` steps.
      opt_state: optimizer state after ``step`` steps, keys included.
      metrics: name -> array with one entry a chunk edge, first axis; "step" says
        which.
      step: steps taken; fewer than asked for if the run was stopped.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> loss = lambda params, batch: 0.5 * (params - batch) ** 2
    >>> batches = jm.full_batch(jnp.array([1., 2., 10.]))
    >>> result = jm.run(loss, jm.median_sgd(0.5), jnp.float32(0), batches, 3, key=0)
    >>> float(result.params), result.step, result.metrics["loss"].shape
    (1.75, 3, (1,))
    """

    params: Any
    opt_state: Any
    metrics: dict[str, Any]
    step: int


def run(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    params: Any,
    next_batch: NextBatch,
    num_steps: int,
    key: keys.Key,
    *,
    chunk: int = 100,
    metrics: Sequence[Metric] = (),
    progress: bool = False,
    on_chunk: OnChunk | None = None,
    checkpoint: Folder | Path | None = None,
    worker_chunk: int | None = None,
    extra_args: ExtraArgs | None = None,
    opt_state: Any = None,
    step: int = 0,
    donate: bool = True,
) -> RunResult:
    """Trains up to step ``num_steps``, in compiled chunks.

    Ctrl-C stops at the next chunk edge and returns what is there, whatever the run is
    doing: compiling, restoring, writing a checkpoint; a second Ctrl-C raises
    KeyboardInterrupt at once, or when the compiler returns. With ``checkpoint``, the
    same call goes on from there, and so it does after a kill at any moment: it ends
    with the parameters, state and metrics of a run that nobody stopped, to the bit.

    A SIGINT handler of the program's own is called first: where it raises
    KeyboardInterrupt the run stops as above, where it returns the run goes on. Where
    SIGINT is ignored it stays so. In threads other than the main one Python delivers no
    signals.

    Args:
      loss_fn: as in `jaxmedian.make_step`, without auxiliary output.
      optimizer: an optax chain with exactly one aggregator. It gets the mean loss over
        the workers present as ``value``, for `optax.contrib.reduce_on_plateau` and its
        like, unless ``extra_args`` gives another.
      params: initial parameters. The run works on copies: these arrays live on.
      next_batch: ``next_batch(key, step) -> batch [M, ...]``, traced. Its key is
        already the step's own, ``fold_in(fold_in(key, noise.keys.RUN), step)``: one
        seed may serve the optimizer too. See `jaxmedian.full_batch`,
        `jaxmedian.mini_batches` and `jaxmedian.epochs`, whose key is its own.
      num_steps: the step at which the run ends, >= 0.
      key: of the batches; the optimizer's noise has its own branches of it, or its own.
      chunk: steps between two measurements, >= 1.
      metrics: functions ``(params, grads, updates) -> {name: scalar or array}``,
        evaluated at each chunk edge beside "loss" and those of
        `jaxmedian.diagnostics.of_step`. They see what the next step would: the
        parameters at the edge, and the gradients ``[M, ...]`` and updates of the batch
        that comes next. No name may be "loss" or "step", or that of two functions.
      progress: show a progress bar (needs tqdm).
      on_chunk: ``on_chunk(step, row)``, called on the host at each chunk edge with the
        row of metrics, scalars as floats and arrays as NumPy arrays; True stops the
        run, False or None does not. A function ``(step, row, params)``, or one with an
        argument called ``params``, gets a copy of the parameters too. A resumed run is
        not called again for edges it was saved at, and once more for any it passed
        since.
      checkpoint: folder of this run's checkpoints (needs orbax-checkpoint), or a
        `jaxmedian.checkpoint.Folder` to save less often or keep more: one is written
        while the next chunk computes, so where chunks are shorter than a second, save
        every few. If the folder holds one, the run resumes there; a run already
        finished returns at once; ``num_steps`` may be raised. A folder that another run
        is writing to is refused. So is the checkpoint of a run with another ``key``,
        another ``chunk`` or state, other keys in the optimizer, other transforms in its
        chain, or other options of words or flags there: the law and coupling of noise,
        ``ties``, ``even``, ``nesterov``. Not compared are numbers (learning rates,
        noise scales, how many workers a rule trims), schedules, what
        `optax.inject_hyperparams` builds from a lambda, mesh axes and transports, the
        loss and the data: change them and change the folder.
      worker_chunk: as in `jaxmedian.make_step`. Measurements that need the gradients
        of all workers are left out where they are streamed; functions in ``metrics``
        then get None for them.
      extra_args: ``extra_args(key, step) -> {name: value}``, traced: what the optimizer
        gets beside the gradients in each step, a ``worker_mask`` of
        `jaxmedian.participants`, say. Its key is that of ``next_batch``. "loss" is the
        mean over the workers present; what is measured of gradients is of all workers.
      opt_state: state of the optimizer to start from, as an earlier run returned it
        beside ``params``; None for a fresh one. Copied like ``params``.
      step: steps taken before, at which the numbers and keys of batches go on: with the
        ``params``, ``opt_state`` and ``step`` of an earlier result the run ends with
        the bits of an unbroken one.
      donate: whether each chunk overwrites the parameters and the state of the one
        before, which saves their memory.

    Returns:
      A `RunResult`; its metrics are NumPy arrays, of the edges of this call (and of
      those its checkpoint remembers). If it stopped before the first edge they are
      empty, under the same names.

    Raises:
      TypeError, ValueError: for a bad number, or as `make_step` while tracing; for a
        checkpoint that is damaged, foreign, or of another run; for an ``opt_state`` of
        another optimizer; if ``on_chunk`` returns anything but a bool or None; under
        `jax.vmap` or `jax.jit`, for which there is `run_pure`.
      RuntimeError: if another run is writing to the folder of checkpoints.
      ImportError: for ``progress`` without tqdm, ``checkpoint`` without orbax.
      KeyboardInterrupt: on a second Ctrl-C.

    >>> import jax, jax.numpy as jnp, jaxmedian as jm
    >>> loss = lambda params, batch: 0.5 * jnp.mean((params - batch) ** 2)
    >>> batches = jm.full_batch(jnp.array([1., 2., 10.])[:, None])
    >>> result = jm.run(loss, jm.median_sgd(0.1), jnp.float32(0), batches, 200, 0)
    >>> result.step, result.metrics["step"].tolist()
    (200, [100.0, 200.0])
    >>> round(float(result.params), 3), result.metrics["gradient_norm"].round(3)
    (2.0, array([2.333, 2.333]))
    """
    with deferred_interrupts() as stop:  # nothing big is left to free behind it
        _check_lengths(num_steps, chunk, step)
        return _run(
            build_chunk(loss_fn, optimizer, metrics, worker_chunk),
            build_feed(next_batch, extra_args),
            keys.as_threefry_key(key),
            Edge(int(step), start_state(optimizer, params, opt_state), []),
            num_steps,
            chunk,
            functools.partial(open_run, checkpoint, optimizer),
            build_report(on_chunk),
            progress,
            donate,
            stop,
        )


def _run(
    compute: Callable[..., tuple[TrainState, dict[str, jax.Array]]],
    feed: Feed,
    key: jax.Array,
    start: Edge,
    num_steps: int,
    chunk: int,
    open_checkpoints: Callable[..., AbstractContextManager[RunCheckpoints]],
    report: Callable[[int, Row, Any], bool],
    progress: bool,
    donate: bool,
    stop: StopRequest,
) -> RunResult:
    """Takes the chunks of a run, from one edge to the next."""
    _check_not_traced((start.state, feed, key))
    if donate:
        start = Edge(start.step, jax.tree.map(jnp.copy, start.state), [])
    advance = jax.jit(compute, donate_argnums=0 if donate else ())
    with open_checkpoints(key, start.state[1], chunk) as saved:
        edge = saved.restore(start, num_steps)
        with progress_bar(edge.step, num_steps, progress) as advance_bar:
            try:
                while edge.step < num_steps and not stop.is_made:
                    end = min(edge.step - edge.step % chunk + chunk, num_steps)
                    state, row = advance(edge.state, feed, key, edge.step, end)
                    _check_not_traced((state, row))
                    wait_until_ready(row)
                    edge = edge.go_on(end, state, row)
                    advance_bar(end, edge.rows[-1]["loss"])
                    if report(end, edge.rows[-1], state[0]):
                        break
                    saved.visit(edge)
            except KeyboardInterrupt:  # of `on_chunk` itself, or the second
                if stop.is_urgent:
                    raise
                stop.is_made = True
        saved.save(edge)
    if stop.is_made:
        sys.stderr.write(f"\nInterrupted: returning the run at step {edge.step}.\n")
    columns = _columns(edge, advance, feed, key, num_steps)
    params, opt_state = edge.state
    return RunResult(params, opt_state, columns, edge.step)


def run_pure(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    params: Any,
    next_batch: NextBatch,
    num_steps: int,
    key: keys.Key,
    *,
    chunk: int = 100,
    metrics: Sequence[Metric] = (),
    worker_chunk: int | None = None,
    extra_args: ExtraArgs | None = None,
    opt_state: Any = None,
    step: int = 0,
) -> RunResult:
    """Trains like `run`, as one pure function: for `jax.vmap` over seeds and scales.

    It takes the arguments of `run`, but nothing touches the host, so everything may be
    traced except ``num_steps``, ``chunk`` and ``step``.

    Returns:
      A `RunResult`; its metrics are JAX arrays, one entry a chunk edge.

    Raises:
      TypeError, ValueError: as `run`.

    >>> import jax, jax.numpy as jnp, jaxmedian as jm
    >>> loss = lambda params, batch: 0.5 * jnp.mean((params - batch) ** 2)
    >>> batches = jm.full_batch(jnp.array([1., 2., 10.])[:, None])
    >>> def mean_gradient(scale, seed):
    ...     optimizer = jm.noisy_median_sgd(0.01, jm.noise.gaussian(scale), seed)
    ...     result = jm.run_pure(loss, optimizer, jnp.float32(0), batches, 1000, 0)
    ...     return result.metrics["gradient_norm"][-1]
    >>> plain, noisy = jax.vmap(mean_gradient, (0, None))(jnp.array([0., 20.]), 0)
    >>> float(plain) > 2.2, float(noisy) < 1.0  # the gap, and noise that closes it
    (True, True)
    """
    _check_lengths(num_steps, chunk, step)
    advance = build_chunk(loss_fn, optimizer, metrics, worker_chunk)
    feed, key = build_feed(next_batch, extra_args), keys.as_threefry_key(key)
    edges = range(step - step % chunk + chunk, num_steps, chunk)
    starts = jnp.asarray([step, *edges] if step < num_steps else [], jnp.int32)

    def body(state: Any, start: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        edge = start - start % np.int32(chunk) + np.int32(chunk)
        return advance(state, feed, key, start, jnp.minimum(edge, np.int32(num_steps)))

    start = start_state(optimizer, params, opt_state)
    state, rows = jax.lax.scan(body, start, starts)
    return RunResult(*state, rows, num_steps)


def _check_lengths(num_steps: Any, chunk: Any, step: Any) -> None:
    check_count("chunk", chunk)
    check_count("num_steps", num_steps, least=0)
    check_count("step", step, least=0)
    if num_steps < step:
        raise ValueError(
            f"`num_steps` {num_steps} is before `step` {step}: it is the step at which "
            "the run ends, counted from the very first."
        )


def _check_not_traced(tree: Any) -> None:
    """Raises if a run is being traced, which would leave the host without numbers."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree)):
        raise TypeError(
            "`run` reports and saves on the host, so it cannot be traced by "
            "`jax.vmap`, `jax.jit` or `jax.grad`: use `jm.run_pure`, which takes the "
            "same arguments."
        )


def _columns(edge: Edge, advance: Any, *arguments: Any) -> dict[str, np.ndarray]:
    """Turns the rows of a run into one array per name."""
    if edge.rows:
        return {
            name: np.asarray([row[name] for row in edge.rows]) for name in edge.rows[0]
        }
    feed, key, num_steps = arguments
    _, row = jax.eval_shape(advance, edge.state, feed, key, edge.step, num_steps)
    return {
        name: np.zeros((0, *leaf.shape), leaf.dtype if leaf.shape else np.float64)
        for name, leaf in row.items()
    }
