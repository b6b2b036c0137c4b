"""Which workers take part in a step, drawn inside jit: a ``worker_mask``.

The choice depends on key and step alone, so every device, and a run that is resumed,
draws the same.
"""

import jax
import numpy as np

from jaxmedian import _keys, collectives
from jaxmedian.collectives import AxisName
from jaxmedian.worker_gradients import check_count

# Folded into the key, which may be that of the batches: workers' numbers end before.
_PARTICIPANTS = np.uint32(2**31 + 3)


def participants(
    key: _keys.Key,
    step: jax.Array | int,
    num_workers: int,
    count: int | float,
    *,
    axis_name: AxisName | None = None,
) -> jax.Array:
    """Draws who takes part in a step: exactly ``count`` workers, all sets as likely.

    The draws of different steps are independent. What is drawn is a ``worker_mask``, an
    extra argument of every aggregator:

        step(params, opt_state, batch, worker_mask=jm.participants(key, i, M, 10))

    and in a run, whose function of extra arguments gets the key of each step,

        jm.run(..., extra_args=lambda key, step: {
            "worker_mask": jm.participants(key, step, M, 10)})

    Args:
      key: a typed key, a legacy key or an int. The mask is that of the ranks below
        ``count`` in ``random.permutation(fold_in(fold_in(key, 2**31 + 3), step), M)``.
      step: number of the step, may be traced.
      num_workers: M, over all devices.
      count: how many take part, 1 to M; or a fraction of M, a float in (0, 1], rounded
        to a whole number, at least 1.
      axis_name: mesh axis over which workers are spread, to get this device's block of
        the mask inside `jax.shard_map`. `jaxmedian.sharding.shard_step` cuts the whole
        mask by itself.

    Returns:
      bool ``[M]``; with ``axis_name`` the local block ``[M / D]``.

    Raises:
      TypeError, ValueError: for a bad key or number; if the devices cannot share the
        workers evenly.

    >>> import jaxmedian as jm
    >>> masks = [jm.participants(0, step, 5, 2) for step in range(3)]
    >>> [(mask.shape, int(mask.sum())) for mask in masks]
    [((5,), 2), ((5,), 2), ((5,), 2)]
    """
    check_count("num_workers", num_workers)
    number = _number(count, num_workers)
    rng_key = jax.random.fold_in(_keys.as_threefry_key(key), _PARTICIPANTS)
    ranks = jax.random.permutation(jax.random.fold_in(rng_key, step), num_workers)
    mask = ranks < number
    num_devices = collectives.size(axis_name)
    if num_workers % num_devices:
        raise ValueError(
            f"{num_devices} devices cannot share {num_workers} workers evenly: "
            "`num_workers` is their number over all devices."
        )
    return collectives.own_block(mask, axis_name)


def _number(count: int | float, num_workers: int) -> int:
    if isinstance(count, float | np.floating):
        if not 0 < count <= 1:
            raise ValueError(
                f"`count` must be a fraction in (0, 1] or an int; got {count!r}."
            )
        return max(1, round(float(count) * num_workers))
    check_count("count", count)
    if count > num_workers:
        raise ValueError(f"`count` must be at most {num_workers} here; got {count}.")
    return int(count)
