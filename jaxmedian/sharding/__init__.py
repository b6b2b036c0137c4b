"""Many devices: the step of one device, with the workers spread over a mesh.

    params, optimizer state   the same on every device         P()
    batch, worker_mask        a block of workers a device      P("workers")
    state of `per_worker`     a block of workers a device      P("workers")

`shard_step` is `jaxmedian.make_step` inside `jax.shard_map`: the same arguments, the
same results, and the same bits for votes and medians of the same gradients. The devices
may belong to several processes (`jax.distributed`). A second mesh axis stays automatic:
parameters may be sharded over it, and the compiler does the rest.
"""

from jaxmedian.sharding.routes import Route, packed_routes
from jaxmedian.sharding.spmd import shard_step
from jaxmedian.workers.mesh import workers_mesh
from jaxmedian.workers.placing import (
    init_state,
    replicate,
    shard_workers,
    state_specs,
)

__all__ = [
    "workers_mesh",
    "replicate",
    "shard_workers",
    "state_specs",
    "init_state",
    "shard_step",
    "packed_routes",
    "Route",
]
