"""One step in two halves, with an exchange between them that the host makes.

    send     parameters, own batch -> what this process tells the others, as bytes
    finish   what all have told, zeros of the absent -> new parameters

Both are the whole step, traced with a worker axis that stands for processes. The first
returns what the step would gather over that axis, the second puts what was received in
its place; of the rest the compiler keeps what each needs. A step that must hear from
the others before it can tell them something is not of this kind, and refused.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmedian.training.chunks import TrainState, build_drawn_proposal
from jaxmedian.training.feeds import Feed, by_name, own_feed
from jaxmedian.training.step import Proposal
from jaxmedian.workers import collectives
from jaxmedian.workers.collectives import AxisName, Exchange, PyTree
from jaxmedian.workers.gradients import LossFn, count_in_batch
from jaxmedian.workers.placing import is_per_worker


class Halves(NamedTuple):
    """The two halves of a step, compiled.

    Attributes:
      send: ``(state, step) -> bytes`` of this process, uint8 ``[n]``.
      finish: ``(state, step, received) -> (state, loss)``; received is uint8
        ``[processes, n]``, rows of zeros for those who are absent.
      num_bytes: n, the same on all processes.
      num_local: workers of each process.
    """

    send: Callable[[TrainState, int], np.ndarray]
    finish: Callable[[TrainState, int, np.ndarray], tuple[TrainState, jax.Array]]
    num_bytes: int
    num_local: int


class _Told(Exchange):
    """Notes what is gathered, in the order of the trace."""

    def __init__(self, axis_name: AxisName, position: int, num_processes: int):
        self.axis_name, self.position = axis_name, position
        self.num_processes = num_processes
        self.told: list[jax.Array] = []

    def gather(self, x: jax.Array) -> jax.Array:
        answer = self._answer(len(self.told), x)
        self.told.append(x)
        return answer

    def _answer(self, number: int, x: jax.Array) -> jax.Array:
        del number
        return jnp.zeros((self.num_processes, *x.shape), x.dtype)


class _Heard(_Told):
    """Answers with what was received."""

    def __init__(
        self,
        axis_name: AxisName,
        position: int,
        num_processes: int,
        heard: Sequence[jax.Array],
    ):
        super().__init__(axis_name, position, num_processes)
        self.heard = heard

    def _answer(self, number: int, x: jax.Array) -> jax.Array:
        del x
        return self.heard[number]


def build_halves(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    feed: Feed,
    key: jax.Array,
    state: TrainState,
    axis_name: AxisName,
    process: int,
    num_processes: int,
) -> Halves:
    """Builds the halves of the step of one of several processes.

    Raises:
      ValueError: if the step needs two rounds of messages, if its chain gathers nothing
        over the axis, or if a transform keeps state for each worker.
    """
    _refuse_state_of_workers(state[1])
    place = axis_name, process, num_processes
    propose = build_drawn_proposal(
        loss_fn, optimizer, has_aux=False, worker_chunk=1, axis_name=axis_name
    )
    counts: list[int] = []

    def take(
        state: TrainState, leaves: PyTree, step: jax.Array, exchange: _Told
    ) -> Proposal:
        whole = jax.tree.unflatten(jax.tree.structure(feed), leaves)
        with collectives.over_hosts(exchange):
            own = _masked(own_feed(whole, exchange))
            counts[:] = [_count(own, key, jnp.asarray(step))]
            return propose(state, own, key, step)

    def tell(state: TrainState, leaves: PyTree, step: jax.Array) -> list[jax.Array]:
        exchange = _Told(*place)
        take(state, leaves, step, exchange)
        return exchange.told

    def tell_after(
        heard: Sequence[jax.Array], state: TrainState, leaves: PyTree, step: jax.Array
    ) -> list[jax.Array]:
        exchange = _Heard(*place, heard)
        take(state, leaves, step, exchange)
        return exchange.told

    def finish(
        state: TrainState, leaves: PyTree, step: jax.Array, heard: Sequence[jax.Array]
    ) -> tuple[TrainState, jax.Array]:
        proposal = take(state, leaves, step, _Heard(*place, heard))

        def moved() -> TrainState:
            params = optax.apply_updates(state[0], proposal.updates)
            return params, proposal.opt_state

        # A branch, as in the chunks of `jm.run`: fused with what computes the updates,
        # the addition would round otherwise than there.
        return jax.lax.cond(step >= 0, moved, lambda: state), proposal.loss

    leaves, first = jax.tree.leaves(feed), np.int32(0)
    shapes = jax.eval_shape(tell, state, leaves, first)
    heard = [
        jax.ShapeDtypeStruct((num_processes, *one.shape), one.dtype) for one in shapes
    ]
    _check_one_round(jax.make_jaxpr(tell_after)(heard, state, leaves, first), heard)
    told, finished = jax.jit(tell), jax.jit(finish)

    def send(state: TrainState, step: int) -> np.ndarray:
        return _as_bytes(jax.device_get(told(state, leaves, np.int32(step))))

    def finish_with(
        state: TrainState, step: int, received: np.ndarray
    ) -> tuple[TrainState, jax.Array]:
        return finished(state, leaves, np.int32(step), _from_bytes(received, shapes))

    num_bytes = sum(one.size * one.dtype.itemsize for one in shapes)
    return Halves(send, finish_with, num_bytes, counts[0])


def _masked(feed: Feed) -> Feed:
    """Says of each worker that it is present: others hear zeros of those who are not.

    A worker that ``extra_args`` of the feed leaves out stays so; a mask of None leaves
    out nobody.
    """

    def with_mask(args: Any, key: jax.Array, step: jax.Array) -> dict[str, Any]:
        given = by_name(args(key, step))
        mask = given.get("worker_mask")
        if mask is None:
            mask = jnp.ones(_count(feed, key, step), jnp.bool_)
        return {**given, "worker_mask": mask}

    return Feed(feed.next_batch, jax.tree_util.Partial(with_mask, feed.extra_args))


def _count(feed: Feed, key: jax.Array, step: jax.Array) -> int:
    """Returns the number of workers in the batches of a feed."""
    return count_in_batch(jax.eval_shape(feed.next_batch, key, step))


def _as_bytes(arrays: Sequence[np.ndarray]) -> np.ndarray:
    rows = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in arrays]
    return np.concatenate(rows)


def _from_bytes(
    received: np.ndarray, shapes: Sequence[jax.ShapeDtypeStruct]
) -> list[np.ndarray]:
    """Cuts ``[processes, n]`` bytes into arrays ``[processes, ...]``."""
    arrays, start = [], 0
    for one in shapes:
        stop = start + one.size * one.dtype.itemsize
        part = np.ascontiguousarray(received[:, start:stop]).view(one.dtype)
        arrays.append(part.reshape(len(received), *one.shape))
        start = stop
    return arrays


def _refuse_state_of_workers(opt_state: optax.OptState) -> None:
    nodes = jax.tree.leaves(opt_state, is_leaf=is_per_worker)
    if any(is_per_worker(node) for node in nodes):
        raise ValueError(
            "The chain keeps state for each worker (`per_worker`, `signum`, "
            "`distributed_lion`, ...), which dies with its process: no peer holds it, "
            "and nothing could replay the run. Put the momentum behind the aggregator, "
            "`optax.chain(jm.majority_vote(...), optax.trace(0.9), ...)`."
        )


def _check_one_round(traced: Any, heard: Sequence[Any]) -> None:
    """Raises if something that is told depends on something that is heard."""
    if len(heard) < 2:
        raise ValueError(
            "Nothing but the loss would be exchanged: build the chain with the "
            'processes\' `axis_name`, `jm.sign_sgd(..., axis_name="workers")`.'
        )
    jaxpr = traced.jaxpr
    tainted = {id(variable) for variable in jaxpr.invars[: len(heard)]}
    for equation in jaxpr.eqns:
        if any(id(variable) in tainted for variable in equation.invars):
            tainted |= {id(variable) for variable in equation.outvars}
    if any(id(variable) in tainted for variable in jaxpr.outvars):
        raise ValueError(
            "The chain cannot tell its votes before it knows who is present, or what "
            "others hold: systematic noise, scales relative to all workers' gradients, "
            "rules by distance. Use independent noise of a number or a schedule."
        )
