"""The worker axis: what every transform checks before it computes.

Updates carry one leading worker axis: ``[M, ...]`` on one device, the local block
``[M / D, ...]`` inside `jax.shard_map`. Parameters never have it. Two mistakes would
pass silently through plain optax, gradients without the axis and updates that still
have it, so both are raised here, with every offending leaf by name; and so is a third,
a mask that was given to a step and got lost on the way.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmedian.workers import collectives
from jaxmedian.workers.collectives import AxisName, PyTree
from jaxmedian.workers.weights import check_weights, one_each


class Watch:
    """What a step's gradients become before they meet transforms of ours.

    Attributes:
      changed: what came to transforms of ours, and was neither a gradient as the step
        has computed it nor what another of ours had made.
    """

    def __init__(self, gradients: PyTree, *, marks: bool = False) -> None:
        """Begins with the gradients, and may mark what transforms of ours make."""
        self._marks = marks
        self._known: dict[int, jax.Array] = {}
        self._learn(gradients)
        self.changed: list[jax.Array] = []

    def meet(self, updates: PyTree) -> None:
        """Notes what a transform of ours was given."""
        leaves = jax.tree.leaves(updates)
        self.changed += [leaf for leaf in leaves if id(leaf) not in self._known]

    def leave(self, updates: PyTree) -> PyTree:
        """Notes what a transform of ours has made, and returns it."""
        if self._marks:
            updates = jax.tree.map(collectives.mark, updates)
        self._learn(updates)
        return updates

    def _learn(self, updates: PyTree) -> None:
        self._known |= {id(leaf): leaf for leaf in jax.tree.leaves(updates)}


class _Given(NamedTuple):
    """What the step being traced was given: mask and weights by name, gradients."""

    names: tuple[str, ...] = ()
    watch: Watch | None = None


_given: ContextVar[_Given] = ContextVar("_given", default=_Given())  # noqa: B039


class Population(NamedTuple):
    """The workers as one device sees them.

    Attributes:
      num_local: rows on this device.
      num_workers: M, over all devices.
      axis_name: mesh axis over which the workers are spread, or None.
      present: bool ``[num_local]``, or None if everybody is.
      weights: ``[num_local]``, how many workers each counts as, 0 of the absent; None
        if each counts as one. Who weighs nothing is not present. Of the types that
        `check_weights` returns.
    """

    num_local: int
    num_workers: int
    axis_name: AxisName | None
    present: jax.Array | None
    weights: jax.Array | None = None

    def numbers(self) -> jax.Array:
        """Returns the global numbers of the local workers, uint32 ``[num_local]``."""
        local = jnp.arange(self.num_local, dtype=jnp.uint32)
        first = collectives.position(self.axis_name) * np.uint32(self.num_local)
        return first + local

    def as_extra_args(self) -> dict[str, jax.Array]:
        """Returns mask and weights as what ``update`` of a transformation takes."""
        given = {"worker_mask": self.present, "worker_weights": self.weights}
        return {name: value for name, value in given.items() if value is not None}

    def num_present(self) -> jax.Array:
        """Returns how many workers are present on all devices, int32."""
        if self.present is None:
            return jnp.asarray(self.num_workers, jnp.int32)
        return collectives.total(jnp.sum(self.present, dtype=jnp.int32), self.axis_name)

    def is_anybody_present(self) -> jax.Array | None:
        """Returns whether anybody is present, a bool scalar; None if so for sure."""
        return None if self.present is None else self.num_present() > 0

    def present_mask(self) -> jax.Array | None:
        """Returns who is present among all M workers, bool ``[M]``; None if all."""
        if self.present is None:
            return None
        return collectives.gather(self.present, self.axis_name)

    def weights_of_all(self) -> jax.Array | None:
        """Returns the weights of all M workers; None if each counts as one."""
        if self.weights is None:
            return None
        return collectives.gather(self.weights, self.axis_name)

    def mean_from_sum(
        self, local_sum: jax.Array, *, of_nobody_nan: bool = False
    ) -> jax.Array:
        """Divides the sum over all devices by how many workers those present count as.

        The one mean over workers: of gradients, losses and diagnostics.

        Args:
          local_sum: floating point, the sum over the local workers present, each times
            its weight.
          of_nobody_nan: whether the mean is NaN if nobody is present, and not 0.
        """
        total = collectives.total(local_sum, self.axis_name)
        least = 0 if of_nobody_nan else 1
        return total / self.total_weight(total.dtype, least)

    def total_weight(self, dtype: jnp.dtype, of_nobody: int = 1) -> jax.Array:
        """Returns how many workers all those present count as, or what nobody does."""
        if self.weights is None:
            return jnp.maximum(self.num_present(), of_nobody).astype(dtype)
        total = jnp.sum(self.weights.astype(dtype))
        total = collectives.total(total, self.axis_name)
        return jnp.where(total > 0, total, np.asarray(of_nobody, dtype))


def population_of(
    transform: str,
    updates: PyTree,
    params: PyTree | None,
    axis_name: AxisName | None = None,
    worker_mask: jax.Array | None = None,
    worker_weights: jax.Array | None = None,
    *,
    each_alone: bool = False,
    mask_name: str = "worker_mask",
) -> Population:
    """Checks stacked updates and counts their workers.

    Args:
      transform: name of the caller, for the messages.
      updates: tree of floating-point leaves ``[M, ...]``, or of their shapes.
      params: tree of leaves ``[...]``, or None where the caller was given none. Then
        nothing tells a worker axis from another: only that every leaf has a first axis,
        and the same, is checked.
      axis_name: mesh axis over which the workers are spread, or None.
      worker_mask: bool ``[M]`` (the local block under a mesh), or None.
      worker_weights: numbers >= 0, ``[M]`` (the local block under a mesh), or None.
      each_alone: whether the caller treats every worker by itself, and so may do
        without ``axis_name`` on a mesh.
      mask_name: what the caller calls the mask, for the messages.

    Raises:
      ValueError: if there are no leaves or no workers, if a leaf has no worker axis, if
        leaves disagree about the number of workers, or mask or weights with them, or if
        weights that are known are negative or sum to 0; if workers are spread over a
        mesh axis that ``axis_name`` does not name.
      TypeError: if a leaf is not floating point of 16 bits or more, or the mask not
        boolean; if the step was given a mask or weights that did not arrive here.
    """
    _check_arrived(transform, worker_mask=worker_mask, worker_weights=worker_weights)
    if watch := _given.get().watch:
        watch.meet(updates)
    num_local = _count_rows(transform, updates, params)
    if not each_alone:
        check_spread(transform, _spread(updates, params, axis_name), axis_name)
    num_workers = num_local * collectives.size(axis_name)
    present = _check_mask(transform, mask_name, worker_mask, num_local, num_workers)
    if worker_weights is None:
        return Population(num_local, num_workers, axis_name, present)
    weights = check_weights(transform, worker_weights, num_local, num_workers)
    counted = weights > 0
    present = counted if present is None else counted & present
    weights = jnp.where(present, weights, np.asarray(0, weights.dtype))
    return Population(num_local, num_workers, axis_name, present, weights)


@contextlib.contextmanager
def given_to_step(*names: str, watch: Watch | None = None) -> Iterator[None]:
    """Tells the transforms called inside which arguments their step was given."""
    token = _given.set(_Given(names, watch))
    try:
        yield
    finally:
        _given.reset(token)


def made_by_ours(updates: PyTree) -> PyTree:
    """Returns what a transform of ours has made to the step being traced."""
    watch = _given.get().watch
    return watch.leave(updates) if watch else updates


def _check_arrived(transform: str, **arrived: object) -> None:
    """Raises TypeError if something around the transform dropped an extra argument.

    optax calls a transformation that takes none without them, and so all inside it.
    """
    for name in _given.get().names:
        if arrived[name] is None:
            raise TypeError(
                f"`{name}` was given to the step and did not reach `{transform}`: what "
                "stands around it takes no extra arguments, as `optax.lookahead` and "
                "`optax.contrib.split_real_and_imaginary`. Put that behind the "
                "aggregator, or build it as an "
                "`optax.GradientTransformationExtraArgs` that hands them on."
            )


def _count_rows(transform: str, updates: PyTree, params: PyTree | None) -> int:
    """Counts the workers on this device, of which every leaf has a row."""
    leaves = jax.tree_util.tree_leaves_with_path(updates)
    if not leaves:
        raise ValueError(
            f"`{transform}` was given updates without any array. With `optax.masked` "
            "or `optax.partition`, does a mask or label match no parameter?"
        )
    for path, leaf in leaves:
        _check_floating(transform, path, leaf)
    if params is None:
        without_axis = [
            f"{_name(path)} has shape {jnp.shape(leaf)}"
            for path, leaf in leaves
            if jnp.ndim(leaf) == 0
        ]
    else:
        expected = _shapes_by_leaf(transform, updates, params)
        without_axis = [
            f"{_name(path)} has shape {jnp.shape(leaf)}, its parameter {shape}"
            for (path, leaf), shape in zip(leaves, expected, strict=True)
            if jnp.ndim(leaf) == 0 or jnp.shape(leaf)[1:] != shape
        ]
    if without_axis:
        raise ValueError(
            f"`{transform}` expects updates with a leading worker axis: "
            f"{'; '.join(without_axis)}. Did you forget "
            "`jax.vmap(jax.grad(loss), (None, 0))`, or is another aggregator before "
            "it? `optax.MultiSteps`, `optax.apply_if_finite` and `optax.flatten` stand "
            "behind an aggregator, not around it: `optax.chain(majority_vote(), "
            "optax.MultiSteps(optax.sgd(rate), n).gradient_transformation())`."
        )
    counts = {_name(path): jnp.shape(leaf)[0] for path, leaf in leaves}
    num_local = next(iter(counts.values()))
    if any(count != num_local for count in counts.values()):
        raise ValueError(
            f"`{transform}` expects the same number of workers in every leaf; got "
            f"{', '.join(f'{count} in {name}' for name, count in counts.items())}."
        )
    if num_local == 0:
        raise ValueError(f"`{transform}` expects at least one worker; got M = 0.")
    return num_local


def _check_floating(transform: str, path: tuple[object, ...], leaf: Any) -> None:
    dtype = jnp.dtype(_dtype(leaf))
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"`{transform}` expects floating-point updates: {_name(path)} is "
            f"{dtype}. Cast it to a floating-point type, or keep it out of the "
            "parameters that are trained."
        )
    if dtype.itemsize < 2:
        raise TypeError(
            f"`{transform}` expects updates of 16 bits or more: {_name(path)} is "
            f"{dtype}. Cast it to bfloat16, or to float32, which hold its numbers."
        )


def check_spread(
    transform: str, spread: frozenset[AxisName], axis_name: AxisName | None
) -> None:
    """Checks that a transform knows the mesh axis over which workers are spread.

    Without it each device would take its own workers for all, silently.

    Args:
      transform: name of the caller.
      spread: mesh axes over which the updates are known to differ.
      axis_name: the axis that the transform was given.

    Raises:
      ValueError: if it was given none, or if parameters are cut along another axis.
    """
    if axis_name is None and spread:
        axes = ", ".join(map(repr, sorted(spread, key=str)))
        raise ValueError(
            f"`{transform}` was built without `axis_name`, but the workers are spread "
            f"over the mesh axis {axes}: each device would see its own workers alone. "
            f"Build it with `axis_name={axes}`. If each device trains a model of its "
            "own, let the parameters vary over that axis too."
        )
    if axis_name is None:
        return
    others = spread - {axis_name}
    if not spread:  # untracked: any other axis may cut the parameters
        others = frozenset(collectives.other_manual_axes(axis_name))
    if others:
        axes = ", ".join(map(repr, sorted(others, key=str)))
        raise ValueError(
            f"`{transform}` has its workers along {axis_name!r}, but `jax.shard_map` "
            f"cut the parameters along {axes} too: their coordinates, and with them "
            "the noise, would be numbered anew on each part. Keep that axis automatic: "
            f"`jax.shard_map(..., axis_names={{{axis_name!r}}})`."
        )


def check_aggregated(caller: str, updates: PyTree, params: PyTree) -> None:
    """Checks that updates have the shapes of the parameters.

    Raises:
      ValueError: if a leaf differs, naming the missing aggregator as the likely cause.
    """
    expected = _shapes_by_leaf(caller, updates, params)
    leaves = jax.tree_util.tree_leaves_with_path(updates)
    wrong = [
        f"{_name(path)} has shape {jnp.shape(leaf)}, its parameter {shape}"
        for (path, leaf), shape in zip(leaves, expected, strict=True)
        if jnp.shape(leaf) != shape
    ]
    if wrong:
        raise ValueError(
            f"`{caller}` expects updates of the parameters' shapes: "
            f"{'; '.join(wrong)}. If the worker axis is still there, the chain has no "
            "aggregator: add `majority_vote()`, `coordinate_median()` or "
            "`worker_mean()`, in front of what hands gradients back, such as "
            "`optax.contrib.sam`."
        )


def check_state_kept(caller: str, before: PyTree, after: PyTree) -> None:
    """Checks that no state of an optimizer grew a worker axis in its update.

    Raises:
      ValueError: if a leaf did, naming the missing `per_worker` as the cause.
    """
    old, new = jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after)
    if len(old) != len(new):
        return
    grown = [
        f"{_name(path)} from {jnp.shape(was)} to {jnp.shape(now)}"
        for (path, was), now in zip(old, new, strict=True)
        if jnp.ndim(now) > 0 and jnp.shape(now)[1:] == jnp.shape(was) != jnp.shape(now)
    ]
    if grown:
        raise ValueError(
            f"`{caller}`: the optimizer's state grew a worker axis: {'; '.join(grown)}."
            " A transform with state stands before the aggregator: lift it with "
            "`jaxmedian.per_worker(transform, num_workers)`, or put it behind."
        )


def _spread(
    updates: PyTree, params: PyTree | None, axis_name: AxisName | None
) -> frozenset[AxisName]:
    """Returns the mesh axes over which workers are known to be spread.

    Where no axis was named, only parameters that are equal along it tell workers of one
    model from models trained apart; without them nothing is known.
    """
    axes = collectives.varying_axes(updates)
    if axis_name is not None:
        return axes
    leaves = jax.tree.leaves(params)
    if not leaves or not all(isinstance(leaf, jax.Array) for leaf in leaves):
        return frozenset()
    return axes - collectives.varying_axes(params)


def _check_mask(
    transform: str,
    name: str,
    worker_mask: jax.Array | None,
    num_local: int,
    num_workers: int,
) -> jax.Array | None:
    if worker_mask is None:
        return None
    mask = jnp.asarray(worker_mask)
    if mask.dtype != jnp.bool_:
        raise TypeError(
            f"`{transform}` expects a boolean `{name}`; got {mask.dtype}. Pass "
            "`mask != 0` if that is what you mean."
        )
    if mask.shape != (num_local,):
        raise ValueError(
            f"`{transform}` expects a `{name}` {one_each(num_local, num_workers)}; got "
            f"{mask.shape}."
        )
    return mask


def _shapes_by_leaf(
    caller: str, updates: PyTree, params: PyTree
) -> list[tuple[int, ...]]:
    if not _same_structure(updates, params):
        raise ValueError(
            f"`{caller}` expects updates and parameters of the same tree structure; "
            f"got {jax.tree.structure(updates)} and {jax.tree.structure(params)}."
        )
    return [jnp.shape(leaf) for leaf in jax.tree.leaves(params)]


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)


def _same_structure(a: PyTree, b: PyTree) -> bool:
    # Compared as objects: PyTreeDef has no type of its own for checkers.
    structures: tuple[object, object] = (jax.tree.structure(a), jax.tree.structure(b))
    return structures[0] == structures[1]


def _name(path: tuple[object, ...]) -> str:
    return f"`{jax.tree_util.keystr(path)}`" if path else "the updates' only array"
