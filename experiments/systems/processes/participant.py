r"""One process of the experiment `processes`: joins the others and trains.

On a TPU pod, or under Slurm or Open MPI, JAX finds the processes itself; start on each

    python -m experiments.systems.processes.participant train --cluster

and anywhere else say where they are, the first included:

    python -m experiments.systems.processes.participant train \
        --num-processes 2 --process 0 --coordinator 10.0.0.1:12345

A process looks at no data but that of its own workers. The last line it prints is what
it found, as JSON: the digest of the parameters is the same for any number of devices.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import jaxmedian as jm
from experiments.common.data.digits import load_mnist5k
from experiments.common.training.models import Classifier, mnist_network
from experiments.systems.processes import Config

WORKERS = "workers"
_BATCH = 8  # images a worker on the link, where all hosts share one machine's cores


class Place(NamedTuple):
    """Where this process stands among the others."""

    process: int
    num_processes: int

    def own(self, num_workers: int) -> slice:
        """Returns the workers of this process."""
        share = num_workers // self.num_processes
        return slice(self.process * share, (self.process + 1) * share)


def join(options: argparse.Namespace) -> Place:
    """Connects to the other processes; must come before any computation."""
    if options.cluster:
        jax.distributed.initialize()
    elif options.num_processes > 1:
        jax.distributed.initialize(
            options.coordinator, options.num_processes, options.process
        )
    return Place(jax.process_index(), jax.process_count())


# --- the same bits --------------------------------------------------------------------


def noisy_vote(config: Config, axis_name: str | None) -> Any:
    """Builds the chain of all runs: by tallies on one device, packed on a mesh."""
    return jm.noisy_sign_sgd(
        config.learning_rate,
        jm.noise.gaussian(config.scale, "systematic"),
        jax.random.key(config.seed),
        ties="positive",
        axis_name=axis_name,
        transport="packed",
    )


def simulate(config: Config) -> dict[str, Any]:
    """Trains all workers on one device."""
    return _train(config, None, _digits(config, Place(0, 1)))


def train(config: Config, place: Place) -> dict[str, Any]:
    """Trains on the devices of all processes, this one's workers on its own."""
    return _train(config, jm.sharding.workers_mesh(), _digits(config, place))


def _train(config: Config, mesh: Any, digits: dict[str, np.ndarray]) -> dict[str, Any]:
    model = mnist_network(config.seed, config.hidden)
    result = jm.run(
        model.loss,
        noisy_vote(config, axis_name=None if mesh is None else WORKERS),
        model.params,
        jm.full_batch(digits),
        config.num_steps,
        config.seed,
        mesh=mesh,
        chunk=1,
        worker_chunk=1,
    )
    losses = result.metrics["loss"].tolist()
    return {"sha256": digest_of(result.params), "losses": losses}


def digest_of(params: Any) -> str:
    """Returns the SHA-256 of all parameters, in hexadecimal."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def _digits(config: Config, place: Place) -> dict[str, np.ndarray]:
    """Loads what this process's workers hold, leaves ``[M / processes, n, ...]``."""
    digits = load_mnist5k(seed=config.seed)
    split = jm.splits.by_label(
        digits.train_labels, config.num_workers, seed=config.seed
    )
    indices = split.indices[place.own(config.num_workers), : split.sizes.min()]
    return {
        "images": digits.train_images[indices],
        "labels": digits.train_labels[indices],
    }


# --- step time on a link --------------------------------------------------------------


def time_steps(config: Config, place: Place) -> dict[str, Any]:
    """Times steps of one worker a device for every rule, and counts bytes sent."""
    mesh = jm.sharding.workers_mesh()
    model = mnist_network(config.seed, config.link_hidden)
    rng = np.random.default_rng(config.seed + place.process)
    share = len(jax.local_devices())
    batch = jm.sharding.shard_workers(
        {
            "images": rng.integers(0, 256, (share, _BATCH, 784), dtype=np.uint8),
            "labels": rng.integers(0, 10, (share, _BATCH), dtype=np.int32),
        },
        mesh,
    )
    vote: dict[str, Any] = {"ties": "positive", "axis_name": WORKERS}
    optimizers = {
        "mean": optax.chain(jm.worker_mean(axis_name=WORKERS), optax.sgd(1e-3)),
        "vote, tally": jm.sign_sgd(1e-3, **vote),
        "packed vote": jm.sign_sgd(1e-3, transport="packed", **vote),
    }
    rows = [
        {"rule": name, **_time(config, model, optimizer, mesh, batch)}
        for name, optimizer in optimizers.items()
    ]
    size = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    return {"num_parameters": size, "rows": rows}


def _time(
    config: Config, model: Classifier, optimizer: Any, mesh: Any, batch: Any
) -> dict[str, Any]:
    seconds, sent = timed_steps(
        model.loss, optimizer, model.params, batch, mesh, mesh.size, config.link_steps
    )
    return {"ms": 1e3 * float(np.median(seconds)), **sent}


def timed_steps(
    loss: Any,
    optimizer: Any,
    params: Any,
    batch: Any,
    mesh: Any,
    num_workers: int,
    num_steps: int,
) -> tuple[list[float], dict[str, float]]:
    """Times steps on one batch after a first one, and counts bytes.

    Returns:
      The seconds of each step, and "bytes_counted" in the compiled program and
      "bytes_sent" by this host, a step.
    """
    params = jm.sharding.replicate(params, mesh)
    opt_state = jm.sharding.init_state(optimizer, params, mesh, num_workers)
    step: Any = jm.sharding.shard_step(loss, optimizer, mesh)
    wire = jm.diagnostics.wire_bytes(step.lower(params, opt_state, batch).compile())
    state = step(params, opt_state, batch)[:2]  # connects, and warms up
    jax.block_until_ready(state)
    before, seconds = bytes_sent(), []
    for _ in range(num_steps):
        start = time.perf_counter()
        state = jax.block_until_ready(step(*state, batch)[:2])
        seconds.append(time.perf_counter() - start)
    sent = (bytes_sent() - before) / num_steps
    return seconds, {"bytes_counted": wire.total, "bytes_sent": sent}


def bytes_sent() -> int:
    """Reads what has left this host so far, headers included; 0 without eth0."""
    counter = Path("/sys/class/net/eth0/statistics/tx_bytes")
    return int(counter.read_text()) if counter.exists() else 0


# --- command line ---------------------------------------------------------------------


def main(tasks: dict[str, Callable[[Any, Place], Any]], settings: type[Any]) -> None:
    """Joins the others, does one of the tasks, and prints what it found as JSON.

    Args:
      tasks: by name, ``(config, place) -> found``.
      settings: the dataclass of the config.
    """
    parser = argparse.ArgumentParser(description="One of several processes.")
    parser.add_argument("task", choices=tasks)
    parser.add_argument("--cluster", action="store_true", help="let JAX find the rest")
    parser.add_argument("--coordinator", help="address:port of the first process")
    parser.add_argument("--num-processes", type=int, default=1)
    parser.add_argument("--process", type=int, default=0, help="number of this one")
    parser.add_argument("--config", default="{}", help="fields of the Config, as JSON")
    options = parser.parse_args()
    place = join(options)
    config = settings(**json.loads(options.config))
    print(json.dumps(tasks[options.task](config, place)))


if __name__ == "__main__":
    main({"train": train, "time_steps": time_steps}, Config)
