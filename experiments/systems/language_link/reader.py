"""One process of `language_link`: its workers read their own text, and vote.

Started by the experiment, or by hand as `experiments.systems.processes.participant`.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmedian as jm
from experiments.common.training.trainer import run_to_end
from experiments.methods import shakespeare
from experiments.methods.shakespeare.contenders import (
    B1,
    B2,
    learning_rate,
    noisy_lion,
    running_squares,
)
from experiments.systems.language_link import VOTE, Config
from experiments.systems.processes.participant import (
    WORKERS,
    Place,
    digest_of,
    main,
    timed_steps,
)
from jaxmedian.workers.collectives import gather

HALF = "mean, bfloat16"
RULES = ("mean, float32", HALF, VOTE)


def build(
    name: str, config: Config, axis_name: str | None = None
) -> optax.GradientTransformation:
    """Builds Lion by the rule of that name: on one device, or on a mesh."""
    rate = config.vote_rate if name == VOTE else config.lion_rate
    schedule = learning_rate(rate, config.warm_up, config.num_steps)
    settings = _settings(config)
    if name == VOTE:
        vote = noisy_lion(
            functools.partial(running_squares, config.every),
            ties="positive",
            axis_name=axis_name,
            transport="packed",
        )
        return vote(settings, schedule, config.factor, jax.random.key(config.seed))
    mean: Any = jm.worker_mean(axis_name=axis_name)
    if name == HALF:
        mean = half_precision_mean(config.link_processes, axis_name)
    return optax.chain(mean, optax.lion(schedule, B1, B2, weight_decay=settings.decay))


def half_precision_mean(
    num_devices: int, axis_name: str | None
) -> optax.GradientTransformation:
    """Takes the mean of what devices round to bfloat16, the mean of their own workers.

    Devices gather each other's 16 bits, which for two of them is all that a reduction
    could save: CPUs reduce in float32. Without an axis the devices are simulated.
    """

    def reduce(rows: jax.Array) -> jax.Array:
        if axis_name is None:
            own = rows.reshape(num_devices, -1, *rows.shape[1:]).mean(1)
            return own.astype(jnp.bfloat16).astype(rows.dtype).mean(0)
        own = rows.mean(0).astype(jnp.bfloat16)
        bits = gather(jax.lax.bitcast_convert_type(own, jnp.uint16)[None], axis_name)
        every = jax.lax.bitcast_convert_type(bits, jnp.bfloat16)
        return every.astype(rows.dtype).mean(0)

    return optax.stateless(lambda updates, params: jax.tree.map(reduce, updates))


def _settings(config: Config) -> shakespeare.Config:
    """Returns those of `shakespeare`, as far as both experiments have them."""
    shared = {field.name for field in dataclasses.fields(shakespeare.Config)}
    fields = {k: v for k, v in dataclasses.asdict(config).items() if k in shared}
    text = None if config.text is None else Path(config.text)
    return shakespeare.Config(**fields | {"text": text, "num_seeds": 1})


def _trial(config: Config) -> shakespeare.Trial:
    return shakespeare.build_trial(_settings(config))


def _batches(trial: shakespeare.Trial, config: Config, place: Place) -> Any:
    """Serves this process's workers windows of their own text."""
    split, own = trial.corpus.split, place.own(config.num_workers)
    return jm.mini_batches(
        {"labels": trial.corpus.starts[split.indices[own]]},
        config.batch_size,
        replace=True,
        sizes=split.sizes[own],
    )


# --- the same bits --------------------------------------------------------------------


def simulate(config: Config) -> dict[str, Any]:
    """Trains all workers on one device."""
    return _train(config, None, Place(0, 1))


def train(config: Config, place: Place) -> dict[str, Any]:
    """Trains on the devices of all processes, this one's workers on its own."""
    return _train(config, jm.sharding.workers_mesh(), place)


def _train(config: Config, mesh: Any, place: Place) -> dict[str, Any]:
    trial = _trial(config)
    result = jm.run(
        trial.problem(1).model.loss,
        build(VOTE, config, None if mesh is None else WORKERS),
        trial.model.params,
        _batches(trial, config, place),
        config.exact_steps,
        config.seed,
        mesh=mesh,
        chunk=config.exact_steps,
        worker_chunk=1,
    )
    return {"sha256": digest_of(result.params), "parameters": trial.num_parameters()}


# --- steps to a loss ------------------------------------------------------------------


def until_target(
    config: Config, name: str, checkpoint: Path | None
) -> dict[str, np.ndarray]:
    """Trains by one rule on one device until the held-out loss is reached.

    Returns:
      "step" and "held_out_loss" at each measurement.

    Raises:
      KeyboardInterrupt: if the run was stopped.
    """
    trial = _trial(config)

    def evaluate(params: Any) -> dict[str, jax.Array]:
        losses = trial.model.losses(params, jnp.asarray(trial.corpus.held_out))
        return {"held_out_loss": jnp.mean(losses)}

    def stop(step: int, row: dict[str, Any]) -> bool:
        return row["held_out_loss"] <= config.target

    result = run_to_end(
        trial.problem(1).model.loss,
        build(name, config),
        trial.model.params,
        _batches(trial, config, Place(0, 1)),
        config.num_steps,
        config.seed,
        chunk=min(config.chunk, config.num_steps),
        evaluate=evaluate,
        on_chunk=stop,
        checkpoint=checkpoint,
        # As in `shakespeare`; a mean of our own needs the gradients of all at once.
        worker_chunk=None if name == HALF else 1,
    )
    return {
        name: np.asarray(result.metrics[name]) for name in ("step", "held_out_loss")
    }


# --- step time on a link --------------------------------------------------------------


def time_steps(config: Config, place: Place) -> dict[str, Any]:
    """Times steps by every rule, new noise scales included, and counts bytes sent."""
    mesh, trial = jm.sharding.workers_mesh(), _trial(config)
    draw = _batches(trial, config, place)
    batch = jm.sharding.shard_workers(draw(jax.random.key(config.seed), 0), mesh)
    rows = []
    for name in RULES:
        seconds, sent = timed_steps(
            trial.problem(1).model.loss,
            build(name, config, WORKERS),
            trial.model.params,
            batch,
            mesh,
            config.num_workers,
            config.link_steps,
        )
        rows.append({"rule": name, "seconds": float(np.mean(seconds)), **sent})
    return {"rows": rows}


if __name__ == "__main__":
    main({"train": train, "time_steps": time_steps}, Config)
