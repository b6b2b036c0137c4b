"""From rows to trees: how a rule on rows ``[m, d] -> [d]`` becomes an aggregator.

A tree of many small leaves would compile, and launch, one kernel a leaf. So small
leaves settle what is random about them first, each with one elementwise pass, and are
then joined end to end and combined as one. A large leaf is combined alone, its noise
drawn where it is used.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmedian import _keys
from jaxmedian._workers import Population, survey
from jaxmedian.collectives import AxisName
from jaxmedian.draws import LeafDraws, draw
from jaxmedian.noise import Noise

# Coordinates below which a leaf is joined with others. Joining copies M rows of it; at
# this size the copy stays in cache, and nine tenths of a large model's parameters are
# in leaves above it.
_SMALL = 65_536


class Rule(NamedTuple):
    """An aggregation rule on rows.

    Attributes:
      combine: (rows ``[m, d]``, draws, population) -> ``[d]`` in any dtype; it draws
        the noise and the bits that ``draws`` still holds.
      settle: (rows, draws) -> rows with noise and worker bits drawn, elementwise. The
        same coordinates combine to the same result before and after.
    """

    combine: Callable[[jax.Array, LeafDraws, Population], jax.Array]
    settle: Callable[[jax.Array, LeafDraws], jax.Array]


def aggregator(
    name: str,
    rule: Rule,
    *,
    noise: Noise | None = None,
    rng_key: jax.Array | None = None,
    random_ties: bool = False,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Builds the optax transformation ``[M, ...] -> [...]`` of a rule.

    Args:
      name: its public name, for messages.
      rule: the rule.
      noise: what workers add before it, or None.
      rng_key: key of all its draws; None, and a state without key, if it draws nothing.
      random_ties: whether it needs the fair bits of a vote.
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`.
    """

    def init_fn(params: Any) -> Any:
        del params
        return optax.EmptyState() if rng_key is None else _keys.init_state(rng_key)

    def update_fn(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        worker_mask: jax.Array | None = None,
        **extra_args: Any,
    ) -> tuple[Any, Any]:
        del extra_args
        population = survey(name, updates, params, axis_name, worker_mask)
        leaves, treedef = jax.tree.flatten(updates)
        draws = [LeafDraws()] * len(leaves)
        if rng_key is not None:
            draws = draw(noise, random_ties, state, leaves, population)
            state = _keys.next_state(state)
        combined = _combine_leaves(rule, leaves, draws, population)
        return jax.tree.unflatten(treedef, combined), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _combine_leaves(
    rule: Rule,
    leaves: list[jax.Array],
    draws: list[LeafDraws],
    population: Population,
) -> list[jax.Array]:
    combined: dict[int, jax.Array] = {}
    for group in _groups(leaves):
        rows = [leaves[i].reshape(population.num_local, -1) for i in group]
        if len(group) == 1:
            (joined,), joined_draws = rows, draws[group[0]]
        else:
            settled = [
                rule.settle(r, draws[i]) for r, i in zip(rows, group, strict=True)
            ]
            joined = jnp.concatenate(settled, axis=1)
            joined_draws = _join_settled([draws[i] for i in group])
        whole = rule.combine(joined, joined_draws, population)
        start = 0
        for i, leaf_rows in zip(group, rows, strict=True):
            part = whole[start : start + leaf_rows.shape[1]]
            combined[i] = part.astype(leaves[i].dtype).reshape(leaves[i].shape[1:])
            start += leaf_rows.shape[1]
    return [combined[i] for i in range(len(leaves))]


def _groups(leaves: list[jax.Array]) -> list[list[int]]:
    """Puts each large leaf by itself, and small ones of one dtype together."""
    groups: list[list[int]] = []
    small: dict[Any, list[int]] = {}
    for i, leaf in enumerate(leaves):
        if leaf.size // leaf.shape[0] >= _SMALL:
            groups.append([i])
        elif leaf.dtype in small:
            small[leaf.dtype].append(i)
        else:
            small[leaf.dtype] = [i]
            groups.append(small[leaf.dtype])
    return groups


def _join_settled(draws: list[LeafDraws]) -> LeafDraws:
    """Joins what settling leaves to draw: the bits of tied tallies."""
    tie_bits = [draw.tie_bits for draw in draws if draw.tie_bits is not None]
    return LeafDraws(tie_bits=jnp.concatenate(tie_bits) if tie_bits else None)
