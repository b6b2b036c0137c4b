"""One of the processes of `experiments.processes`: joins the others and trains.

python -m experiments.processes.participant TASK OPTIONS_AS_JSON

The part of the data that this process's workers hold is all it ever looks at. The last
line printed is what it found, as JSON.
"""

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmedian as jm
from experiments.common.digits import load_mnist5k
from experiments.common.models import Classifier, mnist_network
from experiments.processes import Config

WORKERS = "workers"


class Place(NamedTuple):
    """Where this process stands among the others.

    Attributes:
      process: its number.
      num_processes: how many there are.
      coordinator: address and port of the first.
    """

    process: int
    num_processes: int
    coordinator: str


def join(place: Place) -> None:
    """Connects to the other processes; must come before any computation."""
    if place.num_processes > 1:
        jax.distributed.initialize(
            coordinator_address=place.coordinator,
            num_processes=place.num_processes,
            process_id=place.process,
        )


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
    """Trains all workers on one device, in the simulator's own step."""
    model = mnist_network(config.seed, config.hidden)
    optimizer = noisy_vote(config, axis_name=None)
    step = jm.make_step(model.loss, optimizer, worker_chunk=1)
    state = model.params, optimizer.init(model.params)
    everybody = _digits(config, Place(0, 1, ""))
    return _train(config, step, state, everybody)


def train(config: Config, place: Place) -> dict[str, Any]:
    """Trains on the devices of all processes, this one's workers on its own."""
    mesh = jm.sharding.workers_mesh()
    model = mnist_network(config.seed, config.hidden)
    optimizer = noisy_vote(config, axis_name=WORKERS)
    params = jm.sharding.replicate(model.params, mesh)
    opt_state = jm.sharding.init_state(optimizer, params, mesh, config.num_workers)
    batch = jm.sharding.shard_workers(_digits(config, place), mesh)
    step = jm.sharding.shard_step(model.loss, optimizer, mesh, worker_chunk=1)
    return _train(config, step, (params, opt_state), batch)


def _digits(config: Config, place: Place) -> dict[str, np.ndarray]:
    """Loads what this process's workers hold, leaves ``[M / processes, n, ...]``."""
    digits = load_mnist5k(seed=config.seed)
    split = jm.splits.by_label(
        digits.train_labels, config.num_workers, seed=config.seed
    )
    share = config.num_workers // place.num_processes
    mine = slice(place.process * share, (place.process + 1) * share)
    indices = split.indices[mine, : split.sizes.min()]
    return {
        "images": digits.train_images[indices],
        "labels": digits.train_labels[indices],
    }


def _train(config: Config, step: Any, state: Any, batch: Any) -> dict[str, Any]:
    params, opt_state = state
    losses = []
    for _ in range(config.num_steps):
        params, opt_state, metrics = step(params, opt_state, batch)
        losses.append(float(metrics["loss"]))
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.asarray(leaf).tobytes())
    return {"sha256": digest.hexdigest(), "losses": losses}


# --- step time on a link --------------------------------------------------------------


def time_steps(config: Config, place: Place) -> dict[str, Any]:
    """Times steps of one worker a device for every rule, and counts bytes sent."""
    mesh = jm.sharding.workers_mesh()
    model = mnist_network(config.seed, config.link_hidden)
    rng = np.random.default_rng(config.seed + place.process)
    share = len(jax.local_devices())
    batch = jm.sharding.shard_workers(
        {
            "images": rng.integers(0, 256, (share, 32, 784), dtype=np.uint8),
            "labels": rng.integers(0, 10, (share, 32), dtype=np.int32),
        },
        mesh,
    )
    vote = {"ties": "positive", "axis_name": WORKERS}
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
    params = jm.sharding.replicate(model.params, mesh)
    opt_state = jm.sharding.init_state(optimizer, params, mesh, mesh.size)
    step: Any = jm.sharding.shard_step(model.loss, optimizer, mesh)
    wire = jm.diagnostics.wire_bytes(step.lower(params, opt_state, batch).compile())
    state = step(params, opt_state, batch)[:2]  # connects, and warms up
    jax.block_until_ready(state)
    before, seconds = _bytes_sent(), []
    for _ in range(config.link_steps):
        start = time.perf_counter()
        state = jax.block_until_ready(step(*state, batch)[:2])
        seconds.append(time.perf_counter() - start)
    return {
        "ms": 1e3 * float(np.median(seconds)),
        "bytes_counted": wire.total,
        "bytes_sent": (_bytes_sent() - before) / config.link_steps,
    }


def _bytes_sent() -> int:
    """Reads what has left this host so far, headers included; 0 without eth0."""
    counter = Path("/sys/class/net/eth0/statistics/tx_bytes")
    return int(counter.read_text()) if counter.exists() else 0


TASKS = {"train": train, "time_steps": time_steps}


if __name__ == "__main__":
    options = json.loads(sys.argv[2])
    here = Place(**options["place"])
    join(here)
    jnp.zeros(())  # all processes have their devices from here on
    print(json.dumps(TASKS[sys.argv[1]](Config(**options["config"]), here)))
