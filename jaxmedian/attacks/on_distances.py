"""Byzantine attacks on distance-based rules (min-max, min-sum): no farther than honest.

    min_max     no farther from any honest worker than two of them from each other
    min_sum     summed squared distances no larger than some honest worker's

Both send mu + gamma p, a step from the mean of the honest in a direction p that is bad
for training, and take the largest gamma that the distances allow. Its authors search
for it; both have a closed form. Squared distances of float32 gradients are float32:
between norms of some 1e-18 and 1e18 they neither vanish nor overflow.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmedian.attacks.byzantine import Scene, Workers, attack, broadcast
from jaxmedian.kernels.distances import sound_rows, squared_distances
from jaxmedian.noise import keys
from jaxmedian.transforms.whole_gradients import Gradients
from jaxmedian.workers.collectives import AxisName

DIRECTIONS = ("deviation", "mean", "sign")


def min_max(
    workers: Workers,
    key: keys.Key | None = None,
    *,
    direction: str = "deviation",
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Makes the hostile send a point as near the honest as these are to each other.

    .. math:: \mu + \gamma p, \quad
        \max_i \|\mu + \gamma p - g_i\| \le \max_{i, k} \|g_i - g_k\|

    over the honest i and k, with the largest such gamma: the least positive root of one
    quadratic equation for each of them. It evades rules that drop who is far away, at
    the greatest distance at which it does.

    One Gram matrix of the honest, and three passes over the gradients.

    Args:
      workers: numbers of the hostile, or how many to draw each step; see `sign_flip`.
      key: for workers drawn each step.
      direction: p, up to its length: "deviation", minus the standard deviation of the
        honest in each coordinate; "mean", minus their mean; "sign", minus its sign.
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`.

    Returns:
      A worker transform; see `sign_flip` for masks and errors. Where p is 0, or all the
      honest agree, the hostile send their mean.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> tx = jm.attacks.min_max([3], direction="mean")
    >>> grads = jnp.array([[1.], [2.], [6.], [0.]])  # 6 - 5 = 1
    >>> sent, _ = tx.update(grads, tx.init(None))
    >>> [round(g, 3) for g in sent.ravel().tolist()]
    [1.0, 2.0, 6.0, 1.0]

    References:
      Shejwalkar and Houmansadr, Manipulating the Byzantine: Optimizing Model Poisoning
      Attacks and Defenses for Federated Learning, NDSS 2021.
    """
    _check_direction(direction)

    def craft(leaves: list[jax.Array], scene: Scene) -> list[jax.Array]:
        means, path = _path(leaves, scene, direction)
        gradients = _of_honest(leaves, scene)
        centre, p = gradients.join(means), gradients.join(path)
        length = _norm(p)
        gram = gradients.gram()
        squared = squared_distances(gram, sound_rows(gram, scene.honest_mask()))
        zero = np.asarray(0, squared.dtype)
        diameter = jnp.sqrt(jnp.max(jnp.where(jnp.isfinite(squared), squared, zero)))
        # From here on the diameter is 1, and so is the distance of the point from mu.
        unit = diameter / _or_one(length)
        point = [c + unit.astype(c.dtype) * q for c, q in zip(centre, p, strict=True)]
        area = _or_one(diameter * diameter)
        to_mean = gradients.squared_norms(centre) / area
        to_point = gradients.squared_norms(point) / area
        # gamma^2 - 2 gamma along + to_mean, the squared distance, is 1 at the farthest
        one = np.asarray(1, area.dtype)
        along = (to_mean + one - to_point) / 2
        room = jnp.maximum(one - to_mean, zero)
        farthest = along + jnp.sqrt(along * along + room)
        gamma = jnp.min(farthest, where=scene.honest_mask(), initial=np.inf)
        return _at(means, path, jnp.where(length > 0, gamma * unit, zero))

    return attack("min_max", workers, key, craft, axis_name)


def min_sum(
    workers: Workers,
    key: keys.Key | None = None,
    *,
    direction: str = "deviation",
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Makes the hostile send a point as near the honest as the farthest of these.

    .. math:: \mu + \gamma p, \quad
        \sum_i \|\mu + \gamma p - g_i\|^2 \le \max_k \sum_i \|g_k - g_i\|^2

    over the honest i and k, with the largest such gamma. Either side is n times the
    squared distance from the mean plus what both share, so gamma \|p\| is the distance
    of the farthest honest worker from their mean.

    Three passes over the gradients.

    Args:
      workers: numbers of the hostile, or how many to draw each step; see `sign_flip`.
      key: for workers drawn each step.
      direction: p, up to its length; see `min_max`.
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`.

    Returns:
      A worker transform; see `sign_flip` for masks and errors.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> tx = jm.attacks.min_sum([3], direction="mean")
    >>> grads = jnp.array([[1.], [2.], [6.], [0.]])  # 3 - 3 = 0
    >>> sent, _ = tx.update(grads, tx.init(None))
    >>> [round(g, 3) for g in sent.ravel().tolist()]
    [1.0, 2.0, 6.0, 0.0]

    References:
      Shejwalkar and Houmansadr, Manipulating the Byzantine: Optimizing Model Poisoning
      Attacks and Defenses for Federated Learning, NDSS 2021.
    """
    _check_direction(direction)

    def craft(leaves: list[jax.Array], scene: Scene) -> list[jax.Array]:
        means, path = _path(leaves, scene, direction)
        gradients = _of_honest(leaves, scene)
        squares = gradients.squared_norms(gradients.join(means))
        farthest = jnp.sqrt(jnp.max(squares, where=scene.honest_mask(), initial=0.0))
        length = _norm(gradients.join(path))
        return _at(means, path, farthest / _or_one(length))

    return attack("min_sum", workers, key, craft, axis_name)


def _path(
    leaves: list[jax.Array], scene: Scene, direction: str
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Returns mean and direction of every leaf, ``[d]`` each."""
    means = [scene.mean(rows) for rows in leaves]
    if direction == "mean":
        return means, [-mean for mean in means]
    if direction == "sign":
        return means, [-jnp.sign(mean) for mean in means]
    pairs = zip(leaves, means, strict=True)
    return means, [-scene.deviation(rows, mean) for rows, mean in pairs]


def _of_honest(leaves: list[jax.Array], scene: Scene) -> Gradients:
    return Gradients(leaves, scene.population._replace(present=scene.honest))


def _norm(blocks: list[jax.Array]) -> jax.Array:
    widest = max((block.dtype for block in blocks), key=lambda dtype: dtype.itemsize)
    squares = [jnp.sum(jnp.square(block)).astype(widest) for block in blocks]
    return jnp.sqrt(sum(squares[1:], squares[0]))


def _or_one(number: jax.Array) -> jax.Array:
    """Returns the number, or 1 for 0, to divide by."""
    return jnp.where(number > 0, number, np.asarray(1, number.dtype))


def _at(
    means: list[jax.Array], path: list[jax.Array], gamma: jax.Array
) -> list[jax.Array]:
    pairs = zip(means, path, strict=True)
    return [broadcast(mean + gamma.astype(mean.dtype) * p) for mean, p in pairs]


def _check_direction(direction: str) -> None:
    if direction not in DIRECTIONS:
        raise ValueError(
            f"`direction` must be one of {', '.join(map(repr, DIRECTIONS))}; got "
            f"{direction!r}."
        )
