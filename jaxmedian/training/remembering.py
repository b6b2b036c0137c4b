"""What was built for an optimizer is kept with it: equal settings compile once.

JAX compiles a function again if it is another object, equal or not. A second `run` or
`make_step` with the same loss, optimizer and settings is given the function of the
first. It lives as long as the optimizer, on which it hangs: no list of ours keeps a
loss, or data that a loss closes over, alive.
"""

from collections.abc import Callable, Hashable
from typing import TypeVar

import optax

_MOST = 8  # programs kept with one optimizer; the oldest goes first

Built = TypeVar("Built")


class _Kept(dict[Hashable, object]):
    """What hangs on an optimizer; nothing of it is copied or pickled along."""

    def __reduce__(self) -> tuple[type["_Kept"], tuple[()]]:
        return _Kept, ()


def remember(
    optimizer: optax.GradientTransformation,
    settings: tuple[object, ...],
    build: Callable[[], Built],
) -> Built:
    """Returns what was built for an optimizer and settings, or builds it.

    Args:
      optimizer: what it is kept with.
      settings: all else that tells it from others, functions by identity. Where they
        have no hash, nothing is kept.
      build: builds it.
    """
    try:
        kept = vars(optimizer.update).setdefault("_jaxmedian_kept", _Kept())
        found: Built | None = kept.get((optimizer, *settings))
    except (TypeError, AttributeError):  # no hash, or an update that keeps nothing
        return build()
    if found is None:
        found = kept[optimizer, *settings] = build()
        for oldest in list(kept)[:-_MOST]:
            kept.pop(oldest, None)  # another thread may have been faster
    return found
