"""From rows to trees: how a rule on rows ``[m, d] -> [d]`` becomes an aggregator.

A tree of many small leaves would compile, and launch, one kernel a leaf. So small
leaves settle what is random about them first, each with one elementwise pass, and are
then joined end to end and combined as one. A large leaf is combined alone, its noise
drawn where it is used.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmedian.noise import Noise, keys
from jaxmedian.transforms.draws import LeafDraws, draw
from jaxmedian.workers.collectives import AxisName
from jaxmedian.workers.population import (
    Population,
    check_spread,
    refuse_weights,
    survey,
)
from jaxmedian.workers.stream import WorkerStream, materialise

# Coordinates below which a leaf is joined with others. Joining copies M rows of it; at
# this size the copy stays in cache, and nine tenths of a large model's parameters are
# in leaves above it.
_SMALL = 65_536


class Rule(NamedTuple):
    """An aggregation rule on rows: local workers first, then devices.

    Attributes:
      reduce: (rows ``[m, d]``, draws, population) -> ``[n]``, from the local workers;
        it draws the noise and the bits that ``draws`` still holds.
      finish: (what ``reduce`` returned, draws, population) -> ``[d]`` in any dtype.
      settle: (rows, draws) -> rows with noise and worker bits drawn, elementwise. The
        same coordinates reduce to the same result before and after.
      additive: whether ``reduce`` of several blocks of workers may be added up, so that
        a stream of them can be folded.
    """

    reduce: Callable[[jax.Array, LeafDraws, Population], jax.Array]
    finish: Callable[[jax.Array, LeafDraws, Population], jax.Array]
    settle: Callable[[jax.Array, LeafDraws], jax.Array]
    additive: bool = False


def aggregator(
    name: str,
    rule: Rule,
    *,
    noise: Noise | None = None,
    rng_key: jax.Array | None = None,
    random_ties: bool = False,
    axis_name: AxisName | None = None,
    weighted: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Builds the optax transformation ``[M, ...] -> [...]`` of a rule.

    Args:
      name: its public name, for messages.
      rule: the rule.
      noise: what workers add before it, or None.
      rng_key: key of all its draws; None, and a state without key, if it draws nothing.
      random_ties: whether it needs the fair bits of a vote.
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`.
      weighted: whether it heeds the weights of the population.
    """

    def init_fn(params: Any) -> Any:
        del params
        return optax.EmptyState() if rng_key is None else keys.init_state(rng_key)

    def update_fn(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        worker_mask: jax.Array | None = None,
        worker_weights: jax.Array | None = None,
        **extra_args: Any,
    ) -> tuple[Any, Any]:
        del extra_args
        if not rule.additive:
            updates = materialise(name, updates)
        is_stream = isinstance(updates, WorkerStream)
        if is_stream and updates.axis_name is not None:
            check_spread(name, frozenset({updates.axis_name}), axis_name)
        shapes = updates.shapes if is_stream else updates
        if not weighted:
            refuse_weights(name, worker_weights)
        population = survey(
            name, shapes, params, axis_name, worker_mask, worker_weights
        )
        leaves, treedef = jax.tree.flatten(shapes)
        draws = [LeafDraws()] * len(leaves)
        if rng_key is not None:
            draws = draw(noise, random_ties, state, leaves, population)
            state = keys.next_state(state)
        groups = joined_leaves(leaves)
        if is_stream:
            reduced = _fold(rule, updates, groups, draws, population)
        else:
            reduced = _reduce(rule, groups, leaves, draws, population)
        combined = _finish(rule, groups, leaves, reduced, draws, population)
        return jax.tree.unflatten(treedef, combined), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _reduce(
    rule: Rule,
    groups: list[list[int]],
    leaves: list[jax.Array],
    draws: list[LeafDraws],
    population: Population,
) -> list[jax.Array]:
    """Reduces the rows of each group of leaves."""
    reduced = []
    for group in groups:
        rows = [leaves[i].reshape(population.num_local, -1) for i in group]
        if len(group) == 1:
            reduced.append(rule.reduce(rows[0], draws[group[0]], population))
            continue
        settled = [rule.settle(r, draws[i]) for r, i in zip(rows, group, strict=True)]
        joined = jnp.concatenate(settled, axis=1)
        reduced.append(rule.reduce(joined, _settled_draws(group, draws), population))
    return reduced


def _fold(
    rule: Rule,
    stream: WorkerStream,
    groups: list[list[int]],
    draws: list[LeafDraws],
    population: Population,
) -> list[jax.Array]:
    """Reduces the groups of leaves block by block of workers, adding up."""

    def reduce_block(grads: Any, first: jax.Array, fresh: jax.Array) -> list[jax.Array]:
        size = fresh.shape[0]
        present = fresh if population.num_local % size else None
        if population.present is not None:
            present = fresh & jax.lax.dynamic_slice_in_dim(
                population.present, first, size
            )
        weights = population.weights
        if weights is not None:
            assert present is not None
            weights = jax.lax.dynamic_slice_in_dim(weights, first, size)
            weights = jnp.where(present, weights, np.asarray(0, weights.dtype))
        block = population._replace(num_local=size, present=present, weights=weights)
        block_draws = [leaf_draws.of_workers(first, size) for leaf_draws in draws]
        return _reduce(rule, groups, jax.tree.leaves(grads), block_draws, block)

    def add(carry: Any, grads: Any, first: jax.Array, fresh: jax.Array) -> Any:
        return jax.tree.map(jnp.add, carry, reduce_block(grads, first, fresh))

    return stream.fold(add, stream.blank(reduce_block))


def _finish(
    rule: Rule,
    groups: list[list[int]],
    leaves: list[Any],
    reduced: list[jax.Array],
    draws: list[LeafDraws],
    population: Population,
) -> list[jax.Array]:
    """Ends each group and cuts it into its leaves."""
    finished: dict[int, jax.Array] = {}
    for group, group_reduced in zip(groups, reduced, strict=True):
        alone = len(group) == 1
        group_draws = draws[group[0]] if alone else _settled_draws(group, draws)
        whole = rule.finish(group_reduced, group_draws, population)
        start = 0
        for i in group:
            shape = leaves[i].shape[1:]
            part = whole[start : start + math.prod(shape)]
            finished[i] = part.astype(leaves[i].dtype).reshape(shape)
            start += math.prod(shape)
    return [finished[i] for i in range(len(leaves))]


def joined_leaves(leaves: Sequence[Any]) -> list[list[int]]:
    """Puts each large leaf by itself, and small ones of one dtype together.

    Args:
      leaves: arrays ``[m, ...]``, or their shapes.

    Returns:
      Positions of the leaves that are combined together.
    """
    groups: list[list[int]] = []
    small: dict[Any, list[int]] = {}
    for i, leaf in enumerate(leaves):
        if math.prod(leaf.shape[1:]) >= _SMALL:
            groups.append([i])
        elif leaf.dtype in small:
            small[leaf.dtype].append(i)
        else:
            small[leaf.dtype] = [i]
            groups.append(small[leaf.dtype])
    return groups


def _settled_draws(group: list[int], draws: list[LeafDraws]) -> LeafDraws:
    """Joins what settled leaves still have to draw: the bits of tied tallies."""
    tie_bits = [draws[i].tie_bits for i in group]
    joined = [bits for bits in tie_bits if bits is not None]
    return LeafDraws(tie_bits=jnp.concatenate(joined) if joined else None)
