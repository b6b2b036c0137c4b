"""Power indices: by enumeration, and as the limits of the weighted noisy kernels."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmedian as jm
from jaxmedian import theory

VALUES = np.array([1.0, -0.8, -0.8, -0.8, -0.8])
WEIGHTS = np.array([5.0, 2, 2, 2, 2])

GAMES = {
    "the example": [5, 2, 2, 2, 2],
    "ties": [3, 1, 1, 1],
    "halves": [0.5, 0.25, 0.25, 1.5],
    "tenths": [0.1, 0.2, 0.3],
    "a dictator": [10, 1, 2, 3],
    "a zero": [0, 2, 1, 1, 2],
    "one": [2.5],
    "two": [1, 3],
    "irrational": [math.sqrt(2), math.sqrt(3), 1.0, 0.4, 2.2, 1.1],
}


def sign(number):
    return 0 if abs(number) < 1e-9 else math.copysign(1, number)


def shapley(weights):
    """Who is in the middle, counted over all orders, the midpoint where two are."""
    half, result = sum(weights) / 2, np.zeros(len(weights))
    orders = list(itertools.permutations(range(len(weights))))
    for order in orders:
        passed = np.cumsum([weights[i] for i in order])
        lower = next(k for k, sum_ in enumerate(passed) if sum_ > half - 1e-9)
        upper = next(k for k, sum_ in enumerate(passed) if sum_ > half + 1e-9)
        result[order[lower]] += 0.5
        result[order[upper]] += 0.5
    return result / len(orders)


def swings(weights, splits_of):
    """How far the outcome moves, over 2, when i turns from - to +, over splits."""
    result = []
    for i, weight in enumerate(weights):
        others = [w for j, w in enumerate(weights) if j != i]
        moves = [
            (
                sign(np.dot(split, others) + weight)
                - sign(np.dot(split, others) - weight)
            )
            / 2
            for split in splits_of(len(others))
        ]
        result.append(np.mean(moves))
    return np.array(result)


def coins(others):
    return list(itertools.product([-1, 1], repeat=others))


def camps(others):
    return [split for split in coins(others) if abs(sum(split)) == others % 2]


@pytest.mark.parametrize("weights", GAMES.values(), ids=GAMES)
def test_indices_by_enumeration(weights):
    found = theory.shapley_shubik_index(weights)
    assert found == pytest.approx(shapley(weights), abs=1e-14)
    found = theory.banzhaf_index(weights)
    assert found == pytest.approx(swings(weights, coins), abs=1e-14)
    found = theory.balanced_split_index(weights)
    assert found == pytest.approx(swings(weights, camps), abs=1e-14)


def test_equal_weights_and_many_workers():
    assert theory.shapley_shubik_index([3] * 101) == pytest.approx(1 / 101, rel=1e-12)
    assert theory.balanced_split_index([0.3] * 7) == pytest.approx(1.0)
    assert theory.balanced_split_index([7] * 8) == pytest.approx(0.5)
    # Banzhaf's of 2 n + 1 equal workers: C(2 n, n) / 4^n
    expected = math.comb(60, 30) / 4**30
    assert theory.banzhaf_index([1] * 61) == pytest.approx(expected, rel=1e-12)
    # Two weights: the 50 of weight 2 share what the 51 of weight 1 leave.
    phi = theory.shapley_shubik_index([1] * 51 + [2] * 50)
    assert phi.sum() == pytest.approx(1.0, rel=1e-12)
    assert phi[-1] / phi[0] == pytest.approx(2.0, rel=0.02)


def test_weights_of_any_unit():
    """Neither sums that overflow nor weights that are tiny are lost."""
    for unit in (1e-300, 1e308):
        phi = theory.shapley_shubik_index([unit] * 3)
        assert phi == pytest.approx(1 / 3, rel=1e-12)
    assert theory.shapley_shubik_index([1e-9, 1, 1]) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match=r"by more than a factor of 4e\+11; got 1e-13"):
        theory.shapley_shubik_index([1e-13, 1, 1])


def test_what_the_indices_refuse():
    with pytest.raises(ValueError, match="`weights` must be >= 0 and not all 0"):
        theory.banzhaf_index([0.0, 0.0])
    with pytest.raises(ValueError, match="`weights` must be >= 0"):
        theory.shapley_shubik_index([1.0, -1.0])
    with pytest.raises(ValueError, match=r"`weights` must have the shape \[M\]"):
        theory.banzhaf_index([[1.0, 2.0]])
    with pytest.raises(ValueError, match="`weights` must be finite"):
        theory.balanced_split_index([1.0, math.inf])
    with pytest.raises(TypeError, match="`weights` must hold real numbers"):
        theory.shapley_shubik_index([True, False])
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="30 workers have too many different sums"):
        theory.shapley_shubik_index(rng.random(30))


# --- the kernels ----------------------------------------------------------------------


def step_means(aggregator, num_steps, d):
    rows = jnp.broadcast_to(jnp.asarray(VALUES, jnp.float32)[:, None], (5, d))
    weights = jnp.asarray(WEIGHTS, jnp.float32)

    @jax.jit
    def run(state):
        def step(state, _):
            out, state = aggregator.update(rows, state, worker_weights=weights)
            return state, out.mean()

        return jax.lax.scan(step, state, None, length=num_steps)[1]

    return np.asarray(run(aggregator.init(jnp.zeros(d))), np.float64)


def test_the_weighted_vote_with_independent_noise():
    """Multilinear in the expected signs r_i = u_i / (sqrt(3) b); beta @ r leads."""
    scale, num_steps, d = 6.0, 200, 20_000
    r = VALUES / (math.sqrt(3) * scale)
    expected = sum(
        sign(np.dot(split, WEIGHTS)) * np.prod((1 + np.array(split) * r) / 2)
        for split in coins(5)
    )
    limit = theory.banzhaf_index(WEIGHTS) @ r
    assert expected == pytest.approx(limit, rel=0.02)
    vote = jm.majority_vote(jm.noise.uniform(scale), 0)
    found = step_means(vote, num_steps, d).mean()
    # The weighted mean would have the other sign.
    assert abs(found - expected) < 5 / math.sqrt(num_steps * d) < 0.1 * expected


def test_the_weighted_vote_with_systematic_noise():
    """Exactly the balanced splits, beyond the scale of an unbiased vote."""
    scale = theory.unbiased_scale(VALUES, "uniform", "vote")
    expected = theory.balanced_split_index(WEIGHTS) @ VALUES / (math.sqrt(3) * scale)
    by_order = weighted_means(VALUES, WEIGHTS, scale, weighted_sign)
    assert by_order.mean() == pytest.approx(expected, abs=1e-3)
    num_steps, d = 4000, 256
    vote = jm.majority_vote(jm.noise.uniform(scale, "systematic"), 0)
    found = step_means(vote, num_steps, d).mean()
    error = math.sqrt(by_order.var() / num_steps + 1 / (num_steps * d))
    assert abs(found - expected) < 5 * error < 0.2 * expected


@pytest.mark.parametrize("coupling", ["independent", "systematic"])
def test_the_weighted_median(coupling):
    """Tends to Shapley and Shubik's shares: +.280 where the weighted mean is -.108."""
    scale = theory.unbiased_scale(VALUES)
    if coupling == "independent":
        scale *= 2
    noise = jm.noise.uniform(scale, coupling)
    expected = theory.shapley_shubik_index(WEIGHTS) @ VALUES
    assert expected == pytest.approx(0.28, rel=1e-12)
    num_steps, d = 4000, 256
    if coupling == "systematic":
        by_order = weighted_means(VALUES, WEIGHTS, scale, weighted_median)
        assert by_order.mean() == pytest.approx(expected, abs=1e-3)
        between = by_order.var()
        spread = (np.ptp(VALUES) + scale / math.sqrt(3)) ** 2  # the middle slot, +- u
    else:
        between, spread = 0.0, (scale + np.ptp(VALUES) / 2) ** 2
    found = step_means(jm.coordinate_median(noise, 0), num_steps, d).mean()
    error = math.sqrt(between / num_steps + spread / (num_steps * d))
    slack = 0.0 if coupling == "systematic" else 0.02  # of the next order in 1 / b
    assert abs(found - expected) < 5 * error + slack < 0.3 * expected


def weighted_sign(noisy, weights):
    return np.sign(np.sign(noisy) @ weights)


def weighted_median(noisy, weights):
    order = np.argsort(noisy, axis=1)
    passed = np.cumsum(weights[order], axis=1)
    middle = (passed > weights.sum() / 2).argmax(axis=1)
    return np.take_along_axis(noisy, order, axis=1)[np.arange(len(noisy)), middle]


def weighted_means(values, weights, scale, rule):
    """Means over V of a rule, [permutations], of uniform systematic noise."""
    position = (np.arange(5000)[:, None] + 0.5) / 5000
    found = []
    for order in itertools.permutations(range(len(values))):
        xi = 2 * ((position + np.array(order) / len(values)) % 1.0) - 1
        found.append(rule(values + math.sqrt(3) * scale * xi, weights).mean())
    return np.array(found)
