"""The run of `experiments.systems.killable`, by a loop in place of `jm.run`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

import jaxmedian as jm
from experiments.systems import killable


def train_on_mesh(
    devices: list[jax.Device],
    num_steps: int = 60,
    chunk: int = 4,
    checkpoint: Path | None = None,
    on_chunk: Callable[[int], Any] = lambda step: None,
) -> jm.RunResult:
    """Trains by a loop over the devices that saves and restores for itself."""
    mesh = jax.make_mesh(
        (len(devices),),
        ("workers",),
        axis_types=(jax.sharding.AxisType.Auto,),
        devices=devices,
    )
    transform = killable.optimizer(axis_name="workers")
    advance = jm.sharding.shard_step(killable.loss, transform, mesh, worker_chunk=1)
    batch = jm.sharding.shard_workers(killable.own_data(), mesh)
    params = jm.sharding.replicate(killable.start(), mesh)
    state = (
        params,
        jm.sharding.init_state(transform, params, mesh, killable.NUM_WORKERS),
    )
    done = 0
    if checkpoint is not None:
        done, state = jm.checkpoint.restore(checkpoint, state)
    while done < num_steps:
        # Waited for: on CPUs the collectives of queued steps can lock each other out.
        state = jax.block_until_ready(advance(*state, batch)[:2])
        done += 1
        if done % chunk == 0 or done == num_steps:
            if checkpoint is not None:
                jm.checkpoint.save(checkpoint, done, state)
            on_chunk(done)
    params, opt_state = killable.gathered(state, mesh)
    return jm.RunResult(params, opt_state, {}, done)
