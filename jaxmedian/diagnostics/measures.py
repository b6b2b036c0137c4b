"""One step: how far apart the workers are, and where the update points.

The median and the vote follow the mean only where the workers' gradients allow it: the
gap between median and mean is the error term of the paper's Theorems 1 and 2. These are
plain functions of stacked gradients ``[M, ...]``; `jaxmedian.run` evaluates `of_step`
at each chunk edge.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmedian.kernels import selection, weighting
from jaxmedian.kernels.rows import sum_of_rows, working_dtype
from jaxmedian.workers import collectives, explicit
from jaxmedian.workers.collectives import AxisName, PyTree
from jaxmedian.workers.population import Population, check_aggregated, population_of


def of_step(
    grads: PyTree | None,
    updates: PyTree,
    *,
    worker_mask: jax.Array | None = None,
    worker_weights: jax.Array | None = None,
    axis_name: AxisName | None = None,
) -> dict[str, jax.Array]:
    """Measures one step: how far apart the workers are, and where the update points.

    Args:
      grads: the workers' gradients, leaves ``[M, ...]``, or None where they were
        streamed: what needs all of them is then left out.
      updates: the optimizer's updates, leaves ``[...]``; a descent step points against
        the gradient.
      worker_mask: bool ``[M]``; absent workers do not count, whatever they hold.
      worker_weights: ``[M]``, how many workers each counts as; with 0 it is absent.
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`;
        gradients, mask and weights are then the local blocks.

    Returns:
      Scalars: "gradient_norm" and "mean_median_gap" of the functions of that name,
      "disagreement" (fraction of coordinates in which the update goes uphill on the
      mean gradient: a vote against its sign) and "ties" (fraction in which the update
      is 0).

    >>> import jax.numpy as jnp
    >>> grads = jnp.array([[1., 4.], [2., 0.], [-9., 2.]])
    >>> measured = of_step(grads, updates=jnp.array([-1., 0.]))
    >>> {name: round(float(value), 3) for name, value in measured.items()}
    {'gradient_norm': 2.828, 'mean_median_gap': 3.0, 'disagreement': 0.5, 'ties': 0.5}
    """
    if grads is None:
        return explicit.on_automatic_axes(
            lambda updates: {"ties": _ties(updates)}, explicit.place_whole, updates
        )

    def measure(
        grads: PyTree, population: Population, updates: PyTree
    ) -> dict[str, jax.Array]:
        _check_updates("of_step", updates, grads)
        mean = mean_over_workers(grads, population)
        median = _median_over_workers(grads, population)
        uphill = jax.tree.map(lambda g, u: jnp.sign(g) * jnp.sign(u) > 0, mean, updates)
        return {
            "gradient_norm": _norm(mean),
            "mean_median_gap": _norm(jax.tree.map(jnp.subtract, median, mean)),
            "disagreement": _fraction(uphill),
            "ties": _ties(updates),
        }

    return _of_workers(
        "of_step",
        measure,
        grads,
        worker_mask,
        worker_weights,
        updates,
        axis_name=axis_name,
    )


def gradient_norm(
    grads: PyTree,
    *,
    worker_mask: jax.Array | None = None,
    worker_weights: jax.Array | None = None,
) -> jax.Array:
    """Computes the Euclidean norm of the mean gradient over all leaves.

    Mask and weights are those of `of_step`.

    >>> import jax.numpy as jnp
    >>> float(gradient_norm(jnp.array([[1., 4.], [5., 4.]])))
    5.0
    """

    def norm(grads: PyTree, population: Population) -> jax.Array:
        return _norm(mean_over_workers(grads, population))

    return _of_workers("gradient_norm", norm, grads, worker_mask, worker_weights)


def mean_median_gap(
    grads: PyTree,
    *,
    worker_mask: jax.Array | None = None,
    worker_weights: jax.Array | None = None,
) -> jax.Array:
    """Computes ||median_i(g_i) - mean_i(g_i)||, the gap that noise is to close.

    The distance by which plain medianSGD misjudges the gradient (Theorem 2's last term
    is its square). 0 for identical workers, and for an even spread around the mean.
    Mask and weights are those of `of_step`.

    >>> import jax.numpy as jnp
    >>> float(mean_median_gap(jnp.array([[1.], [2.], [9.]])))
    2.0
    """

    def gap(grads: PyTree, population: Population) -> jax.Array:
        mean = mean_over_workers(grads, population)
        median = _median_over_workers(grads, population)
        return _norm(jax.tree.map(jnp.subtract, median, mean))

    return _of_workers("mean_median_gap", gap, grads, worker_mask, worker_weights)


def _of_workers(
    name: str,
    measure: Callable[..., PyTree],
    grads: PyTree,
    worker_mask: jax.Array | None,
    worker_weights: jax.Array | None,
    *rest: PyTree,
    axis_name: AxisName | None = None,
) -> Any:
    """Measures checked gradients: ``measure(grads, population, *rest)``."""
    check_gradients(name, grads)

    def checked(
        grads: PyTree, mask: jax.Array | None, weights: jax.Array | None, *rest: PyTree
    ) -> PyTree:
        population = population_of(
            name, grads, None, axis_name, worker_mask=mask, worker_weights=weights
        )
        return measure(grads, population, *rest)

    return explicit.on_automatic_axes(
        checked, explicit.place_whole, grads, worker_mask, worker_weights, *rest
    )


def check_gradients(caller: str, grads: PyTree) -> None:
    """Raises unless there are gradients of floating point, which may have no rows."""
    if grads is None:
        raise ValueError(
            f"`{caller}` needs the gradients of all workers at once, and these were "
            "streamed. Leave out `worker_chunk`, or this measurement."
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"`grads` of `{caller}` must be floating point; got "
                f"{jnp.result_type(leaf)} for {jax.tree_util.keystr(path) or 'them'}."
            )


def _median_over_workers(grads: PyTree, population: Population) -> PyTree:
    """Takes the median of those present, in float32 (float64 for float64)."""
    present, weights = population.present_mask(), population.weights_of_all()
    axis_name = population.axis_name

    def median(leaf: jax.Array) -> jax.Array:
        stacked = leaf.reshape(leaf.shape[0], -1)
        rows = collectives.to_coordinate_slices(stacked, axis_name)
        if weights is None:
            middle = selection.median_of_rows(
                rows, noise=None, even="midpoint", present=present
            )
        else:
            middle = weighting.median_of_rows(rows, weights, "midpoint")
        middle = middle.astype(working_dtype(leaf.dtype))
        size = stacked.shape[1]
        whole = collectives.from_coordinate_slices(middle, size, axis_name)
        return whole.reshape(leaf.shape[1:])

    return jax.tree.map(median, grads)


def _ties(updates: PyTree) -> jax.Array:
    return _fraction(jax.tree.map(lambda u: u == 0, updates))


def _fraction(tree: PyTree) -> jax.Array:
    """Returns the fraction of true entries over all leaves, float32."""
    leaves = jax.tree.leaves(tree)
    size = max(sum(leaf.size for leaf in leaves), 1)
    return jnp.float32(sum(jnp.sum(leaf) / size for leaf in leaves))


def _norm(tree: PyTree) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)))


def mean_over_workers(
    tree: PyTree, population: Population, *, of_nobody_nan: bool = False
) -> PyTree:
    """Takes the mean of those present on this device, leaf by leaf.

    Args:
      tree: leaves ``[M, ...]``, floating point.
      population: who is there, as `workers.population.population_of` counted them.
      of_nobody_nan: whether the mean over nobody is NaN.

    Returns:
      Leaves ``[...]``, float32 (float64 for float64); 0 if nobody is present, or NaN.
    """

    def mean(leaf: jax.Array) -> jax.Array:
        rows = leaf.reshape(leaf.shape[0], -1)
        total = sum_of_rows(
            rows, present=population.present, weights=population.weights
        )
        whole = population.mean_from_sum(total, of_nobody_nan=of_nobody_nan)
        return whole.reshape(leaf.shape[1:])

    return jax.tree.map(mean, tree)


def suspicion(
    grads: PyTree, updates: PyTree, *, worker_mask: jax.Array | None = None
) -> jax.Array:
    """Computes how often each worker was outvoted: ``[M]``, 0 to 1.

    The fraction, among the coordinates that moved, in which the update goes uphill for
    this worker: its gradient has the sign that lost. A worker drawn at random from many
    alike has somewhat less than 1/2, and the mean over steps tells a hostile worker
    from an unlucky one unless it lies only where it pays
    (`jaxmedian.attacks.pivotal_votes`). NaN always counts as outvoted, 0 never.

    Args:
      grads: what the workers sent, leaves ``[M, ...]``.
      updates: the optimizer's updates, leaves ``[...]``; a descent step points against
        the gradient.
      worker_mask: bool ``[M]``; absent workers get 0.

    Returns:
      float32 ``[M]``; all 0 if nothing moved.

    >>> import jax.numpy as jnp
    >>> grads = jnp.array([[1., 4.], [2., -1.], [-9., 2.]])
    >>> suspicion(grads, updates=jnp.array([-1., -1.])).tolist()
    [0.0, 0.5, 0.5]
    """

    def suspect(grads: PyTree, population: Population, updates: PyTree) -> jax.Array:
        _check_updates("suspicion", updates, grads)
        counts = jax.tree.leaves(jax.tree.map(_num_outvoted, grads, updates))
        moved = [jnp.sum(u != 0, dtype=jnp.int32) for u in jax.tree.leaves(updates)]
        total = jnp.maximum(jnp.float32(sum(moved[1:], moved[0])), 1)
        share = jnp.float32(sum(counts[1:], counts[0])) / total
        if population.present is None:
            return share
        return jnp.where(population.present, share, jnp.float32(0))

    return _of_workers("suspicion", suspect, grads, worker_mask, None, updates)


def _check_updates(caller: str, updates: PyTree, grads: PyTree) -> None:
    """Raises unless updates ``[...]`` fit gradients ``[M, ...]``."""
    means = jax.eval_shape(lambda tree: jax.tree.map(lambda g: g[0], tree), grads)
    check_aggregated(caller, updates, means)


def _num_outvoted(leaf: jax.Array, update: jax.Array) -> jax.Array:
    """Counts for each worker the coordinates of a leaf that moved uphill for it."""
    moves = jnp.sign(update)[None]
    lost = (jnp.sign(leaf).astype(moves.dtype) * moves > 0) | jnp.isnan(leaf)
    lost = lost & (moves != 0)
    return jnp.sum(lost.reshape(leaf.shape[0], -1), axis=1, dtype=jnp.int32)
