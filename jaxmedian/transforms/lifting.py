"""Give every worker an optimizer state of its own: `per_worker`.

A transform that carries state across steps (momentum, Adam's moments, error feedback)
mixes workers if it is put before an aggregator as it is. Lifted, it is mapped over the
worker axis with one copy of its state a worker, as in Signum or Distributed Lion.
"""

import contextlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import optax

from jaxmedian.noise.keys import is_key
from jaxmedian.transforms.build import Step, transformation
from jaxmedian.workers.blocks import map_in_blocks
from jaxmedian.workers.checks import as_transform, check_count
from jaxmedian.workers.collectives import PyTree
from jaxmedian.workers.placing import PerWorkerState
from jaxmedian.workers.stream import WorkerStream


def per_worker(
    inner: optax.GradientTransformation, num_workers: int
) -> optax.GradientTransformationExtraArgs:
    """Maps ``inner`` over the worker axis: ``[M, ...] -> [M, ...]``.

    Every leaf of its state gets a leading worker axis. An inner transform that owns a
    key, such as `optax.add_noise`, gets ``fold_in(key, worker)`` for each worker, or
    all of them would draw the same numbers. A typed key is known for one; a legacy key,
    uint32 of 2 or 4 words, if its field has no name or "key", "rng" or "seed" in it.

    What is not finite stays in a momentum for good, and a vote behind it hides that: a
    NaN abstains, and no update shows it. `interpolate_momentum` leaves it out; before
    another momentum put ``per_worker(optax.zero_nans(), M)``, or bound what overflows.

    What ``inner`` refuses on one worker's updates it refuses here. A default that needs
    a tree shaped like the parameters must be given: `optax.contrib.scale_by_muon`, for
    one, takes its ``weight_dimension_numbers=None`` for an array, not for a tree.

    Without state (`optax.clip`, `optax.clip_by_global_norm`) it works block by block on
    gradients streamed with ``worker_chunk``; with state it stacks them.

    Do not accumulate gradients in it before a rule that draws: `optax.MultiSteps` sends
    zeros in between, on which a vote with noise, or with ties "random" or "positive",
    takes full steps of nothing but noise. Accumulate behind the aggregator,
    ``chain(majority_vote(noise, key), MultiSteps(sgd(rate), n)...)``, or give the loss
    n times the data.

    Args:
      inner: an optax transformation params -> params.
      num_workers: M, the global number: inside `jax.shard_map` shard the state over the
        mesh axis of the workers like the gradients.

    Returns:
      A transformation with state ``(inner,)``, a `PerWorkerState`. ``update`` passes
      params and extra arguments on to ``inner`` as they are, the same for every worker;
      it takes ``worker_mask`` and ``worker_weights``: the state of a worker that is
      absent, or weighs 0, is kept as it was.

    Raises:
      ValueError: if num_workers < 1; while tracing, for updates without a worker axis,
        with another number of workers than the state, or which ``inner`` refuses.
      TypeError: if num_workers is not an int or ``inner`` is no transformation.

    >>> import jax.numpy as jnp, optax, jaxmedian as jm
    >>> signum = optax.chain(
    ...     jm.per_worker(optax.trace(decay=0.9), num_workers=3), jm.majority_vote()
    ... )
    >>> params = jnp.zeros(2)
    >>> updates, state = signum.update(jnp.ones((3, 2)), signum.init(params), params)
    >>> state[0].inner.trace.shape
    (3, 2)
    """
    return lift("per_worker", as_transform("inner", inner), num_workers)


def lift(
    name: str, inner: optax.GradientTransformationExtraArgs, num_workers: int
) -> optax.GradientTransformationExtraArgs:
    """Builds `per_worker` of ``inner`` under the public ``name`` that messages use."""
    check_count("num_workers", num_workers)

    def init(params: optax.Params) -> PerWorkerState:
        numbers = jnp.arange(num_workers, dtype=jnp.uint32)
        own = jax.vmap(lambda number: _own_keys(inner.init(params), number))
        return PerWorkerState(own(numbers))

    def apply(step: Step) -> tuple[optax.Updates, PerWorkerState]:
        num_local = step.population.num_local
        for leaf in jax.tree.leaves(step.state):
            if leaf.shape[0] != num_local:
                raise ValueError(
                    f"`{name}` has the states of {leaf.shape[0]} workers, but the "
                    f"updates have {num_local}. Pass the number of workers "
                    "as `num_workers`; on a mesh, shard its state like the gradients."
                )

        def update_one(params: optax.Params | None, own: PyTree) -> PyTree:
            updates, state = own
            return inner.update(updates, state, params, **step.extra_args)

        updates, state = step.updates, step.state.inner
        with _explaining_refusals(name):
            if isinstance(updates, WorkerStream) and not jax.tree.leaves(state):
                # Nothing to remember of a block.
                def update_block(block: optax.Updates) -> optax.Updates:
                    each = jax.vmap(lambda own: update_one(step.params, own)[0])
                    return each((block, state))

                return updates.map(update_block), step.state
            if isinstance(updates, WorkerStream) and not _has_keys(state):
                # Stored, and taken in blocks again: alone, with ``worker_chunk=1``,
                # what computes a worker's state is the same on any number of devices.
                updates, state = map_in_blocks(
                    update_one,
                    step.params,
                    (updates.stack(name), state),
                    num_local,
                    updates.worker_chunk,
                    updates.axis_name,
                )
            else:
                if isinstance(updates, WorkerStream):
                    updates = updates.stack(name)
                each = jax.vmap(lambda own: update_one(step.params, own))
                updates, state = each((updates, state))
        return updates, step.state.kept_where_absent(state, step.population.present)

    return transformation(
        name, apply, init=init, weighted=True, folds=True, each_alone=True
    )


@contextlib.contextmanager
def _explaining_refusals(name: str) -> Iterator[None]:
    """Says that it was the inner transformation that refused one worker's updates."""
    try:
        yield
    except ValueError as error:
        raise ValueError(
            f"`{name}`: its inner transformation refuses the updates of one worker: "
            f"{error}\nIf it fails without `{name}` too, give it what it leaves to a "
            "default: `optax.contrib.scale_by_muon`, for one, needs "
            "`weight_dimension_numbers` for parameters in a tree."
        ) from error


def _has_keys(state: PyTree) -> bool:
    """Returns whether a state holds typed keys, which loops cannot fill in."""
    return any(
        jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        for leaf in jax.tree.leaves(state)
    )


def _own_keys(state: PyTree, number: jax.Array) -> PyTree:
    """Folds the worker's number into every key of a state."""

    def own(path: tuple[object, ...], leaf: jax.Array) -> jax.Array:
        leaf = jnp.asarray(leaf)
        return jax.random.fold_in(leaf, number) if is_key(path, leaf) else leaf

    return jax.tree_util.tree_map_with_path(own, state)
