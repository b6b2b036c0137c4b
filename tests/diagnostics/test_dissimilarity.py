"""(G, B) against closed forms on quadratics and a brute-force linear program."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmedian as jm
from jaxmedian.diagnostics import fit_dissimilarity, gradient_dissimilarity

M, DIMENSIONS = 5, 3


def quadratic(params, worker):
    """h ||x - c||^2 / 2 over two leaves; the gradient is h (x - c)."""
    x = jnp.append(params["x"], params["y"])
    return 0.5 * worker["h"] * jnp.sum(jnp.square(x - worker["c"]))


def points(number, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {"x": jnp.float32(3 * row[:2]), "y": jnp.float32(3 * row[2])}
        for row in rng.normal(size=(number, DIMENSIONS))
    ]


def centres(seed=1):
    return np.random.default_rng(seed).normal(size=(M, DIMENSIONS)).astype(np.float32)


def test_equal_curvature_leaves_the_variance_of_the_minima():
    """g_i = x - c_i: (1/M) sum ||g_i||^2 = ||x - mean c||^2 + variance, at every x."""
    c = centres()
    batch = {"c": c, "h": np.ones(M, np.float32)}
    found = gradient_dissimilarity(quadratic, points(6), batch)
    variance = np.square(c - c.mean(axis=0)).sum(axis=1).mean()
    np.testing.assert_allclose(found.G**2, variance, rtol=1e-4)
    np.testing.assert_allclose(found.B**2, 1.0, atol=1e-4)
    xs = np.array([np.append(p["x"], p["y"]) for p in points(6)])
    to_mean = np.square(xs - c.mean(axis=0)).sum(axis=1)
    np.testing.assert_allclose(found.squared_mean_norms, to_mean, rtol=1e-4)
    np.testing.assert_allclose(found.mean_squared_norms, to_mean + variance, rtol=1e-4)


def test_equal_minima_leave_the_spread_of_the_curvatures():
    """g_i = h_i x: G = 0 and B^2 = mean(h^2) / mean(h)^2."""
    h = np.float32([1, 1, 2, 3, 8])
    batch = {"c": np.zeros((M, DIMENSIONS), np.float32), "h": h}
    found = gradient_dissimilarity(quadratic, points(6), batch)
    np.testing.assert_allclose(found.B**2, np.mean(h**2) / np.mean(h) ** 2, rtol=1e-5)
    np.testing.assert_allclose(found.G**2, 0, atol=1e-4)


def test_identical_workers_are_not_dissimilar():
    batch = {"c": np.ones((M, DIMENSIONS), np.float32), "h": np.ones(M, np.float32)}
    found = gradient_dissimilarity(quadratic, points(4), batch)
    np.testing.assert_allclose(found.B, 1.0, atol=1e-6)
    np.testing.assert_allclose(found.G, 0.0, atol=1e-2)


@pytest.mark.parametrize("worker_chunk", [None, 1, 2])
def test_absent_workers_do_not_count_and_chunks_change_nothing(worker_chunk):
    c, h = centres(), np.float32([1, 1, 2, 3, 8])
    mask = np.array([True, False, True, True, False])
    broken = {"c": np.where(mask[:, None], c, np.float32(np.nan)), "h": h}
    got = gradient_dissimilarity(
        quadratic, points(5), broken, worker_mask=mask, worker_chunk=worker_chunk
    )
    alone = {"c": c[mask], "h": h[mask]}
    expected = gradient_dissimilarity(quadratic, points(5), alone)
    np.testing.assert_allclose(got.G, expected.G, rtol=1e-5)
    np.testing.assert_allclose(got.B, expected.B, rtol=1e-5)


def least_slack(a, s):
    """Tries every vertex of the linear program; the least total slack."""
    a0, s0 = np.append(a, 0.0), np.append(s, 0.0)
    vertices = [(max(0.0, (s - a).max()), 1.0)]
    for i, j in itertools.combinations(range(a0.size), 2):
        if a0[i] != a0[j]:
            slope = (s0[i] - s0[j]) / (a0[i] - a0[j])
            vertices.append((s0[i] - slope * a0[i], slope))
    tolerance = 1e-12 * s.max()
    allowed = [
        (intercept, slope)
        for intercept, slope in vertices
        if slope >= 1
        and intercept >= -tolerance
        and (s <= intercept + slope * a + tolerance).all()
    ]
    return min((g + b * a - s).sum() for g, b in allowed)


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e12])
def test_the_fit_covers_every_point_with_the_least_slack(unit):
    rng = np.random.default_rng(3)
    for _ in range(300):
        number = int(rng.integers(1, 9))
        a = unit * rng.exponential(size=number) * rng.integers(0, 2, size=number)
        s = a * (1 + rng.exponential(size=number)) + unit * rng.exponential(size=number)
        found = fit_dissimilarity(s, a)
        bound = found.G**2 + found.B**2 * a
        assert (s <= bound * (1 + 1e-12)).all()
        assert found.B >= 1 and found.G >= 0  # noqa: PT018
        slack = (bound - s).sum()
        assert slack == pytest.approx(least_slack(a, s), rel=1e-9, abs=1e-9 * s.max())


def test_one_point_gives_the_variance_there():
    found = fit_dissimilarity([5.0], [2.0])
    np.testing.assert_allclose([found.G**2, found.B], [3.0, 1.0], rtol=1e-12)


def test_columns_of_a_run_can_be_fitted():
    c = centres()
    batch = {"c": c, "h": np.ones(M, np.float32)}

    def norms(params, grads, updates):
        del params, updates
        return jm.diagnostics.squared_norms(grads)

    run = jm.run(
        quadratic,
        jm.median_sgd(0.1),
        points(1)[0],
        jm.full_batch(batch),
        40,
        0,
        chunk=10,
        metrics=[norms],
    )
    found = fit_dissimilarity(
        run.metrics["mean_squared_norm"], run.metrics["squared_mean_norm"]
    )
    variance = np.square(c - c.mean(axis=0)).sum(axis=1).mean()
    np.testing.assert_allclose(found.G**2, variance, rtol=1e-4)
    assert found.mean_squared_norms.shape == (4,)
    assert f"G = {found.G:.4g}" in found.describe()


def test_half_precision_is_squared_in_float32():
    grads = jnp.full((4, 4096), 0.5, jnp.bfloat16)  # a mean without rounding
    got = jax.jit(jm.diagnostics.squared_norms)(grads)
    assert {name: float(value) for name, value in got.items()} == {
        "mean_squared_norm": 1024.0,
        "squared_mean_norm": 1024.0,
        "variance": 0.0,
    }


@pytest.mark.parametrize("apart", [0.0, 1e-4, 1e-3])
def test_workers_who_are_nearly_alike_keep_their_variance(apart):
    """Beside ||g||^2 of 2e5 it would be rounded away as a difference in float32."""
    deviations = np.random.default_rng(0).normal(size=(10, 100_000)) * apart
    centres = (np.sqrt(2) + deviations).astype(np.float32)

    def loss(x, centre):
        return 0.5 * jnp.sum(jnp.square(x - centre))

    found = gradient_dissimilarity(loss, [jnp.zeros(100_000)], centres)
    wide = centres.astype(np.float64)
    variance = np.square(wide - wide.mean(0)).sum(1).mean()
    np.testing.assert_allclose(found.G, np.sqrt(variance), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], []), "K >= 1"),
        (([1.0], [1.0, 2.0]), "same length"),
        (([np.nan], [1.0]), "finite"),
        (([1.0], [-1.0]), ">= 0"),
    ],
)
def test_bad_measurements_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        fit_dissimilarity(*arguments)


def test_no_points_and_no_worker_axis_are_refused():
    batch = {"c": centres(), "h": np.ones(M, np.float32)}
    with pytest.raises(ValueError, match="`points`"):
        gradient_dissimilarity(quadratic, [], batch)
    for one in (points(1)[0], np.zeros(3, np.float32), jnp.zeros(3)):
        with pytest.raises(TypeError, match=r"`points` must be a list.*`\[params\]`"):
            gradient_dissimilarity(quadratic, one, batch)
    with pytest.raises(ValueError, match=r"`points` must hold trees .* of the same"):
        gradient_dissimilarity(quadratic, (jnp.zeros(2), jnp.zeros(3)), batch)
    with pytest.raises(ValueError, match="worker axis"):
        gradient_dissimilarity(quadratic, points(1), {"c": np.float32(1)})
