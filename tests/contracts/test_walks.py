"""How far a gradient walks: files entered and calls between them in a traced step.

Measured from the call of a built step on: construction is left out. A change that makes
a walk longer says in its message what it bought.
"""

import jax.numpy as jnp
import pytest
from walks import walk

import jaxmedian as jm

NOISE = jm.noise.gaussian(0.1)
M, SIZE = 4, 70_000  # a leaf that is worth a kernel of its own


def loss(params, batch):
    return jnp.sum((params["w"] - batch) ** 2)


def walk_of_step(transform, **options):
    params, batch = {"w": jnp.zeros(SIZE)}, jnp.ones((M, SIZE))
    step = jm.make_step(loss, transform, **options)
    state = transform.init(params)
    return walk(lambda: step.lower(params, state, batch))


def walk_on_mesh(transform):
    params, batch = {"w": jnp.zeros(SIZE)}, jnp.ones((M, SIZE))
    mesh = jm.sharding.workers_mesh(2)
    step = jm.sharding.shard_step(loss, transform, mesh)
    state = transform.init(params)
    return walk(lambda: step.lower(params, state, batch))


PACKED = {"ties": "random", "axis_name": "workers", "transport": "packed"}
WALKS = {
    "mean": (lambda: walk_of_step(jm.worker_mean()), 7, 13),
    "noisy vote": (lambda: walk_of_step(jm.majority_vote(NOISE, 0)), 13, 23),
    "packed vote": (lambda: walk_on_mesh(jm.majority_vote(NOISE, 0, **PACKED)), 18, 33),
    "median on a mesh": (
        lambda: walk_on_mesh(jm.coordinate_median(NOISE, 0, axis_name="workers")),
        18,
        30,
    ),
    "streamed vote": (
        lambda: walk_of_step(jm.majority_vote(NOISE, 0), worker_chunk=2),
        15,
        28,
    ),
}


@pytest.mark.parametrize("name", WALKS)
def test_no_walk_grows(name):
    take, most_files, most_calls = WALKS[name]
    taken = take()
    assert "transforms/build.py" in taken.files
    assert len(taken.files) <= most_files, sorted(taken.files)
    assert len(taken.calls) <= most_calls, sorted(taken.calls)
    assert len(taken.two_way_pairs()) <= 1, taken.two_way_pairs()
