"""Shared by the tests: one update as a training loop makes it, awkward input, x64."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmedian.noise import keys, laws
from jaxmedian.noise.leaf_noise import LeafNoise, systematic_slots

LAWS = ("gaussian", "laplace", "logistic", "uniform")
COUPLINGS = ("independent", "systematic")

enable_x64 = getattr(jax, "enable_x64", None)
if not callable(enable_x64):
    from jax.experimental import enable_x64  # before jax 0.8

set_mesh = getattr(jax, "set_mesh", None)
if not callable(set_mesh):
    from jax.sharding import use_mesh as set_mesh  # before jax 0.8


def params_like(grads):
    """Zero parameters for stacked gradients."""
    return jax.tree.map(lambda g: jnp.zeros(jnp.shape(g)[1:], g.dtype), grads)


def first_update(transform, grads, **extra_args):
    """Runs the first update, jitted and with parameters; returns NumPy arrays."""
    params = params_like(grads)
    update = jax.jit(transform.update)
    updates, _ = update(grads, transform.init(params), params, **extra_args)
    return jax.tree.map(np.asarray, updates)


def awkward(num_workers, size, seed=0, *, nan=False, dtype=np.float32):
    """Stacked values: a third random, a third tied, a third zeros and infinities."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(num_workers, size)).astype(dtype)
    third = size // 3
    values[:, :third] = rng.integers(-1, 2, size=(num_workers, third))
    special = [0.0, -0.0, np.inf, -np.inf, 1.0] + ([np.nan] if nan else [])
    values[:, -third:] = rng.choice(special, size=(num_workers, third))
    values[: num_workers // 2 + 1, -1], values[: num_workers // 2 + 1, -2] = (
        np.inf,
        -np.inf,
    )
    return values


def make_noise(law, coupling, num_workers, scale=0.5, dtype=np.float32, seed=7):
    """The noise of one leaf, as a step would draw it from a key."""
    key = jax.random.key(seed, impl="threefry2x32")
    worker_keys = jax.random.key_data(keys.fold_in_each(key, jnp.arange(num_workers)))
    if coupling == "independent":
        return LeafNoise(laws.LAWS[law], jnp.asarray(scale, dtype), worker_keys, None)
    ranks = np.random.default_rng(1).permutation(num_workers).astype(np.uint32)
    slots = systematic_slots(jnp.asarray(ranks), jnp.uint32(num_workers))
    return LeafNoise(laws.LAWS[law], jnp.asarray(scale, dtype), worker_keys[0], slots)
