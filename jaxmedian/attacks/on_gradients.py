"""Byzantine attacks on means and medians: what is sent in place of a gradient.

    sign_flip                       -mean(honest)
    inner_product_manipulation      -scale mean(honest)
    a_little_is_enough              mean(honest) + scale deviation(honest)
    mimic                           the row of one honest worker
    gaussian                        mean + scale xi, of its own for each
    inf, nan                        rows that are no numbers

Mean and deviation are taken over the honest workers present on all devices, coordinate
by coordinate.
"""

import statistics

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmedian import noise
from jaxmedian.attacks.byzantine import (
    Scene,
    Workers,
    attack,
    broadcast,
    check_workers,
    constant,
)
from jaxmedian.kernels.rows import working_dtype
from jaxmedian.noise import keys
from jaxmedian.transforms.draws import add_noise, draw
from jaxmedian.workers import collectives
from jaxmedian.workers.collectives import AxisName


def sign_flip(
    workers: Workers, key: keys.Key | None = None, *, axis_name: AxisName | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Makes the hostile send the mean of the honest, turned round.

    .. math:: -\frac{1}{|H|} \sum_{i \in H} g_i

    One pass over the gradients.

    Args:
      workers: global numbers of the hostile, e.g. [0, 3]; or how many to draw anew
        each step among those present (then with a key).
      key: a typed key, a legacy key or an int, for workers drawn each step.
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`.

    Returns:
      A worker transform ``[M, ...] -> [M, ...]`` that leaves the rows of the honest as
      they are. ``update`` takes ``worker_mask``, bool ``[M]``: the absent are neither
      honest nor hostile; and ``worker_weights``, of which it reads no more than who
      weighs nothing and so is absent: its means are of heads.

    Raises:
      TypeError, ValueError: for bad workers or a bad key; while tracing, for updates
        without a worker axis, numbers that are no worker's, and nobody left honest.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> tx = jm.attacks.sign_flip([2])
    >>> grads = jnp.array([[1., 4.], [3., 0.], [2., 2.]])
    >>> tx.update(grads, tx.init(None))[0].tolist()
    [[1.0, 4.0], [3.0, 0.0], [-2.0, -2.0]]

    References:
      Allen-Zhu et al., Byzantine-Resilient Non-Convex Stochastic Gradient Descent,
      ICLR 2021.
    """

    def craft(leaves: list[jax.Array], scene: Scene) -> list[jax.Array]:
        return [broadcast(-scene.mean(rows)) for rows in leaves]

    return attack("sign_flip", workers, key, craft, axis_name)


def inner_product_manipulation(
    workers: Workers,
    key: keys.Key | None = None,
    *,
    scale: float = 2.0,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Makes the hostile send the mean of the honest times a negative number.

    .. math:: -\frac{\tau}{|H|} \sum_{i \in H} g_i

    A small scale hides among the honest and still turns a mean round with enough
    workers; a large one turns it round with few.

    Args:
      workers: numbers of the hostile, or how many to draw each step; see `sign_flip`.
      key: for workers drawn each step.
      scale: tau, may be traced.
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`.

    Returns:
      A worker transform; see `sign_flip` for masks and errors.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> tx = jm.attacks.inner_product_manipulation([2], scale=0.5)
    >>> grads = jnp.array([[1., 4.], [3., 0.], [2., 2.]])
    >>> tx.update(grads, tx.init(None))[0][2].tolist()
    [-1.0, -1.0]

    References:
      Xie et al., Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product
      Manipulation, UAI 2019. https://arxiv.org/abs/1903.03936
    """
    _check_number("scale", scale)

    def craft(leaves: list[jax.Array], scene: Scene) -> list[jax.Array]:
        means = [scene.mean(rows) for rows in leaves]
        return [broadcast(-jnp.asarray(scale, mean.dtype) * mean) for mean in means]

    return attack("inner_product_manipulation", workers, key, craft, axis_name)


def a_little_is_enough(
    workers: Workers,
    key: keys.Key | None = None,
    *,
    scale: float | None = None,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Makes the hostile send a point just inside the spread of the honest.

    .. math:: \mu_j + z\, \sigma_j

    with mean and standard deviation (divisor n - 1) of the honest in each coordinate.
    The default z is the largest that, were the honest Gaussian, would leave enough of
    them farther out for the hostile to win a majority: Phi(z) = (n - s) / n with n
    honest and s = floor(M / 2 + 1) - f of them needed. Few hostile need half of the
    honest or more: from z = 0 down nobody would be attacked, and `scale` is due.

    Args:
      workers: numbers of the hostile, or how many to draw each step; see `sign_flip`.
      key: for workers drawn each step.
      scale: z, negative to pull the other way; may be traced. By default from M and f
        as above, whoever is absent.
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`.

    Returns:
      A worker transform; see `sign_flip` for masks and errors. With one honest worker
      the deviation is 0.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> tx = jm.attacks.a_little_is_enough([3], scale=1.5)
    >>> grads = jnp.array([[1.], [2.], [3.], [0.]])
    >>> tx.update(grads, tx.init(None))[0][3].tolist()
    [3.5]

    References:
      Baruch et al., A Little Is Enough: Circumventing Defenses For Distributed
      Learning, NeurIPS 2019. https://arxiv.org/abs/1902.06156
    """
    if scale is not None:
        _check_number("scale", scale)
    num_hostile = check_workers("a_little_is_enough", workers).number

    def craft(leaves: list[jax.Array], scene: Scene) -> list[jax.Array]:
        z = scale
        if z is None:
            z = _largest_scale(scene.population.num_workers, num_hostile)
        sent = []
        for rows in leaves:
            mean = scene.mean(rows)
            deviation = scene.deviation(rows, mean)
            sent.append(broadcast(mean + jnp.asarray(z, mean.dtype) * deviation))
        return sent

    return attack("a_little_is_enough", workers, key, craft, axis_name)


def _largest_scale(num_workers: int, num_hostile: int) -> float:
    """Returns z of Baruch et al., Algorithm 3.

    Raises:
      ValueError: if the hostile have a majority of their own, or need so many of the
        honest that z is not above 0, which harms nobody.
    """
    if num_hostile == 0:
        return 0.0  # nobody sends it
    honest = num_workers - num_hostile
    supporters = num_workers // 2 + 1 - num_hostile
    if not 0 < 2 * supporters < honest:
        support = f"that of {supporters} of {honest} honest, half or more"
        if supporters <= 0:
            support = "nobody's support"
        raise ValueError(
            f"`a_little_is_enough` has no `scale` of its own for {num_hostile} hostile "
            f"of {num_workers} workers, who need {support}: pass one, 1.5 say."
        )
    return statistics.NormalDist().inv_cdf((honest - supporters) / honest)


def mimic(
    workers: Workers,
    key: keys.Key | None = None,
    *,
    target: int = 0,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Makes the hostile repeat one honest worker.

    Nothing about the row is suspicious; on heterogeneous data it gives one worker's
    data the weight of many.

    Args:
      workers: numbers of the hostile, or how many to draw each step; see `sign_flip`.
      key: for workers drawn each step.
      target: whom to repeat, counted among the honest who are present, from 0; the last
        of them if there are not so many.
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`.

    Returns:
      A worker transform; see `sign_flip` for masks and errors.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> tx = jm.attacks.mimic([0], target=1)
    >>> grads = jnp.array([[9., 9.], [1., 4.], [3., 0.]])
    >>> tx.update(grads, tx.init(None))[0].tolist()
    [[3.0, 0.0], [1.0, 4.0], [3.0, 0.0]]

    References:
      Karimireddy et al., Byzantine-Robust Learning on Heterogeneous Datasets via
      Bucketing, ICLR 2022. https://arxiv.org/abs/2006.09365
    """
    if isinstance(target, bool) or not isinstance(target, int | np.integer):
        raise TypeError(f"`target` must be an int; got {target!r}.")
    if target < 0:
        raise ValueError(f"`target` must be >= 0; got {target}.")
    num_hostile = check_workers("mimic", workers).number

    def craft(leaves: list[jax.Array], scene: Scene) -> list[jax.Array]:
        population = scene.population
        num_honest = population.num_workers - num_hostile
        if target >= num_honest:
            raise ValueError(
                f"`target` {target} is none of the {num_honest} honest workers: they "
                "are counted from 0."
            )
        honest = scene.honest_mask()
        rank = jnp.cumsum(honest, dtype=jnp.int32) - 1
        wanted = jnp.minimum(np.int32(target), scene.num_honest - 1)
        is_target = (honest & (rank == wanted))[population.numbers()]
        return [broadcast(_row_of(is_target, rows, scene)) for rows in leaves]

    return attack("mimic", workers, key, craft, axis_name)


def _row_of(is_target: jax.Array, rows: jax.Array, scene: Scene) -> jax.Array:
    """Returns the one row that is marked, whichever device has it."""
    row = rows[jnp.argmax(is_target)]
    return collectives.broadcast_from(
        row, jnp.any(is_target), scene.population.axis_name
    )


def gaussian(
    workers: Workers,
    key: keys.Key,
    *,
    scale: float = 1.0,
    mean: float = 0.0,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Makes the hostile send Gaussian numbers, of its own for each and each coordinate.

    Args:
      workers: numbers of the hostile, or how many to draw each step; see `sign_flip`.
      key: a typed key, a legacy key or an int.
      scale: standard deviation >= 0; a number, traced, or an optax schedule.
      mean: of the numbers.
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`.

    Returns:
      A worker transform with state ``(count, rng_key)``; see `sign_flip` for masks and
      errors. Worker i's numbers are those that ``add_worker_noise(gaussian(scale),
      fold_in(key, branch))`` adds, ``branch`` being `noise.keys.HOSTILE_NOISE`, on any
      number of devices: one seed serves an attack and the noise of a rule.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> tx = jm.attacks.gaussian([1], key=0, scale=10.0)
    >>> sent, _ = tx.update(jnp.zeros((2, 1000)), tx.init(None))
    >>> float(sent[0].std()), 9 < float(sent[1].std()) < 11
    (0.0, True)
    """
    law = noise.gaussian(scale)
    _check_number("mean", mean)

    def craft(leaves: list[jax.Array], scene: Scene) -> list[jax.Array]:
        assert scene.state is not None
        own_key = jax.random.fold_in(scene.state.rng_key, keys.HOSTILE_NOISE)
        state = keys.KeyState(scene.state.count, own_key)
        draws, _ = draw(law, False, state, scene.updates, scene.population)
        return [
            add_noise(
                jnp.full(rows.shape, mean, working_dtype(rows.dtype)),
                draws.of_leaf(i).noise,
            )
            for i, rows in enumerate(leaves)
        ]

    return attack("gaussian", workers, key, craft, axis_name, draws=True)


def inf(
    workers: Workers,
    key: keys.Key | None = None,
    *,
    sign: int = 1,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Makes the hostile send infinities of one sign.

    Args:
      workers: numbers of the hostile, or how many to draw each step; see `sign_flip`.
      key: for workers drawn each step.
      sign: 1 or -1.
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`.

    Returns:
      A worker transform; see `sign_flip` for masks and errors.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> tx = jm.attacks.inf([0], sign=-1)
    >>> tx.update(jnp.ones((2, 1)), tx.init(None))[0].tolist()
    [[-inf], [1.0]]
    """
    if sign not in (1, -1):
        raise ValueError(f"`sign` must be 1 or -1; got {sign!r}.")

    def craft(leaves: list[jax.Array], scene: Scene) -> list[jax.Array]:
        del scene
        return [constant(rows, sign * np.inf) for rows in leaves]

    return attack("inf", workers, key, craft, axis_name)


def nan(
    workers: Workers, key: keys.Key | None = None, *, axis_name: AxisName | None = None
) -> optax.GradientTransformationExtraArgs:
    """Makes the hostile send NaN, as a worker whose loss has blown up does.

    Args:
      workers: numbers of the hostile, or how many to draw each step; see `sign_flip`.
      key: for workers drawn each step.
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`.

    Returns:
      A worker transform; see `sign_flip` for masks and errors.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> tx = jm.attacks.nan([0])
    >>> tx.update(jnp.ones((2, 1)), tx.init(None))[0].tolist()
    [[nan], [1.0]]
    """

    def craft(leaves: list[jax.Array], scene: Scene) -> list[jax.Array]:
        del scene
        return [constant(rows, np.nan) for rows in leaves]

    return attack("nan", workers, key, craft, axis_name)


def _check_number(name: str, value: object) -> None:
    """Raises unless the value is a finite number or a traced scalar."""
    if isinstance(value, jax.Array):
        if value.shape != ():
            raise ValueError(f"`{name}` must be a scalar; got shape {value.shape}.")
        return
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TypeError(f"`{name}` must be a number; got {value!r}.")
    if not np.isfinite(value):
        raise ValueError(f"`{name}` must be finite; got {value!r}.")
