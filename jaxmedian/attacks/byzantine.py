"""Replace the rows of Byzantine workers: which they are, and what they may know.

An attack is a worker transform that replaces the rows of some workers by what its
formula makes of the rows of the others. The hostile are either the same all along, or
drawn anew each step among the workers present. They know everything: the gradients of
the honest, on every device.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmedian.kernels.rows import add_up, sum_of_rows, working_dtype
from jaxmedian.noise import keys
from jaxmedian.transforms.build import Step, transformation
from jaxmedian.workers import collectives
from jaxmedian.workers.collectives import AxisName, PyTree
from jaxmedian.workers.population import Population

Workers = int | Sequence[int]


class Chosen(NamedTuple):
    """Which workers an attack takes.

    Attributes:
      number: how many.
      numbers: their global numbers; None if they are drawn anew each step.
    """

    number: int
    numbers: tuple[int, ...] | None


class Scene(NamedTuple):
    """One step, as the hostile see it.

    Attributes:
      hostile: bool ``[m]``, which of the local workers are.
      honest: bool ``[m]``, which others are present.
      num_hostile: how many are hostile, over all devices, int32.
      num_honest: how many are honest, int32.
      population: the workers.
      state: step and key; None if the attack draws nothing.
      updates: the tree of all that is sent, whose leaves draw by their places in it.
    """

    hostile: jax.Array
    honest: jax.Array
    num_hostile: jax.Array
    num_honest: jax.Array
    population: Population
    state: keys.KeyState | None
    updates: PyTree

    def honest_mask(self) -> jax.Array:
        """Returns who is honest among all M workers, bool ``[M]``."""
        return collectives.gather(self.honest, self.population.axis_name)

    def mean(self, rows: jax.Array) -> jax.Array:
        """Computes the mean of the honest rows ``[d]`` in float32 (or float64)."""
        return self._average(sum_of_rows(rows, present=self.honest), 0)

    def deviation(self, rows: jax.Array, mean: jax.Array) -> jax.Array:
        """Computes their standard deviation ``[d]`` with divisor n - 1."""

        def square(worker: int | jax.Array) -> jax.Array:
            distance = rows[worker].astype(mean.dtype) - mean
            zero = np.asarray(0, mean.dtype)
            return jnp.where(self.honest[worker], distance * distance, zero)

        return jnp.sqrt(self._average(add_up(square, rows.shape[0]), 1))

    def _average(self, total: jax.Array, lost_degrees: int) -> jax.Array:
        count = jnp.maximum(self.num_honest - np.int32(lost_degrees), 1)
        total = collectives.total(total, self.population.axis_name)
        return total / count.astype(total.dtype)


# (rows [m, d] of every leaf, scene) -> for each what the hostile send, [m, d] or [1, d]
Craft = Callable[[list[jax.Array], Scene], list[jax.Array]]


def attack(
    name: str,
    workers: Workers,
    key: keys.Key | None,
    craft: Craft,
    axis_name: AxisName | None,
    *,
    draws: bool = False,
    weighted: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Builds the worker transform that replaces the rows of the chosen workers.

    Args:
      name: its public name, for messages.
      workers: numbers of the hostile, or how many to draw each step.
      key: of all draws; None if there are none.
      craft: what the hostile send in place of their rows.
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`.
      draws: whether ``craft`` needs the key, whoever is chosen.
      weighted: whether it serves rules that heed ``worker_weights``.
    """
    chosen = check_workers(name, workers)
    rng_key = check_key(name, key, needed=draws or chosen.numbers is None)

    def init(params: optax.Params) -> optax.OptState:
        del params
        return optax.EmptyState() if rng_key is None else keys.init_state(rng_key)

    def apply(step: Step) -> tuple[optax.Updates, optax.OptState]:
        key_state = None if rng_key is None else step.state
        scene = set_scene(name, chosen, step, key_state)
        leaves, treedef = jax.tree.flatten(step.updates)
        rows = [leaf.reshape(leaf.shape[0], -1) for leaf in leaves]
        attacked = [
            jnp.where(scene.hostile[:, None], bad.astype(good.dtype), good)
            for bad, good in zip(craft(rows, scene), rows, strict=True)
        ]
        sent = [
            row.reshape(leaf.shape) for row, leaf in zip(attacked, leaves, strict=True)
        ]
        state = step.state if rng_key is None else keys.next_state(step.state)
        return jax.tree.unflatten(treedef, sent), state

    return transformation(
        name, apply, init=init, axis_name=axis_name, weighted=weighted
    )


def check_workers(name: str, workers: Any) -> Chosen:
    """Returns the choice that ``workers`` describes.

    Raises:
      TypeError: if it is neither an int nor a sequence of ints.
      ValueError: if a number is negative or repeated.
    """
    if _is_int(workers):
        if workers < 0:
            raise ValueError(f"`{name}`: `workers` must be >= 0; got {workers}.")
        return Chosen(int(workers), None)
    try:
        numbers = tuple(workers)
    except TypeError:
        numbers = (None,)
    if not all(_is_int(number) for number in numbers):
        raise TypeError(
            f"`{name}`: `workers` must be numbers of workers, e.g. [0, 3], or how many "
            f"to draw each step; got {workers!r}."
        )
    if len(set(numbers)) < len(numbers) or any(number < 0 for number in numbers):
        raise ValueError(
            f"`{name}`: `workers` must be different numbers >= 0; got {workers!r}."
        )
    return Chosen(len(numbers), tuple(int(number) for number in numbers))


def check_key(name: str, key: keys.Key | None, *, needed: bool) -> jax.Array | None:
    """Returns the key of an attack that draws, None for one that does not."""
    if not needed and key is not None:
        raise ValueError(
            f"`{name}` was given a `key` but nothing to draw: leave it out, or pass "
            "how many `workers` to draw each step in place of their numbers."
        )
    if not needed:
        return None
    if key is None:
        raise ValueError(
            f"`{name}` needs a `key` for what it draws; pass e.g. `jax.random.key(0)`, "
            "or the numbers of the hostile as `workers` if they alone were to be drawn."
        )
    return keys.as_threefry_key(key)


def choose(
    name: str,
    chosen: Chosen,
    num_workers: int,
    present: jax.Array | None,
    state: keys.KeyState | None,
) -> jax.Array:
    """Returns who is hostile among all M workers, bool ``[M]``.

    Raises:
      ValueError: if nobody would be left honest, or a number is no worker's.
    """
    if chosen.number >= num_workers:
        raise ValueError(
            f"`{name}` needs at least one honest worker: {chosen.number} of "
            f"{num_workers} `workers` are hostile."
        )
    if chosen.numbers is not None:
        if any(number >= num_workers for number in chosen.numbers):
            raise ValueError(
                f"`{name}`: `workers` are numbers from 0 to {num_workers - 1} here; "
                f"got {list(chosen.numbers)}."
            )
        hostile = jnp.asarray(np.isin(np.arange(num_workers), chosen.numbers))
        return hostile if present is None else hostile & present
    assert state is not None
    key = jax.random.fold_in(keys.step_key(state), keys.HOSTILE_CHOICE)
    order = jax.random.permutation(key, num_workers)
    if present is None:
        present = jnp.ones(num_workers, bool)
    in_order = present[order].astype(jnp.int32)
    earlier = jnp.cumsum(in_order, dtype=jnp.int32) - in_order
    drawn = (in_order > 0) & (earlier < chosen.number)
    return jnp.zeros(num_workers, bool).at[order].set(drawn)


def set_scene(
    name: str, chosen: Chosen, step: Step, state: keys.KeyState | None
) -> Scene:
    """Says who is hostile and who is honest in a step, at ``state`` of who draws."""
    population = step.population
    present = population.present_mask()
    hostile = choose(name, chosen, population.num_workers, present, state)
    honest = ~hostile if present is None else present & ~hostile
    local = population.numbers()
    return Scene(
        hostile=hostile[local],
        honest=honest[local],
        num_hostile=jnp.sum(hostile, dtype=jnp.int32),
        num_honest=jnp.sum(honest, dtype=jnp.int32),
        population=population,
        state=state,
        updates=step.updates,
    )


def _is_int(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def broadcast(row: jax.Array) -> jax.Array:
    """Says that all the hostile send the same row ``[d]``."""
    return row[None]


def constant(rows: jax.Array, value: float) -> jax.Array:
    """Returns a row ``[1, d]`` of one value, float32 (float64 for float64)."""
    return jnp.full((1, rows.shape[1]), value, working_dtype(rows.dtype))
