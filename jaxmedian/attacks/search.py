"""Search the scale of a Byzantine attack that harms a given aggregator most."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax

from jaxmedian.attacks.byzantine import Scene, Workers, check_workers, set_scene
from jaxmedian.kernels.rows import working_dtype
from jaxmedian.noise import keys
from jaxmedian.transforms.build import Step, transformation
from jaxmedian.workers.checks import as_transform
from jaxmedian.workers.collectives import AxisName, PyTree
from jaxmedian.workers.population import check_aggregated

Attack = Callable[..., optax.GradientTransformationExtraArgs]

SCALES = (0.0, *np.geomspace(0.01, 1000.0, 21).round(4).tolist())


class StrongestState(NamedTuple):
    """What an attack that looks for its scale keeps from step to step.

    Attributes:
      attack: the state of the attack.
      aggregator: that of the aggregator behind it, kept as it is there.
    """

    attack: Any
    aggregator: Any


def strongest(
    attack: Attack,
    aggregator: optax.GradientTransformation,
    workers: Workers,
    key: keys.Key | None = None,
    *,
    scales: npt.ArrayLike = SCALES,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Makes the hostile attack with the scale that does the aggregator most harm.

    .. math:: \arg\max_s \Big\| R(\mathrm{attack}_s(g))
        - \frac{1}{|H|} \sum_{i \in H} g_i \Big\|

    over the given scales s; of equal harm the first. Each step every scale is tried on
    the gradients of that step, one after the other, so that the memory is that of one
    attack and one aggregation, and the time that of one for each scale.

    The hostile know everything, the state of the aggregator too: a copy of it is kept
    in the state here and sees what the aggregator sees, so the noise, the buckets and
    the centre that are tried are those to come. Every trial of a step starts from the
    same state and the same keys.

    Args:
      attack: `inner_product_manipulation`, `a_little_is_enough`, or whatever else is
        called ``attack(workers, key, scale=, axis_name=)`` and returns a worker
        transform.
      aggregator: what stands right behind in the chain up to the aggregator, built from
        the same arguments: ``jm.krum(2)``, or ``optax.chain(jm.bucketing(2, key),
        jm.krum(1))``.
      workers: numbers of the hostile, or how many to draw each step; see `sign_flip`.
      key: of the attack, for workers drawn each step or what else it draws.
      scales: to try, finite numbers ``[S]``; may be traced. By default 0 and
        21 from .01 to 1,000, each 1.8 times the last; add negative ones if the attack
        may pull both ways.
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`.

    Returns:
      A worker transform with state ``(attack, aggregator)``. Extra arguments go to the
      attack and the aggregator; see `sign_flip` for masks and errors.

    Raises:
      TypeError, ValueError: for bad workers, no scales or scales that are not finite;
        while tracing, for an aggregator that does not remove the worker axis.

    >>> import jax.numpy as jnp, optax, jaxmedian as jm
    >>> turn_round, rule = jm.attacks.inner_product_manipulation, jm.trimmed_mean(1)
    >>> tx = jm.attacks.strongest(turn_round, rule, [4], scales=[0.1, 0.5, 1.0, 9.0])
    >>> grads = jnp.array([[-1.], [1.], [3.], [5.], [0.]])  # the honest mean is 2
    >>> tx.update(grads, tx.init(None))[0][4].tolist()  # farther away is trimmed
    [-1.0]
    """
    chosen = check_workers("strongest", workers)
    _check_scales(scales)
    aggregator = as_transform("aggregator", aggregator)
    _check_attack(attack)

    def at(scale: jax.Array) -> optax.GradientTransformationExtraArgs:
        return attack(workers, key, scale=scale, axis_name=axis_name)

    def init(params: optax.Params) -> StrongestState:
        first = jnp.asarray(scales)[0]
        return StrongestState(at(first).init(params), aggregator.init(params))

    def apply(step: Step) -> tuple[optax.Updates, StrongestState]:
        state, population = step.state, step.population
        extra_args = population.as_extra_args() | step.extra_args
        is_drawn = isinstance(state.attack, keys.KeyState)
        key_state = state.attack if is_drawn else None
        scene = set_scene("strongest", chosen, step, key_state)
        mean = _honest_mean(step.updates, scene)
        dtype = jax.tree.leaves(mean)[0].dtype

        def send(scale: jax.Array) -> tuple[optax.Updates, optax.OptState]:
            return at(scale).update(
                step.updates, state.attack, step.params, **extra_args
            )

        def aggregate(sent: optax.Updates) -> tuple[optax.Updates, optax.OptState]:
            return aggregator.update(sent, state.aggregator, step.params, **extra_args)

        def harm(scale: jax.Array) -> jax.Array:
            result, _ = aggregate(send(scale)[0])
            check_aggregated("strongest", result, mean)
            return _squared_distance(result, mean)

        grid = jnp.asarray(scales, dtype)
        worst = jnp.argmax(jax.lax.map(harm, grid))
        sent, attack_state = send(grid[worst])
        return sent, StrongestState(attack_state, aggregate(sent)[1])

    return transformation(
        "strongest", apply, init=init, axis_name=axis_name, weighted=True
    )


def _honest_mean(updates: optax.Updates, scene: Scene) -> PyTree:
    def mean(leaf: jax.Array) -> jax.Array:
        rows = leaf.reshape(leaf.shape[0], -1)
        return scene.mean(rows).reshape(leaf.shape[1:])

    return jax.tree.map(mean, updates)


def _squared_distance(result: PyTree, mean: PyTree) -> jax.Array:
    """Computes it over all leaves; +inf if it is no number."""
    squares = [
        jnp.sum(jnp.square(a.astype(working_dtype(a.dtype)) - b.astype(b.dtype)))
        for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(mean), strict=True)
    ]
    total = sum((s.astype(squares[0].dtype) for s in squares[1:]), squares[0])
    return jnp.where(jnp.isnan(total), np.asarray(np.inf, total.dtype), total)


def _check_scales(scales: object) -> None:
    if isinstance(scales, jax.Array):
        shape: tuple[int, ...] = scales.shape
        finite = isinstance(scales, jax.core.Tracer) or bool(jnp.isfinite(scales).all())
    else:
        try:
            numbers = np.asarray(scales, np.float64)
        except (TypeError, ValueError) as error:
            raise TypeError(f"`scales` must be numbers; got {scales!r}.") from error
        shape, finite = numbers.shape, bool(np.isfinite(numbers).all())
    if len(shape) != 1 or shape[0] == 0:
        raise ValueError(
            f"`scales` must be at least one number, [S]; got an array of shape {shape}."
        )
    if not finite:
        raise ValueError(f"`scales` must be finite; got {scales!r}.")


def _check_attack(attack: Attack) -> None:
    """Raises unless the attack is a function that builds one of a given scale."""
    try:
        inspect.signature(attack).bind([0], None, scale=1.0, axis_name=None)
    except TypeError as error:
        raise TypeError(
            "`attack` of `strongest` must be a function `(workers, key, *, scale, "
            "axis_name)` such as `jaxmedian.attacks.a_little_is_enough` itself, not "
            f"yet given its workers; got {attack!r}."
        ) from error
