"""Medians of rows against slow NumPy and Python oracles, plan by plan."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from harness import enable_x64, make_noise
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxmedian.kernels import bisection, networks, selection, tiles
from jaxmedian.kernels.networks import from_order_keys, to_order_keys
from jaxmedian.noise import laws

SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -3e38]


def awkward_rows(num_workers, size, seed=0, dtype=np.float32):
    """A quarter each: normal, tied, special values, mostly infinite or NaN."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(num_workers, size))
    kind = np.arange(size) % 4
    rows[:, kind == 1] = np.round(rows[:, kind == 1])
    special = rng.choice(SPECIAL, size=rows.shape)
    rows[:, kind == 2] = special[:, kind == 2]
    broken = (kind == 3) & (rng.random(rows.shape) < 0.5)
    rows[broken] = rng.choice([np.inf, -np.inf, np.nan], size=rows.shape)[broken]
    with np.errstate(over="ignore"):
        return rows.astype(dtype)


def slow_median(rows, *, even="midpoint", present=None):
    """One coordinate at a time, with Python's sort."""
    rows = np.asarray(rows)
    result = np.zeros(rows.shape[1], rows.dtype)
    here = [i for i in range(rows.shape[0]) if present is None or present[i]]
    for j in range(rows.shape[1] if here else 0):
        column = [np.inf if np.isnan(rows[i, j]) else float(rows[i, j]) for i in here]
        column.sort(key=lambda value: (value, not np.signbit(value)))
        a, b = column[(len(here) - 1) // 2], column[len(here) // 2]
        middle = {"lower": a, "upper": b, "midpoint": a / 2 + b / 2}[even]
        result[j] = a if len(here) % 2 else middle
    return result


def assert_same_bits(actual, expected):
    """Equal, the sign of zero included; NaN only where NaN is expected."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual, expected)
    finite = ~np.isnan(expected)
    np.testing.assert_array_equal(
        np.signbit(actual[finite]), np.signbit(expected)[finite]
    )


def median(rows, *, noise=None, even="midpoint", present=None):
    def run(rows, noise_arrays, present):
        leaf_noise = None if noise is None else noise._replace(**noise_arrays)
        return selection.median_of_rows(
            rows, noise=leaf_noise, even=even, present=present
        )

    arrays = {}
    if noise is not None:
        arrays = {"scale": noise.scale, "key_words": noise.key_words}
        if noise.slots is not None:
            arrays["slots"] = noise.slots
    return jax.jit(run)(rows, arrays, present)


# --- order ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_order_keys_rise_with_the_values_and_come_back(dtype):
    with enable_x64(True):
        ascending = [-np.inf, -3e4, -1.0, -1e-5, -0.0, 0.0, 1e-5, 1.0, 3e4, np.inf]
        values = jnp.asarray(ascending, dtype)
        keys = to_order_keys(values)
        assert keys.dtype.itemsize == values.dtype.itemsize
        assert (np.diff(np.asarray(keys).astype(object)) > 0).all()
        back = from_order_keys(keys, values.dtype)
        assert_same_bits(back.astype("float64"), np.asarray(values.astype("float64")))
        for nan in (np.nan, -np.nan):
            key = to_order_keys(jnp.asarray([nan], dtype))
            assert key[0] == keys[-1]


# --- the two selections ---------------------------------------------------------------


def run_network(columns, ranks):
    """The comparators, one by one, on columns ``[n, ...]``."""
    wires = list(columns)
    for i, j in networks.comparators(len(wires), ranks):
        assert i < j
        wires[i], wires[j] = (
            np.minimum(wires[i], wires[j]),
            np.maximum(wires[i], wires[j]),
        )
    return [wires[rank] for rank in ranks]


@pytest.mark.parametrize("n", range(1, 13))
def test_networks_select_every_rank_of_every_input_of_bits(n):
    """What sorts all inputs of zeros and ones sorts everything (Knuth 5.3.4 Z)."""
    bits = np.array(list(itertools.product([0, 1], repeat=n))).T
    for rank in range(n):
        (selected,) = run_network(bits, (rank,))
        np.testing.assert_array_equal(selected, np.sort(bits, axis=0)[rank])


@pytest.mark.parametrize("n", [16, 31, 64, 101, 112])
def test_large_networks_select_the_middle(n):
    rng = np.random.default_rng(n)
    ones = np.arange(n)[:, None] < np.arange(n + 1)  # every number of ones
    bits = rng.permuted(np.tile(ones, 200), axis=0).astype(int)
    ranks = ((n - 1) // 2, n // 2) if n % 2 == 0 else (n // 2,)
    expected = np.sort(bits, axis=0)[list(ranks)]
    np.testing.assert_array_equal(run_network(bits, ranks), expected)


def test_pruned_networks_have_the_documented_size():
    sizes = [len(networks.comparators(n, (n // 2,))) for n in (3, 5, 11, 51, 101)]
    assert sizes == [3, 8, 29, 295, 790]


@pytest.mark.parametrize(
    ("num_rows", "dtype"),
    [
        *[(n, "int32") for n in (1, 2, 15, 17, 113, 1025, 2100)],
        *[(113, "int16"), (113, "int64")],
    ],
)
def test_bisection_selects_as_a_sort_does(num_rows, dtype):
    with enable_x64(True):
        limits = np.iinfo(dtype)
        rng = np.random.default_rng(num_rows)
        keys = rng.integers(
            limits.min, limits.max, (num_rows, 40), dtype, endpoint=True
        )
        keys[:, :10] = rng.integers(-2, 3, (num_rows, 10))
        keys[:, 10:20] = rng.choice([limits.min, limits.max, -1, 0], (num_rows, 10))
        keys[:, 20:25] >>= limits.bits // 2  # the leading digits tie, the last differ
        rank = jax.jit(bisection.select, static_argnums=1)
        low = (num_rows - 1) // 2
        for ranks in {(low, min(low + 1, num_rows - 1)), (num_rows - 1,), (0,)}:
            ranks = tuple(sorted(set(ranks)))
            expected = np.sort(keys, axis=0)[list(ranks)]
            np.testing.assert_array_equal(rank(keys, ranks), expected)


# --- medians without noise ------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [1, 2, 3, 4, 7, 16, 112, 113])
def test_medians_of_awkward_rows(num_workers):
    rows = awkward_rows(num_workers, 120)
    assert_same_bits(median(rows), slow_median(rows))


@pytest.mark.parametrize("num_workers", [2, 6, 114])
@pytest.mark.parametrize("even", ["lower", "upper"])
def test_even_rules(num_workers, even):
    rows = awkward_rows(num_workers, 120, seed=1)
    assert_same_bits(median(rows, even=even), slow_median(rows, even=even))


@pytest.mark.parametrize("even", selection.EVEN_RULES)
@pytest.mark.parametrize("num_workers", [1, 4, 5])
def test_every_mask_of_few_workers(num_workers, even):
    rows = awkward_rows(num_workers, 40, seed=2)
    masks = np.array(list(itertools.product([False, True], repeat=num_workers)))
    actual = jax.jit(
        jax.vmap(
            lambda mask: selection.median_of_rows(
                rows, noise=None, even=even, present=mask
            )
        )
    )(masks)
    for mask, result in zip(masks, actual, strict=True):
        assert_same_bits(result, slow_median(rows, even=even, present=mask))


@pytest.mark.parametrize("num_workers", [23, 112, 113])
def test_every_number_of_present_workers(num_workers):
    rows = awkward_rows(num_workers, 24, seed=3)
    order = np.random.default_rng(0).permutation(num_workers)
    masks = order < np.arange(num_workers + 1)[:, None]
    run = jax.jit(
        lambda mask: selection.median_of_rows(
            rows, noise=None, even="midpoint", present=mask
        )
    )
    for mask in masks:
        assert_same_bits(run(mask), slow_median(rows, present=mask))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
@pytest.mark.parametrize("num_workers", [4, 114])
def test_dtypes(num_workers, dtype):
    with enable_x64(True):
        rows = jnp.asarray(awkward_rows(num_workers, 60, 4, jnp.dtype(dtype)))
        expected = slow_median(np.asarray(rows.astype("float64")))
        actual = median(rows)
        assert actual.dtype == rows.dtype
        assert_same_bits(actual, np.asarray(jnp.asarray(expected).astype(dtype)))


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 700, 1000])
def test_tiles_cover_the_coordinates(size, monkeypatch):
    monkeypatch.setattr(tiles, "CPU_TILE", 113 * 100)
    rows = awkward_rows(113, size, seed=5)
    assert_same_bits(median(rows), slow_median(rows))


# --- medians with noise ---------------------------------------------------------------

SIZE = 300


def noisy_rows(rows, noise):
    """g + b xi from `jax.random`, in float64 once xi is drawn."""

    def words(key_words):
        key = jax.random.wrap_key_data(key_words, impl="threefry2x32")
        return np.asarray(jax.random.bits(key, rows.shape[1:], "uint32"))

    if noise.slots is None:
        drawn = np.stack([words(key_words) for key_words in noise.key_words])
    else:
        drawn = words(noise.key_words)[None] + np.asarray(noise.slots)[:, None]
    t = ((drawn >> 9) + 0.5) * 2.0**-22 - 1
    xi = jax.jit(noise.law.sample)(jnp.asarray(t, noise.scale.dtype))
    return rows.astype(np.float64) + float(noise.scale) * np.asarray(xi, np.float64)


def assert_close_by_ulps(actual, expected, ulps):
    unit = np.finfo(np.asarray(actual).dtype).eps * np.maximum(1, np.abs(expected))
    assert (np.abs(np.asarray(actual, np.float64) - expected) <= ulps * unit).all()


@pytest.mark.parametrize(
    ("num_workers", "law", "coupling"),
    [
        *[(3, law, "independent") for law in laws.LAWS],
        *[(15, "gaussian", "independent"), (16, "gaussian", "independent")],
        *[(17, "laplace", "independent"), (113, "gaussian", "independent")],
        *[(4, "gaussian", "systematic"), (32, "uniform", "systematic")],
        *[(33, "uniform", "systematic"), (112, "logistic", "systematic")],
        (113, "uniform", "systematic"),
    ],
)
def test_noisy_medians(num_workers, law, coupling, monkeypatch):
    monkeypatch.setattr(tiles, "CPU_TILE", num_workers * 150)
    rows = np.random.default_rng(6).normal(size=(num_workers, SIZE)).astype(np.float32)
    noise = make_noise(law, coupling, num_workers)
    expected = np.median(noisy_rows(rows, noise), axis=0)
    assert_close_by_ulps(median(rows, noise=noise), expected, ulps=4)
    # The oracle feels the noise: it is not within rounding of the noise-free median.
    assert np.mean(np.abs(expected - np.median(rows, axis=0)) > 1e-3) > 0.9


@pytest.mark.parametrize("num_workers", [5, 40, 114])
def test_noise_and_masks(num_workers):
    rows = np.random.default_rng(7).normal(size=(num_workers, SIZE)).astype(np.float32)
    noise = make_noise("gaussian", "independent", num_workers)
    present = np.random.default_rng(8).random(num_workers) < 0.7
    expected = np.median(noisy_rows(rows, noise)[present], axis=0)
    actual = median(rows, noise=noise, present=present)
    assert_close_by_ulps(actual, expected, ulps=4)


@pytest.mark.parametrize("num_workers", [6, 40, 113])
def test_scale_zero_is_no_noise(num_workers):
    rows = awkward_rows(num_workers, 120, seed=9)
    noise = make_noise("gaussian", "independent", num_workers, scale=0.0)
    expected = slow_median(rows)
    np.testing.assert_array_equal(median(rows, noise=noise), expected)


def test_noise_of_float64_and_bfloat16_rows():
    with enable_x64(True):
        rows = np.random.default_rng(10).normal(size=(17, SIZE))
        noise = make_noise("gaussian", "independent", 17, dtype=np.float64)
        expected = np.median(noisy_rows(rows, noise), axis=0)
        assert_close_by_ulps(median(rows, noise=noise), expected, ulps=4)
    half = jnp.asarray(rows, jnp.bfloat16)
    noise = make_noise("gaussian", "independent", 17)
    expected = np.median(noisy_rows(np.asarray(half.astype("float32")), noise), axis=0)
    actual = median(half, noise=noise)
    assert actual.dtype == np.float32
    assert_close_by_ulps(actual, expected, ulps=4)


# --- programs -------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [16, 113])
def test_each_word_is_drawn_once(num_workers):
    """XLA must not copy the noise into every use of a row: that takes minutes."""
    rows = np.ones((num_workers, 5000), np.float32)
    noise = make_noise("gaussian", "independent", num_workers)

    def run(rows, key_words):
        return selection.median_of_rows(
            rows,
            noise=noise._replace(key_words=key_words),
            even="midpoint",
            present=None,
        )

    program = jax.jit(run).lower(rows, noise.key_words).compile().as_text()
    rotations = program.count(" shift-left(")  # 20 rounds of Threefry, 1 each
    assert 20 <= rotations < 40


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("num_workers", [3, 17, 113])
@pytest.mark.parametrize("masked", [True, False])
def test_medians_trace_inside_shard_map(num_workers, check_vma, masked, monkeypatch):
    """Rows, keys and masks that differ by device: each device has its own medians."""
    monkeypatch.setattr(tiles, "CPU_TILE", num_workers * 64)
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,))
    rows = awkward_rows(num_workers, 400, seed=11)
    noise = make_noise("uniform", "independent", num_workers)
    noise_keys = jnp.stack([noise.key_words, noise.key_words + np.uint32(1)])
    masks = np.random.default_rng(0).random((2, num_workers)) < 0.8

    def run(rows, key_words, mask):
        return selection.median_of_rows(
            rows,
            noise=noise._replace(key_words=key_words[0]),
            even="midpoint",
            present=mask[0] if masked else None,
        )

    sharded = jax.jit(
        jax.shard_map(
            run,
            mesh=mesh,
            in_specs=(P(None, "x"), P("x"), P("x")),
            out_specs=P("x"),
            check_vma=check_vma,
        )
    )(rows, noise_keys, masks)
    for device in range(2):
        part = slice(200 * device, 200 * (device + 1))
        alone = jax.jit(run)(
            rows[:, part], noise_keys[device][None], masks[device][None]
        )
        np.testing.assert_array_equal(sharded[part], alone)


@pytest.mark.parametrize("num_workers", [4, 40, 114])
def test_medians_under_vmap(num_workers, monkeypatch):
    monkeypatch.setattr(tiles, "CPU_TILE", num_workers * 100)
    rows = np.random.default_rng(12).normal(size=(num_workers, SIZE)).astype(np.float32)
    noise = make_noise("logistic", "independent", num_workers)
    scales = jnp.float32([0.0, 0.3, 2.0])

    def run(scale, mask):
        return selection.median_of_rows(
            rows, noise=noise._replace(scale=scale), even="midpoint", present=mask
        )

    masks = np.random.default_rng(0).random((3, num_workers)) < 0.8
    for scale, mask, actual in zip(
        scales, masks, jax.jit(jax.vmap(run))(scales, masks), strict=True
    ):
        expected = noisy_rows(rows, noise._replace(scale=scale))[mask]
        assert_close_by_ulps(actual, np.median(expected, axis=0), ulps=4)


def test_no_implicit_promotion():
    for num_workers, noise in [
        (4, None),
        (114, None),
        (17, make_noise("gaussian", "independent", 17)),
        (33, make_noise("gaussian", "systematic", 33)),
    ]:
        rows = jax.ShapeDtypeStruct((num_workers, 70), jnp.float32)
        mask = jax.ShapeDtypeStruct((num_workers,), jnp.bool_)
        jax.eval_shape(
            lambda rows, mask, noise=noise: selection.median_of_rows(
                rows, noise=noise, even="midpoint", present=mask
            ),
            rows,
            mask,
        )
