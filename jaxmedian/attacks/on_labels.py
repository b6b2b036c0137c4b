"""Label flipping: a Byzantine attack on the data, in which classes are reversed."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmedian.attacks.byzantine import (
    Chosen,
    Workers,
    check_key,
    check_workers,
    choose,
)
from jaxmedian.noise import keys
from jaxmedian.workers.checks import check_count
from jaxmedian.workers.collectives import PyTree


def label_flip(
    next_batch: Callable[..., Any],
    workers: Workers,
    num_classes: int,
    key: keys.Key | None = None,
    *,
    labels: Any = "labels",
) -> jax.tree_util.Partial:
    r"""Makes the hostile learn label C - 1 - y in place of y.

    Their gradients are honest gradients of the wrong loss: nothing in the update shows
    it but the direction. Labels outside 0 to C - 1, such as the -1 of padding, stay.

    Args:
      next_batch: ``(key, step) -> batch`` with leaves ``[M, ...]``, of
        `jaxmedian.mini_batches`, say.
      workers: numbers of the hostile, e.g. [0, 3]; or how many to draw anew each step
        (then with a key).
      num_classes: C; labels are 0 to C - 1.
      key: a typed key, a legacy key or an int, for workers drawn each step.
      labels: name or position of the labels ``[M, ...]`` in a batch that is a dict,
        tuple or list; None if the batch is the labels.

    Returns:
      ``next_batch`` for `jaxmedian.run`.

    Raises:
      TypeError, ValueError: for bad workers, classes or key; when a batch is drawn, for
        labels that are not integers, or not where they were said to be.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> data = {"labels": jnp.array([[0, 1], [2, 2]])}
    >>> batches = jm.attacks.label_flip(jm.full_batch(data), [1], num_classes=3)
    >>> batches(key=None, step=0)["labels"].tolist()
    [[0, 1], [0, 0]]

    References:
      Allen-Zhu et al., Byzantine-Resilient Non-Convex Stochastic Gradient Descent,
      ICLR 2021.
    """
    chosen = check_workers("label_flip", workers)
    rng_key = check_key("label_flip", key, needed=chosen.numbers is None)
    check_count("num_classes", num_classes)
    serve = functools.partial(_serve_flipped, chosen, int(num_classes), labels)
    if not callable(next_batch):
        raise TypeError(
            "`next_batch` must be a function `(key, step) -> batch` such as "
            f"`jaxmedian.mini_batches(...)`; got {type(next_batch).__name__}."
        )
    if isinstance(next_batch, jax.tree_util.Partial):
        return jax.tree_util.Partial(serve, next_batch, rng_key)
    return jax.tree_util.Partial(serve, jax.tree_util.Partial(next_batch), rng_key)


def _serve_flipped(
    chosen: Chosen,
    num_classes: int,
    name: object,
    next_batch: Callable[..., Any],
    rng_key: jax.Array | None,
    key: jax.Array,
    step: jax.Array,
) -> PyTree:
    batch = next_batch(key, step)
    true = _labels_of(batch, name)
    state = None
    if rng_key is not None:
        state = keys.KeyState(jnp.asarray(step, jnp.int32), rng_key)
    hostile = choose("label_flip", chosen, true.shape[0], None, state)
    hostile = hostile.reshape(-1, *(1,) * (true.ndim - 1))
    largest = jnp.iinfo(true.dtype).max
    if num_classes - 1 > largest:
        raise ValueError(
            f"`label_flip` got {num_classes} classes for labels of {true.dtype}, which "
            f"end at {largest}: set `num_classes` to those there are."
        )
    last = np.asarray(num_classes - 1, true.dtype)
    flipped = jnp.where((true >= 0) & (true <= last), last - true, true)
    return _with_labels(batch, name, jnp.where(hostile, flipped, true))


def _labels_of(batch: PyTree, name: object) -> jax.Array:
    try:
        found = jnp.asarray(batch if name is None else batch[name])
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(
            f"`label_flip` finds no labels at {name!r} in a batch of structure "
            f"{jax.tree.structure(batch)}; say where they are with `labels`."
        ) from error
    if not jnp.issubdtype(found.dtype, jnp.integer) or found.ndim == 0:
        raise TypeError(
            "`label_flip` expects integer labels [M, ...]; got "
            f"{found.dtype}{list(found.shape)} at {name!r}."
        )
    return found


def _with_labels(batch: PyTree, name: Any, flipped: jax.Array) -> PyTree:
    if name is None:
        return flipped
    if isinstance(batch, dict):  # of its own kind, `OrderedDict` say
        batch = copy.copy(batch)
        batch[name] = flipped
        return batch
    parts = [*batch]
    parts[name] = flipped
    return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
