"""One process of the experiment `elastic`: votes, dies, and comes back.

    python -m experiments.systems.elastic.survivor lighthouse OPTIONS
    python -m experiments.systems.elastic.survivor member OPTIONS
    python -m experiments.systems.elastic.survivor collective OPTIONS

OPTIONS are JSON. A lighthouse prints its address; a member "step NUMBER PRESENT" after
each step, and its last line is what it found, as JSON. The third is the same training
by `jaxmedian.run` on a mesh of all processes, to compare with.
"""

import hashlib
import json
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmedian as jm
from experiments.systems.elastic import Config


def loss(params: jax.Array, batch: jax.Array, key: jax.Array) -> jax.Array:
    """Pulls to the worker's own point, with noise as of a mini-batch."""
    noise = 0.1 * jax.random.normal(key, params.shape)
    return 0.5 * jnp.sum(jnp.square(params - batch + noise))


def chain(config: Config, axis_name: str | None = None) -> Any:
    """Builds a noisy vote in bits, with momentum behind."""
    vote = jm.majority_vote(
        jm.noise.gaussian(config.scale),
        config.seed,
        ties="random",
        transport="packed",
        axis_name=axis_name,
    )
    tail = optax.trace(0.9), optax.scale_by_learning_rate(config.learning_rate)
    return optax.chain(vote, *tail)


def points(config: Config, process: int | None = None) -> jax.Array:
    """Returns the points of the workers of a process, or of all: ``[M, d]``."""
    numbers = range(config.processes) if process is None else [process]
    shape = config.workers_each, config.num_parameters
    rows = [np.random.default_rng([config.seed, i]).normal(size=shape) for i in numbers]
    return jnp.asarray(np.concatenate(rows), jnp.float32)


def arguments(config: Config, num_steps: int, process: int | None = None) -> Any:
    """Returns what `jaxmedian.run` and `jaxmedian.elastic.run` are both given."""
    axis_name = None if process is None else "workers"
    batches = jm.full_batch(points(config, process))
    start = jnp.zeros(config.num_parameters)
    return loss, chain(config, axis_name), start, batches, num_steps, config.seed


def digest(state: Any) -> str:
    """Hashes parameters and momentum, of which the vote's own key is no part."""
    words = [
        jax.random.key_data(leaf)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else leaf
        for leaf in jax.tree.leaves(state)
    ]
    joined = b"".join(np.asarray(leaf).tobytes() for leaf in words)
    return hashlib.sha256(joined).hexdigest()


def take_part(config: Config, options: dict[str, Any]) -> dict[str, Any]:
    """Trains with whoever is there."""

    def report(step: int, loss: float, present: np.ndarray) -> None:
        print("step", step, "".join(map(str, present.astype(int))), flush=True)
        time.sleep(config.pause)

    result = jm.elastic.run(
        *arguments(config, options["num_steps"], options["process"]),
        process=options["process"],
        num_processes=config.processes,
        lighthouse=options["lighthouse"],
        deadline=config.deadline,
        on_step=report,
        checkpoint=options["folder"],
        save_every=config.save_every,
    )
    return {
        "digest": digest((result.params, result.opt_state)),
        "present": result.record.present.astype(int).tolist(),
        "losses": result.record.losses.tolist(),
        "message_bytes": result.message_bytes,
    }


def take_part_collectively(config: Config, options: dict[str, Any]) -> dict[str, Any]:
    """Times the same training over a mesh, of which nobody may die."""
    jax.distributed.initialize(
        options["coordinator"], config.processes, options["process"]
    )
    times: list[float] = []
    jm.run(
        *arguments(config, 2 * config.quiet_steps, options["process"]),
        mesh=jm.sharding.workers_mesh(),
        worker_chunk=1,
        chunk=config.quiet_steps,
        on_chunk=lambda step, row: times.append(time.monotonic()),
    )
    return {"steps_per_second": config.quiet_steps / (times[1] - times[0])}


def main(task: str, text: str) -> None:
    """Runs the command line of the file's docstring, on CPUs."""
    jax.config.update("jax_platforms", "cpu")
    options = json.loads(text)
    config = Config(**options["config"])
    if task == "lighthouse":
        port = options["port"]
        with jm.elastic.serve(config.processes, config.deadline, port) as address:
            print(address, flush=True)
            while True:
                time.sleep(60)
    tasks = {"member": take_part, "collective": take_part_collectively}
    print(json.dumps(tasks[task](config, options)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
