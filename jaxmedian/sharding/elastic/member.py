"""The loop of one process: vote, meet, tell, count whoever was there.

    send                     own votes, before anybody is waited for
    meet                     a majority, and until the deadline the others
    gather                   headers and votes of the members
    finish                   those of one history count, everybody else is absent

Who got a peer's state while it met has voted from old parameters: it is absent in that
step, and takes it with the others. A member whose history is not that of most others
has taken a step that the rest have taken otherwise; it gets a peer's state in the next.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmedian.checkpoint import Folder, Path, is_key
from jaxmedian.noise import keys
from jaxmedian.sharding.elastic.halves import Halves, build_halves
from jaxmedian.sharding.elastic.own_checkpoints import OwnCheckpoints, open_own
from jaxmedian.sharding.elastic.quorum import NoQuorum, Peers, import_torchft
from jaxmedian.sharding.elastic.record import HASH_BYTES, History, Record
from jaxmedian.training.chunks import TrainState, start_state
from jaxmedian.training.feeds import ExtraArgs, NextBatch, build_feed, describe_feed
from jaxmedian.training.identity import configuration_of
from jaxmedian.workers.checks import check_count
from jaxmedian.workers.collectives import PyTree
from jaxmedian.workers.gradients import LossFn
from jaxmedian.workers.mesh import WORKERS

OnStep = Callable[[int, float, np.ndarray], Any]

_HEADER = np.dtype(
    [
        ("process", "<i4"),
        ("votes", "<i4"),
        ("step", "<i8"),
        ("history", np.uint8, HASH_BYTES),
    ]
)
_PATIENCE_WITH_LIGHTHOUSE = 5.0  # seconds beyond the deadlines; then it is asked anew
_CONFIGURATION = np.dtype([("process", "<i8"), ("digest", np.uint8, HASH_BYTES)])


class ElasticResult(NamedTuple):
    """What `run` returns, the same on every process that ends it.

    Attributes:
      params: the parameters at the end.
      opt_state: the optimizer's state.
      record: who took part in which step.
      step: steps taken.
      message_bytes: what a process sends to each other one in a step.

    >>> import jaxmedian as jm
    >>> jm.elastic.ElasticResult._fields
    ('params', 'opt_state', 'record', 'step', 'message_bytes')
    """

    params: PyTree
    opt_state: PyTree
    record: Record
    step: int
    message_bytes: int


def run(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    params: optax.Params,
    next_batch: NextBatch,
    num_steps: int,
    key: keys.Key,
    *,
    process: int,
    num_processes: int,
    lighthouse: str,
    deadline: float = 10.0,
    patience: float = 600.0,
    axis_name: str = WORKERS,
    extra_args: ExtraArgs | None = None,
    on_step: OnStep | None = None,
    checkpoint: Folder | Path | None = None,
    save_every: int = 100,
) -> ElasticResult:
    """Trains with processes of which any minority may die and come back.

    The run of `jaxmedian.run` with the workers of P processes, M / P each, of which in
    each step some are absent: those that are dead, late, or have just come back. They
    do not count, as with ``worker_mask``. Each process is a JAX of its own on its
    default device; what the workers tell crosses the host, packed bits for instance.

    A step is taken by more than half of the processes. Where fewer are left they wait
    for others to come back. A process that is started anew, by the same call, gets
    parameters, state and record of one that is alive; if all were killed, they go on
    from the checkpoint furthest on. At the end all have the same bits, and so has

        jm.run(loss_fn, optimizer, params, next_batch, num_steps, key, worker_chunk=1,
               extra_args=result.record.as_extra_args(num_workers=M))

    on one device of the same kind, with the data of all workers, for votes and medians
    on gradients computed one worker at a time.

    Args:
      loss_fn: as in `jaxmedian.run`, without auxiliary output or state of the model.
      optimizer: the chain, built with ``axis_name``. Its workers keep no state (no
        `per_worker`), and tell their votes before they know who is present: no
        systematic noise, none relative to the gradients of all.
        ``transport="packed"`` sends a bit a coordinate and worker.
      params: initial parameters, the same on all processes.
      next_batch: as in `jaxmedian.run` with ``mesh``: `full_batch`, `mini_batches` and
        `epochs` are given the data of this process's workers alone; a function of your
        own returns ``[M, ...]``, of which each process takes its part.
      num_steps: the step at which the run ends.
      key: of the batches.
      process: number of this one, from 0; its workers are numbers ``process * M / P``
        and following. Never twice at a time.
      num_processes: P, dead or alive.
      lighthouse: address of the lighthouse; see `serve`.
      deadline: seconds after which members that do not answer are given up. It must
        leave time to hand the parameters to a process that comes back.
      patience: seconds without any step after which the run gives up.
      axis_name: what the chain calls the axis of the workers.
      extra_args: as in `jaxmedian.run`, evaluated whole on each process; a
        ``worker_mask`` leaves out workers beside those that are absent. Replay it too.
      on_step: ``on_step(step, loss, present)``, called on the host after each step
        taken here; present is bool ``[P]``.
      checkpoint: folder, in which each process writes to one of its own (needs
        orbax-checkpoint). It may be on a disk that the processes share, or not.
      save_every: steps between two checkpoints; the last is always saved.

    Returns:
      An `ElasticResult`.

    Raises:
      ImportError: without torchft, or for ``checkpoint`` without orbax.
      TypeError, ValueError: for bad numbers, a chain that cannot be run so, the
        checkpoint of another run, or if most processes run something else.
      TimeoutError: if no majority took a step for ``patience`` seconds.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> optimizer = jm.noisy_sign_sgd(
    ...     1e-3, jm.noise.gaussian(0.01), key=1, ties="random", axis_name="workers",
    ...     transport="packed")
    >>> result = jm.elastic.run(  # doctest: +SKIP
    ...     loss, optimizer, params, jm.mini_batches(own_data, 32), 1000, key=0,
    ...     process=2, num_processes=5, lighthouse="http://host:29510")
    """
    check_count("num_steps", num_steps, least=0)
    check_count("save_every", save_every)
    check_count("num_processes", num_processes)
    check_count("process", process, least=0)
    if process >= num_processes:
        raise ValueError(
            f"`process` must be below `num_processes` {num_processes}; got {process}."
        )
    if not 0 < deadline < patience:
        raise ValueError(
            "`deadline` must be above 0 and below `patience`; got "
            f"{deadline} and {patience}."
        )
    import_torchft()
    key = keys.as_threefry_key(key)
    feed = build_feed(next_batch, extra_args)
    state = start_state(optimizer, params, None)
    halves = build_halves(
        loss_fn, optimizer, feed, key, state, axis_name, process, num_processes
    )
    configuration = configuration_of(
        optimizer,
        params=params,
        loss_fn=loss_fn,
        key=key,
        num_processes=num_processes,
        num_local=halves.num_local,
    )
    digest = _digest(configuration | describe_feed(feed))
    with open_own(checkpoint, process, save_every, digest) as checkpoints:
        state, history = checkpoints.restore(state, History(num_processes), num_steps)
        member = _Member(process, halves, state, history, digest)
        peers = Peers(
            process,
            num_processes,
            lighthouse,
            deadline,
            member.hand_over,
            member.take_over,
        )
        peers.step = history.num_steps
        try:
            limits = _Limits(deadline, patience)
            _take_steps(member, peers, num_steps, limits, on_step, checkpoints)
        finally:
            peers.close()
        checkpoints.save(member.state, member.history)
    params, opt_state = member.state
    record = member.history.record()
    return ElasticResult(params, opt_state, record, peers.step, halves.num_bytes)


class _Limits(NamedTuple):
    """Seconds: for an answer, and without any step."""

    deadline: float
    patience: float


class _Member:
    """State and history of this process, and what it tells of them."""

    def __init__(
        self,
        process: int,
        halves: Halves,
        state: TrainState,
        history: History,
        digest: bytes,
    ):
        self.process, self.halves, self.digest = process, halves, digest
        self.state, self.history = state, history

    def hand_over(self) -> dict[str, Any]:
        """Returns the state for a peer, as plain arrays."""
        leaves = jax.tree.leaves(self.state)
        words = [jax.random.key_data(x) if is_key(x) else x for x in leaves]
        noted = self.history.as_json()
        return {"leaves": [np.asarray(x) for x in words], "history": noted}

    def take_over(self, given: dict[str, PyTree]) -> None:
        """Takes the state of a peer."""
        own = jax.tree.leaves(self.state)
        leaves = [
            jax.random.wrap_key_data(jnp.asarray(x), impl=jax.random.key_impl(mine))
            if is_key(mine)
            else jnp.asarray(x)
            for mine, x in zip(own, given["leaves"], strict=True)
        ]
        self.state = jax.tree.unflatten(jax.tree.structure(self.state), leaves)
        self.history = History.from_json(given["history"])

    def message(self, step: int, told: np.ndarray | None) -> np.ndarray:
        """Puts a header before what is told; None tells nothing."""
        header = np.zeros((), _HEADER)
        header["process"], header["step"] = self.process, step
        header["votes"] = told is not None
        header["history"] = np.frombuffer(self.history.digest, np.uint8)
        if told is None:
            told = np.zeros(self.halves.num_bytes, np.uint8)
        return np.concatenate([np.frombuffer(header.tobytes(), np.uint8), told])


def _take_steps(
    member: _Member,
    peers: Peers,
    num_steps: int,
    limits: "_Limits",
    on_step: OnStep | None,
    checkpoints: OwnCheckpoints,
) -> None:
    """Takes steps to the last, then waits for those who are behind.

    Until all have met there, or it is late: where they are dead nobody knows.
    """
    waiting_since = time.monotonic()
    was_done = False
    while True:
        is_done = peers.step >= num_steps
        if is_done and not was_done:
            waiting_since, was_done = time.monotonic(), True
        seconds = 2 * limits.deadline if is_done else limits.patience
        left = seconds - (time.monotonic() - waiting_since)
        if left <= 0 and is_done:
            return
        if left <= 0:
            raise TimeoutError(
                f"No majority took step {peers.step} for {seconds:g} seconds. Is the "
                "lighthouse reached, and more than half of the processes alive? The "
                "same call goes on from the checkpoint, or from a peer."
            )
        told = None if is_done else member.halves.send(member.state, peers.step)
        try:
            # A request that a lighthouse took with it when it died is never answered.
            wait = min(left, 2 * limits.deadline + _PATIENCE_WITH_LIGHTHOUSE)
            outcome = _take_step(member, peers, told, wait)
        except NoQuorum as reason:
            if not is_done:
                sys.stderr.write(f"Process {member.process} waits: {reason}\n")
            outcome = "failed"
        if outcome == "over":
            return
        if outcome == "taken":
            waiting_since = time.monotonic()
            if on_step is not None:
                history = member.history
                on_step(peers.step, history.last_loss, history.last_present)
            checkpoints.visit(member.state, member.history)
        else:
            time.sleep(min(limits.deadline / 20, left))


def _take_step(
    member: _Member, peers: Peers, told: np.ndarray | None, seconds: float
) -> Literal["taken", "failed", "over"]:
    """Takes a step with those who meet; "over" if all have and nobody votes."""
    meeting = peers.meet(seconds)
    if meeting.is_new and not _check_configurations(member, peers):
        peers.end_step(False)
        return "failed"
    if meeting.has_new_state:
        told = None
    heard = peers.gather(member.message(peers.step, told))
    if heard is None:
        peers.end_step(False)
        return "failed"
    headers = np.stack([one[: _HEADER.itemsize] for one in heard]).view(_HEADER)[:, 0]
    num_processes = member.history.num_processes
    leading = _leading(headers)
    voting = leading & (headers["votes"] == 1)
    if not leading[headers["process"] == member.process].any():
        peers.end_step(False)
        peers.step = 0  # so that a peer's state replaces this one
        return "failed"
    if not peers.end_step(bool(voting.any())):
        is_over = leading.sum() == num_processes and not headers["votes"].any()
        return "over" if is_over else "failed"
    received = np.zeros((num_processes, member.halves.num_bytes), np.uint8)
    present = np.zeros(num_processes, np.bool_)
    for header, one, counts in zip(headers, heard, voting, strict=True):
        if counts:
            received[header["process"]] = one[_HEADER.itemsize :]
            present[header["process"]] = True
    step = int(headers["step"][leading][0])
    member.state, loss = member.halves.finish(member.state, step, received)
    member.history.add(present, received, float(loss))
    return "taken"


def _leading(headers: np.ndarray) -> np.ndarray:
    """Marks the members of the history that most of them share.

    Of several the one furthest on, then that of the lowest process: everybody decides
    alike, from the same headers.
    """
    histories = [(int(h["step"]), h["history"].tobytes()) for h in headers]

    def rank(history: tuple[int, bytes]) -> tuple[int, int, int]:
        sharing = [
            int(h["process"])
            for h, its in zip(headers, histories, strict=True)
            if its == history
        ]
        return len(sharing), history[0], -min(sharing)

    first = max(set(histories), key=rank)
    return np.asarray([history == first for history in histories])


def _check_configurations(member: _Member, peers: Peers) -> bool:
    """Has new members compare what they run; returns whether all run the same.

    Raises:
      ValueError: if this process runs something else than most of them.
    """
    own = np.zeros((), _CONFIGURATION)
    own["process"] = member.process
    own["digest"] = np.frombuffer(member.digest, np.uint8)
    heard = peers.gather(np.frombuffer(own.tobytes(), np.uint8))
    if heard is None:
        return False
    rows = np.stack(heard).view(_CONFIGURATION)[:, 0]
    digests = [row["digest"].tobytes() for row in rows]
    if len(set(digests)) == 1:
        numbers = rows["process"].tolist()
        if numbers.count(member.process) > 1:
            raise ValueError(
                f"Two processes have the number {member.process}. Give each its own "
                "`process`, and end a process before it is started anew."
            )
        return len(set(numbers)) == len(numbers)
    most = max(set(digests), key=lambda one: (digests.count(one), one))
    if member.digest != most:
        raise ValueError(
            f"Process {member.process} runs something else than most of "
            f"{sorted(rows['process'].tolist())}: the arguments of `jm.elastic.run` "
            "must be the same on all of them, but for `process` and the data of own "
            "workers, whose shapes must be."
        )
    return False


def _digest(configuration: dict[str, Any]) -> bytes:
    text = json.dumps(configuration, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=HASH_BYTES).digest()
