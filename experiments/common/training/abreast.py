"""Train many runs abreast, as one run of `jaxmedian.run`: checkpoints, Ctrl-C and all.

    params [R, ...], gradients [M, R, ...], optimizer states [R, ...]

The sum of the losses of R runs has each run's gradient in that run's row, and
`join_optimizers` vmaps the optimizer over rows, each with its own key and settings. So
settings and seeds share one compiled program, as under `build_trainer`, but the host
sees every chunk edge: what is killed resumes.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmedian as jm
from experiments.common.training.trainer import (
    Build,
    Problem,
    Runs,
    Settings,
    accuracies,
)


def join_optimizers(build: Build, settings: Any) -> optax.GradientTransformation:
    """Joins the optimizers of R runs: ``[M, R, ...]`` -> ``[R, ...]``.

    Args:
      build: ``build(**setting)`` -> optimizer of one run; everything may be traced.
      settings: name -> [R], the key of each run included.

    >>> build = lambda key, rate: jm.median_sgd(rate)
    >>> settings = {"key": jnp.arange(2), "rate": jnp.array([1., 2.])}
    >>> optimizer = join_optimizers(build, settings)
    >>> params, grads = jnp.zeros(2), jnp.array([[1., 1.], [2., 2.], [10., 6.]])
    >>> optimizer.update(grads, optimizer.init(params), params)[0].tolist()
    [-2.0, -4.0]
    """

    def init(params: Any) -> Any:
        def init_one(setting: Any, params: Any) -> Any:
            return build(**setting).init(params)

        return jax.vmap(init_one)(settings, params)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        def update_one(setting: Any, updates: Any, state: Any, params: Any) -> Any:
            return build(**setting).update(updates, state, params)

        over_runs = jax.vmap(update_one, in_axes=(0, 1, 0, 0))
        return over_runs(settings, updates, state, params)

    return optax.GradientTransformation(init, update)


def train_abreast(
    problem: Problem,
    build: Build,
    settings: Settings,
    split: jm.splits.Split,
    *,
    batch_size: int | None,
    num_steps: int,
    chunk: int,
    checkpoint: Path | None = None,
    progress: bool = False,
) -> Runs:
    """Trains one rule over settings and seeds.

    Args:
      problem: data, networks and seeds.
      build: ``build(key=key, **setting)`` -> optimizer; everything may be traced.
      settings: name -> [G]; every seed is trained with each.
      split: of the training part among workers.
      batch_size: samples a worker, run and step, drawn without replacement; None for
        all that a worker holds.
      num_steps: steps of every run.
      chunk: steps between two measurements.
      checkpoint: folder in which the runs are kept, and from which they go on.
      progress: show a progress bar; its loss is the sum over runs.

    Returns:
      `Runs` with the accuracies and `jaxmedian.diagnostics.of_step`, ``[G, S, T]``. If
      Ctrl-C ended them early, so does their "step".
    """
    num_settings, num_seeds = len(next(iter(settings.values()))), len(problem.keys)
    rows = {
        name: jnp.repeat(jnp.asarray(values, jnp.float32), num_seeds)
        for name, values in settings.items()
    }
    rows["key"] = jnp.tile(problem.keys, num_settings)
    params = jax.tree.map(
        lambda leaf: jnp.concatenate([leaf] * num_settings), problem.params
    )

    def measure(params: Any, grads: Any, updates: Any) -> dict[str, jax.Array]:
        return accuracies(problem, params) | jm.diagnostics.of_step(grads, updates)

    found = jm.run(
        total_loss(problem.model.loss, whole=batch_size is None),
        join_optimizers(build, rows),
        params,
        batches_of(problem.train, split, batch_size, rows["key"]),
        num_steps,
        key=0,
        chunk=chunk,
        metrics=[jax.vmap(measure, in_axes=(0, 1, 0))],
        progress=progress,
        checkpoint=checkpoint,
    ).metrics
    del found["loss"]  # of all runs together
    found["step"] = np.repeat(found["step"][:, None], num_settings * num_seeds, axis=1)
    metrics = {
        name: values.T.reshape(num_settings, num_seeds, -1)
        for name, values in found.items()
    }
    return Runs(settings, metrics)


def total_loss(loss: Callable[[Any, Any], jax.Array], whole: bool) -> Any:
    """Returns ``(params [R, ...], batch of one worker)`` -> sum over runs.

    Args:
      loss: of one run.
      whole: whether one batch serves all runs; else its leaves are ``[R, n, ...]``.
    """

    def total(params: Any, batch: Any) -> jax.Array:
        # One run at a time: on CPUs faster than products over all runs, whose gradients
        # would have to be transposed.
        if whole:
            losses = jax.lax.map(lambda own: loss(own, batch), params)
        else:
            losses = jax.lax.map(lambda own: loss(*own), (params, batch))
        return jnp.sum(losses)

    return total


def batches_of(
    samples: dict[str, jax.Array],
    split: jm.splits.Split,
    batch_size: int | None,
    keys: jax.Array,
) -> jax.tree_util.Partial:
    """Serves all that the workers hold, or sub-samples by each run's own key.

    Args:
      samples: leaves ``[N, ...]``.
      split: of the samples among workers.
      batch_size: samples a worker, run and step; None for all.
      keys: [R], of the runs.

    Returns:
      ``next_batch(key, step)``: leaves ``[M, n, ...]``, or ``[M, R, batch_size, ...]``.
    """
    held = {name: leaf[split.indices] for name, leaf in samples.items()}
    if batch_size is None:
        return jm.full_batch(held | {"weights": jnp.asarray(split.mask)})
    draw = jm.mini_batches(held, batch_size, sizes=split.sizes)
    return jax.tree_util.Partial(_draw_own, draw, keys)


def _draw_own(draw: Any, keys: jax.Array, key: jax.Array, step: jax.Array) -> Any:
    del key  # one for all runs
    step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, step)
    return jax.vmap(draw, in_axes=(0, None), out_axes=1)(step_keys, step)
