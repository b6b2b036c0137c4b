"""The loop of a run on the host: from one chunk edge to the next."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmedian.training.chunks import model_of
from jaxmedian.training.evaluation import Best, join_scores
from jaxmedian.training.interrupts import StopRequest, wait_until_ready
from jaxmedian.training.reporting import Row, progress_bar
from jaxmedian.training.resume import Edge, RunCheckpoints
from jaxmedian.training.sources import Drawn, Loaded
from jaxmedian.workers.collectives import PyTree


class RunResult(NamedTuple):
    """What a run leaves.

    Attributes:
      params: parameters after ``step`` steps.
      opt_state: optimizer state after ``step`` steps, keys included.
      metrics: name -> array with one entry a chunk edge, first axis; "step" says
        which.
      step: steps taken; fewer than asked for if the run was stopped or its data ended.
      best_params: the best parameters at a chunk edge with ``keep_best``, or None.
      model_state: of a model with state, after ``step`` steps; None of one without.
      best_model_state: what belongs to ``best_params``.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> loss = lambda params, batch: 0.5 * (params - batch) ** 2
    >>> batches = jm.full_batch(jnp.array([1., 2., 10.]))
    >>> result = jm.run(loss, jm.median_sgd(0.5), jnp.float32(0), batches, 3, key=0)
    >>> float(result.params), result.step, result.metrics["loss"].shape
    (1.75, 3, (1,))
    """

    params: PyTree
    opt_state: PyTree
    metrics: dict[str, Any]
    step: int
    best_params: Any = None
    model_state: PyTree = None
    best_model_state: Any = None


class Plan(NamedTuple):
    """What a run does between its first edge and its last.

    Attributes:
      compute: the chunk, to be compiled.
      source: of the batches.
      key: of the batches.
      num_steps: the step at which the run ends.
      chunk: steps between two edges.
      evaluation: ``(params[, model_state]) -> {name: value}``.
      keep_best: as in a run.
      report: ``(step, row, params) -> whether to stop``.
      progress: whether a bar is shown.
      donate: whether a chunk overwrites the state before it.
    """

    compute: Callable[..., Any]
    source: Drawn | Loaded
    key: jax.Array
    num_steps: int
    chunk: int
    evaluation: Callable[..., Row]
    keep_best: str | None
    report: Callable[[int, Row, PyTree], bool]
    progress: bool
    donate: bool


def take_chunks(
    plan: Plan,
    start: Edge,
    open_checkpoints: Callable[..., AbstractContextManager[RunCheckpoints]],
    stop: StopRequest,
) -> RunResult:
    """Takes the chunks of a run, from one edge to the next."""
    key, source, chunk, num_steps = plan.key, plan.source, plan.chunk, plan.num_steps
    _check_not_traced((start.state, source.feed, key))
    if plan.donate:
        start = start._replace(state=jax.tree.map(jnp.copy, start.state))
    advance = jax.jit(plan.compute, donate_argnums=0 if plan.donate else ())
    known_by = (key, start.state[1], chunk, plan.keep_best)
    with open_checkpoints(*known_by, source) as saved:
        edge = saved.restore(start, num_steps)
        with progress_bar(edge.step, num_steps, plan.progress) as advance_bar:
            try:
                while edge.step < num_steps and not stop.is_made:
                    end = min(edge.step - edge.step % chunk + chunk, num_steps)
                    taken = source.take(advance, key, edge.state, edge.step, end)
                    stop.is_made |= source.is_interrupted
                    if source.is_interrupted and stop.is_urgent:
                        raise KeyboardInterrupt
                    if taken is None:  # the data ended at the edge
                        break
                    _check_not_traced(taken)
                    wait_until_ready(taken.row)
                    scores = plan.evaluation(*model_of(taken.state))
                    row = join_scores(taken.row, scores)
                    edge = edge.go_on(taken, row, chunk, plan.keep_best)
                    advance_bar(edge.step, edge.shown(scores))
                    if plan.report(edge.step, dict(edge.rows[-1]), taken.state[0]):
                        break
                    saved.visit(edge)
                    if edge.step < end:  # the data ended before it
                        break
            except KeyboardInterrupt:  # of `on_chunk` itself, or the second
                if stop.is_urgent:
                    raise
                stop.is_made = True
        saved.save(edge)
    if stop.is_made:
        sys.stderr.write(f"\nInterrupted: returning the run at step {edge.step}.\n")
    columns = _columns(edge, plan, advance)
    return result_of(edge.state, columns, edge.step, edge.final(plan.keep_best))


def result_of(
    state: PyTree, metrics: Row, step: int, best: Best | None = None
) -> RunResult:
    """Returns what a run leaves, by name."""
    params, model_state = (*model_of(state), None)[:2]
    best_params, best_state = (*(best.model if best else ()), None, None)[:2]
    return RunResult(
        params, state[1], metrics, step, best_params, model_state, best_state
    )


def _check_not_traced(tree: PyTree) -> None:
    """Raises if a run is being traced, which would leave the host without numbers."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree)):
        raise TypeError(
            "`run` reports and saves on the host, so it cannot be traced by "
            "`jax.vmap`, `jax.jit` or `jax.grad`: use `jm.run_pure`, which takes the "
            "same arguments."
        )


def _columns(edge: Edge, plan: Plan, advance: Callable[..., PyTree]) -> Row:
    """Turns the rows of a run into one array per name."""
    if edge.rows:
        return {
            name: np.asarray([row[name] for row in edge.rows]) for name in edge.rows[0]
        }
    if plan.source.feed is None:  # no batch was read that would tell
        return {"step": np.zeros(0)}
    steps = edge.step, plan.num_steps, 1
    state, row = jax.eval_shape(advance, edge.state, plan.source.feed, plan.key, *steps)
    row = join_scores(row, jax.eval_shape(plan.evaluation, *model_of(state)))
    return {
        name: np.zeros((0, *leaf.shape), leaf.dtype if leaf.shape else np.float64)
        for name, leaf in row.items()
    }
