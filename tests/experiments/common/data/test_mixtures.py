"""Synthetic data: the gap that is dialled is the gap that is measured."""

import doctest

import jax.numpy as jnp
import numpy as np
import pytest

import jaxmedian as jm
from experiments.common.data import mixtures


@pytest.mark.parametrize("num_workers", [3, 10, 11])
@pytest.mark.parametrize("gap", [0.0, 0.7, 40.0])
def test_the_gap_of_a_quadratic_is_the_dial(num_workers, gap):
    samples = mixtures.worker_mixture(num_workers, 30, 4, gap=gap, spread=2.0, seed=1)
    assert samples.shape == (num_workers, 30, 4)

    def loss(x, own):
        return 0.5 * jnp.mean(jnp.sum((x - own) ** 2, axis=1))

    for x in (jnp.zeros(4), jnp.full(4, 3.0)):
        grads = jm.worker_grads(loss)(x, samples)
        got = float(jm.diagnostics.mean_median_gap(grads))
        assert got == pytest.approx(gap, rel=1e-4, abs=1e-5)
        np.testing.assert_allclose(grads.mean(axis=0), x, atol=1e-4)


def test_spread_is_that_of_a_worker():
    samples = mixtures.worker_mixture(5, 4000, 3, gap=1.0, spread=2.0)
    deviation = samples.std(axis=1)
    # The standard deviation of n Gaussians has error sigma / sqrt(2 n).
    assert (abs(deviation - 2.0) <= 6 * 2.0 / np.sqrt(8000)).all()


def test_image_classes_are_balanced_and_can_be_told_apart():
    data = mixtures.image_classes(600, 200, contrast=0.6)
    assert data.train_images.shape == (400, 32, 32, 3)
    assert data.train_images.dtype == np.uint8
    assert np.bincount(data.test_labels).tolist() == [20] * 10

    def hits(contrast):
        data = mixtures.image_classes(600, 200, contrast=contrast)
        train, test = (x.reshape(len(x), -1).astype(float) for x in data[:4:2])
        means = np.stack(
            [train[data.train_labels == c].mean(axis=0) for c in range(10)]
        )
        gaps = ((test[:, None] - means) ** 2).sum(axis=-1)
        return (gaps.argmin(axis=1) == data.test_labels).mean()

    assert hits(0.6) > 0.9
    assert hits(0.0) < 0.1 + 5 * np.sqrt(0.1 * 0.9 / 200)  # chance


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"num_workers": 2}, ValueError),
        ({"num_samples": 0}, ValueError),
        ({"dimensions": 1.5}, TypeError),
        ({"gap": -1.0}, ValueError),
        ({"spread": float("nan")}, ValueError),
        ({"seed": -1}, ValueError),
    ],
)
def test_bad_mixtures_are_refused(change, error):
    arguments = {"num_workers": 5, "num_samples": 4, "dimensions": 2, "gap": 1.0}
    arguments |= change
    with pytest.raises(error, match=f"`{next(iter(change))}`"):
        mixtures.worker_mixture(**arguments)


@pytest.mark.parametrize(
    "change", [{"side": 30}, {"contrast": 2.0}, {"num_classes": 0}]
)
def test_bad_image_classes_are_refused(change):
    with pytest.raises(ValueError, match=f"`{next(iter(change))}`"):
        mixtures.image_classes(20, 5, **change)


def test_docstring_examples():
    results = doctest.testmod(mixtures)
    assert results.attempted > 0
    assert results.failed == 0
