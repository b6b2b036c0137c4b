"""Which workers are outvoted, and how often."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxmedian._workers import survey

PyTree = Any


def suspicion(
    grads: PyTree, updates: PyTree, *, worker_mask: jax.Array | None = None
) -> jax.Array:
    """Computes how often each worker was outvoted: ``[M]``, 0 to 1.

    The fraction, among the coordinates that moved, in which the update goes uphill for
    this worker: its gradient has the sign that lost. A worker drawn at random from many
    alike has somewhat less than 1/2, and the mean over steps tells a hostile worker
    from an unlucky one unless it lies only where it pays
    (`jaxmedian.attacks.pivotal_votes`). NaN always counts as outvoted, 0 never.

    Args:
      grads: what the workers sent, leaves ``[M, ...]``.
      updates: the optimizer's updates, leaves ``[...]``; a descent step points against
        the gradient.
      worker_mask: bool ``[M]``; absent workers get 0.

    Returns:
      float32 ``[M]``; all 0 if nothing moved.

    >>> import jax.numpy as jnp
    >>> grads = jnp.array([[1., 4.], [2., -1.], [-9., 2.]])
    >>> suspicion(grads, updates=jnp.array([-1., -1.])).tolist()
    [0.0, 0.5, 0.5]
    """
    present = survey("suspicion", grads, None, worker_mask=worker_mask).present

    def outvoted(leaf: jax.Array, update: jax.Array) -> jax.Array:
        moves = jnp.sign(update)[None]
        lost = (jnp.sign(leaf).astype(moves.dtype) * moves > 0) | jnp.isnan(leaf)
        lost = lost & (moves != 0)
        return jnp.sum(lost.reshape(leaf.shape[0], -1), axis=1, dtype=jnp.int32)

    counts = jax.tree.leaves(jax.tree.map(outvoted, grads, updates))
    moved = [jnp.sum(u != 0, dtype=jnp.int32) for u in jax.tree.leaves(updates)]
    total = jnp.maximum(jnp.float32(sum(moved[1:], moved[0])), 1)
    share = jnp.float32(sum(counts[1:], counts[0])) / total
    return share if present is None else jnp.where(present, share, jnp.float32(0))
