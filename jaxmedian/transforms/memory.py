"""Worker transforms with a memory of each worker: momentum, and differences to it.

    interpolate_momentum   b1 m_i + (1 - b1) g_i        what Lion and Signum vote on
    ef21_sign              h_i + a_i sign(g_i - h_i)    one bit, and any rule after it
    correct_drift          g_i - h_i + h                for votes of workers that differ

All of them return one row per worker, ``[M, ...] -> [M, ...]``, and keep what a worker
remembers in the working dtype, float32 (float64 for float64). What a worker would send
is said with each; on a mesh the rule that follows moves its rows as any others.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmedian.kernels.rows import working_dtype
from jaxmedian.transforms.build import Step, transformation
from jaxmedian.transforms.lifting import lift
from jaxmedian.workers.checks import as_transform, check_count, check_decay
from jaxmedian.workers.placing import PerWorkerState
from jaxmedian.workers.population import check_aggregated


class MomentumState(NamedTuple):
    """State of `interpolate_momentum`, with a worker axis on every leaf."""

    momentum: optax.Updates


def interpolate_momentum(
    num_workers: int, b1: float | jax.Array = 0.9, b2: float | jax.Array = 0.99
) -> optax.GradientTransformationExtraArgs:
    r"""Interpolates between each worker's momentum and gradient, as Lion does.

    .. math::
       c_i = \beta_1 m_i + (1 - \beta_1) g_i \quad\text{goes out},\qquad
       m_i \leftarrow \beta_2 m_i + (1 - \beta_2) g_i

    Lion's direction before its sign: noise, a vote or `mean_of_signs` may follow. With
    b1 = b2 what goes out is the new momentum itself, that of Signum.

    Args:
      num_workers: M, the global number.
      b1: share of the momentum in what goes out, in [0, 1), a number or traced scalar.
      b2: share of it that stays, likewise.

    Returns:
      A worker transform whose state starts from 0. ``update`` takes ``worker_mask``,
      bool ``[M]``: absent workers keep their momentum. An entry of g_i that is not
      finite goes out once, and leaves its momentum as it is.

    Raises:
      TypeError, ValueError: for a bad number of workers or decay; while tracing, for
        updates without a worker axis.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> tx = jm.interpolate_momentum(num_workers=2, b1=0.5, b2=0.75)
    >>> state = tx.init(jnp.zeros(1))
    >>> grads = jnp.array([[8.], [-4.]])
    >>> sent, state = tx.update(grads, state)
    >>> sent.ravel().tolist(), state.inner.momentum.ravel().tolist()
    ([4.0, -2.0], [2.0, -1.0])

    References:
      Chen et al., Symbolic Discovery of Optimization Algorithms, NeurIPS 2023.
      https://arxiv.org/abs/2302.06675
    """
    check_decay("b1", b1)
    check_decay("b2", b2)

    def update_fn(
        updates: optax.Updates, state: MomentumState, params: optax.Params = None
    ) -> tuple[optax.Updates, MomentumState]:
        del params

        def send(g: jax.Array, m: jax.Array) -> jax.Array:
            return _as_sent(_interpolate(b1, m, g), g.dtype)

        def keep(g: jax.Array, m: jax.Array) -> jax.Array:
            return _unless_finite(_interpolate(b2, m, g), m)

        sent = jax.tree.map(send, updates, state.momentum)
        return sent, MomentumState(jax.tree.map(keep, updates, state.momentum))

    inner = optax.GradientTransformation(
        lambda params: MomentumState(_nothing_like(params)), update_fn
    )
    return lift(
        "interpolate_momentum", optax.with_extra_args_support(inner), num_workers
    )


class EF21State(NamedTuple):
    """State of `ef21_sign`, with a worker axis on every leaf.

    Attributes:
      estimate: h_i, what the server knows of each worker.
    """

    estimate: optax.Updates


def ef21_sign(num_workers: int) -> optax.GradientTransformationExtraArgs:
    r"""Sends each worker's change in one bit per coordinate, and returns what is known.

    .. math::
       s_i = \mathrm{sign}(g_i - h_i),\quad a_i = \frac{1}{d} \lVert g_i - h_i \rVert_1,
       \qquad h_i \leftarrow h_i + a_i s_i \quad\text{goes out}

    with one a_i per leaf. Worker and server both keep h_i, so any robust rule may
    follow on the server: a mean, a median, `centered_clipping`. It follows the mean
    without noise, at the price of a memory of M gradients on the server. For momentum
    put ``per_worker(optax.ema(0.9), M)`` before it.

    What a wire would carry up, per worker and step: the signs, one bit per coordinate,
    and one float per leaf; nothing where a worker is absent. A difference of exactly 0
    changes nothing here; one bit cannot say so. This transform computes the h_i where
    the gradients are: on a mesh the rule that follows sends *them*, in floats, and
    `diagnostics.wire_bytes` counts it so. There nothing is saved.

    Args:
      num_workers: M, the global number.

    Returns:
      A worker transform whose state, h_i, starts from 0. Entries of g_i - h_i that are
      not finite leave h_i as it is and count 0 in a_i. ``update`` takes
      ``worker_mask``, bool ``[M]``: absent workers keep their h_i.

    Raises:
      TypeError, ValueError: for a bad number of workers; while tracing, for updates
        without a worker axis.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> tx = jm.ef21_sign(num_workers=1)
    >>> state, grads = tx.init(jnp.zeros(2)), jnp.array([[3., -1.]])
    >>> first, state = tx.update(grads, state)
    >>> second, state = tx.update(grads, state)
    >>> first.tolist(), second.tolist()
    ([[2.0, -2.0]], [[3.0, -1.0]])

    References:
      Richtarik et al., EF21, NeurIPS 2021. https://arxiv.org/abs/2106.05203
      Rammal et al., Communication Compression for Byzantine Robust Learning, AISTATS
      2024 (Byz-EF21). https://arxiv.org/abs/2310.09804
    """

    def follow(g: jax.Array, h: jax.Array) -> jax.Array:
        difference = g.astype(h.dtype) - h
        difference = jnp.where(jnp.isfinite(difference), difference, 0)
        # Divided before it is summed: a sum of large finite numbers would overflow.
        size = jnp.sum(jnp.abs(difference) / max(difference.size, 1))
        return h + size * jnp.sign(difference)

    def update_fn(
        updates: optax.Updates, state: EF21State, params: optax.Params = None
    ) -> tuple[optax.Updates, EF21State]:
        del params
        estimate = jax.tree.map(follow, updates, state.estimate)
        sent = jax.tree.map(lambda h, g: h.astype(g.dtype), estimate, updates)
        return sent, EF21State(estimate)

    inner = optax.GradientTransformation(
        lambda params: EF21State(_nothing_like(params)), update_fn
    )
    return lift("ef21_sign", optax.with_extra_args_support(inner), num_workers)


class WorkerDrift(NamedTuple):
    """What each worker remembers for `correct_drift`, with a worker axis on every leaf.

    Attributes:
      momentum: m_i.
      anchor: h_i, the momentum as of the last refresh at which the worker was present.
      has_momentum: bool, whether the worker was ever present.
      has_anchor: bool, whether it was present at a refresh.
    """

    momentum: optax.Updates
    anchor: optax.Updates
    has_momentum: jax.Array
    has_anchor: jax.Array


class DriftState(NamedTuple):
    """State of `correct_drift`.

    Attributes:
      count: int32, the step.
      workers: a `PerWorkerState` of a `WorkerDrift`.
      center: h, which all of them share.
      aggregator: state of the rule that computes h.
    """

    count: jax.Array  # type: ignore[assignment]  # shape=(), dtype=int32
    workers: PerWorkerState
    center: optax.Updates
    aggregator: optax.OptState


def correct_drift(
    aggregator: optax.GradientTransformation,
    every: int,
    num_workers: int,
    *,
    decay: float | jax.Array = 0.9,
) -> optax.GradientTransformationExtraArgs:
    r"""Replaces each worker's own direction by a common one, so that a vote can follow.

    .. math:: g_i - h_i + h

    h_i is the worker's momentum as of the last step that was a multiple of ``every``,
    h the ``aggregator``'s value of the h_i, sent at that step. Workers whose gradients
    differ systematically agree again up to what changed since: their signs then vote on
    the common direction, without noise. A robust rule keeps hostile h_i out of h; their
    votes are one of M as ever.

    What a wire would carry up, per worker: one bit per coordinate and step for the vote
    that follows, and h_i in floats every so many steps, 32 / every bits per coordinate
    and step; down, h as seldom. On a mesh the aggregator moves the h_i at those steps
    alone, in a branch: `diagnostics.wire_bytes`, which counts the dearest branch, says
    what such a step sends.

    Args:
      aggregator: the rule ``[M, ...] -> [...]`` for h, with worker transforms before it
        if need be: ``chain(nearest_neighbor_mixing(f), trimmed_mean(f))``. On a mesh
        build it with ``axis_name``.
      every: steps between refreshes of h_i and h, at least 1.
      num_workers: M, the global number.
      decay: of m_i <- decay m_i + (1 - decay) g_i, in [0, 1); m_i starts at the
        worker's first gradient.

    Returns:
      A worker transform. ``update`` hands extra arguments on to the aggregator, and
      takes ``worker_mask``, bool ``[M]``: absent workers keep their memory and are
      absent to the aggregator; a worker who missed every refresh is not corrected.
      If nobody is present at a refresh, h is what the aggregator makes of it, 0 until
      the next. Entries of g_i that are not finite go out, and leave m_i as it is, at
      0 if there was none before.

    Raises:
      TypeError, ValueError: for a bad aggregator, number or decay; while tracing, for
        updates without a worker axis.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> tx = jm.correct_drift(jm.worker_mean(), every=50, num_workers=3)
    >>> state = tx.init(jnp.zeros(1))
    >>> grads = jnp.array([[1.], [2.], [-9.]])  # a vote would be +1, the mean is -2
    >>> sent, state = tx.update(grads, state)
    >>> sent.ravel().tolist()
    [-2.0, -2.0, -2.0]

    References:
      Karimireddy et al., SCAFFOLD, ICML 2020. https://arxiv.org/abs/1910.06378
      DC-HierSignSGD, 2026. https://arxiv.org/abs/2602.02355
    """
    aggregator = as_transform("aggregator", aggregator)
    check_count("every", every)
    check_decay("decay", decay)
    remember = lift("correct_drift", _drift_of_worker(decay), num_workers)

    def init(params: optax.Params) -> DriftState:
        return DriftState(
            count=jnp.zeros([], jnp.int32),
            workers=remember.init(params),
            center=_nothing_like(params),
            aggregator=aggregator.init(_in_working_dtype(params)),
        )

    def apply(step: Step) -> tuple[optax.Updates, DriftState]:
        state, heard = step.state, step.population.as_extra_args()
        params = None if step.params is None else _in_working_dtype(step.params)
        refresh = state.count % every == 0
        (anchor, has_anchor), workers = remember.update(
            step.updates, state.workers, step.params, refresh=refresh, **heard
        )

        def renew() -> tuple[optax.Updates, optax.OptState]:
            center, inner = aggregator.update(
                anchor, state.aggregator, params, **heard, **step.extra_args
            )
            check_aggregated("correct_drift", center, state.center)
            return center, inner

        center, inner = jax.lax.cond(
            refresh, renew, lambda: (state.center, state.aggregator)
        )

        def correct(g: jax.Array, h_i: jax.Array, h: jax.Array) -> jax.Array:
            known = has_anchor.reshape(-1, *[1] * h.ndim)
            correction = jnp.where(known, h[None] - h_i, 0)
            return _as_sent(g.astype(h.dtype) + correction, g.dtype)

        sent = jax.tree.map(correct, step.updates, anchor, center)
        count = optax.safe_increment(state.count)
        return sent, DriftState(count, workers, center, inner)

    return transformation(
        "correct_drift", apply, init=init, weighted=True, each_alone=True
    )


def _drift_of_worker(decay: float | jax.Array) -> optax.GradientTransformationExtraArgs:
    """Keeps one worker's momentum and its anchor; returns the anchor and if it is."""

    def init_fn(params: optax.Params) -> WorkerDrift:
        no = jnp.zeros([], bool)
        return WorkerDrift(_nothing_like(params), _nothing_like(params), no, no)

    def update_fn(
        updates: optax.Updates,
        state: WorkerDrift,
        params: optax.Params = None,
        *,
        refresh: jax.Array,
    ) -> tuple[tuple[optax.Updates, jax.Array], WorkerDrift]:
        del params

        def follow(g: jax.Array, m: jax.Array) -> jax.Array:
            new = jnp.where(
                state.has_momentum, _interpolate(decay, m, g), g.astype(m.dtype)
            )
            return _unless_finite(new, m)

        momentum = jax.tree.map(follow, updates, state.momentum)
        anchor = jax.tree.map(
            lambda m, h: jnp.where(refresh, m, h), momentum, state.anchor
        )
        has_anchor = state.has_anchor | refresh
        kept = WorkerDrift(momentum, anchor, state.has_momentum | True, has_anchor)
        return (anchor, has_anchor), kept

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _interpolate(share: float | jax.Array, m: jax.Array, g: jax.Array) -> jax.Array:
    """Returns share m + (1 - share) g, in the dtype of m."""
    share = jnp.asarray(share).astype(m.dtype)
    return share * m + (1 - share) * g.astype(m.dtype)


def _unless_finite(new: jax.Array, old: jax.Array) -> jax.Array:
    """Keeps what was remembered where the new would be infinite or NaN for good."""
    return jnp.where(jnp.isfinite(new), new, old)


def _as_sent(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Casts to the dtype of the gradients; what float16 lacks keeps its sign."""
    cast, info = x.astype(dtype), jnp.finfo(dtype)
    if info.tiny <= jnp.finfo(x.dtype).tiny:
        return cast
    least = jnp.sign(x).astype(dtype) * info.smallest_subnormal.astype(dtype)
    return jnp.where((cast == 0) & (x != 0), least, cast)


def _in_working_dtype(params: optax.Params) -> optax.Params:
    return jax.tree.map(
        lambda p: jnp.asarray(p, working_dtype(jnp.result_type(p))), params
    )


def _nothing_like(params: optax.Params) -> optax.Updates:
    """Returns zeros shaped like the parameters, in the working dtype of each leaf."""
    return jax.tree.map(jnp.zeros_like, _in_working_dtype(params))
