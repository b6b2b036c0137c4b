"""Geometric median and centered clipping: robust aggregators of whole gradients.

Both are means in which a worker far from the centre has its weight or its reach cut,
over all coordinates at once. Rows that are not finite, or overflow when squared, have
no weight.
"""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmedian.kernels.distances import (
    clip_factors,
    norms_of,
    sound_rows,
    squared_distances,
)
from jaxmedian.kernels.rows import working_dtype
from jaxmedian.transforms.build import Step, transformation
from jaxmedian.transforms.whole_gradients import (
    Gradients,
    whole_gradient_rule,
)
from jaxmedian.workers.checks import (
    check_count,
    check_option,
    check_radius,
    static_hint,
)
from jaxmedian.workers.collectives import AxisName, PyTree

Start = Literal["majority", "mean", "zeros"]
STARTS: tuple[Start, ...] = get_args(Start)


def geometric_median(
    smoothing: float | None = None,
    tolerance: float | None = None,
    max_steps: int = 100,
    *,
    start: Start = "majority",
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Finds the point of the least summed distance: ``[M, ...] -> [...]``.

    .. math:: \arg\min_z \sum_i \|g_i - z\|

    by Weiszfeld's steps, z <- sum_i w_i g_i / sum_i w_i with w_i = 1 / max(\|g_i - z\|,
    smoothing). A minority of arbitrary workers moves it a bounded way (breakdown point
    1/2); kappa = 4 (1 + f / (M - 2f))^2 for any f < M / 2. It need not be told f.

    The steps start near a worker whom a majority is nearest to, at most twice as far
    from it as that majority, and no step makes the sum of distances larger. From the
    mean, which one hostile worker sends anywhere, the way back takes log(distance) /
    log((M - f) / f) steps.

    All iterates are weighted means, so the steps run on one Gram matrix, M^2 a step,
    whatever d; the gradients are read for that matrix and once more for the result.

    Args:
      smoothing: nu > 0, the distance below which a worker has no more weight, in units
        of the gradient; None for a millionth of the distance of that majority.
      tolerance: stop after a step that moves less, >= 0; None as above.
      max_steps: the most steps, >= 1.
      start: "majority"; "mean"; or "zeros" to start from the origin.
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`.

    Returns:
      A transformation without state. ``update`` takes ``worker_mask``, bool ``[M]``:
      absent workers have no weight; the result is 0 if nobody is left. It takes
      ``worker_weights``, ``[M]``, too: each counts as so many workers. Its steps end
      when they have converged, so that JAX differentiates it forwards only (`jax.jvp`,
      `jax.jacfwd`).

    Raises:
      TypeError, ValueError: for a bad number or option; while tracing, for updates
        without a worker axis.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> tx = jm.geometric_median()
    >>> params = jnp.zeros(2)
    >>> grads = jnp.array([[0., 1.], [0., -1.], [1., 0.], [-1., 0.], [1e6, 0.]])
    >>> updates, _ = tx.update(grads, tx.init(params), params)
    >>> [abs(round(float(u), 2)) for u in updates]
    [0.58, 0.0]

    References:
      Weiszfeld, Sur le point pour lequel la somme des distances de n points donnes est
      minimum, Tohoku Mathematical Journal, 1937.
      Pillutla et al., Robust Aggregation for Federated Learning, IEEE TSP 2022.
      https://arxiv.org/abs/1912.13445
    """
    if smoothing is not None:
        check_radius("smoothing", smoothing)
    if tolerance is not None:
        _check_tolerance(tolerance)
    check_count("max_steps", max_steps)
    check_option("start", start, STARTS)

    def rule(gradients: Gradients) -> list[jax.Array]:
        gram = gradients.gram()
        sound = sound_rows(gram, gradients.population.present_mask())
        shares = sound.astype(gram.dtype)
        if (given := gradients.population.weights_of_all()) is not None:
            shares = shares * given.astype(gram.dtype)
        squared, distance = _nearest_majority(squared_distances(gram, sound), shares)
        millionth = jnp.maximum(1e-6 * distance, np.sqrt(jnp.finfo(gram.dtype).tiny))
        least, limit = (
            millionth if given is None else jnp.asarray(given, gram.dtype)
            for given in (smoothing, tolerance)
        )
        weights, num_steps = shares, max_steps
        if start == "majority":
            radius = jnp.maximum(distance, least)
            weights = shares * _closeness(squared, sound, radius)
        elif start == "zeros":  # the step from the origin is the first
            weights = shares * _closeness(gradients.squared_norms(), sound, least)
            num_steps -= 1
        return gradients.weighted_sum(
            _weiszfeld(gram, shares, weights, least, limit, num_steps)
        )

    return whole_gradient_rule("geometric_median", rule, axis_name, weighted=True)


def _nearest_majority(
    squared: jax.Array, shares: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Finds the worker around whom more than half of all shares lie closest.

    Returns:
      the squared distances ``[M]`` from this worker, and how far that half reaches.
    """
    order = jnp.argsort(squared, axis=1)
    reached = jnp.cumsum(shares[order], axis=1)
    is_more = 2 * reached > reached[:, -1:]
    last = jnp.take_along_axis(order, jnp.argmax(is_more, axis=1)[:, None], axis=1)
    reach = jnp.take_along_axis(squared, last, axis=1)[:, 0]
    worker = jnp.argmin(jnp.where(shares > 0, reach, np.inf))
    return squared[worker], norms_of(reach[worker])


def _weiszfeld(
    gram: jax.Array,
    shares: jax.Array,
    weights: jax.Array,
    smoothing: jax.Array,
    tolerance: jax.Array,
    max_steps: int,
) -> jax.Array:
    """Steps from z = sum_i w_i g_i / sum_i w_i to the median; returns its weights.

    ``shares`` is what each worker counts as, 0 of those who are not sound.
    """
    sound = shares > 0
    known = sound[:, None] & sound[None, :]
    gram = jnp.where(known, gram, 0)

    def step(state: PyTree) -> PyTree:
        number, weights, _ = state
        towards = gram @ weights
        squares = jnp.diagonal(gram) - 2 * towards + weights @ towards
        new = _normalised(shares * _closeness(squares, sound, smoothing))
        change = new - weights
        return number + 1, new, change @ (gram @ change)

    def goes_on(state: PyTree) -> jax.Array:
        number, _, moved = state
        return (number < max_steps) & (moved > jnp.square(tolerance))

    start = jnp.int32(0), _normalised(weights), jnp.full_like(tolerance, np.inf)
    return jax.lax.while_loop(goes_on, step, start)[1]


def _closeness(squares: jax.Array, sound: jax.Array, least: jax.Array) -> jax.Array:
    """Returns 1 / max(distance, least) of those who are sound, 0 of the others."""
    distance = norms_of(jnp.maximum(jnp.where(sound, squares, 0), 0))
    return jnp.where(sound, 1 / jnp.maximum(distance, least), 0)


def _normalised(weights: jax.Array) -> jax.Array:
    total = jnp.sum(weights)
    return weights / jnp.where(total > 0, total, 1)


def _check_tolerance(tolerance: object) -> None:
    if isinstance(tolerance, bool) or not isinstance(
        tolerance, int | float | np.number
    ):
        hint = static_hint("tolerance", tolerance)
        raise TypeError(f"`tolerance` must be a number; got {tolerance!r}.{hint}")
    if not tolerance >= 0:
        raise ValueError(f"`tolerance` must be >= 0; got {tolerance!r}.")


class CenteredClippingState(NamedTuple):
    """Where the last step ended: the centre from which the next one clips."""

    center: PyTree  # like params, float32 (float64 for float64)


def centered_clipping(
    radius: float, steps: int = 1, *, axis_name: AxisName | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Moves a centre by clipped differences to it: ``[M, ...] -> [...]``.

    .. math:: v \leftarrow v + \frac{1}{M} \sum_i (g_i - v)
        \min\Big(1, \frac{\tau}{\|g_i - v\|}\Big)

    The centre v is the last update, kept from step to step (0 at first): no worker
    moves it by more than tau / M, so f hostile ones move it by f tau / M. Meant for
    momenta, which change little between steps; a radius near the spread of the honest
    is best, and needs to be known.

    Two passes over the gradients a step.

    Args:
      radius: tau > 0, in units of the gradient's norm; may be traced, and then reach 0
        (the centre stays; below it too).
      steps: clipping steps an update.
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`; the
        state is the same on all devices.

    Returns:
      A transformation with state ``(center,)`` like the parameters. ``update`` takes
      ``worker_mask``, bool ``[M]``; with nobody present the centre stays.

    Raises:
      TypeError, ValueError: for a bad radius or number of steps; while tracing, for
        updates without a worker axis.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> tx = jm.centered_clipping(1.0)
    >>> params = jnp.zeros(2)
    >>> grads = jnp.array([[3., 4.], [0.3, 0.], [0., 0.2], [jnp.inf, 0.]])
    >>> updates, _ = tx.update(grads, tx.init(params), params)
    >>> [round(float(u), 4) for u in updates]
    [0.225, 0.25]

    References:
      Karimireddy et al., Learning from History for Byzantine Robust Optimization, ICML
      2021. https://arxiv.org/abs/2012.10333
    """
    check_radius("radius", radius)
    check_count("steps", steps)

    def init(params: optax.Params) -> CenteredClippingState:
        def zeros(leaf: Any) -> jax.Array:
            return jnp.zeros(jnp.shape(leaf), working_dtype(jnp.result_type(leaf)))

        return CenteredClippingState(jax.tree.map(zeros, params))

    def apply(step: Step) -> tuple[optax.Updates, CenteredClippingState]:
        gradients = Gradients(step.updates, step.population)
        center = gradients.join(step.state.center)
        for _ in range(steps):
            center = _clip_towards(gradients, center, radius)
        new_center = gradients.leaves(center, like=step.state.center)
        return gradients.leaves(center), CenteredClippingState(new_center)

    return transformation("centered_clipping", apply, init=init, axis_name=axis_name)


def _clip_towards(
    gradients: Gradients, center: list[jax.Array], radius: jax.Array | float
) -> list[jax.Array]:
    """Returns the centre after one step."""
    population = gradients.population
    norms = norms_of(gradients.squared_norms(center))
    counted = jnp.isfinite(norms)
    if (present := population.present_mask()) is not None:
        counted = counted & present
    number = jnp.maximum(population.num_present(), 1).astype(norms.dtype)
    weights = jnp.where(counted, clip_factors(norms, radius) / number, 0)
    moves = gradients.weighted_sum(weights, center)
    return [v + move for v, move in zip(center, moves, strict=True)]
