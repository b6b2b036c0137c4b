"""The paper's four algorithms and two with momentum per worker, each a chain.

    sign_sgd           Algorithm 1   x <- x - delta sign(sum_i sign(g_i))
    median_sgd         Algorithm 2   x <- x - delta median_i(g_i)
    noisy_sign_sgd     Algorithm 3   Algorithm 1 on g_i + b xi_i
    noisy_median_sgd   Algorithm 4   Algorithm 2 on g_i + b xi_i
    signum             Algorithm 1 or 3 on the momentum of each worker
    distributed_lion   Algorithm 1 or 3 on Lion's interpolation, and weight decay

Assembly only: write your own chain for other momentum or a schedule of it.
"""

import jax
import optax

from jaxmedian.kernels.ballots import TieRule
from jaxmedian.kernels.selection import EvenRule
from jaxmedian.noise import Noise
from jaxmedian.noise.keys import Key
from jaxmedian.transforms.median import coordinate_median
from jaxmedian.transforms.memory import interpolate_momentum
from jaxmedian.transforms.vote import Transport, majority_vote
from jaxmedian.workers.collectives import AxisName
from jaxmedian.workers.population import check_aggregated


def sign_sgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    key: Key | None = None,
    ties: TieRule = "zero",
    axis_name: AxisName | None = None,
    transport: Transport = "tally",
) -> optax.GradientTransformationExtraArgs:
    """Builds signSGD with majority vote (Algorithm 1 of the paper).

    Args:
      learning_rate: delta, the length of every coordinate's step, or a schedule of it.
      key: for ``ties="random"``; as below, see `jaxmedian.majority_vote`.
      ties: "zero", "random" or "positive": what a tally of 0 becomes.
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`.
      transport: "tally" or "packed": what crosses the mesh.

    Returns:
      ``chain(majority_vote(...), scale_by_learning_rate(learning_rate))``.

    Raises:
      TypeError, ValueError: as `jaxmedian.majority_vote`.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> tx = jm.sign_sgd(0.1)
    >>> params = jnp.zeros(2)
    >>> grads = jnp.array([[1., -1.], [2., -3.], [-9., 1.]])
    >>> updates, _ = tx.update(grads, tx.init(params), params)
    >>> [round(float(u), 6) for u in updates]
    [-0.1, 0.1]
    """
    vote = majority_vote(key=key, ties=ties, axis_name=axis_name, transport=transport)
    return _then_step(vote, learning_rate)


def noisy_sign_sgd(
    learning_rate: optax.ScalarOrSchedule,
    noise: Noise,
    key: Key,
    *,
    ties: TieRule = "zero",
    axis_name: AxisName | None = None,
    transport: Transport = "tally",
) -> optax.GradientTransformationExtraArgs:
    """Builds Noisy signSGD (Algorithm 3): the vote that follows the mean.

    Args:
      learning_rate: delta, the length of every coordinate's step, or a schedule of it.
      noise: law, scale and coupling; start with ``noise.uniform(
        noise.per_coordinate(1.0, "rms", every=50), "systematic")``, or with a scale
        about the spread of the workers' gradients.
      key: a typed key, a legacy key or an int.
      ties: "zero", "random" or "positive": what a tally of 0 becomes.
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`.
      transport: "tally" or "packed": what crosses the mesh.

    Returns:
      ``chain(majority_vote(noise, key, ...), scale_by_learning_rate(learning_rate))``.

    Raises:
      TypeError, ValueError: as `jaxmedian.majority_vote`.

    >>> import jax, jaxmedian as jm
    >>> tx = jm.noisy_sign_sgd(1e-3, jm.noise.gaussian(0.01), jax.random.key(0))
    """
    vote = majority_vote(
        noise, key, ties=ties, axis_name=axis_name, transport=transport
    )
    return _then_step(vote, learning_rate)


def median_sgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    even: EvenRule = "midpoint",
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Builds medianSGD (Algorithm 2 of the paper).

    Args:
      learning_rate: delta, or a schedule of it.
      even: "midpoint", "lower" or "upper": the median of an even number of workers.
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`.

    Returns:
      ``chain(coordinate_median(...), scale_by_learning_rate(learning_rate))``.

    Raises:
      TypeError, ValueError: as `jaxmedian.coordinate_median`.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> tx = jm.median_sgd(0.5)
    >>> params = jnp.zeros(2)
    >>> grads = jnp.array([[1., -1.], [2., -3.], [-9., 2.]])
    >>> updates, _ = tx.update(grads, tx.init(params), params)
    >>> updates.tolist()
    [-0.5, 0.5]
    """
    median = coordinate_median(even=even, axis_name=axis_name)
    return _then_step(median, learning_rate)


def noisy_median_sgd(
    learning_rate: optax.ScalarOrSchedule,
    noise: Noise,
    key: Key,
    *,
    even: EvenRule = "midpoint",
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Builds Noisy medianSGD (Algorithm 4): the median that follows the mean.

    Args:
      learning_rate: delta, or a schedule of it.
      noise: law, scale and coupling; its variance enters every step, about
        b^2 pi / (2 M) a coordinate for independent Gaussian noise.
      key: a typed key, a legacy key or an int.
      even: "midpoint", "lower" or "upper": the median of an even number of workers.
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`.

    Returns:
      ``chain(coordinate_median(noise, key, ...), scale_by_learning_rate(...))``.

    Raises:
      TypeError, ValueError: as `jaxmedian.coordinate_median`.

    >>> import jax, jaxmedian as jm
    >>> tx = jm.noisy_median_sgd(1e-2, jm.noise.gaussian(0.1), jax.random.key(0))
    """
    median = coordinate_median(noise, key, even=even, axis_name=axis_name)
    return _then_step(median, learning_rate)


def distributed_lion(
    learning_rate: optax.ScalarOrSchedule,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.99,
    weight_decay: float | jax.Array = 0.0,
    *,
    num_workers: int,
    noise: Noise | None = None,
    key: Key | None = None,
    ties: TieRule = "zero",
    axis_name: AxisName | None = None,
    transport: Transport = "tally",
) -> optax.GradientTransformationExtraArgs:
    r"""Builds Distributed Lion with majority vote: one bit per coordinate and worker.

    .. math::
       u = \mathrm{sign}\Big(\sum_i \mathrm{sign}(\beta_1 m_i + (1 - \beta_1) g_i
       + b\, \xi_i)\Big), \quad
       m_i \leftarrow \beta_2 m_i + (1 - \beta_2) g_i, \quad
       x \leftarrow x - \delta (u + \lambda x)

    Without noise it is the method of the paper, which falls behind Lion on the mean
    where the workers' data differ; noise on the interpolation, before its sign, moves
    it towards the mean. Replace the vote by `jaxmedian.mean_of_signs` for the paper's
    averaging.

    With small batches Lion *behind* the noisy signs of gradients has done better, and
    without state per worker: ``chain(mean_of_signs(noise, key), optax.lion(...))``.

    Args:
      learning_rate: delta, the length of every coordinate's step, or a schedule of it.
      b1: beta_1, share of the momentum in what is voted on, in [0, 1).
      b2: beta_2, share of it that stays, in [0, 1).
      weight_decay: lambda, decoupled: applied after the vote. Unless it is 0,
        ``update`` needs the parameters.
      num_workers: M, the global number.
      noise: law, scale and coupling of b xi, or None; scales are those of the
        interpolation.
      key: a typed key, a legacy key or an int; for noise and ``ties="random"``.
      ties: "zero", "random" or "positive"; see `jaxmedian.majority_vote`.
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`.
      transport: "tally" or "packed"; see `jaxmedian.majority_vote`.

    Returns:
      ``chain(interpolate_momentum(M, b1, b2), majority_vote(noise, key, ...),
      add_decayed_weights(weight_decay), scale_by_learning_rate(learning_rate))``.
      Workers absent by ``worker_mask`` keep their momentum.

    Raises:
      TypeError, ValueError: as `jaxmedian.majority_vote` and
        `jaxmedian.interpolate_momentum`.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> tx = jm.distributed_lion(0.1, weight_decay=0.5, num_workers=3)
    >>> params = jnp.array([1., 1.])
    >>> grads = jnp.array([[1., -1.], [2., -3.], [-9., 1.]])
    >>> updates, _ = tx.update(grads, tx.init(params), params)
    >>> [round(float(u), 6) for u in updates]
    [-0.15, 0.05]

    References:
      Liu et al., Communication Efficient Distributed Training with Distributed Lion,
      NeurIPS 2024. https://arxiv.org/abs/2404.00438
      Chen et al., Symbolic Discovery of Optimization Algorithms, NeurIPS 2023 (Lion).
      https://arxiv.org/abs/2302.06675
    """
    has_decay = not (isinstance(weight_decay, int | float) and weight_decay == 0)
    return optax.chain(
        interpolate_momentum(num_workers, b1, b2),
        majority_vote(noise, key, ties=ties, axis_name=axis_name, transport=transport),
        optax.add_decayed_weights(weight_decay) if has_decay else optax.identity(),
        optax.scale_by_learning_rate(learning_rate),
    )


def signum(
    learning_rate: optax.ScalarOrSchedule,
    decay: float | jax.Array = 0.9,
    *,
    num_workers: int,
    noise: Noise | None = None,
    key: Key | None = None,
    ties: TieRule = "zero",
    axis_name: AxisName | None = None,
    transport: Transport = "tally",
) -> optax.GradientTransformationExtraArgs:
    r"""Builds Signum with majority vote: signSGD on each worker's momentum.

    .. math::
       m_i \leftarrow \beta m_i + (1 - \beta) g_i, \qquad
       x \leftarrow x - \delta\, \mathrm{sign}\Big(\sum_i \mathrm{sign}(m_i
       + b\, \xi_i)\Big)

    Args:
      learning_rate: delta, the length of every coordinate's step, or a schedule of it.
      decay: beta, share of the momentum that stays, in [0, 1).
      num_workers: M, the global number.
      noise: law, scale and coupling of b xi, or None; scales are those of the momentum.
      key: a typed key, a legacy key or an int; for noise and ``ties="random"``.
      ties: "zero", "random" or "positive"; see `jaxmedian.majority_vote`.
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`.
      transport: "tally" or "packed"; see `jaxmedian.majority_vote`.

    Returns:
      ``chain(interpolate_momentum(M, decay, decay), majority_vote(noise, key, ...),
      scale_by_learning_rate(learning_rate))``. Workers absent by ``worker_mask`` keep
      their momentum.

    Raises:
      TypeError, ValueError: as `jaxmedian.majority_vote` and
        `jaxmedian.interpolate_momentum`.

    >>> import jax, jaxmedian as jm
    >>> noise = jm.noise.uniform(0.1, "systematic")
    >>> tx = jm.signum(1e-3, num_workers=8, noise=noise, key=0)

    References:
      Bernstein et al., signSGD: Compressed Optimisation for Non-Convex Problems, ICML
      2018 (Signum). https://arxiv.org/abs/1802.04434
    """
    return optax.chain(
        interpolate_momentum(num_workers, decay, decay),
        majority_vote(noise, key, ties=ties, axis_name=axis_name, transport=transport),
        optax.scale_by_learning_rate(learning_rate),
    )


def _then_step(
    aggregator: optax.GradientTransformationExtraArgs,
    learning_rate: optax.ScalarOrSchedule,
) -> optax.GradientTransformationExtraArgs:
    return optax.chain(aggregator, optax.scale_by_learning_rate(learning_rate))


def apply_updates(params: optax.Params, updates: optax.Updates) -> optax.Params:
    """Adds updates to parameters: `optax.apply_updates`, with the shapes checked.

    Plain `optax.apply_updates` broadcasts: updates that still have their worker axis
    would silently give parameters with one.

    Args:
      params: tree of leaves ``[...]``.
      updates: tree of leaves of the same shapes.

    Returns:
      The new parameters, each leaf in its own dtype.

    Raises:
      ValueError: if a shape differs, naming the leaf.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> jm.apply_updates(jnp.zeros(2), jnp.ones(2)).tolist()
    [1.0, 1.0]
    """
    check_aggregated("apply_updates", updates, params)
    return optax.apply_updates(params, updates)
