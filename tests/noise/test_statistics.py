"""Sampling meets theory: fixed seeds, exact expectations, 5 sigma or more.

The exact values are PAPER.md's, or are worked out here by quadrature over the shared
uniform of systematic noise. One permutation serves a step, so the coordinates of a step
are not independent draws there: such tests pool at least 40 steps, or fix the order.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from harness import LAWS, params_like

import jaxmedian as jm
from jaxmedian.noise.laws import LAWS as LAW_TABLE
from jaxmedian.noise.leaf_noise import LeafNoise

U = np.array([1.0, 2.0, 10.0])

# law, b: E[median], Var[median], P(vote = +1) for u = (1, 2, 10)
INDEPENDENT = {
    ("gaussian", 1): (2.1996412265, 0.7605021376, 0.9963905720),
    ("gaussian", 5): (3.7520870393, 13.7520318805, 0.8442074808),
    ("gaussian", 20): (4.2884566897, 182.2733138192, 0.6253104640),
    ("laplace", 1): (2.1896752710, 0.7740012533, 0.9964075491),
    ("laplace", 5): (3.5804839525, 12.2311151718, 0.8797851774),
    ("laplace", 20): (4.2560274734, 133.6880887239, 0.6756281312),
    ("logistic", 1): (2.1947864691, 0.7672299657, 0.9963705060),
    ("logistic", 5): (3.6887146195, 13.0842010367, 0.8540332276),
    ("logistic", 20): (4.2801021661, 160.8428724603, 0.6396865149),
    ("uniform", 1): (2.2077989476, 0.7490206498, 1.0000000000),
    ("uniform", 5): (3.8359010235, 14.4546135693, 0.8299358737),
    ("uniform", 20): (4.2945713702, 234.5808912593, 0.5936991374),
}
SYSTEMATIC = {
    ("gaussian", 1): (2.2451055442, 0.6948177280, 1.0),
    ("gaussian", 5): (4.3333333333, 9.2746718405, 0.9336765304),
    ("uniform", 1): (2.2698003589, 0.6574074074, 1.0),
    ("uniform", 20): (4.3333333333, 60.6666666667, 0.6876388375),
}


def noisy_steps(values, noise, num_steps, size, key=0):
    """Draws noisy values `[steps, M, size]`, the same u_i in each coordinate."""
    transform = jm.add_worker_noise(noise, key)
    grads = np.repeat(np.float32(values)[:, None], size, axis=1)
    params = params_like(grads)

    @jax.jit
    def draw(grads):
        def body(state, _):
            noisy, state = transform.update(grads, state, params)
            return state, noisy

        return jax.lax.scan(body, transform.init(params), length=num_steps)[1]

    return np.asarray(draw(grads))


# --- independent noise ----------------------------------------------------------------


@pytest.mark.parametrize("law", LAWS)
def test_median_and_vote_of_three_workers_meet_the_exact_table(law):
    size = 200_000
    params = jnp.zeros(size)

    @jax.jit
    @jax.vmap
    def draw(b, key):
        grads = jnp.broadcast_to(jnp.asarray(U, jnp.float32)[:, None], (3, size))
        noise = jm.noise.Noise(law, b)
        results = []
        for rule in (jm.coordinate_median(noise, key), jm.majority_vote(noise, key)):
            results.append(rule.update(grads, rule.init(params), params)[0])
        return results

    scales = jnp.array([1.0, 5.0, 20.0])
    medians, votes = draw(scales, jax.vmap(jax.random.key)(jnp.arange(3)))
    for b, median, vote in zip((1, 5, 20), medians, votes, strict=True):
        mean, variance, positive = INDEPENDENT[law, b]
        median = np.asarray(median, np.float64)
        assert abs(median.mean() - mean) < 5 * math.sqrt(variance / size)
        # Var of the sample variance <= (kurtosis - 1) V^2 / n, kurtosis below 9 here
        assert abs(median.var() - variance) < 5 * variance * math.sqrt(8 / size)
        doubt = math.sqrt(positive * (1 - positive) / size)
        assert abs(np.mean(np.asarray(vote) > 0) - positive) <= 5 * doubt


def correlation(a, b):
    return float(np.mean(a * b) / math.sqrt(np.mean(a * a) * np.mean(b * b)))


def test_noise_of_workers_leaves_steps_and_coordinates_is_uncorrelated():
    """Correlations of n unit-variance pairs have a standard deviation of n^-1/2."""
    size, num_steps = 20_000, 3
    transform = jm.add_worker_noise(jm.noise.gaussian(1.0), 5)
    grads = {"a": np.zeros((4, size), np.float32), "b": np.zeros((4, size), np.float32)}
    state, params = transform.init(None), params_like(grads)
    update = jax.jit(transform.update)
    rows = []
    for _ in range(num_steps):
        noisy, state = update(grads, state, params)
        rows.extend(
            np.asarray(noisy[name], np.float64)[i] for name in "ab" for i in range(4)
        )
    bound = 5 / math.sqrt(size)
    assert len(rows) == 24
    for first, second in itertools.combinations(rows, 2):
        assert abs(correlation(first, second)) < bound
        assert (
            abs(correlation(np.abs(first) - 0.79788, np.abs(second) - 0.79788)) < bound
        )
    for row in rows:
        for lag in (1, 2, 8, 128):
            assert abs(correlation(row[lag:], row[:-lag])) < bound


# --- systematic noise -----------------------------------------------------------------


@pytest.mark.parametrize("law", ["gaussian", "uniform"])
@pytest.mark.parametrize("num_workers", [3, 10])
def test_systematic_marginals_are_exact_for_every_worker(law, num_workers):
    """Kolmogorov-Smirnov, worker by worker, one coordinate from each of many steps."""
    num_steps = 4000
    noise = jm.noise.Noise(law, 1.0, "systematic")
    drawn = noisy_steps(np.zeros(num_workers), noise, num_steps, size=2)
    grid = np.arange(num_steps + 1) / num_steps
    for worker in range(num_workers):
        probabilities = noise.cdf(np.sort(drawn[:, worker, 0].astype(np.float64)))
        distance = np.maximum(grid[1:] - probabilities, probabilities - grid[:-1]).max()
        assert distance * math.sqrt(num_steps) < 2.74
    # Within a coordinate the M noises are equally spaced quantiles, one in each slot.
    spacing = np.diff(np.sort(noise.cdf(drawn.astype(np.float64)), axis=1), axis=1)
    np.testing.assert_allclose(spacing, 1 / num_workers, atol=2e-6)


def test_every_order_of_the_workers_is_equally_likely():
    noise = jm.noise.uniform(1.0, "systematic")
    drawn = noisy_steps(np.zeros(3), noise, 6000, size=1)[..., 0]
    # Undo the shared shift: which slot, counted from worker 0's, holds workers 1 and 2?
    # Cyclic shifts are drawn by V, so two classes of orders remain, each one half.
    slots = np.rint(
        noise.cdf(drawn.astype(np.float64)) * 3 - noise.cdf(drawn[:, :1]) * 3
    )
    forward = np.mean((slots[:, 1] % 3) == 1)
    assert abs(forward - 0.5) < 5 * 0.5 / math.sqrt(6000)
    orders = np.array(
        [
            reference.permutation(jax.random.key(0), step=s, leaf=0, num_workers=3)
            for s in range(60)
        ]
    )
    assert len(np.unique(orders, axis=0)) == 6


def test_systematic_medians_and_votes_of_three_workers_meet_the_exact_table():
    """Every permutation is met, and the table averages over the six of them."""
    num_steps, size = 300, 1000
    for (law, b), (mean, variance, positive) in SYSTEMATIC.items():
        noise = jm.noise.Noise(law, float(b), "systematic")
        noisy = noisy_steps(U, noise, num_steps, size)
        medians = np.sort(noisy, axis=1)[:, 1].astype(np.float64)
        votes = np.sign(noisy).sum(axis=1) > 0
        orders = permutations_of_steps(num_steps, 3)
        groups = [orders == code for code in np.unique(orders)]
        assert len(groups) == 6
        fewest = min(group.sum() for group in groups) * size
        by_order = [medians[group].mean() for group in groups]
        assert abs(np.mean(by_order) - mean) < 5 * math.sqrt(variance / (6 * fewest))
        by_order = [((medians[group] - mean) ** 2).mean() for group in groups]
        tolerance = 5 * variance * math.sqrt(8 / (6 * fewest))
        assert abs(np.mean(by_order) - variance) < tolerance
        by_order = [votes[group].mean() for group in groups]
        doubt = 5 * math.sqrt(positive * (1 - positive) / (6 * fewest))
        assert abs(np.mean(by_order) - positive) <= doubt + 1e-12


@functools.cache
def permutations_of_steps(num_steps, num_workers, seed=0):
    """A number for the order of each step, by the documented key tree."""

    @jax.jit
    @jax.vmap
    def order(step):
        step_key = jax.random.fold_in(jax.random.key(seed), step)
        shared = jax.random.fold_in(step_key, np.uint32(reference.SHARED_UNIFORM))
        return jax.random.permutation(shared, num_workers)

    orders = np.asarray(order(jnp.arange(num_steps)))
    return orders @ num_workers ** np.arange(num_workers)


def asymmetric(num_workers):
    """Quantiles of an exponential law: skewed, no two alike."""
    return -np.log1p(-(np.arange(num_workers) + 0.5) / num_workers)


@pytest.mark.parametrize(
    ("num_workers", "law", "bound"),
    [
        (3, "gaussian", 1.2),
        (10, "gaussian", 1.7),
        (11, "gaussian", 1.7),
        (11, "uniform", 1.7),
        (101, "gaussian", 1.9),
    ],
)
def test_systematic_noise_makes_the_median_vary_less(num_workers, law, bound):
    """At b = max - min of the u_i; 64 steps pooled, both expectations printed."""
    values = asymmetric(num_workers)
    b = float(values.max() - values.min())
    moments = {}
    for coupling in ("independent", "systematic"):
        noise = jm.noise.Noise(law, b, coupling)
        medians = np.median(noisy_steps(values, noise, 64, 400), axis=1)
        moments[coupling] = (
            medians.mean(dtype=np.float64),
            medians.std(dtype=np.float64),
        )
    (mean, sd), (systematic_mean, systematic_sd) = moments.values()
    print(
        f"{law}, M = {num_workers}, mean {values.mean():.4f}, b {b:.3f}: independent "
        f"E {mean:.4f} sd {sd:.4f}, systematic E {systematic_mean:.4f} "
        f"sd {systematic_sd:.4f}, ratio {sd / systematic_sd:.3f}"
    )
    assert sd / systematic_sd >= bound


# --- sharper 8: beyond a finite b, exactly unbiased for every fixed permutation -------


@functools.partial(jax.jit, static_argnames=("law", "num_words"))
def noisy_for_every_word(values, b, order, law, num_words):
    """u_i + b xi_i for one order, over equally spaced words V: `[num_words, M]`.

    Slots are chosen, not drawn: rank 2^32 / M plus an offset that all workers share,
    which moves V through its whole range.
    """
    num_workers = values.shape[0]
    slots = order.astype(jnp.uint32) * np.uint32(2**32 // num_workers)
    key_words = jax.random.key_data(jax.random.key(0, impl="threefry2x32"))
    position = jnp.zeros(1, jnp.uint32)

    def at(offset):
        noise = LeafNoise(LAW_TABLE[law], b, key_words, slots + offset)
        rows = [
            noise.noisy_row(i, values[i][None], position) for i in range(num_workers)
        ]
        return jnp.concatenate(rows)

    offsets = jnp.arange(num_words, dtype=jnp.uint32) * np.uint32(2**32 // num_words)
    return jax.vmap(at)(offsets)


def middle_variance(law, num_workers):
    """Var of xi given its central 1/M quantile range, by the midpoint rule."""
    p = 0.5 + (np.arange(20_000) + 0.5 - 10_000) / 20_000 / num_workers
    return float(np.mean(reference.UNIT_LAWS[law].ppf(p) ** 2))


@pytest.mark.parametrize("num_workers", [3, 5])
@pytest.mark.parametrize("law", ["uniform", "gaussian"])
def test_the_median_is_exactly_unbiased_for_every_fixed_permutation(law, num_workers):
    """b = M h(0) (max - min): mean exact, variance var(u) + b^2 v_M.

    A sum over n equally spaced words misses an integral with M jumps of at most
    max - min by M (max - min) / n.
    """
    values = np.float32([1, 2, 10, 4, 12])[:num_workers]
    gap, num_words = float(np.ptp(values)), 2**13
    h0 = float(jm.noise.Noise(law, 1.0).pdf(0.0))
    b = num_workers * h0 * gap * 1.0001
    expected = values.var() + b**2 * middle_variance(law, num_workers)
    for order in itertools.permutations(range(num_workers)):
        noisy = noisy_for_every_word(
            values, jnp.float32(b), jnp.array(order), law, num_words
        )
        medians = np.median(np.asarray(noisy, np.float64), axis=1)
        assert abs(medians.mean() - values.mean()) < 2 * num_workers * gap / num_words
        assert medians.var() == pytest.approx(expected, rel=0.01)


def test_the_uniform_median_at_m_times_the_range_has_the_variance_of_the_issue():
    """b = M (max - min): var(u) + b^2 / M^2, for every permutation of three."""
    values = np.float32(U)
    b = 3 * 9.0
    for order in itertools.permutations(range(3)):
        noisy = noisy_for_every_word(
            values, jnp.float32(b), jnp.array(order), "uniform", 2**15
        )
        medians = np.median(np.asarray(noisy, np.float64), axis=1)
        assert abs(medians.mean() - values.mean()) < 3 * 9 / 2**14
        assert medians.var() == pytest.approx(values.var() + b**2 / 9, rel=2e-3)


def test_a_smaller_scale_is_biased_for_some_permutation():
    """The bound on b above is needed: the tests could fail."""
    values, biases = np.float32(U), []
    for order in itertools.permutations(range(3)):
        noisy = noisy_for_every_word(
            values, jnp.float32(1.0), jnp.array(order), "uniform", 2**13
        )
        biases.append(np.median(noisy, axis=1).mean() - U.mean())
    assert np.abs(biases).min() > 1


@pytest.mark.parametrize("num_workers", [3, 5])
def test_the_uniform_vote_is_exactly_unbiased_for_every_fixed_permutation(num_workers):
    """b = M max|u| / sqrt 3: E[vote] = M mean(u) / (sqrt(3) b) = mean(u) / max|u|."""
    values = np.float32([-1.5, 0.7, 2.0, -1.9, 1.1])[:num_workers]
    largest, num_words = float(np.abs(values).max()), 2**13
    b = num_workers * largest / math.sqrt(3)
    for order in itertools.permutations(range(num_workers)):
        noisy = noisy_for_every_word(
            values, jnp.float32(b * 1.0001), jnp.array(order), "uniform", num_words
        )
        votes = np.sign(np.sign(noisy).sum(axis=1))
        bound = 4 * (num_workers + 1) / num_words
        assert abs(votes.mean() - values.mean() / largest) < bound + 1e-4


def test_systematic_rules_of_the_library_are_unbiased_step_by_step():
    """The same through the aggregators: 60 steps, each with its fixed permutation."""
    size, num_steps = 20_000, 60
    values = np.float32([-1.5, 0.7, 2.0])
    grads = np.repeat(values[:, None], size, axis=1)
    params = jnp.zeros(size)
    b_median, b_vote = 3 * float(np.ptp(values)), math.sqrt(3) * 2.0
    median = jm.coordinate_median(jm.noise.uniform(b_median, "systematic"), 1)
    vote = jm.majority_vote(jm.noise.uniform(b_vote, "systematic"), 2)

    @jax.jit
    def draw(grads):
        def body(states, _):
            medians, state = median.update(grads, states[0], params)
            votes, vote_state = vote.update(grads, states[1], params)
            moments = jnp.mean(medians), jnp.var(medians), jnp.mean(votes)
            return (state, vote_state), moments

        start = median.init(params), vote.init(params)
        return jax.lax.scan(body, start, length=num_steps)[1]

    means, variances, votes = (np.asarray(x, np.float64) for x in draw(grads))
    variance = values.var() + b_median**2 / 9
    assert np.abs(means - values.mean()).max() < 6 * math.sqrt(variance / size)
    assert np.abs(variances / variance - 1).max() < 6 * math.sqrt(2 / size)
    expected = 3 * values.mean() / (math.sqrt(3) * b_vote)
    assert np.abs(votes - expected).max() < 6 * math.sqrt((1 - expected**2) / size)


@pytest.mark.parametrize("coupling", ["independent", "systematic"])
def test_uniform_noise_makes_the_expected_count_of_votes_linear(coupling):
    """E sum_i sign(u_i + b xi_i) = M mean(u) / (sqrt(3) b) where |u_i| <= sqrt(3) b."""
    values, b = np.array([-1.0, 0.3, 0.4, 0.9, 1.6]), 1.0
    noise = jm.noise.uniform(b, coupling)
    counts = np.sign(noisy_steps(values, noise, 100, 2000)).sum(axis=1)
    expected = values.sum() / (math.sqrt(3) * b)
    # Var of a step's mean count is at most that of one coordinate's.
    by_step = counts.mean(axis=1, dtype=np.float64)
    assert abs(by_step.mean() - expected) < 5 * counts.std() / math.sqrt(100)
    assert abs(by_step.mean() - expected) < 0.05
    independent = sum(1 - (u / (math.sqrt(3) * b)) ** 2 for u in values)
    if coupling == "systematic":
        assert counts.var() < 0.6 * independent
    else:
        assert counts.var() == pytest.approx(independent, rel=0.05)
