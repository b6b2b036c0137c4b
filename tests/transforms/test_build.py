"""The vote, the median and the mean against slow loops, and the table of votes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from harness import COUPLINGS, LAWS, awkward, enable_x64, first_update

import jaxmedian as jm

NAN, INF = float("nan"), float("inf")


def some_masks(num_workers):
    """Everybody, nobody, one worker, and a random half."""
    rng = np.random.default_rng(num_workers)
    alone = np.arange(num_workers) == num_workers - 1
    half = rng.random(num_workers) < 0.5
    return np.ones(num_workers, bool), np.zeros(num_workers, bool), alone, half


# --- against the slow loops -----------------------------------------------------------


@pytest.mark.parametrize("num_workers", [1, 2, 3, 4, 5, 11, 20])
@pytest.mark.parametrize("ties", ["zero", "positive"])
def test_the_vote_is_the_slow_loop(num_workers, ties):
    values = awkward(num_workers, 60, nan=True)
    vote = jm.majority_vote(ties=ties)
    expected = reference.vote(values, ties=ties)
    np.testing.assert_array_equal(first_update(vote, values), expected)
    for mask in some_masks(num_workers):
        expected = reference.vote(values, ties=ties, mask=mask)
        got = first_update(vote, values, worker_mask=mask)
        np.testing.assert_array_equal(got, expected)


def test_random_ties_are_the_slow_loop_with_the_documented_bits():
    num_workers = 10  # more than one block of the kernel's loop
    values = awkward(num_workers, 60, nan=True)
    key = jax.random.key(5)
    vote = jm.majority_vote(ties="random", key=key)
    bits = reference.vote_bits(key, shape=values.shape)
    expected = reference.vote(values, ties="random", **bits)
    np.testing.assert_array_equal(first_update(vote, values), expected)
    for mask in some_masks(num_workers):
        expected = reference.vote(values, ties="random", mask=mask, **bits)
        got = first_update(vote, values, worker_mask=mask)
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("num_workers", [1, 2, 3, 4, 7, 20])
@pytest.mark.parametrize("even", ["midpoint", "lower", "upper"])
def test_the_median_is_the_slow_loop(num_workers, even):
    values = awkward(num_workers, 60, nan=True)
    median = jm.coordinate_median(even=even)
    expected = reference.median(values, even=even).astype(np.float32)
    np.testing.assert_array_equal(first_update(median, values), expected)
    for mask in some_masks(num_workers):
        expected = reference.median(values, even=even, mask=mask).astype(np.float32)
        got = first_update(median, values, worker_mask=mask)
        np.testing.assert_array_equal(got, expected)


def test_the_median_is_numpys_where_there_is_no_nan():
    values = np.random.default_rng(3).normal(size=(6, 4, 5)).astype(np.float32)
    got = first_update(jm.coordinate_median(), values)
    np.testing.assert_allclose(got, np.median(values, axis=0), rtol=1.2e-7)


@pytest.mark.parametrize("num_workers", [1, 2, 7, 70])
def test_the_mean_is_numpys_over_those_present(num_workers):
    values = np.random.default_rng(1).normal(size=(num_workers, 50)).astype(np.float32)
    expected = np.mean(values, axis=0, dtype=np.float64)
    got = first_update(jm.worker_mean(), values)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    mask = np.arange(num_workers) % 3 == 0
    hostile = np.where(mask[:, None], values, np.float32(NAN))
    expected = np.mean(values[mask], axis=0, dtype=np.float64)
    got = first_update(jm.worker_mean(), hostile, worker_mask=mask)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    nobody = np.zeros(num_workers, bool)
    got = first_update(jm.worker_mean(), hostile, worker_mask=nobody)
    np.testing.assert_array_equal(got, np.zeros(50))


def test_the_mean_is_summed_in_float32_and_rounded_once():
    values = np.full((512, 3), 1.0, jnp.float16)
    values[1:] = np.float16(2.0**-11)  # a float16 running sum would lose every one
    got = first_update(jm.worker_mean(), values)
    assert got.dtype == np.float16
    np.testing.assert_array_equal(got, np.float16((1 + 511 * 2.0**-11) / 512))


# --- vote and median ------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [1, 3, 5, 11, 41])
def test_the_vote_is_the_sign_of_the_median_where_that_is_not_zero(num_workers):
    values = awkward(num_workers, 3000, seed=num_workers)
    vote = first_update(jm.majority_vote(), values)
    median = first_update(jm.coordinate_median(), values)
    decided = median != 0
    assert decided.sum() > 1000
    assert np.isinf(median).any()
    np.testing.assert_array_equal(vote[decided], np.sign(median[decided]))


def test_the_vote_may_differ_from_a_median_of_zero():
    values = np.float32([[2], [0], [-1], [0], [2]])
    assert first_update(jm.coordinate_median(), values) == 0
    assert first_update(jm.majority_vote(), values) == 1


# --- the table of votes ---------------------------------------------------------------

ABSENT = None  # a worker whose entry must not count, whatever it holds

# Entries of the workers, then how each rule ends them. "bit" is a fair bit; "bits" the
# sum with a worker's fair bit, whose tally of 0 ends in another: +-1/2 in the mean.
TABLE = [
    ([0.0], {"zero": 0, "random": "bit", "positive": 1}),
    ([-0.0], {"zero": 0, "random": "bit", "positive": 1}),
    ([NAN], {"zero": 0, "random": "bit", "positive": 1}),
    ([1.0, 0.0], {"zero": 1, "random": "bits", "positive": 1}),
    ([-1.0, 0.0], {"zero": -1, "random": "bits", "positive": 1}),
    ([-1.0, -0.0], {"zero": -1, "random": "bits", "positive": 1}),
    ([-1.0, NAN], {"zero": -1, "random": "bits", "positive": 1}),
    ([-1.0, -1.0, NAN], {"zero": -1, "random": -1, "positive": -1}),
    ([1.0, -1.0], {"zero": 0, "random": "bit", "positive": 1}),
    ([INF, -INF, -INF], {"zero": -1, "random": -1, "positive": -1}),
    ([-1e-37, 1.0, -1.0], {"zero": -1, "random": -1, "positive": -1}),
    ([-1.0, ABSENT], {"zero": -1, "random": -1, "positive": -1}),
    ([ABSENT, 1.0, -1.0, ABSENT], {"zero": 0, "random": "bit", "positive": 1}),
    ([ABSENT, -1.0, ABSENT, ABSENT], {"zero": -1, "random": -1, "positive": -1}),
    ([0.0, ABSENT], {"zero": 0, "random": "bit", "positive": 1}),
    ([ABSENT], {"zero": 0, "random": 0, "positive": 0}),
    ([ABSENT, ABSENT], {"zero": 0, "random": 0, "positive": 0}),
]


@pytest.mark.parametrize("ties", ["zero", "random", "positive"])
def test_the_table_of_votes_holds_entry_by_entry(ties):
    size = 4000
    options = {"key": 3} if ties == "random" else {}
    vote = jm.majority_vote(ties=ties, **options)
    most = max(len(entries) for entries, _ in TABLE)
    update = jax.jit(vote.update)
    state = vote.init(jnp.zeros(size))
    for entries, ends in TABLE:
        for hidden in (1.0, NAN, -INF):  # what absent workers hold does not matter
            padded = entries + [ABSENT] * (most - len(entries))
            column = [hidden if entry is ABSENT else entry for entry in padded]
            mask = np.array([entry is not ABSENT for entry in padded])
            values = np.repeat(np.float32(column)[:, None], size, axis=1)
            got, _ = update(values, state, jnp.zeros(size), worker_mask=mask)
            if ends[ties] in ("bit", "bits"):
                mean = 0.0 if ends[ties] == "bit" else np.sign(entries[0]) / 2
                sd = np.sqrt((1 - mean**2) / size)
                assert set(np.unique(got)) == {-1, 1}, entries
                assert abs(np.mean(got) - mean) < 5 * sd, entries
            else:
                np.testing.assert_array_equal(got, ends[ties], err_msg=str(entries))


@pytest.mark.parametrize("ties", ["zero", "positive"])
def test_the_table_of_votes_holds_without_a_mask(ties):
    for entries, ends in TABLE:
        if ABSENT not in entries:
            got = first_update(jm.majority_vote(ties=ties), np.float32(entries))
            assert got == ends[ties], entries


def test_zero_bits_differ_between_workers_and_from_tally_ties():
    size = 4000
    zeros = np.zeros((2, size), np.float32)
    alone = [np.array([True, False]), np.array([False, True])]
    vote = jm.majority_vote(ties="random", key=0)
    first, second = (first_update(vote, zeros, worker_mask=mask) for mask in alone)
    opposed = np.float32([[1.0], [-1.0]]) * np.ones((2, size), np.float32)
    tally = first_update(vote, opposed)
    for a, b in ((first, second), (first, tally), (second, tally)):
        assert abs(np.mean(a * b)) < 5 / np.sqrt(size)


@pytest.mark.parametrize("build", [jm.majority_vote, jm.coordinate_median])
def test_nobody_present_gives_zero_under_noise_too(build):
    noise = jm.noise.gaussian(jm.noise.relative(1.0), "systematic")
    values = np.full((2, 5), 3.0, np.float32)
    nobody = np.zeros(2, bool)
    got = first_update(build(noise, 0), values, worker_mask=nobody)
    np.testing.assert_array_equal(got, np.zeros(5))


# --- NaN ------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", [NAN, INF, -INF])
def test_a_broken_minority_leaves_the_median_in_the_range_of_the_others(broken):
    rng = np.random.default_rng(0)
    honest = rng.normal(size=(4, 500)).astype(np.float32)
    values = np.concatenate([np.full((3, 500), broken, np.float32), honest])
    values = rng.permuted(values, axis=0)
    got = first_update(jm.coordinate_median(), values)
    assert (got >= honest.min(axis=0)).all()
    assert (got <= honest.max(axis=0)).all()


@pytest.mark.parametrize(
    "scale",
    [0.5, jm.noise.relative(0.5, statistic="median")],
    ids=["number", "relative-median"],
)
def test_a_broken_minority_leaves_the_noisy_median_finite(scale):
    values = np.random.default_rng(0).normal(size=(5, 200)).astype(np.float32)
    values[1], values[4] = NAN, INF
    got = first_update(jm.coordinate_median(jm.noise.gaussian(scale), 0), values)
    assert np.isfinite(got).all()
    assert np.abs(got).max() < 10


def test_a_majority_of_nan_is_plus_infinity():
    values = np.float32([[NAN], [-NAN], [1.0]])
    assert first_update(jm.coordinate_median(), values) == INF


def test_the_midpoint_of_large_values_does_not_overflow():
    values = np.full((2, 1), 3e38, np.float32)
    assert first_update(jm.coordinate_median(), values) == np.float32(3e38)


# --- noise: fused against chained -----------------------------------------------------


def ulp(values):
    return np.spacing(np.abs(values).astype(np.float32)).astype(np.float64)


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("law", LAWS)
def test_the_fused_noisy_vote_is_the_chained_one(law, coupling):
    """noisy_sign_sgd == chain(add_worker_noise, majority_vote, scale), 1e6 entries."""
    b, size, rate = 0.7, 1_000_000, 0.25
    noise = jm.noise.Noise(law, b, coupling)
    grads = np.random.default_rng(2).normal(size=(3, size)).astype(np.float32)
    params = jnp.zeros(size)
    fused = jm.noisy_sign_sgd(rate, noise, 11)
    add = jm.add_worker_noise(noise, 11)
    vote_and_scale = optax.chain(jm.majority_vote(), optax.scale(-rate))

    @jax.jit
    def chained(grads):
        noisy, _ = add.update(grads, add.init(params), params)
        update, _ = vote_and_scale.update(noisy, vote_and_scale.init(params), params)
        return update, noisy

    got = first_update(fused, grads)
    expected, noisy = jax.tree.map(np.asarray, chained(grads))
    floor = 8 * ulp(np.maximum(np.abs(grads), np.float32(b)))
    doubtful = (np.abs(noisy) < floor).any(axis=0)
    mismatches = int(np.sum(got != expected))
    print(f"{law} {coupling}: {mismatches} differ, {int(doubtful.sum())} doubtful")
    np.testing.assert_array_equal(got[~doubtful], expected[~doubtful])
    assert mismatches < 1e-5 * size
    assert doubtful.sum() < 1e-4 * size  # the exception stays an exception
    assert set(np.unique(got)) == {-rate, rate}


@pytest.mark.parametrize(
    ("law", "b"), [*((law, 0.7) for law in LAWS), ("gaussian", 1e-3)]
)
def test_fused_signs_are_right_from_eight_ulp_of_zero_on(law, b):
    """Gradients put 9 to 64 ulp beside minus their noise: the hardest that count."""
    size = 200_000
    noise = jm.noise.Noise(law, b)
    add = jax.jit(jm.add_worker_noise(noise, 4).update)
    state, params = jm.add_worker_noise(noise, 4).init(None), jnp.zeros(size)
    drawn = np.asarray(add(np.zeros((1, size), np.float32), state, params)[0])
    rng = np.random.default_rng(0)
    steps = rng.integers(9, 65, size=(1, size)) * rng.choice([-1, 1], size=(1, size))
    grads = steps * ulp(np.maximum(np.abs(drawn), np.float32(b))) - drawn
    grads = grads.astype(np.float32)
    noisy = np.asarray(add(grads, state, params)[0])
    counts = np.abs(noisy) >= 8 * ulp(np.maximum(np.abs(grads), np.float32(b)))
    assert counts.mean() > 0.95
    got = first_update(jm.majority_vote(noise, 4), grads)
    wrong = (got != np.sign(noisy[0])) & counts[0]
    assert wrong.sum() == 0, (noisy[0][wrong][:5], grads[0][wrong][:5])


@pytest.mark.parametrize("ties", ["random", "positive"])
def test_fused_and_chained_votes_share_ties_and_masks(ties):
    """NaN and half-empty populations under noise follow the table on both paths."""
    values = awkward(4, 600, nan=True)
    noise = jm.noise.laplace(0.5, "systematic")
    options = {"ties": ties} | ({"key": 9} if ties == "random" else {})
    fused = jm.majority_vote(noise, 9, ties=ties)
    chained = optax.chain(jm.add_worker_noise(noise, 9), jm.majority_vote(**options))
    for mask in some_masks(4):
        np.testing.assert_array_equal(
            first_update(fused, values, worker_mask=mask),
            first_update(chained, values, worker_mask=mask),
        )


@pytest.mark.parametrize(
    ("law", "coupling"),
    [("gaussian", "independent"), ("laplace", "systematic")],
)
def test_the_noisy_median_is_the_slow_loop_over_the_documented_noise(law, coupling):
    b, key = 0.5, jax.random.key(21)
    values = np.random.default_rng(8).normal(size=(5, 80)).astype(np.float32)
    got = first_update(
        jm.coordinate_median(jm.noise.Noise(law, b, coupling), key), values
    )
    drawn = reference.worker_words(key, coupling, shape=values.shape)
    noisy = values + b * reference.unit_noise(law, drawn)
    np.testing.assert_allclose(got, reference.median(noisy), atol=2e-6)
    mask = np.array([True, False, True, True, True])
    got = first_update(
        jm.coordinate_median(jm.noise.Noise(law, b, coupling), key),
        values,
        worker_mask=mask,
    )
    drawn = reference.worker_words(key, coupling, shape=values.shape, mask=mask)
    noisy = values + b * reference.unit_noise(law, drawn)
    np.testing.assert_allclose(got, reference.median(noisy, mask=mask), atol=2e-6)


def test_a_fused_median_is_rounded_to_bfloat16_once():
    key, b = jax.random.key(2), 0.01
    values = np.ones((4, 2000), jnp.bfloat16)
    got = first_update(jm.coordinate_median(jm.noise.gaussian(b), key), values)
    drawn = reference.worker_words(key, "independent", shape=values.shape)
    exact = reference.median(1 + b * reference.unit_noise("gaussian", drawn))
    once = exact.astype(np.float32).astype(jnp.bfloat16)
    np.testing.assert_array_equal(got, once)
    rows = (1 + b * reference.unit_noise("gaussian", drawn)).astype(np.float32)
    twice = reference.median(rows.astype(jnp.bfloat16)).astype(jnp.bfloat16)
    assert (once != twice).any()  # or this test could not tell


# --- scale 0 --------------------------------------------------------------------------


def reaches_zero(count):
    """A schedule: 1/2 in the first step, then 0."""
    return jnp.where(count > 0, np.float32(0), np.float32(0.5))


def at_step_one(transform, grads):
    """The second update, in which `reaches_zero` is 0."""
    params = jnp.zeros(grads.shape[1:])
    state = transform.init(params)
    if "count" in getattr(state, "_fields", ()):
        state = state._replace(count=jnp.int32(1))
    return transform.update(grads, state, params)[0]


def plain_rule(rule):
    if rule == "median":
        return jm.coordinate_median()
    return jm.majority_vote(ties=rule, **({"key": 6} if rule == "random" else {}))


def noisy_rule(rule, noise):
    if rule == "median":
        return jm.coordinate_median(noise, 6)
    return jm.majority_vote(noise, 6, ties=rule)


@pytest.mark.parametrize(
    ("rule", "law", "coupling"),
    [
        ("zero", "gaussian", "independent"),
        ("random", "laplace", "systematic"),
        ("median", "uniform", "independent"),
    ],
)
def test_a_scale_of_zero_is_no_noise(rule, law, coupling):
    """By number, traced number and schedule; fused and chained; ties, NaN and all."""
    values = awkward(3, 90, nan=True)
    plain = plain_rule(rule)
    expected = np.asarray(jax.jit(lambda g: at_step_one(plain, g))(values))
    assert len(np.unique(expected)) > 1

    @jax.jit
    def every_way(grads, traced_zero):
        results = []
        for scale in (0, traced_zero, reaches_zero):
            noise = jm.noise.Noise(law, scale, coupling)
            results.append(at_step_one(noisy_rule(rule, noise), grads))
            noisy = at_step_one(jm.add_worker_noise(noise, 6), grads)
            results.append(at_step_one(plain, noisy))
        return results

    for got in jax.tree.leaves(every_way(values, jnp.float32(0))):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("law", ["logistic", "laplace", "uniform"])
def test_a_scale_of_zero_is_no_noise_under_any_law(law):
    values = awkward(2, 90, nan=True)
    noise = jm.noise.Noise(law, 0.0)
    got = first_update(jm.majority_vote(noise, 6, ties="positive"), values)
    expected = first_update(jm.majority_vote(ties="positive"), values)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("law", "statistic"), [("gaussian", "max"), ("uniform", "median")]
)
def test_relative_noise_on_a_dead_leaf_is_no_noise(law, statistic):
    """Fused and chained; the living leaf beside it does get noise."""
    dead = np.float32([[0.0, -0.0, NAN, INF], [0.0, 0.0, NAN, -INF]])
    alive = np.random.default_rng(0).normal(size=(2, 50)).astype(np.float32)
    grads = {"alive": alive, "dead": dead}
    noise = jm.noise.Noise(law, jm.noise.relative(2.0, statistic))
    for plain, fused in (
        (jm.majority_vote(), jm.majority_vote(noise, 0)),
        (jm.coordinate_median(), jm.coordinate_median(noise, 0)),
    ):
        expected = first_update(plain, grads)
        chained = optax.chain(jm.add_worker_noise(noise, 0), plain)
        for transform in (fused, chained):
            got = first_update(transform, grads)
            np.testing.assert_array_equal(got["dead"], expected["dead"])
            assert (got["alive"] != expected["alive"]).any()


# --- shapes, types, state -------------------------------------------------------------


@pytest.mark.parametrize(
    "build", [jm.majority_vote, jm.coordinate_median, jm.worker_mean]
)
def test_leaves_of_any_rank_keep_their_shape(build):
    rng = np.random.default_rng(0)
    grads = {
        "scalar": rng.normal(size=(3,)).astype(np.float32),
        "empty": np.zeros((3, 0), np.float32),
        "deep": [rng.normal(size=(3, 2, 4, 1)).astype(np.float32)],
    }
    got = first_update(build(), grads)
    one_by_one = jax.tree.map(
        lambda g: first_update(build(), g.reshape(3, -1)).reshape(g.shape[1:]), grads
    )
    jax.tree.map(np.testing.assert_array_equal, got, one_by_one)


@pytest.mark.parametrize("ties", ["random", "positive"])
def test_the_packed_transport_gives_the_votes_of_the_tally(ties):
    values = awkward(5, 60, nan=True)
    options = {"key": 1} if ties == "random" else {}
    packed = jm.majority_vote(ties=ties, transport="packed", **options)
    tally = jm.majority_vote(ties=ties, **options)
    got = first_update(packed, values)
    np.testing.assert_array_equal(got, first_update(tally, values))
    assert set(np.unique(got)) == {-1, 1}


def test_float64_is_computed_in_float64():
    with enable_x64(True):
        values = 1 + 1e-12 * np.arange(5.0)[:, None]
        assert first_update(jm.coordinate_median(), values) == 1 + 2e-12
        assert first_update(jm.worker_mean(), values)[0] == pytest.approx(
            1 + 2e-12, abs=1e-15
        )
        assert first_update(jm.majority_vote(), values - values[3]) == -1
        noise = jm.noise.gaussian(1e-12)
        got = first_update(jm.coordinate_median(noise, jax.random.key(0)), values)
        drawn = reference.worker_words(
            jax.random.key(0), "independent", shape=values.shape
        )
        exact = reference.median(
            values + 1e-12 * reference.unit_noise("gaussian", drawn)
        )
        np.testing.assert_allclose(got - 1, exact - 1, atol=1e-15)


def test_aggregators_under_a_vmap_axis_join_the_workers():
    """`axis_name` is any axis in scope: here one worker a place of a vmap."""
    values = awkward(6, 60)
    params = jnp.zeros(60)
    for build in (jm.majority_vote, jm.coordinate_median, jm.worker_mean):
        spread = build(axis_name="workers")

        def update(block, spread=spread):
            return spread.update(block, spread.init(params), params)[0]

        got = jax.jit(jax.vmap(update, axis_name="workers"))(values[:, None])
        expected = first_update(build(), values)
        for copy in got:
            np.testing.assert_allclose(copy, expected, rtol=1e-6)


def test_numpy_gradients_need_no_jit():
    """More workers than one loop step adds: an index that is traced.

    A mean outside jit may differ in the last bit.
    """
    x = awkward(21, 30)
    for rule in (jm.majority_vote(), jm.coordinate_median(), jm.worker_mean()):
        plain, _ = rule.update(x, rule.init(None))
        np.testing.assert_allclose(plain, first_update(rule, x), rtol=1e-6)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("coupling", COUPLINGS)
def test_the_sign_of_a_scale_does_not_matter(law, coupling):
    """A schedule past its end, a traced number: b and -b are one law, to the bit."""
    x = awkward(5, 60)

    @jax.jit
    def both(scale):
        noises = [
            jm.noise.Noise(law, scale, coupling),
            jm.noise.Noise(law, lambda count: scale, coupling),
            jm.noise.Noise(law, jm.noise.relative(scale), coupling),
        ]
        rules = [
            rule
            for noise in noises
            for rule in (jm.majority_vote(noise, 3), jm.coordinate_median(noise, 3))
        ]
        return [rule.update(x, rule.init(None))[0] for rule in rules]

    for negative, positive in zip(both(-0.4), both(0.4), strict=True):
        np.testing.assert_array_equal(negative, positive)
    vote = both(-1e-9)[0]
    nonzero = slice(20, 40)  # random numbers, which noise of 1e-9 does not turn
    plain = np.sign(np.sign(x[:, nonzero]).sum(axis=0))
    np.testing.assert_array_equal(vote[nonzero], plain)


def test_a_scale_of_nan_is_a_vote_without_signs_and_a_median_of_infinity():
    x = np.ones((3, 8), np.float32)
    noise = jm.noise.gaussian(lambda count: jnp.float32(jnp.nan))
    for ties, expected in (("zero", 0), ("positive", 1)):
        np.testing.assert_array_equal(
            first_update(jm.majority_vote(noise, 0, ties=ties), x), np.full(8, expected)
        )
    median = first_update(jm.coordinate_median(noise, 0), x)
    np.testing.assert_array_equal(median, np.full(8, np.inf))
