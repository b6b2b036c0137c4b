"""Hostile workers: closed forms, every message on a grid, and the library itself."""

import itertools
import math

import jax
import numpy as np
import pytest

import jaxmedian as jm
from jaxmedian import theory
from jaxmedian.noise import Noise, relative

LAWS = ("gaussian", "laplace", "logistic", "uniform")
COUPLINGS = ("independent", "systematic")


def skewed(num_workers, seed=0, coordinates=None):
    shape = num_workers if coordinates is None else (num_workers, coordinates)
    return np.random.default_rng(seed).gamma(0.7, size=shape) * 3 - 1


def negative_hypergeometric(num_workers, f, rank):
    """P(the rank-th of the honest, in a random order of all, has the place k)."""
    honest = num_workers - f
    return [
        math.comb(k, rank - 1)
        * math.comb(num_workers - 1 - k, honest - rank)
        / math.comb(num_workers, honest)
        for k in range(num_workers)
    ]


# --- closed forms: equal workers ------------------------------------------------------


@pytest.mark.parametrize(("num_workers", "f"), [(3, 1), (7, 2), (11, 5), (101, 30)])
def test_equal_workers_with_independent_uniform_noise(num_workers, f):
    """Order statistics of uniforms: Beta laws."""
    honest, scale, high = num_workers - f, 0.7, (num_workers + 1) // 2
    noise = Noise("uniform", scale)
    shift = theory.hostile_median_shift(np.full(honest, 5.0), noise, f)
    up = math.sqrt(3) * scale * (2 * high / (honest + 1) - 1)
    assert shift == pytest.approx((-up, up), rel=1e-12)
    share = high * (honest + 1 - high) / ((honest + 1) ** 2 * (honest + 2))
    error = up**2 + 12 * scale**2 * share
    # The end of the range: a central split varies more, but is right on average.
    central = 12 * scale**2 / (4 * (honest + 2))
    found = theory.hostile_median_error(np.full(honest, 5.0), noise, f)
    assert found == pytest.approx(max(error, central), rel=1e-9)


@pytest.mark.parametrize(("num_workers", "f"), [(3, 1), (5, 1), (5, 2), (7, 3)])
def test_equal_workers_with_systematic_uniform_noise(num_workers, f):
    """The noises are equally spaced, and f random ones of them are left out."""
    honest, scale, high = num_workers - f, 0.7, (num_workers + 1) // 2
    noise = Noise("uniform", scale, "systematic")
    middle = math.sqrt(3) * scale * ((2 * np.arange(num_workers) + 1) / num_workers - 1)
    errors = []
    for low in range(f + 1):
        law = negative_hypergeometric(num_workers, f, high - low)
        errors.append(law @ middle**2 + scale**2 / num_workers**2)
    up = negative_hypergeometric(num_workers, f, high) @ middle
    values = np.full(honest, 5.0)
    shift = theory.hostile_median_shift(values, noise, f)
    assert shift == pytest.approx((-up, up), rel=1e-10)
    found = theory.hostile_median_error(values, noise, f)
    assert found == pytest.approx(max(errors), rel=1e-10)


def test_one_of_three():
    """The worse of two: E max(X, Y) of Gaussians (Clark), and both must vote +."""
    first, second, scale = 1.0, 2.5, 0.8
    apart = (second - first) / (scale * math.sqrt(2))
    unit = Noise("gaussian", 1.0)
    maximum = second * unit.cdf(apart) + first * unit.cdf(-apart)
    maximum += scale * math.sqrt(2) * unit.pdf(apart)
    down, up = theory.hostile_median_shift([first, second], Noise("gaussian", 0.8), 1)
    assert up == pytest.approx(maximum - 1.75, rel=1e-12)
    assert down == pytest.approx(-up, rel=1e-12)
    vote = theory.hostile_vote([first, second], Noise("gaussian", 0.8), 1)
    assert vote.plus == pytest.approx(unit.cdf(1.25) * unit.cdf(3.125), rel=1e-14)


def test_without_noise_the_hostile_choose_an_honest_value():
    values, noise = [1.0, 2.0, 4.0, 9.0, 9.5], Noise("laplace", 0.0)  # mean 5.1
    for f, low, high in ((0, 4.0, 4.0), (1, 3.0, 6.5), (2, 2.0, 9.0), (4, 1.0, 9.5)):
        shift = theory.hostile_median_shift(values, noise, f)
        assert shift == pytest.approx((low - 5.1, high - 5.1), abs=1e-12)
        error = max((low - 5.1) ** 2, (high - 5.1) ** 2)
        found = theory.hostile_median_error(values, noise, f)
        assert found == pytest.approx(error, abs=1e-12)
    votes = [theory.hostile_vote([1.0, 1.0, -1.0], noise, f) for f in (0, 1, 2)]
    assert votes == [(1, 0, 0), (0, 0, 1), (0, 1, 0)]


# --- the law of everybody, the hostile far away ---------------------------------------


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize(
    ("honest", "f", "even"),
    [(4, 1, "midpoint"), (3, 2, "midpoint"), (4, 2, "midpoint"), (3, 1, "lower")],
)
def test_the_hostile_are_workers_far_away(law, coupling, honest, f, even):
    values, noise = skewed(honest, 3), Noise(law, 0.9, coupling)
    everybody = [
        np.concatenate([values, np.full(low, -1e3), np.full(f - low, 1e3)])
        for low in range(f + 1)
    ]
    moments = np.array([theory.median_moments(u, noise, even) for u in everybody])
    mean, variance = moments.T
    mean = mean - values.mean()
    shift = theory.hostile_median_shift(values, noise, f, even)
    assert shift == pytest.approx((mean[-1], mean[0]), abs=1e-10)
    error = theory.hostile_median_error(values, noise, f, even)
    assert error == pytest.approx((mean**2 + variance).max(), rel=1e-8)


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_no_hostile_workers(coupling):
    values, noise = skewed(5, 1, 3), Noise("gaussian", 0.9, coupling)
    bias = theory.median_bias(values, noise)
    shift = theory.hostile_median_shift(values, noise, 0)
    np.testing.assert_allclose(shift, [bias, bias], rtol=1e-9)
    mean, variance = theory.median_moments(values, noise)
    error = (mean - values.mean(axis=0)) ** 2 + variance
    np.testing.assert_allclose(theory.hostile_median_error(values, noise, 0), error)
    vote = theory.vote_probability(values, noise)
    np.testing.assert_array_equal(theory.hostile_vote(values, noise, 0), vote)


def test_no_hostile_among_more_workers_than_permutations_are_listed_for():
    """From b = 4.16 on the mean of nine is exactly unbiased, though its law is not."""
    noise = Noise("uniform", 5.0, "systematic")
    assert theory.hostile_median_shift(np.arange(9.0), noise, 0) == (0.0, 0.0)


# --- every message --------------------------------------------------------------------


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_no_messages_on_a_grid_do_more_harm(coupling):
    """All pairs of 10 messages of two hostile workers, on the same draws."""
    values, noise, f = skewed(3, 5), Noise("laplace", 1.1, coupling), 2
    mean, draws = values.mean(), 10_000
    unit = theory.simulation.unit_noise(
        noise, jax.random.key(0), draws, np.zeros((5, 1))
    )
    honest = values + noise.scale * unit[:, :3, 0]
    shifts, errors = [], []
    grid = [-np.inf, *np.linspace(-6, 8, 8), np.inf]
    for messages in itertools.combinations_with_replacement(grid, f):
        sent = np.broadcast_to(messages, (draws, f))
        medians = np.sort(np.concatenate([honest, sent], axis=1), axis=1)[:, 2]
        off = medians - mean
        sigma = off.std() / math.sqrt(draws)
        shifts.append((off.mean(), sigma))
        errors.append(((off**2).mean(), (off**2).std() / math.sqrt(draws)))
    down, up = theory.hostile_median_shift(values, noise, f)
    for found, (simulated, sigma) in ((down, min(shifts)), (up, max(shifts))):
        assert abs(found - simulated) < 5 * sigma
    simulated, sigma = max(errors)
    found = theory.hostile_median_error(values, noise, f)
    assert abs(found - simulated) < 5 * sigma


@pytest.mark.parametrize("law", ["gaussian", "uniform"])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("f", [1, 2, 3])
def test_votes_counted_one_pattern_after_the_other(law, sign, f):
    values, noise = sign * np.array([0.3, -0.1, 2.0, 0.2, -0.4]), Noise(law, 1.2)
    up = noise.cdf(values / noise.scale)
    expected = {1: 0.0, -1: 0.0, 0: 0.0}
    for votes in itertools.product((1, -1), repeat=5):
        chance = np.prod(
            [p if v > 0 else 1 - p for v, p in zip(votes, up, strict=True)]
        )
        expected[int(np.sign(sum(votes) - sign * f))] += chance
    found = theory.hostile_vote(values, noise, f)
    assert found == pytest.approx((expected[1], expected[-1], expected[0]), rel=1e-12)


@pytest.mark.parametrize(("honest", "f"), [(4, 1), (3, 2), (4, 2)])
def test_systematic_votes_average_over_permutations(honest, f):
    values, noise = skewed(honest, 2) + 1.2, Noise("logistic", 1.5, "systematic")
    each = []
    for permutation in itertools.permutations(range(honest + f)):
        found = theory.hostile_vote(values, noise, f, permutation=permutation)
        each.append(found)
    points = 20_001
    position = (np.arange(points)[:, None] + 0.5) / points
    slots = np.array(permutation[:honest]) / (honest + f)
    noisy = values + noise.scale * noise.quantile((position + slots) % 1.0)
    tally = np.sign(noisy).sum(axis=1) - f
    walked = [(tally > 0).mean(), (tally < 0).mean(), (tally == 0).mean()]
    assert found == pytest.approx(walked, abs=2 * (honest + f) / points)
    average = theory.hostile_vote(values, noise, f)
    assert average == pytest.approx(np.mean(each, axis=0), abs=1e-12)


# --- the library ----------------------------------------------------------------------


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_the_noisy_median_of_the_library_meets_the_law(coupling):
    values, f, steps, copies = skewed(4, 7), 1, 400, 64
    noise = Noise("gaussian", 0.8, coupling)
    rows = np.repeat([*values, np.inf], copies).reshape(5, copies).astype(np.float32)

    def estimate(key):
        return jm.perturbed_median(rows, noise, key)

    keys = jax.random.split(jax.random.key(1), steps)
    medians = np.asarray(jax.jit(jax.vmap(estimate))(keys), np.float64)
    per_step = medians.mean(axis=1) - values.mean()  # coordinates share a permutation
    sigma = per_step.std(ddof=1) / math.sqrt(steps)
    up = theory.hostile_median_shift(values, noise, f).up
    assert abs(per_step.mean() - up) < 5 * sigma


def test_pivotal_votes_are_as_harmful_as_the_law_says():
    values, f, copies = np.array([1.0, 0.2, -0.3, 1.5, 0.4]), 2, 20_000
    noise, key = Noise("uniform", 1.0), 3
    honest = np.repeat(values, copies).reshape(5, copies)
    rows = np.concatenate([honest, honest[:f]]).astype(np.float32)
    attack = jm.attacks.pivotal_votes([5, 6], noise, key)
    vote = jm.majority_vote(noise, key)

    @jax.jit
    def cast(rows):
        sent, _ = attack.update(rows, attack.init(rows[0]))
        return vote.update(sent, vote.init(rows[0]))[0]

    found = float((np.asarray(cast(rows)) > 0).mean())
    plus = theory.hostile_vote(values, noise, f).plus
    assert abs(found - plus) < 5 * math.sqrt(plus * (1 - plus) / copies)


# --- choosing b, and the coupling -----------------------------------------------------


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize(
    ("rule", "honest", "f"), [("median", 4, 1), ("vote", 5, 2), ("descent", 5, 1)]
)
def test_no_scale_on_a_grid_is_better_against_the_hostile(coupling, rule, honest, f):
    values = skewed(honest, 4, 3) + 0.5
    mean = values.mean(axis=0)
    best = getattr(theory.best_scale(values, "uniform", rule, f=f), coupling)

    def loss(scale):
        noise = Noise("uniform", float(scale), coupling)
        if rule == "median":
            return theory.hostile_median_error(values, noise, f).mean()
        plus, minus, _ = theory.hostile_vote(values, noise, f)
        if rule == "descent":
            return -(mean @ (plus - minus)) / np.abs(mean).sum()
        return -np.where(mean > 0, plus, minus).mean()

    sign = 1 if rule == "median" else -1
    assert loss(best.scale) == pytest.approx(sign * best.value, rel=1e-12)
    others = [loss(scale) for scale in np.geomspace(1e-3, 30, 60)]
    assert sign * best.value <= min([*others, loss(0.0)]) + 2e-4


def test_the_midpoint_against_the_hostile_at_its_best_scale():
    """Four honest and two hostile: the bound that spares double integrals holds."""
    values = skewed(4, 9, 2)
    best = theory.best_scale(values, "uniform", f=2).independent
    errors = [
        np.mean(theory.hostile_median_error(values, Noise("uniform", b), 2))
        for b in (0.0, *np.geomspace(3e-2, 5, 6), best.scale)
    ]
    assert best.value == pytest.approx(errors[-1], rel=1e-12)
    assert best.value <= min(errors) * (1 + 1e-6)


def test_the_simulated_coupling_against_the_hostile():
    values = skewed(4, 6, 2)  # and two hostile: enough workers to simulate
    best = theory.best_scale(values, f=2).systematic
    noise = Noise("gaussian", best.scale, "systematic")
    error = np.mean(theory.hostile_median_error(values, noise, 2))
    assert best.value == pytest.approx(error, rel=5 * math.sqrt(2 / 2**15))


@pytest.mark.parametrize("rule", ["median", "vote"])
def test_the_crossover_is_where_systematic_noise_turns_worse(rule):
    values = skewed(5, 8, 4) + 1.0
    noise = Noise("gaussian", 1.5)
    found = theory.hostile_crossover(values, noise, rule)
    turned = []
    for f in range(3):
        honest = values[: 5 - f]
        mean = honest.mean(axis=0)
        for coupling in COUPLINGS:
            coupled = Noise("gaussian", 1.5, coupling)
            expected = np.mean(theory.hostile_median_error(honest, coupled, f))
            if rule == "vote":
                vote = theory.hostile_vote(honest, coupled, f)
                expected = np.where(mean > 0, vote.plus, vote.minus).mean()
            assert getattr(found, coupling)[f] == pytest.approx(expected, rel=1e-12)
        gain = found.independent[f] - found.systematic[f]
        if (gain if rule == "median" else -gain) < 0:
            turned.append(f)
    assert found.f == (turned[0] if turned else None)


def test_the_crossover_of_equal_workers():
    """f liars against M - f voters of P(+) = p: S = (M - f) p decides by M / 2."""
    found = theory.hostile_crossover(np.ones(101), Noise("uniform", 2.0), "vote")
    p = 0.5 + 1 / (4 * math.sqrt(3))
    assert abs(found.f - 101 * (1 - 0.5 / p)) < 1.0
    assert (found.systematic[: found.f] >= found.independent[: found.f]).all()
    assert found.systematic[found.f + 3] < 0.6 * found.independent[found.f + 3]
    same = theory.hostile_crossover([1.0, 1.0, 1.0], Noise("gaussian", 0.0), "vote")
    assert same.f is None


# --- what is refused ------------------------------------------------------------------

FUNCTIONS = (
    theory.hostile_median_shift,
    theory.hostile_median_error,
    theory.hostile_vote,
)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_bad_numbers_of_hostile_workers(function):
    noise = Noise("gaussian", 1.0)
    with pytest.raises(ValueError, match="less than half of all workers; got 3"):
        function([1.0, 2.0, 3.0], noise, 3)
    with pytest.raises(ValueError, match="`f` must be >= 0"):
        function([1.0, 2.0, 3.0], noise, -1)
    for bad in (1.0, True, "1", None):
        with pytest.raises(TypeError, match="`f` must be an integer"):
            function([1.0, 2.0, 3.0], noise, bad)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_scales_and_permutations_that_do_not_fit(function):
    with pytest.raises(ValueError, match="hostile workers would move a relative one"):
        function([1.0, 2.0], Noise("gaussian", relative(0.1)), 1)
    with pytest.raises(ValueError, match="belongs to systematic noise"):
        function([1.0, 2.0], Noise("gaussian", 1.0), 1, permutation=[0, 1, 2])
    with pytest.raises(ValueError, match=r"each of 0..2 once"):
        function(
            [1.0, 2.0], Noise("gaussian", 1.0, "systematic"), 1, permutation=[0, 1]
        )
    with pytest.raises(TypeError, match="`noise` must be a description"):
        function([1.0, 2.0], 1.0, 1)
    with pytest.raises(ValueError, match="must be finite"):
        function([1.0, np.inf], Noise("gaussian", 1.0), 1)


def test_many_systematic_workers_need_a_permutation():
    values, noise = skewed(7), Noise("gaussian", 1.0, "systematic")
    with pytest.raises(ValueError, match=r"7 \+ 2 workers.*at most 8.*hostile_vote"):
        theory.hostile_median_shift(values, noise, 2)
    down, up = theory.hostile_median_shift(values, noise, 2, permutation=np.arange(9))
    assert down < up
    assert 0 < theory.hostile_vote(values, noise, 2).plus < 1


def test_what_the_choices_refuse():
    with pytest.raises(ValueError, match="less than half"):
        theory.best_scale([1.0, 2.0], f=2)
    with pytest.raises(ValueError, match="`rule` must be one of median, vote"):
        theory.hostile_crossover([1.0, 2.0, 3.0], Noise("gaussian", 1.0), "mean")
    with pytest.raises(ValueError, match="mean 0 in every coordinate"):
        theory.hostile_crossover([-1.0, 1.0], Noise("gaussian", 1.0), "vote")
    with pytest.raises(ValueError, match="mean 0 in every coordinate"):
        theory.hostile_crossover([0.1, 0.2, -0.3], Noise("gaussian", 1.0), "vote")
