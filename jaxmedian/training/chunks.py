"""One compiled chunk of a run: several steps, then a measurement.

Nothing here touches the host, so that `run` may compile a chunk and `run_pure` scan it.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmedian import diagnostics
from jaxmedian.diagnostics.measures import mean_over_workers
from jaxmedian.noise import keys
from jaxmedian.training.evaluation import as_number
from jaxmedian.training.feeds import Feed, by_name, kind_of
from jaxmedian.training.model_state import StateOverWorkers, check_kind, hold, release
from jaxmedian.training.step import Proposal, build_proposal
from jaxmedian.workers import collectives
from jaxmedian.workers.checks import OF_A_MODEL
from jaxmedian.workers.collectives import AxisName, PyTree
from jaxmedian.workers.gradients import LossFn, asks_for_key, count_in_batch
from jaxmedian.workers.placing import check_shared
from jaxmedian.workers.population import population_of

Metric = Callable[[PyTree, PyTree, PyTree], dict[str, jax.Array]]
# Parameters, the optimizer's state, and the model's if it has one.
TrainState = tuple[PyTree, ...]


def build_chunk(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    metrics: Sequence[Metric],
    *,
    has_aux: bool,
    worker_chunk: int | None,
    axis_name: AxisName | None = None,
    num_workers: int | None = None,
    has_model_state: bool = False,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Builds the function that takes steps ``start`` to ``stop`` and then measures.

    The step number ``stop`` is computed too but measured in place of taken, so that one
    copy of the gradients and of the optimizer is compiled, not two. With ``measured`` 0
    the chunk ends before it, and its row is blank.

    Raises:
      TypeError, ValueError: for metrics that are no functions; while tracing, for names
        of metrics that are taken.
    """
    _check_metrics(metrics)
    propose = build_drawn_proposal(
        loss_fn,
        optimizer,
        has_aux=has_aux,
        worker_chunk=worker_chunk,
        axis_name=axis_name,
        num_workers=num_workers,
        has_model_state=has_model_state,
    )

    def measure(params: optax.Params, proposal: Proposal) -> dict[str, jax.Array]:
        grads, updates = proposal.grads, proposal.updates
        row = {"loss": proposal.loss}
        row |= diagnostics.of_step(
            grads, updates, **proposal.workers, axis_name=axis_name
        )
        if has_aux:
            row |= _means_of_aux(proposal, axis_name, row.keys() | {"step"})
        if metrics and grads is not None:
            grads = jax.tree.map(lambda x: collectives.gather(x, axis_name), grads)
        measured = _measure_all(metrics, params, grads, updates, row.keys() | {"step"})
        return row | measured

    def advance(
        state: TrainState,
        feed: Feed,
        key: jax.Array,
        start: jax.Array | int,
        stop: jax.Array | int,
        measured: jax.Array | int = 1,
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        def visit(number: jax.Array, carry: PyTree) -> PyTree:
            state, row = carry
            proposal = propose(state, feed, key, number)

            def take() -> PyTree:
                new_params = optax.apply_updates(state[0], proposal.updates)
                held = [proposal.model_state] if has_model_state else []
                return (new_params, proposal.opt_state, *held), row

            def stay() -> PyTree:
                return state, measure(state[0], proposal)

            return jax.lax.cond(number < stop, take, stay)

        shapes = jax.eval_shape(
            lambda state: measure(
                state[0], propose(state, feed, key, jnp.asarray(stop))
            ),
            state,
        )
        blank = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
        state, row = jax.lax.fori_loop(start, stop + measured, visit, (state, blank))
        return state, {"step": jnp.asarray(stop, jnp.int32), **row}

    return advance


def build_drawn_proposal(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    has_aux: bool,
    worker_chunk: int | None,
    axis_name: AxisName | None = None,
    num_workers: int | None = None,
    has_model_state: bool = False,
) -> Callable[[TrainState, Feed, jax.Array, jax.Array | int], Proposal]:
    """Builds ``(state, feed, key, number) -> Proposal``, the step of that number.

    ``key`` is that of the run: batches, extra arguments and losses get their own.
    """
    wants_key = asks_for_key(loss_fn, has_model_state)
    propose = build_proposal(
        _with_own_key(loss_fn) if wants_key else loss_fn,
        optimizer,
        has_aux,
        axis_name,
        worker_chunk,
        num_workers,
        has_model_state,
    )

    def propose_step(
        state: TrainState, feed: Feed, key: jax.Array, number: jax.Array | int
    ) -> Proposal:
        run_key = jax.random.fold_in(key, keys.RUN)
        step_key = jax.random.fold_in(run_key, number)
        number = jnp.asarray(number)
        extra_args = by_name(feed.extra_args(step_key, number))
        batch = feed.next_batch(step_key, number)
        if wants_key:
            batch = batch, _keys_of_workers(step_key, batch, axis_name)
        proposal = propose(*state, batch, **extra_args)
        check_shared(proposal.updates, proposal.opt_state, axis_name)
        return proposal

    return propose_step


def _with_own_key(loss_fn: LossFn) -> LossFn:
    """Builds a loss that finds its key beside its batch."""

    def keyed_loss(params: optax.Params, *rest: PyTree) -> PyTree:
        *model_state, (batch, key) = rest
        return loss_fn(params, *model_state, batch, key=key)

    return keyed_loss


def _keys_of_workers(
    step_key: jax.Array, batch: PyTree, axis_name: AxisName | None
) -> jax.Array:
    """Derives a key for the loss of each worker on this device, by global number."""
    num_local = count_in_batch(batch)
    first = collectives.position(axis_name) * np.uint32(num_local)
    numbers = first + jnp.arange(num_local, dtype=jnp.uint32)
    branch = jax.random.fold_in(step_key, keys.LOSS_KEYS)
    return keys.fold_in_each(branch, numbers)


def _means_of_aux(
    proposal: Proposal, axis_name: AxisName | None, taken: set[str]
) -> dict[str, jax.Array]:
    """Averages auxiliary output over the workers present, in float32 at least.

    Raises:
      TypeError: if it is neither an array nor a dictionary of arrays.
      ValueError: if a name in it is taken.
    """
    aux = proposal.aux
    named = aux if isinstance(aux, dict) else {"aux": aux}
    if not all(
        isinstance(name, str) and isinstance(value, jax.Array)
        for name, value in named.items()
    ):
        raise TypeError(
            "With `has_aux` the loss must return (loss, aux), aux an array or a flat "
            f"dictionary {{name: array}}; got a tree {jax.tree.structure(aux)}."
        )
    if taken & named.keys():
        raise ValueError(
            f"`loss_fn` returns auxiliary output {sorted(taken & named.keys())}, names "
            "that are measurements of the run's own. Rename them."
        )
    if not named:
        return {}

    def as_float(name: str, value: jax.Array) -> jax.Array:
        rows = as_number("With `has_aux`, `loss_fn`", name, value)
        is_float = jnp.issubdtype(rows.dtype, jnp.floating)
        return rows if is_float else rows.astype(np.float32)

    rows = {name: as_float(name, value) for name, value in named.items()}
    mask, weights = map(proposal.workers.get, ("worker_mask", "worker_weights"))
    population = population_of("has_aux", rows, None, axis_name, mask, weights)
    return mean_over_workers(rows, population, of_nobody_nan=True)


def _check_metrics(metrics: Any) -> None:
    if callable(metrics):
        raise TypeError(
            f"`metrics` must be a sequence of functions; got one function, {metrics!r}."
            " Put it into a list: `metrics=[...]`."
        )
    if metrics is None or isinstance(metrics, Iterator | str | bytes | dict):
        raise TypeError(
            "`metrics` must be a sequence of functions (params, grads, updates) -> "
            f"{{name: array}}; got {metrics!r}. Leave it out for none."
        )
    for metric in metrics:
        if not callable(metric):
            raise TypeError(
                "`metrics` must be functions (params, grads, updates) -> "
                f"{{name: array}}; got {metric!r}."
            )


def _measure_all(
    metrics: Sequence[Metric],
    params: optax.Params,
    grads: optax.Updates,
    updates: optax.Updates,
    taken: set[str],
) -> dict[str, jax.Array]:
    """Evaluates the user's metrics, and refuses names that stand for something."""
    row: dict[str, jax.Array] = {}
    for metric in metrics:
        measured = metric(params, grads, updates)
        if not isinstance(measured, dict):
            raise TypeError(
                f"A function of `metrics` must return {{name: array}}; {metric!r} "
                f"returned {measured!r}."
            )
        if taken & measured.keys():
            raise ValueError(
                f"`metrics`: {metric!r} returns {sorted(taken & measured.keys())}, "
                "names that are taken by measurements of the run's own or by another "
                "function. Rename them."
            )
        taken = taken | measured.keys()
        own = f"A function of `metrics`, {metric!r},"
        row |= {name: as_number(own, name, x) for name, x in measured.items()}
    return row


def start_state(
    optimizer: optax.GradientTransformation,
    params: optax.Params,
    opt_state: optax.OptState,
    model_state: PyTree = None,
    state_over_workers: StateOverWorkers = "mean",
) -> TrainState:
    """Returns the state that a run starts from; that of the model is held by its kind.

    Raises:
      TypeError: if the parameters or the model's state are no trees of arrays.
      ValueError: if ``opt_state`` is no state of this optimizer.
    """
    params = as_arrays(params)
    if opt_state is None:
        opt_state = optimizer.init(params)
    else:
        opt_state = _checked_state(optimizer, params, opt_state)
    check_kind(state_over_workers)
    if model_state is None:
        return params, opt_state
    return params, opt_state, hold(model_state, state_over_workers)


def as_arrays(params: optax.Params) -> optax.Params:
    """Returns parameters as arrays, or raises a TypeError that names what is none."""
    return jax.tree_util.tree_map_with_path(_as_array, params)


def model_of(state: TrainState) -> tuple[PyTree, ...]:
    """Returns the parameters, and the model's state if there is one, as users see it.

    >>> model_of(("params", "opt_state")), model_of(("params", "opt_state", "mean"))
    (('params',), ('params', 'mean'))
    """
    return state[0], *map(release, state[2:])


def _checked_state(
    optimizer: optax.GradientTransformation,
    params: optax.Params,
    opt_state: optax.OptState,
) -> PyTree:
    wanted = jax.eval_shape(optimizer.init, params)
    there: Any = jax.tree.structure(opt_state)
    here: Any = jax.tree.structure(wanted)
    if there != here:
        raise ValueError(
            "`opt_state` must be a state of this optimizer, as its `init` or an "
            f"earlier run returned it: it is a tree {there}, this optimizer's {here}."
        )
    opt_state = jax.tree.map(jnp.asarray, opt_state)
    leaves = jax.tree_util.tree_leaves_with_path(wanted)
    for (path, leaf), given in zip(leaves, jax.tree.leaves(opt_state), strict=True):
        if (given.dtype, given.shape) != (leaf.dtype, leaf.shape):
            raise ValueError(
                "`opt_state` must be a state of this optimizer: "
                f"`{jax.tree_util.keystr(path)}` is {given.dtype} {given.shape}, of "
                f"this optimizer and these parameters {leaf.dtype} {leaf.shape}."
            )
    return opt_state


def _as_array(path: tuple[object, ...], leaf: object) -> jax.Array:
    try:
        return jnp.asarray(leaf)
    except TypeError as error:
        where = jax.tree_util.keystr(path) or "itself"
        raise TypeError(
            f"`params` must be a tree of arrays; at {where} it holds {kind_of(leaf)}. "
            + OF_A_MODEL
        ) from error
