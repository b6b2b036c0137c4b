"""Weighted sums of workers' whole gradients, for rules that look at distances.

A coordinate-wise rule goes leaf by leaf. A distance is one number over all leaves, so
Krum, geometric medians, clipping and mixing first gather a few numbers a worker from
the whole tree, make weights of them, and then add up rows with these weights.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmedian.kernels.distances import gram_of_rows, squared_norms_of_rows
from jaxmedian.kernels.rows import (
    add_up,
    groups_of,
    rows_of_leaves,
    working_dtype,
)
from jaxmedian.transforms.build import Step, transformation
from jaxmedian.workers import collectives
from jaxmedian.workers.collectives import AxisName, PyTree
from jaxmedian.workers.population import Population


class Gradients:
    """The gradients of the local workers as blocks of rows ``[m, n]``.

    Small leaves of one dtype are joined, so a block is worth a kernel of its own.

    Attributes:
      blocks: the rows, every coordinate in one of them.
      population: the workers.
      dtype: in which numbers about all blocks are computed.
    """

    def __init__(self, updates: optax.Updates, population: Population) -> None:
        """Joins the leaves of checked updates ``[m, ...]``."""
        self._leaves, self._treedef = jax.tree.flatten(updates)
        self._groups = groups_of(self._leaves)
        self.population = population
        rows = [leaf.reshape(population.num_local, -1) for leaf in self._leaves]
        self.blocks = [group.join(rows) for group in self._groups]
        dtypes = {working_dtype(block.dtype) for block in self.blocks}
        self.dtype = max(dtypes, key=lambda dtype: dtype.itemsize)

    def join(self, tree: PyTree) -> list[jax.Array]:
        """Joins a tree like the parameters to blocks ``[n]`` to compute with."""
        rows = [leaf.reshape(-1) for leaf in jax.tree.leaves(tree)]
        return [
            group.join(rows).astype(working_dtype(own.dtype))
            for group, own in zip(self._groups, self.blocks, strict=True)
        ]

    def gram(self) -> jax.Array:
        """Computes `gram_of_rows` over all coordinates and workers, ``[M, M]``."""
        axis_name = self.population.axis_name
        present = self.population.present_mask()
        grams = [
            gram_of_rows(collectives.to_coordinate_slices(block, axis_name), present)
            for block in self.blocks
        ]
        return collectives.total(self._add(grams), axis_name)

    def squared_norms(self, centre: list[jax.Array] | None = None) -> jax.Array:
        """Computes squared distances from blocks ``[n]``, or from 0; ``[M]``."""
        centres = [None] * len(self.blocks) if centre is None else centre
        squares = [
            squared_norms_of_rows(block, c)
            for block, c in zip(self.blocks, centres, strict=True)
        ]
        return collectives.gather(self._add(squares), self.population.axis_name)

    def _add(self, numbers: list[jax.Array]) -> jax.Array:
        return sum(
            (x.astype(self.dtype) for x in numbers[1:]), numbers[0].astype(self.dtype)
        )

    def pick(self, worker: jax.Array) -> list[jax.Array]:
        """Returns the rows of one worker, a global number, as blocks ``[n]``."""
        first = collectives.position(self.population.axis_name).astype(jnp.int32)
        local = worker.astype(jnp.int32) - first * np.int32(self.population.num_local)
        here = (local >= 0) & (local < self.population.num_local)
        return [
            collectives.broadcast_from(block[local], here, self.population.axis_name)
            for block in self.blocks
        ]

    def weighted_sum(
        self, weights: jax.Array, centre: list[jax.Array] | None = None
    ) -> list[jax.Array]:
        """Adds up the rows times weights ``[M]``, as blocks ``[n]``.

        Rows of weight 0 are not read into the sum, whatever they hold. With a centre,
        differences from it are added up.
        """
        local = weights[self.population.numbers()]
        sums = []
        for i, block in enumerate(self.blocks):
            wide = working_dtype(block.dtype)
            about = None if centre is None else centre[i]

            def term(
                worker: int | jax.Array,
                block: jax.Array = block,
                wide: jnp.dtype = wide,
                about: jax.Array | None = about,
            ) -> jax.Array:
                row = block[worker].astype(wide)
                row = row if about is None else row - about
                product = local[worker].astype(wide) * row
                return jnp.where(local[worker] != 0, product, np.asarray(0, wide))

            total = add_up(term, block.shape[0])
            sums.append(collectives.total(total, self.population.axis_name))
        return sums

    def mix(self, weights: jax.Array) -> list[jax.Array]:
        """Makes each worker a weighted sum of all: weights ``[M, M]``, blocks [m, n].

        Rows that nobody weighs are not read into any sum, whatever they hold.
        """
        unread = ~jnp.any(weights != 0, axis=0)
        axis_name = self.population.axis_name
        mixed = []
        for block in self.blocks:
            if block.shape[1] == 0:
                mixed.append(block)
                continue
            wide = working_dtype(block.dtype)
            rows = collectives.to_coordinate_slices(block, axis_name)

            def product(rows: jax.Array, wide: jnp.dtype = wide) -> jax.Array:
                return jax.lax.dot_general(
                    weights.astype(wide),
                    rows.astype(wide),
                    (((1,), (0,)), ((), ())),
                    precision=jax.lax.Precision.HIGHEST,
                ).astype(rows.dtype)

            def product_of_read(
                rows: jax.Array,
                product: Callable[[jax.Array], jax.Array] = product,
            ) -> jax.Array:
                zero = np.asarray(0, rows.dtype)
                return product(jnp.where(unread[:, None], zero, rows))

            # The copy without unread rows is made only where there are any.
            result = jax.lax.cond(jnp.any(unread), product_of_read, product, rows)
            mixed.append(
                collectives.to_worker_blocks(result, block.shape[1], axis_name)
            )
        return mixed

    def leaves(self, blocks: list[jax.Array], like: PyTree = None) -> PyTree:
        """Cuts blocks ``[..., n]`` into a tree of the leaves' shapes.

        Its dtypes are those of the leaves, or of the tree ``like``.
        """
        dtypes = [x.dtype for x in self._leaves if like is None]
        dtypes = dtypes or [x.dtype for x in jax.tree.leaves(like)]
        rows = rows_of_leaves(self._groups, blocks)
        cut = [
            row.astype(dtype).reshape(*row.shape[:-1], *leaf.shape[1:])
            for row, dtype, leaf in zip(rows, dtypes, self._leaves, strict=True)
        ]
        return jax.tree.unflatten(self._treedef, cut)


# gradients -> blocks, [n] of an aggregator, [m, n] of a worker transform
GradientRule = Callable[[Gradients], list[jax.Array]]


def whole_gradient_rule(
    name: str,
    rule: GradientRule,
    axis_name: AxisName | None,
    *,
    weighted: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Builds the transformation without state of a rule on whole gradients.

    ``weighted`` says whether it heeds the weights of the population.
    """

    def apply(step: Step) -> tuple[optax.Updates, optax.OptState]:
        gradients = Gradients(step.updates, step.population)
        return gradients.leaves(rule(gradients)), step.state

    return transformation(name, apply, axis_name=axis_name, weighted=weighted)
