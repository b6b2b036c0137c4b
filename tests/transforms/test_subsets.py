"""Bulyan and minimum diameter: slow loops, ties, guarantees, who is missing, meshes."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference_rules as reference
from harness import enable_x64, first_update, params_like
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxmedian as jm

NAN, INF = float("nan"), float("inf")
M, F = 13, 2  # two workers more than Bulyan needs


def masked_update(rule):
    def update(grads, mask):
        params = params_like(grads)
        return rule.update(grads, rule.init(params), params, worker_mask=mask)[0]

    return update


@functools.cache
def bulyan():
    return jax.jit(masked_update(jm.bulyan(F)))


@functools.cache
def minimum_diameter_mean():
    return jax.jit(masked_update(jm.minimum_diameter_mean(3)))


# --- Bulyan ---------------------------------------------------------------------------


def test_bulyan_is_the_slow_loop_over_those_present():
    rng = np.random.default_rng(0)
    with enable_x64(True):
        for num_present in (11, 12, 13) * 5:
            x = rng.normal(size=(M, 20)) * rng.choice([0.1, 1, 10], size=(M, 1))
            present = rng.permutation(M) < num_present
            expected = reference.bulyan(x[present], F)
            x[~present] = NAN
            got = bulyan()(x, present)
            np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-10)


def test_bulyan_of_too_few_is_the_documented_median():
    rng = np.random.default_rng(1)
    with enable_x64(True):
        x = rng.normal(size=(M, 20))
        everybody = np.arange(M)
        eight = bulyan()(x, everybody < 8)  # 4 are chosen, at most 2 f
        order = np.argsort(reference.krum_scores(x[:8], F), kind="stable")
        assert order[0] in _chosen(x[:8], F)
        middle = np.median(x[_chosen(x[:8], F)], axis=0)
        np.testing.assert_allclose(eight, middle, rtol=1e-12)
        one = bulyan()(x, everybody < 3)
        np.testing.assert_allclose(one, reference.krum(x[:3], F, 1), rtol=1e-12)
        np.testing.assert_array_equal(bulyan()(x, everybody < 0), np.zeros(20))


def _chosen(x, f):
    """The first step of Bulyan."""
    left, chosen = list(range(len(x))), []
    while len(chosen) < len(x) - 2 * f:
        scores = reference.krum_scores(x[left], f, max(len(left) - f - 2, 1))
        chosen.append(left.pop(int(np.argmin(scores))))
    return chosen


def test_bad_rows_are_not_chosen_be_they_more_than_f_or_not():
    rng = np.random.default_rng(2)
    everybody = np.ones(M, bool)
    for bad, number in itertools.product([NAN, INF, 1e38], (1, 2, 4, 6)):
        x = rng.normal(size=(M, 20)).astype(np.float32)
        x[rng.permutation(M)[:number], 3] = bad
        honest = x[np.isfinite(x).all(axis=1) & (np.abs(x) < 1e30).all(axis=1)]
        got = np.asarray(bulyan()(x, everybody))
        assert (got >= honest.min(axis=0)).all()
        assert (got <= honest.max(axis=0)).all()
        if bad != 1e38 and number <= F:  # the slow loop knows inf and no overflow
            expected = reference.bulyan(x, F)
            np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-6)


def test_bulyan_stops_the_lie_in_one_coordinate_that_krum_lets_through():
    """El Mhamdi et al., section 3: of many coordinates one may be far off."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(M, 20)).astype(np.float32)
    x[:F] = x[F:].mean(axis=0)  # nearest to everybody
    x[:F, 7] += 3.0
    assert first_update(jm.krum(F), x)[7] > 2.5
    got = bulyan()(x, np.ones(M, bool))
    assert np.abs(got[7]) < 1


def test_some_of_many_rows_are_read_tile_by_tile(monkeypatch):
    from jaxmedian.kernels import tiles, trimming

    monkeypatch.setattr(tiles, "CPU_TILE", 40 * 64)
    x = np.random.default_rng(11).normal(size=(40, 150)).astype(np.float32)
    some = np.arange(3, 36)
    around = jax.jit(trimming.mean_around_median_of_some, static_argnums=2)
    expected = reference.mean_around_median(x[some], 20)
    np.testing.assert_allclose(around(x, some, 20), expected, rtol=3e-6, atol=3e-6)


def test_more_may_be_cut_than_a_minority():
    """Bulyan cuts 2 f of 2 f + 3; beside the threshold of one expression."""
    from jaxmedian.kernels import trimming

    x = np.random.default_rng(4).normal(size=(35, 40)).astype(np.float32)
    present = np.arange(35) % 5 != 0
    around = jax.jit(trimming.mean_around_median_of_rows, static_argnums=1)
    got = around(x, 20, present, 21)
    expected = reference.mean_around_median(x[present], 20)
    np.testing.assert_allclose(got, expected, rtol=3e-6, atol=3e-6)
    got = around(x, 20, present, 29)  # 28 are present
    np.testing.assert_allclose(got, np.median(x[present], axis=0), rtol=1e-6)


# --- minimum diameter -----------------------------------------------------------------


def test_the_search_is_exact_and_ties_go_to_the_first_subset():
    """On a lattice most diameters are those of many subsets."""
    rng = np.random.default_rng(5)
    everybody = np.ones(9, bool)
    num_tied = 0
    with enable_x64(True):
        for _ in range(60):
            x = rng.integers(-2, 3, size=(9, 2)).astype(np.float64)
            expected = reference.minimum_diameter_mean(x, 3)
            num_tied += not np.array_equal(
                expected, reference.minimum_diameter_mean(x[::-1], 3)
            )
            got = minimum_diameter_mean()(x, everybody)
            np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)
    assert num_tied > 20


def test_four_corners_of_a_rhombus_are_two_best_triples():
    x = np.float32([[0, 3], [-2, 0], [2, 0], [0, -3]])
    update = jax.jit(masked_update(jm.minimum_diameter_mean(1)))
    got = update(x, np.ones(4, bool))
    np.testing.assert_allclose(got, [0, 1], atol=1e-6)
    got = update(x[[1, 3, 2, 0]], np.ones(4, bool))
    np.testing.assert_allclose(got, [0, -1], atol=1e-6)


def test_the_search_needs_no_list_of_subsets():
    """41 over 8 are 95,548,245 subsets; a ball of 33 is the answer."""
    rng = np.random.default_rng(6)
    x = rng.normal(size=(41, 30)).astype(np.float32)
    far = rng.permutation(41)[:8]
    x[far] *= np.float32(4.0)
    got = first_update(jm.minimum_diameter_mean(8), x)
    honest = np.delete(x, far, axis=0)
    np.testing.assert_allclose(got, honest.mean(axis=0), rtol=1e-4, atol=1e-6)


def test_of_few_present_or_sound_those_are_averaged():
    x = np.random.default_rng(7).normal(size=(9, 2)).astype(np.float32)
    numbers = np.arange(9)
    x[[0, 1, 2, 3]] = NAN  # one more than f
    got = minimum_diameter_mean()(x, numbers >= 0)
    np.testing.assert_allclose(got, x[4:].mean(axis=0), rtol=1e-5, atol=1e-6)
    present = np.isin(numbers, [1, 5, 6])
    assert (x[[5, 6]] == np.asarray(minimum_diameter_mean()(x, present))).all(1).any()
    nobody = minimum_diameter_mean()(x, numbers < 0)
    np.testing.assert_array_equal(nobody, np.zeros(2))


# --- what they guarantee --------------------------------------------------------------


@pytest.mark.parametrize("name", ["bulyan", "minimum_diameter_mean", "clipped"])
def test_the_error_is_within_kappa_of_the_variance_for_every_honest_set(name):
    """|R - mean_S|^2 <= kappa / |S| sum_S |x - mean_S|^2 for every S of M - f."""
    num_workers, f = {"bulyan": (7, 1)}.get(name, (9, 2))
    ratio = f / (num_workers - 2 * f)
    half = num_workers / 2 - 2 * f
    transform, kappa = {
        "bulyan": (
            jm.bulyan(f),
            (num_workers - f) * (2 / max(half, 1) ** 0.5 + 1 / f**0.5) ** 2,
        ),
        "minimum_diameter_mean": (
            jm.minimum_diameter_mean(f),
            8 * f**2 / (num_workers - f),
        ),
        "clipped": (
            optax.chain(jm.adaptive_clip_workers(f), jm.trimmed_mean(f)),
            6 * ratio * (1 + ratio) + 2 * ratio,
        ),
    }[name]
    rng = np.random.default_rng(8)
    update = jax.jit(lambda x: transform.update(x, transform.init(None))[0])
    worst = 0.0
    for _ in range(60):
        x = rng.normal(size=(num_workers, 3)).astype(np.float32)
        x[:f] = rng.normal(size=3) * 10.0 ** rng.integers(-1, 4)
        x[f:] *= np.float32(10.0 ** rng.uniform(-1, 1))
        x += rng.normal(size=3).astype(np.float32)
        result = np.asarray(update(x), np.float64)
        for honest in itertools.combinations(range(num_workers), num_workers - f):
            rows = x[list(honest)].astype(np.float64)
            mean = rows.mean(axis=0)
            variance = np.square(rows - mean).sum() / len(rows)
            share = np.square(result - mean).sum() / (kappa * variance)
            assert share <= 1 + 1e-5
            worst = max(worst, share)
    assert worst > 0.002  # the bound is not vacuous


def test_adaptive_clipping_leaves_nobody_a_norm_beyond_the_honest():
    rng = np.random.default_rng(9)
    num_workers, f = 9, 4
    clip = jm.adaptive_clip_workers(f)
    update = jax.jit(lambda x: clip.update(x, clip.init(None))[0])
    for _ in range(20):
        x = rng.normal(size=(num_workers, 5)) * 10 ** rng.normal(size=(num_workers, 1))
        sent = np.asarray(update(x.astype(np.float32)))
        norms = np.linalg.norm(x, axis=1)
        hostile = np.argsort(norms)[-f:]
        largest = np.delete(norms, hostile).max()
        assert np.linalg.norm(sent, axis=1).max() <= largest * (1 + 1e-6)


# --- meshes ---------------------------------------------------------------------------


def test_a_mesh_gives_the_result_of_one_device(monkeypatch):
    from jaxmedian.kernels import distances

    monkeypatch.setattr(distances, "_CPU_TILE", 4)
    num_workers = 12
    x = np.random.default_rng(10).normal(size=(num_workers, 33)).astype(np.float32)
    x[5, 2] = NAN
    mask = np.arange(num_workers) != 6
    rules = {"bulyan": jm.bulyan, "minimum_diameter_mean": jm.minimum_diameter_mean}

    def update_all(grads, mask):
        return {
            name: masked_update(rule(2, axis_name="w"))(grads, mask)
            for name, rule in rules.items()
        }

    mesh = jax.make_mesh(
        (4,), ("w",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4]
    )
    on_mesh = jax.shard_map(
        update_all, mesh=mesh, in_specs=(P("w"), P("w")), out_specs=P()
    )
    for name, got in jax.jit(on_mesh)(x, mask).items():
        expected = getattr(reference, name)(x[mask], 2)
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-6, err_msg=name)


# --- errors ---------------------------------------------------------------------------


def test_too_few_workers_for_bulyan_are_refused():
    rule = jm.bulyan(2)
    with pytest.raises(ValueError, match=r"`bulyan` needs 4 f . 3 workers .* 11 for"):
        rule.update(jnp.ones((10, 2)), rule.init(None))


def test_an_f_too_large_to_search_is_refused_with_the_largest():
    rule = jm.minimum_diameter_mean(10)
    shape = jax.ShapeDtypeStruct((101, 2), jnp.float32)
    with pytest.raises(ValueError, match=r"2\^f branches of 5050 .* Take f <= 9"):
        jax.eval_shape(rule.update, shape, rule.init(None))
    rule = jm.minimum_diameter_mean(9)
    jax.eval_shape(rule.update, shape, rule.init(None))
