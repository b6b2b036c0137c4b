"""Batches that Python makes: read in step, placed ahead, resumed to the bit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from aligned import aligned_copy

import jaxmedian as jm
from jaxmedian.training import sources

pytestmark = pytest.mark.usefixtures("compiled_once")

M, STEPS = 3, 10
ROWS = np.random.default_rng(0).normal(size=(20, M, 2)).astype(np.float32)


def loss(params, batch):
    return 0.5 * jnp.mean(jnp.square(params["w"] - batch["x"]))


def start():
    return {"w": jnp.zeros(2)}


def batch_of(step):
    return {"x": ROWS[step]}


def drawn(key, step):
    """The same batches as a function."""
    return {"x": jnp.asarray(ROWS)[step]}


class Loader:
    """An iterator that notes what is read, and fails or ends where it is told to."""

    def __init__(self, end=20, failing_at=None):
        self.place, self.end, self.failing_at = 0, end, failing_at

    def __iter__(self):
        return self

    def __next__(self):
        if self.place == self.failing_at:
            raise OSError("disk gone")
        if self.place == self.end:
            raise StopIteration
        self.place += 1
        return batch_of(self.place - 1)


class Movable(Loader):
    """One that can be moved, as grain's."""

    def get_state(self):
        return {"place": self.place}

    def set_state(self, state):
        self.place = state["place"]


class MovableByBytes(Movable):
    """One whose state is bytes, as that of grain's `DataLoader`."""

    def get_state(self):
        return bytes([255, self.place])

    def set_state(self, state):
        assert state[0] == 255
        self.place = state[1]


OPTIMIZER = optax.chain(
    jm.majority_vote(jm.noise.uniform(0.1), 1), optax.sgd(0.05, momentum=0.9)
)


def train(next_batch, num_steps=STEPS, params=None, **options):
    params, options = params or start(), {"chunk": 4} | options
    return jm.run(loss, OPTIMIZER, params, next_batch, num_steps, 2, **options)


def assert_same_end(got, expected):
    assert got.step == expected.step
    for a, b in zip(*map(jax.tree.leaves, (got[:2], expected[:2])), strict=True):
        assert bool((a == b).all())


def assert_same_metrics(got, expected):
    assert got.metrics.keys() == expected.metrics.keys()
    for name, column in expected.metrics.items():
        np.testing.assert_array_equal(got.metrics[name], column)


@pytest.fixture(scope="module")
def unbroken():
    return train(Loader())


# --- the same run ---------------------------------------------------------------------


def test_read_batches_train_as_drawn_ones(unbroken):
    assert_same_end(unbroken, train(drawn))
    assert unbroken.metrics["step"].tolist() == [4, 8, 10]


def test_every_edge_is_measured_on_the_batch_read_last(unbroken):
    """With the parameters of the edge, which a shorter run returns."""
    for row, edge in enumerate((4, 8, 10)):
        end = train(drawn, edge, chunk=20).params["w"]
        expected = 0.5 * np.mean(np.square(np.float64(end) - ROWS[edge - 1]))
        assert unbroken.metrics["loss"][row] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_any_chunk_of_read_batches_gives_the_same_parameters(chunk, unbroken):
    assert_same_end(train(Loader(), chunk=chunk), unbroken)


def test_no_batch_is_read_that_is_not_trained_on(unbroken):
    """So that a run goes on from memory with the same iterator."""
    loader, rows = Loader(), []
    first = train(loader, 6, on_chunk=lambda step, row: rows.append(loader.place))
    assert rows == [4, 6]
    second = train(loader, params=first.params, opt_state=first.opt_state, step=6)
    assert loader.place == STEPS
    assert_same_end(second, unbroken)


def test_one_program_takes_all_steps():
    traces = []

    def counted(params, batch):
        traces.append(1)
        return loss(params, batch)

    counts = []
    for num_steps in (1, 9):
        traces.clear()
        jm.run(counted, jm.sign_sgd(0.1), start(), Loader(), num_steps, 0, chunk=2)
        counts.append(len(traces))
    assert counts[0] == counts[1] > 0


class Call:
    """What a call that is computing returns for the loss."""

    def __init__(self, is_ready):
        self.ready = is_ready

    def is_ready(self):
        return self.ready


@pytest.fixture
def calls_of(monkeypatch):
    """Returns the calls ``(start, stop, measured)`` of a device that is busy or not."""

    def finish(call, share):
        call.ready = True

    monkeypatch.setattr(sources, "wait_until_ready", finish)

    def calls(loader, stop, is_fast=False, most_bytes=None):
        if most_bytes:
            monkeypatch.setattr(sources, "_GROUP_BYTES", most_bytes)
        made, in_flight, read = [], [], []

        def advance(state, feed, key, start, end, measured):
            assert sum(not call.ready for call in in_flight) <= 1  # two with this one
            for step in range(start, end):  # the switch, as JAX clamps its index
                got = feed.next_batch(key, np.int32(step))
                np.testing.assert_array_equal(got["x"], ROWS[step])
            made.append((start, end, measured))
            read.append(loader.place)
            in_flight.append(Call(is_fast))
            return state, {"loss": in_flight[-1]}

        source = sources.Loaded(loader, jax.tree_util.Partial(dict), False, chunk=20)
        taken = source.take(advance, None, None, 0, stop)
        assert [end for _, end, _ in made if end] == read  # none ahead of its call
        return made, taken.step

    return calls


def test_a_call_takes_as_many_batches_as_are_read_while_the_device_is_busy(calls_of):
    made, step = calls_of(Loader(), 20)
    assert made == [(0, 1, 0), (1, 2, 0), (2, 18, 0), (18, 20, 1)]
    assert step == 20


def test_a_call_takes_one_batch_if_the_device_waits_for_the_loader(calls_of):
    made, _ = calls_of(Loader(), 5, is_fast=True)
    assert made == [(0, 1, 0), (1, 2, 0), (2, 3, 0), (3, 4, 0), (4, 5, 1)]


def test_a_call_takes_no_more_than_some_memory(calls_of):
    made, _ = calls_of(Loader(), 7, most_bytes=2 * ROWS[0].nbytes)
    assert made == [(0, 1, 0), (1, 2, 0), (2, 4, 0), (4, 6, 0), (6, 7, 1)]


@pytest.mark.parametrize(("end", "last"), [(4, (2, 4, 1)), (2, (2, 2, 1))])
def test_the_last_batches_of_the_data_are_measured(calls_of, end, last):
    made, step = calls_of(Loader(end), 20)
    assert made == [(0, 1, 0), (1, 2, 0), last]
    assert step == end


def read_only(buffer):
    view = buffer.view()
    view.flags.writeable = False
    return view


@pytest.mark.parametrize("given", [np.asarray, read_only, jnp.asarray])
def test_a_loader_may_fill_the_same_buffer_again(given, unbroken, monkeypatch):
    """One that is aligned, which on CPUs the arrays of JAX share, with all who read."""
    monkeypatch.setattr(sources, "_is_busy", lambda running: len(running) == 2)

    def batches():
        buffer = aligned_copy(ROWS[0])
        for row in ROWS:
            buffer[:] = row
            yield {"x": given(buffer)}

    assert_same_end(train(batches(), chunk=STEPS), unbroken)


def test_a_buffer_may_be_filled_while_steps_wait_for_it():
    """Steps that take longer than their batches; the model's state notes each mean."""

    def batches():
        buffer = aligned_copy(np.zeros((10, 4096), np.float32))
        for step in range(40):
            buffer[:] = step
            yield jnp.asarray(buffer)

    def note(params, seen, batch):
        place, number = jnp.mean(batch), seen[-1].astype(jnp.int32)
        return 0 * params, seen.at[number].set(place).at[-1].add(1)

    optimizer, zero = optax.chain(jm.worker_mean(), optax.sgd(0.1)), jnp.float32(0)
    options = {"chunk": 20, "model_state": jnp.zeros(41)}
    result = jm.run(note, optimizer, zero, batches(), 40, 0, **options)
    np.testing.assert_array_equal(result.model_state[:40], np.arange(40))


def test_a_loader_may_delete_its_arrays(unbroken, monkeypatch):
    """As one does that donates them to the function which makes the next."""
    monkeypatch.setattr(sources, "_is_busy", lambda running: True)

    def batches():
        for row in ROWS:
            array = jnp.array(row)
            yield {"x": array}
            array.delete()

    assert_same_end(train(batches(), chunk=STEPS), unbroken)


def test_arrays_of_a_function_may_be_written_to_once_the_run_has_begun():
    data = np.array(ROWS[0])
    expected = train(jm.full_batch({"x": data.copy()}))

    def overwrite(step, row):
        data.fill(0)

    assert_same_end(train(jm.full_batch({"x": data}), on_chunk=overwrite), expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda: (batch_of(step) for step in range(20)),
        lambda: iter([batch_of(step) for step in range(20)]),
        lambda: map(batch_of, range(20)),
        lambda: Loader(),
    ],
)
def test_iterators_of_any_kind_are_read(make, unbroken):
    assert_same_end(train(make()), unbroken)


def test_extra_arguments_come_by_step_as_with_functions():
    def extra_args(key, step):
        return {"worker_mask": jm.participants(key, step, M, 2)}

    got, expected = (train(b, extra_args=extra_args) for b in (Loader(), drawn))
    assert_same_end(got, expected)


# --- the end of the data --------------------------------------------------------------


@pytest.mark.parametrize("end", [4, 6, 7])
def test_the_end_of_the_data_ends_the_run_at_a_whole_step(end):
    result = train(Loader(end))
    expected = train(Loader(), end)
    assert_same_end(result, expected)
    assert_same_metrics(result, expected)


@pytest.mark.parametrize("step", [0, 4, 6])
def test_ctrl_c_in_the_loader_returns_what_was_trained(step, unbroken, capfd):
    """As out of a worker process of the loader, at an edge or within a chunk."""

    def batches():
        yield from map(batch_of, range(step))
        raise KeyboardInterrupt

    result = train(batches())
    assert result.step == step
    assert f"Interrupted: returning the run at step {step}" in capfd.readouterr().err
    expected = train(Loader(), step) if step else (start(), OPTIMIZER.init(start()))
    for a, b in zip(*map(jax.tree.leaves, (result[:2], expected[:2])), strict=True):
        assert bool((a == b).all())


def test_data_themselves_are_no_loader():
    """Tensors of other libraries among them, which Python can iterate over."""

    class Tensor:
        shape, dtype = (20, M, 2), "float32"

        def __iter__(self):
            return iter(ROWS)

    with pytest.raises(TypeError, match=r"`next_batch` must be a function.*full_batch"):
        train(Tensor())


def test_no_data_at_all_is_an_error():
    with pytest.raises(ValueError, match="`next_batch` gave no batch at all"):
        train(Loader(0))


def test_a_run_of_no_steps_reads_nothing():
    loader = Loader()
    result = train(loader, 0)
    assert (result.step, loader.place, [*result.metrics]) == (0, 0, ["step"])


# --- resumed runs ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Movable, MovableByBytes])
@pytest.mark.parametrize("stop", [4, 6])
def test_an_iterator_with_a_state_resumes_to_the_bit(kind, stop, tmp_path, unbroken):
    """On an edge of the grid and beside it; the first run may end or be longer."""
    pytest.importorskip("orbax.checkpoint")
    train(kind(), stop, checkpoint=tmp_path / "run")
    loader = kind()
    result = train(loader, checkpoint=tmp_path / "run")
    assert loader.place == STEPS
    assert_same_end(result, unbroken)
    assert_same_metrics(result, unbroken)


def test_other_iterators_are_replayed_by_count_if_asked(tmp_path, unbroken):
    pytest.importorskip("orbax.checkpoint")
    train(Loader(), 6, checkpoint=tmp_path / "run")
    with pytest.raises(ValueError, match=r"cannot be resumed at step 6.*`replay=True`"):
        train(Loader(), checkpoint=tmp_path / "run")
    with pytest.raises(ValueError, match="ended after 5 batches, before the step 6"):
        train(Loader(5), checkpoint=tmp_path / "run", replay=True)
    result = train(Loader(), checkpoint=tmp_path / "run", replay=True)
    assert_same_end(result, unbroken)
    assert_same_metrics(result, unbroken)
    again = train(Loader(0), checkpoint=tmp_path / "run")  # which has nothing to do
    assert_same_end(again, unbroken)


def test_data_that_ended_are_found_ended_by_a_resumed_run(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    first = train(Movable(6), checkpoint=tmp_path / "run")
    again = train(Movable(6), checkpoint=tmp_path / "run")
    assert_same_end(again, first)
    assert_same_metrics(again, first)


def test_what_a_loader_raises_is_shown_and_the_last_checkpoint_stands(
    tmp_path, unbroken
):
    pytest.importorskip("orbax.checkpoint")
    with pytest.raises(OSError, match="disk gone") as error:
        train(Movable(failing_at=6), checkpoint=tmp_path / "run")
    assert "`next_batch` raised this at step 6" in error.value.__notes__[0]
    state = start(), OPTIMIZER.init(start())
    assert jm.checkpoint.restore(tmp_path / "run", state)[0] == 4
    assert_same_end(train(Movable(), checkpoint=tmp_path / "run"), unbroken)


@pytest.mark.parametrize("state", [{"place": {1, 2}}, {0: 1}])
def test_states_that_cannot_be_written_are_refused(state, tmp_path):
    """Among them those that JSON would change: numbers as names become strings."""
    pytest.importorskip("orbax.checkpoint")

    class Odd(Movable):
        def get_state(self):
            return state

    loader = Odd()
    with pytest.raises(
        TypeError, match=r"`next_batch.get_state\(\)` must return bytes"
    ):
        train(loader, checkpoint=tmp_path / "run")
    assert loader.place == 0  # before it trains


def test_a_state_that_holds_nan_is_saved(tmp_path, unbroken):
    """The best loss before there is one, say; NumPy's are floats too."""
    pytest.importorskip("orbax.checkpoint")
    found = []

    class Noting(Movable):
        best = (float("nan"), np.float64("nan"), np.float64(0.5))

        def get_state(self):
            return {"place": self.place, "best": self.best}

        def set_state(self, state):
            found.append(state["best"])
            super().set_state(state)

    train(Noting(), 6, checkpoint=tmp_path / "run")
    assert_same_end(train(Noting(), checkpoint=tmp_path / "run"), unbroken)
    np.testing.assert_array_equal(found, [[np.nan, np.nan, 0.5]])


@pytest.mark.parametrize("kind", [Loader, Movable])
def test_an_iterable_goes_on_from_memory_only_by_replay(kind, tmp_path, unbroken):
    """`iter` starts it anew: else it would train on its first batches again."""
    pytest.importorskip("orbax.checkpoint")
    opened = []

    class Data:
        def __iter__(self):
            opened.append(kind())
            return opened[-1]

    first = train(Data(), 6)
    going_on = {"params": first.params, "opt_state": first.opt_state, "step": 6}
    with pytest.raises(ValueError, match=r"from its first batch.* 6: .*`replay=True`"):
        train(Data(), **going_on)
    assert opened[-1].place == 0
    assert_same_end(train(Data(), **going_on, replay=True), unbroken)
    assert opened[-1].place == STEPS
    going_on |= {"replay": True, "checkpoint": tmp_path / "run"}
    train(Data(), 8, **going_on)
    assert_same_end(train(Data(), **going_on), unbroken)
    assert opened[-1].place == STEPS
    assert train(Data(), 6, **going_on | {"checkpoint": None}).step == 6
    assert opened[-1].place == 0  # no step is left to take


def test_data_that_end_where_a_run_goes_on_are_found_ended():
    class Data:
        def __iter__(self):
            return Loader(6)

    first = train(Data())
    going_on = {"params": first.params, "opt_state": first.opt_state, "replay": True}
    assert_same_end(train(Data(), **going_on, step=6), first)
    with pytest.raises(ValueError, match="ended after 6 batches, before the step 7"):
        train(Data(), **going_on, step=7)


@pytest.mark.parametrize("loaded", ["MapDataset", "IterDataset", "DataLoader"])
def test_grain_is_read_and_resumed_to_the_bit(loaded, tmp_path):
    """Shuffled batches, resumed in the middle of an epoch."""
    grain = pytest.importorskip("grain")
    pytest.importorskip("orbax.checkpoint")

    class Rows:
        def __len__(self):
            return len(ROWS)

        def __getitem__(self, index):
            return {"x": ROWS[index]}

        def __repr__(self):  # by which grain knows its data again
            return "Rows"

    def batches():
        if loaded == "DataLoader":
            sampler = grain.samplers.IndexSampler(len(ROWS), shuffle=True, seed=1)
            return grain.DataLoader(data_source=Rows(), sampler=sampler)
        data = grain.MapDataset.source(Rows()).shuffle(seed=1)
        return data if loaded == "MapDataset" else data.to_iter_dataset()

    expected = train(batches())
    train(batches(), 6, checkpoint=tmp_path / "run")
    result = train(batches(), checkpoint=tmp_path / "run")
    assert_same_end(result, expected)
    assert_same_metrics(result, expected)
    in_order = train(Loader())
    assert not bool((result.params["w"] == in_order.params["w"]).all())


# --- what is refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"x": ROWS[0][:2]}, r"at step 3: `\['x'\]` is float32 \(2, 2\), before"),
        ({"x": np.int32(ROWS[0])}, r"`\['x'\]` is int32 \(3, 2\), before float32"),
        ({"y": ROWS[0]}, r"`\['x'\]` is absent, before float32"),
        ({"x": ROWS[0], "none": None}, r"its tree is PyTreeDef.*'none'.*, before"),
    ],
)
def test_batches_of_another_form_are_refused_by_name(other, message):
    batches = [batch_of(0), batch_of(1), batch_of(2), other]
    with pytest.raises(ValueError, match=message):
        train(iter(batches))


def test_batches_without_workers_are_refused():
    with pytest.raises(ValueError, match="batch must have a leading worker axis"):
        train(iter([{"x": np.float32(1)}]))


def test_another_number_of_workers_than_told_is_refused():
    with pytest.raises(ValueError, match=rf"`num_workers` is {M + 1}, but the batch"):
        train(Loader(), num_workers=M + 1)


def test_the_pure_run_refuses_iterators():
    with pytest.raises(TypeError, match=r"got a generator.*cannot be drawn in a pure"):
        jm.run_pure(loss, jm.sign_sgd(0.1), start(), (x for x in [1]), 2, 0)
