"""One compiled chunk of a run: several steps, then a measurement.

Nothing here touches the host, so that `run` may compile a chunk and `run_pure` scan it.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmedian import diagnostics
from jaxmedian.noise import keys
from jaxmedian.training.step import Proposal, build_proposal
from jaxmedian.workers.gradients import LossFn

NextBatch = Callable[[jax.Array, jax.Array], Any]
ExtraArgs = Callable[[jax.Array, jax.Array], dict[str, Any]]
Metric = Callable[[Any, Any, Any], dict[str, jax.Array]]
TrainState = tuple[Any, Any]  # params, opt_state


class Feed(NamedTuple):
    """What a step is given, as functions of its key and number, and with their data."""

    next_batch: jax.tree_util.Partial
    extra_args: jax.tree_util.Partial


def build_chunk(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    metrics: Sequence[Metric],
    worker_chunk: int | None,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Builds the function that takes steps ``start`` to ``stop`` and then measures.

    The step number ``stop`` is computed too but measured in place of taken, so that one
    copy of the gradients and of the optimizer is compiled, not two.

    Raises:
      TypeError, ValueError: for metrics that are no functions; while tracing, for names
        of metrics that are taken.
    """
    _check_metrics(metrics)
    propose = build_proposal(loss_fn, optimizer, False, None, worker_chunk)

    def measure(params: Any, proposal: Proposal) -> dict[str, jax.Array]:
        grads, updates = proposal.grads, proposal.updates
        row = {"loss": proposal.loss}
        row |= diagnostics.of_step(grads, updates, **proposal.workers)
        return row | _measure_all(metrics, params, grads, updates)

    def advance(
        state: TrainState,
        feed: Feed,
        key: jax.Array,
        start: jax.Array | int,
        stop: jax.Array | int,
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        def propose_step(number: jax.Array, state: TrainState) -> Proposal:
            run_key = jax.random.fold_in(key, keys.RUN)
            step_key = jax.random.fold_in(run_key, number)
            extra_args = feed.extra_args(step_key, number)
            return propose(*state, feed.next_batch(step_key, number), **extra_args)

        def visit(number: jax.Array, carry: Any) -> Any:
            (params, opt_state), row = carry
            proposal = propose_step(number, (params, opt_state))

            def take() -> Any:
                new_params = optax.apply_updates(params, proposal.updates)
                return (new_params, proposal.opt_state), row

            def stay() -> Any:
                return (params, opt_state), measure(params, proposal)

            return jax.lax.cond(number < stop, take, stay)

        shapes = jax.eval_shape(
            lambda state: measure(state[0], propose_step(jnp.asarray(stop), state)),
            state,
        )
        blank = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
        state, row = jax.lax.fori_loop(start, stop + 1, visit, (state, blank))
        return state, {"step": jnp.asarray(stop, jnp.int32), **row}

    return advance


def _check_metrics(metrics: Any) -> None:
    if callable(metrics):
        raise TypeError(
            f"`metrics` must be a sequence of functions; got one function, {metrics!r}."
            " Put it into a list: `metrics=[...]`."
        )
    if isinstance(metrics, Iterator | str | bytes | dict):
        raise TypeError(
            "`metrics` must be a sequence of functions (params, grads, updates) -> "
            f"{{name: array}}; got {metrics!r}."
        )
    for metric in metrics:
        if not callable(metric):
            raise TypeError(
                "`metrics` must be functions (params, grads, updates) -> "
                f"{{name: array}}; got {metric!r}."
            )


def _measure_all(
    metrics: Sequence[Metric], params: Any, grads: Any, updates: Any
) -> dict[str, jax.Array]:
    """Evaluates the user's metrics, and refuses names that stand for something."""
    taken = {"loss", "step"}
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
                'names that are taken: "loss" and "step" are the run\'s own, and each '
                "other name is one function's. Rename them."
            )
        taken |= measured.keys()
        row |= measured
    return row


def build_feed(next_batch: NextBatch, extra_args: ExtraArgs | None) -> Feed:
    """Makes functions arguments of the compiled chunk, so that their data are too.

    Raises:
      TypeError: if they are no functions.
    """
    if not callable(next_batch):
        raise TypeError(
            "`next_batch` must be a function (key, step) -> batch [M, ...], traced; "
            f"got {_kind_of(next_batch)}. {_remedy_for(next_batch)}"
        )
    if extra_args is not None and not callable(extra_args):
        raise TypeError(
            "`extra_args` must be a function (key, step) -> {name: value}; got "
            f"{extra_args!r}. For the same value in each step, return it."
        )
    nothing: ExtraArgs = _no_extra_args
    return Feed(_as_pytree(next_batch), _as_pytree(extra_args or nothing))


def _kind_of(value: Any) -> str:
    return f"a {type(value).__module__}.{type(value).__qualname__}".replace(
        "builtins.", ""
    )


def _remedy_for(data: Any) -> str:
    if inspect.isgenerator(data) or isinstance(data, Iterator):
        return (
            "Batches that Python makes cannot be drawn inside the compiled chunk: loop "
            "over them with `jm.make_step`, or hold the data as arrays [M, n, ...] and "
            "pass `jm.mini_batches(data, batch_size)`."
        )
    return (
        "For data [M, ...] served whole in every step pass `jm.full_batch(data)`; for "
        "samples of data [M, n, ...] `jm.mini_batches(data, batch_size)`."
    )


def _no_extra_args(key: jax.Array, step: jax.Array) -> dict[str, Any]:
    del key, step
    return {}


def _as_pytree(function: Callable[..., Any]) -> jax.tree_util.Partial:
    """Makes a function an argument of jitted code, so that its data is one too.

    Data that a closure captures is compiled into the program as a constant, slowly.
    """
    if isinstance(function, jax.tree_util.Partial):
        return function
    return jax.tree_util.Partial(function)


def start_state(
    optimizer: optax.GradientTransformation, params: Any, opt_state: Any
) -> TrainState:
    """Returns the state that a run starts from.

    Raises:
      TypeError: if the parameters are no tree of arrays.
      ValueError: if ``opt_state`` is no state of this optimizer.
    """
    params = jax.tree_util.tree_map_with_path(_as_array, params)
    if opt_state is None:
        return params, optimizer.init(params)
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
    return params, opt_state


def _as_array(path: Any, leaf: Any) -> jax.Array:
    try:
        return jnp.asarray(leaf)
    except TypeError as error:
        where = jax.tree_util.keystr(path) or "itself"
        raise TypeError(
            f"`params` must be a tree of arrays; at {where} it holds {_kind_of(leaf)}. "
            "Of a model object pass the arrays and let `loss_fn` rebuild the model: "
            "Flax Linen `model.init(...)`, Flax NNX `nnx.split(model)`, Equinox "
            "`eqx.partition(model, eqx.is_array)`."
        ) from error
