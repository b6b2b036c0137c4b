"""Batches: each worker's own samples, drawn by the documented keys, at one price."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from aligned import aligned_copy
from reference_orders import key_words, sample_at

import jaxmedian as jm
from jaxmedian.noise import keys

KEY = jax.random.key(3)
SIZES = (7, 4, 12, 5)
M, LONGEST = len(SIZES), max(SIZES)


def numbered(num_workers=M, num_samples=LONGEST):
    """Sample j of worker i is 1000 i + j; labels travel with their samples."""
    x = 1000 * np.arange(num_workers)[:, None] + np.arange(num_samples)
    return {"x": x[..., None].astype(np.int32), "y": -x.astype(np.int32)}


def places_of(batch):
    """The sample numbers of a batch, after checking that they are a worker's own."""
    rows = np.asarray(batch["x"])[..., 0]
    np.testing.assert_array_equal(rows, -np.asarray(batch["y"]))
    workers = np.arange(rows.shape[-2])[:, None]
    assert (rows // 1000 == workers).all()
    return rows % 1000


def assert_uniform(counts, chance):
    """Counts ``[keys' total]`` of independent events, within 5 of their deviations."""
    counts, total = np.asarray(counts), chance[1]
    deviation = np.sqrt(total * chance[0] * (1 - chance[0]))
    assert np.abs(counts - total * chance[0]).max() < 5 * deviation


# --- all at once, and what is refused -------------------------------------------------


def test_full_batch_serves_the_data_as_it_is():
    data = numbered()
    batch = jm.full_batch(data)(key=None, step=7)
    jax.tree.map(np.testing.assert_array_equal, batch, data)


@pytest.mark.parametrize(
    ("size", "error", "message"),
    [
        (0, ValueError, "`batch_size` must be at least 1; got 0"),
        (13, ValueError, "`batch_size` 13 is more than the 12 samples of a worker"),
        (2.0, TypeError, "`batch_size` must be an int; got 2.0"),
    ],
)
def test_bad_batch_sizes_are_refused(size, error, message):
    with pytest.raises(error, match=message):
        jm.mini_batches(numbered(), size)
    with pytest.raises(error, match=message):
        jm.epochs(numbered(), size, 0, remainder="drop")
    with pytest.raises(ValueError, match="No worker has samples to draw from"):
        jm.mini_batches(numbered(), 2, sizes=np.zeros(M, int))
    if size == 13:
        assert jm.mini_batches(numbered(), size, replace=True)
        assert jm.epochs(numbered(), size, 0)


def test_bad_options_of_epochs_are_refused():
    with pytest.raises(ValueError, match="`remainder` must be one of 'keep', 'drop'"):
        jm.epochs(numbered(), 2, 0, remainder="wrap")
    with pytest.raises(TypeError, match="`key` must be a JAX key or an int; got None"):
        jm.epochs(numbered(), 2, None)
    with pytest.raises(ValueError, match="`sizes` leave no worker a sample"):
        jm.epochs(numbered(), 2, 0, sizes=[0] * M)
    with pytest.raises(ValueError, match="more than the 4 samples of a worker, whose"):
        jm.epochs(numbered(), 5, 0, sizes=SIZES, remainder="drop")
    with pytest.raises(TypeError, match="`sizes` must hold integers"):
        jm.epochs(numbered(), 5, 0, sizes=[1.0] * M)


def test_data_whose_leaves_disagree_are_refused():
    with pytest.raises(ValueError, match="leading worker axis"):
        jm.full_batch({"x": np.ones((3, 2)), "y": np.ones((4, 2))})
    with pytest.raises(ValueError, match="leading worker axis"):
        jm.full_batch({})
    for make in (jm.mini_batches, lambda data, size: jm.epochs(data, size, 0)):
        with pytest.raises(ValueError, match="sample axis of the same length"):
            make({"x": np.ones((3, 2)), "y": np.ones((3, 4))}, 1)
        with pytest.raises(ValueError, match="sample axis"):
            make(np.ones(3), 1)


def test_more_samples_than_indices_are_refused():
    too_long = jax.ShapeDtypeStruct((2, 2**31 + 1), jnp.uint8)
    with pytest.raises(ValueError, match=r"at most 2\^31 samples per worker"):
        jax.eval_shape(lambda data: jm.mini_batches(data, 4)(KEY, 0), too_long)


# --- mini-batches ---------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [None, SIZES])
def test_mini_batches_follow_the_documented_keys(sizes):
    """Sample at place j of the order of fold_in(fold_in(step key, BATCHES), i)."""
    assert int(keys.BATCHES) == 3 * 2**30 + 3
    draw = jax.jit(jm.mini_batches(numbered(), 4, sizes=sizes))
    for step in range(5):
        step_key = jax.random.fold_in(KEY, step)
        expected = []
        for i, n in enumerate(sizes or [LONGEST] * M):
            words = key_words(step_key, 3 * 2**30 + 3, i)
            expected.append([sample_at(place, words, n) for place in range(4)])
        assert places_of(draw(step_key, step)).tolist() == expected


@pytest.mark.parametrize("replace", [False, True])
def test_mini_batches_come_from_a_worker_s_own_data(replace):
    n, size = 10, 6
    draw = jax.jit(jm.mini_batches(numbered(5, n), size, replace=replace))
    repeated, seen = False, [set() for _ in range(5)]
    for step in range(40):
        batch = draw(jax.random.fold_in(jax.random.key(0), step), step)
        assert batch["x"].shape == (5, size, 1)
        places = places_of(batch)
        repeated |= any(len(set(row)) < size for row in places.tolist())
        for worker, row in enumerate(places.tolist()):
            seen[worker] |= set(row)
        assert any((places[0] != places[i]).any() for i in range(1, 5))
    assert repeated == replace
    assert all(own == set(range(n)) for own in seen)


@pytest.mark.parametrize("n", [3, 7, 8])
def test_every_sample_and_every_pair_is_in_a_batch_as_often(n):
    """In b of n batches, and b (b - 1) of n (n - 1); workers and steps independent."""
    size, num_keys = 3, 20_000
    draw = jax.jit(jax.vmap(jm.mini_batches(numbered(2, n), size), (0, None)))
    picked = places_of(draw(jax.random.split(KEY, num_keys), 0))
    holds = (picked[..., None] == np.arange(n)).any(axis=2)  # [keys, workers, n]
    for own in holds.transpose(1, 0, 2):
        pairs = (own.T.astype(float) @ own)[np.triu_indices(n, 1)]
        if n > size:
            assert_uniform(own.sum(axis=0), (size / n, num_keys))
            both = size * (size - 1) / (n * (n - 1))
            assert_uniform(pairs, (both, num_keys))
        else:
            assert (pairs == num_keys).all()
    if n > size:
        for left, right in ((holds[:, 0], holds[:, 1]), (holds[1:, 0], holds[:-1, 0])):
            common = left.astype(float).T @ right  # [n, n]
            assert_uniform(common, ((size / n) ** 2, len(left)))


def test_batches_with_replacement_are_independent_samples():
    """All n^b batches of a worker are as likely, padding left out."""
    num_keys, sizes = 40_000, np.int32([3, 4])
    data = numbered(2, 6)
    draw = jm.mini_batches(data, 3, replace=True, sizes=sizes)
    picked = places_of(
        jax.jit(jax.vmap(draw, (0, None)))(jax.random.split(KEY, num_keys), 0)
    )
    for worker, n in enumerate(sizes):
        assert picked[:, worker].max() < n
        cells = np.bincount(picked[:, worker] @ n ** np.arange(3), minlength=n**3)
        assert cells.size == n**3
        assert_uniform(cells, (1 / n**3, num_keys))


# --- epochs ---------------------------------------------------------------------------


def stream(next_batch, num_steps, first=0):
    """Each worker's samples in the order served, [M, steps * batch]."""
    draw = jax.jit(next_batch)
    batches = [places_of(draw(None, step)) for step in range(first, first + num_steps)]
    return np.concatenate(batches, axis=1)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 32])
@pytest.mark.parametrize("sizes", [None, SIZES])
def test_with_the_remainder_each_epoch_is_a_permutation(batch_size, sizes):
    served = stream(jm.epochs(numbered(), batch_size, 5, sizes=sizes), 30)
    for row, n in zip(served, sizes or [LONGEST] * M, strict=True):
        epochs = row[: len(row) // n * n].reshape(-1, n)
        assert len(epochs) >= 2
        assert (np.sort(epochs, axis=1) == np.arange(n)).all()
        assert len({tuple(epoch) for epoch in epochs.tolist()}) > 1  # a fresh order


@pytest.mark.parametrize("batch_size", [1, 3, 4])
@pytest.mark.parametrize("sizes", [None, SIZES])
def test_without_the_remainder_each_epoch_is_whole_batches(batch_size, sizes):
    next_batch = jm.epochs(numbered(), batch_size, 5, sizes=sizes, remainder="drop")
    served = stream(next_batch, 48)
    for row, n in zip(served, sizes or [LONGEST] * M, strict=True):
        length = n // batch_size * batch_size
        epochs = row[: len(row) // length * length].reshape(-1, length)
        assert len(epochs) >= 4
        assert all(len(set(epoch)) == length for epoch in epochs.tolist())
        left_out = [set(range(n)) - set(epoch) for epoch in epochs.tolist()]
        if length < n:  # the same ones in all epochs: a chance of 5^-11 at most
            assert len({tuple(out) for out in left_out}) > 1


@pytest.mark.parametrize("remainder", ["keep", "drop"])
def test_epochs_follow_the_documented_keys_however_far_the_step(remainder):
    """Place p of epoch e: the order of fold_in^3(key, EPOCHS, i, e), by p."""
    assert int(keys.EPOCHS) == 3 * 2**30 + 4
    size = 4
    next_batch = jm.epochs(numbered(), size, KEY, sizes=SIZES, remainder=remainder)
    draw = jax.jit(next_batch)
    for step in (0, 1, 2, 3, 10, 12_345, 2**30 + 7, 2**31 - 1):
        expected = []
        for i, n in enumerate(SIZES):
            row = []
            for j in range(size):
                if remainder == "keep":
                    epoch, place = divmod(step * size + j, n)
                else:
                    epoch, number = divmod(step, n // size)
                    place = number * size + j
                words = key_words(KEY, 3 * 2**30 + 4, i, epoch)
                row.append(sample_at(place, words, n))
            expected.append(row)
        for asked in (step, jnp.int32(step)):
            assert places_of(draw(jax.random.key(step % 7), asked)).tolist() == expected


def test_orders_of_epochs_are_as_likely_and_independent_of_the_last():
    """The first samples of epochs e, e + 1 and of two workers: all pairs as often."""
    n, num_epochs = 5, 30_000
    next_batch = jm.epochs(numbered(2, n), n, 8)
    served = places_of(
        jax.jit(jax.vmap(next_batch, (None, 0)))(None, jnp.arange(30_000))
    )
    first, second = served[:, 0, 0], served[:, 1, 0]
    for one, other in ((first[1:], first[:-1]), (first, second)):
        cells = np.bincount(one * n + other, minlength=n * n)
        assert_uniform(cells, (1 / n**2, num_epochs))
    for place in range(n):
        counts = np.bincount(served[:, 0, place], minlength=n)
        assert_uniform(counts, (1 / n, num_epochs))


def test_an_empty_worker_is_served_padding_and_the_others_their_own():
    sizes = (0, 4, 12, 5)
    for next_batch in (
        jm.mini_batches(numbered(), 4, sizes=sizes),
        jm.mini_batches(numbered(), 4, sizes=sizes, replace=True),
        jm.epochs(numbered(), 4, 0, sizes=sizes),
        jm.epochs(numbered(), 4, 0, sizes=sizes, remainder="drop"),
    ):
        places = places_of(jax.jit(next_batch)(KEY, 1))
        assert (places < np.array([LONGEST, *sizes[1:]])[:, None]).all()


def test_a_run_walks_through_epochs_by_its_step_and_not_by_its_key():
    """The mean of a worker's samples after whole epochs, whatever the run's key."""

    def loss(params, batch):
        return jnp.sum(params * batch.mean())

    data = np.random.default_rng(0).normal(size=(3, 10)).astype(np.float32)
    ends = [
        jm.run(
            loss,
            jm.median_sgd(1.0),
            jnp.zeros(1),
            jm.epochs(data[:1], 4, 1),
            5,
            key,
            chunk=chunk,
        ).params
        for key, chunk in ((0, 5), (9, 2))
    ]
    np.testing.assert_allclose(ends[0], [-5 * data[0].mean()], rtol=1e-5)
    np.testing.assert_array_equal(*ends)


# --- price ----------------------------------------------------------------------------

FACTORIES = (
    lambda data, sizes: jm.mini_batches(data, 8, sizes=sizes),
    lambda data, sizes: jm.mini_batches(data, 8, replace=True, sizes=sizes),
    lambda data, sizes: jm.epochs(data, 8, 0, sizes=sizes),
    lambda data, sizes: jm.epochs(data, 8, 0, sizes=sizes, remainder="drop"),
)


def equations(jaxpr):
    """Yields all equations of a program, those of its inner functions included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(part, "jaxpr", part)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


@pytest.mark.parametrize("factory", FACTORIES)
def test_a_draw_is_in_proportion_to_the_batch_and_indexes_leaves_of_any_size(factory):
    """The program for 2^31 samples is that for 10, shapes of the data apart.

    A leaf of 2^38 bytes is gathered with its worker and sample axes apart: flat
    positions beyond 32 bits occur nowhere.
    """

    def program(n):
        data = jax.ShapeDtypeStruct((3, n, 64), jnp.uint8)
        sizes = jax.ShapeDtypeStruct((3,), jnp.int32)
        return jax.make_jaxpr(lambda data, sizes: factory(data, sizes)(KEY, 7))(
            data, sizes
        ).jaxpr

    kinds = []
    for n in (10, 2**31):
        counts = collections.Counter()
        for equation in equations(program(n)):
            counts[equation.primitive.name] += 1
            for out in equation.outvars:
                assert np.prod(getattr(out.aval, "shape", ()), dtype=int) <= 3 * 8 * 64
            if equation.primitive.name == "gather" and n == 2**31:
                assert equation.invars[0].aval.shape == (3, n, 64)
                numbers = equation.params["dimension_numbers"]
                assert numbers.operand_batching_dims == (0,)
        kinds.append(counts)
    assert kinds[0] == kinds[1]
    assert kinds[0]["gather"] == 1
    assert not kinds[0]["sort"]


@pytest.mark.parametrize("factory", FACTORIES)
def test_traced_sizes_and_padding_change_nothing(factory):
    known = np.asarray(factory(numbered()["x"], np.int32([9, 8, 12, 10]))(KEY, 5))
    traced = jax.jit(lambda sizes: factory(numbered()["x"], sizes)(KEY, 5))
    np.testing.assert_array_equal(traced(jnp.int32([9, 8, 12, 10])), known)
    padded = factory(numbered(num_samples=500)["x"], np.int32([9, 8, 12, 10]))
    np.testing.assert_array_equal(padded(KEY, 5), known)


@pytest.mark.parametrize("factory", FACTORIES)
def test_sizes_are_those_of_the_call(factory):
    """Also where they lie as arrays of JAX do, which on CPUs may share memory."""
    sizes = aligned_copy(np.uint32([9, 8, 12, 10]))
    next_batch = factory(numbered()["x"], sizes)
    before = np.array(next_batch(KEY, 5))
    sizes[:] = 4
    np.testing.assert_array_equal(next_batch(KEY, 5), before)


@pytest.mark.parametrize("factory", FACTORIES)
def test_equal_settings_compile_once(factory):
    traces = []

    @jax.jit
    def serve(next_batch, step):
        traces.append(step)
        return next_batch(KEY, step)

    for seed in range(3):
        serve(factory(numbered()["x"] + seed, np.int32([9, 8, 12, 10])), seed)
    assert len(traces) == 1
    batch = factory(numbered()["x"], np.int32([9, 8, 12, 10]))
    batch(KEY, 0)
    with jax.no_tracing():
        batch(KEY, 1)
