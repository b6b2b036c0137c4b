"""A scale for every coordinate: what b is, what it costs, and what it buys."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from harness import COUPLINGS, enable_x64, first_update, params_like
from jax.sharding import PartitionSpec as P

import jaxmedian as jm
from jaxmedian.kernels.rows import groups_of, rows_of_leaves
from jaxmedian.noise.keys import init_state as key_state
from jaxmedian.transforms.noise_scales import RunningScaleState, coordinate_scales
from jaxmedian.workers.population import population_of

STATELESS = ("sd", "range", "mad", "unbiased")
UNIT = 1 / math.sqrt(3)  # of uniform noise: its samples are t itself


def skewed(num_workers, size, seed=0):
    """Coordinates whose sizes differ by orders of magnitude."""
    rng = np.random.default_rng(seed)
    sizes = np.exp(3 * rng.normal(size=size))
    return (rng.exponential(size=(num_workers, size)) * sizes).astype(np.float32)


def statistic_of(name, rows):
    rows = np.asarray(rows, np.float64)
    if name == "sd":
        return rows.std(axis=0)
    if name == "range":
        return np.ptp(rows, axis=0)
    if name == "mad":
        return np.median(np.abs(rows - np.median(rows, axis=0)), axis=0)
    n = len(rows)
    return np.ptp(rows, axis=0) * n / (2 * math.sqrt(3) * math.ceil(n / 2))


def scales_from_noise(noisy, grads, key, coupling):
    """b_j of uniform noise, where a sample is large: (noisy - g) / (sqrt(3) t)."""
    drawn = reference.worker_words(key, coupling, shape=grads.shape)
    t = reference.centred_uniform(drawn)
    largest = np.abs(t).argmax(axis=0)
    column = np.arange(grads.shape[1])
    difference = (np.float64(noisy) - grads)[largest, column]
    return difference / (math.sqrt(3) * t[largest, column])


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("name", STATELESS)
@pytest.mark.parametrize("num_workers", [6, 7])
def test_the_noise_of_a_coordinate_has_its_own_scale(name, coupling, num_workers):
    grads = skewed(num_workers, 50)
    noise = jm.noise.uniform(jm.noise.per_coordinate(1.5, name), coupling)
    noisy = first_update(jm.add_worker_noise(noise, 3), grads)
    scales = scales_from_noise(noisy, grads, jax.random.key(3), coupling)
    expected = 1.5 * statistic_of(name, grads)
    np.testing.assert_allclose(scales, expected, rtol=2e-4)


def test_only_the_workers_present_set_the_scale():
    grads = skewed(7, 40)
    mask = np.array([1, 0, 1, 1, 1, 0, 1], bool)
    grads[~mask] = np.float32(1e9)
    for name in STATELESS:
        noise = jm.noise.uniform(jm.noise.per_coordinate(1.0, name))
        noisy = first_update(jm.add_worker_noise(noise, 3), grads, worker_mask=mask)
        drawn = reference.worker_words(
            jax.random.key(3), "independent", shape=grads.shape
        )
        b = statistic_of(name, grads[mask])
        expected = grads + b * math.sqrt(3) * reference.centred_uniform(drawn)
        np.testing.assert_allclose(noisy[mask], expected[mask], rtol=1e-4)


@pytest.mark.parametrize("num_workers", [3, 4, 5, 6])
def test_unbiased_noise_makes_the_mean_of_the_median_the_mean(num_workers):
    """All permutations, and V on a fine grid: E[median] = mean in every coordinate.

    A median is piecewise linear in V and jumps M times, by less than the range of the
    noise: N equally spaced V miss its mean by less than M times that range over N.
    """
    u = skewed(num_workers, 1, seed=num_workers)[:, 0].astype(np.float64)
    b = statistic_of("unbiased", u[:, None])[0]
    size = 400_000
    v = (np.arange(size) + 0.5) / size
    means = []
    # Which worker comes first is a matter of V.
    for rest in itertools.permutations(range(1, num_workers)):
        order = (0, *rest)
        fraction = (v + np.array(order)[:, None] / num_workers) % 1
        noisy = u[:, None] + b * math.sqrt(3) * (2 * fraction - 1)
        means.append(np.median(noisy, axis=0).mean())
    error = num_workers * 2 * math.sqrt(3) * b / size
    assert error < 1e-4 * np.ptp(u)
    np.testing.assert_allclose(means, u.mean(), rtol=0, atol=error)


@pytest.mark.parametrize("num_workers", [10, 11])
def test_the_unbiased_median_of_the_kernels_follows_the_mean(num_workers):
    grads = skewed(num_workers, 30, seed=1)
    draws = 4_000

    def median(key):
        return jm.perturbed_median(grads, jm.noise.unbiased(), key)

    medians = np.asarray(jax.jit(jax.vmap(median))(jnp.arange(draws)), np.float64)
    error = medians.std(axis=0) / math.sqrt(draws)
    assert (np.abs(medians.mean(axis=0) - grads.mean(axis=0)) < 5.5 * error).all()


def test_the_law_of_a_median_given_its_scales_is_that_of_theory():
    grads = skewed(5, 12, seed=2)
    draws = 4_000
    noise = jm.noise.gaussian(jm.noise.per_coordinate(1.0, "sd"))

    def median(key):
        return jm.perturbed_median(grads, noise, key)

    medians = np.asarray(jax.jit(jax.vmap(median))(jnp.arange(draws)), np.float64)
    scales = statistic_of("sd", grads)
    for j, (column, b) in enumerate(zip(grads.T, scales, strict=True)):
        mean, variance = jm.theory.median_moments(column, jm.noise.gaussian(b))
        deviation = math.sqrt(variance)
        assert abs(medians[:, j].mean() - mean) < 5.5 * deviation / math.sqrt(draws)
        # The fourth central moment of a median of Gaussian noise is below 5 sd^4.
        assert abs(medians[:, j].std() / deviation - 1) < 5.5 / math.sqrt(draws)


def test_coordinates_in_which_the_workers_agree_are_free_of_noise():
    grads = skewed(5, 20)
    grads[:, ::2] = grads[0, ::2]
    for name in STATELESS:
        noise = jm.noise.gaussian(jm.noise.per_coordinate(2.0, name))
        for rule in (jm.coordinate_median, jm.majority_vote):
            with_noise = first_update(rule(noise, 0), grads)
            without = first_update(rule(), grads)
            np.testing.assert_array_equal(with_noise[::2], without[::2])
    everywhere = np.zeros((4, 6), np.float32)
    noise = jm.noise.logistic(jm.noise.per_coordinate(1.0, "sd"))
    assert not first_update(jm.majority_vote(noise, 0), everywhere).any()


@pytest.mark.parametrize("name", [*STATELESS, "rms"])
def test_medians_move_equally_with_workers_who_agree(name):
    """The scale is 0 there, and all are tied: a share of 1 / M each, and no NaN."""
    grads = skewed(5, 6)
    grads[:, ::2] = 0
    noise = jm.noise.uniform(jm.noise.per_coordinate(1.0, name), "systematic")
    tx = jm.coordinate_median(noise, 0)

    def total(grads):
        return tx.update(grads, tx.init(jnp.zeros(6)), jnp.zeros(6))[0].sum()

    shares = jax.jit(jax.grad(total))(grads)
    np.testing.assert_allclose(shares[:, ::2], 1 / 5, rtol=1e-6)
    assert np.isfinite(shares).all()


@pytest.mark.parametrize("name", [*STATELESS, "rms"])
def test_fused_rules_are_those_of_a_chain(name):
    grads = {"a": skewed(9, 30), "b": skewed(9, 70_001, seed=4)}
    noise = jm.noise.laplace(jm.noise.per_coordinate(0.7, name))
    for rule in (jm.coordinate_median, jm.majority_vote):
        fused = first_update(rule(noise, 5), grads)
        chained = first_update(
            optax.chain(jm.add_worker_noise(noise, 5), rule()), grads
        )
        for leaf in grads:
            differ = (fused[leaf] != chained[leaf]).mean()
            assert differ <= (1e-4 if rule is jm.majority_vote else 0)


@pytest.mark.parametrize("name", [*STATELESS, "rms"])
def test_the_bits_do_not_depend_on_the_number_of_devices(name):
    grads = skewed(8, 203)
    mask = np.array([1, 1, 0, 1, 1, 1, 1, 0], bool)
    noise = jm.noise.uniform(jm.noise.per_coordinate(1.0, name), "systematic")
    for rule in (jm.coordinate_median, jm.majority_vote):
        one = first_update(rule(noise, 1), grads, worker_mask=mask)
        tx = rule(noise, 1, axis_name="workers")
        mesh = jm.sharding.workers_mesh(4)

        def update(grads, mask, tx=tx):
            params = jnp.zeros(203)
            updates, _ = tx.update(grads, tx.init(params), params, worker_mask=mask)
            return updates

        on_mesh = jax.jit(
            jax.shard_map(
                update, mesh=mesh, in_specs=(P("workers"), P("workers")), out_specs=P()
            )
        )
        np.testing.assert_array_equal(on_mesh(grads, mask), one)


@pytest.mark.parametrize("name", ["sd", "unbiased", "rms"])
def test_a_stream_of_workers_is_stacked(name):
    data = jnp.asarray(skewed(6, 40))

    def loss(params, batch):
        return jnp.sum(params * batch)

    noise = jm.noise.gaussian(jm.noise.per_coordinate(1.0, name))
    ends = []
    for chunk in (None, 2):
        tx = jm.noisy_sign_sgd(0.1, noise, 0)
        step = jm.make_step(loss, tx, worker_chunk=chunk)
        params = jnp.zeros(40)
        ends.append(step(params, tx.init(params), data)[0])
    np.testing.assert_array_equal(*ends)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e38, -1e38])
def test_a_minority_never_drives_a_median_with_mad_noise_far(bad):
    """At most 7 times the honest range away: |xi| <= sqrt(3) and MAD <= range."""
    grads = skewed(9, 60)
    honest = grads[4:].astype(np.float64)
    width = np.ptp(honest, axis=0)
    grads[:4] = bad
    noise = jm.noise.uniform(jm.noise.per_coordinate(1.0, "mad"))
    median = first_update(jm.coordinate_median(noise, 0), grads)
    reach = math.sqrt(3) * width * (1 + 1e-5)
    assert (median <= honest.max(axis=0) + reach).all()
    assert (median >= honest.min(axis=0) - reach).all()


# --- running mean squares -------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 3])
def test_running_mean_squares_are_those_of_a_loop(every):
    decay, steps = 0.8, 8
    noise = jm.noise.uniform(
        jm.noise.per_coordinate(1.0, "rms", every=every, decay=decay)
    )
    tx = jm.add_worker_noise(noise, 2)
    grads = [skewed(5, 12, seed=step) for step in range(steps)]
    state = tx.init(jnp.zeros(12))
    assert type(state) is RunningScaleState
    update = jax.jit(tx.update)
    sent = []
    for step in range(steps):
        if step % every == 0:
            sent.append(np.mean(np.float64(grads[step]) ** 2, axis=0))
        noisy, state = update(grads[step], state, jnp.zeros(12))
        ages = decay ** (every * np.arange(len(sent) - 1, -1, -1))
        expected = np.tensordot(ages, sent, 1) / ages.sum()
        np.testing.assert_allclose(state.mean_squares, expected, rtol=1e-5)
        drawn = reference.worker_words(
            jax.random.key(2), "independent", shape=(5, 12), step=step
        )
        xi = math.sqrt(3) * reference.centred_uniform(drawn)
        error = noisy - (grads[step] + np.sqrt(expected) * xi)
        assert (np.abs(error) < 1e-5 * (np.sqrt(expected) + np.abs(grads[step]))).all()


@pytest.mark.parametrize("decay", [0, 0.5, 1 - 1e-8, 1 - 1e-16])
def test_decays_that_float32_rounds_to_one_are_decays(decay):
    """From the first step the squares are a weighted mean of what was sent."""
    noise = jm.noise.uniform(jm.noise.per_coordinate(1.0, "rms", decay=decay))
    tx = jm.majority_vote(noise, 0)
    state, sent = tx.init(jnp.zeros(4)), []
    for step in range(3):
        grads = skewed(3, 4, seed=step)
        updates, state = tx.update(grads, state, jnp.zeros(4))
        assert set(np.asarray(updates).tolist()) <= {-1.0, 1.0}
        sent.append(np.mean(np.float64(grads) ** 2, axis=0))
        ages = np.float64(decay) ** np.arange(step, -1, -1)
        expected = np.tensordot(ages, sent, 1) / ages.sum()
        error = np.abs(state.mean_squares - expected)
        assert (error <= 1e-6 * np.max(sent, axis=0)).all()


def test_mean_squares_stay_where_nobody_sent_a_finite_number():
    tx = jm.add_worker_noise(jm.noise.gaussian(jm.noise.per_coordinate(1.0, "rms")), 2)
    grads = skewed(3, 4)
    _, before = tx.update(grads, tx.init(jnp.zeros(4)), jnp.zeros(4))
    broken = np.full_like(grads, math.nan)
    _, after = tx.update(broken, before, jnp.zeros(4))
    np.testing.assert_array_equal(before.mean_squares, after.mean_squares)
    nobody = jnp.zeros(3, bool)
    _, after = tx.update(2 * grads, before, jnp.zeros(4), worker_mask=nobody)
    np.testing.assert_array_equal(before.mean_squares, after.mean_squares)


def test_mean_squares_begin_with_the_first_finite_number():
    """A zero is a number: only what was never finite has no mean yet."""
    scale = jm.noise.per_coordinate(1.0, "rms", decay=0.9)
    tx = jm.add_worker_noise(jm.noise.gaussian(scale), 2)
    rows = [[math.nan, 0.0, 2.0], [math.inf, 2.0, 2.0], [2.0, 2.0, 2.0], [2.0] * 3]
    state, later = tx.init(jnp.zeros(3)), []
    for row in rows:
        _, state = tx.update(jnp.full((4, 3), jnp.float32(row)), state, jnp.zeros(3))
        later.append(state.mean_squares)
    ages = 0.9 ** np.arange(3, -1, -1)
    np.testing.assert_array_equal(later[1][0], 0)
    np.testing.assert_allclose(later[2][0], 4, rtol=1e-6)
    expected = [4, 4 * ages[1:].sum() / ages.sum(), 4]
    np.testing.assert_allclose(later[3], expected, rtol=1e-5)


@pytest.mark.parametrize("name", [*STATELESS, "rms"])
def test_a_broken_number_leaves_the_noise_of_other_coordinates_alone(name):
    grads = skewed(5, 40)
    broken = grads.copy()
    broken[0, 7] = math.nan
    noise = jm.noise.gaussian(jm.noise.per_coordinate(1.0, name))
    whole, parts = (
        np.asarray(first_update(jm.add_worker_noise(noise, 3), rows))
        for rows in (grads, broken)
    )
    others = np.arange(40) != 7
    np.testing.assert_array_equal(whole[:, others], parts[:, others])


def leaves_of(num_leaves):
    """Small leaves whose sizes differ, in float32 and bfloat16."""
    dtypes = itertools.cycle([jnp.float32, jnp.float32, jnp.bfloat16])
    rows = skewed(4, 70 * num_leaves)
    return [
        jnp.asarray(rows[:, 70 * i : 70 * i + 50 + i], dtype)
        for i, dtype in zip(range(num_leaves), dtypes, strict=False)
    ]


@pytest.mark.parametrize("name", STATELESS)
def test_joined_leaves_have_the_scales_of_each_alone(name):
    leaves = leaves_of(7)
    mask = jnp.array([True, True, False, True])
    population = population_of("here", leaves, None, None, mask)

    def scales_of(leaves):
        groups = groups_of(leaves, in_lanes=True)
        scale, one = jm.noise.per_coordinate(1.0, name), jnp.float32(1)
        state = key_state(jax.random.key(0))
        found, _ = coordinate_scales(scale, one, state, leaves, population)
        return rows_of_leaves(groups, [found[group.members[0]] for group in groups])

    for leaf, scale in zip(leaves, scales_of(leaves), strict=True):
        (alone,) = scales_of([leaf])
        np.testing.assert_array_equal(scale, alone)


@pytest.mark.parametrize("every", [1, 2])
def test_joined_leaves_have_the_running_squares_of_each_alone(every):
    scale = jm.noise.per_coordinate(1.0, "rms", every=every, decay=0.8)
    tx = jm.add_worker_noise(jm.noise.gaussian(scale), 2)

    def squares_of(leaves):
        params = [leaf[0] for leaf in leaves]
        state = tx.init(params)
        for factor in (1.0, 3.0, 0.5):
            _, state = tx.update([factor * leaf for leaf in leaves], state, params)
        return state.mean_squares

    leaves = [leaf.reshape(4, -1, 5) for leaf in leaves_of(11)[::5]]
    for leaf, squares in zip(leaves, squares_of(leaves), strict=True):
        assert squares.shape == leaf.shape[1:]
        (alone,) = squares_of([leaf])
        np.testing.assert_array_equal(squares, alone)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("given", [np.float64, np.float32])
@pytest.mark.parametrize("held", [np.float64, np.float32])
def test_running_squares_keep_the_type_of_the_parameters(held, given, every):
    scale = jm.noise.per_coordinate(1.0, "rms", every=every)
    tx = jm.majority_vote(jm.noise.gaussian(scale), 2)
    with enable_x64(True):
        params = [jnp.zeros(6, held), jnp.zeros(3, jnp.float32)]
        grads = [jnp.asarray(skewed(3, row.size), given) for row in params]

        def step(state, _):
            return tx.update(grads, state, params)[1], None

        state, _ = jax.lax.scan(step, tx.init(params), length=2)
        for squares, row, leaf in zip(state.mean_squares, params, grads, strict=True):
            assert squares.dtype == row.dtype
            expected = np.mean(np.float64(leaf) ** 2, axis=0)
            np.testing.assert_allclose(squares, expected, rtol=1e-6)


@pytest.mark.parametrize("statistic", [*STATELESS, "rms", "max", "median"])
def test_more_leaves_are_neither_more_kernels_nor_more_messages(statistic):
    is_relative = statistic in ("max", "median")
    scale = jm.noise.relative if is_relative else jm.noise.per_coordinate
    noise = jm.noise.uniform(scale(1.0, statistic))
    tx = jm.majority_vote(noise, 1, axis_name="workers")
    mesh = jm.sharding.workers_mesh(2)

    def program(num_leaves):
        grads = [jnp.ones((4, 50 + i)) for i in range(num_leaves)]
        params = [row[0] for row in grads]
        update = jax.shard_map(
            lambda grads: tx.update(grads, tx.init(params), params)[0],
            mesh=mesh,
            in_specs=P("workers"),
            out_specs=P(),
        )
        return jax.jit(update).lower(grads).as_text()

    few, many = program(2), program(12)
    for message in ("all_gather", "all_to_all", "all_reduce"):
        assert many.count(f"stablehlo.{message}") == few.count(f"stablehlo.{message}")
    assert many.count("\n") - few.count("\n") <= 10 * 45


@pytest.mark.parametrize("every", [1, 2])
def test_what_was_not_sent_has_no_weight(every):
    """Nobody was there in the first steps: the first sent weighs 1 when it comes."""
    scale = jm.noise.per_coordinate(1.0, "rms", every=every, decay=0.8)
    tx = jm.add_worker_noise(jm.noise.gaussian(scale), 2)
    grads = [skewed(3, 4, seed=step) for step in range(8)]
    state, sent = tx.init(jnp.zeros(4)), []
    for step, here in enumerate([False, False, True, True, False, True, True, True]):
        mask = jnp.full(3, here)
        _, state = tx.update(grads[step], state, jnp.zeros(4), worker_mask=mask)
        if here and step % every == 0:
            sent.append(np.mean(np.float64(grads[step]) ** 2, axis=0))
        assert int(state.num_sent) == len(sent)
        if sent:
            ages = 0.8 ** (every * np.arange(len(sent) - 1, -1, -1))
            expected = np.tensordot(ages, sent, 1) / ages.sum()
            np.testing.assert_allclose(state.mean_squares, expected, rtol=1e-5)


def test_a_vote_with_mean_squares_sends_them_once_in_so_many_steps():
    """32 / K bits per coordinate and worker up, beside the packed vote's 2 (D - 1) / D.

    Each worker's square travels to the device that adds them, 7 / 8 of it, and the mean
    of 8 comes back in 1 / 8 of the numbers of each: 2 * 7 / 8 * 32 / K in all.
    """
    noise = jm.noise.uniform(jm.noise.per_coordinate(1.0, "rms", every=50))
    options = {"axis_name": "workers", "ties": "positive", "transport": "packed"}
    size, mesh = 80_000, jm.sharding.workers_mesh(8)
    bits = {}
    for name, scale in (("one", jm.noise.uniform(0.1)), ("each", noise)):
        tx = jm.majority_vote(scale, 0, **options)
        params = jax.ShapeDtypeStruct((size,), jnp.float32)
        state = jax.eval_shape(tx.init, params)
        update = jax.shard_map(
            tx.update,
            mesh=mesh,
            in_specs=(P("workers"), P(), P()),
            out_specs=(P(), P()),
        )
        grads = jax.ShapeDtypeStruct((8, size), jnp.float32)
        compiled = jax.jit(update).lower(grads, state, params).compile()
        counted = jm.diagnostics.wire_bytes(compiled, num_coordinates=size)
        bits[name] = counted.bits_per_coordinate
    assert bits["each"] - bits["one"] == pytest.approx(2 * 7 / 8 * 32 / 50, rel=0.01)


# --- settings -------------------------------------------------------------------------


def test_a_factor_may_be_a_schedule_or_traced():
    grads = skewed(5, 8)

    def noisy(factor, count=0):
        noise = jm.noise.uniform(jm.noise.per_coordinate(factor, "sd"))
        tx = jm.add_worker_noise(noise, 0)
        state = tx.init(jnp.zeros(8))._replace(count=jnp.int32(count))
        return tx.update(grads, state, jnp.zeros(8))[0]

    fixed = jax.jit(noisy, static_argnums=0)(0.5)
    np.testing.assert_array_equal(jax.jit(noisy)(jnp.float32(0.5)), fixed)
    np.testing.assert_array_equal(jax.jit(noisy)(jnp.float32(-0.5)), fixed)
    schedule = optax.linear_schedule(0.0, 1.0, 4)
    scheduled = jax.jit(lambda: noisy(schedule, 2))()
    at_two = jax.jit(lambda: noisy(jnp.float32(0.5), 2))()
    np.testing.assert_array_equal(scheduled, at_two)


def test_a_factor_reaches_the_noise_through_inject_hyperparams():
    def build(learning_rate, factor):
        noise = jm.noise.uniform(jm.noise.per_coordinate(factor, "sd"))
        return jm.noisy_median_sgd(learning_rate, noise, 0)

    build = optax.inject_hyperparams(build, hyperparam_dtype=jnp.float32)
    tx, grads = build(1.0, 0.5), skewed(5, 8)
    params = params_like(grads)
    updates, state = jax.jit(tx.update)(grads, tx.init(params), params)
    assert float(state.hyperparams["factor"]) == 0.5
    noise = jm.noise.uniform(jm.noise.per_coordinate(0.5, "sd"))
    expected = first_update(jm.coordinate_median(noise, 0), grads)
    np.testing.assert_allclose(updates, -expected, rtol=1e-6)


def test_bfloat16_gradients_are_scaled_in_float32():
    grads = jnp.asarray(skewed(7, 40), jnp.bfloat16)
    noise = jm.noise.uniform(jm.noise.per_coordinate(1.0, "sd"))
    median = first_update(jm.coordinate_median(noise, 0), grads)
    wide = first_update(jm.coordinate_median(noise, 0), grads.astype(jnp.float32))
    assert median.dtype == jnp.bfloat16
    np.testing.assert_array_equal(median, wide.astype(jnp.bfloat16))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((-1.0, "sd"), {}, ValueError, "`factor` must be finite and >= 0; got -1.0"),
        ((math.nan, "sd"), {}, ValueError, "`factor` must be finite"),
        (("2", "sd"), {}, TypeError, "`factor` must be a number"),
        ((1.0, "variance"), {}, ValueError, "`statistic` must be one of sd, range"),
        ((1.0, "rms"), {"every": 0}, ValueError, "`every` must be at least 1; got 0"),
        ((1.0, "rms"), {"every": 2.5}, TypeError, "`every` must be an int; got 2.5"),
        ((1.0, "sd"), {"every": 5}, ValueError, '`every` is for the statistic "rms"'),
        ((1.0, "rms"), {"decay": 1.0}, ValueError, "`decay` must be at least 0"),
        ((1.0, "sd"), {"decay": 0.5}, ValueError, '`decay` is for the statistic "rms"'),
        ((1.0, "rms"), {"decay": "0.9"}, TypeError, "`decay` must be a number"),
    ],
)
def test_bad_settings_are_refused(arguments, options, error, message):
    with pytest.raises(error, match=message):
        jm.noise.per_coordinate(*arguments, **options)


def test_plain_arrays_have_no_state_for_running_mean_squares():
    noise = jm.noise.gaussian(jm.noise.per_coordinate(1.0, "rms"))
    with pytest.raises(ValueError, match="keeps running mean squares"):
        jm.perturbed_median(jnp.ones((3, 2)), noise, 0)
