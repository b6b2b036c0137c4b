"""A small GPT over characters in flax NNX: the model that nanoGPT trains on a CPU.

Pre-norm blocks of causal attention and an MLP of GELU units, four times as wide;
learned positions; the readout is the embedding; no biases, no dropout. Weights start
from N(0, .02^2), those that add to the residual stream from .02^2 / (2 layers).

Reference: https://github.com/karpathy/nanoGPT, ``config/train_shakespeare_char.py``
with the options that its README gives for a CPU.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from experiments.common.harness.misuse import Misuse
from experiments.common.training.language import Language, writer

_SPREAD = 0.02


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, layers: int, rngs: nnx.Rngs):
        """Initialises one of so many layers."""
        self.heads = heads
        self.norms = nnx.List(
            nnx.LayerNorm(width, epsilon=1e-5, use_bias=False, rngs=rngs)
            for _ in range(2)
        )
        residual = _SPREAD / (2 * layers) ** 0.5
        self.attend = _linear(width, 3 * width, _SPREAD, rngs)
        self.attended = _linear(width, width, residual, rngs)
        self.expand = _linear(width, 4 * width, _SPREAD, rngs)
        self.contract = _linear(4 * width, width, residual, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[n, t, width]`` to the same."""
        n, t, width = x.shape
        parts = self.attend(self.norms[0](x)).reshape(n, t, 3, self.heads, -1)
        query, key, value = (parts[:, :, i] for i in range(3))
        mixed = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        x = x + self.attended(mixed.reshape(n, t, width))
        hidden = jax.nn.gelu(self.expand(self.norms[1](x)), approximate=False)
        return x + self.contract(hidden)


class Transformer(nnx.Module):
    """Characters ``[n, t]`` to logits ``[n, t, characters]``, t <= context."""

    def __init__(
        self,
        characters: int,
        context: int,
        layers: int,
        heads: int,
        width: int,
        rngs: nnx.Rngs,
    ):
        """Initialises; ``heads`` must divide ``width``."""
        self.tokens = _embedding(characters, width, rngs)
        self.positions = _embedding(context, width, rngs)
        self.blocks = nnx.List(Block(width, heads, layers, rngs) for _ in range(layers))
        self.norm = nnx.LayerNorm(width, epsilon=1e-5, use_bias=False, rngs=rngs)

    def __call__(self, text: jax.Array) -> jax.Array:
        """Maps numbers of characters to logits of what follows each."""
        x = self.tokens(text) + self.positions(jnp.arange(text.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.tokens.attend(self.norm(x))


def language(
    characters: int, *, context: int, layers: int, heads: int, width: int, seed: int
) -> Language:
    """Builds a transformer as functions.

    Raises:
      Misuse: if the heads do not divide the width.
    """
    if width % heads:
        raise Misuse(f"--heads must divide --hidden; got {heads} and {width}.")
    module = Transformer(characters, context, layers, heads, width, nnx.Rngs(seed))
    graph, params = nnx.split(module)

    def logits(params: Any, text: jax.Array) -> jax.Array:
        return nnx.merge(graph, params)(text)

    def losses(params: Any, windows: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(
            logits(params, windows[:, :-1]), windows[:, 1:]
        )

    def scores(params: Any, buffer: jax.Array, count: jax.Array) -> jax.Array:
        return logits(params, buffer[None])[0, count - 1]

    return Language(params, losses, writer(scores, context))


def is_matrix(params: Any) -> Any:
    """Says which parameters weight decay is for: all but the scales of norms."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def _linear(inputs: int, outputs: int, spread: float, rngs: nnx.Rngs) -> nnx.Linear:
    init = nnx.initializers.normal(spread)
    return nnx.Linear(inputs, outputs, use_bias=False, kernel_init=init, rngs=rngs)


def _embedding(number: int, width: int, rngs: nnx.Rngs) -> nnx.Embed:
    init = nnx.initializers.normal(_SPREAD)
    return nnx.Embed(number, width, embedding_init=init, rngs=rngs)
