"""One training step of all workers: from a batch ``[M, ...]`` to new parameters.

    batch [M, ...] -> gradients [M, ...] -> optimizer -> updates [...] -> parameters

Read `build_proposal` and `make_step` straight down to follow a gradient from worker to
update. The optimizer is anything whose chain holds one aggregator.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmedian.training.identity import takes_value
from jaxmedian.workers import collectives
from jaxmedian.workers.collectives import AxisName
from jaxmedian.workers.gradients import LossFn, worker_value_and_grads
from jaxmedian.workers.population import check_aggregated, check_state_kept
from jaxmedian.workers.stream import stream_value_and_grads


def make_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    has_aux: bool = False,
    axis_name: AxisName | None = None,
    worker_chunk: int | None = None,
    donate: bool = False,
) -> Callable[..., tuple[Any, Any, dict[str, Any]]]:
    """Builds one jitted training step of all workers.

    Args:
      loss_fn: ``loss_fn(params, batch)`` of the batch of *one* worker -> scalar, or
        ``(scalar, aux)``.
      optimizer: an optax chain with exactly one aggregator.
      has_aux: whether ``loss_fn`` returns auxiliary output.
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`; give
        the optimizer's transforms the same.
      worker_chunk: workers whose gradients are computed at a time; None for all. A vote
        or a mean right behind them then needs memory for one chunk of gradients, not
        for all M; other transforms of ours stack them.
      donate: whether the step may overwrite the parameters and the state it is given,
        which saves their memory; they cannot be read afterwards.

    Returns:
      ``step(params, opt_state, batch, **extra_args) -> (params, opt_state, metrics)``.
      The batch's leaves are ``[M, ...]``; extra arguments (``worker_mask``, say) go to
      the optimizer, and so does "loss" as ``value``, for
      `optax.contrib.reduce_on_plateau` and its like, if no other is given. metrics:
      "loss", the mean over the workers present, float32 for losses of 16 bits, and
      "aux", ``[M, ...]``, if there is any.

    Raises:
      TypeError, ValueError: while tracing, for a batch without a worker axis or an
        optimizer that does not remove it.

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
    propose = build_proposal(loss_fn, optimizer, has_aux, axis_name, worker_chunk)

    def step(
        params: Any, opt_state: Any, batch: Any, **extra_args: Any
    ) -> tuple[Any, Any, dict[str, Any]]:
        proposal = propose(params, opt_state, batch, **extra_args)
        params = optax.apply_updates(params, proposal.updates)
        metrics = {"loss": proposal.loss}
        if has_aux:
            metrics["aux"] = proposal.aux
        return params, proposal.opt_state, metrics

    return jax.jit(step, donate_argnums=(0, 1) if donate else ())


class Proposal(NamedTuple):
    """A step that is computed but not yet taken.

    Attributes:
      loss: the mean over the workers present.
      aux: ``[M, ...]``, or None if the loss has none.
      grads: ``[M, ...]``, or None if they were streamed.
      updates: ``[...]``.
      opt_state: the optimizer's state if the step is taken.
    """

    loss: jax.Array
    aux: Any
    grads: Any
    updates: Any
    opt_state: Any


def build_proposal(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    has_aux: bool,
    axis_name: AxisName | None,
    worker_chunk: int | None,
) -> Callable[..., Proposal]:
    """Builds ``(params, opt_state, batch, **extra_args) -> Proposal``."""
    value_and_grads = worker_value_and_grads(
        loss_fn, has_aux=has_aux, axis_name=axis_name
    )
    if worker_chunk is not None:
        stream_of = stream_value_and_grads(
            loss_fn, has_aux=has_aux, axis_name=axis_name, worker_chunk=worker_chunk
        )
    _check_optimizer(optimizer)
    wants_loss = takes_value(optimizer)
    optimizer = optax.with_extra_args_support(optimizer)

    def propose(params: Any, opt_state: Any, batch: Any, **extra_args: Any) -> Proposal:
        worker_mask = extra_args.get("worker_mask")
        if worker_chunk is None:
            value, grads = value_and_grads(params, batch)
            losses = value[0] if has_aux else value
            loss = _mean_of_present(losses, worker_mask, axis_name)
            if wants_loss:
                extra_args = {"value": loss, **extra_args}
            updates, new_state = optimizer.update(
                grads, opt_state, params, **extra_args
            )
        else:
            stream = stream_of(params, batch)
            with _explaining_the_missing_value():
                updates, new_state = optimizer.update(
                    stream, opt_state, params, **extra_args
                )
            value, grads = stream.value, stream.stacked
            losses = value[0] if has_aux else value
            loss = _mean_of_present(losses, worker_mask, axis_name)
        check_aggregated("make_step", updates, params)
        check_state_kept("make_step", opt_state, new_state)
        return Proposal(loss, value[1] if has_aux else None, grads, updates, new_state)

    return propose


def _check_optimizer(optimizer: Any) -> None:
    if not all(callable(getattr(optimizer, name, None)) for name in ("init", "update")):
        raise TypeError(
            "`optimizer` must be an optax gradient transformation, "
            f"`jm.median_sgd(0.1)` for instance; got {optimizer!r}."
        )


@contextlib.contextmanager
def _explaining_the_missing_value() -> Iterator[None]:
    """Says what to do about an optimizer that asks for the loss of a stream."""
    try:
        yield
    except TypeError as error:
        if "argument: 'value'" not in str(error):
            raise
        raise TypeError(
            "The optimizer needs the loss as `value`, which with `worker_chunk` is "
            "known only after its update: leave `worker_chunk` out, or give a `value` "
            "of your own as an extra argument."
        ) from error


def _mean_of_present(
    losses: jax.Array, worker_mask: jax.Array | None, axis_name: AxisName | None
) -> jax.Array:
    """Takes the mean in float32 at least: 16 bits overflow, and count to 256 only."""
    losses = losses.astype(np.promote_types(losses.dtype, np.float32))
    present = jnp.ones_like(losses, bool) if worker_mask is None else worker_mask
    total = jnp.sum(jnp.where(present, losses, jnp.zeros_like(losses)))
    count = jnp.sum(present, dtype=losses.dtype)
    total = collectives.total(total, axis_name)
    count = collectives.total(count, axis_name)
    return total / jnp.maximum(count, np.asarray(1, losses.dtype))
