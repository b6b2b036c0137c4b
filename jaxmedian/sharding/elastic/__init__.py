"""Training whose processes may die and come back: the extra ``jaxmedian[elastic]``.

    import jaxmedian as jm

    with jm.elastic.serve(num_processes=3, deadline=10.0, port=29510) as lighthouse: ...

    jm.elastic.run(loss, optimizer, params, next_batch, num_steps, key,
                   process=i, num_processes=3, lighthouse="http://host:29510")

`jax.distributed` ends all processes when one of them dies. Here each is a JAX of its
own, and what `jaxmedian.run` would gather over a mesh is exchanged by the hosts through
torchft: whoever is there counts, and the record of who was replays the run.
"""

from jaxmedian.sharding.elastic.member import ElasticResult, run
from jaxmedian.sharding.elastic.quorum import serve
from jaxmedian.sharding.elastic.record import Record

__all__ = ["run", "serve", "ElasticResult", "Record"]
