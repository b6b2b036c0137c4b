"""Scales of noise that follow the gradients: statistics over the workers present.

    relative_scales     one b per leaf: the largest, or median, entry of a worker
    coordinate_scales   b for every coordinate: how far the workers lie apart there, or
                        the root of running mean squares, sent once in so many steps

They are computed over all devices before anything is drawn, and need all rows at once.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmedian.kernels import dispersion
from jaxmedian.kernels.distances import norms_of
from jaxmedian.kernels.rows import Group, groups_of, rows_of_leaves, working_dtype
from jaxmedian.noise import PerCoordinate, Relative, keys
from jaxmedian.workers import collectives
from jaxmedian.workers.population import Population


class RunningScaleState(NamedTuple):
    """State of a transform whose noise follows running mean squares, coordinate-wise.

    Attributes:
      count: the step it is at, int32.
      rng_key: its unchanging key.
      mean_squares: tree like the parameters, float32 (float64 for float64): the mean
        over workers of g_ij^2, averaged over the steps in which it was sent; -0 until
        one of them is finite.
      num_sent: how often that was, int32.
    """

    count: jax.Array  # type: ignore[assignment]
    rng_key: jax.Array
    mean_squares: Any
    num_sent: jax.Array


def relative_scales(
    scale: Relative, leaves: list[jax.Array], population: Population
) -> list[jax.Array]:
    """Computes factor times max or median over workers of max|g|: a scalar per leaf.

    Entries that are not finite are left out; so are absent workers and workers without
    any finite entry, which are marked by a peak below 0.

    Args:
      scale: factor and statistic.
      leaves: the updates ``[m, ...]``.
      population: the workers, m of them on this device.
    """
    peaks = [_peak(leaf) for leaf in leaves]
    if population.present is not None:
        absent = ~population.present
        peaks = [jnp.where(absent, -1, p) for p in peaks]
    summarise = _largest if scale.statistic == "max" else _median_peak
    factor = jnp.abs(jnp.asarray(scale.factor))
    scales: dict[int, jax.Array] = {}
    for dtype in dict.fromkeys(p.dtype for p in peaks):  # they cross the mesh together
        own = [i for i, peak in enumerate(peaks) if peak.dtype == dtype]
        stacked = jnp.stack([peaks[i] for i in own])
        gathered = collectives.gather(stacked.T, population.axis_name)
        sizes = jax.vmap(summarise, in_axes=1)(gathered)
        scales |= zip(own, factor.astype(dtype) * sizes, strict=True)
    return [scales[i] for i in range(len(leaves))]


def _peak(leaf: jax.Array) -> jax.Array:
    """Returns max|g| over the finite entries of each worker ``[m]``; -1 if none."""
    magnitude = jnp.where(jnp.isfinite(leaf), jnp.abs(leaf), -1)
    peak = jnp.max(magnitude.reshape(leaf.shape[0], -1), axis=1, initial=-1)
    return peak.astype(working_dtype(leaf.dtype))


def _largest(peaks: jax.Array) -> jax.Array:
    return jnp.maximum(jnp.max(peaks), 0)


def _median_peak(peaks: jax.Array) -> jax.Array:
    counted = peaks >= 0
    num_counted = jnp.sum(counted, dtype=jnp.int32)
    ascending = jnp.sort(jnp.where(counted, peaks, jnp.inf))
    low = ascending[jnp.maximum(num_counted - 1, 0) // 2]
    high = ascending[num_counted // 2]
    return jnp.where(num_counted > 0, low * 0.5 + high * 0.5, 0)


_DISPERSIONS: dict[str, dispersion.Dispersion] = {
    "sd": dispersion.standard_deviation,
    "range": dispersion.extent,
    "mad": dispersion.median_deviation,
    "unbiased": dispersion.extent,
}


def coordinate_scales(
    scale: PerCoordinate,
    factor: jax.Array,
    state: keys.KeyState | RunningScaleState,
    leaves: list[jax.Array],
    population: Population,
) -> tuple[list[jax.Array], keys.KeyState | RunningScaleState]:
    """Computes factor times a statistic of every coordinate.

    On a mesh each device computes it on its slice of the coordinates, for which it
    needs the rows of all workers: the bits do not depend on the number of devices.

    Returns:
      For each leaf the scales ``[n]`` of all that draws as one with it, in lanes; and
      the state of the next step.
    """
    groups = groups_of(leaves, in_lanes=True)
    after: keys.KeyState | RunningScaleState = keys.next_state(state)
    if isinstance(state, RunningScaleState):
        squares, num_sent = _running_squares(scale, state, groups, leaves, population)
        sizes = [norms_of(square) for square in squares]
        before, treedef = jax.tree.flatten(state.mean_squares)
        rows = zip(rows_of_leaves(groups, squares), before, strict=True)
        kept = [row.astype(was.dtype).reshape(was.shape) for row, was in rows]
        kept = jax.tree.unflatten(treedef, kept)
        after = RunningScaleState(after.count, after.rng_key, kept, num_sent)
    else:
        rule = _DISPERSIONS[scale.statistic]
        sizes = _over_workers(rule, groups, leaves, population)
    if scale.statistic == "unbiased":
        n = jnp.maximum(population.num_present(), 1)
        least = n.astype(jnp.float32) / ((n + 1) // 2 * 2).astype(jnp.float32)
        sizes = [least.astype(s.dtype) * (1 / math.sqrt(3)) * s for s in sizes]
    of_leaves: dict[int, jax.Array] = {}
    for group, size in zip(groups, sizes, strict=True):
        of_leaves |= dict.fromkeys(group.members, factor.astype(size.dtype) * size)
    return [of_leaves[leaf] for leaf in range(len(leaves))], after


def _running_squares(
    scale: PerCoordinate,
    state: RunningScaleState,
    groups: list[Group],
    leaves: list[jax.Array],
    population: Population,
) -> tuple[list[jax.Array], jax.Array]:
    """Updates running mean squares ``[n]`` of each group, in steps that send them.

    The k-th sent weigh d^(n - k) after n were sent, with d = decay^every. Coordinates
    of which nobody present has a finite square stay as they were: -0, from which they
    start, until the first, which then is their mean. With nobody present nothing is
    sent.

    Returns:
      The squares, and how often they were sent.
    """
    squares = zip(jax.tree.leaves(state.mean_squares), leaves, strict=True)
    rows = [x.reshape(-1).astype(working_dtype(leaf.dtype)) for x, leaf in squares]
    held = [group.join(rows) for group in groups], state.num_sent
    Sent = tuple[list[jax.Array], jax.Array]

    def send(before: list[jax.Array], num_sent: jax.Array) -> Sent:
        # (1 - d) / (1 - d^n) by logarithms: float32 rounds d = 1 - 1e-8 to 1.
        rate = scale.every * math.log(scale.decay) if scale.decay else -math.inf
        number = num_sent.astype(jnp.float32) + 1
        weight = math.expm1(rate) / jnp.expm1(np.float32(rate) * number)
        squares = _over_workers(dispersion.mean_square, groups, leaves, population)
        after = []
        for was, now in zip(before, squares, strict=True):
            share = jnp.where(jnp.signbit(was), 1, weight.astype(was.dtype))
            moved = was + share * (now - was)
            after.append(jnp.where(jnp.isfinite(now), moved, was))
        if population.present is None:
            return after, num_sent + 1
        anybody = population.num_present() > 0
        after = [jnp.where(anybody, a, b) for a, b in zip(after, before, strict=True)]
        return after, num_sent + anybody.astype(jnp.int32)

    if scale.every == 1:
        return send(*held)
    # `diagnostics.wire_bytes` reads from this name how often the branch is taken.
    with jax.named_scope(f"sent_every_{scale.every}"):
        is_sent = state.count % scale.every == 0
        return jax.lax.cond(is_sent, send, lambda *held: held, *held)


def _over_workers(
    statistic: dispersion.Dispersion,
    groups: list[Group],
    leaves: list[jax.Array],
    population: Population,
) -> list[jax.Array]:
    """Computes a statistic of the rows of all workers, ``[m, ...] -> [n]`` a group."""
    all_rows = [leaf.reshape(population.num_local, -1) for leaf in leaves]
    axis_name, present = population.axis_name, population.present_mask()
    results = []
    for group in groups:
        rows = group.join(all_rows)
        result = statistic(collectives.to_coordinate_slices(rows, axis_name), present)
        size = rows.shape[1]
        results.append(collectives.from_coordinate_slices(result, size, axis_name))
    return results
