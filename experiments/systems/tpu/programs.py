"""Compiles updates and training steps for devices that need not be there.

python -m experiments.systems.tpu.programs CONFIG_AS_JSON

The last line printed is the result, as JSON.
"""

import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxmedian as jm
from experiments.common.training.models import mnist_network
from experiments.systems.communication.measure import WORKERS, compiled_update, rules
from experiments.systems.tpu import Config
from jaxmedian.kernels import packing


def on_topology(config: Config) -> dict[str, Any]:
    """Compiles for the topology of the Config, or says why it cannot."""
    if importlib.util.find_spec("libtpu") is None:
        return {"skipped": "libtpu is not installed: pip install libtpu"}
    from jax.experimental import topologies

    try:
        topology = topologies.get_topology_desc(
            platform="tpu", topology_name=config.topology
        )
    except (RuntimeError, ValueError) as error:
        return {"skipped": f"libtpu does not start: {error}"}
    devices: Any = topology.devices
    return {
        "device_kind": devices[0].device_kind,
        "packed_bytes": packing.padded_size(config.num_coordinates) // packing.BITS,
        "rows": list(rows(config, devices)),
    }


def rows(config: Config, devices: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Yields what the compiler says of each program, one device's share of it."""
    mesh = Mesh(np.asarray(devices), (WORKERS,), axis_types=(AxisType.Auto,))
    for workers in config.workers_per_core:
        shape = (len(devices) * workers, config.num_coordinates)
        grads = _spread(mesh, shape, jnp.float32)
        for name, rule in {**rules(WORKERS), **_noisy_votes()}.items():
            yield _row(name, compiled_update(rule, mesh, grads), workers)
    for precision in ("default", "highest"):
        with jax.default_matmul_precision(precision):
            step = _training_step(config, mesh)
        yield _row(f"MNIST step, packed, matmul precision {precision}", step, 1)


def _noisy_votes() -> dict[str, optax.GradientTransformationExtraArgs]:
    noises = {
        "packed vote, uniform systematic noise": jm.noise.uniform(0.1, "systematic"),
        "packed vote, Gaussian noise": jm.noise.gaussian(0.1),
    }
    return {
        name: jm.majority_vote(
            noise, 0, ties="positive", axis_name=WORKERS, transport="packed"
        )
        for name, noise in noises.items()
    }


def _training_step(config: Config, mesh: Mesh) -> jax.stages.Compiled:
    """Compiles gradients, noise, packed vote and update of one step."""
    model = mnist_network(0, config.hidden)
    noise = jm.noise.uniform(0.1, "systematic")
    optimizer = jm.noisy_sign_sgd(
        1e-3, noise, 0, ties="random", axis_name=WORKERS, transport="packed"
    )
    state = jax.eval_shape(optimizer.init, model.params)
    images = (mesh.devices.size, config.batch_size, 784)
    batch = {
        "images": _spread(mesh, images, jnp.uint8),
        "labels": _spread(mesh, images[:2], jnp.int32),
    }
    step = jm.sharding.shard_step(model.loss, optimizer, mesh)
    params = jax.eval_shape(lambda: model.params)
    return step.lower(params, state, batch).compile()  # type: ignore[attr-defined]


def _spread(mesh: Mesh, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(WORKERS)))


def _row(name: str, program: jax.stages.Compiled, workers: int) -> dict[str, Any]:
    memory: Any = program.memory_analysis()
    cost: Any = program.cost_analysis()
    wire = jm.diagnostics.wire_bytes(program, workers_per_device=workers)
    return {
        "program": name,
        "workers_per_core": workers,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "memory_traffic_bytes": round(cost["bytes accessed"]),
        "sent_bytes": round(wire.total),
        "bits_per_coordinate": wire.bits_per_coordinate,
    }


if __name__ == "__main__":
    fields = json.loads(sys.argv[1])
    fields["workers_per_core"] = tuple(fields["workers_per_core"])
    print(json.dumps(on_topology(Config(**fields))))
