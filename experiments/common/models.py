"""Models as plain ``loss(params, batch)``, built with flax NNX."""

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
    graph, params = nnx.split(module)

    def logits(params: Any, batch: Batch) -> jax.Array:
        images = jnp.asarray(batch["images"], jnp.float32) / 255
        return nnx.merge(graph, params)(images)

    def loss(params: Any, batch: Batch) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(
            logits(params, batch), batch["labels"]
        ).mean()

    def accuracy(params: Any, batch: Batch) -> jax.Array:
        return jnp.mean(jnp.argmax(logits(params, batch), axis=1) == batch["labels"])

    return Classifier(params, loss, accuracy)
