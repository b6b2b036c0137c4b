"""Build optax transformations of stacked updates: from rules on rows to rules on trees.

`transformation` is the frame of every worker transform and aggregator: it checks the
worker axis, mask, weights and extra arguments, and hands one `Step` on. `aggregator`
carries a rule on rows ``[m, d] -> [d]`` to trees, whose small leaves are joined.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmedian.kernels import tiles
from jaxmedian.kernels.rows import SMALL, Group, groups_of, rows_of_leaves
from jaxmedian.noise import Noise
from jaxmedian.transforms.draws import (
    Draws,
    LeafDraws,
    draw,
    follows_gradients,
    init_state,
)
from jaxmedian.workers import collectives, explicit
from jaxmedian.workers.blocks import put_rows
from jaxmedian.workers.checks import check_extra_args
from jaxmedian.workers.collectives import AxisName, PyTree
from jaxmedian.workers.population import (
    Population,
    check_spread,
    given_to_step,
    made_by_ours,
    population_of,
)
from jaxmedian.workers.stream import Block, WorkerStream
from jaxmedian.workers.weights import refuse_weights

# Large leaves to go through in one loop. Votes with independent noise take .45 s a leaf
# to compile on CPU; the loop copies their rows once, a tenth to a third of their time.
# With systematic noise it is .1 s, and the copy takes as long as the vote.
_MANY = 4


class Step(NamedTuple):
    """One step of a transformation, its arguments checked.

    Attributes:
      updates: tree of leaves ``[m, ...]``; a `WorkerStream` for what folds it.
      shapes: the updates, or the tree of their shapes if they are a stream.
      state: state of the transformation before the step.
      params: tree of leaves ``[...]``, or None where ``update`` was given none.
      population: the workers.
      extra_args: what else ``update`` was given.
    """

    updates: PyTree
    shapes: PyTree
    state: PyTree
    params: optax.Params | None
    population: Population
    extra_args: dict[str, Any]


def transformation(
    name: str,
    apply: Callable[[Step], tuple[optax.Updates, optax.OptState]],
    *,
    init: Callable[[optax.Params], optax.OptState] | None = None,
    axis_name: AxisName | None = None,
    weighted: bool = False,
    folds: bool = False,
    each_alone: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Builds an optax transformation whose updates have a worker axis.

    Args:
      name: its public name, for messages.
      apply: what it does in a checked step -> (updates, state).
      init: its state before the first step; None if it has none.
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`.
      weighted: whether it heeds ``worker_weights``; others refuse them.
      folds: whether it takes a `WorkerStream` as it is; others are given it stacked.
      each_alone: whether it treats every worker by itself, and so may do without
        ``axis_name`` on a mesh.
    """
    if isinstance(axis_name, tuple | list):
        raise TypeError(
            f"`{name}` has its workers along one mesh axis; `axis_name` is "
            f"{axis_name!r}. Make a mesh with an axis for all of them: "
            '`jax.make_mesh((num_devices,), ("workers",))`.'
        )

    def init_fn(params: optax.Params) -> optax.OptState:
        return optax.EmptyState() if init is None else init(params)

    def take(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None,
        mask: jax.Array | None,
        weights: jax.Array | None,
        extra_args: dict[str, Any],
    ) -> tuple[optax.Updates, optax.OptState]:
        updates = shapes = jax.tree.map(_on_device, updates)
        if isinstance(updates, WorkerStream):
            if folds:
                shapes = updates.shapes
                if updates.axis_name is not None and not each_alone:
                    check_spread(name, frozenset({updates.axis_name}), axis_name)
            else:
                with given_to_step():  # the loss may call what it likes
                    updates = shapes = updates.stack(name)
        population = population_of(
            name, shapes, params, axis_name, mask, weights, each_alone=each_alone
        )
        step = Step(updates, shapes, state, params, population, extra_args)
        with given_to_step():  # what stands inside is called as it wants to be
            updates, state = apply(step)
        return made_by_ours(updates), state

    compiled_take = jax.jit(take)

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        worker_mask: jax.Array | None = None,
        worker_weights: jax.Array | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        if extra_args:
            check_extra_args(name, extra_args)
        if worker_weights is not None and not weighted:
            refuse_weights(name)
        args = (updates, state, params, worker_mask, worker_weights, extra_args)
        if collectives.explicit_mesh(args) is not None:
            return explicit.on_automatic_axes(take, explicit.place_step, *args)
        if axis_name is not None or not _all_known(args):
            return take(*args)
        if worker_weights is not None:
            # They are checked, and take their type, by their values.
            worker_weights = population_of(
                name, updates, params, None, worker_mask, worker_weights
            ).weights
        return compiled_take(
            updates, state, params, worker_mask, worker_weights, extra_args
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _all_known(tree: PyTree) -> bool:
    """Returns whether all leaves are arrays or numbers that nobody traces."""
    return all(
        isinstance(leaf, jax.Array | np.ndarray | np.generic | int | float)
        and not isinstance(leaf, jax.core.Tracer)
        for leaf in jax.tree.leaves(tree)
    )


def _on_device(leaf: Any) -> Any:
    """Returns NumPy's arrays as JAX's, which loops over workers can index."""
    return jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf


def _same_result(
    x: jax.Array, draws: LeafDraws, population: Population, size: int
) -> jax.Array:
    del draws, population, size
    return x


def _never(size: int, population: Population) -> bool:
    del size, population
    return False


class Rule(NamedTuple):
    """An aggregation rule on rows: local workers first, then devices.

    Attributes:
      reduce: (rows ``[m, d]``, draws, population) -> ``[n]``, from the local workers;
        it draws the noise and the bits that ``draws`` holds.
      finish: (what ``reduce`` returned, draws, population, d) -> ``[d]`` or longer, in
        any dtype; by default what it is given.
      additive: whether ``reduce`` of several blocks of workers may be added up, so that
        a stream of them can be folded.
      in_rows: (d, population) -> whether ``reduce`` keeps rows of workers, ``[m, n]``:
        of several blocks they are put below each other in place of added up.
      tiled: whether ``reduce`` returns ``[d]`` integers, coordinate by coordinate and
        without collectives, so that it may go through the tiles of large leaves.
    """

    reduce: Callable[[jax.Array, LeafDraws, Population], jax.Array]
    finish: Callable[[jax.Array, LeafDraws, Population, int], jax.Array] = _same_result
    additive: bool = False
    in_rows: Callable[[int, Population], bool] = _never
    tiled: bool = False


def aggregator(
    name: str,
    rule: Rule,
    *,
    noise: Noise | None = None,
    rng_key: jax.Array | None = None,
    random_ties: bool = False,
    axis_name: AxisName | None = None,
    weighted: bool = True,
    in_lanes: bool = False,
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
      in_lanes: whether joined leaves fill whole lanes even if nothing is drawn.
    """

    def init(params: optax.Params) -> optax.OptState:
        if rng_key is None:
            return optax.EmptyState()
        return init_state(noise, rng_key, params)

    def apply(step: Step) -> tuple[optax.Updates, optax.OptState]:
        leaves, treedef = jax.tree.flatten(step.shapes)
        draws, state = None, step.state
        if rng_key is not None:
            draws, state = draw(noise, random_ties, state, step.shapes, step.population)
        groups = groups_of(leaves, in_lanes=rng_key is not None or in_lanes)
        if isinstance(step.updates, WorkerStream):
            reduced = _fold(rule, step.updates, groups, draws, step.population)
        else:
            reduced = _reduce_all(rule, groups, leaves, draws, step.population)
        combined = [
            rule.finish(
                group_reduced,
                _draws_of(group, draws),
                step.population,
                group.num_coordinates,
            )
            for group, group_reduced in zip(groups, reduced, strict=True)
        ]
        updates = [
            row.astype(leaf.dtype).reshape(leaf.shape[1:])
            for row, leaf in zip(rows_of_leaves(groups, combined), leaves, strict=True)
        ]
        return jax.tree.unflatten(treedef, updates), state

    return transformation(
        name,
        apply,
        init=init,
        axis_name=axis_name,
        weighted=weighted,
        folds=rule.additive and not follows_gradients(noise),
    )


def _reduce_all(
    rule: Rule,
    groups: list[Group],
    leaves: list[jax.Array],
    draws: Draws | None,
    population: Population,
) -> list[jax.Array]:
    """Reduces the rows of each group of leaves; on CPU many large ones in one loop."""

    def one_by_one() -> list[jax.Array]:
        return _reduce(rule, groups, leaves, draws, population)

    looped = _many_large(groups, leaves)
    if not (rule.tiled and looped and population.weights is None):
        return one_by_one()
    if draws is None or draws.law is None or draws.slots is not None:
        return one_by_one()
    if any(scale.ndim for scale in draws.scales):
        return one_by_one()

    def in_loops() -> list[jax.Array]:
        others = sorted(set(range(len(groups))).difference(*looped))
        rest = _reduce(rule, [groups[i] for i in others], leaves, draws, population)
        found = dict(zip(others, rest, strict=True))
        for numbers in looped:
            found |= zip(numbers, in_one_loop(numbers), strict=True)
        return [found[i] for i in range(len(groups))]

    def in_one_loop(numbers: list[int]) -> list[jax.Array]:
        members = [groups[number].members[0] for number in numbers]
        rows = [leaves[i].reshape(population.num_local, -1) for i in members]
        own = draws.of_leaves(members)

        def of_tile(tile: jax.Array, leaf: jax.Array, start: jax.Array) -> jax.Array:
            return rule.reduce(tile, own.of_leaf(leaf, start), population)

        size = tiles.cpu_width(population.num_local, most=SMALL)
        shape = jax.eval_shape(of_tile, rows[0][:, :size], jnp.int32(0), jnp.uint32(0))
        return tiles.map_tiles_of_leaves(of_tile, rows, size, shape.dtype)

    return jax.lax.platform_dependent(cpu=in_loops, default=one_by_one)


def _many_large(groups: list[Group], leaves: list[jax.Array]) -> list[list[int]]:
    """Returns the numbers of large leaves' groups, by dtype, where they are many."""
    by_dtype: dict[Any, list[int]] = {}
    for number, group in enumerate(groups):
        if group.sizes[0] >= SMALL:
            by_dtype.setdefault(leaves[group.members[0]].dtype, []).append(number)
    return [
        numbers
        for numbers in by_dtype.values()
        if len(numbers) >= _MANY and sum(groups[n].sizes[0] for n in numbers) < 2**31
    ]


def _reduce(
    rule: Rule,
    groups: list[Group],
    leaves: list[jax.Array],
    draws: Draws | None,
    population: Population,
) -> list[jax.Array]:
    """Reduces the rows of each group of leaves."""
    rows = [leaf.reshape(population.num_local, -1) for leaf in leaves]
    return [
        rule.reduce(group.join(rows), _draws_of(group, draws), population)
        for group in groups
    ]


def _draws_of(group: Group, draws: Draws | None) -> LeafDraws:
    return LeafDraws() if draws is None else draws.of_group(group)


def _fold(
    rule: Rule,
    stream: WorkerStream,
    groups: list[Group],
    draws: Draws | None,
    population: Population,
) -> list[jax.Array]:
    """Reduces the groups of leaves block by block of workers, adding up."""
    in_rows = [rule.in_rows(group.num_coordinates, population) for group in groups]

    def reduce_block(block: Block) -> list[jax.Array]:
        size = block.fresh.shape[0]
        present = block.fresh if population.num_local % size else None
        if population.present is not None:
            present = block.fresh & jax.lax.dynamic_slice_in_dim(
                population.present, block.first, size
            )
        weights = population.weights
        if weights is not None:
            assert present is not None
            weights = jax.lax.dynamic_slice_in_dim(weights, block.first, size)
            weights = jnp.where(present, weights, 0)
        workers = population._replace(num_local=size, present=present, weights=weights)
        own = draws and draws.of_workers(block.first, size)
        return _reduce(rule, groups, jax.tree.leaves(block.grads), own, workers)

    def add_block(number: jax.Array, carry: PyTree) -> PyTree:
        total, carry = carry
        block, carry = stream.compute(number, carry)
        parts = zip(total, reduce_block(block), in_rows, strict=True)
        return [
            put_rows(whole, part, block.first) if placed else whole + part
            for whole, part, placed in parts
        ], carry

    shapes = jax.eval_shape(
        lambda block: reduce_block(collectives.vary(block, stream.axis_name)),
        stream.block_shapes,
    )
    start = [
        jnp.zeros((population.num_local, *s.shape[1:]) if placed else s.shape, s.dtype)
        for s, placed in zip(shapes, in_rows, strict=True)
    ]
    start = collectives.vary((start, stream.carry), stream.axis_name)
    total, stream.carry = jax.lax.fori_loop(0, stream.num_blocks, add_block, start)
    return total
