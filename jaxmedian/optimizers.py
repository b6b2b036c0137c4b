"""The paper's four algorithms, each a chain: aggregator, then learning rate.

    sign_sgd           Algorithm 1   x <- x - delta sign(sum_i sign(g_i))
    median_sgd         Algorithm 2   x <- x - delta median_i(g_i)
    noisy_sign_sgd     Algorithm 3   Algorithm 1 on g_i + b xi_i
    noisy_median_sgd   Algorithm 4   Algorithm 2 on g_i + b xi_i

Assembly only: write your own chain for momentum, weight decay or a schedule of them.
"""

import optax

from jaxmedian.noise import Noise
from jaxmedian.noise.keys import Key
from jaxmedian.transforms.median import coordinate_median
from jaxmedian.transforms.vote import majority_vote
from jaxmedian.workers.collectives import AxisName
from jaxmedian.workers.population import check_aggregated


def sign_sgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    key: Key | None = None,
    ties: str = "zero",
    axis_name: AxisName | None = None,
    transport: str = "tally",
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
    ties: str = "zero",
    axis_name: AxisName | None = None,
    transport: str = "tally",
) -> optax.GradientTransformationExtraArgs:
    """Builds Noisy signSGD (Algorithm 3): the vote that follows the mean.

    Args:
      learning_rate: delta, the length of every coordinate's step, or a schedule of it.
      noise: law, scale and coupling; start with ``noise.gaussian(noise.relative(0.1))``
        or a scale about the spread of the workers' gradients.
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
    even: str = "midpoint",
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
    even: str = "midpoint",
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
