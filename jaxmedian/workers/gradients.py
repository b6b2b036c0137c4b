"""One gradient a worker: from a loss of one worker's batch to gradients ``[M, ...]``.

Workers are a batch axis: the gradients of all of them come from one `jax.vmap`, or,
with ``worker_chunk``, from a loop over chunks of them (`blocks`), which needs less
memory and makes a worker's bits independent of how many others are computed beside it.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxmedian.workers import collectives, explicit
from jaxmedian.workers.blocks import map_in_blocks
from jaxmedian.workers.checks import check_count, check_differentiable
from jaxmedian.workers.collectives import AxisName, PyTree

LossFn = Callable[..., Any]


def worker_grads(
    loss_fn: LossFn,
    *,
    has_aux: bool = False,
    axis_name: AxisName | None = None,
    worker_chunk: int | None = None,
) -> Callable[[PyTree, PyTree], PyTree]:
    """Builds the function that computes every worker's gradient.

    Args:
      loss_fn: ``loss_fn(params, batch)`` of the batch of *one* worker -> scalar, or
        ``(scalar, aux)``.
      has_aux: whether ``loss_fn`` returns auxiliary output.
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`. There
        JAX sums the gradients of replicated parameters over devices; this stops it.
      worker_chunk: workers computed at a time; None for all. With 1, whole training
        runs give the same bits on any number of devices, which vmapped matrix products
        of different sizes do not; that loop has forward-mode derivatives only.

    Returns:
      ``(params, batch) -> grads``, or ``-> (grads, aux)``: the batch's leaves are
      ``[M, ...]``, and so are those of the results.

    Raises:
      TypeError, ValueError: for a bad ``worker_chunk``; while tracing, for a batch
        without a worker axis.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> loss = lambda params, batch: 0.5 * (params - batch) ** 2
    >>> jm.worker_grads(loss)(jnp.float32(0.0), jnp.array([1., 2., 10.])).tolist()
    [-1.0, -2.0, -10.0]
    """
    value_and_grads = worker_value_and_grads(
        loss_fn, has_aux=has_aux, axis_name=axis_name, worker_chunk=worker_chunk
    )

    def grads_fn(params: optax.Params, batch: PyTree) -> PyTree:
        value, grads = value_and_grads(params, batch)
        return (grads, value[1]) if has_aux else grads

    return grads_fn


def worker_value_and_grads(
    loss_fn: LossFn,
    *,
    has_aux: bool = False,
    axis_name: AxisName | None = None,
    worker_chunk: int | None = None,
) -> Callable[[PyTree, PyTree], PyTree]:
    """Builds the function that computes every worker's loss and gradient.

    It takes the arguments of `worker_grads`.

    Returns:
      ``(params, batch) -> (losses [M], grads)``, or ``-> ((losses, aux), grads)``.

    Raises:
      TypeError, ValueError: as `worker_grads`.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> loss = lambda params, batch: 0.5 * (params - batch) ** 2
    >>> fn = jm.worker_value_and_grads(loss)
    >>> losses, grads = fn(jnp.float32(0.0), jnp.array([1., 2., 10.]))
    >>> losses.tolist()
    [0.5, 2.0, 50.0]
    """
    if worker_chunk is not None:
        check_count("worker_chunk", worker_chunk)
    value_and_grad = own_value_and_grad(loss_fn, has_aux, axis_name)

    def of_batch(batch: PyTree, params: optax.Params) -> PyTree:
        try:
            return map_workers(value_and_grad, params, batch, worker_chunk, axis_name)
        except TypeError:
            check_differentiable(params)
            raise

    def value_and_grads(params: optax.Params, batch: PyTree) -> PyTree:
        if collectives.explicit_mesh((batch, params)) is None:
            return of_batch(batch, params)
        return explicit.on_automatic_axes(
            of_batch, explicit.place_by_worker, batch, params
        )

    return value_and_grads


def own_value_and_grad(
    loss_fn: LossFn, has_aux: bool, axis_name: AxisName | None
) -> Callable[[PyTree, PyTree], PyTree]:
    """Builds ``(params, batch of one worker) -> (value, grads)``, on its own device.

    A loss that runs on one device runs there too, whatever loops it has.
    """
    value_and_grad = jax.value_and_grad(loss_fn, has_aux=has_aux)
    return collectives.alone(value_and_grad, axis_name)


def map_workers(
    of_worker: Callable[[PyTree, PyTree], PyTree],
    params: optax.Params,
    batch: PyTree,
    worker_chunk: int | None,
    axis_name: AxisName | None,
) -> PyTree:
    """Maps a function of parameters and one worker's batch over the local workers.

    Args:
      of_worker: parameters and the batch of one worker -> tree of arrays.
      params: parameters.
      batch: tree of leaves ``[m, ...]``.
      worker_chunk: workers computed at a time; None for all.
      axis_name: mesh axis over which workers are spread, or None.

    Returns:
      A tree of leaves ``[m, ...]``.

    Raises:
      ValueError: for a batch without a worker axis.
    """
    num_workers = count_in_batch(batch)
    if worker_chunk is None or 1 < num_workers <= worker_chunk:
        return jax.vmap(functools.partial(of_worker, params))(batch)
    chunk = min(worker_chunk, num_workers)
    return map_in_blocks(of_worker, params, batch, num_workers, chunk, axis_name)


def asks_for_key(loss_fn: LossFn, has_model_state: bool = False) -> bool:
    """Returns whether a loss has an argument ``key`` to fill, behind its batch.

    One that `functools.partial` binds, or whose default is no key, is its owner's.

    >>> import functools
    >>> loss = lambda params, batch, key=None: 0.0
    >>> asks_for_key(loss), asks_for_key(functools.partial(loss, key=None))
    (True, False)
    """
    try:
        parameters = [*inspect.signature(loss_fn).parameters.values()]
    except (TypeError, ValueError):  # built-in functions may be silent about theirs
        return False
    bound: set[str] = set()
    while isinstance(loss_fn, functools.partial):
        bound |= loss_fn.keywords.keys()
        loss_fn = loss_fn.func
    return "key" not in bound and any(
        parameter.name == "key" and not isinstance(parameter.default, str | bool)
        for parameter in parameters[3 if has_model_state else 2 :]
    )


def count_in_batch(batch: PyTree) -> int:
    """Returns the number of workers in a batch whose leaves are ``[M, ...]``.

    Raises:
      ValueError: if the batch is empty or its leaves disagree.
    """
    counts = {shape[:1] for shape in _shapes_of(batch).values()}
    if len(counts) != 1 or () in counts or (0,) in counts:
        raise ValueError(
            "The batch must have a leading worker axis, the same M >= 1 in each leaf; "
            f"got shapes {_shapes_of(batch)}."
        )
    return counts.pop()[0]


def check_num_workers(batch: PyTree, num_workers: int, num_devices: int = 1) -> None:
    """Raises ValueError unless as many workers as told share so many devices.

    Samples of all workers in one axis would pass for so many workers.
    """
    found = count_in_batch(batch) * num_devices
    if found != num_workers:
        raise ValueError(
            f"`num_workers` is {num_workers}, but the batch has the leading axis of "
            f"{found} workers: {_shapes_of(batch)}. Samples of all workers in one "
            "axis, [M * n, ...], are to become [M, n, ...]: "
            f"`x.reshape({num_workers}, -1, *x.shape[1:])`."
        )


def _shapes_of(batch: PyTree) -> dict[str, tuple[int, ...]]:
    return {
        jax.tree_util.keystr(path) or "the batch": jnp.shape(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(batch)
    }
