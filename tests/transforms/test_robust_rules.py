"""Rules that withstand hostile workers: slow loops, guarantees, bad rows, meshes."""

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


def rules(f, axis_name=None):
    """Rule -> (transform, slow loop); aggregators first, then worker transforms."""
    on = {"axis_name": axis_name}
    return {
        "trimmed_mean": (
            jm.trimmed_mean(f, **on),
            lambda x: reference.trimmed_mean(x, f),
        ),
        "mean_around_median": (
            jm.mean_around_median(f, **on),
            lambda x: reference.mean_around_median(x, f),
        ),
        "krum": (jm.krum(f, **on), lambda x: reference.krum(x, f)),
        "krum, 3 neighbors": (
            jm.krum(f, 3, **on),
            lambda x: reference.krum(x, f, 3),
        ),
        "multi_krum": (jm.multi_krum(f, **on), lambda x: reference.multi_krum(x, f)),
        "geometric_median": (
            jm.geometric_median(0.1, 0.0, 4, start="mean", **on),
            lambda x: reference.geometric_median(x, 0.1, 4, "mean"),
        ),
        "geometric_median, majority": (
            jm.geometric_median(0.1, 0.0, 2, **on),
            lambda x: reference.geometric_median(x, 0.1, 2, "majority"),
        ),
        "geometric_median, zeros": (
            jm.geometric_median(0.1, 0.0, 3, start="zeros", **on),
            lambda x: reference.geometric_median(x, 0.1, 3, "zeros"),
        ),
        "centered_clipping": (
            jm.centered_clipping(3.0, 2, **on),
            lambda x: reference.centered_clipping(x, 3.0, np.zeros(x.shape[1]), 2),
        ),
        "minimum_diameter_mean": (
            jm.minimum_diameter_mean(f, **on),
            lambda x: reference.minimum_diameter_mean(x, f),
        ),
        "nearest_neighbor_mixing": (
            jm.nearest_neighbor_mixing(f, **on),
            lambda x: reference.nearest_neighbor_mixing(x, f),
        ),
        "clip_workers": (
            jm.clip_workers(3.0, **on),
            lambda x: reference.clip_workers(x, 3.0),
        ),
        "adaptive_clip_workers": (
            jm.adaptive_clip_workers(f, **on),
            lambda x: reference.adaptive_clip_workers(x, f),
        ),
    }


WORKER_TRANSFORMS = (
    "nearest_neighbor_mixing",
    "clip_workers",
    "adaptive_clip_workers",
)
AGGREGATORS = [name for name in rules(0) if name not in WORKER_TRANSFORMS]


def all_updates(f, axis_name=None, only=None):
    """Builds (grads, mask) -> {rule: update}, in one program."""

    def update_all(grads, mask=None):
        params = params_like(grads)
        extra = {} if mask is None else {"worker_mask": mask}
        return {
            name: rule.update(grads, rule.init(params), params, **extra)[0]
            for name, (rule, _) in rules(f, axis_name).items()
            if only is None or name in only
        }

    return update_all


@functools.cache
def run_all(f, only=None):
    """Jits `all_updates`, once for all tests; NumPy in and out."""
    update = jax.jit(all_updates(f, only=only))

    def run(*arguments):
        return jax.tree.map(np.asarray, update(*arguments))

    return run


def assert_close(got, expected, tolerance):
    assert got.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(
            got[name], expected[name], rtol=tolerance, atol=tolerance, err_msg=name
        )


# --- against the slow loops -----------------------------------------------------------


def test_every_rule_is_the_slow_loop():
    num_workers, f = 12, 4
    rng = np.random.default_rng(num_workers)
    with enable_x64(True):
        update = run_all(f)
        for _ in range(8):
            x = rng.normal(0.5, rng.uniform(0.2, 2), size=(num_workers, 30))
            expected = {name: slow(x) for name, (_, slow) in rules(f).items()}
            assert_close(update(x), expected, 1e-10)


def test_with_a_mask_every_rule_is_the_slow_loop_over_those_present():
    num_workers, f = 12, 2
    rng = np.random.default_rng(0)
    with enable_x64(True):
        update = run_all(f)
        for num_present in (7, 8, 11, 12):
            x = rng.normal(size=(num_workers, 20))
            present = rng.permutation(num_workers) < num_present
            x[~present] = NAN
            expected = {}
            for name, (_, slow) in rules(f).items():
                result = slow(x[present])
                if name not in AGGREGATORS:
                    result, kept = np.zeros_like(x), result
                    result[present] = kept
                expected[name] = result
            assert_close(update(x, present), expected, 1e-10)


def test_too_few_present_give_the_documented_result():
    f = 2
    with enable_x64(True):
        x = np.random.default_rng(1).normal(size=(12, 20))
        nobody = run_all(f)(x, np.zeros(12, bool))
        for name in nobody.keys() - {"clip_workers"}:
            assert not np.any(nobody[name]), name
        present = np.isin(np.arange(12), [0, 2, 5])
        few = run_all(f)(x, present)
    middle = np.median(x[present], axis=0)
    np.testing.assert_allclose(few["trimmed_mean"], middle, rtol=1e-12)
    np.testing.assert_allclose(few["mean_around_median"], middle, rtol=1e-12)
    expected = reference.krum(x[present], f, neighbors=1)
    np.testing.assert_allclose(few["krum"], expected, rtol=1e-12)
    # n - f = 1 is left to average: Krum's choice.
    np.testing.assert_allclose(few["multi_krum"], few["krum"], rtol=1e-12)


@pytest.mark.parametrize("num_workers", [33, 113])
def test_many_workers_take_other_paths_to_the_same_means(num_workers):
    """Beside the thresholds between one expression, tiles and bisection."""
    x = np.random.default_rng(2).normal(size=(num_workers, 40)).astype(np.float32)
    x[:, ::4] = np.round(x[:, ::4])  # ties
    f = num_workers // 5
    only = ("trimmed_mean", "mean_around_median")
    got = run_all(f, only)(x)
    expected = {name: rules(f)[name][1](x) for name in only}
    assert_close(got, expected, 3e-6)


def test_tiles_of_coordinates_change_nothing(monkeypatch):

    x = np.random.default_rng(3).normal(size=(113, 400)).astype(np.float32)
    from jaxmedian.kernels import tiles

    monkeypatch.setattr(tiles, "CPU_TILE", 113 * 150)
    only = ("trimmed_mean", "mean_around_median")
    got = jax.jit(all_updates(20, only=only))(x)
    assert_close(got, {name: rules(20)[name][1](x) for name in only}, 3e-6)


def test_a_tree_counts_as_one_vector():
    """Distances are over all leaves, whatever their shapes, and dtypes are kept."""
    x = np.random.default_rng(4).normal(size=(7, 70_010)).astype(np.float32)
    tree = {
        "small": x[:, :4].reshape(7, 2, 2),
        "scalar": x[:, 4],
        "none": None,
        "large": x[:, 5:-5],
        "last": x[:, -5:],
    }
    only = ("trimmed_mean", "multi_krum", "centered_clipping")
    only += ("nearest_neighbor_mixing",)
    got, expected = run_all(2, only)(tree), run_all(2, only)(x)
    for name, whole in expected.items():
        parts = got[name]
        lead = whole.shape[:-1]
        joined = np.concatenate(
            [
                np.reshape(parts[key], (*lead, -1))
                for key in ("small", "scalar", "large", "last")
            ],
            axis=-1,
        )
        np.testing.assert_allclose(joined, whole, rtol=1e-5, atol=1e-6, err_msg=name)


def test_rules_can_be_vmapped():
    x = np.random.default_rng(5).normal(size=(3, 7, 10)).astype(np.float32)
    names = ("trimmed_mean", "krum", "geometric_median")
    update = all_updates(2, only=names)
    many = jax.jit(jax.vmap(update))(x)
    single = jax.jit(update)
    for i in range(3):
        assert_close({n: many[n][i] for n in many}, single(x[i]), 1e-5)


# --- what they guarantee --------------------------------------------------------------


def test_the_error_is_within_kappa_of_the_variance_for_every_honest_set():
    """|R - mean_S|^2 <= kappa / |S| sum_S |x - mean_S|^2: Allouah et al., Def. 2."""
    num_workers, f = 9, 2
    ratio = f / (num_workers - 2 * f)
    kappa = {
        "trimmed_mean": 6 * ratio * (1 + ratio),
        "krum": 6 * (1 + ratio),
        "geometric_median": 4 * (1 + ratio) ** 2,
    }
    mixed = {name: 8 * f / (num_workers - f) * (k + 1) for name, k in kappa.items()}
    transforms = {
        "trimmed_mean": jm.trimmed_mean(f),
        "krum": jm.krum(f),
        "geometric_median": jm.geometric_median(),
    }
    mixing = jm.nearest_neighbor_mixing(f)
    rng = np.random.default_rng(6)
    worst = 0.0
    for name, transform in transforms.items():
        chained = optax.chain(mixing, transform)
        for trial in range(20):
            x = rng.normal(size=(num_workers, 3)).astype(np.float32)
            x[:f] = rng.normal(size=3) * 10.0 ** rng.integers(-1, 4)
            x[f:] *= np.float32(10.0 ** rng.uniform(-1, 1))
            results = [(first_update(transform, x), kappa[name])]
            if trial < 5:
                results.append((first_update(chained, x), mixed[name]))
            for honest in itertools.combinations(range(num_workers), num_workers - f):
                rows = x[list(honest)].astype(np.float64)
                mean = rows.mean(axis=0)
                variance = np.square(rows - mean).sum() / len(rows)
                for result, bound in results:
                    error = np.square(result - mean).sum()
                    assert error <= bound * variance * (1 + 1e-5), name
                    worst = max(worst, error / (bound * variance))
    assert worst > 0.01  # the bound is not vacuous


def test_the_geometric_median_is_where_the_unit_vectors_cancel():
    x = np.random.default_rng(7).normal(size=(9, 4)).astype(np.float32)
    x[0] = 1e4
    z = first_update(jm.geometric_median(tolerance=1e-7, max_steps=500), x)
    away = x.astype(np.float64) - z
    units = away / np.linalg.norm(away, axis=1, keepdims=True)
    assert np.linalg.norm(units.sum(axis=0)) < 1e-3  # 0 at the minimum, of 9 unit long


@pytest.mark.parametrize(("num_workers", "f"), [(3, 1), (21, 10), (101, 50)])
@pytest.mark.parametrize("scale", [1.0, 1e-10])
def test_the_largest_minority_moves_the_geometric_median_a_bounded_way(
    num_workers, f, scale
):
    """As far away as it likes, and in any unit: with the defaults, within kappa."""
    rng = np.random.default_rng(14)
    x = (100 + rng.normal(size=(num_workers, 4))) * scale
    mean = x[f:].mean(axis=0)
    variance = np.square(x[f:] - mean).sum() / (num_workers - f)
    kappa = 4 * (1 + f / (num_workers - 2 * f)) ** 2
    reached = []
    for size in (1e3, 1e6, 1e12):
        x[:f] = size * scale
        z = first_update(jm.geometric_median(), x.astype(np.float32))
        assert np.square(z - mean).sum() <= kappa * variance
        reached.append(z / scale)
    np.testing.assert_allclose(reached[1:], reached[:1] * 2, rtol=1e-4)


def test_a_minority_by_weight_moves_the_geometric_median_a_bounded_way():
    """Ten of 13 heads, and a quarter of the weight."""
    x = np.random.default_rng(15).normal(size=(13, 4)).astype(np.float32)
    x[:10] = 1e9
    weights = jnp.array([1] * 10 + [10] * 3)
    rule = jm.geometric_median()
    z, _ = rule.update(x, rule.init(None), worker_weights=weights)
    apart = np.linalg.norm(x[10:, None] - x[None, 10:], axis=2).max()
    assert np.linalg.norm(z - x[10:].mean(axis=0)) < apart


def test_a_majority_at_one_point_is_the_geometric_median():
    x = np.float32([[2.0, 3.0]] * 3 + [[5.0, 1.0], [-7.0, 1e4]])
    np.testing.assert_allclose(first_update(jm.geometric_median(), x), x[0], rtol=1e-6)


def test_centered_clipping_remembers_its_centre():
    x = np.random.default_rng(8).normal(2.0, 1.0, size=(4, 7, 5)).astype(np.float32)
    rule = jm.centered_clipping(0.5)
    params = jnp.zeros(5)
    state = rule.init(params)
    center = np.zeros(5)
    for rows in x:
        got, state = jax.jit(rule.update)(rows, state, params)
        center = reference.centered_clipping(rows, 0.5, center)
        np.testing.assert_allclose(got, center, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(got, state.center)


def test_krum_breaks_exact_ties_by_the_lowest_number():
    x = np.float32([[5.0], [1.0], [1.0], [-9.0], [1.0]])
    assert first_update(jm.krum(1), x) == 1
    pair = np.float32([[9.0], [4.0], [3.0]])  # one neighbour each: 4 and 3 tie
    assert first_update(jm.krum(0), pair) == 4


# --- distances ------------------------------------------------------------------------


@pytest.mark.parametrize("hostile", [0.0, 1e10])
def test_distances_survive_a_common_mean_and_hostile_rows(hostile):
    """Right to 1e-3 where the mean is 1,000 times the spread, over several tiles."""
    from jaxmedian.kernels import distances

    rng = np.random.default_rng(10)
    x = (1000 + rng.normal(size=(11, 10_000))).astype(np.float32)
    x[:3] += np.float32(hostile)
    gram = jax.jit(lambda x: distances.gram_of_rows(x, None))(x)
    sound = distances.sound_rows(gram, None)
    got = np.asarray(distances.squared_distances(gram, sound))
    honest = x[3:].astype(np.float64)
    exact = np.square(honest[:, None] - honest[None]).sum(axis=2)
    np.testing.assert_allclose(got[3:, 3:], exact, rtol=1e-3)
    np.testing.assert_array_equal(got, got.T)
    np.testing.assert_array_equal(np.diagonal(got), np.zeros(11))


# --- what is not finite ---------------------------------------------------------------


def test_f_bad_rows_do_what_f_rows_far_away_may():
    """The result is finite, and in the coordinate-wise rules between the honest."""
    num_workers, f = 9, 3
    rng = np.random.default_rng(12)
    for bad, hostile in itertools.product([NAN, INF, -INF, 1e38, -1e38], (1, 3)):
        x = rng.normal(size=(num_workers, 20)).astype(np.float32)
        rows = rng.permutation(num_workers)[:hostile]
        x[rows] = bad
        honest = np.delete(x, rows, axis=0)
        got = run_all(f)(x)
        for name, result in got.items():
            assert np.isfinite(result).all(), name
        trimmed = got["trimmed_mean"]
        assert (trimmed >= honest.min(axis=0)).all()
        assert (trimmed <= honest.max(axis=0)).all()
        assert (got["krum"] == honest).all(axis=1).any()
        around = reference.mean_around_median(x, f)
        np.testing.assert_allclose(got["mean_around_median"], around, rtol=1e-5)
        # Bad rows are left out of what is averaged by distance.
        expected = reference.geometric_median(honest, 0.1, 4, "mean")
        np.testing.assert_allclose(
            got["geometric_median"], expected, rtol=1e-4, atol=1e-5
        )


def test_ten_thousand_minorities_leave_median_and_vote_right():
    """Each coordinate a case of its own, with 0 to 5 hostile of 11 in it."""
    num_workers, cases = 11, 10_000
    rng = np.random.default_rng(17)
    x = rng.normal(rng.normal(size=cases), 0.5, (num_workers, cases))
    x = x.astype(np.float32)
    rank = np.argsort(rng.random(x.shape), axis=0)
    hostile = rank < rng.integers(0, 6, size=cases)
    bad = rng.choice(np.float32([NAN, INF, -INF, 1e38, -1e38]), size=x.shape)
    sent = np.where(hostile, bad, x)
    low = np.where(hostile, np.float32(INF), x).min(axis=0)
    high = np.where(hostile, np.float32(-INF), x).max(axis=0)
    median = first_update(jm.coordinate_median(), sent)
    assert (median >= low).all()
    assert (median <= high).all()
    trimmed = first_update(jm.trimmed_mean(5), sent)
    assert (trimmed >= low).all()
    assert (trimmed <= high).all()
    vote = first_update(jm.majority_vote(), sent)
    agree = (low > 0) | (high < 0)
    assert agree.sum() > 3000
    np.testing.assert_array_equal(vote[agree], np.sign(low + high)[agree])


def test_one_bad_entry_counts_as_a_bad_row_of_distances():
    x = np.random.default_rng(13).normal(size=(9, 20)).astype(np.float32)
    x[2, 3], x[4, 0] = NAN, INF
    got = run_all(3)(x)
    expected = {name: slow(x) for name, (_, slow) in rules(3).items()}
    assert_close(got, expected, 2e-5)


def test_more_bad_rows_than_f_but_a_minority_leave_distance_rules_finite():
    x = np.random.default_rng(14).normal(size=(9, 20)).astype(np.float32)
    x[[0, 1, 4, 7]] = NAN
    got = run_all(3)(x)
    for name in got.keys() - {"trimmed_mean", "mean_around_median"}:
        assert np.isfinite(got[name]).all(), name


def test_infinities_beyond_f_are_part_of_a_trimmed_mean():
    x = np.float32([[INF], [INF], [1.0], [2.0], [3.0]])
    assert first_update(jm.trimmed_mean(1), x) == INF
    assert first_update(jm.trimmed_mean(1), -x) == -INF
    assert first_update(jm.trimmed_mean(2), x) == 3


# --- meshes ---------------------------------------------------------------------------


def test_a_mesh_gives_the_result_of_one_device(monkeypatch):
    from jaxmedian.kernels import distances

    monkeypatch.setattr(distances, "_CPU_TILE", 4)  # several tiles, and a rest
    monkeypatch.setattr(distances, "_ROW_TILE", 8)
    num_devices = 4
    x = np.random.default_rng(15).normal(size=(8, 33)).astype(np.float32)
    x[5, 2], x[:, 7] = NAN, -0.0
    mask = np.arange(8) != 6
    expected = run_all(1)(x, mask)
    mesh = jax.make_mesh(
        (num_devices,),
        ("w",),
        axis_types=(AxisType.Auto,),
        devices=jax.devices()[:num_devices],
    )
    out = {name: P() if name in AGGREGATORS else P("w") for name in expected}
    on_mesh = jax.shard_map(
        all_updates(1, "w"), mesh=mesh, in_specs=(P("w"), P("w")), out_specs=out
    )
    got = jax.jit(on_mesh)(x, mask)
    assert_close(got, expected, 2e-6)
    for name in ("krum", "krum, 3 neighbors"):  # selects: to the bit
        assert np.asarray(got[name]).tobytes() == np.asarray(expected[name]).tobytes()


# --- errors ---------------------------------------------------------------------------

OF_F = {
    "trimmed_mean": jm.trimmed_mean,
    "mean_around_median": jm.mean_around_median,
    "krum": jm.krum,
    "multi_krum": jm.multi_krum,
    "bulyan": jm.bulyan,
    "minimum_diameter_mean": jm.minimum_diameter_mean,
    "nearest_neighbor_mixing": jm.nearest_neighbor_mixing,
    "adaptive_clip_workers": jm.adaptive_clip_workers,
}


@pytest.mark.parametrize("name", OF_F)
def test_an_f_that_no_rule_withstands_is_refused(name):
    with pytest.raises(TypeError, match=f"`{name}` expects `f`, .* got 0.5"):
        OF_F[name](0.5)
    with pytest.raises(ValueError, match=f"`{name}`: `f` must be >= 0; got -1"):
        OF_F[name](-1)
    rule = OF_F[name](2)
    of_distances = ("krum", "multi_krum", "bulyan")
    needed = "needs [24] f . 3 workers" if name in of_distances else "withstands a min"
    with pytest.raises(ValueError, match=f"`{name}` {needed}"):
        rule.update(jnp.ones((4, 2)), rule.init(None))


@pytest.mark.parametrize("rule", [jm.krum, jm.multi_krum])
def test_bad_neighbors_are_refused(rule):
    with pytest.raises(TypeError, match="`neighbors` must be an int"):
        rule(1, 2.0)
    with pytest.raises(ValueError, match="`neighbors` must be >= 1; got 0"):
        rule(1, 0)
    with pytest.raises(ValueError, match="4 workers have at most 3 neighbours each"):
        rule(1, 4).update(jnp.ones((4, 2)), rule(1, 4).init(None))
    with pytest.raises(ValueError, match="`f` is 2 of 4 workers"):
        rule(2, 2).update(jnp.ones((4, 2)), rule(2, 2).init(None))


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match="`smoothing` must be finite and > 0"):
        jm.geometric_median(0.0)
    with pytest.raises(ValueError, match="`tolerance` must be >= 0"):
        jm.geometric_median(tolerance=-1)
    with pytest.raises(ValueError, match="`max_steps` must be at least 1"):
        jm.geometric_median(max_steps=0)
    with pytest.raises(ValueError, match=r"`start` must be one of .*'majority'"):
        jm.geometric_median(start="median")
    for rule in (jm.centered_clipping, jm.clip_workers):
        with pytest.raises(ValueError, match="`radius` must be finite and > 0"):
            rule(-1.0)
        with pytest.raises(TypeError, match="`radius` must be a number"):
            rule("1")
    with pytest.raises(ValueError, match="`steps` must be at least 1"):
        jm.centered_clipping(1.0, 0)
