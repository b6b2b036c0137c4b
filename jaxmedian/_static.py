"""Arguments that must be known before a program is traced, such as numbers of workers.

`optax.inject_hyperparams` turns every number it is given, defaults included, into an
array that may change from step to step. What a program's shape depends on cannot.
"""

from typing import Any

import jax


def static_hint(name: str, value: Any) -> str:
    """Returns what to do if an argument arrived as an array, or nothing."""
    if not isinstance(value, jax.Array):
        return ""
    return (
        " It must be known before tracing: under `optax.inject_hyperparams` pass "
        f'`static_args=("{name}",)`.'
    )
