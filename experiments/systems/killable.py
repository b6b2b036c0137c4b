"""A small training run made to be killed: for the `resume` experiment and its tests.

    python -m experiments.systems.killable --folder FOLDER
    python -m experiments.systems.killable --folder FOLDER --devices 4

prints "edge <step>" at each edge of a chunk and "bits <hash>" at the end: a hash of the
parameters, of the optimizer's state and of all metrics. Everything that could go wrong
on resuming is in it: mini-batches, noise, momentum for each worker, Adam behind.
With ``--devices`` the same call runs over a mesh, one gradient at a time; metrics are
sums over devices there, and are left out of the hash.
"""

import argparse
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmedian as jm

NUM_WORKERS, SAMPLES, FEATURES = 8, 16, 300


def train(
    num_steps: int = 60,
    chunk: int = 4,
    checkpoint: Any = None,
    on_chunk: Callable[[int, dict[str, float]], bool | None] | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> jm.RunResult:
    """Trains by `jaxmedian.run`, metrics included; on a mesh of processes each its own.

    The state that a mesh has spread is gathered at the end.
    """
    result = jm.run(
        loss,
        optimizer("workers" if mesh else None),
        start(),
        jm.mini_batches(own_data(), SAMPLES // 2),
        num_steps,
        key=2,
        chunk=chunk,
        checkpoint=checkpoint,
        on_chunk=on_chunk,
        mesh=mesh,
        worker_chunk=1 if mesh else None,
    )
    if mesh is None:
        return result
    params, opt_state = gathered((result.params, result.opt_state), mesh)
    return result._replace(params=params, opt_state=opt_state, metrics={})


def gathered(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """Returns a tree whole on every device."""
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.jit(lambda tree: tree, out_shardings=everywhere)(tree)


def loss(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
    """Least squares of one worker."""
    residual = batch["x"] @ params["w"] + params["b"] - batch["y"]
    return 0.5 * jnp.mean(jnp.square(residual))


def optimizer(axis_name: str | None = None) -> optax.GradientTransformation:
    """Momentum a worker, a noisy vote, Adam: state and keys before and behind."""
    return optax.chain(
        jm.per_worker(optax.trace(0.9), NUM_WORKERS),
        jm.majority_vote(jm.noise.uniform(0.3), key=1, axis_name=axis_name),
        optax.adam(1e-2),
    )


def start() -> dict[str, jax.Array]:
    """Returns the parameters at step 0."""
    return {"b": jnp.float32(0.5), "w": jnp.zeros(FEATURES)}


def worker_data() -> dict[str, np.ndarray]:
    """Returns every worker's samples, leaves ``[M, n, ...]``."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(NUM_WORKERS, SAMPLES, FEATURES)).astype(np.float32)
    return {"x": x, "y": rng.normal(size=(NUM_WORKERS, SAMPLES)).astype(np.float32)}


def own_data() -> dict[str, np.ndarray]:
    """Returns the samples of this process's workers."""
    share = NUM_WORKERS // jax.process_count()
    mine = slice(jax.process_index() * share, (jax.process_index() + 1) * share)
    return {name: leaf[mine] for name, leaf in worker_data().items()}


def bits(result: jm.RunResult) -> dict[str, np.ndarray]:
    """Lists all that a run leaves as arrays by name, keys as their words."""

    def words(leaf: Any) -> np.ndarray:
        if isinstance(leaf, jax.Array) and jnp.issubdtype(
            leaf.dtype, jax.dtypes.prng_key
        ):
            leaf = jax.random.key_data(leaf)
        return np.asarray(leaf)

    tree = (result.params, result.opt_state, dict(result.metrics), result.step)
    return {
        jax.tree_util.keystr(path): words(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def hash_of(result: jm.RunResult) -> str:
    """Hashes all bits that a run leaves."""
    digest = hashlib.sha256()
    for name, array in sorted(bits(result).items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def main() -> None:
    """Runs the command line of the file's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--num-steps", type=int, default=60)
    parser.add_argument("--chunk", type=int, default=4)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds a chunk")
    parser.add_argument("--devices", type=int, default=0, help="of the mesh; 0: none")
    parser.add_argument("--coordinator", help="address, with several processes")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--process", type=int, default=0)
    options = parser.parse_args()
    if options.processes > 1:
        jax.distributed.initialize(
            options.coordinator, options.processes, options.process
        )

    def report(step: int, row: Any = None) -> None:
        print("edge", step, flush=True)
        time.sleep(options.pause)

    report(0)
    mesh = jm.sharding.workers_mesh(options.devices) if options.devices else None
    result = train(options.num_steps, options.chunk, options.folder, report, mesh)
    print("bits", hash_of(result), flush=True)


if __name__ == "__main__":
    main()
