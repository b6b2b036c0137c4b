"""One process of `sharding/test_processes.py`: holds its workers' gradients, updates.

python rules_of_a_process.py PROCESS NUM_PROCESSES PORT
"""

import hashlib
import sys

import jax
import numpy as np
from harness import awkward, params_like
from jax.sharding import PartitionSpec as P

import jaxmedian as jm

M, SIZE = 8, 33


def rules(axis_name):
    noise = jm.noise.uniform(jm.noise.relative(0.3, "median"))
    return {
        "tally": jm.majority_vote(axis_name=axis_name),
        "packed, masked": jm.majority_vote(
            noise, 5, ties="positive", axis_name=axis_name, transport="packed"
        ),
        "median": jm.coordinate_median(axis_name=axis_name),
        "median, masked": jm.coordinate_median(axis_name=axis_name),
    }


def updates(axis_name):
    """Builds (grads, mask) -> {rule: update}."""

    def update(grads, mask):
        params, results = params_like(grads), {}
        for name, rule in rules(axis_name).items():
            present = mask if "masked" in name else None
            results[name], _ = rule.update(
                grads, rule.init(params), params, worker_mask=present
            )
        return results

    return update


def data():
    return awkward(M, SIZE, nan=True), np.arange(M) % 4 != 1


def digests(results):
    return {
        name: hashlib.sha256(np.asarray(update).tobytes()).hexdigest()
        for name, update in results.items()
    }


def main(process, num_processes, port):
    jax.distributed.initialize(f"localhost:{port}", num_processes, process)
    mesh = jm.sharding.workers_mesh()
    share = M // num_processes
    mine = slice(process * share, (process + 1) * share)
    grads, mask = jm.sharding.shard_workers([x[mine] for x in data()], mesh)
    on_mesh = jax.shard_map(
        updates("workers"), mesh=mesh, in_specs=P("workers"), out_specs=P()
    )
    keys = jm.sharding.replicate({"key": jax.random.key(1), "x": np.ones(3)}, mesh)
    assert keys["key"].sharding.mesh == mesh
    print(len(jax.devices()), digests(jax.jit(on_mesh)(grads, mask)))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
