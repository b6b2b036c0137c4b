"""A run over a mesh of two processes, each with the data of its own workers."""

import hashlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmedian as jm

M, STEPS = 4, 5
DATA = np.random.default_rng(0).normal(size=(M, 9, 3)).astype(np.float32)


class Reader:
    """Batches of some workers, with a state: what process it belongs to too."""

    def __init__(self, data):
        self.data, self.place = data, 0

    def __iter__(self):
        return self

    def __next__(self):
        self.place += 1
        return self.data[:, self.place : self.place + 2]

    def get_state(self):
        return {"place": self.place, "process": jax.process_index()}

    def set_state(self, state):
        assert state["process"] == jax.process_index()
        self.place = state["place"]


def loss(params, model_state, batch):
    """With a running mean that the next gradients depend on."""
    value = 0.5 * jnp.mean(jnp.square((batch - model_state[None]) @ params - 1))
    return value, 0.5 * model_state + 0.5 * jnp.mean(batch, axis=0)


def train(next_batch, num_steps, mesh=None, **options):
    """Drawn batches with the mean of the workers' states, read ones with each one's."""
    is_read = isinstance(next_batch, Reader)
    options["model_state"] = jnp.ones((M, 3) if is_read else 3)
    options["state_over_workers"] = "per_worker" if is_read else "mean"
    axis_name = None if mesh is None else "workers"
    optimizer = optax.chain(
        jm.per_worker(optax.trace(0.9), M),
        jm.coordinate_median(jm.noise.uniform(0.1), 1, axis_name=axis_name),
        optax.sgd(0.05),
    )
    options |= {"chunk": 2, "worker_chunk": 1, "mesh": mesh}
    return jm.run(loss, optimizer, jnp.ones(3), next_batch, num_steps, 2, **options)


def digest(result):
    return hashlib.sha256(np.asarray(result.params).tobytes()).hexdigest()


def main(process, num_processes, port, folder):
    jax.distributed.initialize(f"localhost:{port}", num_processes, process)
    mesh, share = jm.sharding.workers_mesh(), M // num_processes
    own = DATA[process * share : (process + 1) * share]
    ends = []
    for name, make in (("epochs", lambda: jm.epochs(own, 2, 3)), ("reader", Reader)):
        for num_steps in (2, STEPS):
            batches = make() if name == "epochs" else make(own)
            options = {"checkpoint": f"{folder}/{name}", "progress": True}
            result = train(batches, num_steps, mesh, **options)
        ends.append(digest(result))
    print(len(jax.devices()), ends)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), sys.argv[4])
