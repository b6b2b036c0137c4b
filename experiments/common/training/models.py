"""Models as plain ``loss(params, batch)``, built with flax NNX.

    mnist_network   784-128-10, the paper's MNIST network            101,770 parameters

and in `models_convolutional` a small CNN and ResNet-20. Batches hold
"images" and "labels"; uint8 pixels are scaled here, so that data stay small. A batch
may hold "weights" [n] too (``split.mask``, where workers hold unequal numbers of
samples): loss and accuracy are then weighted means.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

Batch = Mapping[str, jax.typing.ArrayLike]


class Classifier(NamedTuple):
    """A classifier as functions of its parameters.

    Attributes:
      params: initial parameters, a tree of arrays.
      loss: ``(params, {"images", "labels"}) -> scalar``, mean cross-entropy in nats.
      accuracy: the same arguments -> fraction of right answers.
    """

    params: Any
    loss: Callable[[Any, Batch], jax.Array]
    accuracy: Callable[[Any, Batch], jax.Array]


def classifier(
    module: nnx.Module, prepare: Callable[[jax.Array], jax.Array]
) -> Classifier:
    """Takes a module apart into parameters and functions of them.

    Args:
      module: maps prepared images to logits ``[n, classes]``; no state but parameters.
      prepare: maps the batch's images to what the module takes.
    """
    graph, params = nnx.split(module)

    def logits(params: Any, batch: Batch) -> jax.Array:
        return nnx.merge(graph, params)(prepare(jnp.asarray(batch["images"])))

    def loss(params: Any, batch: Batch) -> jax.Array:
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits(params, batch), batch["labels"]
        )
        return _average(losses, batch)

    def accuracy(params: Any, batch: Batch) -> jax.Array:
        right = jnp.argmax(logits(params, batch), axis=1) == batch["labels"]
        return _average(right.astype(jnp.float32), batch)

    return Classifier(params, loss, accuracy)


def _average(values: jax.Array, batch: Batch) -> jax.Array:
    """Averages one number a sample, by the batch's weights if it has any."""
    if "weights" not in batch:
        return jnp.mean(values)
    return jnp.average(values, weights=jnp.asarray(batch["weights"], values.dtype))


class TwoLayers(nnx.Module):
    """The paper's MNIST network: fully connected, one hidden layer of ReLU units."""

    def __init__(self, inputs: int, hidden: int, classes: int, rngs: nnx.Rngs):
        """Initialises by truncated normals of variance 1 / fan-in."""
        fan_in = nnx.initializers.lecun_normal()
        self.hidden = nnx.Linear(inputs, hidden, kernel_init=fan_in, rngs=rngs)
        self.readout = nnx.Linear(hidden, classes, kernel_init=fan_in, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images ``[n, inputs]`` to logits ``[n, classes]``."""
        return self.readout(nnx.relu(self.hidden(images)))


def mnist_network(seed: int, hidden: int = 128) -> Classifier:
    """Builds the 784-128-10 network on images of uint8 pixels ``[n, 784]``."""
    module = TwoLayers(784, hidden, 10, rngs=nnx.Rngs(seed))
    return classifier(module, lambda images: images.astype(jnp.float32) / 255)
