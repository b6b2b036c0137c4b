"""Rows of workers ``[m, d]``: made of the leaves of a tree, and added up in blocks.

A tree of many small leaves would compile, and launch, one kernel per leaf. So small
leaves are joined end to end and computed as one. A large leaf is computed alone.

XLA on CPU reduces over a leading axis 20 to 50 times slower than it adds whole rows,
and one expression over many rows is slow to compile and to run. So rows are computed
and added a block at a time, and only the running sum is kept.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmedian.noise import lanes

# Coordinates below which a leaf is joined with others. Joining copies M rows of it; at
# this size the copy stays in cache, and nine tenths of a large model's parameters are
# in leaves above it.
SMALL = 65_536


class Group(NamedTuple):
    """Leaves that are computed as one: a large one alone, or small ones of one dtype.

    Attributes:
      members: their positions among all leaves.
      sizes: their numbers of coordinates.
      in_lanes: whether each fills whole lanes, so that joined they can draw words.
    """

    members: list[int]
    sizes: list[int]
    in_lanes: bool

    @property
    def num_coordinates(self) -> int:
        """Coordinates of them all, joined, what fills the lanes included."""
        return sum(map(lanes.padded_size if self.in_lanes else int, self.sizes))

    def join(self, rows: Sequence[jax.Array]) -> jax.Array:
        """Joins its own of the rows ``[..., d]`` of all leaves, to ``[..., n]``."""
        own = [rows[i] for i in self.members]
        if self.in_lanes:
            return lanes.join(own, 1.0)  # a row with a sign needs no bit in its place
        return own[0] if len(own) == 1 else jnp.concatenate(own, axis=-1)

    def cut(self, joined: jax.Array) -> dict[int, jax.Array]:
        """Cuts ``[..., n]``, or longer, into rows ``[..., d]``, by their positions."""
        if len(self.members) == 1:
            return {self.members[0]: joined[..., : self.sizes[0]]}
        joined = computed_once(joined)
        parts, start = {}, 0
        for member, size in zip(self.members, self.sizes, strict=True):
            parts[member] = joined[..., start : start + size]
            start += lanes.padded_size(size) if self.in_lanes else size
        return parts


def groups_of(leaves: Sequence[Any], *, in_lanes: bool = False) -> list[Group]:
    """Puts each large leaf by itself, and small ones of one dtype together.

    Args:
      leaves: arrays ``[m, ...]``, or their shapes.
      in_lanes: whether joined leaves fill whole lanes.
    """
    groups: list[list[int]] = []
    small: dict[Any, list[int]] = {}
    sizes = [math.prod(leaf.shape[1:]) for leaf in leaves]
    for i, leaf in enumerate(leaves):
        if sizes[i] >= SMALL:
            groups.append([i])
        elif leaf.dtype in small:
            small[leaf.dtype].append(i)
        else:
            small[leaf.dtype] = [i]
            groups.append(small[leaf.dtype])
    return [
        Group(members, [sizes[i] for i in members], in_lanes and len(members) > 1)
        for members in groups
    ]


def rows_of_leaves(
    groups: Sequence[Group], joined: Sequence[jax.Array]
) -> list[jax.Array]:
    """Cuts what was joined, ``[..., n]`` a group, into rows ``[..., d]`` a leaf.

    >>> leaves = [jnp.ones((3, 2)), jnp.zeros((3, 70_000)), jnp.ones((3, 1))]
    >>> groups = groups_of(leaves)
    >>> [group.members for group in groups]
    [[0, 2], [1]]
    >>> joined = [group.join(leaves) for group in groups]
    >>> [rows.shape for rows in rows_of_leaves(groups, joined)]
    [(3, 2), (3, 70000), (3, 1)]
    """
    rows: dict[int, jax.Array] = {}
    for group, block in zip(groups, joined, strict=True):
        rows |= group.cut(block)
    return [rows[i] for i in range(len(rows))]


Row = Callable[[int | jax.Array], Any]  # worker -> [d], or a tree of such rows

# Rows a loop step. In one expression, independent noise of 60 workers takes a minute to
# compile, and 101 rows of 10^6 numbers take 36 ms to add; by eights, 16 (2 CPU cores).
BLOCK = 8


def add_up(
    row: Row,
    num_workers: int,
    block_size: int = BLOCK,
    combine: Callable[[jax.Array, jax.Array], jax.Array] = jnp.add,
) -> Any:
    """Adds ``row(0)`` to ``row(num_workers - 1)``, a block of them a loop step.

    Args:
      row: what one worker adds; its number is a Python int or traced.
      num_workers: at least 1.
      block_size: rows a loop step.
      combine: what to do in place of adding, `jax.numpy.maximum` say.

    >>> import jax.numpy as jnp
    >>> add_up(lambda worker: jnp.full([2], worker), num_workers=20).tolist()
    [190, 190]
    """

    def add(workers: Sequence[int | jax.Array], total: Any) -> Any:
        for worker in workers:
            total = jax.tree.map(combine, total, row(worker))
        return total

    def add_block(block: jax.Array, total: Any) -> Any:
        start = first + block * block_size
        return add([start + i for i in range(block_size)], total)

    # The sum starts from rows, not from zeros, and so varies over a mesh as they do.
    first = num_workers % block_size or min(block_size, num_workers)
    total = add(range(1, first), row(0))
    num_blocks = (num_workers - first) // block_size
    return jax.lax.fori_loop(0, num_blocks, add_block, total) if num_blocks else total


def computed_once(x: jax.Array) -> jax.Array:
    """Returns x, which many will read, from memory.

    XLA on CPU copies what makes x into every reader: to cut a kernel's result into the
    leaves of a tree, it would compile the kernel once a leaf. What a branch reads is
    stored, if XLA cannot tell which branch is taken.

    >>> computed_once(jnp.arange(3)).tolist()
    [0, 1, 2]
    """
    is_true = jax.lax.optimization_barrier(jnp.bool_(True))

    def store(x: jax.Array) -> jax.Array:
        return jax.lax.cond(is_true, lambda x: x, jnp.negative, x)

    return jax.lax.platform_dependent(x, cpu=store, default=lambda x: x)


def zeros_varying_like(x: jax.Array) -> jax.Array:
    """Returns integer zeros that vary over a mesh as x does: loops may start from them.

    >>> zeros_varying_like(jnp.int32([3, -1])).tolist()
    [0, 0]
    """
    return jnp.bitwise_xor(x, x)


_SMALL_SCALE = 2.0**-40  # in which sums of fewer than 2^38 finite values are finite


def without_overflow(mean_of: Callable[[jax.Array | None], jax.Array]) -> jax.Array:
    """Computes a mean, and where it overflowed on the way again on a smaller scale.

    Args:
      mean_of: s -> mean of the values times s, a power of two; None stands for 1. It
        takes the rows apart itself: what is cut outside is stored for the second time.

    >>> huge = jnp.full([3], 3e38)
    >>> mean = without_overflow(lambda s: (huge if s is None else huge * s).mean())
    >>> abs(mean.item() / 3e38 - 1) < 1e-6
    True
    """
    mean = mean_of(None)

    def mend() -> jax.Array:
        scaled = mean_of(jnp.asarray(_SMALL_SCALE, mean.dtype))
        largest = float(jnp.finfo(mean.dtype).max)
        # Of finite values it is no larger than they are, whatever the rounding.
        again = jnp.clip(scaled / _SMALL_SCALE, -largest, largest)
        again = jnp.where(jnp.isfinite(scaled), again, scaled)
        return jnp.where(jnp.isfinite(mean), mean, again)

    return jax.lax.cond(jnp.all(jnp.isfinite(mean)), lambda: mean, mend)


def working_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """Returns float64 for float64, and float32 for every shorter floating-point type.

    >>> import jax.numpy as jnp
    >>> working_dtype(jnp.bfloat16)
    dtype('float32')
    """
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def sum_of_rows(
    rows: jax.Array, *, present: jax.Array | None, weights: jax.Array | None = None
) -> jax.Array:
    """Adds up the rows of those present.

    Args:
      rows: floating point ``[M, d]``, M >= 1.
      present: bool ``[M]``, or None if everybody is. Rows of absent workers are not
        read into the sum, whatever they hold.
      weights: ``[M]``, what to multiply each row with, or None.

    Returns:
      ``[d]``, float32 (float64 for float64). A sum beyond the largest float is
      infinite, as anywhere else, and so is a mean made of it.
    """
    dtype = working_dtype(rows.dtype)

    def term(worker: int | jax.Array) -> jax.Array:
        row = rows[worker].astype(dtype)
        if weights is not None:
            row = weights[worker].astype(dtype) * row
        if present is None:
            return row
        return jnp.where(present[worker], row, 0)

    return add_up(term, rows.shape[0])
