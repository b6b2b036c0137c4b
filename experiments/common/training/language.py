"""A model of text as functions of its parameters, and how it writes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Scores = Callable[[Any, jax.Array, jax.Array], jax.Array]


class Language(NamedTuple):
    """A model of text as functions of its parameters.

    Attributes:
      params: initial parameters, a tree of arrays.
      losses: ``(params, windows [n, t + 1]) -> [n, k]``, cross-entropy in nats of the
        last k characters of each window: of all t that follow another, or of one.
      continue_text: ``(params, first [k], length, key) -> [length]``, sampled
        characters that follow ``first``, 0 < k <= context.
    """

    params: Any
    losses: Callable[[Any, jax.Array], jax.Array]
    continue_text: Callable[..., jax.Array]


def writer(scores: Scores, context: int) -> Callable[..., jax.Array]:
    """Builds ``continue_text`` of a `Language`.

    Args:
      scores: ``(params, buffer [context], count)`` -> logits of the character that
        follows the first ``count`` of the buffer.
      context: characters that the model looks back on; what lies behind is not seen.
    """

    def continue_text(
        params: Any, first: jax.Array, length: int, key: jax.Array
    ) -> jax.Array:
        buffer = jnp.zeros(context, jnp.int32).at[: first.size].set(first)

        def write(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
            buffer, count = carry
            logits = scores(params, buffer, count)
            following = jax.random.categorical(key, logits).astype(jnp.int32)
            full = count == context
            buffer = jnp.where(full, jnp.roll(buffer, -1), buffer)
            count = jnp.minimum(count + 1, context)
            return (buffer.at[count - 1].set(following), count), following

        start = buffer, jnp.int32(first.size)
        return jax.lax.scan(write, start, jax.random.split(key, length))[1]

    return continue_text
