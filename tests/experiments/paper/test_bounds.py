"""Both sides of Theorems 1 and 2 on quadratics, against slow loops."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")

import jaxmedian as jm
from experiments.common.harness.results import save
from experiments.paper import bounds

CONFIG = bounds.PRESETS["tiny"]


def slow_left_sides(quadratics, theorem, rate, num_steps):
    """Mean size of the mean gradient at x_0 .. x_{T-1}, without noise, in float64."""
    x, total = quadratics.start.copy(), 0.0
    for _ in range(num_steps):
        grads = np.array([quadratics.curvatures * (x - a) for a in quadratics.centres])
        mean, median = grads.mean(axis=0), np.median(grads, axis=0)
        if theorem == bounds.SIGN:
            total += np.abs(mean).sum()
            x = x - rate * np.sign(median)
        else:
            total += (mean**2).sum()
            x = x - rate * median
    return total / num_steps


@pytest.fixture(scope="module")
def result():
    return bounds.run(CONFIG)


@pytest.mark.parametrize("theorem", [bounds.SIGN, bounds.MEDIAN])
def test_the_left_side_is_that_of_a_slow_loop(theorem, result):
    quadratics = bounds.problem(CONFIG, 3.0)
    got = result.curves[f"{theorem}, spread 3, b = 0"]
    for i, num_steps in enumerate(CONFIG.steps):
        rate = 1 / np.sqrt(num_steps)
        if theorem == bounds.SIGN:
            initial = quadratics.suboptimality()
            rate = np.sqrt(initial / (CONFIG.num_coordinates * num_steps))
        expected = slow_left_sides(quadratics, theorem, rate, num_steps)
        assert got["left"][i] == pytest.approx(expected, rel=1e-5)
        assert got["standard_error"][i] < 1e-5 * expected


def test_the_right_side_is_the_theorems():
    quadratics = bounds.problem(CONFIG, 3.0)
    curvatures, centres, start = quadratics

    def objective(x):
        return np.mean([0.5 * (curvatures * (x - a) ** 2).sum() for a in centres])

    initial = objective(start) - objective(centres.mean(axis=0))
    assert quadratics.suboptimality() == pytest.approx(initial)
    u = curvatures * (start - centres)
    gap = np.median(u, axis=0) - u.mean(axis=0)
    plain = jm.noise.gaussian(0.0)
    sides = bounds.right_side(quadratics, plain, bounds.SIGN, 50, 0.1)
    expected = 1.5 * np.sqrt(8 * initial / 50) + 2 * np.abs(gap).sum()
    assert sides == pytest.approx((expected, 2 * np.abs(gap).sum()))
    sides = bounds.right_side(quadratics, plain, bounds.MEDIAN, 50, 0.1)
    squared = (gap**2).sum()
    assert sides == pytest.approx((2 * initial / (50 * 0.1) + squared, squared))
    # With noise: the median's moments, simulated.
    noise = jm.noise.gaussian(1.0)
    mean, variance, errors = jm.theory.simulate_median(u, noise, 0, 100_000)
    right, gap_term = bounds.right_side(quadratics, noise, bounds.SIGN, 50, 0.1)
    gap = 2 * np.abs(mean - u.mean(axis=0)).sum()
    assert gap_term == pytest.approx(gap, abs=10 * np.sum(errors.mean))
    deviation = (right - gap_term - 1.5 * np.sqrt(8 * initial / 50)) / 16
    assert deviation**2 == pytest.approx(
        variance.max(), abs=5 * np.max(errors.variance)
    )


def test_unbiased_noise_leaves_no_gap():
    quadratics = bounds.problem(CONFIG, 3.0)
    noise = bounds.noises(CONFIG, quadratics)["systematic"]
    right, gap = bounds.right_side(quadratics, noise, bounds.MEDIAN, 50, 0.1)
    assert gap == 0.0
    assert right > 0


def test_the_theorems_hold_and_a_violation_would_be_noticed(result):
    assert [claim.holds for claim in result.claims] == [True, None] * 2
    name = f"{bounds.MEDIAN}, spread 3, b = 1"
    broken = result.curves[name] | {"left": 1.001 * result.curves[name]["right"]}
    claims = bounds._claims({**result.curves, name: broken}, bounds.MEDIAN)
    assert claims[0].holds is False


def test_without_the_gap_term_long_runs_would_break_the_theorems():
    quadratics = bounds.problem(CONFIG, 3.0)
    plain = jm.noise.gaussian(0.0)
    for theorem in (bounds.SIGN, bounds.MEDIAN):
        rate = 1 / np.sqrt(1000)
        left = slow_left_sides(quadratics, theorem, rate, 1000)
        right, gap = bounds.right_side(quadratics, plain, theorem, 1000, rate)
        assert right - gap < left <= right


def test_a_run_is_saved_with_its_figure(result, tmp_path):
    save(tmp_path, CONFIG, result, bounds.plot(result))
    assert (tmp_path / "figure.png").exists()
