"""Several local steps a worker between two aggregations: `worker_updates`.

Worker i starts at the shared x and takes K steps of an optimizer of its own on its own
data; what it sends is how far it came, x_i^K - x, the pseudo-gradient of federated
averaging. More steps save communication, and carry workers with different data further
apart: a median or a vote then meets updates that agree less.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmedian.noise.keys import is_key
from jaxmedian.workers import collectives, explicit
from jaxmedian.workers.checks import as_transform, check_count
from jaxmedian.workers.collectives import AxisName, PyTree
from jaxmedian.workers.gradients import LossFn, map_workers, own_value_and_grad


def worker_updates(
    loss_fn: LossFn,
    local_tx: optax.GradientTransformation,
    num_steps: int,
    *,
    batch_per_step: bool = False,
    axis_name: AxisName | None = None,
    worker_chunk: int | None = None,
) -> Callable[[PyTree, PyTree], PyTree]:
    """Builds the function that lets every worker take K local steps.

    The results are *updates* in the sense of optax: to be added to the parameters, and
    pointing downhill. With ``num_steps=1`` and ``optax.sgd(step)`` they are the
    `worker_grads` times minus the step. Behind the aggregator put the server's rate
    with its sign, ``chain(majority_vote(), optax.scale(rate))``;
    ``chain(worker_mean())`` alone is federated averaging. Optimizers that descend
    (`jaxmedian.sign_sgd`, `optax.scale_by_learning_rate`, Adam) take gradients: hand
    them the updates negated, ``jax.tree.map(jnp.negative, updates)``.

    Args:
      loss_fn: ``loss_fn(params, batch)`` of the batch of *one* worker -> scalar.
      local_tx: the optimizer of a worker, params-shaped -> params-shaped. Its state
        starts afresh in every call: workers remember nothing between aggregations.
      num_steps: K >= 1.
      batch_per_step: False: every local step sees the worker's whole batch, leaves
        ``[M, ...]``. True: step k sees the k-th batch of the worker, leaves
        ``[M, K, ...]``.
      axis_name: as in `jaxmedian.worker_grads`.
      worker_chunk: as in `jaxmedian.worker_grads`.

    Returns:
      ``(params, batch) -> updates``, leaves ``[M, ...]``. Rows do not mix: a worker
      without data may have NaN in its own, which ``worker_mask`` then leaves out.

    Raises:
      TypeError: for a ``local_tx`` that is no transformation, or a count that is no
        int.
      ValueError: for a count below 1; while tracing, for a batch without a worker (or
        step) axis, and for a ``local_tx`` that owns a key: started afresh, it would
        draw the same numbers in every call.

    >>> import jax.numpy as jnp, optax, jaxmedian as jm
    >>> loss = lambda x, centre: 0.5 * (x - centre) ** 2
    >>> fn = jm.worker_updates(loss, optax.sgd(0.5), num_steps=2)
    >>> fn(jnp.float32(0.0), jnp.array([1., 2., 10.])).tolist()  # (1 - 0.5^2) centre
    [0.75, 1.5, 7.5]

    References:
      McMahan et al., "Communication-Efficient Learning of Deep Networks from
      Decentralized Data", AISTATS 2017. Reddi et al., "Adaptive Federated
      Optimization", ICLR 2021 (pseudo-gradients).
    """
    check_count("num_steps", num_steps)
    if worker_chunk is not None:
        check_count("worker_chunk", worker_chunk)
    local_tx = as_transform("local_tx", local_tx)
    value_and_grad = own_value_and_grad(loss_fn, False, axis_name)

    def of_batch(batch: PyTree, params: PyTree) -> PyTree:
        params = collectives.vary(jax.tree.map(jnp.asarray, params), axis_name)
        if batch_per_step:
            _check_steps(batch, num_steps)

        def of_worker(params: PyTree, worker_batch: PyTree) -> PyTree:
            def step(carry: PyTree, step_batch: PyTree) -> tuple[PyTree, None]:
                # The sum of the updates is carried, not the parameters: their
                # difference would lose the digits that a small step has. In float32
                # at least, where bfloat16 would soon add nothing to a large sum.
                moved, state = carry
                here = jax.tree.map(_add, params, moved)
                _, grads = value_and_grad(
                    here, worker_batch if step_batch is None else step_batch
                )
                updates, state = local_tx.update(grads, state, here)
                return (jax.tree.map(_add, moved, updates), state), None

            zeros = jax.tree.map(lambda p: jnp.zeros_like(p, _wide(p.dtype)), params)
            start = zeros, local_tx.init(params)
            _check_no_key(start[1])
            (moved, _), _ = jax.lax.scan(
                step,
                collectives.vary(start, axis_name),
                worker_batch if batch_per_step else None,
                length=num_steps,
            )
            return jax.tree.map(lambda x, p: x.astype(p.dtype), moved, params)

        return map_workers(of_worker, params, batch, worker_chunk, axis_name)

    def updates_fn(params: PyTree, batch: PyTree) -> PyTree:
        return explicit.on_automatic_axes(
            of_batch, explicit.place_by_worker, batch, params
        )

    return updates_fn


def _add(total: jax.Array, update: jax.Array) -> jax.Array:
    wide = _wide(total.dtype)
    return (total.astype(wide) + update.astype(wide)).astype(total.dtype)


def _wide(dtype: Any) -> Any:
    """Returns the type to add up in: float32 for floating point of 16 bits."""
    is_float = jnp.issubdtype(dtype, jnp.floating)
    return np.promote_types(dtype, np.float32) if is_float else dtype


def _check_steps(batch: PyTree, num_steps: int) -> None:
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(batch)]
    if any(shape[1:2] != (num_steps,) for shape in shapes):
        raise ValueError(
            f"With `batch_per_step`, the batch must have leaves [M, {num_steps}, ...], "
            f"one batch a worker and local step; got shapes {shapes}."
        )


def _check_no_key(state: PyTree) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if is_key(path, jnp.asarray(leaf)):
            raise ValueError(
                f"`local_tx` owns a key ({jax.tree_util.keystr(path)}): started "
                "afresh, it would draw the same numbers in every call and at every "
                "worker. Add noise behind it, with `add_worker_noise` or a noisy "
                "aggregator."
            )
