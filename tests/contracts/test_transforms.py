"""What every transform must obey. A new transform joins by one row of the table."""

import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from harness import enable_x64, params_like

import jaxmedian as jm
from jaxmedian.training.identity import transforms_in

M = 3
KEY = 7
HALF = np.float32(0.5)


def halving(count):
    """A schedule in float32, for noise whose scale changes from step to step."""
    return HALF / (count.astype(jnp.float32) + np.float32(1))


# Worker transforms keep the worker axis, aggregators (and optimizers) remove it.
WORKER_TRANSFORMS = {
    "add_worker_noise": jm.add_worker_noise(jm.noise.laplace(halving), KEY),
    "per_worker": jm.per_worker(optax.trace(decay=0.9), M),
    "interpolate_momentum": jm.interpolate_momentum(M),
    "ef21_sign": jm.ef21_sign(M),
    "correct_drift": jm.correct_drift(
        jm.coordinate_median(jm.noise.gaussian(0.5), KEY), 2, M
    ),
    "a_little_is_enough": jm.attacks.a_little_is_enough([1], scale=1.0),
    "mimic, drawn": jm.attacks.mimic(1, KEY),
    "gaussian": jm.attacks.gaussian([0], KEY),
    "nearest_neighbor_mixing": jm.nearest_neighbor_mixing(1),
    "clip_workers": jm.clip_workers(2.0),
    "adaptive_clip_workers": jm.adaptive_clip_workers(1),
    "min_max": jm.attacks.min_max([1]),
    "strongest": jm.attacks.strongest(
        jm.attacks.a_little_is_enough,
        jm.coordinate_median(jm.noise.gaussian(0.5), KEY),
        [1],
        scales=[0.5, 2.0],
    ),
    "pivotal_votes": jm.attacks.pivotal_votes([2], jm.noise.gaussian(0.5), KEY),
}
AGGREGATORS = {
    "majority_vote": jm.majority_vote(),
    "majority_vote, random": jm.majority_vote(ties="random", key=KEY),
    "majority_vote, noisy": jm.majority_vote(jm.noise.gaussian(0.5), KEY),
    "coordinate_median": jm.coordinate_median(),
    "coordinate_median, noisy": jm.coordinate_median(
        jm.noise.uniform(jm.noise.relative(0.1), "systematic"), KEY
    ),
    "worker_mean": jm.worker_mean(),
    "mean_of_signs": jm.mean_of_signs(),
    "mean_of_signs, noisy": jm.mean_of_signs(jm.noise.uniform(0.5, "systematic"), KEY),
    "trimmed_mean": jm.trimmed_mean(1),
    "mean_around_median": jm.mean_around_median(1),
    "krum": jm.krum(0),
    "multi_krum": jm.multi_krum(1, neighbors=1),
    "bulyan": jm.bulyan(0),
    "bucketing, median": jm.bucketing(2, KEY, jm.coordinate_median()),
    "minimum_diameter_mean": jm.minimum_diameter_mean(1),
    "geometric_median": jm.geometric_median(max_steps=5),
    "centered_clipping": jm.centered_clipping(1.0),
    "sign_sgd": jm.sign_sgd(0.5),
    "noisy_sign_sgd": jm.noisy_sign_sgd(0.5, jm.noise.logistic(halving), KEY),
    "median_sgd": jm.median_sgd(0.5),
    "noisy_median_sgd": jm.noisy_median_sgd(0.5, jm.noise.uniform(0.5), KEY),
    "signum": jm.signum(0.5, num_workers=M, ties="random", key=KEY),
    "distributed_lion": jm.distributed_lion(
        0.5, num_workers=M, noise=jm.noise.uniform(halving, "systematic"), key=KEY
    ),
}
TRANSFORMS = WORKER_TRANSFORMS | AGGREGATORS

every_transform = pytest.mark.parametrize("name", TRANSFORMS)


def gradients(dtype=np.float32, seed=0):
    """Leaves of several ranks in nested containers, one of them empty."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=(M, *shape)), dtype)

    return {"w": draw(2, 3), "nested": (draw(), [draw(4)], None)}


def expected_shapes(name, grads):
    reduced = grads if name in WORKER_TRANSFORMS else params_like(grads)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), reduced
    )


def described(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


@every_transform
def test_it_is_a_plain_optax_transformation(name):
    transform = TRANSFORMS[name]
    assert type(transform) is optax.GradientTransformationExtraArgs


@every_transform
def test_outside_jit_it_compiles_once(name, caplog):
    """A second update, of other numbers and another step, compiles nothing."""
    transform = TRANSFORMS[name]
    grads = gradients()
    params = params_like(grads)
    state = transform.update(grads, transform.init(params), params)[1]
    transform.update(gradients(seed=1), state, params)  # the state is an output now
    caplog.clear()
    with jax.log_compiles():
        transform.update(gradients(seed=2), state, params)
    assert not [text for text in caplog.messages if "ompil" in text], caplog.messages


@every_transform
def test_it_compiles_once_and_a_scan_is_the_loop(name):
    """Steps after the first reuse the program; the state is a stable scan carry."""
    transform = TRANSFORMS[name]
    grads = gradients()
    params = params_like(grads)
    traces = 0

    @jax.jit
    def update(grads, state):
        nonlocal traces
        traces += 1
        return transform.update(grads, state, params)

    state = start = transform.init(params)
    per_step = []
    for _ in range(3):
        updates, state = update(grads, state)
        per_step.append(updates)
    again, _ = update(grads, start)  # no hidden state: the same call, the same bits
    jax.tree.map(np.testing.assert_array_equal, again, per_step[0])
    assert traces == 1
    assert jax.tree.structure(state) == jax.tree.structure(start)
    assert described(state) == described(start)

    def body(state, _):
        updates, state = update(grads, state)
        return state, updates

    last, scanned = jax.jit(lambda s: jax.lax.scan(body, s, length=3))(start)
    assert described(last) == described(start)
    for step, updates in enumerate(per_step):
        jax.tree.map(
            lambda one, many, step=step: np.testing.assert_allclose(
                one, many[step], rtol=1e-6, atol=1e-6
            ),
            updates,
            scanned,
        )


@every_transform
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
def test_the_dtype_of_the_gradients_is_kept(name, dtype):
    transform = TRANSFORMS[name]
    with enable_x64(dtype == jnp.float64):
        grads = gradients(dtype)
        assert grads["w"].dtype == dtype
        params = params_like(grads)
        state = transform.init(params)
        updates, new_state = jax.eval_shape(transform.update, grads, state, params)
        assert updates == expected_shapes(name, grads)
        assert described(new_state) == described(state)


@every_transform
def test_leaves_of_different_dtypes_keep_their_own(name):
    transform = TRANSFORMS[name]
    grads = gradients()
    grads["w"] = grads["w"].astype(jnp.bfloat16)
    params = params_like(grads)
    state = transform.init(params)
    updates, _ = jax.eval_shape(transform.update, grads, state, params)
    assert updates == expected_shapes(name, grads)


@every_transform
def test_extra_arguments_are_accepted(name):
    """`worker_mask` and what other transforms of a chain may want."""
    transform = TRANSFORMS[name]
    grads = gradients()
    params = params_like(grads)
    state = transform.init(params)
    mask = jnp.ones(M, bool)

    def update(grads, state, mask):
        return transform.update(grads, state, params, worker_mask=mask, value=1.0)

    updates, _ = jax.eval_shape(update, grads, state, mask)
    assert updates == expected_shapes(name, grads)


@every_transform
def test_init_can_be_traced_and_does_not_see_the_worker_axis(name):
    transform = TRANSFORMS[name]
    params = params_like(gradients())
    state = transform.init(params)
    assert jax.eval_shape(transform.init, params) == described(state)
    shapes = described(params)
    assert described(jax.eval_shape(transform.init, shapes)) == described(state)


@every_transform
def test_parameters_may_be_left_out(name):
    transform = TRANSFORMS[name]
    grads = gradients()
    state = transform.init(params_like(grads))
    updates, _ = jax.eval_shape(transform.update, grads, state)
    assert updates == expected_shapes(name, grads)


@every_transform
def test_no_state_field_is_named_ready(name):
    """`optax.experimental.aggregating` and MultiSteps would read it."""
    state = TRANSFORMS[name].init(params_like(gradients()))

    def fields(tree):
        yield from getattr(tree, "_fields", ())
        if isinstance(tree, tuple):
            for child in tree:
                yield from fields(child)

    assert "ready" not in set(fields(state))


# --- bad gradients --------------------------------------------------------------------


def test_every_transform_names_gradients_without_a_worker_axis():
    params = {"w": jnp.zeros((5, 3)), "b": jnp.zeros(())}
    for transform in TRANSFORMS.values():
        with pytest.raises(ValueError, match="leading worker axis") as error:
            transform.update(params, transform.init(params), params)
        assert "`['w']` has shape (5, 3), its parameter (5, 3)" in str(error.value)
        assert "`['b']` has shape (), its parameter ()" in str(error.value)
        assert "jax.vmap(jax.grad(loss), (None, 0))" in str(error.value)


def test_every_transform_refuses_leaves_that_disagree_on_the_number_of_workers():
    params = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    grads = {"a": jnp.zeros((M, 2)), "b": jnp.zeros((M + 1, 2))}
    for transform in TRANSFORMS.values():
        with pytest.raises(ValueError, match=r"3 in `\['a'\]`, 4 in `\['b'\]`"):
            transform.update(grads, transform.init(params), params)


def test_transforms_have_their_workers_along_one_mesh_axis():
    for build in (jm.coordinate_median, jm.worker_mean, jm.majority_vote):
        with pytest.raises(TypeError, match=r"along one mesh axis; .*\('h', 'd'\)"):
            build(axis_name=("h", "d"))


def test_every_transform_refuses_no_workers():
    for transform in TRANSFORMS.values():
        state = transform.init(jnp.zeros(2))
        with pytest.raises(ValueError, match="at least one worker; got M = 0"):
            transform.update(jnp.zeros((0, 2)), state, jnp.zeros(2))


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_, jnp.complex64])
def test_every_transform_refuses_gradients_that_are_not_floating_point(dtype):
    grads = {"w": jnp.zeros((M, 2), dtype)}
    for transform in TRANSFORMS.values():
        state = transform.init({"w": jnp.zeros(2)})
        with pytest.raises(TypeError, match=r"`\['w'\]` is " + jnp.dtype(dtype).name):
            transform.update(grads, state, {"w": jnp.zeros(2)})


def test_every_transform_refuses_an_empty_tree():
    for transform in TRANSFORMS.values():
        with pytest.raises(ValueError, match="updates without any array"):
            transform.update({}, transform.init({}), {})


def test_every_transform_refuses_parameters_of_another_structure():
    for transform in TRANSFORMS.values():
        params = {"v": jnp.zeros(2)}
        with pytest.raises(ValueError, match="same tree structure"):
            transform.update({"w": jnp.zeros((M, 2))}, transform.init(params), params)


def test_every_transform_with_a_mask_refuses_a_bad_one():
    grads, params = jnp.ones((M, 2)), jnp.zeros(2)
    for transform in TRANSFORMS.values():
        state = transform.init(params)
        with pytest.raises(ValueError, match=r"`worker_mask` of shape \(3,\)"):
            transform.update(grads, state, params, worker_mask=jnp.ones(2, bool))
        with pytest.raises(TypeError, match="boolean `worker_mask`; got float32"):
            transform.update(grads, state, params, worker_mask=jnp.ones(M))


# --- scales ---------------------------------------------------------------------------


NOISY = {
    "add_worker_noise": lambda noise: jm.add_worker_noise(noise, KEY),
    "majority_vote": lambda noise: jm.majority_vote(noise, KEY),
    "coordinate_median": lambda noise: jm.coordinate_median(noise, KEY),
}


@pytest.mark.parametrize("name", NOISY)
def test_a_traced_scale_is_the_number_and_can_be_vmapped(name):
    grads = np.random.default_rng(0).normal(size=(M, 60)).astype(np.float32)
    params = jnp.zeros(60)

    def update(scale):
        transform = NOISY[name](jm.noise.uniform(scale))
        return transform.update(grads, transform.init(params), params)[0]

    many = jax.jit(jax.vmap(update))(jnp.array([0.0, 0.5, 3.0]))
    one = jax.jit(lambda: update(0.5))()
    np.testing.assert_allclose(many[1], one, rtol=1e-6, atol=1e-6)
    assert (many[0] != many[2]).any()


def test_a_relative_factor_may_be_traced():
    grads = np.random.default_rng(0).normal(size=(M, 60)).astype(np.float32)

    @jax.jit
    def update(factor):
        noise = jm.noise.uniform(jm.noise.relative(factor))
        transform = jm.add_worker_noise(noise, KEY)
        return transform.update(grads, transform.init(None), jnp.zeros(60))[0]

    noise, double = (update(jnp.float32(f)) - grads for f in (0.1, 0.2))
    np.testing.assert_allclose(2 * noise, double, atol=1e-5)
    assert np.abs(noise).max() <= 0.1 * np.sqrt(3) * np.abs(grads).max() * 1.001


def test_inject_hyperparams_reaches_the_scale_of_the_noise():
    """The form of the guide; the scale can be changed without compiling again."""
    grads = np.random.default_rng(0).normal(size=(M, 400)).astype(np.float32)
    params, key = jnp.zeros(400), jax.random.key(KEY)
    optimizer = optax.inject_hyperparams(
        lambda learning_rate, scale: jm.noisy_sign_sgd(
            learning_rate, jm.noise.gaussian(scale), key
        ),
        hyperparam_dtype=jnp.float32,
    )(1e-3, 0.1)
    traces = 0

    @jax.jit
    def update(grads, state):
        nonlocal traces
        traces += 1
        return optimizer.update(grads, state, params)

    with jax.numpy_dtype_promotion("standard"):  # optax's own arithmetic
        state = optimizer.init(params)
        results = {}
        for scale in (0.1, 0.0, 5.0):
            state.hyperparams["scale"] = jnp.float32(scale)
            results[scale], state = update(grads, state)
    assert traces == 1
    assert set(state.hyperparams) == {"learning_rate", "scale"}
    plain = -1e-3 * np.sign(np.sign(grads).sum(axis=0))
    np.testing.assert_allclose(results[0.0], plain, rtol=1e-6)
    agreement = {scale: np.mean(u * plain > 0) for scale, u in results.items()}
    assert agreement[0.1] > 0.9
    assert agreement[5.0] < 0.65
    fixed = jm.noisy_sign_sgd(1e-3, jm.noise.gaussian(0.1), key)
    expected, _ = jax.jit(fixed.update)(grads, fixed.init(params), params)
    np.testing.assert_allclose(results[0.1], expected, rtol=1e-6)


NOISE = jm.noise.uniform(0.5)


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (jm.sign_sgd, {"learning_rate": 0.5, "ties": "random", "key": KEY}),
        (jm.median_sgd, {"learning_rate": 0.5, "even": "lower"}),
        (jm.noisy_sign_sgd, {"learning_rate": 0.5, "noise": NOISE, "key": KEY}),
        (
            jm.noisy_median_sgd,
            {"learning_rate": 0.5, "noise": NOISE, "key": jax.random.key(KEY)},
        ),
        (jm.majority_vote, {"noise": NOISE, "key": jax.random.PRNGKey(KEY)}),
        (jm.signum, {"learning_rate": 0.5, "num_workers": M}),
        (jm.distributed_lion, {"learning_rate": 0.5, "num_workers": M}),
    ],
)
def test_inject_hyperparams_takes_factories_as_they_are(build, options):
    """It hands defaults and keys over as arrays; the updates stay the same."""
    grads = np.random.default_rng(0).normal(size=(M, 40)).astype(np.float32)
    params = jnp.zeros(40)
    with jax.numpy_dtype_promotion("standard"):  # optax's own arithmetic
        static = {"num_workers"} & set(options)
        injected = optax.inject_hyperparams(build, static_args=static)(**options)
        state = injected.init(params)
        updates, _ = jax.jit(injected.update)(grads, state, params)
        if "learning_rate" in options:
            state.hyperparams["learning_rate"] *= 2
            doubled, _ = jax.jit(injected.update)(grads, state, params)
            np.testing.assert_allclose(doubled, 2 * updates, rtol=1e-6)
    plain = build(**options)
    expected, _ = jax.jit(plain.update)(grads, plain.init(params), params)
    np.testing.assert_allclose(updates, expected, rtol=1e-6)


def test_partial_factories_train_and_are_known_by_what_they_bind():
    def known(ties):
        build = functools.partial(jm.sign_sgd, ties=ties)
        optimizer = optax.inject_hyperparams(build)(learning_rate=0.5)
        step = jm.make_step(lambda params, batch: jnp.sum(params * batch), optimizer)
        batch = jnp.array([1.0, 1.0, -1.0])
        with jax.numpy_dtype_promotion("standard"):  # optax's own arithmetic
            params, *_ = step(jnp.float32(0), optimizer.init(jnp.float32(0)), batch)
        assert float(params) == -0.5
        return transforms_in(optimizer)

    assert known("positive") == known("positive") != known("zero")


@pytest.mark.parametrize(
    ("build", "options", "names"),
    [
        (jm.trimmed_mean, {"f": 1}, ["f"]),
        (jm.multi_krum, {"f": 1, "neighbors": 1}, ["f", "neighbors"]),
        (jm.bucketing, {"size": 2, "key": KEY}, ["size"]),
        (jm.per_worker, {"inner": optax.trace(0.9), "num_workers": M}, ["num_workers"]),
        (jm.geometric_median, {"tolerance": 1e-6}, ["tolerance", "max_steps"]),
    ],
)
def test_what_inject_hyperparams_cannot_change_is_refused_by_name(
    build, options, names
):
    params = jnp.zeros(4)
    static = []
    for name in names:  # each is named in turn, and naming it is the remedy
        inject = optax.inject_hyperparams(
            build, static_args=static, hyperparam_dtype=jnp.float32
        )
        with pytest.raises(TypeError, match=rf'static_args=\("{name}",\)'):
            inject(**options).init(params)
        static.append(name)
    inject = optax.inject_hyperparams(
        build, static_args=static, hyperparam_dtype=jnp.float32
    )
    inject(**options).init(params)


def test_a_scale_injected_as_an_integer_names_the_remedy():
    build = optax.inject_hyperparams(
        lambda scale: jm.majority_vote(jm.noise.gaussian(scale), KEY)
    )
    with pytest.raises(TypeError, match=r"Write 1\.0 for 1, or .*hyperparam_dtype"):
        build(1).init(jnp.zeros(4))


def test_a_learning_rate_may_be_a_schedule():
    grads = np.float32([[1.0], [2.0], [-1.0]])
    optimizer = jm.sign_sgd(optax.piecewise_constant_schedule(0.5, {1: 0.5}))
    with jax.numpy_dtype_promotion("standard"):
        state = optimizer.init(jnp.zeros(1))
        first, state = optimizer.update(grads, state, jnp.zeros(1))
        second, state = optimizer.update(grads, state, jnp.zeros(1))
    np.testing.assert_allclose([first, second], [[-0.5], [-0.25]])


# --- composition ----------------------------------------------------------------------


def test_transforms_run_under_partition_with_an_aggregator_in_each_group():
    grads = gradients()
    params = params_like(grads)
    labels = {"w": "vote", "nested": ("median", ["vote"], None)}
    optimizer = optax.partition(
        {"vote": jm.sign_sgd(0.5), "median": jm.median_sgd(0.5)}, labels
    )
    updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    votes = jax.tree.map(lambda g: -0.5 * np.sign(np.sign(g).sum(axis=0)), grads)
    np.testing.assert_array_equal(updates["w"], votes["w"])
    np.testing.assert_array_equal(updates["nested"][1][0], votes["nested"][1][0])
    median = -0.5 * np.median(grads["nested"][0])
    np.testing.assert_allclose(updates["nested"][0], median)


def test_transforms_run_under_masked():
    grads = {"a": jnp.ones((M, 2)), "b": jnp.arange(3.0)[:, None] * jnp.ones((1, 2))}
    params = params_like(grads)
    optimizer = optax.chain(
        optax.masked(jm.majority_vote(), {"a": True, "b": False}),
        optax.masked(jm.worker_mean(), {"a": False, "b": True}),
    )
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_array_equal(updates["a"], np.ones(2))
    np.testing.assert_array_equal(updates["b"], np.ones(2))


def test_multi_steps_goes_behind_the_aggregator():
    optimizer = optax.chain(
        jm.coordinate_median(),
        optax.MultiSteps(optax.sgd(1.0), 2).gradient_transformation(),
    )
    params = jnp.zeros(2)
    rows = [np.float32([[1, 1], [2, 2], [9, 9]]), np.float32([[4, 0], [4, 0], [0, 0]])]
    with jax.numpy_dtype_promotion("standard"):
        state = optimizer.init(params)
        first, state = jax.jit(optimizer.update)(rows[0], state, params)
        second, state = jax.jit(optimizer.update)(rows[1], state, params)
    np.testing.assert_array_equal(first, [0, 0])
    np.testing.assert_allclose(second, [-3, -1])


def test_apply_if_finite_goes_behind_the_aggregator():
    optimizer = optax.chain(
        jm.coordinate_median(), optax.apply_if_finite(optax.sgd(1.0), 5)
    )
    params = jnp.zeros(2)
    minority = np.float32([[np.nan, 1], [2, 2], [3, 3]])
    majority = np.float32([[np.nan, 1], [np.nan, 2], [3, 3]])
    with jax.numpy_dtype_promotion("standard"):
        state = optimizer.init(params)
        kept, state = jax.jit(optimizer.update)(minority, state, params)
        dropped, state = jax.jit(optimizer.update)(majority, state, params)
    np.testing.assert_array_equal(kept, [-3, -2])
    np.testing.assert_array_equal(dropped, [0, 0])


def test_optax_aggregating_accepts_the_transforms():
    experimental = pytest.importorskip("optax.experimental")
    if not hasattr(experimental, "aggregating"):
        pytest.skip("this optax has no experimental.aggregating")
    aggregating = experimental.aggregating
    noise = jm.noise.uniform(0.5)
    optimizer = aggregating.process(
        jm.add_worker_noise(noise, KEY), jm.majority_vote(), optax.sgd(0.25)
    )
    grads = np.random.default_rng(0).normal(size=(M, 30)).astype(np.float32)
    params = jnp.zeros(30)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    chained = optax.chain(
        jm.add_worker_noise(noise, KEY), jm.majority_vote(), optax.scale(-0.25)
    )
    expected, _ = jax.jit(chained.update)(grads, chained.init(params), params)
    np.testing.assert_array_equal(updates, expected)


def test_a_scale_is_one_float_whoever_made_the_number():
    """NumPy's too are arguments of compiled programs, not part of them."""
    for number in (np.float32(0.5), np.float64(0.5), np.array(0.5), Fraction(1, 2)):
        noise = jm.noise.gaussian(number)
        assert type(noise.scale) is float
        assert noise == jm.noise.gaussian(0.5)
    assert jm.noise.gaussian(1) == jm.noise.gaussian(1.0)


RUNNING = jm.noise.gaussian(jm.noise.per_coordinate(1.0, "rms"))


@pytest.mark.parametrize(
    "build",
    [
        lambda: jm.centered_clipping(1.0),
        lambda: jm.coordinate_median(RUNNING, 0),
    ],
    ids=["centered_clipping", "rms"],
)
def test_parameters_may_be_python_numbers(build):
    tx = build()
    state = tx.init({"w": 1.0})
    updates, _ = tx.update({"w": jnp.ones(3)}, state)
    assert updates["w"].shape == ()
