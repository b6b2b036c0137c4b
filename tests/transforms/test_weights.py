"""Workers who count as several: the rules on each row as often as it weighs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference_rules
from harness import awkward, enable_x64, first_update, params_like
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxmedian as jm

M, F = 7, 2
NOISE = jm.noise.gaussian(0.5)


def rules(axis_name=None):
    on = {"axis_name": axis_name}
    return {
        "mean": jm.worker_mean(**on),
        "vote": jm.majority_vote(**on),
        "vote, positive": jm.majority_vote(ties="positive", **on),
        "vote, packed": jm.majority_vote(ties="positive", transport="packed", **on),
        "median": jm.coordinate_median(**on),
        "median, lower": jm.coordinate_median(even="lower", **on),
        "median, upper": jm.coordinate_median(even="upper", **on),
        "trimmed_mean": jm.trimmed_mean(F, **on),
        "geometric_median": jm.geometric_median(0.1, 0.0, 2, **on),
    }


def all_updates(axis_name=None):
    def update_all(x, weights, mask):
        params = params_like(x)
        extra = {"worker_weights": weights, "worker_mask": mask}
        return {
            name: rule.update(x, rule.init(params), params, **extra)[0]
            for name, rule in rules(axis_name).items()
        }

    return update_all


@functools.cache
def on_one_device():
    return jax.jit(all_updates())


def finite(seed=0, size=60):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(M, size)).astype(np.float32)
    x[:, ::3] = np.round(x[:, ::3])  # ties, and zeros
    return x


EVERYBODY = np.ones(M, bool)


@pytest.mark.parametrize("whole", [True, False], ids=["int", "float"])
def test_a_weight_of_w_is_w_workers(whole):
    """Integers, and floats that happen to be whole, against repeated rows."""
    rng = np.random.default_rng(1)
    for seed in range(6):
        x = finite(seed)
        weights = rng.integers(0, 4, size=M)
        weights[rng.integers(M)] += 2 * F + 1
        mask = rng.random(M) < 0.8 if seed % 2 else EVERYBODY
        counted = weights * mask
        if counted.sum() <= 2 * F:
            mask, counted = EVERYBODY, weights
        kind = np.int32 if whole else np.float32
        got = on_one_device()(x, weights.astype(kind), mask)
        repeated = np.repeat(x, counted, axis=0)
        for name in got:
            if name == "geometric_median":
                expected = reference_rules.geometric_median(
                    repeated, 0.1, 2, "majority"
                )
            elif name == "trimmed_mean":
                expected = reference_rules.trimmed_mean(repeated, F)
            elif name == "mean":
                expected = repeated.astype(np.float64).mean(axis=0)
            elif name.startswith("median"):
                method = {"lower": "lower", "upper": "higher"}.get(name[8:], "linear")
                expected = np.quantile(repeated, 0.5, axis=0, method=method)
            else:
                tally = np.sign(repeated).sum(axis=0)
                if "vote, " in name:
                    tally = np.where(repeated >= 0, 1, -1).sum(axis=0)
                    expected = np.where(tally < 0, -1, 1)
                else:
                    expected = np.sign(tally)
            np.testing.assert_allclose(
                got[name], expected, rtol=3e-6, atol=2e-6, err_msg=name
            )


def test_weights_need_not_be_whole():
    """Shares of the total decide: a common factor changes nothing."""
    x = finite()
    weights = np.random.default_rng(2).random(M).astype(np.float32) + np.float32(0.2)
    got = on_one_device()(x, weights, EVERYBODY)
    double = on_one_device()(x, 2 * weights, EVERYBODY)
    for name in set(got) - {"trimmed_mean"}:  # f is in units of the weights
        np.testing.assert_allclose(got[name], double[name], rtol=1e-6, atol=1e-6)
    order = np.argsort(x, axis=0)
    below = np.cumsum(weights[order].astype(np.float64), axis=0)
    first = np.argmax(below >= below[-1] / 2, axis=0)
    expected = np.take_along_axis(x, order, axis=0)[first, np.arange(x.shape[1])]
    np.testing.assert_array_equal(got["median, lower"], expected)


def test_equal_weights_are_none():
    x = awkward(M, 90, nan=True)
    got = on_one_device()(x, np.ones(M, np.int32), EVERYBODY)
    for name in ("vote", "vote, positive", "median", "median, lower", "median, upper"):
        expected = first_update(rules()[name], x)
        np.testing.assert_array_equal(got[name], expected, err_msg=name)


LARGE_COUNTS = {
    "beyond int32 in total": [1_200_000_000, 1_100_000_000, 900_000_000, 7, 0, 1, 2],
    "twice beyond int32": [400_000_000, 500_000_000, 300_000_000, 7, 5, 1, 2],
    "a tie of halves": [2**31 - 1, 2**31 - 2, 1, 0, 0, 0, 0],
    "one more than a half": [2**31 - 1, 2**31 - 3, 1, 0, 0, 0, 0],
    "of 32 bits": [2**32 - 1, 2**32 - 1, 2**31, 2**31 - 1, 1, 0, 3],
}


def exact_rules(x, counts):
    """Sorted columns and Python's own integers, which have no largest one."""
    result = {"vote": [], "median": [], "median, lower": [], "trimmed_mean": []}
    total = sum(counts)
    for column in x.T.astype(float):
        tally = sum(int(np.sign(v)) * c for v, c in zip(column, counts, strict=True))
        result["vote"].append(np.sign(float(tally)))
        order = sorted(zip(column, counts, strict=True))
        below, low, high, kept = 0, None, None, 0.0
        for value, count in order:
            inside = min(below + count, total - F) - max(below, F)
            kept += value * max(inside, 0)
            below += count
            if low is None and 2 * below >= total:
                low = value
            if high is None and 2 * below > total:
                high = value
        result["median"].append((low + high) / 2)
        result["median, lower"].append(low)
        result["trimmed_mean"].append(kept / (total - 2 * F))
    return {name: np.array(values) for name, values in result.items()}


@pytest.mark.parametrize("name", LARGE_COUNTS)
def test_sample_counts_are_exact_beyond_32_bits_in_total(name):
    """Whether traced or known, in the types that such counts come in."""
    counts = LARGE_COUNTS[name]
    x = finite(size=12)
    x[1:3, 6:] = -np.abs(x[1:3, 6:]) - np.float32(0.1)  # 0 against 1 and 2
    x[0, 6:] = np.abs(x[0, 6:]) + np.float32(0.1)
    expected = exact_rules(x, counts)
    weights = np.array(counts, np.uint32 if max(counts) >= 2**31 else np.int32)
    got = on_one_device()(x, weights, EVERYBODY)
    expected["vote, packed"] = expected["vote, positive"] = np.where(
        sum(np.where(x >= 0, 1, -1) * np.array(counts)[:, None].astype(object)) < 0,
        -1,
        1,
    )
    expected["mean"] = np.average(x, axis=0, weights=np.array(counts, float))
    for rule, right in expected.items():
        exact = "vote" in rule or "lower" in rule
        np.testing.assert_allclose(
            got[rule], right, rtol=0 if exact else 1e-5, atol=0 if exact else 1e-6
        )
    signs = jm.mean_of_signs()
    tally, _ = signs.update(x, signs.init(None), None, worker_weights=weights)
    average = np.average(np.sign(x), axis=0, weights=np.array(counts, float))
    np.testing.assert_allclose(tally, average, atol=1e-6)
    known = jm.majority_vote().update(x, None, None, worker_weights=np.int64(counts))
    np.testing.assert_array_equal(known[0], expected["vote"])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.uint8, jnp.int16])
def test_short_weights_do_not_stall(dtype):
    """300 workers of one vote each: bfloat16 counts to 256, float16 to 2048."""
    x = np.ones((3_000, 2), np.float32)
    x[:1_400] = -1
    weights = jnp.ones(3_000, dtype)
    vote, _ = jm.majority_vote().update(x, None, None, worker_weights=weights)
    mean, _ = jm.worker_mean().update(x, None, None, worker_weights=weights)
    np.testing.assert_array_equal(vote, [1, 1])
    np.testing.assert_allclose(mean, 200 / 3000, rtol=1e-6)


def test_a_weight_that_32_bits_do_not_hold_is_refused_with_its_number():
    weights = np.int64([1, 2**33 + 5, 3])
    with pytest.raises(ValueError, match=r"a weight of 8589934597 .*float32"):
        jm.worker_mean().update(
            np.ones((3, 2), np.float32), None, worker_weights=weights
        )


@pytest.mark.parametrize("weights", [[2**62] * 3, [2**61] * 3, [1, 1, 2**63]])
def test_weights_whose_sums_64_bits_do_not_hold_are_refused(weights):
    with enable_x64(True):
        for tx in (jm.majority_vote(), jm.mean_of_signs(), jm.coordinate_median()):
            with pytest.raises(ValueError, match=r"64 bits do not hold .*float64"):
                tx.update(
                    jnp.ones((3, 1)),
                    optax.EmptyState(),
                    worker_weights=np.uint64(weights),
                )
        largest = np.full(3, 2**60)  # twice the sum of three is below 2^63
        update, _ = jm.majority_vote().update(
            jnp.ones((3, 1)), optax.EmptyState(), worker_weights=largest
        )
    assert update.tolist() == [1]


def test_means_of_signs_count_whole_weights_exactly():
    weights = np.uint32([2**24, 1, 1, 1, 1])  # float32 adds them up to 2^24
    rows = jnp.array([[1.0], [-1.0], [-1.0], [-1.0], [-1.0]])
    for given in (weights, jnp.asarray(weights)):
        update, _ = jax.jit(jm.mean_of_signs().update)(
            rows, optax.EmptyState(), worker_weights=given
        )
        exact = (2**24 - 4) / (2**24 + 4)
        assert abs(float(update[0]) - exact) <= 2**-24


@pytest.mark.parametrize("weight", [1e-29, 1e29])
def test_weights_whose_products_leave_float32_are_refused(weight):
    with pytest.raises(ValueError, match="from 1e-15 to 1e15"):
        jm.worker_mean().update(
            jnp.ones((2, 1)), None, worker_weights=np.full(2, weight, np.float32)
        )


def test_who_weighs_nothing_is_not_read():
    x = finite()
    x[3] = np.nan
    weights = np.int32([1, 2, 1, 0, 1, 3, 1])
    got = on_one_device()(x, weights, EVERYBODY)
    without = on_one_device()(np.nan_to_num(x), weights, EVERYBODY)
    for name in got:
        np.testing.assert_array_equal(got[name], without[name], err_msg=name)
    nobody = on_one_device()(x, np.zeros(M, np.int32), EVERYBODY)  # known too late
    for name in nobody:
        np.testing.assert_array_equal(nobody[name], np.zeros(60), err_msg=name)


def test_weights_meet_noise_and_random_ties():
    """A weighted noisy rule is the weighted rule on the same noisy rows."""
    x, weights = finite(), np.int32([1, 2, 1, 1, 1, 3, 1])
    noisy = first_update(jm.add_worker_noise(NOISE, 3), x)
    for noisy_rule, plain in (
        (jm.majority_vote(NOISE, 3), jm.majority_vote()),
        (jm.coordinate_median(NOISE, 3), jm.coordinate_median()),
    ):
        got = first_update(noisy_rule, x, worker_weights=weights)
        expected = first_update(plain, noisy, worker_weights=weights)
        np.testing.assert_allclose(got, expected, rtol=1e-6)
    decided = first_update(jm.majority_vote(), x, worker_weights=weights)
    random = jm.majority_vote(ties="random", key=1)
    got = first_update(random, x, worker_weights=weights)
    no_zeros = (x != 0).all(axis=0)
    clear = (decided != 0) & no_zeros
    np.testing.assert_array_equal(got[clear], decided[clear])
    assert set(np.unique(got)) == {-1, 1}


def test_weights_reach_streamed_gradients():
    data = jnp.asarray(finite(size=8))
    weights = jnp.int32([1, 2, 1, 0, 1, 3, 1])

    def loss(params, batch):
        return jnp.sum(params * batch)

    for optimizer in (jm.sign_sgd(0.5), optax.chain(jm.worker_mean(), optax.sgd(1.0))):
        results = []
        for chunk in (None, 3):
            step = jm.make_step(loss, optimizer, worker_chunk=chunk)
            params = jnp.zeros(8)
            with jax.numpy_dtype_promotion("standard"):
                params, _, _ = step(
                    params, optimizer.init(params), data, worker_weights=weights
                )
            results.append(params)
        np.testing.assert_allclose(results[0], results[1], rtol=1e-6, atol=1e-6)


def test_a_mesh_gives_the_result_of_one_device():
    num_workers = 8
    x = awkward(num_workers, 33)
    x[np.isinf(x)] = 3.0
    weights = np.int32([1, 2, 1, 0, 5, 3, 1, 2])
    mask = np.arange(num_workers) != 1
    mesh = jax.make_mesh(
        (4,), ("w",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4]
    )
    on_mesh = jax.shard_map(all_updates("w"), mesh=mesh, in_specs=P("w"), out_specs=P())
    got = jax.jit(on_mesh)(x, weights, mask)
    expected = on_one_device()(x, weights, mask)
    for name in expected:
        if "vote" in name or "median" in name[:6]:
            same = np.asarray(got[name]).tobytes()
            assert same == np.asarray(expected[name]).tobytes(), name
        np.testing.assert_allclose(got[name], expected[name], rtol=2e-6, atol=2e-6)


def test_lists_of_weights_are_arrays_in_a_jitted_step():
    """A jitted step makes each number of a list a tracer of its own."""
    tx = optax.chain(jm.worker_mean(), optax.sgd(1.0))
    step = jm.make_step(lambda p, x: 0.5 * (p - x) ** 2, tx)
    batch = jnp.array([1.0, 2.0, 10.0])
    mean = (600 * 1 + 200 * 2 + 100 * 10) / 900
    for weights in ([600.0, 200.0, 100.0], (6, 2, 1), np.array([6, 2, 1])):
        params = jnp.float32(0.0)
        params, _, _ = step(params, tx.init(params), batch, worker_weights=weights)
        assert params == pytest.approx(mean, rel=1e-6)


def test_bad_weights_are_refused():
    mean, x = jm.worker_mean(), jnp.ones((3, 2))

    def update(weights, rule=mean):
        return rule.update(x, rule.init(jnp.zeros(2)), None, worker_weights=weights)

    with pytest.raises(ValueError, match=r"`worker_weights` of shape \(3,\)"):
        update(jnp.ones(2))
    with pytest.raises(TypeError, match="`worker_weights` of numbers; got bool"):
        update(jnp.ones(3, bool))
    for bad in ([1.0, -1.0, 1.0], [0, 0, 0], [1.0, float("nan"), 1.0]):
        with pytest.raises(ValueError, match="`worker_weights` >= 0 that do not sum"):
            update(np.array(bad))
    for bad in (np.full(3, 1e39), np.float32([1, 1, 3e38]), np.array([1, 0, 1e-50])):
        with pytest.raises(
            ValueError, match=r"overflow or vanish in float32; .* common factor"
        ):
            update(bad)
    for rule in (
        jm.krum(0),
        jm.multi_krum(0),
        jm.mean_around_median(1),
        jm.centered_clipping(1.0),
        jm.nearest_neighbor_mixing(1),
        jm.bucketing(1, 0),
    ):
        with pytest.raises(ValueError, match="takes no `worker_weights`"):
            update(jnp.ones(3), rule)


# --- who was outvoted -----------------------------------------------------------------


def test_suspicion_counts_lost_votes_over_a_tree():
    x = np.random.default_rng(3).normal(size=(5, 40)).astype(np.float32)
    x[1] = np.nan
    mask = np.array([True, True, True, True, False])
    tree = {"a": x[:, :10].reshape(5, 2, 5), "b": x[:, 10:]}
    updates = first_update(jm.sign_sgd(0.1), tree, worker_mask=mask)
    flat = np.concatenate([np.ravel(updates["a"]), updates["b"]])
    moved = flat != 0
    expected = [(np.sign(row) == np.sign(flat))[moved].mean() for row in x]
    expected[1], expected[4] = 1.0, 0.0
    got = jax.jit(jm.diagnostics.suspicion)(tree, updates, worker_mask=mask)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    still = jax.tree.map(jnp.zeros_like, updates)
    np.testing.assert_array_equal(jm.diagnostics.suspicion(tree, still), np.zeros(5))


def test_pivotal_liars_are_less_suspicious_than_constant_ones():
    """The same votes, so the same harm, from workers who are outvoted less often."""
    hostile = [0, 4]
    x = np.random.default_rng(4).normal(0.2, 1.0, size=(9, 3000)).astype(np.float32)
    honest = [i for i in range(9) if i not in hostile]
    vote = jm.sign_sgd(1.0)
    always = x.copy()
    always[hostile] = -np.sign(x[honest].mean(axis=0, dtype=np.float64)) * np.inf
    pivotal = first_update(jm.attacks.pivotal_votes(hostile), x)
    harm = first_update(vote, always)
    np.testing.assert_array_equal(first_update(vote, pivotal), harm)
    of_constant = np.asarray(jm.diagnostics.suspicion(always, harm))
    of_pivotal = np.asarray(jm.diagnostics.suspicion(pivotal, harm))
    np.testing.assert_array_equal(of_pivotal[honest], of_constant[honest])
    assert of_constant[hostile].min() > of_constant[honest].max() + 0.05
    assert of_pivotal[hostile].max() < of_constant[honest].max()


def test_leaves_without_a_coordinate_take_weights_too():
    x, weights = np.ones((M, 0), np.float32), np.arange(M)
    for rule in rules().values():
        updates, _ = rule.update(x, rule.init(None), worker_weights=weights)
        assert updates.shape == (0,)
