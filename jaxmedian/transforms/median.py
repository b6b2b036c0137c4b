"""The coordinate-wise median over workers, with noise: Algorithms 2 and 4."""

import jax
import optax

from jaxmedian.kernels import selection, weighting
from jaxmedian.noise import Noise, keys
from jaxmedian.transforms.build import Rule, aggregator
from jaxmedian.transforms.draws import LeafDraws, add_noise, check_key
from jaxmedian.workers import collectives
from jaxmedian.workers.checks import check_option
from jaxmedian.workers.collectives import AxisName
from jaxmedian.workers.population import Population


def coordinate_median(
    noise: Noise | None = None,
    key: keys.Key | None = None,
    *,
    even: selection.EvenRule = "midpoint",
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Takes the median over workers of each coordinate: ``[M, ...] -> [...]``.

    .. math:: \mathrm{median}_i(g_i + b\, \xi_i)

    Without noise up to (M - 1) / 2 arbitrary workers leave every coordinate inside the
    range of the others, but on heterogeneous data the median is not the mean. With
    noise its expectation is the mean up to O(1 / b^2), and its variance grows as b^2.

    Noise moves every coordinate, also one without any gradient: frozen layers,
    statistics, rows of an embedding that no batch has seen. Keep those out of the
    parameters, or zero them *behind* the aggregator, ``chain(coordinate_median(noise,
    key), masked(set_to_zero(), frozen))``: in front, a mask would leave their worker
    axis.

    NaN counts as +inf, so that a minority of broken workers changes nothing above. With
    an even number of workers of which the middle two are -inf and +inf the midpoint is
    NaN, as in NumPy. With nobody present the median is 0.

    Args:
      noise: law, scale and coupling, or None for the plain median. The medians are
        those of ``chain(add_worker_noise(noise, key), coordinate_median())`` with the
        same key, but rounded to the dtype of the gradients only once, at the end.
      key: a typed key, a legacy key or an int; needed for noise, refused otherwise.
      even: what ends an even number of workers: "midpoint" of the middle two (NumPy's),
        "lower" or "upper".
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`.

    Returns:
      A transformation. ``update`` takes ``worker_mask``, bool ``[M]``: the median is
      taken over the workers present; and ``worker_weights``, ``[M]``: each counts as so
      many workers, which need not be whole numbers. A weighted median takes a pass over
      the rows for each bit of a float, and noise is stored.

    Raises:
      TypeError, ValueError: for a bad noise, key or option; while tracing, for updates
        without a worker axis.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> tx = jm.coordinate_median()
    >>> params = jnp.zeros(2)
    >>> grads = jnp.array([[1., jnp.nan], [2., 4.], [-9., 5.]])
    >>> updates, _ = tx.update(grads, tx.init(params), params)
    >>> updates.tolist()
    [1.0, 5.0]

    References:
      Yin et al., Byzantine-Robust Distributed Learning, ICML 2018.
      Chen et al., NeurIPS 2020, Algorithms 2 and 4. https://arxiv.org/abs/1906.01736
    """
    check_option("even", even, selection.EVEN_RULES)
    rng_key = check_key("coordinate_median", noise, key)

    def reduce(rows: jax.Array, draws: LeafDraws, population: Population) -> jax.Array:
        noise, weights = draws.noise, population.weights_of_all()
        if axis_name is not None or weights is not None:
            # Noise belongs to workers: add it before their coordinates part.
            rows, noise = add_noise(rows, noise), None
        slices = collectives.to_coordinate_slices(rows, axis_name)
        if weights is not None:
            middle = weighting.median_of_rows(slices, weights, even)
        else:
            middle = selection.median_of_rows(
                slices, noise=noise, even=even, present=population.present_mask()
            )
        return collectives.from_coordinate_slices(middle, rows.shape[1], axis_name)

    return aggregator(
        "coordinate_median",
        Rule(reduce),
        noise=noise,
        rng_key=rng_key,
        axis_name=axis_name,
    )
