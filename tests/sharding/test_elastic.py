"""Elastic runs: halves of a step are the simulator's, and so is a run with deaths."""

import contextlib
import importlib.util
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmedian as jm
from jaxmedian.sharding.elastic import member
from jaxmedian.sharding.elastic.halves import build_halves
from jaxmedian.sharding.elastic.own_checkpoints import open_own
from jaxmedian.sharding.elastic.record import History
from jaxmedian.training.chunks import start_state
from jaxmedian.training.feeds import build_feed

pytestmark = pytest.mark.usefixtures("promoting")  # optax's Adam

P, EACH, D = 3, 2, 21
M = P * EACH
DATA = np.random.default_rng(0).normal(size=(M, 4, D)).astype(np.float32)
PRESENT = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 0]], bool)
OPTIONS = {"ties": "random", "transport": "packed"}


def loss(params, batch, key):
    """Asks for a key: those of workers come from their global numbers."""
    moved = params + 0.1 * jax.random.normal(key, (D,))
    return jnp.mean((moved[None] - batch) ** 2)


def noisy_vote(axis_name=None, coupling="independent", **options):
    noise = jm.noise.gaussian(0.3, coupling)
    vote = jm.majority_vote(noise, 1, axis_name=axis_name, **{**OPTIONS, **options})
    return optax.chain(vote, optax.trace(0.9), optax.adam(1e-2))


def median(axis_name=None):
    return jm.median_sgd(0.1, axis_name=axis_name)


def own_data(process):
    return DATA[process * EACH : (process + 1) * EACH]


def halves_of(optimizer, process, next_batch=None, extra_args=None):
    state = start_state(optimizer, jnp.zeros(D), None)
    feed = build_feed(next_batch or jm.mini_batches(own_data(process), 2), extra_args)
    key = jax.random.key(5)
    halves = build_halves(loss, optimizer, feed, key, state, "workers", process, P)
    return halves, state


def replayed(chain, record, **options):
    return jm.run(
        loss,
        chain,
        jnp.zeros(D),
        jm.mini_batches(DATA, 2),
        len(record.present),
        jax.random.key(5),
        worker_chunk=1,
        extra_args=record.as_extra_args(M),
        **options,
    )


@pytest.mark.parametrize("build", [noisy_vote, median])
def test_halves_of_all_processes_give_the_bits_of_the_simulator(build):
    members = [halves_of(build("workers"), process) for process in range(P)]
    states = [state for _, state in members]
    losses = []
    for step, present in enumerate(PRESENT):
        told = [h.send(s, step) for (h, _), s in zip(members, states, strict=True)]
        received = np.stack(told) * present[:, None].astype(np.uint8)
        taken = [
            h.finish(s, step, received)
            for (h, _), s in zip(members, states, strict=True)
        ]
        states = [state for state, _ in taken]
        losses.append(float(taken[0][1]))
    record = jm.elastic.Record(PRESENT, np.float32(losses))
    result = replayed(build(), record, chunk=1)
    for params, _ in states:
        np.testing.assert_array_equal(params, result.params)
    # What is measured at an edge is the batch of the step that comes next.
    np.testing.assert_allclose(losses[1:], result.metrics["loss"][:-1], rtol=1e-5)


@pytest.mark.parametrize("own_mask", [None, [1, 0, 1, 1, 0, 1]])
@pytest.mark.parametrize("build", [noisy_vote, median])
def test_absent_processes_do_not_count_whatever_mask_there_is_beside(build, own_mask):
    """None is no mask of one's own; another leaves out workers of those present."""
    given = None if own_mask is None else np.array(own_mask, bool)
    extra_args = lambda key, step: {"worker_mask": given}  # noqa: E731
    members = [halves_of(build("workers"), p, None, extra_args) for p in range(P)]
    present = PRESENT[1]
    told = np.stack([halves.send(state, 0) for halves, state in members])
    received = told * present[:, None].astype(np.uint8)
    both = np.repeat(present, EACH) & (True if given is None else given)
    result = jm.run(
        loss,
        build(),
        jnp.zeros(D),
        jm.mini_batches(DATA, 2),
        1,
        jax.random.key(5),
        worker_chunk=1,
        extra_args=lambda key, step: {"worker_mask": both},
    )
    for halves, state in members:
        (params, _), _ = halves.finish(state, 0, received)
        np.testing.assert_array_equal(params, result.params)


def test_a_vote_tells_a_bit_a_coordinate_and_worker():
    halves, _ = halves_of(noisy_vote("workers"), 0)
    mask, losses, counted = EACH, 4, 4  # of each worker, their sum, how many
    packed = EACH * -(-D // 8)
    assert packed <= halves.num_bytes <= packed + mask + losses + 2 * counted


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        (noisy_vote("workers", "systematic"), "before it knows who is present"),
        (jm.signum(0.1, num_workers=EACH, axis_name="workers"), "state for each"),
        (jm.sign_sgd(0.1), "axis_name"),
    ],
)
def test_chains_that_cannot_be_run_so_are_refused(optimizer, words):
    with pytest.raises(ValueError, match=words):
        halves_of(optimizer, 0)


def test_a_whole_draw_is_cut():
    halves, state = halves_of(noisy_vote("workers"), 1, lambda key, step: DATA[:, :2])
    own, _ = halves_of(noisy_vote("workers"), 1, jm.full_batch(own_data(1)[:, :2]))
    np.testing.assert_array_equal(halves.send(state, 0), own.send(state, 0))


def test_a_history_is_read_as_it_was_written():
    history, other = History(P), History(P)
    for present in PRESENT:
        told = np.full((P, 5), 7, np.uint8)
        history.add(present, told, 0.5)
        other.add(present, told + np.uint8(1), 0.5)
    again = History.from_json(history.as_json())
    np.testing.assert_array_equal(again.record().present, PRESENT)
    assert again.digest == history.digest != other.digest
    assert again.record().losses.tolist() == [0.5] * len(PRESENT)
    with pytest.raises(ValueError, match="multiple of the 3"):
        again.record().worker_mask(4)
    with pytest.raises(ValueError, match="holds no step"):
        History(P).record().as_extra_args(6)


def test_a_checkpoint_beyond_the_last_step_is_refused(tmp_path):
    history, state = History(P), (jnp.zeros(3), optax.EmptyState())
    for present in PRESENT:
        history.add(present, np.zeros((P, 5), np.uint8), 0.5)
    with open_own(tmp_path, 1, 1, b"digest") as checkpoints:
        checkpoints.save(state, history)
        found, _ = checkpoints.restore(state, History(P), len(PRESENT))
        np.testing.assert_array_equal(found[0], state[0])
        with pytest.raises(ValueError, match="is a checkpoint beyond `num_steps` 1"):
            checkpoints.restore(state, History(P), 1)


def test_the_history_of_most_members_leads():
    headers = np.zeros(4, member._HEADER)
    headers["process"], headers["step"] = [3, 2, 1, 0], [7, 7, 7, 6]
    headers["history"][:, 0] = [1, 1, 2, 2]
    assert member._leading(headers).tolist() == [True, True, False, False]
    headers["step"] = 7  # two and two: that of process 0
    assert member._leading(headers).tolist() == [False, False, True, True]


def test_without_torchft_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchft", None)
    with (
        pytest.raises(ImportError, match=r"pip install '\./jaxmedian\[elastic\]'"),
        jm.elastic.serve(3, 1.0),
    ):
        pass


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"process": 3}, "below `num_processes` 3"), ({"deadline": 0}, "above 0")],
)
def test_numbers_are_checked(wrong, words):
    given = {"process": 0, "num_processes": P, "lighthouse": "nowhere"} | wrong
    with pytest.raises(ValueError, match=words):
        jm.elastic.run(loss, None, None, None, 1, 0, **given)


class Heard:
    """Peers that say what they are told to."""

    def __init__(self, *digests):
        self.rows = np.zeros(len(digests), member._CONFIGURATION)
        self.rows["process"] = np.arange(len(digests))
        self.rows["digest"] = np.asarray(digests)[:, None]

    def gather(self, message):
        return [np.frombuffer(row.tobytes(), np.uint8) for row in self.rows]


def test_who_runs_something_else_than_most_raises():
    """The others go on without it."""

    def is_alike(process, *digests):
        own = np.full(16, digests[process], np.uint8).tobytes()
        one = member._Member(process, None, None, None, own)
        return member._check_configurations(one, Heard(*digests))

    assert is_alike(0, 7, 7, 7)
    assert not is_alike(0, 7, 7, 8)
    with pytest.raises(ValueError, match="Process 2 runs something else than most"):
        is_alike(2, 7, 7, 8)


class Death(Exception):
    pass


def test_one_that_dies_and_one_that_is_late_are_absent_and_come_back(monkeypatch):
    """Members are threads here, which import and start JAX once.

    Processes die in the experiment `elastic`.
    """
    if importlib.util.find_spec("torchft") is None:
        pytest.skip("needs torchft")
    deadline, num_steps, results, arrivals, late = 1.5, 50, {}, [], []

    class Peers(member.Peers):
        def __init__(self, process, *others):
            arrivals.append(process)
            super().__init__(process, *others)

    monkeypatch.setattr(member, "Peers", Peers)

    def chain(axis_name=None):
        noise = jm.noise.gaussian(0.3)
        return jm.noisy_sign_sgd(0.01, noise, 1, axis_name=axis_name, **OPTIONS)

    def take_part(process, address, die=None):
        def on_step(step, loss, present):
            time.sleep(0.05)
            if step == die:
                raise Death
            while step >= 12 and process < 2 and arrivals.count(2) < 2:
                time.sleep(0.05)  # or they are through before it is back
            if process == 1 and step >= 20 and present.all() and not late:
                late.append(step)
                time.sleep(2 * deadline)

        with contextlib.suppress(Death):
            results[process] = jm.elastic.run(
                loss,
                chain("workers"),
                jnp.zeros(D),
                jm.mini_batches(own_data(process), 2),
                num_steps,
                jax.random.key(5),
                process=process,
                num_processes=P,
                lighthouse=address,
                deadline=deadline,
                patience=60,
                on_step=on_step,
            )

    def start(*arguments, **events):
        thread = threading.Thread(target=take_part, args=arguments, kwargs=events)
        thread.start()
        return thread

    with jm.elastic.serve(P, deadline) as address:
        others = [start(0, address), start(1, address)]
        start(2, address, die=8).join()
        for thread in (*others, start(2, address)):
            thread.join()
    record = results[0].record
    assert record.present.shape == (num_steps, P)
    assert not record.present[8, 2]
    assert not record.present[late[0], 1]
    expected = replayed(chain(), record).params
    for process in range(P):
        result = results[process]
        np.testing.assert_array_equal(result.params, expected)
        np.testing.assert_array_equal(result.record.present, record.present)
