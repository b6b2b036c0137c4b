"""The models that the benchmark runs in torch compute what ours compute."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common.training.models_convolutional import resnet20
from experiments.common.training.transformer import language
from experiments.systems.benchmark import torch_models

torch = pytest.importorskip("torch")

RNG = np.random.default_rng(0)


def test_the_gpt_has_our_loss():
    gpt = language(17, context=8, layers=2, heads=4, width=16, seed=0)
    windows = RNG.integers(0, 17, (3, 9))
    text, following = (
        torch.from_numpy(part) for part in np.array([windows[:, :-1], windows[:, 1:]])
    )
    got = torch_models.gpt_loss(torch_models.tensors_of(gpt.params), text, following)
    expected = jnp.mean(gpt.losses(gpt.params, jnp.asarray(windows)))
    np.testing.assert_allclose(float(got), expected, rtol=1e-5)


def test_the_residual_network_has_our_loss():
    network = resnet20(seed=0, width=4, blocks_per_stage=1)
    images = RNG.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    labels = np.array([1, 9, 4])
    tensors = torch_models.tensors_of(network.params)
    got = torch_models.resnet_loss(
        tensors, torch.from_numpy(images), torch.from_numpy(labels)
    )
    batch = {"images": jnp.asarray(images), "labels": jnp.asarray(labels)}
    np.testing.assert_allclose(
        float(got), network.loss(network.params, batch), rtol=1e-5
    )


def test_both_ways_of_torch_take_a_step():
    network = resnet20(seed=0, width=4, blocks_per_stage=1)
    images = RNG.integers(0, 256, (2, 3, 32, 32, 3), dtype=np.uint8)
    labels = RNG.integers(0, 10, (2, 3))
    runs = torch_models.candidates(
        torch_models.resnet_loss, network.params, images, labels
    )
    assert len(runs) == 2
    for run in runs.values():
        run()
