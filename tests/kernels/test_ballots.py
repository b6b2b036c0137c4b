"""Tallies and their ends against the table of votes and a slow NumPy oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from harness import enable_x64, make_noise
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxmedian.kernels import ballots
from jaxmedian.kernels.ballots import count_votes
from jaxmedian.noise import keys, laws

KEY = jax.random.key(3, impl="threefry2x32")


def zero_keys_of(num_workers):
    numbers = keys.ZERO_BITS + jnp.arange(num_workers, dtype=jnp.uint32)
    return jax.random.key_data(keys.fold_in_each(KEY, numbers))


def words_of(key_words, size):
    """The words of `jax.random` itself, ``[..., size]``."""
    key_words = np.asarray(key_words)
    drawn = [
        jax.random.bits(
            jax.random.wrap_key_data(k, impl="threefry2x32"), (size,), "uint32"
        )
        for k in key_words.reshape(-1, 2)
    ]
    return np.stack(drawn).reshape(*key_words.shape[:-1], size)


def slow_tally(values, *, ties, bits=None, present=None):
    """Worker by worker; ``bits`` +1 or -1, of the shape of ``values``."""
    tally = np.zeros(values.shape[1:], np.int32)
    for i, row in enumerate(values):
        if present is None or present[i]:
            unsigned = {"zero": 0, "positive": 1}.get(ties)
            unsigned = bits[i] if ties == "random" else unsigned
            tally += np.where(row > 0, 1, np.where(row < 0, -1, unsigned))
    return tally


def tally(values, *, ties="zero", noise=None, present=None, key_words=None):
    """The kernel, jitted, with everything that can be traced traced."""
    zero_keys = zero_keys_of(values.shape[0]) if ties == "random" else None

    def run(values, zero_keys, present, scale, key_words):
        leaf_noise = noise
        if noise is not None:
            leaf_noise = noise._replace(scale=scale, key_words=key_words)
        return count_votes(
            values, noise=leaf_noise, ties=ties, zero_keys=zero_keys, present=present
        )

    scale, key_words = (None, None) if noise is None else noise[1:3]
    result = jax.jit(run)(values, zero_keys, present, scale, key_words)
    assert result.dtype == np.int32
    return np.asarray(result)


def bits_of(num_workers, size):
    return np.where(words_of(zero_keys_of(num_workers), size) >= 2**31, 1, -1)


def values_with_zeros(num_workers, size, seed=0):
    """Mostly zeros, -0.0 and NaN in the first half, none of them in the second."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(num_workers, size)).astype(np.float32)
    choices = [0.0, -0.0, np.nan, -np.nan, 1.0, -2.0, np.inf, -np.inf]
    values[:, : size // 2] = rng.choice(choices, size=(num_workers, size // 2))
    return values


# --- the table of votes ---------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, -0.0, np.nan, -np.nan])
@pytest.mark.parametrize("ties", ballots.TIE_RULES)
def test_what_a_worker_without_a_sign_counts(value, ties):
    size = 200
    alone = tally(np.full((1, size), value, np.float32), ties=ties)
    if ties == "random":
        np.testing.assert_array_equal(alone, bits_of(1, size)[0])
        assert 60 < np.sum(alone > 0) < 140  # 5.6 sigma of 200 fair bits
    else:
        assert (alone == (1 if ties == "positive" else 0)).all()


@pytest.mark.parametrize("value", [0.0, np.nan, 2.0, -3.0])
@pytest.mark.parametrize("ties", ballots.TIE_RULES)
def test_absent_workers_count_nothing(value, ties):
    values = np.full((2, 50), value, np.float32)
    nobody = np.zeros(2, bool)
    assert (tally(values, ties=ties, present=nobody) == 0).all()
    second = tally(values, ties=ties, present=np.array([False, True]))
    bits = bits_of(2, 50)
    expected = slow_tally(values[1:], ties=ties, bits=bits[1:])
    np.testing.assert_array_equal(second, expected)
    assert (np.abs(second) == (0 if ties == "zero" and not abs(value) > 0 else 1)).all()


def test_how_a_tally_ends():
    tallies = jnp.int32([-3, -1, 0, 0, 1, 5])
    bits = jnp.int32([1, 1, 1, -1, -1, -1])
    at_zero = {"zero": [0, 0], "random": [1, -1], "positive": [1, 1]}
    for ties in ballots.TIE_RULES:
        tie_bits = bits if ties == "random" else None
        ended = ballots.decide(tallies, ties=ties, tie_bits=tie_bits, anybody=None)
        assert ended.tolist() == [-1, -1, *at_zero[ties], 1, 1]
        for anybody in (True, False):
            somebody = ballots.decide(
                tallies, ties=ties, tie_bits=tie_bits, anybody=jnp.bool_(anybody)
            )
            assert somebody.tolist() == [anybody * vote for vote in ended.tolist()]


# --- tallies without noise ------------------------------------------------------------


@pytest.mark.parametrize("ties", ballots.TIE_RULES)
@pytest.mark.parametrize("num_workers", [1, 2, 4, 5, 7, 8, 9, 16, 17, 41, 300])
def test_tallies(num_workers, ties):
    """Both sides of a block of rows, one block and several."""
    values = values_with_zeros(num_workers, 60)
    bits = bits_of(num_workers, 60)
    expected = slow_tally(values, ties=ties, bits=bits)
    np.testing.assert_array_equal(tally(values, ties=ties), expected)
    present = np.random.default_rng(1).random(num_workers) < 0.7
    expected = slow_tally(values, ties=ties, bits=bits, present=present)
    actual = tally(values, ties=ties, present=present)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("num_zeros", [0, 1])
def test_random_bits_where_none_or_one_is_needed(num_zeros):
    """Bits are skipped where nobody needs any: a single zero must bring them back."""
    values = np.random.default_rng(2).normal(size=(11, 500)).astype(np.float32)
    values[5, 250] *= 1 - num_zeros
    bits = bits_of(11, 500)
    bits[5, 250] = -1 if words_of(zero_keys_of(11), 500)[5, 250] < 2**31 else 1
    expected = slow_tally(values, ties="random", bits=bits)
    np.testing.assert_array_equal(tally(values, ties="random"), expected)


@pytest.mark.parametrize("num_workers", [2**15 - 1, 2**15])
def test_random_bits_of_very_many_workers(num_workers):
    values = np.ones((num_workers, 2), np.float32)
    values[:, 1] = 0
    signed, unsigned = tally(values, ties="random").tolist()
    assert signed == num_workers
    assert abs(unsigned) < 6 * np.sqrt(num_workers)
    assert (unsigned - num_workers) % 2 == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_dtypes(dtype):
    with enable_x64(True):
        values = jnp.asarray(values_with_zeros(13, 60), dtype)
        expected = slow_tally(np.asarray(values.astype("float64")), ties="zero")
        np.testing.assert_array_equal(tally(values), expected)


@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("ties", ballots.TIE_RULES)
def test_tiny_leaves(size, ties):
    values = np.full((9, size), -1, np.float32)
    np.testing.assert_array_equal(tally(values, ties=ties), np.full(size, -9))


# --- tallies with noise ---------------------------------------------------------------


def noisy_values(values, noise):
    """g + b xi with xi sampled from `jax.random`'s words, summed in float64."""
    drawn = words_of(noise.key_words, values.shape[1])
    if noise.slots is not None:
        drawn = drawn[None] + np.asarray(noise.slots)[:, None]
    t = ((drawn >> 9) + 0.5) * 2.0**-22 - 1
    xi = jax.jit(noise.law.sample)(jnp.asarray(t, noise.scale.dtype))
    scale = np.float64(noise.scale)
    return np.asarray(values, np.float64) + scale * np.asarray(xi, np.float64)


def assert_votes_agree(actual, values, noise, ties="zero", **options):
    """Equal, except where a sum is within 8 units in the last place of 0."""
    sums = noisy_values(values, noise)
    unit = np.finfo(np.asarray(noise.scale).dtype).eps
    doubtful = np.abs(sums) <= 8 * unit * np.maximum(np.abs(values), noise.scale)
    doubtful = doubtful.any(axis=0)
    assert doubtful.mean() < 0.02
    expected = slow_tally(sums, ties=ties, **options)
    np.testing.assert_array_equal(actual[~doubtful], expected[~doubtful])


@pytest.mark.parametrize("law", laws.LAWS)
@pytest.mark.parametrize("coupling", ["independent", "systematic"])
@pytest.mark.parametrize("num_workers", [3, 14])
def test_noisy_votes(law, coupling, num_workers):
    """|g| / b from 0 to 200: from where noise decides to where it cannot."""
    rng = np.random.default_rng(4)
    values = rng.normal(size=(num_workers, 5000)) * 10 ** rng.uniform(-3, 2, 5000)
    values = values.astype(np.float32)
    noise = make_noise(law, coupling, num_workers)
    counted = tally(values, noise=noise)
    assert_votes_agree(counted, values, noise)
    assert np.mean(counted != slow_tally(values, ties="zero")) > 0.2


@pytest.mark.parametrize("magnitude", [3.0, 4.5, 5.2])
def test_gaussian_votes_in_the_tail(magnitude):
    """Where a CDF near 1 has no digits left: 2^20 words, some in each tail of 3."""
    values = np.full((2, 2**20), magnitude, np.float32)
    values[1] *= -1
    noise = make_noise("gaussian", "independent", 2, scale=1.0)
    for row in (0, 1):
        alone = noise._replace(key_words=noise.key_words[row : row + 1])
        counted = tally(values[row : row + 1], noise=alone)
        assert_votes_agree(counted, values[row : row + 1], alone)
        if magnitude == 3.0:
            flips = np.sum(counted != np.sign(values[row]))
            assert 1000 < flips < 2000  # 1415 expected, sigma 38


@pytest.mark.parametrize("ties", ["random", "positive"])
def test_noisy_votes_with_masks(ties):
    values = np.random.default_rng(5).normal(size=(13, 400)).astype(np.float32)
    values[:, :20] = np.nan
    values[::2, 20:40] = np.nan
    noise = make_noise("gaussian", "independent", 13)
    present = np.random.default_rng(6).random(13) < 0.6
    counted = tally(values, ties=ties, noise=noise, present=present)
    bits = bits_of(13, 400)
    assert_votes_agree(counted, values, noise, ties, bits=bits, present=present)


@pytest.mark.parametrize("ties", ballots.TIE_RULES)
@pytest.mark.parametrize("law", laws.LAWS)
def test_scale_zero_is_no_noise(law, ties):
    values = values_with_zeros(5, 120)
    noise = make_noise(law, "independent", 5, scale=0.0)
    expected = slow_tally(values, ties=ties, bits=bits_of(5, 120))
    np.testing.assert_array_equal(tally(values, ties=ties, noise=noise), expected)


def test_noise_of_float64():
    with enable_x64(True):
        values = np.random.default_rng(7).normal(size=(5, 300))
        noise = make_noise("gaussian", "independent", 5, dtype=np.float64)
        assert_votes_agree(tally(values, noise=noise), values, noise)


# --- programs -------------------------------------------------------------------------


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("ties", ballots.TIE_RULES)
@pytest.mark.parametrize("noisy", [True, False])
def test_tallies_trace_inside_shard_map(noisy, ties, check_vma):
    """Every device counts its own rows; their sum is the tally of all."""
    num_devices, rows_each, size = 4, 9, 60
    mesh = jax.make_mesh((num_devices,), ("x",), axis_types=(AxisType.Auto,))
    num_workers = num_devices * rows_each
    values = values_with_zeros(num_workers, size, seed=8)
    noise = make_noise("uniform", "independent", num_workers)
    present = np.random.default_rng(0).random(num_workers) < 0.8

    def run(values, zero_keys, present, key_words):
        leaf_noise = noise._replace(key_words=key_words) if noisy else None
        counted = count_votes(
            values, noise=leaf_noise, ties=ties, zero_keys=zero_keys, present=present
        )
        return jax.lax.psum(counted, "x")

    shard = P("x")
    counted = jax.jit(
        jax.shard_map(
            run, mesh=mesh, in_specs=(shard,) * 4, out_specs=P(), check_vma=check_vma
        )
    )(values, zero_keys_of(num_workers), present, noise.key_words)
    sums = noisy_values(values, noise) if noisy else values
    bits = bits_of(num_workers, size)
    expected = slow_tally(sums, ties=ties, bits=bits, present=present)
    np.testing.assert_array_equal(counted, expected)


def test_random_bits_under_vmap():
    """One batch entry needs bits, another none: the condition is each one's own."""
    values = np.stack([values_with_zeros(9, 80), np.ones((9, 80), np.float32)])
    keys = zero_keys_of(9)
    counted = jax.jit(
        jax.vmap(
            lambda rows: count_votes(
                rows, noise=None, ties="random", zero_keys=keys, present=None
            )
        )
    )(values)
    expected = [slow_tally(v, ties="random", bits=bits_of(9, 80)) for v in values]
    np.testing.assert_array_equal(counted, expected)


@pytest.mark.parametrize("ties", ballots.TIE_RULES)
def test_no_implicit_promotion(ties):
    for num_workers in (3, 17):
        rows = jax.ShapeDtypeStruct((num_workers, 70), jnp.float32)
        mask = jax.ShapeDtypeStruct((num_workers,), jnp.bool_)
        keys = jax.ShapeDtypeStruct((num_workers, 2), jnp.uint32)
        for noise in (None, make_noise("gaussian", "independent", num_workers)):
            jax.eval_shape(
                lambda rows, keys, mask, noise=noise: count_votes(
                    rows, noise=noise, ties=ties, zero_keys=keys, present=mask
                ),
                rows,
                keys,
                mask,
            )
