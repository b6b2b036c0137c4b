"""The mean gradient, which everything else is measured against."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxmedian._workers import Population
from jaxmedian.kernels.averaging import sum_of_rows


def mean_over_workers(tree: Any, population: Population) -> Any:
    """Takes the mean of those present on this device, leaf by leaf.

    Args:
      tree: leaves ``[M, ...]``, floating point.
      population: who is there, as `jaxmedian._workers.survey` counted them.

    Returns:
      Leaves ``[...]``, float32 (float64 for float64); 0 if nobody is present.
    """
    count = jnp.maximum(population.num_present(), 1)

    def mean(leaf: jax.Array) -> jax.Array:
        rows = leaf.reshape(leaf.shape[0], -1)
        total = sum_of_rows(rows, present=population.present)
        return (total / count.astype(total.dtype)).reshape(leaf.shape[1:])

    return jax.tree.map(mean, tree)
