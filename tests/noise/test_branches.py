"""One seed may serve everything: no two uses of randomness share a key.

Every draw of the library is recorded while it runs from one seed: the keys of its
words. Those of any two consumers must be different keys.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmedian as jm
from jaxmedian.noise import keys, threefry
from jaxmedian.training import bijections

SEED, M, STEPS = 0, 4, 3
GRADS = {"a": jnp.ones((M, 3)), "b": jnp.ones((M, 2))}
PARAMS = {"a": jnp.zeros(3), "b": jnp.zeros(2)}
BRANCHES = {
    name: int(value)
    for name, value in vars(keys).items()
    if name.isupper() and isinstance(value, np.uint32)
}


def test_no_two_branches_are_one():
    assert len(BRANCHES) >= 10
    assert len(set(BRANCHES.values())) == len(BRANCHES)
    assert min(BRANCHES.values()) == 2**31  # below are workers and leaves


def test_the_bits_of_a_billion_workers_end_below_the_other_branches():
    behind = [v for v in BRANCHES.values() if v > BRANCHES["ZERO_BITS"]]
    assert BRANCHES["ZERO_BITS"] + 2**30 - 2 <= min(behind)


@pytest.fixture
def drawn(monkeypatch):
    """The set of keys whose words were drawn since the test began."""
    recorded = set()

    def record(key_words):
        for words in np.asarray(key_words).reshape(-1, 2):
            recorded.add(tuple(words.tolist()))

    def recording(draw):
        def with_record(key, *arguments, **options):
            if jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
                # Shuffles and bounded integers draw with keys that they split off.
                split = jax.random.key_data(jax.random.split(key))
                jax.debug.callback(record, split)
                key_words = jax.random.key_data(key)
            else:
                key_words = key
            jax.debug.callback(record, key_words)
            return draw(key, *arguments, **options)

        return with_record

    monkeypatch.setattr(threefry, "words", recording(threefry.words))
    shuffled = bijections.shuffled

    def recorded_shuffle(places, size, key_words):
        jax.debug.callback(record, key_words)
        return shuffled(places, size, key_words)

    monkeypatch.setattr(bijections, "shuffled", recorded_shuffle)
    jax.clear_caches()  # or what was compiled before would draw unseen
    for name in ("permutation", "randint", "uniform", "bits", "normal"):
        monkeypatch.setattr(jax.random, name, recording(getattr(jax.random, name)))
    return recorded


def train(transform):
    state = transform.init(PARAMS)
    for _ in range(STEPS):
        _, state = transform.update(GRADS, state, PARAMS)


def noisy(law, coupling="independent", ties="zero"):
    noise = getattr(jm.noise, law)(0.1, coupling)
    return lambda: train(jm.majority_vote(noise, SEED, ties=ties))


def serve(next_batch):
    key = jax.random.key(SEED)
    for step in range(STEPS):
        next_batch(key=jax.random.fold_in(key, step), step=step)


DATA = jnp.arange(M * 10.0).reshape(M, 10)
CONSUMERS = {
    "noise": noisy("gaussian"),
    "shared noise": noisy("uniform", "systematic"),
    "ties": lambda: train(jm.majority_vote(key=SEED, ties="random")),
    "hostile": lambda: train(jm.attacks.sign_flip(2, key=SEED)),
    "buckets": lambda: train(jm.bucketing(2, SEED)),
    "participants": lambda: [
        jm.participants(SEED, step, M, 3) for step in range(STEPS)
    ],
    "batches": lambda: [
        serve(jm.mini_batches(DATA, 2, replace=replace)) for replace in (False, True)
    ],
    "epochs": lambda: serve(jm.epochs(DATA, 2, SEED)),
    "sample": lambda: jm.diagnostics.sample_coordinates(GRADS, 3, SEED),
    "attack's noise": lambda: train(jm.attacks.gaussian([0], SEED)),
}


def test_no_two_consumers_of_one_seed_share_a_key(drawn):
    taken = {}
    for name, consume in CONSUMERS.items():
        drawn.clear()
        consume()
        jax.effects_barrier()
        assert drawn, name
        taken[name] = frozenset(drawn)
    for one, other in itertools.combinations(taken, 2):
        shared = taken[one] & taken[other]
        assert not shared, (one, other)


def test_groups_of_a_partition_with_one_key_draw_noise_of_their_own():
    """Positions count the leaves of the whole tree, whoever else takes them."""
    noise = jm.noise.uniform(1.0)
    groups = {
        "left": jm.add_worker_noise(noise, 0),
        "right": jm.add_worker_noise(noise, 0),
    }
    grads = {name: jnp.zeros((M, 50)) for name in ("a", "b", "c")}
    params = {name: jnp.zeros(50) for name in grads}
    tx = optax.partition(groups, {"a": "left", "b": "right", "c": "left"})
    parted, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    whole = groups["left"]
    joint, _ = jax.jit(whole.update)(grads, whole.init(params), params)
    for name in grads:
        np.testing.assert_allclose(parted[name], joint[name], rtol=1e-6)
    assert not np.allclose(parted["a"], parted["b"])


def test_a_seed_for_attack_and_buckets_spreads_the_hostile_over_the_buckets():
    """4 hostile of 20 spoil 10 (1 - C(16, 2) / C(20, 2)) = 3.68 buckets of 2."""

    def spoilt(seed):
        tx = optax.chain(jm.attacks.nan(4, seed), jm.bucketing(2, seed))
        sent, _ = tx.update(jnp.ones((20, 1)), tx.init(jnp.zeros(1)), jnp.zeros(1))
        return jnp.sum(jnp.isnan(sent))

    counts = np.asarray(jax.jit(jax.vmap(spoilt))(jnp.arange(400)))
    expected = 10 * (1 - (16 * 15) / (20 * 19))
    # Spoilt buckets are 4 less the pairs of hostile that share one: at most 2 apart.
    assert abs(counts.mean() - expected) < 5 * counts.std() / np.sqrt(400)
