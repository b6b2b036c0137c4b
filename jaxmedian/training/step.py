"""One training step of all workers: from a batch ``[M, ...]`` to new parameters.

    batch [M, ...] -> gradients [M, ...] -> optimizer -> updates [...] -> parameters

Read `build_proposal` and `make_step` straight down to follow a gradient from worker to
update. The optimizer is anything whose chain holds one aggregator.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AbstractMesh

from jaxmedian.kernels.rows import sum_of_rows
from jaxmedian.training.identity import names_value, takes_value
from jaxmedian.training.model_state import (
    StateOverWorkers,
    check_kind,
    hold,
    next_model_state,
    release,
    rows_of,
    with_model_state,
)
from jaxmedian.training.remembering import remember
from jaxmedian.workers import collectives, explicit
from jaxmedian.workers.checks import (
    OUR_EXTRA_ARGS,
    check_count,
    check_extra_args,
    check_params,
)
from jaxmedian.workers.collectives import AxisName, PyTree
from jaxmedian.workers.foreign import check_rows_stay_apart, explain
from jaxmedian.workers.gradients import (
    LossFn,
    asks_for_key,
    check_num_workers,
    count_in_batch,
    worker_value_and_grads,
)
from jaxmedian.workers.population import (
    Population,
    Watch,
    check_aggregated,
    check_state_kept,
    given_to_step,
    population_of,
)
from jaxmedian.workers.stream import WorkerStream, stream_value_and_grads
from jaxmedian.workers.weights import check_weights


def make_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    has_aux: bool = False,
    axis_name: AxisName | None = None,
    worker_chunk: int | None = None,
    num_workers: int | None = None,
    state_over_workers: StateOverWorkers | None = None,
    donate: bool = False,
) -> Callable[..., tuple[PyTree, ...]]:
    """Builds one jitted training step of all workers.

    Asked again with the same optimizer, loss and settings it returns the same step,
    compiled once. As under `jax.jit`, what a loss reads beside its arguments is read
    once.

    Args:
      loss_fn: ``loss_fn(params, batch)`` of the batch of *one* worker -> scalar, or
        ``(scalar, aux)``.
      optimizer: an optax chain with exactly one aggregator.
      has_aux: whether ``loss_fn`` returns auxiliary output.
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`; give
        the optimizer's transforms the same.
      worker_chunk: workers whose gradients are computed at a time; None for all. A vote
        or a mean right behind them then needs memory for one chunk of gradients, not
        for all M (a packed vote: and a bit of each); other transforms of ours stack
        them.
      num_workers: M, to check batches against: one of ``[M * n, ...]``, all samples in
        one axis, would pass for M n workers. None takes any.
      state_over_workers: "mean" or "per_worker" for a model with state, as in
        `jaxmedian.run`: the loss is ``loss_fn(params, model_state, batch) -> (loss,
        model_state)``, with ``has_aux`` ``(loss, (model_state, aux))``.
      donate: whether the step may overwrite the parameters and the states it is given,
        which saves their memory; they cannot be read afterwards.

    Returns:
      ``step(params, opt_state, batch, **extra_args) -> (params, opt_state, metrics)``;
      for a model with state ``step(params, opt_state, model_state, batch,
      **extra_args) -> (params, opt_state, model_state, metrics)``.
      The batch's leaves are ``[M, ...]``; extra arguments (``worker_mask``, say) go to
      the optimizer, and so does "loss" as ``value``, for
      `optax.contrib.reduce_on_plateau` and its like, if no other is given; with
      ``worker_chunk``, where it is known too late, they need another. metrics: "loss",
      the mean over the workers present (float32, or float64 for float64; by
      ``worker_weights``, if they are given; NaN if nobody is), and "aux",
      ``[M, ...]``, if there is any. What absent workers computed, NaN say, reaches
      nothing but their own rows of "aux".

      Arrays may lie on a mesh: with automatic axes the compiler spreads the work, and
      explicit axes (`jax.make_mesh`'s default) are automatic inside the step. No
      ``axis_name`` is needed for either. Parameters and state come out where they were.

    Raises:
      TypeError, ValueError: while tracing, for a batch without a worker axis or of
        another number of workers, an optimizer that does not remove it, parameters that
        are no arrays, a loss that does not return the model's state as it got it, or
        an extra argument that is almost ``worker_mask`` or ``worker_weights``.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> loss = lambda params, batch: 0.5 * (params - batch) ** 2
    >>> optimizer = jm.median_sgd(0.5)
    >>> step = jm.make_step(loss, optimizer)
    >>> params = jnp.float32(0.0)
    >>> batch = jnp.array([1., 2., 10.])
    >>> params, _, metrics = step(params, optimizer.init(params), batch)
    >>> float(params), float(metrics["loss"])
    (1.0, 17.5)
    """
    settings = (has_aux, axis_name, worker_chunk, num_workers, state_over_workers)
    return remember(
        optimizer,
        ("make_step", loss_fn, *settings, donate),
        lambda: _build_step(loss_fn, optimizer, *settings, donate),
    )


def _build_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    has_aux: bool,
    axis_name: AxisName | None,
    worker_chunk: int | None,
    num_workers: int | None,
    state_over_workers: StateOverWorkers | None,
    donate: bool,
) -> Callable[..., tuple[PyTree, ...]]:
    has_model_state = state_over_workers is not None
    if asks_for_key(loss_fn, has_model_state):
        raise TypeError(
            "`loss_fn` has an argument `key`, which `jaxmedian.run` fills with a key "
            "for each worker and step, and a step cannot. Put keys into the batch, "
            "`jax.random.split(key, num_workers)` beside the data, or bind it: "
            "`functools.partial(loss, key=None)`."
        )
    propose = build_proposal(
        loss_fn,
        optimizer,
        has_aux,
        axis_name,
        worker_chunk,
        num_workers,
        has_model_state,
    )

    def take(
        params: optax.Params,
        opt_state: optax.OptState,
        held: Sequence[PyTree],
        batch: PyTree,
        extra_args: dict[str, Any],
    ) -> tuple[PyTree, ...]:
        proposal = propose(params, opt_state, *held, batch, **extra_args)
        params = optax.apply_updates(params, proposal.updates)
        metrics = {"loss": proposal.loss}
        if has_aux:
            metrics["aux"] = proposal.aux
        states = [release(proposal.model_state)] if has_model_state else []
        return params, proposal.opt_state, *states, metrics

    def step(
        params: optax.Params,
        opt_state: optax.OptState,
        batch: PyTree,
        **extra_args: Any,
    ) -> tuple[PyTree, ...]:
        return take(params, opt_state, (), batch, extra_args)

    if state_over_workers is None:
        return jit_step(step, (0, 1) if donate else ())
    over = check_kind(state_over_workers)

    def stateful_step(
        params: optax.Params,
        opt_state: optax.OptState,
        model_state: PyTree,
        batch: PyTree,
        **extra_args: Any,
    ) -> tuple[PyTree, ...]:
        return take(params, opt_state, (hold(model_state, over),), batch, extra_args)

    return jit_step(stateful_step, (0, 1, 2) if donate else ())


def jit_step(
    step: Callable[..., tuple[PyTree, ...]], donated: tuple[int, ...]
) -> Callable[..., tuple[PyTree, ...]]:
    """Jits a step of parameters, states and batch, and checks what is known before.

    JAX refuses what is no array, and cuts integers to 32 bits, before any code of ours
    is traced. ``lower``, ``trace`` and ``eval_shape`` are those of the jitted function.
    """
    jitted = jax.jit(step, donate_argnums=donated)

    @functools.wraps(jitted)
    def checked_step(*args: Any, **kwargs: Any) -> tuple[PyTree, ...]:
        weights = kwargs.get("worker_weights")
        if isinstance(weights, np.ndarray | list | tuple):
            number = np.size(weights)
            weights = check_weights("make_step", weights, number, number)
            kwargs = kwargs | {"worker_weights": weights}
        try:
            return jitted(*args, **kwargs)
        except TypeError:
            check_params("make_step", args[0] if args else kwargs.get("params"))
            raise

    for name in ("lower", "trace", "eval_shape"):
        vars(checked_step)[name] = getattr(jitted, name)
    return checked_step


class Proposal(NamedTuple):
    """A step that is computed but not yet taken.

    Attributes:
      loss: the mean over the workers present.
      aux: ``[M, ...]``, or None if the loss has none.
      grads: ``[M, ...]``, or None if they were streamed.
      updates: ``[...]``.
      opt_state: the optimizer's state if the step is taken.
      workers: who took part: ``worker_mask`` and ``worker_weights`` if they were given,
        for `jaxmedian.diagnostics.of_step`.
      model_state: the model's state if the step is taken, as it is held; None of a
        model without.
    """

    loss: jax.Array
    aux: PyTree
    grads: PyTree
    updates: PyTree
    opt_state: PyTree
    workers: dict[str, jax.Array]
    model_state: PyTree = None


def build_proposal(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    has_aux: bool,
    axis_name: AxisName | None,
    worker_chunk: int | None,
    num_workers: int | None = None,
    has_model_state: bool = False,
) -> Callable[..., Proposal]:
    """Builds ``(params, opt_state, batch, **extra_args) -> Proposal``.

    Of a model with state it takes that before the batch, held by its kind.
    """
    if num_workers is not None:
        check_count("num_workers", num_workers)
    if has_model_state:
        loss_fn = with_model_state(loss_fn, has_aux)
    returns_more = has_aux or has_model_state
    value_and_grads = worker_value_and_grads(
        loss_fn, has_aux=returns_more, axis_name=axis_name
    )
    if worker_chunk is not None:
        stream_of = stream_value_and_grads(
            loss_fn,
            has_aux=returns_more,
            axis_name=axis_name,
            worker_chunk=worker_chunk,
        )
    _check_optimizer(optimizer)
    wants_loss, needs_loss = takes_value(optimizer), names_value(optimizer)
    optimizer = optax.with_extra_args_support(optimizer)

    def mean_loss(value: Any, workers: dict[str, Any]) -> tuple[jax.Array, Population]:
        return _mean_loss(value[0] if returns_more else value, axis_name, workers)

    def of_batch(
        batch: PyTree,
        params: optax.Params,
        opt_state: optax.OptState,
        held: PyTree,
        extra_args: dict[str, Any],
    ) -> Proposal:
        if num_workers is not None:
            check_num_workers(batch, num_workers, collectives.size(axis_name))
        _warn_of_noise_alone(opt_state)
        workers = {k: v for k, v in extra_args.items() if k in OUR_EXTRA_ARGS}
        if has_model_state:
            batch = batch, rows_of(held, count_in_batch(batch), axis_name)
        update = functools.partial(_update, optimizer, axis_name, opt_state, params)
        if worker_chunk is None:
            value, grads = value_and_grads(params, batch)
            loss, population = mean_loss(value, workers)
            if wants_loss:
                extra_args = {"value": loss, **extra_args}
            updates, new_state = update(grads, **extra_args)
        else:
            if needs_loss and "value" not in extra_args:
                raise TypeError(
                    "The optimizer takes the loss as `value`. Where gradients are "
                    "streamed, with `worker_chunk` and in `jaxmedian.elastic`, it is "
                    "known only after the update: give a `value` of your own as an "
                    "extra argument, or leave `worker_chunk` out."
                )
            stream = stream_of(params, batch)
            updates, new_state = update(stream, **extra_args)
            value, grads = stream.value, stream.stacked
            loss, population = mean_loss(value, workers)
        check_aggregated("make_step", updates, params)
        check_state_kept("make_step", opt_state, new_state)
        aux = value[1] if returns_more else None
        if has_model_state:
            after, aux = value[1]
            held = next_model_state(held, after, population)
        return Proposal(loss, aux, grads, updates, new_state, workers, held)

    def propose(
        params: optax.Params,
        opt_state: optax.OptState,
        *state_and_batch: PyTree,
        **extra_args: Any,
    ) -> Proposal:
        if extra_args:
            check_extra_args("make_step", extra_args)
        *held, batch = state_and_batch
        args = (batch, params, opt_state, held[0] if held else None, extra_args)
        if collectives.explicit_mesh(args) is None:
            return of_batch(*args)
        return explicit.on_automatic_axes(of_batch, _place, *args)

    return propose


def _update(
    optimizer: optax.GradientTransformationExtraArgs,
    axis_name: AxisName | None,
    opt_state: optax.OptState,
    params: optax.Params,
    gradients: PyTree,
    **extra_args: Any,
) -> tuple[PyTree, PyTree]:
    """Calls the optimizer; says what its errors mean, and what it mixes on a mesh."""
    ours = [name for name in OUR_EXTRA_ARGS if extra_args.get(name) is not None]

    def update(gradients: PyTree, watch: Watch | None) -> tuple[PyTree, PyTree]:
        with given_to_step(*ours, watch=watch):
            return optimizer.update(gradients, opt_state, params, **extra_args)

    watch = None
    if collectives.size(axis_name) > 1 and not isinstance(gradients, WorkerStream):
        watch = Watch(gradients)  # a stream refuses what is not ours
    try:
        result = update(gradients, watch)
    except (TypeError, ValueError, AttributeError) as error:
        explain(error, gradients, params, extra_args)
        raise
    if watch is not None and watch.changed:
        check_rows_stay_apart(update, gradients)
    return result


def _place(
    mesh: AbstractMesh,
    shapes: Proposal,
    batch: PyTree,
    params: optax.Params,
    *rest: PyTree,
) -> Proposal:
    """Places a proposal on an explicit mesh: as its batch, parameters and state are."""
    by_worker = explicit.place_by_worker(mesh, shapes, batch)
    whole = explicit.place_whole(mesh, shapes)
    return Proposal(
        whole,
        jax.tree.map(lambda _: by_worker, shapes.aux),
        jax.tree.map(lambda _: by_worker, shapes.grads),
        explicit.like(params, mesh),
        explicit.like(rest[0], mesh),
        jax.tree.map(lambda _: by_worker, shapes.workers),
        explicit.like(rest[1], mesh),
    )


def _check_optimizer(optimizer: object) -> None:
    if not all(callable(getattr(optimizer, name, None)) for name in ("init", "update")):
        raise TypeError(
            "`optimizer` must be an optax gradient transformation, "
            f"`jm.median_sgd(0.1)` for instance; got {optimizer!r}."
        )


def _warn_of_noise_alone(opt_state: optax.OptState) -> None:
    """Warns where workers accumulate gradients before something that draws."""
    holding = optax.MultiStepsState | optax.ApplyEvery

    def draws(node: object) -> bool:
        return hasattr(node, "rng_key")

    nodes = jax.tree.leaves(
        opt_state, is_leaf=lambda node: draws(node) or isinstance(node, holding)
    )
    counts = [
        node.mini_step if isinstance(node, optax.MultiStepsState) else node.count
        for node in nodes
        if isinstance(node, holding)
    ]
    each_accumulates = any(jnp.ndim(count) == 1 for count in counts)
    if each_accumulates and any(map(draws, nodes)):
        warnings.warn(
            "`per_worker(MultiSteps(...))`, or `apply_every`, sends zeros until enough "
            "is accumulated, and a transform with a key draws in these steps too: a "
            "noisy vote then moves by nothing but noise. Put `MultiSteps` behind the "
            "aggregator, or give the loss as many times the data.",
            stacklevel=2,
        )


def _mean_loss(
    losses: jax.Array, axis_name: AxisName | None, workers: dict[str, jax.Array]
) -> tuple[jax.Array, Population]:
    """Takes the mean over the workers present, each times what it weighs, in float32.

    16-bit sums would overflow, and 16-bit counts stall. NaN if nobody is present: a 0
    would be the lowest loss of all.
    """
    mask, weights = map(workers.get, OUR_EXTRA_ARGS)
    population = population_of("make_step", losses, None, axis_name, mask, weights)
    total = sum_of_rows(
        losses[:, None], present=population.present, weights=population.weights
    )
    return population.mean_from_sum(total, of_nobody_nan=True)[0], population
