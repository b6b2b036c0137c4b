"""Gradient dissimilarity (G, B): how heterogeneous workers are to a given model.

    (1/M) sum_i ||g_i(x)||^2  <=  G^2 + B^2 ||(1/M) sum_i g_i(x)||^2      for all x

with g_i the gradient of worker i's own loss, G >= 0 and B >= 1. Identical workers have
G = 0 and B = 1. G is what is left of the workers' gradients where their mean vanishes:
what a median or a vote has to bridge. Measured at finitely many x, the constants are
those that these x prove necessary: a lower estimate of the constants for all x.

Label divergence (`jaxmedian.splits.Split.label_divergence`) needs no model; this needs
one, and says what the split does to it.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from jaxmedian.diagnostics.measures import check_gradients, mean_over_workers
from jaxmedian.kernels.rows import working_dtype
from jaxmedian.workers import explicit
from jaxmedian.workers.collectives import PyTree
from jaxmedian.workers.gradients import LossFn, worker_grads
from jaxmedian.workers.population import population_of


class Dissimilarity(NamedTuple):
    """The constants of the bound, and the measurements that they cover.

    Attributes:
      G: >= 0, in units of the gradient.
      B: >= 1, without unit.
      mean_squared_norms: [K] float64, (1/M) sum_i ||g_i||^2 at each point.
      squared_mean_norms: [K] float64, ||(1/M) sum_i g_i||^2 at each point.

    >>> fit_dissimilarity([4.0, 6.0], [0.0, 2.0]).describe()[:35]
    'gradient dissimilarity G = 2, B = 1'
    """

    G: float
    B: float
    mean_squared_norms: np.ndarray
    squared_mean_norms: np.ndarray

    def describe(self) -> str:
        """Writes the bound as one line, to print below ``split.describe(labels)``."""
        return (
            f"gradient dissimilarity G = {self.G:.4g}, B = {self.B:.4g}: mean over "
            "workers of ||g||^2 <= G^2 + B^2 ||mean g||^2 at "
            f"{self.mean_squared_norms.size} points"
        )


def gradient_dissimilarity(
    loss_fn: LossFn,
    points: Iterable[PyTree],
    batch: PyTree,
    *,
    worker_mask: jax.Array | None = None,
    worker_chunk: int | None = None,
) -> Dissimilarity:
    """Measures (G, B) of a model and a split at given parameters.

    Take points along a run (its start, its end, some between): the bound depends on
    where it is asked for. For runs in one compiled program, put `squared_norms` among
    the ``metrics`` of `jaxmedian.run` and give its columns to `fit_dissimilarity`, in
    float64: the mean's square plus the variance, and the mean's square.

    Args:
      loss_fn: ``loss_fn(params, batch)`` of the batch of *one* worker -> scalar.
      points: trees of parameters, all of the same shapes; at least one.
      batch: leaves ``[M, ...]``, the data of all workers. Where workers hold unequal
        numbers of samples, let the loss weigh them by ``split.mask``.
      worker_mask: bool ``[M]``; absent workers do not count. ``split.sizes > 0``.
      worker_chunk: as in `jaxmedian.worker_grads`.

    Returns:
      A `Dissimilarity`, fitted as in `fit_dissimilarity`.

    Raises:
      TypeError, ValueError: for no points, one tree in place of a list, a batch without
        a worker axis, a bad mask or gradients that are not finite.

    >>> import jax.numpy as jnp
    >>> loss = lambda x, centre: 0.5 * (x - centre) ** 2  # mean 2, variance 2/3
    >>> centres = jnp.array([1., 2., 3.])
    >>> found = gradient_dissimilarity(loss, [jnp.float32(0), jnp.float32(5)], centres)
    >>> round(found.G**2, 4), round(found.B, 4)
    (0.6667, 1.0)

    Reference: Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for
    Federated Learning", ICML 2020, assumption A1, with its (G, B).
    """
    points = _check_points(points)
    grads_of = worker_grads(loss_fn, worker_chunk=worker_chunk)

    @jax.jit
    def measure(params: PyTree, batch: PyTree) -> dict[str, jax.Array]:
        return squared_norms(grads_of(params, batch), worker_mask=worker_mask)

    rows = [measure(params, batch) for params in points]
    squares = np.array([row["squared_mean_norm"] for row in rows], np.float64)
    variances = np.array([row["variance"] for row in rows], np.float64)
    return fit_dissimilarity(squares + variances, squares)


def _check_points(points: Iterable[PyTree]) -> list[PyTree]:
    """Raises unless they are trees of the same shapes, and not one tree."""
    if isinstance(points, Mapping) or hasattr(points, "shape"):
        raise TypeError(
            "`points` must be a list of trees of parameters; got one tree. For a "
            "single point pass `[params]`."
        )
    listed = list(points)
    if not listed:
        raise ValueError(
            "`points` must hold at least one tree of parameters; got none."
        )
    forms = [jax.tree.map(jnp.shape, point) for point in listed]
    if any(form != forms[0] for form in forms):
        raise ValueError(
            "`points` must hold trees of parameters of the same shapes; got "
            f"{forms[0]} and others. For a single point pass `[params]`."
        )
    return listed


def squared_norms(
    grads: PyTree, *, worker_mask: jax.Array | None = None
) -> dict[str, jax.Array]:
    """Computes both sides of the bound at one point, over all leaves.

    Args:
      grads: the workers' gradients, leaves ``[M, ...]``.
      worker_mask: bool ``[M]``; absent workers do not count. Both are 0 if all are.

    Returns:
      Scalars: "mean_squared_norm", (1/M) sum_i ||g_i||^2; "squared_mean_norm", that of
      the mean, ||mean g||^2; and "variance", (1/M) sum_i ||g_i - mean g||^2. The first
      is the sum of the others; as their difference the variance would be rounded away
      where workers are nearly alike.

    Raises:
      TypeError, ValueError: for gradients without a worker axis, or a bad mask.

    >>> import jax.numpy as jnp
    >>> measured = squared_norms(jnp.array([[3., 4.], [-3., 4.]]))
    >>> {name: float(value) for name, value in measured.items()}
    {'mean_squared_norm': 25.0, 'squared_mean_norm': 16.0, 'variance': 9.0}
    """
    check_gradients("squared_norms", grads)

    def measure(grads: PyTree, mask: jax.Array | None) -> dict[str, jax.Array]:
        population = population_of("squared_norms", grads, None, worker_mask=mask)
        mean = mean_over_workers(grads, population)
        apart = jax.tree.map(_squared_distance_by_worker, grads, mean)
        squares = jax.tree.map(lambda leaf: jnp.sum(jnp.square(leaf)), mean)
        variance = jax.tree.reduce(jnp.add, mean_over_workers(apart, population))
        square_of_mean = jax.tree.reduce(jnp.add, squares)
        return {
            "mean_squared_norm": square_of_mean + variance,
            "squared_mean_norm": square_of_mean,
            "variance": variance,
        }

    return explicit.on_automatic_axes(measure, explicit.place_whole, grads, worker_mask)


def _squared_distance_by_worker(leaf: jax.Array, mean: jax.Array) -> jax.Array:
    """Of leaves ``[M, ...]`` from ``[...]``; float32 (float64 for float64)."""
    rows = (leaf.astype(working_dtype(leaf.dtype)) - mean[None]).reshape(len(leaf), -1)
    return jnp.sum(jnp.square(rows), axis=1)


def fit_dissimilarity(
    mean_squared_norms: npt.ArrayLike, squared_mean_norms: npt.ArrayLike
) -> Dissimilarity:
    r"""Fits the tightest bound s_k <= G^2 + B^2 a_k to measured pairs (a_k, s_k).

    Many (G, B) cover the same points. Taken are those with the least total slack,

    .. math:: \min_{G \ge 0,\; B \ge 1} \sum_k (G^2 + B^2 a_k - s_k),
              \quad s_k \le G^2 + B^2 a_k,

    a linear program in (G^2, B^2): its solution is the edge of the upper hull of the
    points and the origin above the mean of the a_k. Where several are equal, the one
    with the smallest B: a single point gives B = 1 and G^2 = s - a, the variance.

    Args:
      mean_squared_norms: [K] s_k, finite.
      squared_mean_norms: [K] a_k, finite and >= 0.

    Returns:
      A `Dissimilarity`.

    Raises:
      ValueError: if there are no points, or the two differ in length or are not finite.

    >>> found = fit_dissimilarity([4., 9., 6.], [0., 5., 4.])
    >>> round(found.G**2, 4), round(found.B**2, 4)
    (4.0, 1.0)
    """
    s = np.asarray(mean_squared_norms, np.float64)
    a = np.asarray(squared_mean_norms, np.float64)
    if s.ndim != 1 or s.shape != a.shape or s.size == 0:
        raise ValueError(
            "`mean_squared_norms` and `squared_mean_norms` must be vectors of the same "
            f"length K >= 1; got shapes {s.shape} and {a.shape}."
        )
    if not (np.isfinite(s).all() and np.isfinite(a).all() and (a >= 0).all()):
        raise ValueError(
            "`mean_squared_norms` and `squared_mean_norms` must be finite, the second "
            f">= 0; got {s} and {a}. Leave points out at which the run diverged."
        )
    slope = max(1.0, _slope_above_mean(a, s))
    intercept = max(0.0, float((s - slope * a).max()))
    return Dissimilarity(float(np.sqrt(intercept)), float(np.sqrt(slope)), s, a)


def _slope_above_mean(a: np.ndarray, s: np.ndarray) -> float:
    """Finds the hull edge above the mean of ``a``, or -inf if a level B = 1 is best.

    Between a vertex on its left and one on its right, the point farthest above their
    chord is another vertex, and replaces one of the two.
    """
    a, s, middle = np.append(a, 0.0), np.append(s, 0.0), a.mean()  # the origin: G >= 0
    left, right = a.size - 1, int((s - a).argmax())
    if a[right] <= middle:
        return -np.inf
    for _ in range(a.size):
        slope = (s[right] - s[left]) / (a[right] - a[left])
        height = s - slope * a
        highest = int(height.argmax())
        if height[highest] <= max(height[left], height[right]):
            break
        left, right = (highest, right) if a[highest] <= middle else (left, highest)
    return slope
