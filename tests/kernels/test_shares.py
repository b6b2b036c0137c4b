"""Derivatives of medians and trimmed means against shares counted one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from harness import enable_x64, make_noise
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxmedian.kernels import selection, tiles, trimming, weighting
from jaxmedian.kernels import shares as kernel_shares

SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0]


def rows_with_ties(num_workers, size, seed, dtype=np.float32):
    """A third each: distinct values, ties of a few values, and special ones."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(num_workers, size))
    kind = np.arange(size) % 3
    rows[:, kind == 1] = rng.integers(-1, 2, rows.shape)[:, kind == 1]
    rows[:, kind == 2] = rng.choice(SPECIAL, rows.shape)[:, kind == 2]
    return rows.astype(dtype)


def shared(column, kept, here):
    """Each kept value gives 1 / n to the workers that hold it, in equal parts."""
    shares = np.zeros(len(column))
    for value in kept:
        holders = here & (column == value)
        shares[holders] += 1 / (holders.sum() * len(kept))
    return shares


def middle_values(ascending, even):
    low, high = ascending[(len(ascending) - 1) // 2], ascending[len(ascending) // 2]
    return {"lower": [low], "upper": [high], "midpoint": [low, high]}[even]


def kept_by_median(ascending, even):
    return middle_values(ascending, even)


def kept_by_trimming(ascending, f):
    if len(ascending) <= 2 * f:
        return middle_values(ascending, "midpoint")
    return ascending[f : len(ascending) - f]


def kept_around_median(ascending, f):
    if len(ascending) <= 2 * f:
        return middle_values(ascending, "midpoint")
    low, high = middle_values(ascending, "midpoint")
    median = low / 2 + high / 2 if low != high else low
    return sorted(ascending, key=lambda x: (abs(x - median), x))[: len(ascending) - f]


def slow_shares(rows, kept, present=None):
    """The derivative of each result by each row, ``[M, d]``; NaN counts as +inf."""
    rows = np.asarray(rows, np.float64)
    rows = np.where(np.isnan(rows), np.inf, rows)
    here = np.ones(len(rows), bool) if present is None else present
    if not here.any():
        return np.zeros(rows.shape)
    columns = [
        shared(column, kept(np.sort(column[here]).tolist()), here) for column in rows.T
    ]
    return np.stack(columns, axis=1)


def assert_moves_by(rule, rows, shares):
    """Both modes: sum_i s_ij t_ij forwards, s_ij c_j backwards."""
    rng = np.random.default_rng(1)
    rows = jnp.asarray(rows)
    tangents = jnp.asarray(rng.normal(size=rows.shape), rows.dtype)
    result, moved = jax.jit(lambda x, t: jax.jvp(rule, (x,), (t,)))(rows, tangents)
    assert moved.dtype == result.dtype
    tolerance = 1e-5 if rows.dtype.itemsize >= 4 else 2e-2
    expected = np.sum(shares * np.asarray(tangents, np.float64), axis=0)
    np.testing.assert_allclose(
        np.asarray(moved, np.float64), expected, tolerance, tolerance
    )
    weights = jnp.asarray(rng.normal(size=result.shape), result.dtype)
    (pulled,) = jax.jit(lambda x, c: jax.vjp(rule, x)[1](c))(rows, weights)
    assert pulled.dtype == rows.dtype
    expected = shares * np.asarray(weights, np.float64)
    np.testing.assert_allclose(
        np.asarray(pulled, np.float64), expected, tolerance, tolerance
    )


def median_rule(even="midpoint", present=None):
    def rule(rows):
        return selection.median_of_rows(rows, noise=None, even=even, present=present)

    return rule


def treat_as_113(num_workers, monkeypatch):
    """Lets so many rows take the way of 113, whose programs take half a minute."""
    assert num_workers < selection.NETWORK_ROWS
    monkeypatch.setattr(selection, "NETWORK_ROWS", num_workers - 1)
    monkeypatch.setattr(kernel_shares, "_UNROLLED_ROWS", num_workers - 1)
    monkeypatch.setattr(tiles, "CPU_TILE", num_workers * 64)


@pytest.mark.parametrize("even", selection.EVEN_RULES)
@pytest.mark.parametrize("num_workers", [1, 5, 6, 113])
def test_medians_move_as_the_selected_rows(num_workers, even):
    rows = rows_with_ties(num_workers, 60, seed=num_workers)
    shares = slow_shares(rows, lambda x: kept_by_median(x, even))
    np.testing.assert_allclose(shares.sum(axis=0), 1)
    assert_moves_by(median_rule(even), rows, shares)


@pytest.mark.parametrize("even", selection.EVEN_RULES)
@pytest.mark.parametrize("num_present", [0, 1, 4])
def test_medians_of_those_present_move_as_their_rows(num_present, even):
    rows = rows_with_ties(7, 60, seed=3)
    present = np.random.default_rng(num_present).permutation(7) < num_present
    shares = slow_shares(rows, lambda x: kept_by_median(x, even), present)
    assert not shares[~present].any()
    assert_moves_by(median_rule(even, jnp.asarray(present)), rows, shares)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_medians_of_other_dtypes_move_as_the_selected_rows(dtype):
    with enable_x64(True):
        rows = jnp.asarray(rows_with_ties(6, 60, seed=4, dtype=np.float64), dtype)
        shares = slow_shares(
            rows.astype("float64"), lambda x: kept_by_median(x, "midpoint")
        )
        assert_moves_by(median_rule(), rows, shares)


@pytest.mark.parametrize(
    ("num_workers", "num_present"), [*[(7, n) for n in (None, 0, 3, 6)], (19, 6)]
)
@pytest.mark.parametrize("rule_and_kept", ["trimmed", "around", "around_some"])
def test_means_of_the_middle_move_as_the_rows_they_keep(
    rule_and_kept, num_workers, num_present, monkeypatch
):
    if num_workers == 19:
        treat_as_113(num_workers, monkeypatch)
    f = 2 if num_workers == 7 else 6
    rows = rows_with_ties(num_workers, 66, seed=5)
    if rule_and_kept != "trimmed":  # around a median, more infinities than f: no mean
        rows = np.where(np.isfinite(rows), rows, np.float32(2))
        rows[0, 2::3] = np.nan
    present = None
    if num_present is not None:
        wanted = num_present * num_workers // 7
        present = np.random.default_rng(6).permutation(num_workers) < wanted
    kept = kept_by_trimming if rule_and_kept == "trimmed" else kept_around_median
    if rule_and_kept == "around_some":
        some = np.arange(1, num_workers) if present is None else np.flatnonzero(present)
        if len(some) <= f:
            return
        present = np.isin(np.arange(num_workers), some)
        if len(some) <= 2 * f:  # of some it is always a mean
            f = (len(some) - 1) // 2
    shares = slow_shares(rows, lambda x: kept(x, f), present)

    def rule(rows):
        if rule_and_kept == "around_some":
            return trimming.mean_around_median_of_some(rows, jnp.asarray(some), f)
        mask = None if present is None else jnp.asarray(present)
        if rule_and_kept == "trimmed":
            return trimming.trimmed_mean_of_rows(rows, f, mask)
        return trimming.mean_around_median_of_rows(rows, f, mask)

    assert_moves_by(rule, rows, shares)


# --- weights --------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["median", "trimmed"])
@pytest.mark.parametrize("weights", [[1, 2, 0, 3, 1], [0, 1, 0, 0, 1], [0] * 5])
def test_a_weight_is_that_many_workers(rule, weights):
    """Shares of repeated rows, added up for each worker."""
    rows = rows_with_ties(5, 60, seed=7)
    copies = np.repeat(np.arange(5), weights)
    kept = {
        "median": lambda x: kept_by_median(x, "midpoint"),
        "trimmed": lambda x: kept_by_trimming(x, 1),
    }[rule]
    shares = np.zeros(rows.shape)
    np.add.at(shares, copies, slow_shares(rows[copies], kept))
    for dtype in (np.int32, np.float32):
        w = jnp.asarray(weights, dtype)
        if rule == "median":
            assert_moves_by(
                lambda x, w=w: weighting.median_of_rows(x, w, "midpoint"), rows, shares
            )
        else:
            assert_moves_by(
                lambda x, w=w: weighting.trimmed_mean_of_rows(x, w, 1), rows, shares
            )


def central_difference(function, x, step):
    return (function(x + step) - function(x - step)) / (2 * step)


def test_trimmed_means_move_with_the_weights_too():
    with enable_x64(True):
        rng = np.random.default_rng(8)
        rows = jnp.asarray(rng.normal(size=(6, 40)))
        weights = jnp.asarray(rng.uniform(0.5, 2.0, size=6))
        direction = jnp.asarray(rng.normal(size=6))

        def mean(weights):
            return weighting.trimmed_mean_of_rows(rows, weights, 1)

        moved = jax.jvp(mean, (weights,), (direction,))[1]
        expected = central_difference(
            lambda t: mean(weights + t * direction), 0.0, 1e-6
        )
        assert np.abs(expected).min() > 1e-4
        np.testing.assert_allclose(moved, expected, 1e-5, 1e-7)
        median = jax.jvp(
            lambda w: weighting.median_of_rows(rows, w, "midpoint"),
            (weights,),
            (direction,),
        )[1]
        assert not np.asarray(median).any()


# --- noise ----------------------------------------------------------------------------


@pytest.mark.parametrize("coupling", ["independent", "systematic"])
@pytest.mark.parametrize("num_workers", [6, 40])
def test_noisy_medians_move_with_rows_and_scale(num_workers, coupling):
    """By the scale as finite differences say; by the rows as the noisy ones select."""
    with enable_x64(True):
        rows = np.random.default_rng(9).normal(size=(num_workers, 50))
        noise = make_noise("logistic", coupling, num_workers, dtype=np.float64)

        def median(rows, scale):
            return selection.median_of_rows(
                rows, noise=noise._replace(scale=scale), even="midpoint", present=None
            )

        scale = jnp.float64(0.5)
        moved = jax.jit(jax.jacfwd(median, argnums=1))(rows, scale)
        expected = central_difference(lambda b: median(rows, b), scale, 1e-7)
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(moved, expected, 1e-5, 1e-5)
        backwards = jax.jit(jax.jacrev(median, argnums=1))(rows, scale)
        np.testing.assert_allclose(backwards, expected, 1e-5, 1e-5)
        shares = slow_shares(
            noise.noisy_rows(jnp.asarray(rows)),
            lambda x: kept_by_median(x, "midpoint"),
        )
        assert_moves_by(lambda x: median(x, scale), rows, shares)


# --- programs -------------------------------------------------------------------------


def test_second_derivatives_are_zero():
    rows = jnp.asarray(np.random.default_rng(10).normal(size=(6, 3)), jnp.float32)
    for rule in (
        median_rule(),
        lambda x: trimming.trimmed_mean_of_rows(x, 1, None),
        lambda x: trimming.mean_around_median_of_rows(x, 1, None),
        lambda x: weighting.median_of_rows(x, jnp.ones(6), "lower"),
    ):
        curvature = jax.hessian(lambda x, rule=rule: rule(x).sum())(rows)
        assert not np.asarray(curvature).any()


def test_derivatives_of_what_was_just_computed():
    """Rows that are computed and selected in one program are not recomputed apart."""
    rng = np.random.default_rng(11)
    x, y, z = jnp.asarray(rng.normal(size=(3, 9, 5000)), jnp.float32)

    def total(z):
        return median_rule()(x * y + z).sum()

    assert (np.asarray(jax.jit(jax.grad(total))(z)).sum(axis=0) == 1).all()


def test_derivatives_under_vmap_and_scan():
    rows = jnp.asarray(np.random.default_rng(12).normal(size=(4, 7, 20)), jnp.float32)

    def pull(rows):
        return jax.grad(lambda x: trimming.trimmed_mean_of_rows(x, 2, None).sum())(rows)

    each = np.stack([pull(x) for x in rows])
    np.testing.assert_allclose(jax.jit(jax.vmap(pull))(rows), each, 1e-6)

    def summed(rows):
        def step(total, x):
            return total + median_rule()(x), None

        return jax.lax.scan(step, jnp.zeros(20), rows)[0].sum()

    each = np.stack([jax.grad(lambda x: median_rule()(x).sum())(x) for x in rows])
    np.testing.assert_array_equal(jax.jit(jax.grad(summed))(rows), each)


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("num_workers", [6, 21])
def test_derivatives_inside_shard_map(num_workers, check_vma, monkeypatch):
    """Coordinates and masks that differ by device, with noise and without."""
    monkeypatch.setattr(tiles, "CPU_TILE", num_workers * 64)
    if num_workers == 21:
        treat_as_113(num_workers, monkeypatch)
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,))
    rows = np.random.default_rng(13).normal(size=(num_workers, 400)).astype(np.float32)
    masks = np.random.default_rng(0).random((2, num_workers)) < 0.8
    noise = make_noise("uniform", "independent", num_workers)

    def pull(rows, mask, scale):
        def results(rows, scale):
            noisy = noise._replace(scale=scale)
            present = mask[0]
            return (
                selection.median_of_rows(
                    rows, noise=noisy, even="midpoint", present=present
                )
                + trimming.trimmed_mean_of_rows(rows, 2, present)
                + trimming.mean_around_median_of_rows(rows, 1, present)
                + weighting.median_of_rows(rows, present.astype(jnp.float32), "lower")
            )

        # One trace for both directions: forward, and its transpose.
        result, move = jax.linearize(results, rows, scale[0])
        pull_back = jax.linear_transpose(move, rows, scale[0])
        return pull_back(jnp.ones_like(result))[0], move(rows, jnp.ones_like(scale[0]))

    scales = jnp.float32([0.3, 0.7])
    pulled, moved = jax.jit(
        jax.shard_map(
            pull,
            mesh=mesh,
            in_specs=(P(None, "x"), P("x"), P("x")),
            out_specs=(P(None, "x"), P("x")),
            check_vma=check_vma,
        )
    )(rows, masks, scales)
    for device in range(2):
        part = slice(200 * device, 200 * (device + 1))
        own = slice(device, device + 1)
        alone = jax.jit(pull)(rows[:, part], masks[own], scales[own])
        np.testing.assert_allclose(pulled[:, part], alone[0], 1e-5, 1e-6)
        np.testing.assert_allclose(moved[part], alone[1], 1e-5, 1e-6)


def test_no_implicit_promotion():
    rows = jax.ShapeDtypeStruct((17, 70), jnp.bfloat16)
    mask = jax.ShapeDtypeStruct((17,), jnp.bool_)
    noise = make_noise("gaussian", "independent", 17)

    def results(rows, mask, scale):
        return (
            selection.median_of_rows(
                rows,
                noise=noise._replace(scale=scale),
                even="midpoint",
                present=mask,
            ),
            trimming.trimmed_mean_of_rows(rows, 2, mask),
            trimming.mean_around_median_of_rows(rows, 2, mask),
            weighting.median_of_rows(rows, mask.astype(jnp.int32), "midpoint"),
            weighting.trimmed_mean_of_rows(rows, mask.astype(jnp.float32), 2),
        )

    def both_modes(rows, mask, scale):
        def of_rows(rows):
            return results(rows, mask, scale)

        primal, moved = jax.jvp(of_rows, (rows,), (rows,))
        jax.jvp(lambda b: results(rows, mask, b), (scale,), (scale,))
        return jax.vjp(of_rows, rows)[1](primal), moved

    jax.eval_shape(both_modes, rows, mask, noise.scale)
