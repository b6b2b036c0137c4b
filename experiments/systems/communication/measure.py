"""Measure updates on a mesh; run as a process of its own where devices are lacking.

python -m experiments.systems.communication.measure CONFIG_AS_JSON

The last line printed is the result, as JSON.
"""

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import jaxmedian as jm
from experiments.systems.benchmark.timing import Timing, take_turns
from experiments.systems.communication import Config
from jaxmedian.kernels import packing
from jaxmedian.transforms.vote import count_bits

WORKERS = "workers"
_SECONDS = 6.0  # after which a rule takes no further turn


def rules(axis_name: str | None) -> dict[str, optax.GradientTransformationExtraArgs]:
    """Lists what is compared: the same rules for one device and for a mesh."""
    return {
        "mean": jm.worker_mean(axis_name=axis_name),
        "median": jm.coordinate_median(axis_name=axis_name),
        "vote, tally": jm.majority_vote(ties="positive", axis_name=axis_name),
        "packed vote": jm.majority_vote(
            ties="positive", axis_name=axis_name, transport="packed"
        ),
    }


def on_devices(config: Config) -> dict[str, Any]:
    """Measures every rule on every number of devices, and packing by itself."""
    rng = np.random.default_rng(config.seed)
    rows: list[dict[str, Any]] = []
    for num_devices in config.devices:
        num_workers = num_devices * config.workers_per_device
        shape = (num_workers, config.num_coordinates)
        grads = rng.standard_normal(shape, dtype=np.float32)
        rows += _rows(config, grads, num_devices)
    shape = (config.packing_workers, config.num_coordinates)
    return {"rows": rows, "packing_ms": _packing_ms(config, rng.standard_normal(shape))}


def _rows(config: Config, grads: np.ndarray, num_devices: int) -> list[dict[str, Any]]:
    mesh = jm.sharding.workers_mesh(num_devices)
    placed = jm.sharding.shard_workers(grads, mesh)
    programs = {
        name: compiled_update(rule, mesh, placed)
        for name, rule in rules(WORKERS).items()
    }
    timings = _timed(
        {name: (program, placed) for name, program in programs.items()}, config
    )
    wires = {
        name: jm.diagnostics.wire_bytes(
            program, workers_per_device=config.workers_per_device
        )
        for name, program in programs.items()
    }
    expected = update_of(rules(None)["packed vote"])(jnp.asarray(grads))
    rows = []
    for name, wire in wires.items():
        row = {
            "D": num_devices,
            "M": len(grads),
            "d": config.num_coordinates,
            "rule": name,
            "bytes": wire.total,
            "by_collective": wire.by_collective,
            "bits_per_coordinate": wire.bits_per_coordinate,
            "bytes_of_mean": wires["mean"].total / wire.total,
            "ms": 1e3 * timings[name].seconds,
            "ms_to_mean": timings[name].seconds / timings["mean"].seconds,
        }
        if "vote" in name:
            row["same_as_one_device"] = bool(
                jnp.all(programs[name](placed) == expected)
            )
        rows.append(row)
    return rows


def update_of(rule: optax.GradientTransformationExtraArgs) -> Callable[..., jax.Array]:
    """Returns ``grads [m, d] -> update [d]`` of a rule without state."""

    def update(grads: jax.Array) -> jax.Array:
        template = jax.ShapeDtypeStruct(grads.shape[1:], grads.dtype)
        return rule.update(grads, rule.init(template), template)[0]

    return update


def compiled_update(
    rule: optax.GradientTransformationExtraArgs, mesh: Mesh, grads: Any
) -> jax.stages.Compiled:
    """Compiles the update of gradients ``[M, d]`` that are spread over the mesh."""
    on_mesh = jax.shard_map(
        update_of(rule), mesh=mesh, in_specs=P(WORKERS), out_specs=P()
    )
    return jax.jit(on_mesh).lower(grads).compile()


def _packing_ms(config: Config, rows: np.ndarray) -> dict[str, float]:
    """Times what packing adds to a vote: three programs, as the wire parts them."""
    x = jnp.asarray(rows, jnp.float32)
    padding = packing.padded_size(config.num_coordinates) - config.num_coordinates

    @jax.jit
    def pack(x: jax.Array) -> jax.Array:
        return packing.pack(jnp.pad(x > 0, ((0, 0), (0, padding))))

    @jax.jit
    def count(packed: jax.Array) -> jax.Array:
        return packing.pack((count_bits(packed, None) > 0).reshape(-1))

    @jax.jit
    def unpack(decisions: jax.Array) -> jax.Array:
        above = packing.unpack_in_order(decisions)[: config.num_coordinates]
        return jnp.where(above, np.float32(1), np.float32(-1))

    vote = jax.jit(update_of(jm.majority_vote(ties="positive")))
    packed = pack(x)
    decisions = count(packed)
    assert bool(jnp.all(unpack(decisions) == vote(x)))
    programs = {
        "vote": (vote, x),
        "pack": (pack, x),
        "count": (count, packed),
        "unpack": (unpack, decisions),
    }
    return {name: 1e3 * t.seconds for name, t in _timed(programs, config).items()}


def _timed(programs: Mapping[str, Any], config: Config) -> dict[str, Timing]:
    """Times programs, name -> (program, its argument), in turn."""

    def runner(program: Any, argument: jax.Array) -> Callable[[], object]:
        return lambda: jax.block_until_ready(program(argument))

    runners = {name: runner(*program) for name, program in programs.items()}
    return take_turns(runners, config.turns, _SECONDS)


if __name__ == "__main__":
    fields = json.loads(sys.argv[1])
    fields["devices"] = tuple(fields["devices"])
    print(json.dumps(on_devices(Config(**fields))))
