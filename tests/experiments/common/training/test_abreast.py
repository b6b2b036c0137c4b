"""Runs abreast: each ends as it would alone, and all of them resume together."""

import doctest
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("flax")
pytest.importorskip("sklearn")

import jaxmedian as jm
from experiments.common.training import abreast
from experiments.common.training.abreast import batches_of, total_loss, train_abreast
from experiments.common.training.trainer import accuracies, grid, load_problem

NUM_STEPS = 4


def build(key, rate, scale):
    """Continuous in its gradients, so that rounding stays rounding."""
    return jm.noisy_median_sgd(rate, jm.noise.gaussian(scale), key)


@pytest.fixture(scope="module")
def problem():
    return load_problem("digits8x8", hidden=4, num_seeds=2)


@pytest.fixture(scope="module")
def split(problem):
    return jm.splits.by_label(np.asarray(problem.train["labels"]), 3)


SETTINGS = grid(rate=(0.1, 0.5), scale=(0.05,))


def train(problem, split, batch_size, **options):
    options = {"num_steps": NUM_STEPS, "chunk": 2} | options
    return train_abreast(
        problem, build, SETTINGS, split, batch_size=batch_size, **options
    )


@pytest.fixture(scope="module")
def on_batches(problem, split):
    return train(problem, split, 8)


def test_each_run_ends_as_it_would_alone(problem, split, on_batches):
    """Every setting and seed, at every edge, against `jm.run_pure`."""
    held = {name: leaf[split.indices] for name, leaf in problem.train.items()}
    assert len(set(split.sizes.tolist())) > 1  # so that padding would show
    batches = jm.mini_batches(held, 8, sizes=split.sizes)

    def measure(params, grads, updates):
        return accuracies(problem, params)

    @jax.jit
    def alone(rate, scale, params, key):
        optimizer = build(key, rate, scale)
        loss, options = problem.model.loss, {"chunk": 2, "metrics": [measure]}
        arguments = loss, optimizer, params, batches, NUM_STEPS, key
        return jm.run_pure(*arguments, **options).metrics

    for setting in range(2):
        for seed in range(2):
            expected = alone(
                *(jnp.float32(SETTINGS[name][setting]) for name in ("rate", "scale")),
                jax.tree.map(lambda leaf, seed=seed: leaf[seed], problem.params),
                problem.keys[seed],
            )
            assert expected.keys() - on_batches.metrics.keys() == {"loss"}
            for name, values in on_batches.metrics.items():
                # Rounding may change one digit's class and a gradient's last bits.
                slack = {"rtol": 1e-3, "atol": 1 / 179 if "accuracy" in name else 1e-4}
                np.testing.assert_allclose(
                    values[setting, seed], expected[name], err_msg=name, **slack
                )
    norms = on_batches.metrics["gradient_norm"][..., -1].ravel()
    assert len(set(norms.tolist())) == 4  # four runs, not copies of one
    assert on_batches.num_steps() == NUM_STEPS


def test_of_whole_batches_each_run_has_its_own_gradient(problem, split):
    """A worker's padding does not count."""
    whole = batches_of(problem.train, split, None, problem.keys)(None, 0)
    grads = jm.worker_grads(total_loss(problem.model.loss, whole=True))(
        problem.params, whole
    )
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    for seed, worker in itertools.product(range(2), range(3)):
        own = jax.tree.map(lambda leaf, seed=seed: leaf[seed], problem.params)
        samples = split.indices[worker, : split.sizes[worker]]
        batch = {name: leaf[samples] for name, leaf in problem.train.items()}
        got = jax.tree.map(lambda leaf, at=(worker, seed): leaf[at], grads)
        jax.tree.map(close, got, jax.grad(problem.model.loss)(own, batch))


def test_runs_resume_together_to_the_same_bits(problem, split, on_batches, tmp_path):
    pytest.importorskip("orbax.checkpoint")
    train(problem, split, 8, num_steps=2, checkpoint=tmp_path)
    resumed = train(problem, split, 8, checkpoint=tmp_path)
    assert resumed.metrics.keys() == on_batches.metrics.keys()
    for name, values in on_batches.metrics.items():
        np.testing.assert_array_equal(resumed.metrics[name], values)


def test_docstring_examples():
    assert doctest.testmod(abreast).failed == 0
