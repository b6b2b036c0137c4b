"""Two processes that call `run` with arguments that differ: what each of them is told.

python unlike_processes.py PROCESS NUM_PROCESSES PORT
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

import jaxmedian as jm

DATA = np.ones((1, 6, 3), np.float32)  # of the one worker of a process


def loss(params, batch):
    return jnp.mean(jnp.square(params["w"] - batch))


def other_loss(params, batch):
    return loss(params, batch)


def failing():
    raise OSError("disk gone")
    yield


def chain(rate=0.1, law=jm.noise.gaussian, scale=0.5, key=1):
    return jm.noisy_sign_sgd(rate, law(scale), key, axis_name="workers")


def as_iterator(data):
    return iter([data] * 9)


def unlike():
    """What the second process does differently, and what both are told of it."""
    return {
        "num_steps": ({"num_steps": 4}, "`num_steps` (3 on process 0, 4 on process 1)"),
        "chunk": ({"chunk": 7}, "`chunk` (2 on process 0, 7 on process 1)"),
        "key": ({"key": 9}, "`key` (key<fry> () of hash"),
        "loss": (
            {"loss_fn": other_loss},
            "`loss_fn` (loss on process 0, other_loss on",
        ),
        "rate": (
            {"optimizer": chain(0.2)},
            "`scale` ({'step_size': -0.1} on process 0",
        ),
        "law": ({"optimizer": chain(law=jm.noise.laplace)}, "'law': 'laplace'"),
        "noise": ({"optimizer": chain(scale=0.6)}, "'scale': 0.6"),
        "noise key": (
            {"optimizer": chain(key=2)},
            "`opt_state[0].rng_key` (key<fry> () of hash",
        ),
        "values": (
            {"params": {"w": jnp.ones(3)}},
            "`params['w']` (float32 (3,) of hash",
        ),
        "tree": ({"params": {"v": jnp.zeros(3)}}, "`params['v']` (absent on process 0"),
        "rows": (
            {"next_batch": jm.mini_batches(DATA[:, :5], 2)},
            "`data` (float32 (1, 6, 3) on process 0, float32 (1, 5, 3) on process 1)",
        ),
        "batch": (
            {"next_batch": jm.mini_batches(DATA, 3)},
            "without_replacement, 3 sampl",
        ),
        "kind": ({"next_batch": as_iterator(DATA)}, "an iterator on process 1)"),
    }


def first_batches():
    """Iterators of the second process, and what both are told of the first batch."""
    return {
        "shape": (
            as_iterator(DATA[:, :2]),
            "`batch` (float32 (1, 6, 3) on process 0, flo",
        ),
        "workers": (
            as_iterator(np.tile(DATA, (2, 1, 1))),
            "float32 (2, 6, 3) on process 1",
        ),
        "none": (
            iter([]),
            "`next_batch` (absent on process 0, no batch at all on proc",
        ),
    }


def told(**changes):
    options = {
        "loss_fn": loss,
        "optimizer": chain(),
        "params": {"w": jnp.zeros(3)},
        "next_batch": jm.mini_batches(DATA, 2),
        "num_steps": 3,
        "key": 0,
        "chunk": 2,
        "mesh": jm.sharding.workers_mesh(),
    }
    try:
        jm.run(**options | changes)
    except ValueError as error:
        return str(error)
    return "nothing"


def main(process, num_processes, port):
    jax.distributed.initialize(f"localhost:{port}", num_processes, process)
    found = {}
    for name, (changes, wanted) in unlike().items():
        found[name] = wanted in told(**changes if process else {})
    for name, (batches, wanted) in first_batches().items():
        batches = batches if process else as_iterator(DATA)
        found[name] = wanted in told(next_batch=batches)
    try:
        found["raised"] = "raised OSError('disk gone')" in told(
            next_batch=failing() if process else as_iterator(DATA)
        )
    except OSError as error:
        found["raised"] = process == 1 and "at step 0" in error.__notes__[0]
    found["alike"] = told(next_batch=as_iterator(DATA)) == told() == "nothing"
    print(process, found)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
