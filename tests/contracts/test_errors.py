"""Bad input, each with the message that says what was got, wanted, and what to do.

Bad gradients are in contracts, since every transform must refuse them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmedian as jm

NOISE = jm.noise.gaussian(0.1)
SCALES = [
    jm.noise.gaussian,
    jm.noise.laplace,
    jm.noise.logistic,
    jm.noise.uniform,
]


# --- noise ----------------------------------------------------------------------------


@pytest.mark.parametrize("law", SCALES)
@pytest.mark.parametrize(
    "scale", [-0.1, -1, float("nan"), float("inf"), np.float32(-1), np.array(-0.5)]
)
def test_negative_and_infinite_scales_are_refused(law, scale):
    with pytest.raises(ValueError, match="`scale` must be finite and >= 0; got"):
        law(scale)


@pytest.mark.parametrize(
    "scale", ["0.1", None, True, 1j, [0.1], np.ones(2), np.ones(1)]
)
def test_scales_of_a_wrong_type_are_refused(scale):
    with pytest.raises(
        TypeError, match=r"`scale` must be a number, a scalar JAX array"
    ):
        jm.noise.gaussian(scale)


def test_arrays_of_scales_are_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"got an array of shape \(3,\).*jax.vmap"):
        jm.noise.gaussian(jnp.ones(3))
    with pytest.raises(TypeError, match="`scale` must be floating point; got int32"):
        jm.noise.gaussian(jnp.int32(1))


def test_schedules_that_return_no_scalar_are_refused():
    vote = jm.majority_vote(jm.noise.gaussian(lambda count: jnp.ones(2)), 0)
    with pytest.raises(ValueError, match=r"must be a scalar; .* shape \(2,\)"):
        vote.update(jnp.ones((3, 2)), vote.init(None), jnp.zeros(2))


@pytest.mark.parametrize("factor", [-0.1, float("nan"), float("inf")])
def test_bad_factors_are_refused(factor):
    with pytest.raises(ValueError, match="`factor` must be finite and >= 0; got"):
        jm.noise.relative(factor)
    with pytest.raises(TypeError, match="`factor` must be a number"):
        jm.noise.relative("0.1")


def test_relative_takes_no_schedule():
    message = "`factor` must be a number or a scalar JAX array; got"
    with pytest.raises(TypeError, match=message):
        jm.noise.relative(lambda count: 0.1)


def test_unknown_names_are_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"`statistic` must be one of.*got 'mean'"):
        jm.noise.relative(0.1, statistic="mean")
    with pytest.raises(ValueError, match=r"`coupling` must be one of.*got 'shared'"):
        jm.noise.gaussian(0.1, coupling="shared")
    with pytest.raises(ValueError, match=r"`law` must be one of.*got 'cauchy'"):
        jm.noise.Noise("cauchy", 0.1)
    with pytest.raises(
        ValueError, match="`ties` must be one of 'zero', 'random', 'pos"
    ):
        jm.majority_vote(ties="coin")
    with pytest.raises(ValueError, match="`even` must be one of 'midpoint', 'lower'"):
        jm.coordinate_median(even="mean")
    with pytest.raises(
        ValueError, match="`transport` must be one of 'tally', 'packed'"
    ):
        jm.majority_vote(transport="pigeon")


@pytest.mark.parametrize("noise", [0.1, "gaussian", jm.noise.relative(0.1)])
def test_what_is_no_noise_is_refused(noise):
    for build in (jm.majority_vote, jm.coordinate_median, jm.add_worker_noise):
        with pytest.raises(TypeError, match=f"`{build.__name__}` expects a `Noise`"):
            build(noise, 0)
    with pytest.raises(TypeError, match="expects a `Noise`"):
        jm.noisy_sign_sgd(0.1, noise, 0)


def test_systematic_noise_for_too_many_workers_is_refused():
    vote = jm.majority_vote(jm.noise.uniform(1.0, "systematic"), 0)
    grads = jax.ShapeDtypeStruct((65_536, 1), jnp.float32)
    with pytest.raises(ValueError, match="up to 65535 workers; got 65536"):
        jax.eval_shape(vote.update, grads, vote.init(None), jnp.zeros(1))


# --- gradients ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.float8_e5m2])
def test_gradients_of_8_bits_are_refused_with_the_remedy(dtype):
    grads = jnp.ones((3, 2)).astype(dtype)
    for rule in (jm.majority_vote(), jm.coordinate_median(), jm.krum(0)):
        with pytest.raises(TypeError, match=f"is {jnp.dtype(dtype).name}. Cast it to "):
            rule.update(grads, rule.init(None))


def test_accumulation_around_an_aggregator_is_told_its_place():
    optimizer = optax.MultiSteps(jm.sign_sgd(0.1), 2).gradient_transformation()
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        state = optimizer.init(jnp.zeros(2))
        with pytest.raises(ValueError, match=r"`optax.MultiSteps`.* stand behind"):
            optimizer.update(jnp.ones((3, 2)), state, jnp.zeros(2))


def test_a_check_for_finite_numbers_around_an_aggregator_is_told_its_place():
    optimizer = optax.apply_if_finite(jm.sign_sgd(0.1), 3)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        step = jm.make_step(lambda p, x: jnp.mean((p - x) ** 2), optimizer)
        with pytest.raises(TypeError, match=r"`optax.apply_if_finite`.* Put it behind"):
            step(jnp.zeros(2), optimizer.init(jnp.zeros(2)), jnp.ones((3, 2)))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.conditionally_mask(tx, lambda step, **extra: step < 3),
        lambda tx: optax.conditionally_transform(tx, lambda step, **extra: step < 3),
        optax.contrib.mechanize,
    ],
    ids=["conditionally_mask", "conditionally_transform", "contrib.mechanize"],
)
def test_wrappers_of_updates_like_the_parameters_are_told_their_place(wrap, request):
    """And stand behind the aggregator, as they are told."""
    params, batch = jnp.zeros(2), jnp.ones((3, 2))

    def loss(p, x):
        return jnp.mean((p - x) ** 2)

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        around, behind = wrap(jm.sign_sgd(0.1)), wrap(optax.sgd(0.1))
        name = request.node.callspec.id
        with pytest.raises(TypeError, match=rf"`optax.{name}`.* Put it behind"):
            jm.make_step(loss, around)(params, around.init(params), batch)
        behind = optax.chain(jm.majority_vote(), behind)
        moved = jm.make_step(loss, behind)(params, behind.init(params), batch)[0]
        assert (moved > 0).all()


def test_line_searches_are_told_to_take_a_learning_rate():
    params, batch = jnp.zeros(2), jnp.ones((3, 2))
    optimizer = optax.chain(jm.worker_mean(), optax.lbfgs())
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        step = jm.make_step(lambda p, x: jnp.mean((p - x) ** 2), optimizer)
        with pytest.raises(TypeError, match=r"lbfgs\(rate, linesearch=None\)"):
            step(params, optimizer.init(params), batch)


@pytest.mark.parametrize("worker_chunk", [None, 1])
@pytest.mark.parametrize(
    ("leaf", "dtype"),
    [(np.int32(3), "int32"), (jax.random.key(0), "key<fry>"), (np.True_, "bool")],
)
def test_parameters_without_gradient_are_named(leaf, dtype, worker_chunk):
    params = {"w": jnp.zeros(2), "other": jnp.asarray(leaf)}
    batch = jnp.ones((3, 2))

    def loss(p, x):
        return jnp.sum(p["w"] * x)

    message = rf"`params\['other'\]` is {dtype}, which has no gradient.*nnx.Param"
    with pytest.raises(TypeError, match=message):
        jm.worker_grads(loss)(params, batch)
    with pytest.raises(TypeError, match=message):
        jm.run(
            *(loss, jm.sign_sgd(0.1), params, jm.full_batch(batch), 1, 0),
            worker_chunk=worker_chunk,
        )


def test_masks_that_meet_a_stream_are_told_that_they_need_the_tree():
    params = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    rules = {"vote": jm.sign_sgd(0.1), "mean": jm.worker_mean()}
    optimizer = optax.partition(rules, {"a": "vote", "b": "mean"})
    with pytest.raises(TypeError, match=r"`optax.partition` look inside their tree"):
        jm.run(
            lambda p, x: jnp.sum(p["a"] * x) + jnp.sum(p["b"] * x),
            *(optimizer, params, jm.full_batch(jnp.ones((3, 2))), 1, 0),
            worker_chunk=1,
        )


# --- counts ---------------------------------------------------------------------------


def test_counts_beyond_32_bits_are_refused_with_the_number():
    for build in (
        lambda: jm.per_worker(optax.identity(), 2**40),
        lambda: jm.geometric_median(max_steps=2**40),
        lambda: jm.make_step(lambda p, b: p, jm.sign_sgd(0.1), num_workers=2**40),
    ):
        with pytest.raises(ValueError, match=r"below 2\^31; got 1099511627776"):
            build()


@pytest.mark.parametrize("seed", [2**32, 2**40, -(2**31) - 1, 2**70, np.int64(2**33)])
def test_seeds_that_would_be_cut_are_refused(seed):
    """Of 2^32 and 2^40 JAX reads the last 32 bits: both would be the seed 0."""
    with pytest.raises(ValueError, match=f"seed of 32 bits; got {int(seed)},"):
        jm.majority_vote(NOISE, seed)
    for held in (2**32 - 1, -(2**31)):
        jm.majority_vote(NOISE, held)


# --- keys -----------------------------------------------------------------------------


def test_noise_without_a_key_is_refused():
    for build in (jm.majority_vote, jm.coordinate_median):
        with pytest.raises(ValueError, match="needs a `key` for its noise"):
            build(NOISE)
    with pytest.raises(ValueError, match='needs a `key` for its `ties="random"`'):
        jm.majority_vote(ties="random")
    with pytest.raises(ValueError, match='needs a `key` for its `ties="random"`'):
        jm.sign_sgd(0.1, ties="random")


def test_a_key_without_use_is_refused():
    message = "was given a `key` but nothing to draw"
    for key in (0, jax.random.key(0), jax.random.PRNGKey(0)):
        with pytest.raises(ValueError, match="`majority_vote` " + message):
            jm.majority_vote(key=key)
        with pytest.raises(ValueError, match="`coordinate_median` " + message):
            jm.coordinate_median(key=key)
    with pytest.raises(
        ValueError, match=message + '.*give a `noise` or `ties="random"`'
    ):
        jm.sign_sgd(0.1, key=0)
    with pytest.raises(ValueError, match=message):
        jm.majority_vote(key=0, ties="positive")


@pytest.mark.parametrize(
    "key", [0.5, "0", True, [0, 1], np.float32([0, 1]), jnp.float32(0)]
)
def test_what_is_no_key_is_refused(key):
    with pytest.raises(TypeError, match="`key` must be a JAX key or an int; got"):
        jm.add_worker_noise(NOISE, key)


def test_add_worker_noise_without_a_key_is_refused():
    with pytest.raises(TypeError, match="`key` must be a JAX key or an int; got None"):
        jm.add_worker_noise(NOISE, None)


def test_a_batch_of_keys_is_refused():
    for keys in (
        jax.random.split(jax.random.key(0), 3),
        jax.random.split(jax.random.PRNGKey(0), 3),
    ):
        with pytest.raises(ValueError, match=r"one key; got a batch of shape \(3,\)"):
            jm.majority_vote(NOISE, keys)


# --- what one bit cannot say ----------------------------------------------------------


def test_ties_that_one_bit_cannot_carry_are_refused():
    with pytest.raises(ValueError, match="one bit a coordinate, which cannot say zero"):
        jm.majority_vote(transport="packed")
    with pytest.raises(ValueError, match='choose `ties="random"` or `ties="positive"`'):
        jm.noisy_sign_sgd(0.1, NOISE, 0, transport="packed")


# --- chains ---------------------------------------------------------------------------


def test_a_second_aggregator_is_refused():
    chain = optax.chain(jm.coordinate_median(), jm.majority_vote())
    params = {"w": jnp.zeros(2)}
    with pytest.raises(ValueError, match="another aggregator before it") as error:
        chain.update({"w": jnp.ones((3, 2))}, chain.init(params), params)
    assert "`['w']` has shape (2,), its parameter (2,)" in str(error.value)


@jax.numpy_rank_promotion("allow")  # the trap: state is broadcast, silently
def test_state_before_the_aggregator_must_be_lifted():
    def loss(params, batch):
        return jnp.sum(jnp.square(params - batch))

    params, batch = jnp.zeros(2), jnp.ones((5, 2))
    momentum, vote = optax.trace(0.9), jm.majority_vote(jm.noise.gaussian(0.1), 0)
    bare = optax.chain(momentum, vote)
    step = jm.make_step(loss, bare)
    with pytest.raises(ValueError, match=r"from \(2,\) to \(5, 2\).*per_worker"):
        step(params, bare.init(params), batch)
    with pytest.raises(ValueError, match="per_worker"):
        jm.run(loss, bare, params, jm.full_batch(batch), 2, 0)
    lifted = optax.chain(jm.per_worker(momentum, 5), vote, momentum)
    jm.make_step(loss, lifted)(params, lifted.init(params), batch)


def test_a_worker_transform_behind_the_aggregator_is_refused():
    chain = optax.chain(jm.worker_mean(), jm.add_worker_noise(NOISE, 0))
    params = jnp.zeros(2)
    with pytest.raises(ValueError, match=r"`add_worker_noise`.*leading worker axis"):
        chain.update(jnp.ones((3, 2)), chain.init(params), params)


def test_scalar_gradients_without_a_worker_axis_are_refused_even_without_params():
    for rule in (jm.majority_vote(), jm.coordinate_median(), jm.worker_mean()):
        with pytest.raises(ValueError, match="leading worker axis"):
            rule.update(jnp.float32(1.0), rule.init(None))


def test_errors_name_the_bare_array_when_there_is_no_tree():
    with pytest.raises(ValueError, match="the updates' only array has shape"):
        jm.majority_vote().update(jnp.ones((5, 3)), None, jnp.zeros((5, 3)))


def test_warnings_raised_from_jaxmedian_are_errors():
    import warnings

    with pytest.raises(UserWarning, match="careful"):
        warnings.warn_explicit(
            "careful", UserWarning, "x.py", 1, module="jaxmedian.kernels.voting"
        )
    with pytest.warns(UserWarning, match="somebody else's"):
        warnings.warn_explicit("somebody else's", UserWarning, "x.py", 1, module="opt")
