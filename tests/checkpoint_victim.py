"""A run for `test_checkpoint` to kill: momentum, noise, mini-batches, Adam behind.

    python tests/checkpoint_victim.py FOLDER

prints a line at each chunk edge, slowly enough to be caught anywhere.
"""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmedian as jm

M, SAMPLES, FEATURES = 5, 8, 300
NUM_STEPS = 60


def loss_fn(params, batch):
    residual = batch["x"] @ params["w"] + params["b"] - batch["y"]
    return 0.5 * jnp.mean(jnp.square(residual))


def worker_data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(M, SAMPLES, FEATURES)).astype(np.float32)
    return {"x": x, "y": rng.normal(size=(M, SAMPLES)).astype(np.float32)}


def optimizer(noise_key=1):
    return optax.chain(
        jm.per_worker(optax.trace(0.9), M),
        jm.coordinate_median(jm.noise.uniform(0.3), noise_key),
        optax.adam(1e-2),
    )


def start():
    return {"b": jnp.float32(0.5), "w": jnp.zeros(FEATURES)}


def train(num_steps=NUM_STEPS, noise_key=1, key=2, chunk=4, **options):
    batches = jm.mini_batches(worker_data(), 4)
    return jm.run(
        loss_fn,
        optimizer(noise_key),
        start(),
        batches,
        num_steps,
        key,
        chunk=chunk,
        **options,
    )


def bits(result):
    """The run's end as comparable arrays: keys as their words."""
    state = (result.params, result.opt_state, dict(result.metrics), result.step)
    return {
        jax.tree_util.keystr(path): np.asarray(
            jax.random.key_data(leaf)
            if isinstance(leaf, jax.Array)
            and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            else leaf
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


if __name__ == "__main__":

    def report(step, row):
        print(step, flush=True)
        time.sleep(0.05)

    train(checkpoint=sys.argv[1], on_chunk=report)
