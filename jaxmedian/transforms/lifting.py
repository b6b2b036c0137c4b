"""Give every worker an optimizer state of its own: `per_worker`.

A transform that carries state across steps (momentum, Adam's moments, error feedback)
mixes workers if it is put before an aggregator as it is. Lifted, it is mapped over the
worker axis with one copy of its state a worker, as in Signum or Distributed Lion.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxmedian.noise.keys import is_key
from jaxmedian.workers.checks import as_transform, check_count
from jaxmedian.workers.population import survey
from jaxmedian.workers.stream import materialise


def per_worker(
    inner: optax.GradientTransformation, num_workers: int
) -> optax.GradientTransformationExtraArgs:
    """Maps ``inner`` over the worker axis: ``[M, ...] -> [M, ...]``.

    Every leaf of its state gets a leading worker axis. An inner transform that owns a
    key, such as `optax.add_noise`, gets ``fold_in(key, worker)`` for each worker, or
    all of them would draw the same numbers.

    Args:
      inner: an optax transformation params -> params.
      num_workers: M, the global number: inside `jax.shard_map` shard the state over the
        mesh axis of the workers like the gradients.

    Returns:
      A transformation whose ``update`` passes params and extra arguments on to
      ``inner`` as they are, the same for every worker.

    Raises:
      ValueError: if num_workers < 1; while tracing, for updates without a worker axis
        or with another number of workers than the state.
      TypeError: if num_workers is not an int or ``inner`` is no transformation.

    >>> import jax.numpy as jnp, optax, jaxmedian as jm
    >>> signum = optax.chain(
    ...     jm.per_worker(optax.trace(decay=0.9), num_workers=3), jm.majority_vote()
    ... )
    >>> params = jnp.zeros(2)
    >>> updates, state = signum.update(jnp.ones((3, 2)), signum.init(params), params)
    >>> state[0].trace.shape
    (3, 2)
    """
    check_count("num_workers", num_workers)
    inner = as_transform("inner", inner)

    def init_fn(params: Any) -> Any:
        numbers = jnp.arange(num_workers, dtype=jnp.uint32)
        return jax.vmap(lambda number: _own_keys(inner.init(params), number))(numbers)

    def update_fn(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        updates = materialise("per_worker", updates)
        population = survey("per_worker", updates, params, each_alone=True)
        for leaf in jax.tree.leaves(state):
            if leaf.shape[0] != population.num_local:
                raise ValueError(
                    f"`per_worker` has the states of {leaf.shape[0]} workers, but the "
                    f"updates have {population.num_local}. Pass the number of workers "
                    "as `num_workers`; on a mesh, shard its state like the gradients."
                )

        def update_one(updates: Any, state: Any) -> tuple[Any, Any]:
            return inner.update(updates, state, params, **extra_args)

        return jax.vmap(update_one)(updates, state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _own_keys(state: Any, number: jax.Array) -> Any:
    """Folds the worker's number into every key of a state."""

    def own(path: tuple[Any, ...], leaf: Any) -> jax.Array:
        leaf = jnp.asarray(leaf)
        return jax.random.fold_in(leaf, number) if is_key(path, leaf) else leaf

    return jax.tree_util.tree_map_with_path(own, state)
