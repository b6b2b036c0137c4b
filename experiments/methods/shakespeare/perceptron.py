"""A small feed-forward model over characters in flax NNX: the next from the last few.

The last ``context`` characters, embedded and laid end to end, one hidden layer of ReLU
units, and a readout with biases. Embeddings start from N(0, .3^2), weights from
N(0, 1 / inputs).

Reference: Bengio et al., "A neural probabilistic language model", JMLR 2003.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from experiments.common.training.language import Language, writer

_EMBEDDED = 16  # channels of a character


class Perceptron(nnx.Module):
    """Characters ``[n, context]`` to logits ``[n, characters]`` of what follows."""

    def __init__(self, characters: int, context: int, width: int, rngs: nnx.Rngs):
        """Initialises with ``width`` hidden units."""
        spread = nnx.initializers.normal(0.3)
        self.tokens = nnx.Embed(characters, _EMBEDDED, embedding_init=spread, rngs=rngs)
        by_inputs = nnx.initializers.variance_scaling(1.0, "fan_in", "normal")
        self.hidden = nnx.Linear(
            context * _EMBEDDED, width, kernel_init=by_inputs, rngs=rngs
        )
        self.readout = nnx.Linear(width, characters, kernel_init=by_inputs, rngs=rngs)

    def __call__(self, text: jax.Array) -> jax.Array:
        """Maps numbers of characters to logits of the one behind them."""
        joined = self.tokens(text).reshape(len(text), -1)
        return self.readout(jax.nn.relu(self.hidden(joined)))


def perceptron(characters: int, *, context: int, width: int, seed: int) -> Language:
    """Builds a perceptron as functions; its loss is that of a window's last character.

    Before a text shorter than ``context`` it takes the character 0 to have been.
    """
    module = Perceptron(characters, context, width, nnx.Rngs(seed))
    graph, params = nnx.split(module)

    def logits(params: Any, text: jax.Array) -> jax.Array:
        return nnx.merge(graph, params)(text)

    def losses(params: Any, windows: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(
            logits(params, windows[:, :-1]), windows[:, -1]
        )[:, None]

    def scores(params: Any, buffer: jax.Array, count: jax.Array) -> jax.Array:
        return logits(params, jnp.roll(buffer, context - count)[None])[0]

    return Language(params, losses, writer(scores, context))
