"""State of a model that a loss returns anew: running statistics, counters, memories.

    loss_fn(params, model_state, batch) -> (loss, model_state)

It is no parameter: it has no gradient, and no aggregator sees it. A worker starts each
step from a state of its own ("per_worker"), or all from one shared state, the mean of
those that the workers present have returned ("mean"). In a step a `PerWorkerState` is
of the first kind, any other tree of the second.
"""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax

from jaxmedian.diagnostics.measures import mean_over_workers
from jaxmedian.workers import collectives
from jaxmedian.workers.checks import check_option
from jaxmedian.workers.collectives import AxisName, PyTree
from jaxmedian.workers.gradients import LossFn
from jaxmedian.workers.placing import PerWorkerState, is_per_worker
from jaxmedian.workers.population import Population

StateOverWorkers = Literal["mean", "per_worker"]


def check_kind(state_over_workers: Any) -> StateOverWorkers:
    """Returns the option; raises ValueError for any other."""
    check_option("state_over_workers", state_over_workers, get_args(StateOverWorkers))
    return state_over_workers


def hold(model_state: PyTree, state_over_workers: StateOverWorkers) -> PyTree:
    """Marks a state by type as that of each worker, or as shared.

    Raises:
      TypeError: for leaves that are no numbers, or cannot be averaged.
      ValueError: for another option; if leaves of workers disagree on M.
    """
    check_kind(state_over_workers)
    arrays = jax.tree_util.tree_map_with_path(_as_numbers, model_state)
    if state_over_workers == "mean":
        return arrays
    leading = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(arrays)}
    if len(leading) > 1 or () in leading:
        raise ValueError(
            '`model_state` with `state_over_workers="per_worker"` must have leaves '
            f"[M, ...], the same M in each; got leading axes {sorted(leading)}. "
            + _remedy("M")
        )
    return PerWorkerState(arrays)


def release(held: PyTree) -> PyTree:
    """Undoes `hold`."""
    return held.inner if is_per_worker(held) else held


def check_rows(held: PyTree, num_workers: int) -> None:
    """Raises ValueError unless a state of each worker is that of so many workers."""
    if not is_per_worker(held):
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(held.inner):
        if leaf.shape[0] != num_workers:
            raise ValueError(
                f"{_name(path)} has the states of {leaf.shape[0]} workers, but the "
                f"batch has {num_workers}. {_remedy(num_workers)}"
            )


def rows_of(held: PyTree, num_local: int, axis_name: AxisName | None) -> PyTree:
    """Returns what each worker of this device starts from, leaves ``[m, ...]``."""
    check_rows(held, num_local)
    if is_per_worker(held):
        return held.inner
    return collectives.vary(
        jax.tree.map(lambda x: jnp.broadcast_to(x, (num_local, *x.shape)), held),
        axis_name,
    )


def with_model_state(loss_fn: LossFn, has_aux: bool) -> LossFn:
    """Builds the loss of ``(batch, model_state)`` that returns the state as aux.

    Returns:
      ``(params, (batch, model_state)) -> (loss, (model_state, aux))``, aux None without
      ``has_aux``. While tracing it raises TypeError for a loss that returns no state,
      ValueError for one whose state changes its structure, shapes or types.
    """

    def loss_and_state(params: optax.Params, batch_and_state: PyTree) -> PyTree:
        batch, before = batch_and_state
        before = jax.tree.map(jnp.asarray, before)  # objects of this trace
        loss, returned = _two_of(
            loss_fn(params, before, batch),
            f"(loss, {'(model_state, aux)' if has_aux else 'model_state'})",
        )
        after, aux = returned, None
        if has_aux:
            after, aux = _two_of(returned, "(loss, (model_state, aux))")
        return loss, (_kept_in_form(before, after), aux)

    return loss_and_state


def next_model_state(held: PyTree, after: PyTree, population: Population) -> PyTree:
    """Returns the state after a step, of the kind that was held before it.

    Means are taken over all workers in the order of their numbers, on every device:
    with the bits of one, up to rounding where they are weighted. Of integers and flags,
    such as counters of batches, the largest of those present is taken. If nobody is
    present all stays as it was.

    Args:
      held: the state before the step.
      after: what the workers of this device returned, ``[m, ...]``.
      population: of this device.
    """
    if is_per_worker(held):
        return held.kept_where_absent(after, population.present)
    number, axis_name = population.num_workers, population.axis_name
    present, weights = population.present_mask(), population.weights_of_all()
    everybody = Population(number, number, None, present, weights)
    is_anybody_present = everybody.is_anybody_present()

    def merge(before: jax.Array, rows: jax.Array) -> jax.Array:
        rows = collectives.gather(collectives.vary(rows, axis_name), axis_name)
        if jnp.issubdtype(before.dtype, jnp.floating):
            merged = mean_over_workers(rows, everybody).astype(before.dtype)
        else:
            if present is not None:
                some = present.reshape(-1, *[1] * before.ndim)
                rows = jnp.where(some, rows, jnp.min(rows, axis=0, keepdims=True))
            merged = jnp.max(rows, axis=0)
        if is_anybody_present is None:
            return merged
        return jnp.where(is_anybody_present, merged, before)

    return jax.tree.map(merge, held, after)


def _two_of(returned: PyTree, wanted: str) -> tuple[PyTree, PyTree]:
    if not isinstance(returned, tuple) or len(returned) != 2:
        kind = f"a tuple of {len(returned)}" if isinstance(returned, tuple) else "one"
        raise TypeError(
            f"With `model_state` the loss must return {wanted}, two things; it "
            f"returned {kind}, {jax.tree.structure(returned)}. Return the new state "
            "beside the loss, or leave `model_state` out."
        )
    return returned


def _kept_in_form(before: PyTree, after: PyTree) -> PyTree:
    """Returns the new state, if it has the structure, shapes and types of the old."""
    there: Any = jax.tree.structure(before)
    here: Any = jax.tree.structure(after)
    if there != here:
        old, new = _paths(before), _paths(after)
        lost = [f"{_name(path)} is missing" for path in old if path not in new]
        lost += [f"{_name(path)} is new" for path in new if path not in old]
        raise ValueError(
            "The loss must return `model_state` in the structure it was given: "
            f"{'; '.join(lost[:5]) or f'it is {here}, before {there}'}. Return what "
            "changes inside a copy of the tree it got, and auxiliary output with "
            "`has_aux`."
        )

    def kept(path: tuple[object, ...], old: jax.Array, new: PyTree) -> jax.Array:
        new = jnp.asarray(new)
        if (new.shape, new.dtype) != (old.shape, old.dtype):
            raise ValueError(
                "The loss must return `model_state` in the shapes and types it was "
                f"given: {_name(path)} is {new.dtype} {new.shape}, of one worker, "
                f"before {old.dtype} {old.shape}. Cast or reduce it in the loss "
                f"(`.astype(jnp.{old.dtype})`), or start from a `model_state` of the "
                "form it returns."
            )
        return new.astype(old.dtype)  # no weak type

    return jax.tree_util.tree_map_with_path(kept, before, after)


def _as_numbers(path: tuple[object, ...], leaf: object) -> jax.Array:
    try:
        array = jnp.asarray(leaf)
    except TypeError as error:
        raise TypeError(
            f"{_name(path)} must be an array or a number; got {leaf!r}. Keep what is "
            "no array outside, and let the loss put the model together."
        ) from error
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        raise TypeError(
            f"{_name(path)} is a key: leave it out. A loss of `jm.run` with an "
            "argument `key` is given one of its own for each worker and step."
        )
    is_number = any(
        jnp.issubdtype(array.dtype, kind)
        for kind in (jnp.floating, jnp.integer, jnp.bool_)
    )
    if not is_number or (array.dtype.itemsize < 2 and array.dtype.kind == "V"):
        raise TypeError(
            f"{_name(path)} is {array.dtype}: `model_state` holds floating-point "
            "numbers of 16 bits or more, integers and booleans. Cast it, or store "
            "its parts."
        )
    return array


def _paths(tree: PyTree) -> list[tuple[object, ...]]:
    return [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def _name(path: tuple[object, ...]) -> str:
    return f"`model_state{jax.tree_util.keystr(path)}`"


def _remedy(num_workers: int | str) -> str:
    return (
        "Give each worker a state: `jax.tree.map(lambda leaf: jnp.stack([leaf] * "
        f"{num_workers}), model_state)` of that of one."
    )
