"""Convolutional models as plain ``loss(params, batch)``, built with flax NNX.

    small_cnn   two convolutions and a readout, 28x28 grey pixels      9,098 parameters
    resnet20    ResNet-20 with every BatchNorm removed, 32x32x3      269,034

Convolutions are computed as matrix products: see `convolve_as_matrices`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.common.training.models import Classifier, classifier


class SmallCnn(nnx.Module):
    """Two 3x3 convolutions of stride 2 with ReLU, and a readout of all positions."""

    def __init__(self, side: int, width: int, classes: int, rngs: nnx.Rngs):
        """Initialises by truncated normals: variance 2 / fan-in below a ReLU."""
        self.first = _convolution(1, width, stride=2, gain=2.0, rngs=rngs)
        self.second = _convolution(width, 2 * width, stride=2, gain=2.0, rngs=rngs)
        positions = (-(-side // 4)) ** 2  # stride 2 twice, rounded up
        self.readout = nnx.Linear(2 * width * positions, classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images ``[n, side, side, 1]`` to logits ``[n, classes]``."""
        features = nnx.relu(self.second(nnx.relu(self.first(images))))
        return self.readout(features.reshape(len(features), -1))


def small_cnn(seed: int, width: int = 8) -> Classifier:
    """Builds `SmallCnn` on images of uint8 pixels ``[n, 784]``."""
    module = SmallCnn(28, width, 10, rngs=nnx.Rngs(seed))

    def prepare(images: jax.Array) -> jax.Array:
        return images.reshape(-1, 28, 28, 1).astype(jnp.float32) / 255

    return classifier(module, prepare)


class _Block(nnx.Module):
    """x + conv(relu(conv(x))), then ReLU; without BatchNorm."""

    def __init__(self, inputs: int, outputs: int, gain: float, rngs: nnx.Rngs):
        self.stride, self.padding = outputs // inputs, outputs - inputs
        self.first = _convolution(inputs, outputs, self.stride, gain=2.0, rngs=rngs)
        self.second = _convolution(outputs, outputs, stride=1, gain=gain, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        # The shortcut has no parameters: every other pixel, new channels zero.
        shortcut = x[:, :: self.stride, :: self.stride]
        shortcut = jnp.pad(shortcut, ((0, 0), (0, 0), (0, 0), (0, self.padding)))
        return nnx.relu(shortcut + self.second(nnx.relu(self.first(x))))


class ResNet(nnx.Module):
    """The residual network of 6 n + 2 layers for 32x32 images, without BatchNorm.

    With BatchNorm gone nothing holds back the variance, which each of the 3 n blocks
    would double; so the second convolution of a block starts at 1 / (3 n) of He's
    variance, and all of them together multiply it by less than e.

    Reference: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016,
    section 4.2, with shortcuts of type A.
    """

    def __init__(self, blocks_per_stage: int, width: int, classes: int, rngs: nnx.Rngs):
        """Initialises by truncated normals of He's variance, blocks scaled down."""
        gain = 2.0 / (3 * blocks_per_stage)
        self.first = _convolution(3, width, stride=1, gain=2.0, rngs=rngs)
        widths = [
            width * 2**stage for stage in range(3) for _ in range(blocks_per_stage)
        ]
        self.blocks = nnx.List(
            _Block(inputs, outputs, gain, rngs)
            for inputs, outputs in zip([width, *widths], widths, strict=False)
        )
        self.readout = nnx.Linear(4 * width, classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images ``[n, side, side, 3]`` to logits ``[n, classes]``."""
        x = nnx.relu(self.first(images))
        for block in self.blocks:
            x = block(x)
        return self.readout(x.mean(axis=(1, 2)))


def resnet20(seed: int, width: int = 16, blocks_per_stage: int = 3) -> Classifier:
    """Builds ResNet-20 without BatchNorm on uint8 images ``[n, 32, 32, 3]``.

    At the default size 269,034 parameters: 268,346 weights, as with BatchNorm, and 688
    biases of convolutions in the place of its 1,376 scales and shifts.
    """
    module = ResNet(blocks_per_stage, width, 10, rngs=nnx.Rngs(seed))
    return classifier(module, lambda images: images.astype(jnp.float32) / 64 - 2)


def _convolution(
    inputs: int, outputs: int, stride: int, gain: float, rngs: nnx.Rngs
) -> nnx.Conv:
    init = nnx.initializers.variance_scaling(gain, "fan_in", "truncated_normal")
    return nnx.Conv(
        inputs,
        outputs,
        kernel_size=(3, 3),
        strides=stride,
        kernel_init=init,
        conv_general_dilated=convolve_as_matrices,
        rngs=rngs,
    )


def convolve_as_matrices(
    images: jax.Array, kernel: jax.Array, strides: Sequence[int], *_: Any, **__: Any
) -> jax.Array:
    """Convolves with padding "SAME" as one matrix product over patches of pixels.

    One gradient a worker makes a grouped convolution of each layer, which XLA runs far
    slower than the same products as matrices: for ResNet-20, 10 workers and batches of
    16 on two busy CPU cores 7.1 s a step against 3.7, and 25.6 against 2.1 with
    ``worker_chunk=1``.

    Args:
      images: [n, height, width, inputs].
      kernel: [rows, columns, inputs, outputs].
      strides: of rows and columns.

    Returns:
      [n, ceil(height / stride), ceil(width / stride), outputs].
    """
    rows, columns, inputs, outputs = kernel.shape
    vertical = _places(images.shape[1], rows, strides[0])
    horizontal = _places(images.shape[2], columns, strides[1])
    padded = jnp.pad(images, ((0, 0), vertical.padding, horizontal.padding, (0, 0)))
    shifted = [
        padded[:, vertical.starting(i), horizontal.starting(j)]
        for i in range(rows)
        for j in range(columns)
    ]
    patches = jnp.concatenate(shifted, axis=-1).reshape(-1, rows * columns * inputs)
    convolved = patches @ kernel.reshape(-1, outputs)
    return convolved.reshape(len(images), vertical.number, horizontal.number, outputs)


class _Places(NamedTuple):
    """Where a kernel is laid along one axis: padding, and every stride-th pixel."""

    number: int
    stride: int
    padding: tuple[int, int]

    def starting(self, first: int) -> slice:
        return slice(first, first + (self.number - 1) * self.stride + 1, self.stride)


def _places(size: int, kernel_size: int, stride: int) -> _Places:
    number = -(-size // stride)
    padding = max((number - 1) * stride + kernel_size - size, 0)
    return _Places(number, stride, (padding // 2, padding - padding // 2))
