"""Models against plain functions of their parameters, and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("flax")

from flax import nnx

import jaxmedian as jm
from experiments.common.training.models import mnist_network
from experiments.common.training.models_convolutional import (
    convolve_as_matrices,
    resnet20,
    small_cnn,
)

RNG = np.random.default_rng(0)


def batch_of(number, *shape):
    images = RNG.integers(0, 256, size=(number, *shape), dtype=np.uint8)
    return {"images": images, "labels": np.arange(number, dtype=np.int32) % 10}


@pytest.mark.parametrize(
    ("build", "number"),
    [
        (mnist_network, 784 * 128 + 128 + 128 * 10 + 10),
        (small_cnn, 9 * 8 + 8 + 9 * 8 * 16 + 16 + 49 * 16 * 10 + 10),
        (resnet20, 269_034),
    ],
)
def test_parameters_are_counted(build, number):
    params = jax.eval_shape(lambda: build(0).params)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == number


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: mnist_network(0, hidden=4), (784,)),
        (lambda: small_cnn(0, width=2), (784,)),
    ],
    ids=["mnist_network", "small_cnn"],
)
def test_the_loss_is_a_plain_function_that_starts_near_a_guess(build, shape):
    model, batch = build(), batch_of(8, *shape)
    loss, accuracy = jax.jit(lambda p, b: (model.loss(p, b), model.accuracy(p, b)))(
        model.params, batch
    )
    assert loss.shape == accuracy.shape == ()
    assert abs(float(loss) - np.log(10)) < 2.5
    assert float(accuracy) * 8 == int(float(accuracy) * 8)


def test_the_weighted_loss_leaves_padding_out():
    model = mnist_network(0, hidden=4)
    batch = batch_of(5, 784)
    weights = np.array([True, False, True, True, False])
    grad = jax.jit(jax.grad(model.loss))
    weighted = grad(model.params, batch | {"weights": weights})
    alone = grad(model.params, jax.tree.map(lambda leaf: leaf[weights], batch))
    for got, expected in zip(
        jax.tree.leaves(weighted), jax.tree.leaves(alone), strict=True
    ):
        np.testing.assert_allclose(got, expected, atol=1e-7)


def test_the_weighted_accuracy_leaves_padding_out():
    model = mnist_network(0, hidden=4)
    batch = batch_of(5, 784)
    accuracy = jax.jit(model.accuracy)
    alone = [
        accuracy(model.params, batch | {"weights": np.arange(5) == i}) for i in range(5)
    ]
    assert set(map(float, alone)) <= {0.0, 1.0}
    assert accuracy(model.params, batch) == pytest.approx(np.mean(alone))
    weights = np.array([3.0, 0.0, 1.0, 0.0, 0.0])
    weighted = accuracy(model.params, batch | {"weights": weights})
    assert weighted == pytest.approx(0.75 * alone[0] + 0.25 * alone[2])


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 2)])
def test_convolution_as_matrices_is_convolution(size, stride):
    images = RNG.normal(size=(2, *size, 3)).astype(np.float32)
    kernel = RNG.normal(size=(3, 3, 3, 4)).astype(np.float32)
    got = convolve_as_matrices(images, kernel, (stride, stride))
    expected = jax.lax.conv_general_dilated(
        images,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    np.testing.assert_allclose(got, expected, atol=1e-5)


def plain_resnet(params, images):
    """The residual network, written straight down."""

    def convolve(x, layer, stride):
        out = jax.lax.conv_general_dilated(
            x,
            layer["kernel"],
            (stride, stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return out + layer["bias"]

    x = jax.nn.relu(convolve(images, params["first"], 1))
    for block in params["blocks"].values():
        outputs = block["first"]["kernel"].shape[-1]
        stride = outputs // x.shape[-1]
        inside = jax.nn.relu(convolve(x, block["first"], stride))
        added = convolve(inside, block["second"], 1)
        shortcut = jnp.zeros_like(added)
        shortcut = shortcut.at[..., : x.shape[-1]].set(x[:, ::stride, ::stride])
        x = jax.nn.relu(added + shortcut)
    return x.mean(axis=(1, 2)) @ params["readout"]["kernel"] + params["readout"]["bias"]


def test_resnet_is_the_network_of_the_paper_without_batchnorm():
    model = resnet20(1, width=4, blocks_per_stage=1)
    batch = batch_of(3, 32, 32, 3)
    with jax.default_matmul_precision("highest"):
        params = nnx.to_pure_dict(model.params)
        scaled = np.float32(batch["images"]) / 64 - 2
        logits = jax.jit(plain_resnet)(params, scaled)
        log_p = jax.nn.log_softmax(logits)
        expected = -log_p[np.arange(3), batch["labels"]].mean()
        loss = jax.jit(model.loss)(model.params, batch)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert len(params["blocks"]) == 3


def test_workers_have_gradients_of_their_own():
    model = small_cnn(0, width=2)
    batch = jax.tree.map(lambda *rows: np.stack(rows), *[batch_of(2, 784)] * 2)
    grads = jax.jit(jm.worker_grads(model.loss, worker_chunk=1))(model.params, batch)
    for leaf, param in zip(
        jax.tree.leaves(grads), jax.tree.leaves(model.params), strict=True
    ):
        assert leaf.shape == (2, *param.shape)
        np.testing.assert_array_equal(leaf[0], leaf[1])
