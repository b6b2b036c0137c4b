"""A sample of coordinates of all workers' gradients, to choose the noise from.

`jaxmedian.theory.best_scale` knows the best b of a few hundred coordinates; this picks
them from models of any size, inside a run.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmedian.diagnostics.measures import check_gradients
from jaxmedian.noise import keys
from jaxmedian.workers import explicit
from jaxmedian.workers.checks import check_count
from jaxmedian.workers.collectives import PyTree
from jaxmedian.workers.population import population_of

_MOST_COORDINATES = 2**31 - 1  # numbered in int32


def sample_coordinates(
    grads: PyTree,
    num_coordinates: int,
    key: keys.Key,
    *,
    worker_mask: jax.Array | None = None,
) -> jax.Array:
    """Picks random coordinates of all workers' gradients, to choose noise from.

    Every set of ``num_coordinates`` different coordinates of the whole tree is equally
    likely, whatever the leaves they lie in: averages over the sample estimate averages
    over all coordinates without bias. Equal keys pick equal coordinates, so that one
    key in a run follows the same ones from edge to edge. Inside `jax.shard_map` each
    device samples its own workers, at the coordinates of the others.

    To measure inside a run, and to choose b from what was measured:

        def measure(params, grads, updates):
            return {"sample": jm.diagnostics.sample_coordinates(grads, 100, key=0)}

        result = jm.run(..., metrics=[measure])
        jm.theory.best_scale(result.metrics["sample"][-1], "gaussian", "descent")

    Args:
      grads: the workers' gradients, leaves ``[M, ...]``; all in memory, so a run must
        not stream them (``worker_chunk``).
      num_coordinates: n, at most the number of coordinates of all leaves together.
      key: a JAX key or an int.
      worker_mask: bool ``[M]``; rows of absent workers are NaN, which
        `jaxmedian.theory` refuses. Leave them out: ``sample[worker_mask]``.

    Returns:
      ``[M, n]``, in the order of `jax.tree.leaves`; float32, float64 if a leaf is.

    Raises:
      TypeError, ValueError: for streamed gradients, for gradients without a worker
        axis, and for an n that is no integer from 1 to the number of coordinates.

    >>> import jax.numpy as jnp
    >>> grads = {"w": jnp.array([[1., 4.], [2., 0.], [-9., 2.]]), "b": jnp.ones(3)}
    >>> sample_coordinates(grads, 3, key=0).tolist()
    [[1.0, 1.0, 4.0], [1.0, 2.0, 0.0], [1.0, -9.0, 2.0]]
    """
    check_gradients("sample_coordinates", grads)

    def of_arrays(grads: PyTree, mask: jax.Array | None, key: jax.Array) -> jax.Array:
        population = population_of("sample_coordinates", grads, None, worker_mask=mask)
        return _sample(grads, num_coordinates, key, population.present)

    rng_key = keys.as_threefry_key(key)
    return explicit.on_automatic_axes(
        of_arrays, explicit.place_whole, grads, worker_mask, rng_key
    )


def _sample(
    grads: PyTree, num_coordinates: int, rng_key: jax.Array, present: jax.Array | None
) -> jax.Array:
    check_count("num_coordinates", num_coordinates)
    rows = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(grads)]
    total = sum(leaf.shape[1] for leaf in rows)
    if not num_coordinates <= total <= _MOST_COORDINATES:
        raise ValueError(
            "`num_coordinates` must be at most the number of coordinates, and that at "
            f"most 2^31 - 1; got {num_coordinates} of {total}. Take fewer, or sample a "
            "part of the tree."
        )
    own_key = jax.random.fold_in(rng_key, keys.COORDINATES)
    picked = _pick(own_key, total, num_coordinates)
    double = any(leaf.dtype == jnp.float64 for leaf in rows)
    dtype = jnp.dtype(jnp.float64 if double else jnp.float32)
    sample = jnp.zeros((rows[0].shape[0], num_coordinates), dtype)
    first = 0
    for leaf in rows:
        size = leaf.shape[1]
        if size == 0:
            continue
        here = (picked >= first) & (picked < first + size)
        values = jnp.take(leaf, jnp.clip(picked - first, 0, size - 1), axis=1)
        sample = jnp.where(here[None], values.astype(dtype), sample)
        first += size
    if present is None:
        return sample
    return jnp.where(present[:, None], sample, jnp.asarray(jnp.nan, dtype))


def _pick(key: jax.Array, total: int, count: int) -> jax.Array:
    """Picks ``count`` of the numbers below ``total``, every set equally likely, sorted.

    Floyd's algorithm: turn i draws from 0 to start + i and takes that, or start + i if
    what it drew is taken: drawn before, or the start + j that turn j had to take. All
    turns at once, in O(count) memory, where a permutation would sort all the numbers.
    """
    start, turns = np.int32(total - count), jnp.arange(count, dtype=jnp.int32)
    last = start + turns
    drawn = jax.vmap(
        lambda key, last: jax.random.randint(key, (), 0, last + 1, jnp.int32)
    )(keys.fold_in_each(key, turns), last)
    order = jnp.argsort(drawn, stable=True)
    ascending = drawn[order]
    is_again = jnp.diff(ascending, prepend=np.int32(-1)) == 0
    was_drawn = jnp.zeros(count, bool).at[order].set(is_again)
    turn_of = jnp.where(drawn < last, drawn - start, -1)  # whose start + j was drawn

    def follow(taken: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        _, now = taken
        return now, was_drawn | ((turn_of >= 0) & now[turn_of])

    first = follow((was_drawn, was_drawn))
    _, is_taken = jax.lax.while_loop(lambda t: jnp.any(t[0] != t[1]), follow, first)
    return jnp.sort(jnp.where(is_taken, last, drawn))
